"""Event recordings that become frames: SHD, SSC, CIFAR10-DVS, DVS128 Gesture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tonic
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.transforms import v2

from .. import RecipeError
from .base import Data
from .files import Fault, find, reading, whole
from .frames import Binning, EventArrays, Frames, Recordings, Separate
from .loaders import Part

__all__ = ["CIFAR10DVS", "DVSGesture", "SpikingHeidelberg"]

CAMERA = (2, 128, 128)
PUBLISHED = {
    "SHD": {"train": 8156, "test": 2264},
    "SSC": {"train": 75_466, "val": 9_981, "test": 20_382},
    "DVSGesture": {"train": 1077, "test": 264},
}
"""Recordings of the published files."""


def counts(frames: np.ndarray, cut: bool = False) -> Tensor:
    """Frames as float32 [T, ..]; ``cut`` ends them with the last event."""
    x = torch.from_numpy(frames.astype(np.float32))
    if cut:
        fired = x.flatten(1).any(1).nonzero()
        x = x[: int(fired[-1]) + 1] if len(fired) else x[:1]
    return x


def pad(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences of different length as x [N, T, ..] with zeros at their ends, labels [N], lengths [N]."""
    xs, labels = zip(*samples, strict=True)
    return pad_sequence(xs, batch_first=True), torch.tensor(labels), torch.tensor([len(x) for x in xs])


class Events(Data):
    """Recordings of events that become frames, kept in ``cache``."""

    def frames(self, source: Recordings, split: str, binning: Binning) -> Frames:
        return Frames(source, split, binning, self.places(), self.verify, self.num_workers)


# -- spikes of a cochlea


class SpikeFile(Recordings):
    """Recordings in one HDF5 file: times of float16 seconds, units 0..699."""

    refuse_empty = False  # silent commands of SSC may be without spikes

    def name(self, index):
        return f"recording {index} of {self.files[0]}"

    def read(self, index):
        import h5py

        with reading(self.files[0]), h5py.File(self.files[0], "r") as file:
            seconds = file["spikes/times"][index].astype(np.float64)
            units = file["spikes/units"][index].astype(np.int64)
            if not np.isfinite(seconds).all():
                raise ValueError(f"recording {index} has a time that is no number")
            return EventArrays((seconds * 1e6).astype(np.int64), (units,))


def _read_labels(path: Path) -> np.ndarray:
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        labels = file["labels"][()]
        sizes = {name: len(file[name]) for name in ("labels", "spikes/times", "spikes/units")}
        if len(set(sizes.values())) > 1 or labels.dtype.kind not in "iu":
            raise ValueError(f"it has {sizes} and labels of {labels.dtype}; as many integers are needed")
        return labels


class SpikingHeidelberg(Events):
    """Spoken digits (SHD, 20 classes) or commands (SSC, 35) as spikes of 700 channels: [T, N, 700] counts.

    Args:
        which: "SHD", or "SSC", which brings a validation set of its own.
        steps, duration: so many bins on [0, duration] seconds. The published script numbers its bins from 1 and so
            leaves the first of 250 empty; here bin 0 is used, and events after ``duration`` are left out.
        variable: each sample ends with the bin of its last event instead. Batches are padded and carry lengths [N].
    """

    layout = "TNC"

    def __init__(
        self,
        which: Literal["SHD", "SSC"] = "SHD",
        steps: int = 250,
        duration: float = 1.4,
        variable: bool = False,
        **common: Any,
    ):
        super().__init__(**common)
        self.which = which
        self.classes = 20 if which == "SHD" else 35
        if steps < 1 or not 0 < duration < math.inf:
            raise RecipeError(f"data.steps and data.duration must be positive, got {steps} and {duration}")
        self.steps = steps
        self.duration = duration
        self.variable = variable
        if variable:
            self.collate = pad
        name = which.lower()
        self.tree = f"{which}/{name}_{{{'train,test' if which == 'SHD' else 'train,valid,test'}}}.h5"

    def fetch(self):
        def build(folder: Path) -> Path:
            if self.which == "SHD":
                for train in (True, False):
                    tonic.datasets.SHD(str(folder), train=train)
            else:
                for split in ("train", "valid", "test"):
                    tonic.datasets.SSC(str(folder), split=split)
            return folder / self.which

        whole(self.root / self.which, build)

    def open(self, split):
        if self.which == "SHD" and split == "val":
            return None
        name = "valid" if split == "val" else split
        path = self.root / self.which / f"{self.which.lower()}_{name}.h5"
        labels = _read_labels(path)
        wanted = PUBLISHED[self.which][split]
        if self.verify and len(labels) != wanted:
            raise Fault(f"{path} has {len(labels)} samples, {self.which} has {wanted}")
        binning = Binning(self.steps, (700,), "window", round(self.duration * 1e6))
        return self.frames(SpikeFile(self.which, [path], labels), split, binning)

    def transform(self, train):
        return partial(counts, cut=self.variable)


