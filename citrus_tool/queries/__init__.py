"""VNN-LIB queries: read and write both versions of the language, check and format witnesses, find UAP structure."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from citrus_tool.queries.constraint import Constraint as Constraint
from citrus_tool.queries.constraint import Variable as Variable
from citrus_tool.queries.exact_boxes import InputBox as InputBox
from citrus_tool.queries.query_file import QueryText
from citrus_tool.queries.query_file import VnnlibError as VnnlibError
from citrus_tool.queries.spec import Case as Case
from citrus_tool.queries.spec import HalfSpaces as HalfSpaces
from citrus_tool.queries.spec import NetworkVariable as NetworkVariable
from citrus_tool.queries.spec import Spec as Spec
from citrus_tool.queries.spec import TensorVariable as TensorVariable
from citrus_tool.queries.uap import NotUapError as NotUapError
from citrus_tool.queries.uap import UapStructure as UapStructure
from citrus_tool.queries.uap import uap_query as uap_query
from citrus_tool.queries.uap import uap_structure as uap_structure
from citrus_tool.queries.vnnlib1 import parse1
from citrus_tool.queries.vnnlib1 import text1 as text1
from citrus_tool.queries.vnnlib1 import write1 as write1
from citrus_tool.queries.vnnlib2 import is_version2, parse2
from citrus_tool.queries.vnnlib2 import text2 as text2
from citrus_tool.queries.vnnlib2 import write2 as write2
from citrus_tool.queries.witness import Check as Check
from citrus_tool.queries.witness import check as check
from citrus_tool.queries.witness import format_witness as format_witness
from citrus_tool.queries.witness import parse_witness as parse_witness


def read(path: Path) -> Spec:
    """Reads a query, plain or gzipped; (vnnlib-version ...) at its start tells 2.0 from 1.0. Raises VnnlibError."""
    return _parse(QueryText.of(path))


def parse(text: str, *, name: str = "<text>") -> Spec:
    """Reads a query from `text`; `name` stands in front of errors. Raises VnnlibError."""
    return _parse(QueryText(name=name, text=text))


def _parse(source: QueryText) -> Spec:
    with _without_collector():
        return parse2(source) if is_version2(source) else parse1(source)


@contextmanager
def _without_collector() -> Iterator[None]:
    """The readers make no reference cycles; the collector would only walk the growing Spec (40% of the time)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
