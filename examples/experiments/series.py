"""Real multichannel series from aeon: BasicMotions (accelerometer and gyroscope) and JapaneseVowels (variable length).

BasicMotions: 6 channels, 100 steps, four activities, 40 series for training and 40 for testing. JapaneseVowels: 12
channels, 7 to 29 steps, nine speakers, 270 and 370; the padding is skipped by ``lengths``. Both lie in the package,
nothing is downloaded.

    pip install aeon          (where it wants an older numba: --no-deps aeon pandas Deprecated wrapt)
    python examples/experiments/series.py
"""

import sys

import common
import numpy as np
import torch
from common import Data, Recipe
from recipes.models import SequenceNet

SEEDS = 3
TITLE = "Multichannel series"
KEYS = ("series", "neuron")
VALUES = ("parameters", "spikes", "seconds", "accuracy")


def sets():
    """Name -> (series, labels) for training and for testing, as aeon has them: each series is [channels, steps]."""
    try:
        from aeon.datasets import load_basic_motions, load_japanese_vowels
    except ImportError as error:
        raise common.Unavailable(
            f"{error}. Try: pip install --no-deps aeon pandas Deprecated wrapt"
        ) from error
    loaders = {"BasicMotions": load_basic_motions, "JapaneseVowels": load_japanese_vowels}
    return {name: [load(split=split) for split in ("train", "test")] for name, load in loaders.items()}


def padded(series, mean, std):
    """Standardised and padded at the end with zeros: [steps, N, channels], lengths [N]."""
    parts = [torch.from_numpy((part - mean) / std).float().t() for part in series]
    return torch.nn.utils.rnn.pad_sequence(parts), torch.tensor([len(part) for part in parts])


def data(train, test):
    """A task from aeon's arrays; channels are standardised by the training set."""
    everything = np.concatenate(list(train[0]), axis=1)
    mean, std = everything.mean(1, keepdims=True), everything.std(1, keepdims=True)
    names, y = np.unique(train[1], return_inverse=True)
    y_test = np.searchsorted(names, test[1])
    (x, lengths), (x_test, lengths_test) = padded(train[0], mean, std), padded(test[0], mean, std)
    steps = max(len(x), len(x_test))  # PSN is built for one number of steps
    x, x_test = (torch.nn.functional.pad(part, (0, 0, 0, 0, 0, steps - len(part))) for part in (x, x_test))
    if (lengths == steps).all() and (lengths_test == steps).all():
        lengths = lengths_test = None
    return Data(x, torch.from_numpy(y), x_test, torch.from_numpy(y_test), lengths, lengths_test)


def runs(options):
    for name, (train, test) in sets().items():
        task = data(train, test)
        classes = int(task.y.max()) + 1
        recipe = Recipe(epochs=1 if options.fast else 40, batch=20, lr=5e-3)
        candidates = options.chosen(common.all_neurons(len(task.x)))
        build = lambda n, c=classes, f=task.x.shape[2]: SequenceNet(f, [64, 64], c, n, dropout=0.1)  # noqa: E731
        yield from common.compare(build, candidates, task, recipe, range(options.seeds), series=name)


if __name__ == "__main__":
    common.main(sys.modules[__name__])
