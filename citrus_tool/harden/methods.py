"""The training methods by name. A method is one file with one function of the type `Method`."""

from __future__ import annotations

from collections.abc import Mapping

from citrus_tool.harden.adversarial import adversarial
from citrus_tool.harden.cc_ibp import cc_ibp
from citrus_tool.harden.citrus import citrus
from citrus_tool.harden.citrus_plus import citrus_plus
from citrus_tool.harden.citrus_si import citrus_si
from citrus_tool.harden.crown_ibp import crown_ibp
from citrus_tool.harden.cw_uat import cw_uat
from citrus_tool.harden.exp_ibp import exp_ibp
from citrus_tool.harden.ibp import ibp
from citrus_tool.harden.kcp import kcp
from citrus_tool.harden.method import Method
from citrus_tool.harden.mtl_ibp import mtl_ibp
from citrus_tool.harden.sabr import sabr
from citrus_tool.harden.standard import standard
from citrus_tool.harden.staps import staps
from citrus_tool.harden.taps import taps
from citrus_tool.harden.uat import uat

METHODS: Mapping[str, Method] = {
    "standard": standard,
    "pgd": adversarial,
    "uat": uat,
    "cw-uat": cw_uat,
    "ibp": ibp,
    "crown-ibp": crown_ibp,
    "sabr": sabr,
    "taps": taps,
    "staps": staps,
    "mtl-ibp": mtl_ibp,
    "cc-ibp": cc_ibp,
    "exp-ibp": exp_ibp,
    "citrus": citrus,
    "citrus-si": citrus_si,
    "kcp": kcp,
    "citrus-plus": citrus_plus,
}
