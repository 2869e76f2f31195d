"""The spiking EEGNet of the MSF paper: time, space and time again, on one second after the other."""

from torch import Tensor, nn
from torch.nn import functional as F

from ..neurons import Factory
from .layers import per_step

__all__ = ["EEGNet"]


class EEGNet(nn.Module):
    """Signals [N, channels, steps * samples] to logits [N, classes], in ``steps`` steps of ``samples`` samples.

    Every sample of a step has its own membrane, which goes from step to step. As published for sleep (1 channel, 30
    steps of 100 samples, 5 classes) 21,893 parameters; the network for several channels is ours.

    Args:
        channels: of the signal.
        steps, samples: so many steps of so many samples.
        classes: number of logits.
        neuron: factory of the three layers' neurons.
        dropout: after the second and the third.
        filters: of the first convolution; each has ``depth`` filters over the channels.
        kernels: lengths of the two convolutions over time.

    Raises:
        ValueError: a signal of another shape.
    """

    time_first_input = "NCL"

    def __init__(
        self,
        channels: int,
        steps: int,
        samples: int,
        classes: int,
        neuron: Factory,
        dropout: float = 0.5,
        filters: int = 16,
        depth: int = 2,
        kernels: tuple[int, int] = (32, 16),
    ):
        super().__init__()
        self.shape = (channels, steps, samples)
        width = filters * depth
        self.conv1 = nn.Conv2d(1, filters, (1, kernels[0]), padding=(0, (kernels[0] - 1) // 2), bias=False)
        self.norm1, self.neuron1 = nn.BatchNorm2d(filters), neuron(filters)
        self.conv2 = nn.Conv2d(filters, width, (channels, 1), groups=filters, bias=False)
        self.norm2, self.neuron2 = nn.BatchNorm2d(width), neuron(width)
        self.conv3 = nn.Conv2d(width, width, (1, kernels[1]), padding=(0, (kernels[1] - 1) // 2), bias=False)
        self.norm3, self.neuron3 = nn.BatchNorm2d(width), neuron(width)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(steps * width, classes)
        # the published script bounds these norms at the start, and never again
        for layer, norm in ((self.conv2, 1.0), (self.fc, 0.25)):
            layer.weight.data = layer.weight.data.renorm(2, 0, norm)

    def forward(self, x: Tensor) -> Tensor:
        channels, steps, samples = self.shape
        if x.dim() != 3 or x.shape[1:] != (channels, steps * samples):
            raise ValueError(
                f"EEGNet takes [N, {channels}, {steps} * {samples}] signals, got {tuple(x.shape)}; set channels, steps "
                "and samples as the data are"
            )
        x = x.unflatten(2, (steps, samples)).movedim(2, 0).unsqueeze(2)  # [T, N, 1, C, L]
        x = self.neuron1(per_step(self.norm1, _along_time(self.conv1, x)))
        x = self.dropout(self.neuron2(per_step(self.norm2, per_step(self.conv2, x))))
        x = self.neuron3(per_step(self.norm3, _along_time(self.conv3, x)))
        x = self.dropout(x.mean((3, 4)))  # [T, N, C]
        return self.fc(x.transpose(0, 1).flatten(1))


def _along_time(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv`` on every step of ``x`` [T, N, C, H, L], as long as it was: "same" without torch's warning."""
    # an even kernel has one more zero on the right
    return per_step(conv, F.pad(x, (0, 1 - conv.kernel_size[1] % 2)))
