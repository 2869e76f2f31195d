"""Sine-wave reconstruction as the MSF paper's code trains it: can 32 neurons carry a real-valued signal?

22,800 sines of 300 steps, Linear 1-32, neuron, Linear 32-1 (97 parameters), mean squared error, Adam 1e-3, cosine
to 0 over 30 epochs, batches of 32. The published code chooses the epoch on the 320 test sines; both that figure and
the last epoch's are given. With --published the authors' own weights are measured too.

    python examples/experiments/sine.py       about half a minute a seed and neuron
    python examples/experiments/sine.py --fast
"""

import math
import sys
import time
import warnings
from pathlib import Path

import common
import numpy as np
import torch
from recipes import neurons
from recipes.data.sines import Sines
from recipes.models import SineNet

from msf_pmsn_plugins import checkpoints

SEEDS = 3
TITLE = "Sine reconstruction"
KEYS = ("neuron",)
VALUES = ("parameters", "seconds", "last", "best", "varying")
COLUMNS = {
    "last": ("test MSE, last epoch", ".4f"),
    "best": ("best epoch on test, as published", ".4f"),
    "varying": ("varying signal", ".4f"),
}
PUBLISHED = "a clone of the MSF repository, for its weights"
STEPS = 300
NEURONS = {
    "LIF": neurons.LIF(tau=4 / 3, decay_input=False, v_threshold=0.5, surrogate="rectangular"),
    "MSF": neurons.MSF(D=4, v_threshold=0.5),
}
FILES = "reconstruction/sine_snn_autoencoder_h32-{}-t300/models/sine_{}_model.pth"


def data():
    """The published training and test signals, [300, signals, 1]."""
    source = Sines()
    return (source.open(split).tensors[0].transpose(0, 1).contiguous() for split in ("train", "test"))


def varying():
    """One signal whose amplitude and period change, [300, 1, 1]."""
    n = np.arange(STEPS)
    signal = (1 + 3 * np.sin(0.1 * n)) * np.sin(2 * math.pi * n / (80 + 5 * np.cos(0.05 * n)))
    return torch.tensor(signal, dtype=torch.float32).reshape(-1, 1, 1)


@torch.no_grad()
def error(model, x):
    """Mean squared error; signals have one length, so it is also the mean of their errors."""
    model.eval()
    neurons.reset(model)
    return torch.nn.functional.mse_loss(model(x), x).item()


def train(model, x, x_test, epochs, seed):
    """Train in place; the test error after every epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    order = np.random.RandomState(seed)
    x = x.transpose(0, 1).contiguous()  # a signal in one piece
    errors = []
    for _ in range(epochs):
        model.train()
        for batch in torch.from_numpy(order.permutation(len(x))).split(32):
            neurons.reset(model)
            signals = x[batch].transpose(0, 1).contiguous()
            loss = torch.nn.functional.mse_loss(model(signals), signals)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        errors.append(error(model, x_test))
    return errors


def one_run(name, seed, x, x_test, epochs):
    torch.manual_seed(seed)
    model = SineNet(NEURONS[name])
    start = time.process_time()
    errors = train(model, x, x_test, epochs, seed)
    return {
        "neuron": name,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "last": errors[-1],
        "best": min(errors),
        "varying": error(model, varying()),
        "seconds": time.process_time() - start,
    }


def runs(options):
    x, x_test = data()
    if options.fast:
        x = x[:, ::100]
    for seed in range(42, 42 + options.seeds):  # 42 is the published one
        for name in options.chosen(NEURONS):
            yield one_run(name, seed, x, x_test, epochs=2 if options.fast else 30)
    if options.published is not None:
        yield from published(options.published, x_test)


def published(folder: Path, x_test):
    """The authors' weights, those of the best and of the last epoch, in our network."""
    for name, neuron in NEURONS.items():
        row = {"neuron": f"{name}, published weights"}
        for epoch in ("last", "best"):
            model = SineNet(neuron)
            with warnings.catch_warnings():  # LIF's file has the names of MSF's, its settings differ
                warnings.simplefilter("ignore", UserWarning)
                checkpoints.read(folder / FILES.format(name, epoch), model, "msf-sine")
            row[epoch] = error(model, x_test)
        size = sum(p.numel() for p in model.parameters())
        yield {**row, "parameters": size, "varying": error(model, varying())}


if __name__ == "__main__":
    common.main(sys.modules[__name__])
