"""MHSANet of the MSF paper: residual blocks of several scales, the neuron before every convolution, with attention.

Layer names are those of the published code without its containers, so that
:func:`msf_pmsn_plugins.checkpoints.read` loads its files.
"""

import torch
from torch import Tensor, nn

from ..neurons import Factory
from .layers import per_step

__all__ = ["MHSANet"]

SCALES = 4


class Conv(nn.Conv2d):
    """A convolution without bias over ``x`` [T, N, C, H, W]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return per_step(super().forward, x)


class Norm(nn.BatchNorm2d):
    """Batch norm over time, batch and space of ``x`` [T, N, C, H, W]; ``start`` is the initial weight."""

    def __init__(self, channels: int, start: float = 1.0):
        super().__init__(channels)
        nn.init.constant_(self.weight, start)

    def forward(self, x: Tensor) -> Tensor:
        return per_step(super().forward, x)


class ChannelAttention(nn.Module):
    """A weight in (0, 1) for every channel, from its mean and maximum over time and space."""

    def __init__(self, channels: int, reduction: int = 8):
        super().__init__()
        inner = channels // reduction
        self.sharedMLP = nn.Sequential(
            nn.Conv3d(channels, inner, 1, bias=False), nn.ReLU(), nn.Conv3d(inner, channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((0, 3, 4)), x.amax((0, 3, 4))
        weights = sum(self.sharedMLP(p[..., None, None, None]) for p in pooled)  # [N, C, 1, 1, 1]
        return torch.sigmoid(weights).movedim(2, 0)


class SpatialAttention(nn.Module):
    """A weight in (0, 1) for every position, from the mean and maximum over time and channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([x.mean((0, 2)), x.amax((0, 2))], 1)  # [N, 2, H, W]
        return torch.sigmoid(self.conv(maps)).unsqueeze(0)


class CSA(nn.Module):
    """Channel, then spatial attention, then ReLU. It looks at all time steps at once: the network is not causal."""

    def __init__(self, channels: int):
        super().__init__()
        self.ca = ChannelAttention(channels)
        self.sa = SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        x = self.ca(x) * x
        return torch.relu(self.sa(x) * x)


