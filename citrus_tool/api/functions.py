"""What is not about one model: queries and reports."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from citrus_tool.api.arguments import OnProgress, progress_of
from citrus_tool.api.model import Hardened, Model
from citrus_tool.choices import Arithmetic
from citrus_tool.onnx_io.reader import assemble
from citrus_tool.queries import Spec
from citrus_tool.queries import read as read_query
from citrus_tool.queries.verify import Answer, require_names
from citrus_tool.queries.verify import verify as decide
from citrus_tool.results.attack import AttackReport
from citrus_tool.results.certificate import Certificate
from citrus_tool.results.evaluation import Evaluation


def verify(
    query: str | Path | Spec,
    models: Model | Mapping[str, Model],
    *,
    arithmetic: Arithmetic = "float32",
    seconds: float = math.inf,
    seed: int = 0,
    log: Callable[[str], None] = lambda text: None,
) -> Answer:
    """Answers a VNN-LIB 1.0 or 2.0 query: `verdict` is SAT (with a witness that onnxruntime confirmed), UNSAT, ...

    Args:
        query: a file, plain or gzipped, or a query that was read (citrus_tool.queries.read).
        models: by the query's network names; one Model where the query needs one (copies that are equal-to another
            network take none). Queries speak of the file's own input: `mean` and `std` of a Model play no part.
        arithmetic: what UNSAT is about: every run of the files in float32, or the networks in real arithmetic.
        seconds: wall time, which one step of the work may overrun.
        seed: of the attack.
        log: gets progress lines.

    Raises:
        InputFileError: the query cannot be read.
        UsageError: names or shapes do not fit.
    """
    spec = query if isinstance(query, Spec) else read_query(Path(query))
    if isinstance(models, Model):
        models = {network.name: models for network in spec.networks if network.equal_to is None}
    require_names(spec, models)
    read = {name: assemble(m.source, input_shape=m.source.input_shape) for name, m in models.items()}
    return decide(spec, read, arithmetic=arithmetic, seconds=seconds, seed=seed, log=log)


def report(
    *results: Hardened | Certificate | Evaluation | AttackReport | str | Path,
    out: str | Path,
    models: Sequence[Model] = (),
    data_root: Path | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[str, ...]:
    """Writes results as one HTML file that loads nothing from the network; returns what it had to leave out, and why.

    Args:
        results: what `harden`, `certify`, `evaluate` and `attack` returned; run folders and result files too.
        out: the page to write.
        models: networks of the results that lie in no file, or take normalised inputs. Pictures are made by replaying
            network and data on onnxruntime; data that was given as arrays is not at hand then, so that they are left
            out.
        data_root: where named data sets lie.

    Raises:
        InputFileError: `out` cannot be written, or a file holds no result.
        CheckFailedError: a replay contradicts a certificate.
    """
    from citrus_tool.reports import read, write_report
    from citrus_tool.reports.data import Origin, Reported

    own = [*models, *(result.model for result in results if isinstance(result, Hardened))]
    normalised = {model.sha256: Origin(mean=model.mean, std=model.std) for model in own}
    runs = []
    for result in results:
        if isinstance(result, str | Path):
            runs.append(read(Path(result)))
        elif isinstance(result, Certificate | Evaluation):
            one = result if isinstance(result, Certificate) else result.certificate
            origin = None if one is None else normalised.get(one.sha256)
            runs.append(Reported.of(result, type(result).__name__, origin))
        else:
            record = result.report if isinstance(result, Hardened) else result
            runs.append(Reported.of(record, type(record).__name__))
    with tempfile.TemporaryDirectory(prefix="citrus-") as folder:
        files = [model.save(Path(folder) / f"{number}.onnx") for number, model in enumerate(own)]
        return write_report(runs, Path(out), models=files, root=data_root, progress=progress_of(on_progress))
