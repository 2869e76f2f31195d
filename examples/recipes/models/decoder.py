"""A signal told from the spikes of others: the network of the task of primate reaching."""

import torch
from torch import Tensor, nn

from ..neurons import Factory

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Layers of neurons, a smoothed readout of all their spikes: ``x`` [T, N, features] -> [T, N, outputs].

    The readout is a leaky mean over time, ``r += (1 - d) * (o - r)``, whose decay d is learned for each output; it
    begins as that of 25 steps.

    Args:
        hidden: neurons of each layer.
    """

    time_first_input = "TNC"

    def __init__(self, in_features: int, hidden: list[int], outputs: int, neuron: Factory):
        super().__init__()
        widths = [in_features, *hidden[:-1]]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, hidden, strict=True))
        self.readout = nn.Linear(sum(hidden), outputs)
        self.decay = nn.Parameter(torch.full((outputs,), 24.0).log())  # before a sigmoid: 24/25
        self.neurons = nn.ModuleList(neuron(width) for width in hidden)

    def forward(self, x: Tensor) -> Tensor:
        spikes = []
        for linear, node in zip(self.linears, self.neurons, strict=True):
            x = node(linear(x))
            spikes.append(x)
        out = self.readout(torch.cat(spikes, -1))
        gain, smooth, found = torch.sigmoid(-self.decay), torch.zeros_like(out[0]), []
        for step in out.unbind():
            smooth = smooth + gain * (step - smooth)
            found.append(smooth)
        return torch.stack(found)
