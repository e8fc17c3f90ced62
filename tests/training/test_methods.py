"""Every training loss against its literal twin: value and gradient at every weight."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from citrus_tool.choices.recipe import Recipe, Taps, Uat
from citrus_tool.errors import UsageError
from citrus_tool.network import INPUT, Network, Reshape, chain, walk
from citrus_tool.threat import Box
from citrus_tool.training import taps as taps_module
from citrus_tool.training.adversarial import attack
from citrus_tool.training.batch_norm_statistics import CLEAN
from citrus_tool.training.cc_ibp import cc_loss
from citrus_tool.training.citrus import citrus, citrus_loss
from citrus_tool.training.citrus_plus import citrus_plus_loss
from citrus_tool.training.crown_ibp import crown_ibp, crown_margins
from citrus_tool.training.distil import distillation
from citrus_tool.training.exp_ibp import exp_loss
from citrus_tool.training.expressive import ends_at
from citrus_tool.training.ibp import ibp
from citrus_tool.training.interval_margins import box_margins, uniform_box
from citrus_tool.training.kcp import common_attack, kcp_loss, subsets
from citrus_tool.training.method import Batch, LossParts
from citrus_tool.training.methods import METHODS
from citrus_tool.training.mtl_ibp import mtl_loss
from citrus_tool.training.sabr import sabr_loss
from citrus_tool.training.uat import DELTA
from tests.training import literal_methods as literal
from tests.training.test_citrus_loss import MAKERS, _inputs, _made

EPS, TAU, ALPHA = 0.1, 0.04, 0.3
RECIPE = Recipe(
    eps=EPS, tau_ratio=0.4, epochs=3, warmup_epochs=0, ramp_epochs=0, group_size=5, pgd_steps=2, alpha=ALPHA
)


def _require_equal(network: Network, fast: LossParts, twin: Tensor) -> None:
    assert fast.loss.item() == pytest.approx(twin.item(), rel=1e-10)
    got = torch.autograd.grad(fast.loss, list(network.parameters()))
    want = torch.autograd.grad(twin, list(network.parameters()))
    for a, b in zip(got, want, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def _generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", MAKERS)
def test_ibp(name: str) -> None:
    network, (batch, _) = _made(MAKERS[name]), _inputs(1)
    fast = ibp(network, batch, EPS, TAU, RECIPE, _generator())
    each = [literal.ibp(network, x, int(y), EPS) for x, y in zip(batch.x, batch.labels, strict=True)]
    _require_equal(network, fast, torch.stack(each).mean())
    assert set(fast.boxes) >= {INPUT}


@pytest.mark.parametrize("shrink", [1.0, 0.6])
@pytest.mark.parametrize("name", MAKERS)
def test_sabr(name: str, shrink: float) -> None:
    network, (batch, v) = _made(MAKERS[name]), _inputs(1)
    fast = sabr_loss(network, batch, v, TAU, dataclasses.replace(RECIPE, relu_shrink=shrink))
    rows = zip(batch.x, batch.labels, v, strict=True)
    each = [literal.ibp(network, x + u, int(y), TAU, shrink) for x, y, u in rows]
    _require_equal(network, fast, torch.stack(each).mean())


def test_shrinking_lowers_the_loss() -> None:
    network, (batch, v) = _made(MAKERS["chain"]), _inputs(1)
    losses = [
        sabr_loss(network, batch, v, TAU, dataclasses.replace(RECIPE, relu_shrink=s)).loss.item() for s in (0.4, 0.8, 1)
    ]
    assert losses == sorted(losses)
    assert losses[0] < losses[2]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("loss", "twin"),
    [(mtl_loss, literal.mtl), (cc_loss, literal.cc), (exp_loss, literal.exp)],
    ids=["mtl", "cc", "exp"],
)
def test_expressive_losses(name: str, loss, twin) -> None:  # type: ignore[no-untyped-def]
    network, (batch, v) = _made(MAKERS[name]), _inputs(1)
    fast = loss(ends_at(network, batch, v, EPS), ALPHA)
    rows = zip(batch.x, batch.labels, v, strict=True)
    each = [twin(network, x, int(y), u, EPS, ALPHA) for x, y, u in rows]
    _require_equal(network, fast, torch.stack(each).mean())


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("loss", [mtl_loss, cc_loss, exp_loss])
def test_expressive_losses_at_both_ends(loss, alpha: float) -> None:  # type: ignore[no-untyped-def]
    """alpha 1 is IBP, alpha 0 adversarial training."""
    network, (batch, v) = _made(MAKERS["chain"]), _inputs(1)
    end = ibp(network, batch, EPS, TAU, RECIPE, _generator()).loss
    if alpha == 0.0:
        end = F.cross_entropy(network(batch.x + v), batch.labels)
    assert loss(ends_at(network, batch, v, EPS), alpha).loss.item() == pytest.approx(end.item(), rel=1e-9)


def test_exp_ibp_of_a_loss_that_is_zero_has_finite_gradients() -> None:
    network = chain([Reshape((4,)), nn.Linear(4, 2)], (1, 2, 2)).double()
    with torch.no_grad():
        network.nodes[-1].layer.weight.mul_(0)
        network.nodes[-1].layer.bias.copy_(torch.tensor([2000.0, 0.0]))
    batch = Batch(x=torch.rand(3, 1, 2, 2, dtype=torch.float64), labels=torch.zeros(3, dtype=torch.long))
    found = exp_loss(ends_at(network, batch, torch.zeros_like(batch.x), EPS), ALPHA)
    for gradient in torch.autograd.grad(found.loss, list(network.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("worst", [0, 1, 2])
@pytest.mark.parametrize("name", MAKERS)
def test_citrus_plus(name: str, worst: int) -> None:
    network, (batch, v) = _made(MAKERS[name]), _inputs(2)
    v = 1.5 * v  # beyond eps - tau, so that the boxes' centres are cut
    fast = citrus_plus_loss(network, batch, v, EPS, TAU, dataclasses.replace(RECIPE, worst=worst))
    groups = [
        literal.plus(network, batch.x[s], batch.labels[s], v[s], EPS, TAU, ALPHA, worst)
        for s in (slice(0, 5), slice(5, 10))
    ]
    _require_equal(network, fast, sum(groups) / 10)


@pytest.mark.parametrize("worst", [0, 1])
@pytest.mark.parametrize("pool", [1, 3])
def test_citrus_plus_with_a_pool(pool: int, worst: int) -> None:
    """Three batches: the boxes at the carried perturbations, and these moved on, against both written out."""
    network = _made(MAKERS["chain"])
    recipe = dataclasses.replace(RECIPE, pool=pool, worst=worst, uat=Uat(step=0.7, clip=1.5))
    delta, carried = torch.zeros(pool, 2, 7, 7, dtype=torch.float64), {}
    for seed in range(3):
        batch, v = _inputs(2, seed=seed)
        owned = [delta[i % pool] for i in range(10)]
        fast = citrus_plus_loss(network, dataclasses.replace(batch, carried=carried), v, EPS, TAU, recipe)
        groups = [
            literal.plus(network, batch.x[s], batch.labels[s], v[s], EPS, TAU, ALPHA, worst, owned[s])
            for s in (slice(0, 5), slice(5, 10))
        ]
        _require_equal(network, fast, sum(groups) / 10)
        moving = delta.clone().requires_grad_(True)
        each = [literal.concrete(network, batch.x[i] + moving[i % pool], int(batch.labels[i])) for i in range(10)]
        (gradient,) = torch.autograd.grad(sum(one.clamp(max=1.5) for one in each), moving)
        delta = (delta + 0.7 * EPS * gradient.sign()).clamp(-EPS, EPS)
        carried = dict(fast.carried)
        torch.testing.assert_close(carried[DELTA], delta, rtol=0, atol=0)
    assert delta.abs().max() > EPS - TAU  # so that the last boxes' centres were cut


def test_boxes_of_the_pool_stay_in_the_ball() -> None:
    network, (batch, v) = _made(MAKERS["chain"]), _inputs(1)
    wide = dataclasses.replace(batch, carried={DELTA: torch.full((1, 2, 7, 7), 5.0, dtype=torch.float64)})
    found = citrus_plus_loss(network, wide, v, EPS, TAU, dataclasses.replace(RECIPE, pool=1))
    box = found.boxes[INPUT]
    away = (box.centre.reshape(5, 5, *batch.x.shape[1:]) - batch.x[:, None]).abs() + box.radius
    assert away.max() <= EPS + 1e-12
    assert away[:, 4].min() >= EPS - 1e-12  # the fifth box stands at the pool's perturbation


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("name", MAKERS)
def test_distillation(name: str, temperature: float) -> None:
    network, (batch, _) = _made(MAKERS[name]), _inputs(1)
    torch.manual_seed(7)
    teacher = MAKERS[name]().double()
    fast = distillation(network, teacher, batch.x, temperature)
    twin = torch.stack([literal.distillation(network, teacher, x, temperature) for x in batch.x]).mean()
    _require_equal(network, LossParts(loss=fast, parts={}), twin)
    assert distillation(network, network, batch.x, temperature).item() == pytest.approx(0.0, abs=1e-12)


def test_citrus_si_is_citrus_with_the_own_perturbation() -> None:
    network, (batch, _) = _made(MAKERS["chain"]), _inputs(1)
    got = METHODS["citrus-si"](network, batch, EPS, TAU, RECIPE, _generator())
    with_own = dataclasses.replace(RECIPE, same_input=True)
    assert got.loss.item() == citrus(network, batch, EPS, TAU, with_own, _generator()).loss.item()
    assert got.terms == 5
    v = attack(network, batch, EPS - TAU, RECIPE, _generator())
    assert got.loss.item() == citrus_loss(network, batch, v, EPS, TAU, with_own).loss.item()


@pytest.mark.parametrize("beta", [1.0, 0.25])
@pytest.mark.parametrize("name", MAKERS)
def test_crown_ibp(name: str, beta: float) -> None:
    network, (batch, _) = _made(MAKERS[name]), _inputs(1)
    batch = Batch(x=batch.x[:3], labels=batch.labels[:3])
    recipe = dataclasses.replace(RECIPE, eps=1.0 if beta == 1.0 else EPS / (1 - beta))
    eps = EPS if beta < 1.0 else 1e-12  # eps 0 is where beta is 1
    beta = 1 - eps / recipe.eps
    fast = crown_ibp(network, batch, eps, TAU, recipe, _generator())
    each = [literal.crown_ibp(network, x, int(y), eps, beta) for x, y in zip(batch.x, batch.labels, strict=True)]
    _require_equal(network, fast, torch.stack(each).mean())


def test_crown_ibp_ends_as_ibp() -> None:
    network, (batch, _) = _made(MAKERS["chain"]), _inputs(1)
    both = [method(network, batch, EPS, TAU, RECIPE, _generator()).loss.item() for method in (crown_ibp, ibp)]
    assert both[0] == both[1]


def test_crown_margins_of_boxes_without_width_have_finite_gradients() -> None:
    network, (batch, _) = _made(MAKERS["chain"]), _inputs(1)
    boxes: dict[str, Box] = {}
    box_margins(network, uniform_box(batch.x, 0.0), batch.labels, record=boxes)
    found = crown_margins(network, boxes, batch.labels)
    logits = network(batch.x)
    torch.testing.assert_close(found, logits.gather(1, batch.labels[:, None]) - logits)
    for gradient in torch.autograd.grad(found.sum(), list(network.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("common", [2, 3, 4, 5])
def test_kcp(common: int) -> None:
    network, (batch, _) = _made(MAKERS["chain"]), _inputs(2)
    recipe = dataclasses.replace(RECIPE, common=common)
    sets = [tuple(members.tolist()) for members in subsets(5, common)[0]]
    generator = torch.Generator().manual_seed(0)
    u = (torch.rand((2, len(sets), 2, 7, 7), generator=generator, dtype=torch.float64) * 2 - 1) * (EPS - TAU)
    fast = kcp_loss(network, batch, u, TAU, recipe)
    groups = [
        literal.kcp(network, batch.x[s], batch.labels[s], dict(zip(sets, u[g], strict=True)), TAU)
        for g, s in enumerate((slice(0, 5), slice(5, 10)))
    ]
    _require_equal(network, fast, sum(groups) / 10)
    assert fast.terms == {2: 4, 3: 6, 4: 4, 5: 1}[common]


def test_kcp_of_two_is_citrus() -> None:
    network, (batch, v) = _made(MAKERS["chain"]), _inputs(2)
    as_kcp = kcp_loss(network, batch, v.reshape(2, 5, *v.shape[1:]), TAU, RECIPE).loss.item()
    assert as_kcp == pytest.approx(citrus_loss(network, batch, v, EPS, TAU, RECIPE).loss.item(), rel=1e-12)


def test_a_common_perturbation_attacks_its_set_in_its_ball() -> None:
    network, (batch, _) = _made(MAKERS["chain"]), _inputs(2)
    x, labels = batch.x.reshape(2, 1, 5, *batch.x.shape[1:]), batch.labels.reshape(2, 1, 5)
    losses = []
    for steps in (0, 10):
        recipe = dataclasses.replace(RECIPE, pgd_steps=steps)
        u = common_attack(network, x, labels, EPS, recipe, _generator())
        assert u.shape == (2, 1, 2, 7, 7)
        assert u.abs().max() <= EPS
        shifted = (x + u[:, :, None]).flatten(0, 2)
        losses.append(F.cross_entropy(network(shifted), batch.labels, reduction="none").reshape(2, 5).sum(1))
    assert (losses[1] > losses[0]).all()


def test_kcp_refuses_sets_larger_than_the_group() -> None:
    network, (batch, _) = _made(MAKERS["chain"]), _inputs(1)
    with pytest.raises(UsageError, match="common is 6, but groups have 5 inputs; lower it or raise group_size"):
        METHODS["kcp"](network, batch, EPS, TAU, dataclasses.replace(RECIPE, common=6), _generator())


# --- TAPS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("connector", "balance"), [(0.5, 0.5), (1.0, 0.5), (0.5, 0.8)])
@pytest.mark.parametrize("name", ["chain", "relu-last"])
def test_taps(name: str, connector: float, balance: float) -> None:
    network, (batch, _) = _made(MAKERS[name]), _inputs(1)
    settings = Taps(classifier_layers=1 if name == "relu-last" else 2, steps=2, connector=connector, balance=balance)
    fast = taps_module.taps_loss(network, uniform_box(batch.x, EPS), batch.labels, settings, _generator())
    got = torch.autograd.grad(fast.loss, list(network.parameters()))

    cut = taps_module.cut_node(network, settings.classifier_layers)
    box = fast.boxes[cut]
    points = taps_module.latent_attack(
        network, cut, box.lower.detach(), box.upper.detach(), batch.labels, settings, _generator()
    )
    value, gradients = 0.0, [torch.zeros_like(p) for p in network.parameters()]
    for i in range(len(batch.x)):
        one, parts = literal.taps(network, batch.x[i], int(batch.labels[i]), EPS, cut, points[i], connector, balance)
        value += one.item() / len(batch.x)
        gradients = [total + part / len(batch.x) for total, part in zip(gradients, parts, strict=True)]
    assert fast.loss.item() == pytest.approx(value, rel=1e-10)
    for a, b in zip(got, gradients, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_latent_points_stay_in_their_box_and_lower_the_margins() -> None:
    network, (batch, _) = _made(MAKERS["chain"]), _inputs(1)
    found: dict[int, Tensor] = {}
    for steps in (0, 10):
        settings = Taps(steps=steps)
        loss = taps_module.taps_loss(network, uniform_box(batch.x, EPS), batch.labels, settings, _generator())
        cut = taps_module.cut_node(network, 2)
        lower, upper = loss.boxes[cut].lower.detach(), loss.boxes[cut].upper.detach()
        points = taps_module.latent_attack(network, cut, lower, upper, batch.labels, settings, _generator())
        assert (points >= lower[:, None] - 1e-12).all()
        assert (points <= upper[:, None] + 1e-12).all()
        logits = walk(network, CLEAN, points.flatten(0, 1), start=cut).unflatten(0, points.shape[:2])
        own = batch.labels[:, None, None].expand(-1, 4, 1)
        found[steps] = (logits.gather(2, own)[..., 0] - logits.diagonal(dim1=1, dim2=2)).detach()
        assert loss.parts["taps"] <= loss.parts["ibp"]
    wrong = F.one_hot(batch.labels, 4) == 0
    assert (found[10] < found[0])[wrong].all()


def test_staps_is_taps_on_the_small_box() -> None:
    network, (batch, _) = _made(MAKERS["chain"]), _inputs(1)
    got = METHODS["staps"](network, batch, EPS, TAU, RECIPE, _generator())
    generator = _generator()
    v = attack(network, batch, EPS - TAU, RECIPE, generator)
    want = taps_module.taps_loss(network, uniform_box(batch.x + v, TAU), batch.labels, RECIPE.taps, generator)
    assert got.loss.item() == want.loss.item()


def test_taps_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(UsageError, match=r"taps\.classifier_layers is 4, but the network has 4 weight layers; leave"):
        taps_module.cut_node(_made(MAKERS["chain"]), 4)
    with pytest.raises(UsageError, match=r"cannot cut the network at .*: a branch passes it by"):
        taps_module.cut_node(_made(MAKERS["residual"]), 4)


# --- universal adversarial training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "count"), [("uat", 1), ("cw-uat", 4)])
def test_uat_and_cw_uat(method: str, count: int) -> None:
    """Three batches, delta by delta, against the update written out for one input at a time."""
    network = _made(MAKERS["chain"])
    carried: dict[str, Tensor] = {}
    delta = torch.zeros(count, 2, 7, 7, dtype=torch.float64)
    for seed in range(3):
        batch, _ = _inputs(1, seed=seed)
        batch = dataclasses.replace(batch, carried=carried)
        rows = list(zip(batch.x, batch.labels.tolist(), strict=True))
        owner = [0 if count == 1 else y for _, y in rows]
        moving = delta.clone().requires_grad_(True)
        each = [literal.concrete(network, x + moving[o], y) for (x, y), o in zip(rows, owner, strict=True)]
        clip = torch.stack(each).median().item()  # some losses lie above beta, some below
        recipe = dataclasses.replace(RECIPE, uat=Uat(step=0.3, clip=clip))
        fast = METHODS[method](network, batch, EPS, TAU, recipe, _generator())
        _require_equal(network, fast, torch.stack(each).mean())
        again = [literal.concrete(network, x + moving[o], y) for (x, y), o in zip(rows, owner, strict=True)]
        gained = sum(one.clamp(max=clip) for one in again)
        (gradient,) = torch.autograd.grad(gained, moving)
        delta = (delta + 0.3 * EPS * gradient.sign()).clamp(-EPS, EPS)
        carried = dict(fast.carried)
        torch.testing.assert_close(carried[DELTA], delta, rtol=0, atol=0)
        unseen = [c for c in range(count) if c not in owner]
        assert (gradient[unseen] == 0).all()


def test_a_carried_delta_is_cut_to_the_current_ball() -> None:
    network, (batch, _) = _made(MAKERS["chain"]), _inputs(1)
    wide = {DELTA: torch.full((1, 2, 7, 7), 5.0, dtype=torch.float64)}
    found = METHODS["uat"](network, dataclasses.replace(batch, carried=wide), EPS, TAU, RECIPE, _generator())
    assert found.loss.item() == pytest.approx(F.cross_entropy(network(batch.x + EPS), batch.labels).item())
    assert found.carried[DELTA].abs().max() <= EPS


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_pure_function(name: str) -> None:
    network, (batch, _) = _made(MAKERS["chain"]), _inputs(2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = [METHODS[name](network, batch, EPS, TAU, RECIPE, _generator(seed)) for seed in (1, 1)]
    assert found[0].loss.item() == found[1].loss.item()
    assert found[0].loss.requires_grad
    assert "loss" in found[0].parts
    assert not any(part.requires_grad for part in found[0].parts.values())
    assert not any(value.requires_grad for value in found[0].carried.values())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_pgd_training_is_cross_entropy_at_the_attack() -> None:
    network, (batch, _) = _made(MAKERS["chain"]), _inputs(1)
    v = attack(network, batch, EPS, RECIPE, _generator())
    rows = zip(batch.x, batch.labels, v, strict=True)
    twin = torch.stack([literal.concrete(network, x + u, int(y)) for x, y, u in rows]).mean()
    _require_equal(network, METHODS["pgd"](network, batch, EPS, TAU, RECIPE, _generator()), twin)
    assert v.abs().max() <= EPS
