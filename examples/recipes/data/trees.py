"""Real boxes without a download of their own: the aerial photographs that come with the package deepforest.

``pip install --no-deps deepforest`` suffices: the package is found, not imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from .. import RecipeError
from .detection import DetectionData, require_inside
from .drawing import BORDER
from .files import Fault, reading
from .scenes import Scene, within

__all__ = ["AerialTrees"]

PARTS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop"),
    "val": ("SOAP_061",),
    "test": ("OSBS_029",),
}
"""Photographs of four places, so that no tree is in two parts."""


def read_voc(path: Path) -> np.ndarray:
    """The boxes [n, 5] of an annotation file in Pascal VOC's format, all of class 0."""
    with reading(path):
        found = ElementTree.parse(path).getroot().findall("object")
        corners = [
            [float(one.findtext(f"bndbox/{name}", "nan")) for name in ("xmin", "ymin", "xmax", "ymax")]
            for one in found
        ]
        return np.array([[*corner, 0] for corner in corners]).reshape(-1, 5)


class Tiles:
    """Squares of some photographs and the boxes whose centre lies in them, cut to them.

    Args:
        overlap: the last square of a row or column ends with the photograph and overlaps the one before, so that some
            trees are in both; else it goes beyond, grey there, and every tree is in one.
    """

    def __init__(self, paths: list[Path], size: int, overlap: bool):
        self.paths = paths
        self.size = size
        self.tiles = []
        for path in paths:
            image_path = path.with_suffix(".png")
            with reading(image_path), Image.open(image_path) as file:
                image = np.asarray(file.convert("RGB"))[..., ::-1]
            if min(image.shape[:2]) < size:
                raise Fault(f"{image_path} is smaller than a tile of {size} pixels; give a smaller data.tile")
            boxes = read_voc(path)
            require_inside(boxes, image.shape[:2], str(path))
            boxes[:, :4] = within(boxes[:, :4], *image.shape[:2])
            for y in starts(image.shape[0], size, overlap):
                for x in starts(image.shape[1], size, overlap):
                    self.tiles.append((path, (x, y), self.cut(image, boxes, x, y)))

    def cut(self, image: np.ndarray, boxes: np.ndarray, x: int, y: int) -> Scene:
        moved = boxes - (x, y, x, y, 0)
        centre = (moved[:, :2] + moved[:, 2:4]) / 2
        mine = moved[((centre >= 0) & (centre < self.size)).all(1)]
        mine[:, :4] = within(mine[:, :4], self.size, self.size)
        part = image[y : y + self.size, x : x + self.size]
        below, right = self.size - part.shape[0], self.size - part.shape[1]
        return Scene(np.pad(part, ((0, below), (0, right), (0, 0)), constant_values=BORDER), mine)

    def __len__(self):
        return len(self.tiles)

    def name(self, index: int) -> str:
        path, (x, y), _ = self.tiles[index]
        return f"{path} at {x}, {y}"

    def shape(self, index: int) -> tuple[int, int]:
        return self.size, self.size

    def boxes(self, index: int) -> np.ndarray:
        return self.tiles[index][2].boxes

    def __getitem__(self, index: int) -> Scene:
        return self.tiles[index][2]


def starts(length: int, size: int, overlap: bool) -> list[int]:
    """Where tiles begin that cover ``length``."""
    return [*range(0, length - size, size), length - size] if overlap else [*range(0, length, size)]


class AerialTrees(DetectionData):
    """Trees in aerial photographs, in square tiles: [N, 3, height, width], one class.

    Validated and tested is each tree once, in the tile that holds its centre, cut to it; training tiles may overlap.

    Args:
        tile: pixels of a side.
        root: folder of the photographs; None: that of the installed package deepforest.
    """

    layout = "NCHW"
    classes = 1
    names = ("tree",)
    tree = "the files of `pip install --no-deps deepforest`"

    def __init__(
        self,
        tile: int = 128,
        root: str | None = None,
        height: int = 128,
        width: int = 128,
        **common: Any,
    ):
        if root is None:
            spec = find_spec("deepforest")
            if spec is None or spec.origin is None:
                raise RecipeError(
                    "the photographs come with a package that is not installed: pip install --no-deps deepforest"
                )
            root = str(Path(spec.origin).parent / "data")
        super().__init__(root=root, height=height, width=width, **common)
        if tile < 32:
            raise RecipeError(f"data.tile must be 32 pixels or more, got {tile}")
        self.tile = tile

    @property
    def remedy(self):
        return "install deepforest anew: pip install --no-deps --force-reinstall deepforest"

    def open(self, split):
        paths = [self.root / f"{name}.xml" for name in PARTS[split]]
        return Tiles(paths, self.tile, overlap=split == "train")
