"""Which anchors answer for which object: SimOTA, after YOLOX (Ge et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou

from ..models.detector import Anchors

__all__ = ["Assignment", "assign"]

RADIUS = 1.5
"""An anchor is near an object whose centre is closer than this many strides in x and in y."""
FAR = 1e6
BEST = 10


@dataclass(frozen=True)
class Assignment:
    """For an image: which of its A anchors are ``positive``; for these P the ``objects`` that they answer for, [P]
    rows of the labels, and their ``ious`` [P] with them.
    """

    positive: Tensor
    objects: Tensor
    ious: Tensor


@torch.no_grad()
def assign(decoded: Tensor, labels: Tensor, anchors: Anchors) -> Assignment:
    """Assign anchors to the objects of one image.

    An object takes as many of its cheapest candidates as the sum of its ten best IoU says; an anchor taken twice goes
    to the object for which it is cheapest. An object out of reach of all candidates still takes one of them; an image
    without any candidate has no positives.

    Args:
        decoded: [A, 5 + classes], boxes cx, cy, w, h in pixels, the rest logits.
        labels: [G, 5] class, cx, cy, w, h in pixels, without padding.
    """
    near = _near(labels, anchors)  # [G, A]
    candidates = near.any(0)
    if len(labels) == 0 or not candidates.any():
        nothing = labels.new_zeros(0)
        return Assignment(torch.zeros_like(anchors.x, dtype=torch.bool), nothing.long(), nothing)
    rows, near = decoded[candidates], near[:, candidates]
    boxes = box_convert(labels[:, 1:], "cxcywh", "xyxy").to(rows.dtype)
    ious = box_iou(boxes, box_convert(rows[:, :4], "cxcywh", "xyxy"))
    cost = _class_cost(rows, labels[:, 0].long()) + 3 * -(ious + 1e-8).log() + FAR * ~near
    taken = _cheapest(cost, ious)
    twice = taken.sum(0) > 1
    if twice.any():
        owner = cost[:, twice].argmin(0)
        taken[:, twice] = F.one_hot(owner, len(cost)).T.bool()
    chosen = taken.any(0)
    objects = taken[:, chosen].int().argmax(0)
    positive = candidates.clone()
    positive[candidates] = chosen
    return Assignment(positive, objects, ious[objects, chosen.nonzero().squeeze(1)])


def _near(labels: Tensor, anchors: Anchors) -> Tensor:
    """[G, A]: the centre of the anchor is near that of the object."""
    reach = RADIUS * anchors.stride
    x, y = ((place + 0.5) * anchors.stride for place in (anchors.x, anchors.y))
    return ((x - labels[:, 1:2]).abs() < reach) & ((y - labels[:, 2:3]).abs() < reach)


def _class_cost(rows: Tensor, classes: Tensor) -> Tensor:
    """[G, candidates]: cross-entropy of the geometric mean of class probability and objectness, in float32."""
    with torch.autocast(rows.device.type, enabled=False):
        mean = (rows[:, 5:].float().sigmoid() * rows[:, 4:5].float().sigmoid()).sqrt()
        wanted = F.one_hot(classes, mean.shape[1]).float()
        each = [F.binary_cross_entropy(mean, w.expand_as(mean), reduction="none").sum(1) for w in wanted]
    return torch.stack(each)


def _cheapest(cost: Tensor, ious: Tensor) -> Tensor:
    """[G, candidates]: those that each object takes."""
    count = ious.topk(min(BEST, ious.shape[1]), dim=1).values.sum(1).int().clamp(min=1)
    taken = torch.zeros_like(cost, dtype=torch.bool)
    for row, own, k in zip(taken, cost, count.tolist(), strict=True):
        row[own.topk(k, largest=False).indices] = True
    return taken
