"""COCO, or any images with boxes in its format, as torchvision reads it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import CocoDetection

from .. import RecipeError
from .detection import DetectionData, require_inside
from .files import Fault, reading
from .images import require_all_whole
from .scenes import Scene, within

__all__ = ["COCO"]

PUBLISHED = {"train": 118_287, "test": 5_000}
"""Images of the parts of 2017."""


class CocoScenes:
    """The images of one annotation file: BGR bytes, boxes cut to the image, class k is the k-th of the category ids.

    Raises:
        Fault: an annotation file that is no COCO file, or that names images which are not there.
    """

    def __init__(self, folder: Path, annotations: Path):
        self.folder = folder
        self.annotations = annotations
        with reading(annotations), contextlib.redirect_stdout(io.StringIO()):  # it prints how long it took
            self.coco = CocoDetection(str(folder), str(annotations))
            index = self.coco.coco
            if not index.dataset.get("categories"):
                raise ValueError("it has no categories")
            self.categories = {k: i for i, k in enumerate(sorted(index.cats))}
            self.classes = tuple(index.cats[k]["name"] for k in sorted(index.cats))
            self.entries = [index.imgs[k] for k in self.coco.ids]
            self.found = [self._boxes(i) for i in range(len(self.entries))]

    def _boxes(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes and crowds [n, 5] of an image, without those that have no area."""
        entries = self.coco._load_target(self.coco.ids[index])
        rows = [[*entry["bbox"], self.categories[entry["category_id"]]] for entry in entries]
        crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in entries], bool)
        boxes = np.array(rows, float).reshape(-1, 5)
        some = (boxes[:, 2:4] > 0).all(1)  # COCO has a few without area
        boxes[:, 2:4] += boxes[:, :2]
        require_inside(boxes[some], self.shape(index), f"{self.name(index)} of {self.annotations}")
        boxes[:, :4] = within(boxes[:, :4], *self.shape(index))
        return boxes[some & ~crowd], boxes[some & crowd]

    def __len__(self):
        return len(self.entries)

    def name(self, index: int) -> str:
        return str(self.folder / self.entries[index]["file_name"])

    def shape(self, index: int) -> tuple[int, int]:
        return self.entries[index]["height"], self.entries[index]["width"]

    def boxes(self, index: int) -> np.ndarray:
        return self.found[index][0]

    def __getitem__(self, index: int) -> Scene:
        path = Path(self.name(index))
        with reading(path), Image.open(path) as file:
            image = np.asarray(file.convert("RGB"))[..., ::-1]
        if image.shape[:2] != self.shape(index):
            raise Fault(
                f"{path} has {image.shape[0]} x {image.shape[1]} pixels, {self.annotations} says "
                f"{' x '.join(map(str, self.shape(index)))}"
            )
        return Scene(image, *self.found[index])


class COCO(DetectionData):
    """COCO 2017, or your own images in its format (``verify`` false): BGR [N, 3, height, width], 0..255.

    The published validation images are the test set here; ``val_fraction`` of the training images selects the model.

    Args:
        classes: categories; their order is that of their ids.
        train, test: names of the two image folders, and ends of the names of their annotation files.
    """

    layout = "NCHW"
    tree = "train2017/*.jpg, val2017/*.jpg, annotations/instances_train2017.json, annotations/instances_val2017.json"

    def __init__(
        self,
        classes: int = 80,
        train: str = "train2017",
        test: str = "val2017",
        val_fraction: float = 0.02,
        **common: Any,
    ):
        super().__init__(val_fraction=val_fraction, **common)
        self.classes = classes
        self.folders = {"train": train, "test": test}

    @property
    def remedy(self):
        return "put the publisher's files, or your own images and annotations, in their place"

    def open(self, split):
        if split == "val":
            return None
        name = self.folders[split]
        source = CocoScenes(self.root / name, self.root / "annotations" / f"instances_{name}.json")
        if len(source.classes) != self.classes:
            raise RecipeError(
                f"{source.annotations} has {len(source.classes)} categories, data.classes is {self.classes}"
            )
        if self.verify and len(source) != PUBLISHED[split]:
            raise Fault(
                f"COCO 2017 has {PUBLISHED[split]} {split} images, {len(source)} are in {source.annotations}; for your "
                "own images give --data.verify false"
            )
        self.names = source.classes
        return source

    def examine(self, sources: dict[str, Any]) -> None:
        read = [source for source in sources.values() if source is not None]
        require_all_whole(Path(source.name(i)) for source in read for i in range(len(source)))
