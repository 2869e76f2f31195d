"""Average precision as COCO computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from .boxes import Detections

__all__ = ["average_precision", "coco_statistics", "predicted", "truths"]

STATISTICS = (
    "map",
    "map_50",
    "map_75",
    "map_small",
    "map_medium",
    "map_large",
    "mar_1",
    "mar_10",
    "mar_100",
    "mar_small",
    "mar_medium",
    "mar_large",
)


def average_precision(box_format: str = "xyxy") -> MeanAveragePrecision:
    """The metric, with thresholds in float64: torchmetrics' own are float32 and change AP by up to 0.007."""
    return MeanAveragePrecision(
        box_format=box_format,
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
        backend="pycocotools",
    )


def predicted(found: Detections) -> dict[str, Tensor]:
    """The detections of an image for the metric, in its pixels."""
    return {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}


def truths(padded: Tensor) -> list[dict[str, Tensor]]:
    """The labelled boxes of each image for the metric, in its pixels, from the ``truth`` of a batch."""
    rows = [part[part[:, 4] >= 0] for part in padded]
    return [
        {"boxes": part[:, :4].float(), "labels": part[:, 4].long(), "iscrowd": part[:, 5].long()}
        for part in rows
    ]


def coco_statistics(result: dict[str, Any]) -> np.ndarray:
    """The twelve numbers that COCO's own evaluation prints, in its order; -1 where there is no such box."""
    return np.array([float(result[name]) for name in STATISTICS])
