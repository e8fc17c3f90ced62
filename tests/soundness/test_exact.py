"""What the gate holds certificates against: it is right itself, and it sees what is wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from citrus_tool.certification.uap import certify_uap
from citrus_tool.results.certificate import Certificate
from citrus_tool.threat import Threat
from tests.certification.oracle import fooled_at_most
from tests.certification.toys import as_onnx
from tests.soundness.cases import Case, Family
from tests.soundness.exact import beyond_exact, fractions, logits
from tests.soundness.rules import RULES, Rule, untargeted


@pytest.mark.parametrize(
    ("seed", "family"),
    [
        *((seed, "any") for seed in range(12)),
        *((0, "deep"), (1, "deep"), (0, "strided")),
        *((seed, "gated") for seed in range(12)),
    ],
)
def test_logits_in_fractions_are_the_networks(seed: int, family: Family) -> None:
    network = Case(seed=seed, family=family).network
    x = torch.rand(3, *network.input_shape, generator=torch.Generator().manual_seed(seed))
    expected = network.frozen(dtype=torch.float64)(x.double()).numpy()
    for one, there in zip(x, expected, strict=True):
        found = logits(network, fractions(one))
        if found is not None:
            np.testing.assert_allclose(found.astype(float), there, rtol=1e-9, atol=1e-9 * np.abs(there).max())


def test_most_networks_have_fractions() -> None:
    found = [logits(one.network, fractions(one.data.images[0])) for one in (Case(seed=seed) for seed in range(24))]
    assert sum(value is not None for value in found) >= 12


@pytest.mark.parametrize("family", ["deep", "strided"])
@pytest.mark.parametrize("threat", [Threat(eps=0.1), Threat(eps=0.1, clip=True), Threat(eps=0.2, target=1)])
def test_one_more_than_the_true_minimum_is_seen(family: Family, threat: Threat) -> None:
    case = Case(seed=1, family=family)
    x, labels, network = case.data.images[:4], case.data.labels[:4], case.network
    if threat.target is not None:
        x, labels = x[labels != threat.target], labels[labels != threat.target]
    if threat.clip:  # the oracle's box reaches beyond the pixels
        x = 0.2 + 0.6 * x
    least = len(x) - fooled_at_most(network, x, labels, threat.eps, threat.target)
    assert list(beyond_exact(network, x, labels, threat, least, 0)) == []
    assert least < len(x)
    assert list(beyond_exact(network, x, labels, threat, least + 1, 0))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_sees_what_contradicts_it(rule: Rule, tmp_path: Path) -> None:
    """On a certificate as it is, and as if nothing were proven and everything could be fooled."""
    case = Case(seed=6 if rule is untargeted else 4, family="deep", bounds="crown", arithmetic="real")
    found = certify_uap(as_onnx(case.network, tmp_path), case.data, case.threat, case.settings)
    assert list(rule(case, found, tmp_path)) == []
    less = SimpleNamespace(scope=found.scope, attacked=-1, individually_certified=-1)
    assert list(rule(case, cast(Certificate, less), tmp_path))
