"""Primate reaching: how a monkey moves a cursor, told from spikes of its motor cortex."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.utils import check_integrity, download_url

from .. import RecipeError
from .base import Data
from .files import Fault, reading, whole

__all__ = ["SESSIONS", "PrimateReaching"]

STEP = 0.004  # seconds
SITE = "https://zenodo.org/record/583331/files"
SESSIONS = {
    "indy_20160622_01": "c33d5fff31320d709d23fe445561fb6e",
    "indy_20160630_01": "197413a5339630ea926cbd22b8b43338",
    "indy_20170131_02": "2790b1c869564afaa7772dbf9e42d784",
    "loco_20170210_03": "4cae63b58c4cb9c8abd44929216c703b",
    "loco_20170215_02": "739b70762d838f3a1f358733c426bb02",
    "loco_20170301_05": "47342da09f9c950050c9213c3df38ea3",
}
"""NeuroBench's six of the published sessions, with their MD5 checksums."""


@dataclass(frozen=True)
class Session:
    """A session in steps of 4 ms.

    Args:
        x: whether a channel had a spike, uint8 [steps, channels].
        y: velocity of the cursor along either axis, in millimetres a step, float64 [steps, 2].
        reaches: first steps of the reaches, from 0 on; a reach ends where the target moves.
    """

    x: np.ndarray
    y: np.ndarray
    reaches: np.ndarray


def read_session(path: Path) -> Session:
    """A file of the publisher: MATLAB's 7.3, that is HDF5, whose spike times lie in cells [units, channels].

    As in NeuroBench a step has the spikes of the 4 ms before the time of the step before it: none knows of later ones.

    Raises:
        Fault: see :func:`reading`; arrays that are missing or do not fit together; times that are not 4 ms apart.
    """
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        if missing := [name for name in ("t", "spikes", "cursor_pos", "target_pos") if name not in file]:
            raise ValueError(f"it has no {', '.join(missing)}")
        t = np.asarray(file["t"], float).ravel()
        place, target = (np.asarray(file[name], float) for name in ("cursor_pos", "target_pos"))
        if len(t) < 2 or place.shape != (2, len(t)) or target.shape != (2, len(t)):
            raise ValueError(
                f"it has {len(t)} times, cursor_pos {list(place.shape)} and target_pos {list(target.shape)}"
            )
        if not (np.isfinite(t).all() and np.isfinite(place).all() and np.isfinite(target).all()):
            raise ValueError("a time or place is no number")
        if np.abs(np.diff(t) - STEP).max() > STEP / 4:
            raise ValueError(f"its times are not {STEP} s apart")
        cells = file["spikes"]
        x = np.zeros((len(t), cells.shape[1]), np.uint8)
        for unit, channel in np.ndindex(*cells.shape):
            cell = file[cells[unit, channel]]
            if "MATLAB_empty" in cell.attrs:  # its content is the shape of nothing
                continue
            times = np.asarray(cell, float).ravel()
            if np.isnan(times).any():
                raise ValueError(f"unit {unit} of channel {channel} has a time that is no number")
            steps = np.searchsorted(t, times, side="right") + 1
            x[steps[(times >= t[0] - STEP) & (steps < len(t))], channel] = 1
    moved = np.flatnonzero(np.abs(np.diff(target, axis=1)).sum(0))
    return Session(x, np.gradient(place, axis=1).T, np.append(0, moved))


class Stretches(Dataset):
    """Consecutive steps (x, y) of a session, from each of ``starts`` on."""

    def __init__(self, x: np.ndarray, y: np.ndarray, starts: np.ndarray, window: int):
        self.x = x
        self.y = y
        self.starts = starts
        self.window = window

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index):
        part = slice(self.starts[index], self.starts[index] + self.window)
        return self.x[part], self.y[part]


class PrimateReaching(Data):
    """NeuroBench's task: x [window, N, 96 or 192] spikes in 4 ms, y [window, N, 2] velocities of the cursor.

    As in NeuroBench, the first 80 % of the reaches are for training, the next 10 % for validation, the last for test.
    Velocities are divided by their standard deviation in the training part, so a loss of 1 is that of a constant and R²
    is the same. Samples begin at rest; ``python examples/harness.py`` runs the test part as one.

    Args:
        session: a key of :data:`SESSIONS`; "indy" has 96 channels, "loco" 192.
        window: steps of a sample; those of training overlap by half.
    """

    layout = "TNC"

    def __init__(self, session: str = "indy_20160622_01", window: int = 250, **common: Any):
        super().__init__(**common)
        if window < 1:
            raise RecipeError(f"data.window must be positive, got {window}")
        if self.verify and session not in SESSIONS:
            raise RecipeError(f"data.session is one of {', '.join(SESSIONS)}, got {session!r}")
        self.session = session
        self.window = window
        self.tree = f"PrimateReaching/{session}/{session}.mat"
        self._parts: dict[str, tuple[np.ndarray, np.ndarray]] | None = None

    def fetch(self):
        def build(folder: Path) -> None:
            name = f"{self.session}.mat"
            download_url(f"{SITE}/{name}", folder, name, SESSIONS.get(self.session))

        whole(self.root / "PrimateReaching" / self.session, build)

    def part(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All consecutive steps of a part: spikes uint8 [steps, channels], velocities float32 [steps, 2]."""
        if self._parts is None:
            self._parts = self._divide()
        return self._parts[split]

    def _divide(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        path = self.root / self.tree
        with reading(path):
            if self.verify and not check_integrity(path, SESSIONS[self.session]):
                raise Fault(f"{path} has another checksum than the publisher's")
        session = read_session(path)
        count = len(session.reaches)
        train = count * 4 // 5
        val = train + (count - train) // 2
        if train == 0 or val == train:
            raise Fault(f"{path} has {count} reaches; ten are needed for three parts")
        first, second = session.reaches[train], session.reaches[val]
        deviation = session.y[:first].std(0)
        if not deviation.all():
            raise Fault(f"{path} has a cursor that stays where it is along an axis")
        y = (session.y / deviation).astype(np.float32)
        ranges = {"train": slice(0, first), "val": slice(first, second), "test": slice(second, None)}
        return {split: (session.x[part], y[part]) for split, part in ranges.items()}

    def open(self, split):
        x, y = self.part(split)
        stride = max(1, self.window // 2) if split == "train" else self.window
        starts = np.arange(0, len(x) - self.window + 1, stride)
        if len(starts) == 0:
            raise RecipeError(f"the {split} part of {self.session} has {len(x)} steps; lower data.window")
        return Stretches(x, y, starts, self.window)

    def transform(self, train):
        return to_float

    def arrange(self, batch):
        return tuple(each.transpose(0, 1) for each in batch)


def to_float(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x.astype(np.float32))
