"""Images with boxes, and how they are augmented: mosaic, affine, mixup, colours, flip, letterbox, as YOLOX does.

The random numbers are Python's and NumPy's global ones, drawn in the published order: a seed gives the published item.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from .. import RecipeError
from .drawing import BORDER, Drawing

__all__ = [
    "Affine",
    "Augmentation",
    "Item",
    "Scene",
    "Scenes",
    "flipped",
    "letterboxed",
    "mosaic",
    "placed",
    "within",
]


@dataclass(frozen=True)
class Scene:
    """``image`` uint8 [H, W, C] and its ``boxes`` float64 [n, 5]: x1, y1, x2, y2 in pixels, class.

    ``crowd`` [m, 5] marks groups of objects that a detection may meet without being wrong, and are not trained on.
    """

    image: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))


class Scenes(Protocol):
    """Where scenes come from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...

    def boxes(self, index: int) -> np.ndarray:
        """The boxes of a scene, without reading its image."""


@dataclass(frozen=True)
class Item:
    """What a network is given: ``image`` uint8 [H, W, C] and ``labels`` float32 [rows, 5]: class, cx, cy, w, h in
    pixels of it, then zeros. The scene was made ``ratio`` times as large.
    """

    image: np.ndarray
    labels: np.ndarray
    ratio: float = 1.0


