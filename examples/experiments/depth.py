"""Depth 8 to 64 on digits: does a deep network still train, and what happens to the gradient on its way down?

Blocks of (neuron, linear, batch norm) in the order of MHSANet, 64 wide, T = 2, with and without a shortcut around
each block. The gradient is measured before training, on one batch: the norm at the input of the first block over
that at the last one.

    python examples/experiments/depth.py
"""

import sys
import time

import common
import torch
from common import Data, Recipe
from digits import images
from recipes import neurons
from torch import nn

SEEDS = 1
TITLE = "Depth on digits (T = 2)"
KEYS = ("shortcut", "depth", "neuron")
VALUES = ("ratio", "seconds", "accuracy")
COLUMNS = {"ratio": ("gradient, first block / last", ".3g")}
NEURONS = {
    "LIF": neurons.LIF(tau=4 / 3, decay_input=False, surrogate="rectangular"),
    "MSF": neurons.MSF(),
    "ReLU": neurons.ReLU(),
}


class DeepNet(nn.Module):
    """``x`` [T, N, features] -> logits [N, classes] through ``depth`` blocks of neuron, linear and batch norm."""

    def __init__(self, depth, neuron, shortcut, features=64, width=64, classes=10):
        super().__init__()
        self.shortcut = shortcut
        self.encoder = nn.Sequential(nn.Linear(features, width), nn.BatchNorm1d(width))
        self.linears = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.decoder = nn.Linear(width, classes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(depth))
        self.neurons = nn.ModuleList(neuron(width) for _ in range(depth))
        if shortcut:  # the published start: a branch adds a fifth
            for norm in self.norms:
                nn.init.constant_(norm.weight, 0.2)

    def blocks(self, x):
        """The input of every block, then the output of the last."""
        x = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        yield x
        for node, linear, norm in zip(self.neurons, self.linears, self.norms, strict=True):
            y = norm(linear(node(x)).flatten(0, 1)).view_as(x)
            x = x + y if self.shortcut else y
            yield x

    def forward(self, x):
        *_, last = self.blocks(x)
        return self.decoder(last.mean(0))


def gradient_norms(model, x, y):
    """Norm of the loss's gradient at the input of every block, in training mode."""
    model.train()
    neurons.reset(model)
    inputs = list(model.blocks(x))
    for part in inputs:
        part.retain_grad()
    loss = nn.functional.cross_entropy(model.decoder(inputs[-1].mean(0)), y)
    loss.backward()
    model.zero_grad()
    return [part.grad.norm().item() for part in inputs[:-1]]


def runs(options):
    x, y, x_test, y_test = images()
    steps = 2
    x, x_test = (part.flatten(1).expand(steps, -1, -1) for part in (x, x_test))
    data = Data(x, y, x_test, y_test)
    data = data.few(64) if options.fast else data
    recipe = Recipe(epochs=1 if options.fast else 4, batch=64, lr=2e-3)
    for shortcut in (True, False):
        for depth in (2, 4) if options.fast else (8, 16, 32, 64):
            for seed in range(options.seeds):
                for name, neuron in options.chosen(NEURONS).items():
                    torch.manual_seed(seed)
                    model = DeepNet(depth, neuron, shortcut)
                    norms = gradient_norms(model, data.x[:, :64], data.y[:64])
                    start = time.process_time()
                    common.train(model, data, recipe, seed)
                    yield {
                        "shortcut": "yes" if shortcut else "no",
                        "depth": depth,
                        "neuron": name,
                        "seed": seed,
                        "norms": norms,
                        "ratio": norms[0] / norms[-1] if norms[-1] else None,
                        **common.evaluate(model, data),
                        "seconds": time.process_time() - start,
                    }


if __name__ == "__main__":
    common.main(sys.modules[__name__])
