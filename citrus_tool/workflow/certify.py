"""The certificate of a file, with journal and proof."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices import Split
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.devices import resolved
from citrus_tool.files import require_writable_folder, write_json
from citrus_tool.results.certificate import Certificate
from citrus_tool.sources import DataSource, ModelSource
from citrus_tool.threat import Threat
from citrus_tool.workflow.normalisation import warn_of_accuracy
from citrus_tool.workflow.run_folder import save_settings

JOURNAL: Final = "journal.jsonl"
"""The file of a run folder that holds its finished groups."""


def certify_file(
    source: ModelSource,
    choice: DataSource,
    threat: Threat,
    certify: CertifySettings,
    context: RunContext,
    *,
    split: Split = "test",
    proof: Path | None = None,
    part: tuple[int, int] | None = None,
    join: Sequence[Path] = (),
) -> Certificate:
    """The certificate of a file on one split; finished groups go to the run folder's journal, for `resume`.

    `proof` gets what `check_file` verifies; `part` is as in `certify_uap`; `join` are run folders of parts, and needs a
    run folder.
    """
    context, run_dir = resolved(context), context.run_dir
    dataset = choice.load(split)
    model = source.read(dataset)
    if run_dir is not None:
        require_writable_folder(run_dir)
    warn_of_accuracy(model, dataset, choice)
    if run_dir is not None:
        save_settings(run_dir, {**context.effective, "eps": threat.eps} if context.effective is not None else None)
    certificate = certify_uap(
        model,
        dataset,
        threat,
        certify,
        device=context.device,
        journal=None if run_dir is None else run_dir / JOURNAL,
        resume=context.resume,
        proof=proof,
        workers=context.workers,
        part=part,
        join=[folder / JOURNAL for folder in join],
        progress=context.progress,
    )
    if run_dir is not None:
        write_json(run_dir / "certificate.json", certificate.to_json())
    return certificate