class Block(nn.Module):
    """One residual block: 1x1, three 3x3 of which each passes its result on to the next, 1x1 with attention."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        cardinality: int,
        stride: int,
        first: bool,
        neuron: Factory,
    ):
        super().__init__()
        self.first = first
        self.width = width
        self.snn_conv1 = nn.Sequential(neuron(inputs), Conv(inputs, width * SCALES, 1), Norm(width * SCALES))
        self.convs = nn.ModuleList(
            nn.Sequential(neuron(width), Conv(width, width, 3, stride, cardinality), Norm(width, 0.2))
            for _ in range(SCALES - 1)
        )
        self.snn_conv3 = nn.Sequential(
            neuron(width * SCALES), Conv(width * SCALES, outputs, 1), Norm(outputs, 0.2), CSA(outputs)
        )
        self.pool = nn.AvgPool2d(3, stride, padding=1) if first else None
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(Conv(inputs, outputs, 1, stride), Norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        *groups, rest = self.snn_conv1(x).split(self.width, 2)
        results: list[Tensor] = []
        for conv, group in zip(self.convs, groups, strict=True):
            passed_on = results and not self.first
            results.append(conv(group + results[-1] if passed_on else group))
        results.append(rest if self.pool is None else per_step(self.pool, rest))
        y = self.snn_conv3(torch.cat(results, 2))
        return y + (x if self.downsample is None else self.downsample(x))


class MHSANet(nn.Module):
    """MHSANet-29, -50 and -101, for images ``x`` [N, C, H, W] or frames [T, N, C, H, W] -> logits [N, classes].

    Without ``classes`` it ends with the last stage, has no neuron after it, and gives what every stage gives, [T, N, C,
    H, W], real numbers: the backbone of a detector (:func:`recipes.models.detector.mhsanet50`).

    An image is repeated ``steps`` times. Published, with ``neuron=MSF()``: ``layers=[3, 3, 3]`` for CIFAR-10
    (7,259,004 parameters, stem ``"cifar"``, T = 1), the same with ``base_width=24, cardinality=4`` (17,008,124),
    with stem ``"dvs"`` and two input channels (7,276,348, T = 16); ``layers=[3, 4, 6, 3]`` and ``[3, 4, 23, 3]``
    with ``base_width=26``, stem ``"imagenet"`` and 1000 classes (30,730,576 and 54,696,258).

    Args:
        layers: blocks in each stage.
        classes: width of the last layer; None: stages only.
        neuron: called with the channels of each site.
        in_channels: of the input; None is 3, for stem ``"dvs"`` 2.
        base_width, cardinality: channels of a scale are ``int(planes * base_width / 64) * cardinality``.
        stem: ``"cifar"`` keeps the size; ``"dvs"``, two convolutions, and ``"imagenet"`` pool it to a quarter.
        planes: of the first stage; every stage doubles them. Smaller makes a narrow net.
        expansion: a stage gives ``planes * expansion`` channels.

    Raises:
        ValueError: an unknown stem, or a width that leaves a scale without channels.
    """

    def __init__(
        self,
        layers: list[int],
        classes: int | None,
        neuron: Factory,
        in_channels: int | None = None,
        base_width: int = 32,
        cardinality: int = 1,
        steps: int = 1,
        stem: str = "cifar",
        planes: int = 64,
        dropout: float = 0.2,
        expansion: int = 4,
    ):
        super().__init__()
        if int(planes * base_width / 64) < 1 or planes * expansion < 8:
            raise ValueError(
                f"planes={planes} with base_width={base_width} and expansion={expansion} leaves a scale, or the "
                "attention's eighth, without channels; give more planes"
            )
        if stem not in ("cifar", "dvs", "imagenet"):
            raise ValueError(f"unknown stem {stem!r}; known: 'cifar', 'dvs', 'imagenet'")
        self.steps = steps
        self.time_first_input = "TNCHW" if stem == "dvs" else "NCHW"
        in_channels = in_channels or (2 if stem == "dvs" else 3)
        self.maxpool = None if stem == "cifar" else nn.MaxPool2d(3, 2, padding=1)
        self.conv2 = None
        if stem == "dvs":
            self.conv1 = nn.Sequential(Conv(in_channels, planes // 2, 3), Norm(planes // 2))
            self.mem_update1 = neuron(planes // 2)
            self.conv2 = nn.Sequential(Conv(planes // 2, planes, 3), Norm(planes, 0.2))
        else:
            kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
            self.conv1 = nn.Sequential(Conv(in_channels, planes, kernel, stride), Norm(planes))
        width = planes
        for i, blocks in enumerate(layers):
            stage = []
            for j in range(blocks):
                stride = 2 if i and j == 0 else 1
                scale = int((planes << i) * base_width / 64) * cardinality
                outputs = (planes << i) * expansion
                stage.append(Block(width, outputs, scale, cardinality, stride, j == 0, neuron))
                width = outputs
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.stages = len(layers)
        self.classes = classes
        if classes is not None:
            self.mem_update = neuron(width)
            self.dropout = nn.Dropout(dropout)
            self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if x.dim() == 4:
            x = x.unsqueeze(0).expand(self.steps, *x.shape)
        x = self.conv1(x)
        if self.maxpool is not None:
            x = per_step(self.maxpool, x)
        if self.conv2 is not None:
            x = per_step(self.maxpool, self.conv2(self.mem_update1(x)))
        outputs = []
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
            outputs.append(x)
        if self.classes is None:
            return outputs
        x = self.mem_update(x).mean((3, 4)).mean(0)
        return self.fc(self.dropout(x))
