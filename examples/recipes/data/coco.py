"""COCO, or any images with boxes in its format."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from .. import RecipeError
from .detection import DetectionData, require_inside
from .files import Fault, reading, require_apart
from .images import require_all_whole
from .scenes import Scene, within

__all__ = ["COCO"]

PUBLISHED = {"train": 118_287, "test": 5_000}
"""Images of the parts of 2017."""
OVERHANG = 2
"""Pixels by which a box may reach outside of its image: rounded ones do."""


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class CocoScenes:
    """The images of one annotation file: BGR bytes, boxes cut to the image, class k is the k-th of the category ids.

    The ids of annotations without area, which are left out, are ``flat``.

    Raises:
        Fault: an annotation file that is no COCO file.
        RecipeError: what it says of an image or a box cannot be.
    """

    def __init__(self, folder: Path, annotations: Path):
        self.folder = folder
        self.annotations = annotations
        self.flat: list[Any] = []
        with reading(annotations):
            content = json.loads(annotations.read_bytes())
            if not isinstance(content, dict):
                raise ValueError("it holds no images, annotations and categories")
            categories = self._listed(content, "categories", "name")
            if not categories:
                raise ValueError("it has no categories")
            self.categories = {k: str(categories[k]["name"]) for k in sorted(categories)}
            images = self._listed(content, "images", "file_name", "height", "width")
            self.entries = [images[k] for k in sorted(images)]
            self._require_images()
            boxes = self._listed(content, "annotations", "image_id", "category_id", "bbox")
            self.found = self._boxes(list(boxes.values())) if images else []

    def _listed(self, content: dict[str, Any], kind: str, *keys: str) -> dict[Any, dict[str, Any]]:
        """What the file lists under ``kind``, by id; every entry has an id of its own, and ``keys``."""
        entries: dict[Any, dict[str, Any]] = {}
        for i, entry in enumerate(content.get(kind) or []):
            for key in ("id", *keys):
                if not isinstance(entry, dict) or key not in entry:
                    raise RecipeError(
                        f"{kind}[{i}] of {self.annotations} has no {key!r}; add it, or take it out"
                    )
            if entries.setdefault(entry["id"], entry) is not entry:
                raise RecipeError(
                    f"{kind}[{i}] of {self.annotations} has the id {entry['id']}, as one before it; give each its own, "
                    "and list it once"
                )
        return entries

    def _require_images(self) -> None:
        """Sizes are numbers, and no file is listed twice."""
        names: dict[str, Any] = {}
        for index, entry in enumerate(self.entries):
            if not all(is_number(size) and size > 0 for size in self.shape(index)):
                raise RecipeError(
                    f"image {entry['id']} of {self.annotations} has height {entry['height']} and width "
                    f"{entry['width']}; give its pixels"
                )
            first = names.setdefault(os.path.normpath(self.name(index)), entry["id"])
            if first != entry["id"]:
                raise RecipeError(
                    f"images {first} and {entry['id']} of {self.annotations} are one file, {entry['file_name']}; "
                    "list it once, with all of its annotations"
                )

    def _boxes(self, annotations: list[dict[str, Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Boxes and crowds [n, 5] of each image."""
        places = {entry["id"]: index for index, entry in enumerate(self.entries)}
        classes = {k: i for i, k in enumerate(self.categories)}
        rows: list[list[list[float]]] = [[] for _ in places]
        for entry in annotations:
            for key, known in (("image_id", places), ("category_id", classes)):
                if entry[key] not in known:
                    raise RecipeError(
                        f"annotation {entry['id']} of {self.annotations} has {key} {entry[key]}, which the file does "
                        "not list; correct it or take it out"
                    )
            x, y, width, height = self._corner_and_size(entry)
            if not width or not height:  # COCO has a few
                self.flat.append(entry["id"])
                continue
            row = [x, y, x + width, y + height, classes[entry["category_id"]], bool(entry.get("iscrowd", 0))]
            rows[places[entry["image_id"]]].append(row)
        return [self._cut(index, np.array(mine, float).reshape(-1, 6)) for index, mine in enumerate(rows)]

    def _corner_and_size(self, entry: dict[str, Any]) -> list[float]:
        bbox = entry["bbox"]
        if (
            not isinstance(bbox, list)
            or len(bbox) != 4
            or not all(is_number(value) for value in bbox)
            or min(bbox[2:]) < 0
        ):
            raise RecipeError(
                f"annotation {entry['id']} of {self.annotations} has the bbox {bbox}; x, y, width and height in pixels "
                "are needed, the latter two not negative; correct it or take it out"
            )
        return bbox

    def _cut(self, index: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes and crowds of an image, from rows [n, 6] of boxes, some of which reach outside, and 1 for a crowd."""
        boxes, crowd = rows[:, :5], rows[:, 5] == 1
        shape, where = self.shape(index), f"{self.name(index)} of {self.annotations}"
        require_inside(boxes, shape, where)
        inside = within(boxes[:, :4], *shape)
        overhang = np.abs(boxes[:, :4] - inside).max(1)
        if (overhang > OVERHANG).any():
            x1, y1, x2, y2 = boxes[overhang.argmax(), :4]
            raise RecipeError(
                f"{where} has a box that reaches {overhang.max():g} pixels outside of its {shape[1]} x {shape[0]}: "
                f"{x1:g}, {y1:g} to {x2:g}, {y2:g}; is its bbox x, y, width, height? Correct it, or cut it to the image"
            )
        boxes[:, :4] = inside
        return boxes[~crowd], boxes[crowd]

    def __len__(self):
        return len(self.entries)

    def name(self, index: int) -> str:
        return str(self.folder / self.entries[index]["file_name"])

    def shape(self, index: int) -> tuple[int, int]:
        return self.entries[index]["height"], self.entries[index]["width"]

    def boxes(self, index: int) -> np.ndarray:
        return self.found[index][0]

    def files(self) -> list[Path]:
        return [self.annotations, *(Path(self.name(i)) for i in range(len(self)))]

    @contextmanager
    def opened(self, index: int) -> Iterator[Image.Image]:
        """The file of an image, no more than its header read; RecipeError where that has another size."""
        path = Path(self.name(index))
        with reading(path), Image.open(path) as file:
            (width, height), (wanted_height, wanted_width) = file.size, self.shape(index)
            if (height, width) != (wanted_height, wanted_width):
                raise RecipeError(
                    f"{path} is {width} pixels wide and {height} high, {self.annotations} says {wanted_width} and "
                    f"{wanted_height}; correct that, or put the image that was annotated in its place (EXIF turns none)"
                )
            yield file

    def __getitem__(self, index: int) -> Scene:
        with self.opened(index) as file:
            image = np.asarray(file.convert("RGB"))[..., ::-1]
        return Scene(image, *self.found[index])


def require_same_categories(train: CocoScenes, test: CocoScenes) -> None:
    """Else class k would be one thing in training and another in the test."""
    differ = train.categories.items() ^ test.categories.items()
    if differ:
        k = min((k for k, _ in differ), key=str)
        raise RecipeError(
            f"category {k} is {train.categories.get(k, 'missing')} in {train.annotations}, "
            f"{test.categories.get(k, 'missing')} in {test.annotations}; give both files the same ids and names"
        )


class COCO(DetectionData):
    """COCO 2017, or your own images in its format (``verify`` false): BGR [N, 3, height, width], 0..255.

    The published validation images are the test set here; ``val_fraction`` of the training images selects the model.

    Args:
        classes: categories; their order is that of their ids.
        train, test: names of the two image folders, and ends of the names of their annotation files.
    """

    layout = "NCHW"
    division = ("train",)
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
        if train == test:
            raise RecipeError(
                f"data.train and data.test are both {train}; give the test images a folder of their own"
            )
        self.classes = classes
        self.folders = {"train": train, "test": test}

    @property
    def remedy(self):
        return "put the publisher's files, or your own images and annotations, in their place"

    def sources(self):
        opened = super().sources()
        require_same_categories(opened["train"], opened["test"])
        self.names = tuple(opened["train"].categories.values())
        return opened

    def open(self, split):
        if split == "val":
            return None
        name = self.folders[split]
        source = CocoScenes(self.root / name, self.root / "annotations" / f"instances_{name}.json")
        if len(source.categories) != self.classes:
            raise RecipeError(
                f"{source.annotations} has {len(source.categories)} categories, data.classes is {self.classes}"
            )
        if self.verify and len(source) != PUBLISHED[split]:
            raise Fault(
                f"COCO 2017 has {PUBLISHED[split]} {split} images, {len(source)} are in {source.annotations}; for your "
                "own images give --data.verify false"
            )
        if source.flat:
            rank_zero_warn(
                f"{len(source.flat)} boxes of {source.annotations} have no width or no height and are left out, the "
                f"first is annotation {source.flat[0]}"
            )
        return source

    def examine(self, sources: dict[str, Any]) -> None:
        def require_size(place: tuple[CocoScenes, int]) -> None:
            source, index = place
            with source.opened(index):
                pass

        places = [
            (source, i) for source in sources.values() if source is not None for i in range(len(source))
        ]
        require_all_whole(Path(source.name(i)) for source, i in places)
        with ThreadPoolExecutor() as pool:
            list(pool.map(require_size, places))
        if not self.verify:  # the published parts are
            require_apart(*(sources[split].files() for split in ("train", "test")))
