"""MNIST-1D, 40 numbers in sequence: every neuron in the same three-layer network.

4,000 sequences for training, 1,000 for testing; made on the spot from the package's fixed seed.

    python examples/experiments/mnist_1d.py
"""

import sys

import common
import torch
from common import Data, Recipe
from mnist1d.data import make_dataset
from recipes.models import SequenceNet

SEEDS = 3
TITLE = "MNIST-1D (T = 40)"
KEYS = ("neuron",)
VALUES = ("parameters", "spikes", "seconds", "accuracy")
STEPS = 40


def sequences():
    made = make_dataset()
    x, x_test = (torch.tensor(made[key]).float().t().unsqueeze(-1).contiguous() for key in ("x", "x_test"))
    return Data(x, torch.tensor(made["y"]), x_test, torch.tensor(made["y_test"]))


def runs(options):
    data = sequences().few(100) if options.fast else sequences()
    recipe = Recipe(epochs=1 if options.fast else 8, batch=100)
    neurons = options.chosen(common.all_neurons(STEPS))
    yield from common.compare(
        lambda n: SequenceNet(1, [64] * 3, 10, n), neurons, data, recipe, range(options.seeds)
    )


if __name__ == "__main__":
    common.main(sys.modules[__name__])
