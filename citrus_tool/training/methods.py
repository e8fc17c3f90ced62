"""The training methods by name. A method is one file with one function of the type `Method`."""

from __future__ import annotations

from collections.abc import Mapping

from citrus_tool import choices
from citrus_tool.training.adversarial import adversarial
from citrus_tool.training.cc_ibp import cc_ibp
from citrus_tool.training.citrus import citrus
from citrus_tool.training.citrus_plus import citrus_plus
from citrus_tool.training.citrus_si import citrus_si
from citrus_tool.training.crown_ibp import crown_ibp
from citrus_tool.training.cw_uat import cw_uat
from citrus_tool.training.exp_ibp import exp_ibp
from citrus_tool.training.ibp import ibp
from citrus_tool.training.kcp import kcp
from citrus_tool.training.method import Method
from citrus_tool.training.mtl_ibp import mtl_ibp
from citrus_tool.training.sabr import sabr
from citrus_tool.training.standard import standard
from citrus_tool.training.staps import staps
from citrus_tool.training.taps import taps
from citrus_tool.training.uat import uat

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
if METHODS.keys() != set(choices.METHODS):
    raise ValueError("choices.METHODS and the methods here are not the same")
