"""A torch.nn.Module of your own: train it as ever, certify it, harden it, use the result as a module again.

python examples/torch_module.py
"""

import torch
from torch import nn
from torch.nn import functional as F

import citrus_tool as citrus

EPS = 0.04


class Net(nn.Module):
    """A small residual network with batch norm and dropout; it normalises its input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.last = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels (n, 1, 8, 8) in [0, 1] to logits (n, 10)."""
        x = torch.relu(self.first((x - 0.3) / 0.4))
        x = torch.relu(x + self.norm(self.second(x)))
        return self.last(self.drop(x.flatten(1)))


def train(net: nn.Module, data: citrus.Dataset, epochs: int = 30) -> None:
    """Plain training, nothing of citrus."""
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(data)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(net(data.pixels(index)), data.labels[index]).backward()
            optimiser.step()


def main() -> None:
    """Train, certify, harden."""
    torch.manual_seed(0)
    net = Net()
    train(net, citrus.load_data("digits", split="train"))

    model = citrus.load(net, input_shape=(1, 8, 8))
    print(model)
    print(model.evaluate("digits", eps=EPS, limit=50))

    hardened = model.harden("digits", eps=EPS, epochs=15, certify=citrus.CertifySettings(limit=50))
    print(hardened)

    network = hardened.model.network  # a torch.nn.Module again
    test = citrus.load_data("digits", split="test")
    with torch.no_grad():
        correct = (network(test.pixels()).argmax(1) == test.labels).float().mean()
    print(f"the hardened module on the test images: {100 * correct:.1f} % correct")


if __name__ == "__main__":
    main()
