"""Detection as in the MSF paper: MHSANet, a spiking PAFPN and a spiking decoupled head after YOLOX.

A detector gives for every anchor 4 numbers of its box, its objectness and its classes, all real, as logits;
:mod:`recipes.detection.boxes` makes boxes of them. Layer names are those of the published code without its containers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..neurons import Factory
from .mhsanet import Conv, MHSANet, Norm

__all__ = ["PAFPN", "Anchors", "Detector", "Head", "Predictions", "mhsanet50"]

STRIDES = (8, 16, 32)
CHANNELS = (256, 512, 1024)
"""Of the features at these strides, at width 1."""


@dataclass(frozen=True)
class Anchors:
    """One anchor for each cell of each level, [A]: its cell ``x``, ``y`` and the ``stride`` of the level in pixels.

    Levels follow one another, in each row by row.
    """

    x: Tensor
    y: Tensor
    stride: Tensor

    @staticmethod
    def of(features: list[Tensor]) -> Anchors:
        """The anchors of levels [.., H, W] at strides 8, 16, 32."""
        parts = []
        for feature, stride in zip(features, STRIDES, strict=True):
            height, width = feature.shape[-2:]
            kind = {"device": feature.device, "dtype": torch.float32}
            y, x = torch.meshgrid(torch.arange(height, **kind), torch.arange(width, **kind), indexing="ij")
            parts.append(torch.stack([x.flatten(), y.flatten(), torch.full_like(x, stride).flatten()]))
        return Anchors(*torch.cat(parts, 1))


@dataclass(frozen=True)
class Predictions:
    """What a detector says of a batch: ``raw`` [N, A, 4 + 1 + classes] (box, objectness, classes) and its anchors."""

    raw: Tensor
    anchors: Anchors


class Unit(nn.Module):
    """Neuron, convolution, batch norm over ``x`` [T, N, C, H, W]; gives real numbers, no spikes."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, neuron: Factory):
        super().__init__()
        self.residual_function = nn.Sequential(
            neuron(inputs), Conv(inputs, outputs, kernel, stride), Norm(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.residual_function(x)


class Bottleneck(nn.Module):
    """1x1, then 3x3; without a shortcut."""

    def __init__(self, channels: int, neuron: Factory):
        super().__init__()
        self.conv1 = Unit(channels, channels, 1, 1, neuron)
        self.conv2 = Unit(channels, channels, 3, 1, neuron)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class C3(nn.Module):
    """Half of the channels pass ``blocks`` bottlenecks, the other half passes by; a 1x1 unit joins them."""

    def __init__(self, inputs: int, outputs: int, blocks: int, neuron: Factory):
        super().__init__()
        half = outputs // 2
        self.conv1 = Unit(inputs, half, 1, 1, neuron)
        self.conv2 = Unit(inputs, half, 1, 1, neuron)
        self.conv3 = Unit(2 * half, outputs, 1, 1, neuron)
        self.m = nn.Sequential(*(Bottleneck(half, neuron) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(torch.cat([self.m(self.conv1(x)), self.conv2(x)], 2))


def resized(x: Tensor, like: Tensor) -> Tensor:
    """``x`` [T, N, C, H, W], its nearest cells at the height and width of ``like``: odd sizes halve unevenly."""
    return F.interpolate(x.flatten(0, 1), like.shape[-2:], mode="nearest").unflatten(0, x.shape[:2])


class PAFPN(nn.Module):
    """The spiking neck: features [T, N, C, H, W] at strides 8, 16, 32, down and up again -> three of the same shapes.

    Args:
        channels: of the three features.
        blocks: bottlenecks in each C3.
        neuron: called with the channels of each site.
    """

    def __init__(self, channels: tuple[int, int, int], blocks: int, neuron: Factory):
        super().__init__()
        c3, c4, c5 = channels
        self.lateral_conv0 = Unit(c5, c4, 1, 1, neuron)
        self.C3_p4 = C3(2 * c4, c4, blocks, neuron)
        self.reduce_conv1 = Unit(c4, c3, 1, 1, neuron)
        self.C3_p3 = C3(2 * c3, c3, blocks, neuron)
        self.bu_conv2 = Unit(c3, c3, 3, 2, neuron)
        self.C3_n3 = C3(2 * c3, c4, blocks, neuron)
        self.bu_conv1 = Unit(c4, c4, 3, 2, neuron)
        self.C3_n4 = C3(2 * c4, c5, blocks, neuron)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        x3, x4, x5 = features
        lateral5 = self.lateral_conv0(x5)
        p4 = self.C3_p4(torch.cat([resized(lateral5, x4), x4], 2))
        lateral4 = self.reduce_conv1(p4)
        p3 = self.C3_p3(torch.cat([resized(lateral4, x3), x3], 2))
        n4 = self.C3_n3(torch.cat([self.bu_conv2(p3), lateral4], 2))
        n5 = self.C3_n4(torch.cat([self.bu_conv1(n4), lateral5], 2))
        return [p3, n4, n5]


class Head(nn.Module):
    """The decoupled head: features [T, N, C, H, W] of three levels -> :class:`Predictions`.

    The branches' last batch norms are averaged over T; 1x1 convolutions with bias, without a neuron, read them.

    Args:
        channels: of the three features.
        hidden: channels of stems and branches.
        classes: of objects.
        prior: probability of an object, and of a class, that the biases start from.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        hidden: int,
        classes: int,
        neuron: Factory,
        prior: float = 0.01,
    ):
        super().__init__()

        def branch() -> nn.Module:
            return nn.Sequential(*(Unit(hidden, hidden, 3, 1, neuron) for _ in range(2)))

        def predictor(outputs: int) -> nn.Conv2d:
            return nn.Conv2d(hidden, outputs, 1)

        self.classes = classes
        self.stems = nn.ModuleList(Unit(inputs, hidden, 1, 1, neuron) for inputs in channels)
        self.cls_convs = nn.ModuleList(branch() for _ in channels)
        self.reg_convs = nn.ModuleList(branch() for _ in channels)
        self.cls_preds = nn.ModuleList(predictor(classes) for _ in channels)
        self.reg_preds = nn.ModuleList(predictor(4) for _ in channels)
        self.obj_preds = nn.ModuleList(predictor(1) for _ in channels)
        for layer in (*self.cls_preds, *self.obj_preds):
            nn.init.constant_(layer.bias, -math.log((1 - prior) / prior))

    def forward(self, features: list[Tensor]) -> Predictions:
        levels = []
        for i, feature in enumerate(features):
            x = self.stems[i](feature)
            classes, box = self.cls_convs[i](x).mean(0), self.reg_convs[i](x).mean(0)
            raw = torch.cat([self.reg_preds[i](box), self.obj_preds[i](box), self.cls_preds[i](classes)], 1)
            levels.append(raw.flatten(2).transpose(1, 2))
        return Predictions(torch.cat(levels, 1), Anchors.of(features))


def mhsanet50(neuron: Factory, width: float = 1.0, in_channels: int = 3) -> MHSANet:
    """The published backbone (24w 4s, expansion 2): stages of 128, 256, 512 and 1024 channels times ``width``."""
    return MHSANet(
        [3, 4, 6, 3],
        None,
        neuron,
        in_channels,
        base_width=24,
        cardinality=4,
        stem="imagenet",
        planes=int(64 * width),
        expansion=2,
    )


class Detector(nn.Module):
    """MHSANet-50, PAFPN and head: images [N, C, H, W] or frames [T, N, C, H, W] -> :class:`Predictions`.

    Published, with ``neuron=MSF(D=8)`` and T = 1: 76,384,287 parameters for the 80 classes of COCO, 76,324,149 for
    the 2 of Gen1, 76,324,920 for the 3 of 1 Mpx. Height and width may be any; 32 divides them best.

    Args:
        classes: of objects.
        neuron: called with the channels of each site.
        width: of all three parts; 1/8 has about a million parameters.
        depth: of the neck, which has ``round(3 * depth)`` bottlenecks in each C3.
        steps: an image is repeated so many times.
        frames: takes frames [T, N, C, H, W] instead of images.
        in_channels: of images or frames.
    """

    def __init__(
        self,
        classes: int,
        neuron: Factory,
        width: float = 1.0,
        depth: float = 1.0,
        steps: int = 1,
        frames: bool = False,
        in_channels: int = 3,
    ):
        super().__init__()
        self.time_first_input = "TNCHW" if frames else "NCHW"
        self.steps = steps
        self.classes = classes
        channels = tuple(int(c * width) for c in CHANNELS)
        self.backbone = mhsanet50(neuron, width, in_channels)
        self.neck = PAFPN(channels, max(1, round(3 * depth)), neuron)
        self.head = Head(channels, int(256 * width), classes, neuron)

    def forward(self, x: Tensor) -> Predictions:
        if x.dim() == 4:
            x = x.unsqueeze(0).expand(self.steps, *x.shape)
        features = self.backbone(x)
        return self.head(self.neck(features[1:]))
