"""Sine-wave reconstruction: the smallest network of the MSF paper."""

from torch import Tensor, nn

from ..neurons import Factory

__all__ = ["SineNet"]


class SineNet(nn.Module):
    """Linear 1 -> hidden, neuron, linear hidden -> 1: ``x`` [T, N, 1] -> its reconstruction [T, N, 1].

    Published: ``hidden=32`` (97 parameters), MSF or LIF with a first threshold of 0.5, decay 0.25, T = 300.
    """

    time_first_input = "TNC"

    def __init__(self, neuron: Factory, hidden: int = 32):
        super().__init__()
        self.fc1 = nn.Linear(1, hidden)
        self.fc2 = nn.Linear(hidden, 1)
        self.act = neuron(hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))
