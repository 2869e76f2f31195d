"""Whose defaults: a neuron in the place of the frameworks' own LIF, and nothing else changed.

The digits as still images, 64-64-10, ten steps of the same image, 200 steps of Adam at 5e-3 with batches of 128. The
loss is the cross-entropy of the counts, or, as in snnTorch's tutorials, of the membranes in every step; the counts
decide.

    python examples/experiments/defaults.py
"""

import sys
import warnings

import common
import snntorch
import torch
from digits import images
from spikingjelly.activation_based import functional, neuron
from torch import nn

from msf_pmsn_plugins.snntorch import MSF
from msf_pmsn_plugins.spikingjelly import MSFNode

SEEDS = 5
TITLE = "Whose defaults (digits, 64-64-10, 200 steps of Adam)"
KEYS = ("framework", "neuron")
VALUES = ("counts", "membranes")
COLUMNS = {
    "counts": ("trained on counts, test accuracy in %", ".1f"),
    "membranes": ("on membranes", ".1f"),
}
STEPS = 10
NEURONS = {
    "snnTorch": {
        "Leaky(0.9)": lambda: snntorch.Leaky(0.9),
        "MSF(0.9, D=1)": lambda: MSF(0.9, D=1),
        "MSF(0.9, D=4)": lambda: MSF(0.9, D=4),
        "MSF.published(D=1)": lambda: MSF.published(D=1),
        "MSF.published(D=4)": lambda: MSF.published(D=4),
    },
    "SpikingJelly": {
        "LIFNode()": neuron.LIFNode,
        "MSFNode(D=1)": lambda: MSFNode(D=1),
        "MSFNode(D=4)": lambda: MSFNode(D=4),
        "MSFNode.published(D=1)": lambda: MSFNode.published(D=1),
        "MSFNode.published(D=4)": lambda: MSFNode.published(D=4),
    },
}


class ByHand(nn.Module):
    """snnTorch's loop: membranes in and out, counts and membranes of the last layer recorded."""

    def __init__(self, make):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(64, 64), make(), nn.Linear(64, 10), make()

    def forward(self, x):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes, membranes = [], []
        for _ in range(STEPS):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spikes.append(spk)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


class InStates(nn.Module):
    """SpikingJelly's: states inside, a reset before each batch. A stock node keeps no membrane before its reset."""

    def __init__(self, make):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), make(), nn.Linear(64, 10), make())

    def forward(self, x):
        functional.reset_net(self)
        return torch.stack([self.layers(x) for _ in range(STEPS)]), None


def accuracy(net, data, on_membranes, seed, updates):
    """Of the counts on the test images, %, after a short training."""
    x, y, x_test, y_test = data
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    order = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        batch = torch.randint(len(y), (128,), generator=order)
        spikes, membranes = net(x[batch])
        logits = membranes.flatten(0, 1) if on_membranes else spikes.sum(0)
        loss = nn.functional.cross_entropy(logits, y[batch].repeat(len(logits) // len(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        spikes, _ = net(x_test)
    return 100 * float((spikes.sum(0).argmax(1) == y_test).float().mean())


def runs(options):
    x, y, x_test, y_test = images()
    data = x.flatten(1), y, x_test.flatten(1), y_test
    chosen = options.chosen({name: None for candidates in NEURONS.values() for name in candidates})
    for framework, candidates in NEURONS.items():
        for seed in range(options.seeds):
            for name, make in candidates.items():
                if name not in chosen:
                    continue
                row = {"framework": framework, "neuron": name, "seed": seed}
                for kind in VALUES:
                    by_hand = framework == "snnTorch"
                    if kind == "membranes" and not by_hand:
                        continue
                    torch.manual_seed(seed)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", UserWarning)
                        net = (ByHand if by_hand else InStates)(make)
                    row[kind] = accuracy(net, data, kind == "membranes", seed, 2 if options.fast else 200)
                yield row


if __name__ == "__main__":
    common.main(sys.modules[__name__])
