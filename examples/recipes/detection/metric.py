"""Average precision as COCO computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torchmetrics.detection import MeanAveragePrecision

__all__ = ["average_precision", "coco_statistics"]

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


def coco_statistics(result: dict[str, Any]) -> np.ndarray:
    """The twelve numbers that COCO's own evaluation prints, in its order; -1 where there is no such box."""
    return np.array([float(result[name]) for name in STATISTICS])
