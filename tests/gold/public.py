"""Prints what the Python interface gives on the shipped network, as JSON."""

from __future__ import annotations

import json
import sys

import citrus_tool as citrus

model = citrus.load("models/digits_convtiny.onnx", input_shape=(1, 8, 8))
found = model.certify("digits", eps=0.05, limit=10, bounds="alpha", solver="highs", threads=1)
attacked = citrus.attack(model, "digits", eps=0.1, limit=10)
sys.stdout.write(
    json.dumps({"model": str(model).splitlines()[0], "certified": found.to_json(), "attacked": attacked.to_json()})
    + "\n"
)
