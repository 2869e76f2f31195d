"""Pictures of images and event frames with labelled and detected boxes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F
from torchvision.io import write_png
from torchvision.ops import box_convert
from torchvision.utils import draw_bounding_boxes, make_grid

from .boxes import Detections

if TYPE_CHECKING:
    from ..data.detection import Batch, DetectionData

__all__ = ["draw"]

LEAST = 160
"""Smaller pictures are enlarged."""
SURE = 0.3
"""Detections of a lower score are not drawn."""


def draw(path: Path, data: DetectionData, batch: Batch, found: list[Detections]) -> None:
    """Write a PNG: labelled boxes above, detected ones below, a column for each image of ``found``.

    Args:
        data: knows how its images look, and the names of the classes.
        batch: arranged; boxes are in pixels of its ``x``.
    """
    labelled, detected = [], []
    for i, detections in enumerate(found):
        x = batch.x[:, i] if data.layout.startswith("T") else batch.x[i]
        picture = data.picture(x.detach().float().cpu())
        rows = batch.labels[i][batch.labels[i].sum(1) > 0]
        corners = box_convert(rows[:, 1:], "cxcywh", "xyxy")
        labelled.append(boxed(picture, corners, rows[:, 0], None, data.names, "lime"))
        sure = detections.scores >= SURE
        boxes, labels, scores = (
            part[sure] for part in (detections.boxes, detections.labels, detections.scores)
        )
        detected.append(boxed(picture, boxes, labels, scores, data.names, "red"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(make_grid([*labelled, *detected], nrow=len(found), padding=4, pad_value=255), str(path))


def boxed(
    picture: Tensor,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None,
    names: tuple[str, ...],
    colour: str,
) -> Tensor:
    """``picture`` uint8 [3, H, W] with named boxes [n, 4]."""
    factor = max(1, -(-LEAST // min(picture.shape[1:])))
    picture = F.interpolate(picture[None].float(), scale_factor=factor)[0].byte()
    boxes = (boxes.float().cpu() * factor).clamp(min=0)
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes, labels = boxes[visible], labels.cpu()[visible]
    if not len(boxes):
        return picture
    texts = [names[int(k)] if names else str(int(k)) for k in labels]
    if scores is not None:
        texts = [
            f"{text} {score:.2f}" for text, score in zip(texts, scores.cpu()[visible].tolist(), strict=True)
        ]
    return draw_bounding_boxes(picture, boxes, texts, colors=colour)
