"""Accuracy against the number of time steps T and of thresholds D, on digits as still images.

An image is repeated T times. At T = 1 MSF is an activation of D + 1 levels; D = 1 is LIF.

    python examples/experiments/steps.py
"""

import sys

import common
from common import Data, Recipe
from depth import DeepNet
from digits import images
from recipes import neurons

SEEDS = 1
TITLE = "Accuracy against T and D (digits, still images, four blocks of 4)"
KEYS = ("T", "D")
VALUES = ("spikes", "seconds", "accuracy")
SIZES = (1, 2, 4, 8)


def runs(options):
    x, y, x_test, y_test = images()
    sizes = SIZES[:2] if options.fast else SIZES
    recipe = Recipe(epochs=1 if options.fast else 10, batch=64, lr=5e-3)
    for steps in sizes:
        still, still_test = (part.flatten(1).expand(steps, -1, -1) for part in (x, x_test))
        data = Data(still, y, still_test, y_test)
        data = data.few(64) if options.fast else data
        for D in sizes:
            candidates = {f"MSF, D = {D}": neurons.MSF(D=D)}
            build = lambda neuron: DeepNet(4, neuron, shortcut=True, width=4)  # noqa: E731
            yield from common.compare(build, candidates, data, recipe, range(options.seeds), T=steps, D=D)


if __name__ == "__main__":
    common.main(sys.modules[__name__])
