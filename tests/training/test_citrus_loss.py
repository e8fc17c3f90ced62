"""The fast CITRUS step against the literal Algorithm 1."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from citrus_tool import architectures
from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import INPUT, Add, Affine, Concat, GraphBuilder, Network, Reshape, chain, walk
from citrus_tool.training import citrus as citrus_module
from citrus_tool.training.batch_norm_statistics import CLEAN, batch_statistics, estimate
from citrus_tool.training.citrus import citrus, citrus_loss
from citrus_tool.training.interval_margins import box_margins, uniform_box
from citrus_tool.training.method import Batch
from tests.training.literal_citrus import algorithm_1, interval_record

EPS, TAU = 0.1, 0.04
RECIPE = Recipe(eps=EPS, tau_ratio=0.4, epochs=3, warmup_epochs=0, ramp_epochs=0, group_size=5, pgd_steps=2)


def _chain() -> Network:
    normalise = Affine(torch.tensor([3.0, -2.0]).reshape(2, 1, 1), torch.tensor([-0.4, 0.3]).reshape(2, 1, 1))
    layers = [
        normalise,
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        Reshape((12,)),
        nn.Linear(12, 7),
        nn.ReLU(),
        nn.Linear(7, 4),
    ]
    return chain(layers, (2, 7, 7))


def _residual() -> Network:
    builder = GraphBuilder((2, 7, 7))
    stem = builder.add(nn.Conv2d(2, 4, 3, stride=1, padding=1))
    relu = builder.add(nn.ReLU())
    builder.add(nn.Conv2d(4, 4, 3, padding=1), relu)
    builder.add(Add(), builder._last, stem)
    relu = builder.add(nn.ReLU())
    short = builder.add(nn.Conv2d(4, 3, 1, stride=2), relu)
    long = builder.add(nn.Conv2d(4, 3, 3, stride=2, padding=1), relu)
    builder.add(Add(), long, short)
    builder.add(nn.ReLU())
    builder.add(Reshape((48,)))
    builder.add(nn.Linear(48, 4))
    return builder.build()


def _ends_in_relu() -> Network:
    return chain([Reshape((98,)), nn.Linear(98, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU()], (2, 7, 7))


def _batch_normed() -> Network:
    layers = [nn.Conv2d(2, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), Reshape((36,)), nn.Linear(36, 5)]
    return chain([*layers, nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)], (2, 7, 7))


MAKERS = {"chain": _chain, "residual": _residual, "relu-last": _ends_in_relu}


def _made(maker: object, seed: int = 3) -> Network:
    torch.manual_seed(seed)
    return maker().double().eval()  # type: ignore[operator]


def _inputs(groups: int, k: int = 5, seed: int = 0) -> tuple[Batch, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n = groups * k
    x = torch.rand((n, 2, 7, 7), generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (n,), generator=generator)
    v = (torch.rand((n, 2, 7, 7), generator=generator, dtype=torch.float64) * 2 - 1) * (EPS - TAU)
    return Batch(x=x, labels=labels), v


@pytest.mark.parametrize("box_loss", ["sum", "mean"])
@pytest.mark.parametrize("same_input", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_loss_and_gradients_equal_algorithm_1(name: str, same_input: bool, box_loss: str) -> None:
    network = _made(MAKERS[name])
    groups = 2
    batch, v = _inputs(groups)
    recipe = dataclasses.replace(RECIPE, same_input=same_input, box_loss=box_loss)
    fast = citrus_loss(network, batch, v, EPS, TAU, recipe)

    parts = []
    for g in range(groups):
        rows = slice(5 * g, 5 * g + 5)
        parts.append(algorithm_1(network, batch.x[rows], batch.labels[rows], v[rows], TAU, same_input))
    boxes = 5 if same_input else 4
    literal = sum(parts) / (5 * groups) / (1 if box_loss == "sum" else boxes)

    assert fast.terms == (boxes if box_loss == "sum" else 1)
    assert fast.loss.item() == pytest.approx(literal.item(), rel=1e-10)
    got = torch.autograd.grad(fast.loss, list(network.parameters()))
    want = torch.autograd.grad(literal, list(network.parameters()))
    for a, b in zip(got, want, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_an_input_never_meets_its_own_perturbation(k: int) -> None:
    """Entry (i, m) of the index table is some j != i, and each of the others comes once."""
    table = citrus_module._others(k, same_input=False)
    for i in range(k):
        assert sorted(table[i].tolist()) == [j for j in range(k) if j != i]
    # and by value: marked perturbations, read back from the boxes that were propagated
    network = _made(_chain)
    batch, _ = _inputs(2, k)
    marks = torch.arange(2 * k, dtype=torch.float64) / (2 * k) * (EPS - TAU)
    v = marks[:, None, None, None].expand_as(batch.x)
    found = citrus_loss(network, batch, v, EPS, TAU, dataclasses.replace(RECIPE, group_size=k))
    shifts = (found.boxes[INPUT].centre.unflatten(0, (2 * k, k - 1)) - batch.x[:, None]).mean((2, 3, 4))
    for row in range(2 * k):
        group = row // k * k
        expected = [marks[j] for j in range(group, group + k) if j != row]
        torch.testing.assert_close(shifts[row].sort().values, torch.stack(expected))


def test_boxes_stay_in_the_ball_of_eps_whatever_v_is() -> None:
    network = _made(_chain)
    batch, v = _inputs(2)
    found = citrus_loss(network, batch, 50 * v, EPS, TAU, RECIPE)
    box = found.boxes[INPUT]
    x = batch.x.repeat_interleave(4, dim=0)
    assert (box.lower >= x - EPS - 1e-12).all()
    assert (box.upper <= x + EPS + 1e-12).all()
    assert (box.upper == x + EPS).any() or (box.upper > x + EPS - 1e-9).any()


def test_the_method_is_a_pure_function_of_its_generator() -> None:
    network = _made(_chain)
    batch, _ = _inputs(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    losses = [
        citrus(network, batch, EPS, TAU, RECIPE, torch.Generator().manual_seed(seed)).loss.item() for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_recorded_boxes_equal_the_literal_ones() -> None:
    network = _made(_residual)
    batch, _ = _inputs(1)
    boxes: dict[str, object] = {}
    box_margins(network, uniform_box(batch.x, TAU), batch.labels, record=boxes)  # type: ignore[arg-type]
    literal = interval_record(network, batch.x - TAU, batch.x + TAU)
    assert set(boxes) == {INPUT, *(node.name for node in network.nodes[:-1])}
    for name, box in boxes.items():
        torch.testing.assert_close(box.lower, literal[name][0])  # type: ignore[attr-defined]
        torch.testing.assert_close(box.upper, literal[name][1])  # type: ignore[attr-defined]


def test_concat_of_shared_and_own_radii() -> None:
    """Before the first ReLU a radius is stored once for all boxes; Concat must still join it with others."""
    torch.manual_seed(0)
    builder = GraphBuilder((2, 7, 7))
    conv = builder.add(nn.Conv2d(2, 2, 3, padding=1))
    relu = builder.add(nn.ReLU())
    builder.add(Concat(0), conv, relu)
    builder.add(Reshape((196,)))
    builder.add(nn.Linear(196, 4))
    network = builder.build().double()
    batch, _ = _inputs(1)
    lower = box_margins(network, uniform_box(batch.x, TAU), batch.labels)
    noise = (torch.rand((50, *batch.x.shape), dtype=torch.float64) * 2 - 1) * TAU
    for u in noise:
        logits = network(batch.x + u)
        margins = logits.gather(1, batch.labels[:, None]) - logits
        assert (margins >= lower - 1e-9).all()


def test_batch_statistics_are_those_of_the_clean_batch_and_differentiable() -> None:
    network = _made(_batch_normed)
    batch, v = _inputs(3)
    bn = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    conv = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    before = bn.running_mean.clone(), bn.running_var.clone()
    with batch_statistics(network, batch.x):
        torch.testing.assert_close(bn.running_mean, conv(batch.x).mean((0, 2, 3)))
        clean = walk(network, CLEAN, batch.x)
        got = torch.autograd.grad(clean.square().sum(), list(network.parameters()), retain_graph=True)
        fast = citrus_loss(network, batch, v, EPS, TAU, RECIPE).loss
        literal = sum(
            algorithm_1(network, batch.x[s : s + 5], batch.labels[s : s + 5], v[s : s + 5], TAU) for s in (0, 5, 10)
        )
        assert fast.item() == pytest.approx(literal.item() / 15, rel=1e-10)
        fast_gradients = torch.autograd.grad(fast, list(network.parameters()), retain_graph=True)
        literal_gradients = torch.autograd.grad(literal / 15, list(network.parameters()))
    torch.testing.assert_close(fast_gradients, literal_gradients, rtol=1e-8, atol=1e-11)
    assert torch.equal(bn.running_mean, before[0])
    assert torch.equal(bn.running_var, before[1])
    network.train()  # PyTorch's own batch norm is the reference for the clean forward
    reference = network(batch.x)
    torch.testing.assert_close(clean, reference)
    want = torch.autograd.grad(reference.square().sum(), list(network.parameters()))
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


def test_batch_statistics_come_back_after_an_error() -> None:
    network = _made(_batch_normed)
    bn = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    before = bn.running_mean
    with pytest.raises(RuntimeError, match="stop"), batch_statistics(network, _inputs(1)[0].x):
        raise RuntimeError("stop")
    assert bn.running_mean is before


def test_estimated_statistics_are_those_of_all_batches() -> None:
    network = _made(_batch_normed)
    batch, _ = _inputs(4)
    estimate(network, batch.x.split(10))
    conv = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    bn = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    z = conv(batch.x)
    torch.testing.assert_close(bn.running_mean, z.mean((0, 2, 3)))
    torch.testing.assert_close(bn.running_var, z.var((0, 2, 3), unbiased=False))


def test_float32_step_is_close_to_float64() -> None:
    network = architectures.build("convtiny", (1, 8, 8), 10, seed=1)
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.rand((10, 1, 8, 8), generator=generator), torch.arange(10)
    v = (torch.rand(x.shape, generator=generator) * 2 - 1) * (EPS - TAU)
    single = citrus_loss(network, Batch(x=x, labels=labels), v, EPS, TAU, RECIPE).loss.item()
    network.double()
    double = citrus_loss(network, Batch(x=x.double(), labels=labels), v.double(), EPS, TAU, RECIPE).loss.item()
    assert single == pytest.approx(double, rel=1e-4)
