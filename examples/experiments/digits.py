"""scikit-learn's handwritten digits pixel by pixel: 64 steps of one number, in rows or in a fixed random order.

A small S-MNIST: the same network as the paper's, narrower. The permuted order is the harder one, neighbours in the
image are far apart in time. 1,347 images for training, 450 for testing.

    python examples/experiments/digits.py
"""

import sys

import common
import numpy as np
import torch
from common import Data, Recipe
from recipes.models import SequenceNet
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEEDS = 3
TITLE = "Digits, pixel by pixel (T = 64)"
KEYS = ("order", "neuron")
VALUES = ("parameters", "spikes", "seconds", "accuracy")
STEPS = 64


def images():
    """Images [N, 8, 8] in [0, 1] and labels: training and testing."""
    digits = load_digits()
    split = train_test_split(
        digits.images / 16, digits.target, test_size=450, stratify=digits.target, random_state=0
    )
    x, x_test, y, y_test = (torch.from_numpy(part) for part in split)
    return x.float(), y, x_test.float(), y_test


def sequences(permuted=False):
    """One pixel per step, [64, N, 1]. The permutation is drawn as for PS-MNIST, from NumPy's legacy seed 1111."""
    order = np.random.RandomState(1111).permutation(STEPS) if permuted else np.arange(STEPS)
    x, y, x_test, y_test = images()
    x, x_test = (part.flatten(1).t()[order].unsqueeze(-1).contiguous() for part in (x, x_test))
    return Data(x, y, x_test, y_test)


def build(neuron):
    return SequenceNet(1, [64] * 3, 10, neuron)


def runs(options):
    recipe = Recipe(epochs=1 if options.fast else 10, batch=64)
    neurons = options.chosen(common.all_neurons(STEPS))
    for name in ("rows", "permuted"):
        data = sequences(name == "permuted")
        data = data.few(64) if options.fast else data
        yield from common.compare(build, neurons, data, recipe, range(options.seeds), order=name)


if __name__ == "__main__":
    common.main(sys.modules[__name__])