@dataclass(frozen=True)
class Affine:
    """A map of the plane: turned by ``angle`` and sheared (degrees), scaled, then shifted by parts of the target."""

    angle: float
    scale: float
    shear_x: float
    shear_y: float
    shift_x: float
    shift_y: float

    def matrix(self, height: int, width: int) -> np.ndarray:
        """[2, 3], for a target of this size."""
        angle, x, y = (math.radians(a) for a in (self.angle, self.shear_x, self.shear_y))
        turn = self.scale * np.array(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
        shear = np.array([[1, math.tan(y)], [math.tan(x), 1]])
        return np.column_stack([shear @ turn, [self.shift_x * width, self.shift_y * height]])

    def __call__(self, scene: Scene, height: int, width: int, drawing: Drawing) -> Scene:
        """The window [height, width] of the mapped scene; a box becomes the hull of its corners, cut to the window."""
        matrix = self.matrix(height, width)
        image = drawing.warp(scene.image, matrix, height, width)
        corners = scene.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
        corners = corners @ matrix[:, :2].T + matrix[:, 2]
        hull = np.concatenate([corners.min(1), corners.max(1)], 1)
        return Scene(image, np.concatenate([within(hull, height, width), scene.boxes[:, 4:]], 1))


def within(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes [n, 4], x1, y1, x2, y2, cut to an image."""
    return boxes.clip(0, (width, height, width, height))


def moved(boxes: np.ndarray, ratio: float, x: float = 0, y: float = 0) -> np.ndarray:
    """Boxes [n, 5] after their image was made ``ratio`` times as large and put at (x, y)."""
    return np.concatenate([boxes[:, :4] * ratio + (x, y, x, y), boxes[:, 4:]], 1)


def flipped(scene: Scene) -> Scene:
    """Left is right."""
    boxes = scene.boxes.copy()
    boxes[:, [0, 2]] = scene.image.shape[1] - boxes[:, [2, 0]]
    return Scene(scene.image[:, ::-1], boxes)


def enlarged(image: np.ndarray, height: int, width: int, drawing: Drawing) -> tuple[np.ndarray, float]:
    """``image`` as large as it fits into [height, width], and how many times as large that is."""
    ratio = min(height / image.shape[0], width / image.shape[1])
    # a long, narrow image keeps a pixel of its shorter side
    low, across = (max(1, int(size * ratio)) for size in image.shape[:2])
    return drawing.resize(image, low, across), ratio


def letterboxed(image: np.ndarray, height: int, width: int, drawing: Drawing) -> tuple[np.ndarray, float]:
    """``image`` as large as it fits at the top left of a grey one [height, width], and how many times as large."""
    small, ratio = enlarged(image, height, width, drawing)
    canvas = np.full((height, width, image.shape[2]), BORDER, np.uint8)
    canvas[: small.shape[0], : small.shape[1]] = small
    return canvas, ratio


@dataclass(frozen=True)
class Placed:
    """A rectangle x1, y1, x2, y2 of the ``canvas``, and the one of the ``image`` that covers it."""

    canvas: tuple[int, int, int, int]
    image: tuple[int, int, int, int]


def placed(corner: int, centre: tuple[int, int], image: tuple[int, int], canvas: tuple[int, int]) -> Placed:
    """Where image 0, 1, 2 or 3 (top left, top right, below) of a mosaic lies.

    Args:
        centre: x, y where the four meet.
        image, canvas: height, width.
    """
    (xc, yc), (h, w), (height, width) = centre, image, canvas
    x, y = xc - w * (corner % 2 == 0), yc - h * (corner < 2)
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    return Placed((x1, y1, x2, y2), (x1 - x, y1 - y, x2 - x, y2 - y))


def mosaic(scenes: list[Scene], centre: tuple[int, int], height: int, width: int, drawing: Drawing) -> Scene:
    """Four scenes, each as large as it fits into [height, width], around ``centre`` on a canvas twice that size."""
    canvas = np.full((2 * height, 2 * width, scenes[0].image.shape[2]), BORDER, np.uint8)
    boxes = []
    for corner, scene in enumerate(scenes):
        image, ratio = enlarged(scene.image, height, width, drawing)
        place = placed(corner, centre, image.shape[:2], canvas.shape[:2])
        (x1, y1, x2, y2), (a1, b1, a2, b2) = place.canvas, place.image
        canvas[y1:y2, x1:x2] = image[b1:b2, a1:a2]
        boxes.append(moved(scene.boxes, ratio, x1 - a1, y1 - b1))
    together = np.concatenate(boxes)
    together[:, :4] = within(together[:, :4], 2 * height, 2 * width)
    return Scene(canvas, together)


@dataclass(frozen=True)
class Augmentation:
    """How training scenes become items of ``height`` x ``width``.

    Args:
        mosaic, mixup, colour, flip: probabilities; mixup only follows a mosaic.
        degrees, shear, shift: greatest, of the affine map after a mosaic; shear in degrees, shift in parts.
        scale, mixup_scale: least and greatest.
        gains: greatest shifts of hue (of 180), saturation and value (of 255).
        rows: of labels; further boxes are dropped.
    """

    height: int
    width: int
    mosaic: float = 1.0
    mixup: float = 1.0
    colour: float = 1.0
    flip: float = 0.5
    degrees: float = 10.0
    shear: float = 2.0
    shift: float = 0.1
    scale: tuple[float, float] = (0.1, 2.0)
    mixup_scale: tuple[float, float] = (0.5, 1.5)
    gains: tuple[float, float, float] = (5.0, 30.0, 30.0)
    rows: int = 120

    def __post_init__(self):
        for name, (least, greatest) in {"scale": self.scale, "mixup_scale": self.mixup_scale}.items():
            if not 0 < least <= greatest < math.inf:
                raise RecipeError(
                    f"data.{name} is the least and the greatest, 0 < least <= greatest, got {least}, {greatest}"
                )

    def without_mixing(self) -> Augmentation:
        """For the last epochs: neither mosaic nor mixup, and 50 rows at most."""
        return replace(self, mosaic=0.0, mixup=0.0, rows=min(self.rows, 50))

    def plain(self) -> Augmentation:
        """For validation and test: nothing random."""
        return replace(self, mosaic=0.0, mixup=0.0, colour=0.0, flip=0.0)

    def __call__(self, scenes: Scenes, index: int, drawing: Drawing) -> Item:
        """The item of scene ``index``, of others too where they are mixed."""
        # a probability takes one random number even where it is 1; where it is 0 there is nothing to draw
        if not self.mosaic or random.random() >= self.mosaic:
            return self.finish(scenes[index], drawing)
        yc, xc = (int(random.uniform(0.5 * size, 1.5 * size)) for size in (self.height, self.width))
        others = [random.randint(0, len(scenes) - 1) for _ in range(3)]
        four = [scenes[i] for i in (index, *others)]
        scene = mosaic(four, (xc, yc), self.height, self.width, drawing)
        scene = self.affine()(scene, self.height, self.width, drawing)
        if self.mixup and len(scene.boxes) and random.random() < self.mixup:
            scene = self.mix(scene, scenes, drawing)
        return self.finish(scene, drawing)

    def affine(self) -> Affine:
        """A random map."""
        angle = random.uniform(-self.degrees, self.degrees)
        scale = random.uniform(*self.scale)
        shears = [random.uniform(-self.shear, self.shear) for _ in range(2)]
        return Affine(angle, scale, *shears, *(random.uniform(-self.shift, self.shift) for _ in range(2)))

    def mix(self, scene: Scene, scenes: Scenes, drawing: Drawing) -> Scene:
        """The mean of ``scene`` and another one that has boxes, which is letterboxed, resized, flipped and cropped."""
        height, width = scene.image.shape[:2]
        jitter = random.uniform(*self.mixup_scale)
        flip = random.random() > 0.5
        while True:
            index = random.randint(0, len(scenes) - 1)
            if len(scenes.boxes(index)):
                break
        other = scenes[index]
        image, ratio = letterboxed(other.image, self.height, self.width, drawing)
        image = drawing.resize(image, int(self.height * jitter), int(self.width * jitter))
        h, w = image.shape[:2]
        boxes = moved(other.boxes, ratio * jitter)
        boxes[:, :4] = within(boxes[:, :4], h, w)
        mixed = Scene(image, boxes)
        if flip:
            mixed = flipped(mixed)
        padded = np.zeros((max(h, height), max(w, width), image.shape[2]), np.uint8)
        padded[:h, :w] = mixed.image
        y = random.randint(0, h - height - 1) if h > height else 0
        x = random.randint(0, w - width - 1) if w > width else 0
        boxes = moved(mixed.boxes, 1.0, -x, -y)
        boxes[:, :4] = within(boxes[:, :4], height, width)
        half = 0.5 * scene.image.astype(np.float32) + 0.5 * padded[y : y + height, x : x + width]
        return Scene(half.astype(np.uint8), np.concatenate([scene.boxes, boxes]))

    def finish(self, scene: Scene, drawing: Drawing) -> Item:
        """Colours, flip and letterbox; a scene that would lose all of its boxes stays as it is."""
        if not len(scene.boxes):
            image, ratio = letterboxed(scene.image, self.height, self.width, drawing)
            return Item(image, np.zeros((self.rows, 5), np.float32), ratio)
        changed = scene
        if self.colour and random.random() < self.colour:
            changed = replace(changed, image=drawing.recolour(changed.image, self._colour_shift()))
        if self.flip and random.random() < self.flip:
            changed = flipped(changed)
        image, ratio = letterboxed(changed.image, self.height, self.width, drawing)
        labels = labelled(changed.boxes, ratio)
        labels = labels[np.minimum(labels[:, 3], labels[:, 4]) > 1]
        if not len(labels):
            image, ratio = letterboxed(scene.image, self.height, self.width, drawing)
            labels = labelled(scene.boxes, ratio)
        padded = np.zeros((self.rows, 5), np.float32)
        padded[: len(labels)] = labels[: self.rows]
        return Item(image, padded, ratio)

    def _colour_shift(self) -> np.ndarray:
        shift = np.random.uniform(-1, 1, 3) * self.gains
        return (shift * np.random.randint(0, 2, 3)).astype(np.int16)


def labelled(boxes: np.ndarray, ratio: float) -> np.ndarray:
    """Boxes [n, 5] as labels [n, 5]: class, cx, cy, w, h, of an image made ``ratio`` times as large."""
    low, high = boxes[:, :2], boxes[:, 2:4]
    return np.concatenate([boxes[:, 4:], ratio * (low + high) / 2, ratio * (high - low)], 1)
