"""From a detector's numbers to boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, nms

from ..models.detector import Anchors

__all__ = ["Detections", "decode", "detect", "encode", "probabilities"]


def decode(raw: Tensor, anchors: Anchors) -> Tensor:
    """``raw`` [N, A, 5 + classes] with its first four as boxes (cx, cy, w, h) in pixels of the network's input."""
    stride = anchors.stride.to(raw.dtype)
    shift = torch.stack([anchors.x, anchors.y], -1).to(raw.dtype)
    centre = (raw[..., :2] + shift) * stride[:, None]
    size = raw[..., 2:4].exp() * stride[:, None]
    return torch.cat([centre, size, raw[..., 4:]], -1)


def encode(boxes: Tensor, x: Tensor, y: Tensor, stride: Tensor) -> Tensor:
    """What ``raw`` must be for ``boxes`` [P, 4] (cx, cy, w, h) at P anchors: the targets of the L1 loss."""
    places = torch.stack([x, y], 1).to(boxes.dtype)
    stride = stride.to(boxes.dtype).unsqueeze(1)
    return torch.cat([boxes[:, :2] / stride - places, (boxes[:, 2:] / stride + 1e-8).log()], 1)


def probabilities(decoded: Tensor) -> Tensor:
    """Boxes as they are, objectness and classes through the sigmoid."""
    return torch.cat([decoded[..., :4], decoded[..., 4:].sigmoid()], -1)


@dataclass(frozen=True)
class Detections:
    """What was found in one image: ``boxes`` [D, 4] (x1, y1, x2, y2), and for each its ``objectness`` [D], the
    probability ``certainty`` [D] of its class, and the class, ``labels`` [D].
    """

    boxes: Tensor
    objectness: Tensor
    certainty: Tensor
    labels: Tensor

    @property
    def scores(self) -> Tensor:
        """Objectness times certainty, [D]: what orders the detections."""
        return self.objectness * self.certainty

    def scaled(self, factor: float) -> Detections:
        """The same with boxes ``factor`` times as large: from the network's input back to the image."""
        return Detections(self.boxes * factor, self.objectness, self.certainty, self.labels)


def detect(
    predictions: Tensor, threshold: float = 0.01, overlap: float = 0.65, agnostic: bool = False
) -> list[Detections]:
    """The detections of each image, best first.

    Args:
        predictions: decoded [N, A, 5 + classes], as :func:`probabilities` gives them.
        threshold: least score.
        overlap: of two boxes of a class whose IoU is larger, the one of lower score goes.
        agnostic: of any two classes.
    """
    found = []
    for rows in predictions:
        certainty, labels = rows[:, 5:].max(1)
        scores = rows[:, 4] * certainty
        rows, certainty, labels = (part[scores >= threshold] for part in (rows, certainty, labels))
        scores = scores[scores >= threshold]
        corners = box_convert(rows[:, :4], "cxcywh", "xyxy")
        keep = nms(corners, scores, overlap) if agnostic else batched_nms(corners, scores, labels, overlap)
        found.append(Detections(corners[keep], rows[keep, 4], certainty[keep], labels[keep]))
    return found
