"""Recordings of events as frames: how they are counted into steps, and the frames on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .. import RecipeError
from .files import Fault, identify, one_line, reading, whole, writable

__all__ = ["Binning", "EventArrays", "Frames", "Recordings", "Separate"]

FORMAT = 2
"""Of the files below; another one has another key."""


class EventArrays(NamedTuple):
    """The events of a recording, one entry each: times in microseconds, and a place in each axis of the sensor."""

    t: np.ndarray
    places: tuple[np.ndarray, ...]


class Recordings(Dataset):
    """Event recordings before they become frames: ``files`` that all are read from, and a label for each recording."""

    refuse_empty = True
    """A recording without events is an error; else it is named in a warning and stays, as zeros."""

    def __init__(self, kind: str, files: Sequence[Path], targets: Any):
        self.kind = kind
        self.files = files
        self.targets = np.asarray(targets, dtype=int)

    def __len__(self):
        return len(self.targets)

    def name(self, index: int) -> str:
        raise NotImplementedError

    def read(self, index: int) -> EventArrays:
        """Raises Fault where it cannot."""
        raise NotImplementedError


class Separate(Recordings):
    """One file for each recording."""

    def __init__(self, kind: str, files: Sequence[Path], targets: Any, reader: Callable[[Path], EventArrays]):
        super().__init__(kind, files, targets)
        self.reader = reader

    def name(self, index):
        return str(self.files[index])

    def read(self, index):
        return self.reader(self.files[index])


@dataclass(frozen=True)
class Binning:
    """Count events into frames, int64 [steps, *shape]; no event is lost.

    Args:
        steps: number of frames.
        shape: of the sensor: (width,) or (polarities, height, width).
        by: "count": as many events in each frame, to one; "time": equal parts of the time from the first to the last
            event; "window": equal parts of [0, window), where later events are left out.
        window: in microseconds.
    """

    steps: int
    shape: tuple[int, ...]
    by: Literal["count", "time", "window"] = "count"
    window: int = 0

    def __call__(self, events: EventArrays) -> np.ndarray:
        """Raises ValueError for events outside of the sensor or before time 0."""
        t = events.t
        for axis, (place, size) in enumerate(zip(events.places, self.shape, strict=True)):
            if len(place) != len(t):
                raise ValueError(f"it has {len(t)} times but {len(place)} places in axis {axis}")
            if len(place) and not 0 <= place.min() <= place.max() < size:
                raise ValueError(
                    f"its events lie in {place.min()}..{place.max()} of sensor axis {axis}, which has 0..{size - 1}"
                )
        if len(t) and t.min() < 0:
            raise ValueError(f"it has an event at {t.min()} microseconds, before its start")
        flat = np.ravel_multi_index([place.astype(np.int64) for place in events.places], self.shape)
        if self.by == "count":
            order = np.argsort(t, kind="stable")
            step = np.empty(len(t), np.int64)
            step[order] = np.arange(len(t)) * self.steps // max(len(t), 1)
        elif self.by == "time":
            step = (t - t.min()) * self.steps // (t.max() - t.min() + 1) if len(t) else t
        else:
            inside = t < self.window
            flat = flat[inside]
            step = t[inside] * self.steps // self.window
        cells = int(np.prod(self.shape))
        frames = np.bincount(step * cells + flat, minlength=self.steps * cells)
        return frames.reshape(self.steps, *self.shape)


@dataclass(frozen=True)
class _Packed:
    """The frames of one recording as they lie on the disk, or why there are none."""

    data: bytes = b""
    width: int = 0
    events: int = 0
    fault: str | None = None


class _Pack(Dataset):
    """Recordings as packed frames. Failures are values, not exceptions: a worker's would carry its traceback along."""

    def __init__(self, source: Recordings, binning: Callable[[EventArrays], np.ndarray]):
        self.source = source
        self.binning = binning

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        name = self.source.name(index)
        try:
            frames = self.binning(self.source.read(index))
            events = int(frames.sum())
            if events == 0 and self.source.refuse_empty:
                return _Packed(fault=f"{name} has no events; take it out of the folder")
            small = frames.astype(np.uint16 if frames.max() < 2**16 else np.uint32)
            return _Packed(
                zlib.compress(small.astype(small.dtype.newbyteorder("<")).tobytes(), 1),
                small.itemsize,
                events,
            )
        except Fault as fault:
            return _Packed(fault=str(fault))
        except Exception as error:
            return _Packed(fault=f"{name} is damaged: {one_line(error)}")


def cache_key(source: Recordings, split: str, binning: Any, verify: bool) -> str:
    """A short text that another part, other frames, another file, or other content of a file changes.

    Raises:
        ValueError: frames whose ``repr`` does not show their settings.
        Fault: a file that cannot be read.
    """
    shown = repr(binning)
    if " at 0x" in shown:
        raise ValueError(f"the frames of {shown} cannot be kept: its repr does not show its settings")
    text = [str(FORMAT), source.kind, split, shown, *identify(source.files, verify)]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


