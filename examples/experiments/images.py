"""Handwritten digits as images: MHSANet-29 with different neurons.

An eighth of the published width, one input channel, 8 x 8 images and, as published for still images, T = 1. There
MSF is an activation of five levels, LIF of two; PMSN has nothing to integrate and is left out. (SpikingJelly's
SEW-ResNet on the same digits, its neurons swapped: examples/quickstart.py.)

    python examples/experiments/images.py
"""

import sys

import common
from common import Data, Recipe
from digits import images
from recipes import neurons
from recipes.models import MHSANet

SEEDS = 1
TITLE = "Digits, images, narrow MHSANet-29"
KEYS = ("neuron",)
VALUES = ("parameters", "spikes", "seconds", "accuracy")
NEURONS = {
    "LIF": neurons.LIF(tau=4 / 3, decay_input=False, surrogate="rectangular"),
    "MSF": neurons.MSF(),
    "ReLU": neurons.ReLU(),
}


def build(neuron):
    return MHSANet([3, 3, 3], 10, neuron, in_channels=1, planes=8)


def runs(options):
    x, y, x_test, y_test = images()
    data = Data(x.unsqueeze(1), y, x_test.unsqueeze(1), y_test, axis=0)
    data = data.few(32) if options.fast else data
    recipe = Recipe(epochs=1 if options.fast else 4, batch=64, lr=5e-3)
    yield from common.compare(build, options.chosen(NEURONS), data, recipe, range(options.seeds))


if __name__ == "__main__":
    common.main(sys.modules[__name__])
