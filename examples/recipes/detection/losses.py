"""What a detector is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.detector import Anchors
from .boxes import encode
from .simota import assign

__all__ = ["Losses", "losses", "overlap_loss"]

WEIGHT = 5.0
"""Of the IoU loss."""


@dataclass(frozen=True)
class Losses:
    """The parts of the loss of a batch, scalars, each divided by the number of positive anchors (at least 1).

    ``boxes`` is weighted already; ``l1`` is 0 where it is off; ``positives`` is the number of positive anchors for each
    object, which is no loss.
    """

    boxes: Tensor
    objectness: Tensor
    classes: Tensor
    l1: Tensor
    positives: float

    @property
    def total(self) -> Tensor:
        return self.boxes + self.objectness + self.classes + self.l1


def overlap_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - IoU^2 of ``boxes`` [P, 4] with ``targets`` [P, 4], both cx, cy, w, h: [P]."""
    low = torch.maximum(boxes[:, :2] - boxes[:, 2:] / 2, targets[:, :2] - targets[:, 2:] / 2)
    high = torch.minimum(boxes[:, :2] + boxes[:, 2:] / 2, targets[:, :2] + targets[:, 2:] / 2)
    common = (high - low).prod(1) * (low < high).all(1)
    union = boxes[:, 2:].prod(1) + targets[:, 2:].prod(1) - common
    return 1 - (common / (union + 1e-16)) ** 2


def losses(decoded: Tensor, anchors: Anchors, labels: Tensor, boxes: Tensor | None = None) -> Losses:
    """The losses of a batch.

    Args:
        decoded: [N, A, 5 + classes], boxes cx, cy, w, h in pixels, the rest logits.
        labels: [N, R, 5] class, cx, cy, w, h in pixels of the network's input; zeros follow the objects.
        boxes: the numbers [N, A, 4] that the boxes were decoded from, where they are compared too (the L1 loss of the
            last epochs).
    """
    count = decoded.new_zeros(())
    objects = 0
    positive, wanted_boxes, wanted_classes = [], [], []
    for rows, padded in zip(decoded.detach(), labels.to(decoded.dtype), strict=True):
        mine = padded[: int((padded.sum(1) > 0).sum())]
        found = assign(rows, mine, anchors)
        chosen = mine[found.objects]
        positive.append(found.positive)
        wanted_boxes.append(chosen[:, 1:])
        # the class counts as far as the box overlaps
        wanted_classes.append(
            F.one_hot(chosen[:, 0].long(), rows.shape[1] - 5) * found.ious.unsqueeze(1).to(rows.dtype)
        )
        count, objects = count + found.positive.sum(), objects + len(mine)
    at = torch.stack(positive)  # [N, A]
    targets, share = torch.cat(wanted_boxes), count.clamp(min=1)
    chosen_rows = decoded[at]
    objectness = F.binary_cross_entropy_with_logits(decoded[..., 4], at.to(decoded.dtype), reduction="sum")
    classes = F.binary_cross_entropy_with_logits(
        chosen_rows[:, 5:], torch.cat(wanted_classes), reduction="sum"
    )
    plain = decoded.new_zeros(())
    if boxes is not None:
        x, y, stride = (part.expand(at.shape)[at] for part in (anchors.x, anchors.y, anchors.stride))
        plain = F.l1_loss(boxes[at], encode(targets, x, y, stride), reduction="sum")
    return Losses(
        boxes=WEIGHT * overlap_loss(chosen_rows[:, :4], targets).sum() / share,
        objectness=objectness / share,
        classes=classes / share,
        l1=plain / share,
        positives=float(share) / max(objects, 1),
    )
