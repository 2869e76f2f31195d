"""Small sets with boxes that need no download: handwritten digits on a canvas, and shapes that move before a camera."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import RecipeError
from ..detection.prophesee import BoxFilter
from .detection import DetectionData
from .files import find, whole
from .prophesee import BOXES, EVENTS, Prophesee, Sensor
from .scenes import Scene

__all__ = ["MovingShapes", "PastedDigits", "write_recording"]

CANVAS = 64


class DigitScenes:
    """Scenes made on the spot, each a function of its number and ``seed``: one to three digits on a noisy canvas."""

    def __init__(self, pictures: np.ndarray, labels: np.ndarray, count: int, seed: int):
        self.pictures = pictures
        self.labels = labels
        self.seed = seed
        self.made = [self.make(i) for i in range(count)]

    def make(self, index: int) -> Scene:
        draw = np.random.default_rng([self.seed, index])
        canvas = draw.uniform(0, 60, (CANVAS, CANVAS))
        boxes: list[list[float]] = []
        for _ in range(draw.integers(1, 4)):
            which, times = draw.integers(len(self.pictures)), int(draw.integers(2, 4))
            picture = np.kron(self.pictures[which], np.ones((times, times)))
            size = len(picture)
            x, y = draw.integers(0, CANVAS - size + 1, 2).tolist()
            if any(x < b[2] and b[0] < x + size and y < b[3] and b[1] < y + size for b in boxes):
                continue  # it would cover another one
            canvas[y : y + size, x : x + size] = np.maximum(canvas[y : y + size, x : x + size], picture)
            boxes.append([x, y, x + size, y + size, int(self.labels[which])])
        image = np.repeat(canvas.astype(np.uint8)[..., None], 3, 2)
        return Scene(image, np.array(boxes, float))

    def __len__(self):
        return len(self.made)

    def name(self, index: int) -> str:
        return f"scene {index}"

    def shape(self, index: int) -> tuple[int, int]:
        return CANVAS, CANVAS

    def boxes(self, index: int) -> np.ndarray:
        return self.made[index].boxes

    def __getitem__(self, index: int) -> Scene:
        return self.made[index]


class PastedDigits(DetectionData):
    """scikit-learn's handwritten digits, enlarged two or three times on 64 x 64 canvases: [N, 3, height, width].

    Of its 1,797 digits the first 1,200 are pasted into training scenes, 300 into those of validation, the others into
    those of the test.

    Args:
        scenes: of training; a tenth of it are validated, and as many tested.
    """

    layout = "NCHW"
    classes = 10
    names = tuple("0123456789")
    tree = "nothing: the scenes are made"

    def __init__(self, scenes: int = 2000, height: int = CANVAS, width: int = CANVAS, **common: Any):
        super().__init__(height=height, width=width, **common)
        if scenes < 1:
            raise RecipeError(f"data.scenes must be 1 or more, got {scenes}")
        self.scenes = scenes

    def fetch(self):
        pass

    def open(self, split):
        from sklearn.datasets import load_digits

        digits = load_digits()
        part = {"train": slice(0, 1200), "val": slice(1200, 1500), "test": slice(1500, None)}[split]
        count = self.scenes if split == "train" else max(1, self.scenes // 10)
        seed = ("train", "val", "test").index(split)
        return DigitScenes(digits.images[part] * 255 / 16, digits.target[part], count, seed)


# -- events


@dataclass
class Shape:
    """A disc (0) or square (1) that moves at even speed and bounces at the edges."""

    kind: int
    radius: float
    place: np.ndarray
    speed: np.ndarray

    def move(self) -> None:
        self.place = self.place + self.speed
        for axis in range(2):
            if not self.radius <= self.place[axis] <= CANVAS - 1 - self.radius:
                self.speed[axis] *= -1
                self.place[axis] = np.clip(self.place[axis], self.radius, CANVAS - 1 - self.radius)

    def mask(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        dx, dy = np.abs(x - self.place[0]), np.abs(y - self.place[1])
        if self.kind == 0:
            return dx**2 + dy**2 <= self.radius**2
        return np.maximum(dx, dy) <= self.radius

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x, y of the top left corner, width, height."""
        x, y = self.place - self.radius
        return x, y, 2 * self.radius + 1, 2 * self.radius + 1


