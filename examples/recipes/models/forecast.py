"""One-step forecasting of a signal: the network of the Mackey-Glass task."""

import torch
from torch import Tensor, nn

from ..neurons import Factory

__all__ = ["Forecaster"]

CENTRE, SPREAD = 0.9, 0.25  # of the Mackey-Glass series


class Forecaster(nn.Module):
    """Layers of neurons, and a readout of the spikes of all of them: ``x`` [T, N, 1] -> the next value [T, N, 1].

    What is read out is the step to the next value, so the answer is ``x`` plus it.

    Args:
        hidden: neurons of each layer.
    """

    time_first_input = "TNC"

    def __init__(self, hidden: list[int], neuron: Factory):
        super().__init__()
        widths = [1, *hidden[:-1]]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, hidden, strict=True))
        self.readout = nn.Linear(sum(hidden), 1)
        self.neurons = nn.ModuleList(neuron(width) for width in hidden)

    def forward(self, x: Tensor) -> Tensor:
        s, spikes = (x - CENTRE) / SPREAD, []
        for linear, node in zip(self.linears, self.neurons, strict=True):
            s = node(linear(s))
            spikes.append(s)
        return x + SPREAD * self.readout(torch.cat(spikes, -1))
