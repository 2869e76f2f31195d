"""An event-driven task: which way does the digit move?

A digit glides over a 16 x 16 field for 10 steps, to the left, right, up or down. The sensor reports where the
brightness changed, without its sign, and 1 % of noise. One step shows the axis of the motion but not its direction:
that takes memory. ReLU units have none, so half of the answers is the most they can reach; the mean over time of
their outputs does not know the order of the steps. Made from scikit-learn's digits, not recorded by a sensor.

    python examples/experiments/events.py
"""

import sys

import common
import torch
from common import Data, Recipe
from digits import images
from recipes import neurons
from recipes.models import SequenceNet

SEEDS = 3
TITLE = "Direction of a moving digit, from events (T = 10)"
KEYS = ("neuron",)
VALUES = ("spikes", "seconds", "accuracy")
STEPS, FIELD = 10, 16
NEURONS = {
    "LIF": neurons.LIF(tau=4 / 3, decay_input=False, surrogate="rectangular"),
    "LIF, tau = 4": neurons.LIF(tau=4.0, decay_input=False, surrogate="rectangular"),
    "MSF": neurons.MSF(),
    "MSF, tau = 4": neurons.MSF(tau=4.0),
    "PMSN": neurons.PMSN(),
    "ReLU": neurons.ReLU(),
}


def events(pictures, generator):
    """Pictures [N, 8, 8] -> events [10, N, 256] of 0 and 1, directions [N]: left, right, up, down."""
    n = len(pictures)
    direction = torch.randint(4, (n,), generator=generator)
    start = torch.randint(FIELD, (n, 2), generator=generator)
    step = torch.tensor([[0, -1], [0, 1], [-1, 0], [1, 0]])[direction]
    field = torch.zeros(n, FIELD, FIELD)
    field[:, :8, :8] = pictures
    frames = []
    for t in range(STEPS + 1):
        rows, columns = (
            start + t * step
        ).t()  # the field is a torus, so that no edge gives the direction away
        row, column = torch.arange(FIELD).reshape(1, -1, 1), torch.arange(FIELD).reshape(1, 1, -1)
        sample = torch.arange(n).reshape(-1, 1, 1)
        frames.append(
            field[
                sample, (row - rows.reshape(-1, 1, 1)) % FIELD, (column - columns.reshape(-1, 1, 1)) % FIELD
            ]
        )
    changed = torch.stack(frames).diff(dim=0).abs() > 0.3
    noise = torch.rand(changed.shape, generator=generator) < 0.01
    return (changed ^ noise).float().flatten(2), direction


def data():
    x, _y, x_test, _y_test = images()
    generator = torch.Generator().manual_seed(0)
    x, y = events(x, generator)
    x_test, y_test = events(x_test, generator)
    return Data(x, y, x_test, y_test)


def runs(options):
    task = data().few(64) if options.fast else data()
    recipe = Recipe(epochs=1 if options.fast else 20, batch=64, lr=5e-3)
    build = lambda neuron: SequenceNet(FIELD * FIELD, [128, 128], 4, neuron)  # noqa: E731
    yield from common.compare(build, options.chosen(NEURONS), task, recipe, range(options.seeds))


if __name__ == "__main__":
    common.main(sys.modules[__name__])
