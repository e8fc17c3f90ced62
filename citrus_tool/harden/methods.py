"""The training methods by name. A method is one file with one function of the type `Method`."""

from __future__ import annotations

from collections.abc import Mapping

from citrus_tool.harden.citrus import citrus
from citrus_tool.harden.method import Method
from citrus_tool.harden.standard import standard

METHODS: Mapping[str, Method] = {"citrus": citrus, "standard": standard}
