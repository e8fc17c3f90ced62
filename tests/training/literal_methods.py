"""Literal twins of the other training losses: one input at a time, bounds as [lower, upper], from the papers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from citrus_tool.network import INPUT, Add, Affine, Network, Reshape
from tests.training.literal_citrus import interval


def bounds(network: Network, x: Tensor, radius: float, shrink: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
    """[lower, upper] of every node over B(x, radius), x (C, H, W); unstable ReLUs keep `shrink` of the upper one."""
    values = {INPUT: ((x - radius)[None], (x + radius)[None])}
    for node in network.nodes:
        inputs = [values[name] for name in node.inputs]
        lower, upper = interval(node.layer, *inputs)
        if isinstance(node.layer, nn.ReLU):
            before_lower, before_upper = inputs[0]
            unstable = (before_lower < 0) & (before_upper > 0)
            upper = torch.where(unstable, upper * shrink, upper)
        values[node.name] = (lower, upper)
    return values


def margin_bounds(network: Network, values: dict[str, tuple[Tensor, Tensor]], label: int) -> Tensor:
    """Lower bounds (c,) of f_y - f_c through the elided last layer; 0 at y."""
    last = network.nodes[-1]
    rows = []
    if isinstance(last.layer, nn.Linear):
        lower, upper = (bound[0] for bound in values[last.inputs[0]])
        weight, bias = last.layer.weight, last.layer.bias
        for c in range(weight.shape[0]):
            row = weight[label] - weight[c]
            rows.append(row.clamp(min=0) @ lower + row.clamp(max=0) @ upper + bias[label] - bias[c])
    else:
        lower, upper = (bound[0] for bound in values[last.name])
        rows = [lower[label] - upper[c] if c != label else lower.new_zeros(()) for c in range(len(lower))]
    return torch.stack(rows)


def loss_of(margins: Tensor, label: int) -> Tensor:
    """ln(1 + sum over c != y of exp(-margin_c))."""
    return torch.log(1 + sum(torch.exp(-margins[c]) for c in range(len(margins)) if c != label))


def ibp(network: Network, x: Tensor, label: int, radius: float, shrink: float = 1.0) -> Tensor:
    """IBP's loss on B(x, radius)."""
    return loss_of(margin_bounds(network, bounds(network, x, radius, shrink), label), label)


def concrete(network: Network, x: Tensor, label: int) -> Tensor:
    """Cross entropy of one input."""
    return F.cross_entropy(network(x[None]), torch.tensor([label]))


def mtl(network: Network, x: Tensor, label: int, v: Tensor, eps: float, alpha: float) -> Tensor:
    return alpha * ibp(network, x, label, eps) + (1 - alpha) * concrete(network, x + v, label)


def cc(network: Network, x: Tensor, label: int, v: Tensor, eps: float, alpha: float) -> Tensor:
    logits = network((x + v)[None])[0]
    bound = margin_bounds(network, bounds(network, x, eps), label)
    return loss_of(alpha * bound + (1 - alpha) * (logits[label] - logits), label)


def exp(network: Network, x: Tensor, label: int, v: Tensor, eps: float, alpha: float) -> Tensor:
    return ibp(network, x, label, eps) ** alpha * concrete(network, x + v, label) ** (1 - alpha)


def plus(
    network: Network,
    x: Tensor,
    labels: Tensor,
    v: Tensor,
    eps: float,
    tau: float,
    alpha: float,
    worst: int,
    further: list[Tensor] | None = None,
) -> Tensor:
    """citrus-plus on one group, summed over its inputs; `further` holds each input's perturbation from the pool."""
    total = x.new_zeros(())
    for i in range(len(x)):
        label = int(labels[i])
        moved = [x[i] + v[j].clamp(-(eps - tau), eps - tau) for j in range(len(x)) if j != i]
        moved += [x[i] + further[i].clamp(-(eps - tau), eps - tau)] if further else []
        moved.sort(key=lambda centre: -concrete(network, centre, label).item())
        kept = moved[:worst] if worst else moved
        bound = sum(ibp(network, centre, label, tau) for centre in kept) / len(kept)
        total = total + alpha * bound + (1 - alpha) * concrete(network, x[i] + v[i], label)
    return total


