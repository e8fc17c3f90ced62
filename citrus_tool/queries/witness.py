"""Witnesses of sat: formatted as VNN-COMP and the standard ask, read back, and checked as the scorer does.

The scorer casts the inputs to float32, then asks for them strictly inside their bounds (tolerance 0), then replays them
on onnxruntime. `check` is the first two steps, and the third for outputs that the caller has replayed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from citrus_tool.errors import InputFileError
from citrus_tool.queries.spec import Spec, Values

_PAIR = re.compile(r"\(\s*([XY])_([0-9]{1,12})\s+([^\s()]+)\s*\)")
_HEADER = re.compile(r"([A-Za-z]\w*)\s+(\w+)\s+\[([0-9,\s]*)\]")


@dataclass(frozen=True, kw_only=True)
class Check:
    """Whether a witness holds; `reason` is empty, or one sentence that says why not."""

    holds: bool
    reason: str


def cast(values: Values) -> dict[str, NDArray[np.float32]]:
    """The float32 values that the scorer makes of `values`, shaped like them."""
    with np.errstate(over="ignore"):
        return {name: np.asarray(entries, dtype=np.float64).astype(np.float32) for name, entries in values.items()}


def check(spec: Spec, values: Values) -> Check:
    """Whether `values`, cast to float32, lie in the unsafe set of `spec`, exactly.

    `values` holds every input and output tensor; outputs must come from a replay of the cast inputs. Use
    `spec.rounded()` for the verdict of a scorer that reads bounds as float64. Raises UsageError (`Spec.exact`).
    """
    exact = spec.exact(cast(values))
    if exact is None:
        return Check(holds=False, reason="the witness holds a value that is not a finite float32.")

    for row in spec.common:
        if not row.holds(exact):
            names = ", ".join(spec.describe(variable) for variable, _ in row.terms[:3])
            given = ", ".join(repr(float(exact[variable])) for variable, _ in row.terms[:3])
            reason = f"a constraint on {names} does not hold for {given} (after the cast to float32)."
            return Check(holds=False, reason=reason)
    for clause in spec.clauses:
        if not any(all(row.holds(exact) for row in conjunction) for conjunction in clause):
            return Check(holds=False, reason=f"none of the {len(clause)} cases of a disjunction holds.")
    return Check(holds=True, reason="")


def _number(value: np.generic) -> str:
    return np.format_float_positional(np.float64(value), unique=True, trim="0")


def format_witness(spec: Spec, values: Values) -> str:
    """The text below `sat`, in the form of the query's version; every tensor's values, cast to float32, row-major.

    1.0: ((X_0 0.5)\\n (X_1 0.25)\\n ... (Y_0 1.0)). 2.0: `X float32 [1,2]`, then one value a line, tensors in the order
    of their declarations.
    """
    rounded = cast(values)
    if spec.version == "1.0":
        pairs = [
            f"({tensor}_{index} {_number(value)})"
            for tensor in spec.tensors
            for index, value in enumerate(rounded[tensor].ravel())
        ]
        return f"({chr(10).join(pairs)})\n".replace("\n(", "\n (")
    lines: list[str] = []
    for tensor in spec.tensors.values():
        lines.append(f"{tensor.name} {tensor.element_type} [{','.join(map(str, tensor.shape))}]")
        lines += [_number(value) for value in rounded[tensor.name].ravel()]
    return "\n".join(lines) + "\n"


def parse_witness(spec: Spec, text: str) -> dict[str, NDArray[np.float64]]:
    """Reads what `format_witness` writes (and the same from other tools) as float64, shaped as the tensors.

    A first line `sat` is skipped. Raises InputFileError for missing, repeated, unknown or unreadable values.
    """
    text = re.sub(r"\A\s*sat\b", "", text)
    found = _pairs(spec, text) if spec.version == "1.0" else _blocks(spec, text)
    result: dict[str, NDArray[np.float64]] = {}
    for tensor in spec.tensors.values():
        entries = found.get(tensor.name, {})
        if len(entries) != tensor.size:
            raise InputFileError(f"the witness has {len(entries)} of the {tensor.size} values of {tensor.name}.")
        result[tensor.name] = np.array([entries[i] for i in range(tensor.size)], dtype=np.float64).reshape(tensor.shape)
    return result


def _value(text: str, place: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputFileError(f"the witness gives {place} the value {text[:40]!r}, which is not a number.") from None


def _pairs(spec: Spec, text: str) -> Mapping[str, Mapping[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for prefix, digits, number in _PAIR.findall(text):
        entries, index = found.setdefault(prefix, {}), int(digits)
        if prefix not in spec.tensors or index >= spec.tensors[prefix].size:
            raise InputFileError(f"the witness assigns {prefix}_{index}, which the query does not declare.")
        if index in entries:
            raise InputFileError(f"the witness assigns {prefix}_{index} twice.")
        entries[index] = _value(number, f"{prefix}_{index}")
    return found


def _blocks(spec: Spec, text: str) -> Mapping[str, Mapping[int, float]]:
    found: dict[str, dict[int, float]] = {}
    entries: dict[int, float] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        header = _HEADER.fullmatch(line)
        if header is not None:
            name = header[1]
            if name not in spec.tensors or name in found:
                raise InputFileError(f"the witness assigns {name}, which the query does not declare, or twice.")
            entries = found[name] = {}
        elif not found:
            raise InputFileError(f"the witness starts with {line[:40]!r}, not with a tensor such as X float32 [1,2].")
        else:
            entries[len(entries)] = _value(line, f"{name}[{len(entries)}]")
    return found
