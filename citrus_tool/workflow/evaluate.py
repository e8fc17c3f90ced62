"""All accuracies of a file in one go."""

from __future__ import annotations

from dataclasses import replace

from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices import Split
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.devices import resolved
from citrus_tool.results.evaluation import Evaluation
from citrus_tool.sources import DataSource, ModelSource
from citrus_tool.threat import Threat
from citrus_tool.workflow.figures import judged_figures, pgd_accuracy
from citrus_tool.workflow.normalisation import warn_of_accuracy


def evaluate_file(
    source: ModelSource,
    choice: DataSource,
    threat: Threat,
    certify: CertifySettings,
    context: RunContext,
    *,
    split: Split = "test",
    pgd_steps: int = 50,
) -> Evaluation:
    """Clean, PGD, shared-perturbation, IBP and certified accuracy in one go."""
    context = replace(resolved(context), seed=certify.seed)
    dataset = choice.load(split)
    model = source.read(dataset)
    warn_of_accuracy(model, dataset, choice)
    judged = dataset.take(certify.limit) if certify.limit is not None else dataset
    certificate = certify_uap(model, dataset, threat, certify, context)
    figures = judged_figures(model, dataset, certificate, context)
    robust = pgd_accuracy(model.network, judged, threat, pgd_steps, context)
    context.progress.finish()
    return Evaluation(
        model=source.path,
        data=choice.name,
        split=split,
        eps=threat.eps,
        group_size=certify.group_size,
        inputs=len(judged),
        pgd_accuracy=robust,
        figures=figures,
        arithmetic=certificate.arithmetic,
        certificate=certificate,
    )