def distillation(network: Network, teacher: Network, x: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || network) of one input (C, H, W), class by class."""
    wanted, own = (torch.exp(net(x[None])[0] / temperature) for net in (teacher, network))
    p, q = (wanted / wanted.sum()).detach(), own / own.sum()
    return temperature**2 * sum(p[c] * (p[c].log() - q[c].log()) for c in range(len(p)))


def suffix(network: Network, cut: str, z: Tensor) -> Tensor:
    """Logits from the value z (1, ...) of node `cut` on."""
    values = {cut: z}
    for node in network.nodes:
        if node.name != cut and all(name in values for name in node.inputs):
            values[node.name] = node.layer(*(values[name] for name in node.inputs))
    return values[network.output_name]


def taps(
    network: Network, x: Tensor, label: int, radius: float, cut: str, points: Tensor, connector: float, balance: float
) -> tuple[Tensor, list[Tensor]]:
    """TAPS' loss at given latent points (c, ...), and its gradient at the parameters by the papers' formulas.

    The connector's partial derivatives are applied by hand: the loss is differentiated at the points, the result
    goes back through the bounds of the latent box.
    """
    parameters = list(network.parameters())
    values = bounds(network, x, radius)
    by_ibp = loss_of(margin_bounds(network, values, label), label)
    lower, upper = values[cut]
    points = points.clone().requires_grad_(True)
    margins = []
    for c in range(len(points)):
        logits = suffix(network, cut, points[c][None])[0]
        margins.append(logits[label] - logits[c])
    by_taps = loss_of(torch.stack(margins), label)
    at_points, *direct = torch.autograd.grad(by_taps, [points, *parameters], retain_graph=True, allow_unused=True)
    at_lower, at_upper = torch.zeros_like(lower), torch.zeros_like(upper)
    for c in range(len(points)):
        for index in range(lower.numel()):
            low, high = lower.flatten()[index], upper.flatten()[index]
            point, pull = points[c].flatten()[index], at_points[c].flatten()[index]
            width = connector * (high - low)
            first = 0.5 if high <= low else max(0.0, (1 - (point - low) / width).item())
            second = 0.5 if high <= low else max(0.0, (1 - (high - point) / width).item())
            at_lower.flatten()[index] += pull * first
            at_upper.flatten()[index] += pull * second
    carried = torch.autograd.grad(
        [lower, upper], parameters, grad_outputs=[at_lower, at_upper], retain_graph=True, allow_unused=True
    )
    of_ibp = torch.autograd.grad(by_ibp, parameters, allow_unused=True)
    gradients = []
    for parameter, a, b, c in zip(parameters, direct, carried, of_ibp, strict=True):
        parts = [torch.zeros_like(parameter) if part is None else part for part in (a, b, c)]
        gradients.append(2 * balance * by_ibp * (parts[0] + parts[1]) + 2 * (1 - balance) * by_taps * parts[2])
    return (by_taps * by_ibp).detach(), [gradient.detach() for gradient in gradients]


def crown_margin(network: Network, x: Tensor, label: int, wrong: int, radius: float) -> Tensor:
    """CROWN's lower bound of f_y - f_c on B(x, radius) from interval bounds of the hidden layers, one row by hand."""
    values = bounds(network, x, radius)
    row = x.new_zeros(network.num_classes)
    row[label], row[wrong] = row[label] + 1, row[wrong] - 1
    pending, offset = {network.output_name: row}, x.new_zeros(())
    for node in reversed(network.nodes):
        a = pending.pop(node.name).reshape(node.shape)
        source = network.shape_of(node.inputs[0])
        zero = torch.zeros(1, *source, dtype=x.dtype)
        layer = node.layer
        if isinstance(layer, nn.ReLU):
            lower, upper = (bound[0] for bound in values[node.inputs[0]])
            back = torch.zeros_like(a).flatten()
            for i, (low, up, w) in enumerate(zip(lower.flatten(), upper.flatten(), a.flatten(), strict=True)):
                if low >= 0:
                    back[i] = w
                elif up > 0:
                    chord = up / (up - low)
                    slope = chord if w < 0 else (1.0 if up > -low else 0.0)
                    back[i] = w * slope
                    offset = offset + (w * -chord * low if w < 0 else 0.0)
            parts = [back.reshape(source)]
        elif isinstance(layer, Add):
            parts = [a, a]
        elif isinstance(layer, Reshape):
            parts = [a.reshape(source)]
        elif isinstance(layer, Affine):
            offset = offset + (a * layer.shift).sum()
            parts = [a * layer.scale]
        elif isinstance(layer, nn.Linear):
            offset = offset + a @ layer.bias
            parts = [a @ layer.weight]
        elif isinstance(layer, nn.Conv2d):
            offset = offset + (a.sum((1, 2)) * layer.bias).sum()
            x0 = zero.requires_grad_(True)
            y = F.conv2d(x0, layer.weight, None, layer.stride, layer.padding)
            (back,) = torch.autograd.grad(y, x0, a[None], create_graph=True)
            parts = [back[0]]
        else:
            raise NotImplementedError(type(layer))
        for name, part in zip(node.inputs, parts, strict=True):
            pending[name] = pending[name] + part if name in pending else part
    row = pending[INPUT].reshape(x.shape)
    return offset + (row * x).sum() - radius * row.abs().sum()


def crown_ibp(network: Network, x: Tensor, label: int, eps: float, beta: float) -> Tensor:
    by_ibp = margin_bounds(network, bounds(network, x, eps), label)
    by_crown = torch.stack([crown_margin(network, x, label, c, eps) for c in range(network.num_classes)])
    return loss_of(beta * by_crown + (1 - beta) * by_ibp, label)


def kcp(network: Network, x: Tensor, labels: Tensor, u: dict[tuple[int, ...], Tensor], tau: float) -> Tensor:
    """The k-CP loss of one group, summed over inputs and sets; u holds each set's common perturbation."""
    total = x.new_zeros(())
    for i in range(len(x)):
        for members, common in u.items():
            if i not in members:
                total = total + ibp(network, x[i] + common, int(labels[i]), tau)
    return total
