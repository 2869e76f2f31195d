"""Prophesee's recordings with boxes, Gen1 and 1 Mpx, from their own files: frames before every labelled time.

A recording is ``NAME_td.dat``, its events, and ``NAME_bbox.npy``, its boxes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from .. import RecipeError
from ..detection.prophesee import GEN1, MEGAPIXEL, BoxFilter
from .detection import DetectionData
from .files import Fault, find, reading, require_apart
from .frames import EventArrays, Frames, Recordings
from .scenes import Scene

__all__ = ["BOXES", "SENSORS", "Prophesee", "Sensor", "Windows", "open_events", "read_boxes"]

EVENTS, BOXES = "_td.dat", "_bbox.npy"
RECORD = np.dtype([("t", "<u4"), ("word", "<u4")])
FIELDS = ("t", "x", "y", "w", "h", "class_id", "class_confidence")
OLD = {"ts": "t", "confidence": "class_confidence"}
"""Names that the boxes of Gen1 have."""
OUTSIDE = "outside of the sensor or without a size"


@dataclass(frozen=True)
class Sensor:
    """A camera and the boxes that count in its recordings, of the first of its ``labelled`` classes; frames are
    1/``shrink`` as large.
    """

    height: int
    width: int
    names: tuple[str, ...]
    keep: BoxFilter
    labelled: int
    shrink: int = 1


SENSORS = {
    "gen1": Sensor(240, 304, ("car", "pedestrian"), GEN1, labelled=2),
    # the others are truck, bus, sign and light
    "1mpx": Sensor(720, 1280, ("pedestrian", "two-wheeler", "car"), MEGAPIXEL, labelled=7, shrink=2),
}


def open_events(path: Path) -> np.ndarray:
    """The events of a ``.dat`` file, memory-mapped: ``t`` in microseconds, ``word`` x | y << 14 | polarity << 28.

    Raises:
        Fault: another format, a file cut in mid-event, or times that run backwards (of a thousand of them).
    """
    with reading(path), path.open("rb") as file:
        start = 0
        while (line := file.readline()).startswith(b"%"):
            start = file.tell()
        if len(line) < 2 or line[1] != RECORD.itemsize:
            raise ValueError(
                "after the lines that begin with % there is no mark of 8-byte events; 1 Mpx files in HDF5 are not read"
            )
        size = path.stat().st_size - start - 2
        if size % RECORD.itemsize:
            raise Fault(
                f"{path} is cut in mid-event: {size % RECORD.itemsize} bytes follow its {size // RECORD.itemsize} "
                "whole events; copy it again from the publisher's archive"
            )
        if size == 0:
            return np.zeros(0, RECORD)
        events = np.memmap(path, RECORD, "r", start + 2)
        if (np.diff(events["t"][:: max(1, len(events) // 1000)].astype(np.int64)) < 0).any():
            raise ValueError("its times run backwards")
        return events


def read_boxes(path: Path) -> np.ndarray:
    """The boxes of a recording, of either published type, with the fields t, x, y, w, h, class_id, class_confidence.

    Raises:
        Fault: another format, or values that are no numbers.
    """
    with reading(path):
        rows = np.load(path, allow_pickle=False)
        if rows.dtype.names is None:
            raise ValueError(
                f"it holds {rows.dtype}{list(rows.shape)}, no boxes with the fields {', '.join(FIELDS)}"
            )
        own = {OLD.get(name, name): name for name in rows.dtype.names}
        if missing := [name for name in FIELDS[:-1] if name not in own]:
            raise ValueError(f"its boxes have no {', '.join(missing)}")
        types = ["<i8", *["<f4"] * 4, "<u4", "<f4"]
        boxes = np.zeros(len(rows), list(zip(FIELDS, types, strict=True)))
        for name in FIELDS:
            boxes[name] = rows[own[name]] if name in own else 1.0
        if not all(np.isfinite(boxes[name]).all() for name in ("x", "y", "w", "h")):
            raise ValueError("a box has a place or size that is no number")
        return boxes


@dataclass(frozen=True)
class Windows:
    """What a window of events looks like, integers 0..255, [steps, channels, height, width].

    Args:
        steps: equal parts of the window.
        duration: of the window, in microseconds.
        height, width: of the frames.
        shrink: so many pixels of the sensor are one, along either axis.
        ages: three channels instead of two: besides the numbers of events that darkened and brightened a pixel, of 10
            or more as 255, when the last one was: 255 at the end of the window.
    """

    steps: int
    duration: int
    height: int
    width: int
    shrink: int
    ages: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3 if self.ages else 2), self.height, self.width

    def __call__(self, events: EventArrays) -> np.ndarray:
        """Raises ValueError for events outside of the sensor."""
        polarity, y, x = events.places
        limits = self.height * self.shrink, self.width * self.shrink
        for name, place, limit in (("y", y, limits[0]), ("x", x, limits[1])):
            if len(place) and place.max() >= limit:
                raise ValueError(f"it has an event at {name} = {place.max()}, the sensor has 0..{limit - 1}")
        step = events.t * self.steps // self.duration
        at = (step, polarity, y // self.shrink, x // self.shrink)
        frames = np.zeros((self.steps, *self.shape), np.int64)
        cells = np.ravel_multi_index(at, (self.steps, 2, *self.shape[1:]))
        counts = np.bincount(cells, minlength=self.steps * 2 * self.height * self.width)
        frames[:, :2] = np.minimum(counts.reshape(self.steps, 2, *self.shape[1:]), 10) * 255 // 10
        if self.ages:
            part = self.duration / self.steps
            ages = np.ceil((events.t - step * part + 1) * 255 / part).astype(np.int64).clip(1, 255)
            np.maximum.at(frames, (step, 2, *at[2:]), ages)
        return frames


class LabelledTimes(Recordings):
    """The windows of events that end at labelled times; recording and time of each in ``moments``."""

    refuse_empty = False  # a scene may stand still

    def __init__(self, kind: str, files: list[Path], moments: list[tuple[int, int]], duration: int):
        super().__init__(kind, files, np.arange(len(moments)))
        self.moments = moments
        self.duration = duration

    def name(self, index):
        recording, time = self.moments[index]
        return f"{self.files[recording]} at {time} us"

    def read(self, index):
        recording, end = self.moments[index]
        path = self.files[recording]
        events = open_events(path)
        start = max(0, end - self.duration)
        with reading(path):
            # times ascend: only the pages that the search meets are read
            first, last = (
                bisect_left(range(len(events)), at, key=lambda i: events["t"][i]) for at in (start, end)
            )
            part = events[first:last]
            t, word = part["t"].astype(np.int64) - (end - self.duration), part["word"].astype(np.int64)
            if len(t) and (np.diff(t) < 0).any():
                raise ValueError(f"its times run backwards near {end} us")
        return EventArrays(t, (word >> 28 & 1, word >> 14 & 0x3FFF, word & 0x3FFF))


def no_box_counts(files: list[Path], left_out: Counter[str]) -> RecipeError:
    """Of all these files; how many boxes were left out, and why."""
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    return RecipeError(
        f"no box counts of the {left_out.total()} in {files[0]}{more}: {counts or 'none is there'}; put the "
        "publisher's boxes there"
    )


class EventScenes:
    """Frames before labelled times, and the boxes there."""

    def __init__(self, frames: Frames, boxes: list[np.ndarray], times: LabelledTimes):
        self.frames = frames
        self.found = boxes
        self.times = times

    def __len__(self):
        return len(self.found)

    def name(self, index: int) -> str:
        return self.times.name(index)

    def shape(self, index: int) -> tuple[int, int]:
        return self.frames.shape[-2:]

    def boxes(self, index: int) -> np.ndarray:
        return self.found[index]

    def __getitem__(self, index: int) -> Scene:
        frames, _ = self.frames[index]
        image = frames.reshape(-1, *frames.shape[-2:]).transpose(1, 2, 0).astype(np.uint8)
        return Scene(image, self.found[index])


class Prophesee(DetectionData):
    """Gen1, or 1 Mpx at half size: the events before every labelled time, [N, 3, H, W], or frames [T, N, 2, H, W].

    Boxes are cut to the sensor; of what is left of them, labels and detections count as in the literature, see
    :data:`Sensor.keep`.

    Args:
        sensor: "gen1" or "1mpx".
        steps: of frames with two channels (darker, brighter); None: one image with three, see :class:`Windows`.
        window: in milliseconds, before the label.
        height, width: of the network's input; by default those of the frames.
        interval: least milliseconds between two labels of a recording that are used; all are used in tests.
    """

    tree = f"{{train,val,test}}/*{EVENTS} and, for each, *{BOXES}"

    def __init__(
        self,
        sensor: Literal["gen1", "1mpx"] = "gen1",
        steps: int | None = None,
        window: float = 50.0,
        interval: float = 0.0,
        height: int | None = None,
        width: int | None = None,
        **common: Any,
    ):
        self.sensor = self.camera(sensor)
        shrink = self.sensor.shrink
        height, width = height or self.sensor.height // shrink, width or self.sensor.width // shrink
        super().__init__(height=height, width=width, **common)
        if not (0 < window < math.inf and 0 <= interval < math.inf) or (steps is not None and steps < 1):
            raise RecipeError(
                f"data.window and data.steps must be positive and data.interval 0 or more, got {window}, {steps} and "
                f"{interval}"
            )
        self.frame_steps = steps
        self.duration = round(window * 1000)
        self.interval = round(interval * 1000)
        self.layout = "NCHW" if steps is None else "TNCHW"
        self.channels = 3 if steps is None else 2
        self.classes = len(self.sensor.names)
        self.names = self.sensor.names
        edge = self.sensor.width - 1, self.sensor.height - 1
        self.keep = replace(self.sensor.keep, edge=edge).scaled(1 / shrink)
        if self.augmentation.colour:
            raise RecipeError("data.colour changes the colours of images, events have none; give 0")

    def camera(self, name: str) -> Sensor:
        return SENSORS[name]

    @property
    def steps(self):
        return self.frame_steps

    @property
    def remedy(self):
        return "put the publisher's files in their place"

    def picture(self, x):
        """Red where a pixel brightened, blue where it darkened; a single event is seen."""
        frames = x if self.frame_steps else x.unsqueeze(0)
        frames = torch.where(frames > 0, frames.clamp(128, 255), 0)
        darker, brighter = frames[:, 0].amax(0), frames[:, 1].amax(0)
        return torch.stack([brighter, torch.zeros_like(darker), darker]).byte()

    def sources(self):
        self._guarded(self._require_apart)
        return super().sources()

    def _require_apart(self) -> None:
        train, val, test = (find(self.root / part, EVENTS) for part in ("train", "val", "test"))
        require_apart([*train, *val], test, "training and validation")
        require_apart(train, val, "training", "the validation")

    def open(self, split):
        folder = self.root / split
        files = find(folder, EVENTS)
        if not files:
            raise Fault(f"{folder} has no *{EVENTS} files")
        partners = {path: path.with_name(path.name[: -len(EVENTS)] + BOXES) for path in files}
        for path in find(folder, BOXES):
            if path not in partners.values():
                raise Fault(f"{path} has no events beside it, {path.name[: -len(BOXES)]}{EVENTS}")
        moments, boxes, left_out = [], [], Counter[str]()
        for recording, (path, labels) in enumerate(partners.items()):
            open_events(path)  # cut files are found before anything is made of others
            rows = read_boxes(labels)
            if len(rows) and rows["class_id"].max() >= self.sensor.labelled:
                raise Fault(
                    f"{labels} has a box of class {rows['class_id'].max()}, this camera has classes 0 to "
                    f"{self.sensor.labelled - 1}"
                )
            corners = self.corners(rows)
            kept = np.ones(len(rows), bool)
            for reason, wrong in self.uncounted(rows, corners, train=split == "train").items():
                left_out[reason] += int((kept & wrong).sum())
                kept &= ~wrong
            for time, part in self.at_times(rows["t"][kept], corners[kept], every=split == "test"):
                moments.append((recording, time))
                boxes.append(part)
        if not moments:
            raise no_box_counts(list(partners.values()), left_out)
        if left_out[OUTSIDE]:
            rank_zero_warn(f"{left_out[OUTSIDE]} boxes of {folder} lie {OUTSIDE} and are left out")
        times = LabelledTimes(
            f"{type(self).__name__}-{len(self.sensor.names)}", files, moments, self.duration
        )
        binning = Windows(
            self.frame_steps or 1,
            self.duration,
            self.sensor.height // self.sensor.shrink,
            self.sensor.width // self.sensor.shrink,
            self.sensor.shrink,
            self.frame_steps is None,
        )
        # the key has files and settings; which times of a file are labelled, its boxes say
        part = f"{split} {sorted(moments)}"
        return EventScenes(
            Frames(times, part, binning, self.places(), self.verify, self.num_workers), boxes, times
        )

    def uncounted(self, rows: np.ndarray, corners: np.ndarray, train: bool) -> dict[str, np.ndarray]:
        """Why boxes do not count, and which; those wider than nine tenths of the sensor only in training."""
        sensor, keep = self.sensor, self.sensor.keep
        width, height = (corners[:, 2:4] - corners[:, :2]).T
        reasons = {
            f"of none of the classes {', '.join(self.names)}": rows["class_id"] >= len(self.names),
            f"not later than {keep.skip / 1e6:g} s (times are in microseconds)": rows["t"] <= keep.skip,
            OUTSIDE: np.minimum(width, height) <= 0,
            f"with a diagonal below {keep.diagonal:g} or a side below {keep.side:g} pixels on the sensor": (
                ~self.keep.large(width, height)
            ),
        }
        if train:
            wide = width > 0.9 * sensor.width / sensor.shrink
            reasons["wider than nine tenths of the sensor, which are not trained on"] = wide
        return reasons

    def at_times(self, times: np.ndarray, boxes: np.ndarray, every: bool) -> list[tuple[int, np.ndarray]]:
        """The labelled times and their boxes."""
        order = np.argsort(times, kind="stable")
        found, starts = np.unique(times[order], return_index=True)
        kept: list[tuple[int, np.ndarray]] = []
        for time, part in zip(found.tolist(), np.split(boxes[order], starts[1:]), strict=False):
            if every or not kept or time - kept[-1][0] >= self.interval:
                kept.append((time, part))
        return kept

    def corners(self, rows: np.ndarray) -> np.ndarray:
        """Boxes [n, 5] in pixels of the frames, cut to them."""
        low = np.stack([rows["x"], rows["y"]], 1).astype(float)
        high = low + np.stack([rows["w"], rows["h"]], 1)
        cut = self.keep.cut(np.concatenate([low, high], 1) / self.sensor.shrink)
        return np.concatenate([cut, rows["class_id"][:, None]], 1)
