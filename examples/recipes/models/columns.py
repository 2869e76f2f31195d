"""Sequential CIFAR by columns: an image is read column by column, its height stays a spatial axis."""

from torch import Tensor, nn

from ..neurons import Factory
from .layers import per_step

__all__ = ["ColumnNet"]


class ColumnNet(nn.Module):
    """The PMSN paper's network: images ``x`` [N, 3, height, width] -> logits [N, classes]; T is the width.

    Conv and batch norm; twice (neuron, conv, batch norm, neuron, conv, batch norm, neuron, average of 2), with a
    conv and batch norm between; linear, neuron, linear; mean over time. Convolutions run along the height and, like
    the linear layers, have no bias. Published: PMSN with ``coeff=0.2``; 539,776 and 562,816 parameters for 10 and
    100 classes.
    """

    time_first_input = "NCHW"

    def __init__(self, classes: int, neuron: Factory, channels: int = 128, height: int = 32):
        super().__init__()
        if height % 4:
            raise ValueError(f"height must be a multiple of 4, it is halved twice; got {height}")

        def conv(inputs: int) -> list[nn.Module]:
            return [nn.Conv1d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm1d(channels)]

        body = [neuron(channels), *conv(channels), neuron(channels), *conv(channels), neuron(channels)]
        again = [neuron(channels), *conv(channels), neuron(channels), *conv(channels), neuron(channels)]
        self.static_conv = nn.Sequential(*conv(3))
        self.conv1 = nn.Sequential(*body, nn.AvgPool1d(2), *conv(channels))
        self.conv2 = nn.Sequential(*again, nn.AvgPool1d(2))
        wide = 2 * channels
        self.fc = nn.Sequential(
            nn.Linear(channels * height // 4, wide, bias=False),
            neuron(wide),
            nn.Linear(wide, classes, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = per_step(self.static_conv, x.permute(3, 0, 1, 2))  # [T, N, C, height]
        for layer in [*self.conv1, *self.conv2]:
            over_steps = isinstance(layer, nn.Conv1d | nn.BatchNorm1d | nn.AvgPool1d)
            x = per_step(layer, x) if over_steps else layer(x)
        return self.fc(x.flatten(2)).mean(0)
