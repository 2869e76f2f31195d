"""Prophesee's evaluation of boxes in recordings of events: which count, and which are compared.

Boxes are structured arrays with the fields t (microseconds), x, y, w, h (pixels, the corner at the top left), class_id
and class_confidence, as :func:`recipes.data.prophesee.read_boxes` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .metric import average_precision, coco_statistics

__all__ = ["GEN1", "MEGAPIXEL", "BoxFilter", "Moment", "evaluate", "moments"]

TOLERANCE = 50_000
"""Microseconds by which the time of a detection may differ from that of the label."""


@dataclass(frozen=True)
class BoxFilter:
    """Boxes count, labelled or detected, after ``skip`` microseconds of a recording and if they are large enough.

    Prophesee's own script takes ``skip=100_000``, and the sides 20 for Gen1 and 10 for 1 Mpx; papers take those here.
    Its boxes are as they were given; those of papers are cut to the sensor before (:meth:`cut`), whose greatest x and y
    ``edge`` are.
    """

    skip: int
    diagonal: float
    side: float
    edge: tuple[float, float] = (math.inf, math.inf)

    def cut(self, corners: np.ndarray) -> np.ndarray:
        """Boxes [n, 4], x1, y1, x2, y2, without what lies outside of the sensor."""
        return corners.clip(0, np.array(self.edge * 2, corners.dtype))

    def large(self, width: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Which boxes of these sizes count."""
        return (width**2 + height**2 >= self.diagonal**2) & (np.minimum(width, height) >= self.side)

    def __call__(self, boxes: np.ndarray) -> np.ndarray:
        return boxes[(boxes["t"] > self.skip) & self.large(boxes["w"], boxes["h"])]

    def scaled(self, factor: float) -> BoxFilter:
        """For frames ``factor`` times as large as the sensor."""
        x, y = self.edge
        return BoxFilter(self.skip, self.diagonal * factor, self.side * factor, (x * factor, y * factor))


GEN1 = BoxFilter(500_000, 30, 10)
MEGAPIXEL = BoxFilter(500_000, 60, 20)


class Moment(NamedTuple):
    """The boxes at one labelled time of a recording and those detected around it."""

    labelled: np.ndarray
    found: np.ndarray


def moments(
    labelled: np.ndarray, found: np.ndarray, keep: BoxFilter, tolerance: int = TOLERANCE
) -> Iterator[Moment]:
    """The labelled times of a recording, in order; detections far from all of them count nowhere."""
    labelled, found = keep(labelled), keep(found)
    for time in np.unique(labelled["t"]):
        near = (found["t"] >= time - tolerance) & (found["t"] <= time + tolerance)
        yield Moment(labelled[labelled["t"] == time], found[near])


def evaluate(labelled: list[np.ndarray], found: list[np.ndarray], keep: BoxFilter) -> np.ndarray:
    """COCO's twelve numbers over recordings.

    Args:
        labelled, found: boxes of each recording, in the same order.
        keep: which boxes count.
    """
    metric = average_precision("xywh")
    for truth, guess in zip(labelled, found, strict=True):
        for moment in moments(truth, guess, keep):
            scores = torch.from_numpy(moment.found["class_confidence"].astype(np.float32))
            metric.update(
                [{**tensors(moment.found), "scores": scores}],
                [tensors(moment.labelled)],
            )
    return coco_statistics(metric.compute())


def tensors(boxes: np.ndarray) -> dict[str, Tensor]:
    """What torchmetrics takes."""
    corners = np.stack([boxes[name] for name in ("x", "y", "w", "h")], 1).astype(np.float32)
    return {
        "boxes": torch.from_numpy(corners),
        "labels": torch.from_numpy(boxes["class_id"].astype(np.int64)),
    }