# -- cameras


def denoise(events: EventArrays, time: int) -> EventArrays:
    """The events (polarity, y, x) beside which another pixel had an event in the last ``time`` microseconds.

    A pixel has four neighbours. Rows in the order of their times.
    """
    order = np.argsort(events.t, kind="stable")
    t, (on, y, x) = events.t[order], (place[order] for place in events.places)
    count, width = len(t), int(x.max(initial=0)) + 3  # a pixel of frame on either side
    pixel = (y + 1) * width + x + 1
    keys = np.sort(pixel * count + np.arange(count))  # all events, pixel by pixel
    kept = np.zeros(count, bool)
    for step in (-1, 1, -width, width):
        beside = pixel + step
        last = keys[
            np.searchsorted(keys, beside * count + np.arange(count)) - 1
        ]  # of them the last one before
        kept |= (last // max(count, 1) == beside) & (t[last % max(count, 1)] + time > t)
    return EventArrays(t[kept], (on[kept], y[kept], x[kept]))


@dataclass(frozen=True)
class Coarse(Binning):
    """Frames of fewer pixels: ``shrink`` along either axis become one, after :func:`denoise` where ``noise`` is given.

    ``shape`` is that of the frames.
    """

    shrink: int = 1
    noise: int = 0

    def __call__(self, events: EventArrays) -> np.ndarray:
        if self.noise:
            events = denoise(events, self.noise)
        on, y, x = events.places
        return super().__call__(EventArrays(events.t, (on, y // self.shrink, x // self.shrink)))


class _Camera(Events):
    """Recordings of a DVS128 camera: [T, N, 2, 128, 128] counts of events by polarity.

    Args:
        steps: frames of a recording.
        split_by: "count": as many events in each frame, to one (published for CIFAR10-DVS); "time": equal time.
        augment: flip half of the training samples, then for each one of: nothing, shear (0.3), shift by 5 pixels along
            either axis, rotation by up to 30 degrees, a square cut out; the same for all frames.
    """

    layout = "TNCHW"

    def __init__(
        self,
        steps: int = 16,
        split_by: Literal["count", "time"] = "count",
        augment: bool = True,
        **common: Any,
    ):
        super().__init__(**common)
        if steps < 1:
            raise RecipeError(f"data.steps must be positive, got {steps}")
        self.steps = steps
        self.split_by = split_by
        self.augment = augment
        self.augmented = augment

    def binning(self) -> Binning:
        return Binning(self.steps, CAMERA, self.split_by)

    def transform(self, train):
        if not (train and self.augment):
            return counts
        one_of = [
            v2.Identity(),
            v2.RandomAffine(0, shear=(-17.19, 17.19)),  # tan 17.19 degrees = 0.309, that is 0.3 rad
            v2.RandomAffine(0, translate=(5 / 128, 0)),
            v2.RandomAffine(0, translate=(0, 5 / 128)),
            v2.RandomRotation(30),
            v2.RandomErasing(p=1.0, scale=(0.001, 0.11), ratio=(1.0, 1.0)),
        ]
        return v2.Compose([counts, v2.RandomHorizontalFlip(), v2.RandomChoice(one_of)])


def _read_aedat4(path: Path) -> EventArrays:
    with reading(path):
        events = tonic.io.read_aedat4(str(path))
        t, x, y, on = (events[name].astype(np.int64) for name in events.dtype.names)
        return EventArrays(t, (on, y, x))


def _read_rows(path: Path) -> EventArrays:
    """Rows x, y, polarity, time in milliseconds."""
    with reading(path):
        rows = np.load(path, allow_pickle=False)
        if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "iuf":
            raise ValueError(f"it holds {rows.dtype}{list(rows.shape)}; rows x, y, polarity, time are needed")
        if not np.isfinite(rows).all() or (rows[:, :3] != np.floor(rows[:, :3])).any():
            raise ValueError("a place, polarity or time is no (whole) number")
        x, y, on = rows[:, :3].astype(np.int64).T
        return EventArrays((rows[:, 3] * 1000).astype(np.int64), (on, y, x))


class CIFAR10DVS(_Camera):
    """CIFAR10-DVS. As published, the first 90 % of each class (by file name) train and the others test."""

    classes = 10
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    tree = "CIFAR10DVS/<class>/*.aedat4"

    def fetch(self):
        whole(
            self.root / "CIFAR10DVS",
            lambda folder: Path(tonic.datasets.CIFAR10DVS(str(folder)).location_on_system),
        )

    def open(self, split):
        if split == "val":
            return None
        folder = self.root / "CIFAR10DVS"
        files = find(folder, ".aedat4")
        for path in files:
            if path.parent.parent != folder or path.parent.name not in self.names:
                raise Fault(f"{path} lies in no class folder of {folder}: {', '.join(self.names)}")
        if not files:
            raise Fault(f"{folder} has no *.aedat4 files")
        labels = [self.names.index(path.parent.name) for path in files]
        if self.verify and np.bincount(labels, minlength=10).tolist() != [1000] * 10:
            raise Fault(f"CIFAR10-DVS has 10 x 1000 recordings, {len(files)} are in {folder}")
        frames = self.frames(Separate("CIFAR10DVS", files, labels, _read_aedat4), "all", self.binning())
        train = np.zeros(len(frames), dtype=bool)
        for label in np.unique(frames.targets):
            members = np.flatnonzero(frames.targets == label)
            train[members[: int(np.ceil(0.9 * len(members)))]] = True
        return Part(frames, np.flatnonzero(train if split == "train" else ~train))


class DVSGesture(_Camera):
    """DVS128 Gesture, in tonic's form: 11 classes, one recording for each gesture.

    Args:
        shrink: so many pixels along either axis are one, a divisor of 128. NeuroBench has 4.
        noise: milliseconds; events without another one beside them in this time are left out. NeuroBench has 10.
    """

    classes = 11
    tree = "DVSGesture/ibmGesture{Train,Test}/user*/<label>.npy"

    def __init__(self, shrink: int = 1, noise: float = 0.0, **common: Any):
        super().__init__(**common)
        if shrink < 1 or 128 % shrink or not 0 <= noise < math.inf:
            raise RecipeError(
                f"data.shrink must divide 128 and data.noise be 0 or more, got {shrink} and {noise}"
            )
        self.shrink = shrink
        self.noise = noise

    def binning(self) -> Binning:
        if self.shrink == 1 and not self.noise:
            return super().binning()
        size = 128 // self.shrink
        return Coarse(
            self.steps, (2, size, size), self.split_by, shrink=self.shrink, noise=round(1000 * self.noise)
        )

    def fetch(self):
        def build(folder: Path) -> Path:
            for train in (True, False):
                source = tonic.datasets.DVSGesture(str(folder), train=train)
            return Path(source.location_on_system)

        whole(self.root / "DVSGesture", build)

    def open(self, split):
        if split == "val":
            return None
        folder = self.root / "DVSGesture" / f"ibmGesture{split.capitalize()}"
        files = find(folder, ".npy")
        for path in files:
            if path.parent.parent != folder or not path.parent.name.startswith("user"):
                raise Fault(f"{path} does not lie in {folder}/user*/")
            if path.stem not in map(str, range(self.classes)):
                raise Fault(f"{path} is not named by its label, 0.npy to {self.classes - 1}.npy")
        if not files:
            raise Fault(f"{folder} has no user*/<label>.npy files")
        wanted = PUBLISHED["DVSGesture"][split]
        if self.verify and len(files) != wanted:
            raise Fault(f"DVSGesture has {wanted} {split} recordings, {len(files)} are in {folder}")
        labels = [int(path.stem) for path in files]
        return self.frames(Separate("DVSGesture", files, labels, _read_rows), split, self.binning())