class Frames(Dataset):
    """The frames of ``source``, on disk in a folder of their own whose name holds :func:`cache_key`.

    The folder is there only when it is complete. It holds ``frames.bin``, the packed frames of one recording after the
    other, written by one process through ordinary files, and ``index.npz``: where each begins, its checksum, the width
    of its counts and the number of its events.

    Args:
        split: what part of the set these are.
        binning: makes the frames of a recording, each of ``binning.steps`` steps and ``binning.shape``.
        cache: folders to look in; where no folder has the frames, they are made in the first that can be written.
        verify: identify files by their whole content, and check all frames before the first is used.
        workers: processes that make frames.

    Raises:
        RecipeError: no recordings, one that cannot be read or is empty, too little space, a full disk, a damaged cache.
    """

    def __init__(
        self,
        source: Recordings,
        split: str,
        binning: Binning,
        cache: Sequence[Path],
        verify: bool = True,
        workers: int = 0,
    ):
        if len(source) == 0:
            raise Fault(f"there are no {split} recordings of {source.kind}")
        self.targets = source.targets
        self.source = source
        self.shape = (binning.steps, *binning.shape)
        folder = f"{source.kind}-{cache_key(source, split, binning, verify)}"
        made = [place / folder for place in cache if (place / folder).exists()]
        if made:
            self.folder = made[0]
        else:
            self.folder = next((place for place in cache if writable(place)), cache[-1]) / folder
            pack = _Pack(source, binning)
            whole(self.folder, lambda new: _make(pack, new, workers), "give another --data.cache")
        self._open(verify)
        empty = np.flatnonzero(self.events == 0)
        if len(empty):
            rank_zero_warn(
                f"{len(empty)} recordings of {source.kind} are empty in their steps and stay as zeros; take them "
                f"out to leave them out: {', '.join(source.name(int(i)) for i in empty[:3])}"
            )

    def _open(self, verify: bool) -> None:
        try:
            with reading(self.folder / "index.npz"), np.load(self.folder / "index.npz") as index:
                self.starts, self.checksums = index["starts"], index["checksums"]
                self.widths, self.events = index["widths"], index["events"]
            with reading(self.folder / "frames.bin"):
                size = (self.folder / "frames.bin").stat().st_size
                if len(self.starts) != len(self.targets) + 1 or size != self.starts[-1]:
                    raise ValueError(
                        f"{len(self.targets)} recordings need {self.starts[-1]} bytes, it has {size}"
                    )
            for i in range(len(self) if verify else 0):
                self._bytes(i)
        except Fault as fault:
            raise RecipeError(f"{fault}; remove the folder {self.folder}, it is made again") from fault

    def _bytes(self, index: int) -> bytes:
        path = self.folder / "frames.bin"
        # opened anew: a handle would be shared among forked workers
        with reading(path), path.open("rb") as file:
            file.seek(self.starts[index])
            data = file.read(self.starts[index + 1] - self.starts[index])
            if zlib.crc32(data) != self.checksums[index]:
                raise ValueError(f"the checksum of {self.source.name(index)} differs; remove {self.folder}")
            return data

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        index = int(index)
        flat = np.frombuffer(zlib.decompress(self._bytes(index)), f"<u{self.widths[index]}")
        return flat.reshape(self.shape), int(self.targets[index])


def _make(pack: _Pack, folder: Path, workers: int) -> None:
    count = len(pack)
    probed = [pack[i] for i in sorted({count * k // 8 for k in range(8)})] if count else []
    _require_space(folder, [each for each in probed if each.fault is None], count)
    # a generator of its own: a run that makes frames draws the same numbers as one that finds them
    loader = DataLoader(pack, batch_size=None, num_workers=workers, generator=torch.Generator())
    starts, checksums, widths, events = [0], [], [], []
    with open(folder / "frames.bin", "wb") as file:
        # a bar only where somebody looks at it
        for packed in tqdm(loader, desc=f"{pack.source.kind} to frames, once", disable=None):
            if packed.fault is not None:
                raise Fault(packed.fault)
            file.write(packed.data)
            starts.append(starts[-1] + len(packed.data))
            checksums.append(zlib.crc32(packed.data))
            widths.append(packed.width)
            events.append(packed.events)
        file.flush()
        os.fsync(file.fileno())
    columns = {"starts": starts, "checksums": checksums, "widths": widths, "events": events}
    with open(folder / "index.npz", "wb") as file:
        np.savez(file, **{name: np.array(column, np.int64) for name, column in columns.items()})
        file.flush()
        os.fsync(file.fileno())


def _require_space(folder: Path, probed: Sequence[_Packed], count: int) -> None:
    if not probed:
        return
    needed = 1.25 * count * sum(len(each.data) for each in probed) / len(probed)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RecipeError(
            f"{folder.parent} has {free / 2**30:.2f} GiB free, the frames of {count} recordings need about "
            f"{needed / 2**30:.2f} GiB; give another --data.cache"
        )
