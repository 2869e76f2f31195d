"""Delayed recall: how far back does each neuron's gradient reach, and does training find what lies there?

1. Reach, before training: a layer of 64 neurons, normal input, 512 steps. The gradient of the last step's output to
   the input ``lag`` steps before; the reach is the largest lag at which it still has 1 % of its size at lag 0.
2. Recall: one of four cues at the first step, noise for ``lag`` steps, the answer from the spikes of the last step
   alone. One hidden layer, so the memory is the neuron's. Guessing is right in 25 %.

    python examples/experiments/recall.py
"""

import sys
import time

import common
import torch
from recipes import neurons
from torch import nn

SEEDS = 1
TITLE = "Delayed recall"
KEYS = ("neuron",)
LAGS = (4, 16, 64, 256)
VALUES = ("reach", *(f"lag {lag}" for lag in LAGS), "seconds")
COLUMNS = {"reach": ("reach of the gradient, steps", ".0f")}
COLUMNS |= {f"lag {lag}": (f"recall after {lag}, %", ".0f") for lag in LAGS}
CUES = 4


def reach(neuron, steps, seed):
    """Norm of d(last output)/d(input) at every lag, relative to lag 0, and the largest lag with 1 %."""
    torch.manual_seed(seed)
    node = neuron(64)
    x = torch.randn(steps, 32, 64, requires_grad=True)
    neurons.reset(node)
    last = node(x)[-1]
    (gradient,) = torch.autograd.grad((last * torch.randn_like(last)).sum(), x)
    norms = gradient.flip(0).flatten(1).norm(dim=1)
    norms = norms / norms[0]
    return norms.tolist(), int(torch.nonzero(norms >= 0.01).max())


class RecallNet(nn.Module):
    """``x`` [T, N, features] -> logits [N, 4] from the last step."""

    def __init__(self, neuron, width=64):
        super().__init__()
        self.encoder = nn.Linear(CUES + 1, width)
        self.norm = nn.BatchNorm1d(width)
        self.decoder = nn.Linear(width, CUES)
        self.node = neuron(width)

    def forward(self, x):
        x = self.encoder(x)
        return self.decoder(self.node(self.norm(x.flatten(0, 1)).view_as(x))[-1])


def cues(n, lag, generator):
    """Inputs [lag + 1, n, 5], the cue in one of four channels at step 0, noise in the fifth; labels [n]."""
    y = torch.randint(CUES, (n,), generator=generator)
    x = torch.zeros(lag + 1, n, CUES + 1)
    x[0, torch.arange(n), y] = 1.0
    x[..., CUES] = torch.randn(lag + 1, n, generator=generator)
    return x, y


def recall(neuron, lag, seed, updates, batch=64):
    """Accuracy in % on 1,000 new sequences after training on ``updates`` fresh batches."""
    torch.manual_seed(seed)
    model = RecallNet(neuron)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(common.param_groups(model, 1e-2, 1e-3, 0.0, "smnist"), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    model.train()
    for _ in range(updates):
        x, y = cues(batch, lag, generator)
        neurons.reset(model)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    neurons.reset(model)
    x, y = cues(1000, lag, generator)
    with torch.no_grad():
        return 100 * (model(x).argmax(1) == y).double().mean().item()


def runs(options):
    lags, updates = (LAGS[:1], 2) if options.fast else (LAGS, 150)
    for seed in range(options.seeds):
        # PSN is built for a number of steps, so it is made anew for every lag.
        for name, neuron in options.chosen(common.all_neurons(64 if options.fast else 512)).items():
            start = time.process_time()
            norms, furthest = reach(neuron, 64 if options.fast else 512, seed)
            found = {f"lag {k}": recall(common.all_neurons(k + 1)[name], k, seed, updates) for k in lags}
            seconds = time.process_time() - start
            yield {
                "neuron": name,
                "seed": seed,
                "reach": furthest,
                "norms": norms,
                **found,
                "seconds": seconds,
            }


if __name__ == "__main__":
    common.main(sys.modules[__name__])
