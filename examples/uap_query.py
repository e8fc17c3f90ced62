"""A group's UAP problem as a VNN-LIB query, for any verifier, and citrus' own answer to it.

python examples/uap_query.py [FOLDER]
"""

import sys
from pathlib import Path

import citrus_tool as citrus

SHIPPED = Path(__file__).resolve().parents[1] / "models" / "digits_convtiny.onnx"


def main(folder: Path) -> None:
    """Ask whether one u fools two images, at a small and at a large radius."""
    model = citrus.load(SHIPPED)
    pair = citrus.load_data("digits", split="test", limit=2)
    for eps in (0.05, 0.3):
        files = model.export_query(pair, eps=eps, folder=folder, name=f"pair_{eps}")
        print(f"{files.query.name}: does one u with |u| <= {eps} fool both images?")
        answer = citrus.verify(files.query, model, seconds=20)  # unsat: no such u; sat: here is one
        print(answer)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "queries"))
