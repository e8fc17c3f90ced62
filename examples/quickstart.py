"""From an ONNX file to a certified ONNX file, on the digits that come with citrus: some 15 seconds on one core.

python examples/quickstart.py [OUT.onnx]
"""

import sys
from pathlib import Path

import citrus_tool as citrus

SHIPPED = Path(__file__).resolve().parents[1] / "models" / "digits_convtiny.onnx"
EPS = 0.05  # |u| <= 0.05 on pixels in [0, 1]


def main(out: Path) -> None:
    """Certify, harden, certify again, save."""
    model = citrus.load(SHIPPED)
    print(model)

    # how many of 100 test inputs stay correct under every u that five of them share?
    print(model.certify("digits", eps=EPS, limit=100))

    hardened = model.harden(
        "digits",
        eps=EPS,
        epochs=15,  # the recipe for digits has 100
        certify=citrus.CertifySettings(limit=100),
        on_epoch=lambda entry: print(f"epoch {entry['epoch']}: loss {entry['loss']:.3f}"),
    )
    print(hardened)

    certificate = hardened.model.certify("digits", eps=EPS, limit=100, bounds="full")
    print(certificate)
    print("proven, in percent:", certificate.to_json()["certified_uap_accuracy"])

    print("written to", hardened.model.save(out))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits_hardened.onnx"))
