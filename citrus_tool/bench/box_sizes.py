"""The paper's Fig. 4: what same-input and cross-input boxes lose.

CITRUS's boxes B(x_i + v_j, tau) of every batch of a run's last epoch, as the training drew and augmented them, and
beside them the box at the own perturbation (j = i). The paper averages over the last epoch while it trains; this
measures the network that the run is left with, the best epoch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from citrus_tool.choices.recipe import Recipe
from citrus_tool.data import Dataset
from citrus_tool.network import Network
from citrus_tool.progress import Progress, Silent
from citrus_tool.training.adversarial import attack
from citrus_tool.training.batches import TrainingSet, generator_for
from citrus_tool.training.citrus import centres
from citrus_tool.training.interval_margins import box_margins, robust_cross_entropy, uniform_box
from citrus_tool.training.method import Batch


def own_and_others(network: Network, batch: Batch, v: Tensor, tau: float, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Losses of the boxes at each input's own perturbation (n,) and at the others' of its group (n, m).

    v (n, C, H, W) are the inputs' perturbations in B(0, eps - tau).
    """
    with torch.no_grad():
        own = robust_cross_entropy(box_margins(network, uniform_box(batch.x + v, tau), batch.labels))
        found = centres(batch.x, v, recipe)
        others = robust_cross_entropy(box_margins(network, uniform_box(found.flatten(0, 1), tau), batch.labels))
    return own, others.reshape(found.shape[:2])


def last_epoch(
    network: Network, train: Dataset, recipe: Recipe, device: str, progress: Progress | None = None
) -> tuple[float, float, float, int]:
    """Means over the inputs of the recipe's last epoch: own box, sum of the others, largest of them; and their number.

    `network` has no batch norm.
    """
    where, progress = torch.device(device), progress or Silent()
    network = network.frozen(dtype=torch.float32, device=where)
    training_set, epoch = TrainingSet.of(train, recipe, where), recipe.epochs - 1
    order, tau = training_set.order(epoch), recipe.tau_ratio * recipe.eps
    sums, inputs = torch.zeros(3, dtype=torch.float64, device=where), 0
    progress.start("box losses", training_set.batches, "batch")
    for index in range(training_set.batches):
        batch = training_set.batch(order, epoch, index)
        generator = generator_for(where, recipe.seed, "method", epoch, index)
        v = attack(network, batch, recipe.eps - tau, recipe, generator)
        own, others = own_and_others(network, batch, v, tau, recipe)
        sums += torch.stack([own.sum(), others.sum(), others.amax(1).sum()]).double()
        inputs += len(batch.labels)
        progress.advance()
    progress.finish()
    own_mean, total, largest = (sums / inputs).tolist()
    return own_mean, total, largest, inputs