def write_recording(stem: Path, seed: int, milliseconds: int = 1000, every: int = 100) -> None:
    """One recording, in Prophesee's files: one or two bright shapes before a dark ground, and noise.

    A pixel has an event where a shape arrives (1) or leaves (0), to the millisecond.
    """
    draw = np.random.default_rng(seed)
    shapes = [
        Shape(
            int(draw.integers(2)),
            float(draw.uniform(6, 10)),
            draw.uniform(10, CANVAS - 11, 2),
            draw.choice([-1, 1], 2) * draw.uniform(0.05, 0.2, 2),
        )
        for _ in range(int(draw.integers(1, 3)))
    ]
    y, x = np.mgrid[:CANVAS, :CANVAS]
    before = np.any([shape.mask(x, y) for shape in shapes], 0)
    times, words, boxes = [], [], []
    for now in range(1, milliseconds + 1):
        for shape in shapes:
            shape.move()
        after = np.any([shape.mask(x, y) for shape in shapes], 0)
        changed = before ^ after
        noise = draw.random(changed.shape) < 2e-4
        row, column = np.nonzero(changed | noise)
        on = np.where(changed, after, draw.random(changed.shape) < 0.5)[row, column].astype(np.int64)
        times.append(np.full(len(row), 1000 * now - 1))
        words.append(column | row << 14 | on << 28)
        if now % every == 0 and now > every:
            boxes += [(1000 * now, *shape.box, shape.kind, 1.0, i) for i, shape in enumerate(shapes)]
        before = after
    events = np.zeros(sum(map(len, times)), [("t", "<u4"), ("word", "<u4")])
    events["t"], events["word"] = np.concatenate(times), np.concatenate(words)
    header = f"% Data file containing Event2D events.\n% Version 2\n% Height {CANVAS}\n% Width {CANVAS}\n"
    stem.with_name(stem.name + EVENTS).write_bytes(header.encode() + bytes([0, 8]) + events.tobytes())
    fields = ("t", "x", "y", "w", "h", "class_id", "class_confidence", "track_id")
    types = ("<i8", "<f4", "<f4", "<f4", "<f4", "<u4", "<f4", "<u4")
    np.save(stem.with_name(stem.name + BOXES), np.array(boxes, list(zip(fields, types, strict=True))))


class MovingShapes(Prophesee):
    """Discs and squares that move before a camera of 64 x 64 pixels: recordings in Prophesee's files, made by
    ``download``, frames of events before a label every 100 ms.

    Args:
        recordings: of training; a fifth of it are validated, and as many tested. A folder that holds another number
            is refused, unless ``verify`` is False.
    """

    def __init__(self, recordings: int = 40, **common: Any):
        super().__init__(**common)
        if recordings < 1:
            raise RecipeError(f"data.recordings must be 1 or more, got {recordings}")
        self.recordings = recordings

    @property
    def remedy(self):
        return "give another --data.root, or remove train, val and test there, and --data.download true makes them"

    def camera(self, name: str) -> Sensor:
        return Sensor(CANVAS, CANVAS, ("disc", "square"), BoxFilter(0, 10, 5), labelled=2)

    def count(self, split: str) -> int:
        """Recordings of a part."""
        return self.recordings if split == "train" else max(1, self.recordings // 5)

    def open(self, split):
        folder = self.root / split
        there = len(find(folder, EVENTS))
        if self.verify and there and there != self.count(split):
            raise RecipeError(
                f"data.recordings {self.recordings} makes {self.count(split)} {split} recordings, {folder} has "
                f"{there}; give the number that made them, or {self.remedy}"
            )
        return super().open(split)

    def fetch(self):
        for k, split in enumerate(("train", "val", "test")):

            def build(folder: Path, k: int = k, count: int = self.count(split)) -> None:
                for i in range(count):
                    write_recording(folder / f"shapes{i:03d}", seed=100_000 * k + i)

            whole(self.root / split, build)
