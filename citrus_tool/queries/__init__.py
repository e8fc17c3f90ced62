"""VNN-LIB queries: read and write both versions of the language, check and format witnesses, find UAP structure."""

from __future__ import annotations

from pathlib import Path

from citrus_tool.queries.source import Source
from citrus_tool.queries.source import VnnlibError as VnnlibError
from citrus_tool.queries.spec import Case as Case
from citrus_tool.queries.spec import Constraint as Constraint
from citrus_tool.queries.spec import HalfSpaces as HalfSpaces
from citrus_tool.queries.spec import InputBox as InputBox
from citrus_tool.queries.spec import NetworkVariable as NetworkVariable
from citrus_tool.queries.spec import Spec as Spec
from citrus_tool.queries.spec import TensorVariable as TensorVariable
from citrus_tool.queries.spec import Variable as Variable
from citrus_tool.queries.vnnlib1 import parse1
from citrus_tool.queries.vnnlib1 import text1 as text1
from citrus_tool.queries.vnnlib1 import write1 as write1
from citrus_tool.queries.vnnlib2 import is_version2, parse2
from citrus_tool.queries.vnnlib2 import text2 as text2
from citrus_tool.queries.vnnlib2 import write2 as write2


def read(path: Path) -> Spec:
    """Reads a query, plain or gzipped; (vnnlib-version ...) at its start tells 2.0 from 1.0. Raises VnnlibError."""
    return _parse(Source.of(path))


def parse(text: str, *, name: str = "<text>") -> Spec:
    """Reads a query from `text`; `name` stands in front of errors. Raises VnnlibError."""
    return _parse(Source(name=name, text=text))


def _parse(source: Source) -> Spec:
    return parse2(source) if is_version2(source) else parse1(source)
