"""How functions of one number are written in ONNX: as few nodes as opset 13 has for them."""

from __future__ import annotations

import math
from collections.abc import Mapping

FORMS: Mapping[str, str] = {
    "exp": "y = Exp x",
    "log": "y = Log x",
    "sqrt": "y = Sqrt x",
    "reciprocal": "y = Reciprocal x",
    "rsqrt": "root = Sqrt x; y = Reciprocal root",
    "square": "y = Mul x x",
    "cube": "square = Mul x x; y = Mul square x",
    "erf": "y = Erf x",
    "softplus": "y = Softplus x",
    "elu": "y = Elu x",
    "silu": "gate = Sigmoid x; y = Mul x gate",
    "gelu": "scaled = Mul x ROOT_HALF; erf = Erf scaled; twice = Add erf ONE; whole = Mul x twice; y = Mul whole HALF",
    "gelu_tanh": "square = Mul x x; cube = Mul square x; small = Mul cube GELU_CUBE; sum = Add x small; "
    "t = Mul sum GELU_SCALE; tanh = Tanh t; twice = Add tanh ONE; whole = Mul x twice; y = Mul whole HALF",
    "hardswish": "moved = Add x THREE; capped = Clip moved ZERO SIX; whole = Mul x capped; y = Div whole SIX",
    "mish": "soft = Softplus x; gate = Tanh soft; y = Mul x gate",
}
"""Kind -> nodes "output = Operator inputs", from x to y; names in capitals are CONSTANTS."""

CONSTANTS: Mapping[str, float] = {
    "ZERO": 0.0,
    "HALF": 0.5,
    "ONE": 1.0,
    "THREE": 3.0,
    "SIX": 6.0,
    "ROOT_HALF": math.sqrt(0.5),
    "GELU_SCALE": math.sqrt(2.0 / math.pi),
    "GELU_CUBE": 0.044715,
}
