"""Networks for sequences of vectors: S-MNIST, PS-MNIST, sequential CIFAR by pixels (SequenceNet) and SHD (SHDNet)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from ..neurons import Factory
from .layers import TiedDropout, fire, mean_over_time, valid

__all__ = ["SHDNet", "SequenceNet"]


class SequenceNet(nn.Module):
    """The PMSN paper's network for single pixels: ``x`` [T, N, features] -> logits [N, classes].

    Linear; per layer batch norm, neuron, linear with bias; mean over time, linear. The last layer has no linear of
    its own. With ``residual`` a layer adds the spikes of the layers of equal width before it to its own, so its
    output is an integer above 1. Where the width changes, and at the end, groups of ``pool`` channels are averaged
    (published for CIFAR by pixels: 4).

    Published: ``hidden=[128] * 4`` or ``[208] * 4`` (S-MNIST, PS-MNIST: 65,418 and 156,218 parameters with PMSN);
    ``in_features=3, hidden=[128] * 3 + [256] * 3, pool=4`` (sequential CIFAR-10 by pixels: 206,474).

    Args:
        dropout: channels dropped after each linear layer, tied over time; a fifth of it on the sums of spikes.
    """

    time_first_input = "TNC"

    def __init__(
        self,
        in_features: int,
        hidden: list[int],
        classes: int,
        neuron: Factory,
        dropout: float = 0.0,
        pool: int = 1,
        residual: bool = True,
    ):
        super().__init__()
        ends = [a for a, b in zip(hidden, [*hidden[1:], None], strict=True) if a != b]
        if any(width % pool for width in ends):
            raise ValueError(f"pool={pool} must divide the widths {ends} at which it averages")
        self.pool = pool
        self.residual = residual
        # Neurons last: some draw random numbers, and nets of all neurons shall start from the same weights.
        self.encoder = nn.Linear(in_features, hidden[0])
        self.linears = nn.ModuleList(nn.Linear(a if a == b else a // pool, b) for a, b in pairwise(hidden))
        self.decoder = nn.Linear(hidden[-1] // pool, classes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in hidden)
        self.dropout = TiedDropout(dropout)
        self.spike_dropout = TiedDropout(dropout / 5)
        self.neurons = nn.ModuleList(neuron(width) for width in hidden)

    def hidden_spikes(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What the decoder averages: ``x`` [T, N, features] -> [T, N, last width / pool], 0 at padded steps."""
        mask = valid(x, lengths)
        x = self.encoder(x)
        before: Tensor | float = 0.0
        for i, (norm, node) in enumerate(zip(self.norms, self.neurons, strict=True)):
            spikes = fire(node, self._norm(norm, x, mask), mask) + before
            spikes = self.spike_dropout(spikes)
            before = spikes if self.residual else 0.0
            last = i == len(self.linears)
            if last or self.linears[i].out_features != spikes.shape[-1]:  # the end of a stage
                spikes = self.dropout(spikes)
                if self.pool > 1:
                    spikes = spikes.unflatten(-1, (-1, self.pool)).mean(-1)
                before = 0.0
                x = spikes if last else self.linears[i](spikes)
            else:
                x = self.dropout(self.linears[i](spikes))
        return x

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.decoder(mean_over_time(self.hidden_spikes(x, lengths), valid(x, lengths)))

    @staticmethod
    def _norm(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        """Batch norm over the valid steps of all samples; padding stays out of the statistics."""
        if mask is None:
            return norm(x.flatten(0, 1)).view_as(x)
        return torch.zeros_like(x).masked_scatter(mask.unsqueeze(-1), norm(x[mask]))


class SHDNet(nn.Module):
    """The PMSN paper's network for spoken digits: ``x`` [T, N, features] -> logits [N, classes].

    (Linear, neuron) for each hidden width, Linear, mean over time; no batch norm. Published: 140 inputs, summed 5 to 1
    from 700 (give either), ``hidden=[256, 256]`` or ``[352, 352]`` (120,340 and 199,252 parameters), PMSN with
    ``init="shd"``.

    Args:
        dropout: channels dropped in the input (before the sum) and after each hidden layer, tied over time.
    """

    time_first_input = "TNC"

    def __init__(
        self,
        in_features: int,
        hidden: list[int],
        classes: int,
        neuron: Factory,
        dropout: float = 0.4,
    ):
        super().__init__()
        self.in_features = in_features
        self.dropout = TiedDropout(dropout)
        widths = [in_features, *hidden]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, hidden, strict=False))
        self.fc = nn.Linear(hidden[-1], classes)
        self.neurons = nn.ModuleList(neuron(width) for width in hidden)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if x.shape[-1] % self.in_features:
            raise ValueError(
                f"the last axis of x {tuple(x.shape)} must be {self.in_features} channels or a multiple of it"
            )
        mask = valid(x, lengths)
        x = self.dropout(x).unflatten(-1, (self.in_features, -1)).sum(-1)
        for linear, node in zip(self.linears, self.neurons, strict=True):
            x = self.dropout(fire(node, linear(x), mask))
        return mean_over_time(self.fc(x) if mask is None else self.fc(x) * mask.unsqueeze(-1), mask)
