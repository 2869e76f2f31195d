"""Biological signals: windows that know their person and trial, and protocols that keep these apart."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset

from .. import RecipeError
from .base import Data
from .files import Fault, reading
from .loaders import Part

__all__ = ["Recording", "Signals", "divide", "named", "read_edf", "standard"]


@dataclass(frozen=True)
class Recording:
    """The windows of one file: x float32 [windows, channels, samples], a label and a trial for each."""

    path: Path
    person: str
    x: np.ndarray
    targets: np.ndarray
    trials: list[str]


def named(paths: Iterable[Path], pattern: str, form: str) -> dict[tuple[str, ...], Path]:
    """The files by the groups of ``pattern`` in their names; ``form`` is the pattern for an error message.

    Raises:
        Fault: a name that does not match, two files that are the same recording.
    """
    found: dict[tuple[str, ...], Path] = {}
    for path in paths:
        match = re.fullmatch(pattern, path.name)
        if match is None:
            raise Fault(f"{path} is not named {form}")
        other = found.setdefault(match.groups(), path)
        if other is not path:
            raise Fault(f"{other} and {path} are one recording by their names; keep one of them")
    return found


def divide(units: Iterable[str], fold: int, folds: int, val_fraction: float) -> dict[str, set[str]]:
    """Units (people, or trials) of the three parts of a fold: no unit is in two of them, each is tested in one fold.

    Folds are consecutive in the order given; the validation units are drawn from the others, the same for every seed.

    Raises:
        RecipeError: too few units.
    """
    ordered = list(dict.fromkeys(units))
    if not 0 <= fold < folds or folds > len(ordered) or len(ordered) < 3:
        raise RecipeError(
            f"fold {fold} of {folds} does not exist for {len(ordered)} people or trials; data.fold is 0 to "
            "data.folds - 1, and data.folds at most their number"
        )
    test = [ordered[i] for i in np.array_split(np.arange(len(ordered)), folds)[fold]]
    others = [unit for unit in ordered if unit not in set(test)]
    if len(others) < 2:
        raise RecipeError(
            f"{folds} folds leave {len(others)} of {len(ordered)} people or trials to train; give more"
        )
    held = min(max(1, round(val_fraction * len(others))), len(others) - 1)
    val = np.random.default_rng([fold, folds]).permutation(len(others))[:held]
    return {
        "train": {unit for i, unit in enumerate(others) if i not in set(val.tolist())},
        "val": {others[i] for i in val},
        "test": set(test),
    }


class Windows(Dataset):
    """All windows of a data set, in memory."""

    def __init__(self, recordings: list[Recording]):
        self.x = np.concatenate([each.x for each in recordings])
        self.targets = np.concatenate([each.targets for each in recordings]).astype(np.int64)
        self.people = np.array([each.person for each in recordings for _ in each.trials])
        self.trials = np.array([f"{each.person} {trial}" for each in recordings for trial in each.trials])

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.x[index], int(self.targets[index])


class Signals(Data):
    """Windows of signals [N, channels, samples], divided by person or by trial.

    Args:
        protocol: "cross": whole people are left out for test and for validation; "within": one ``person``, whose
            trials are divided, all windows of a trial together.
        fold, folds: which of how many parts is tested.
        person: of "within".
        val_fraction: part of the other people (or trials) that selects the model.
    """

    layout = "NCL"
    division = ("protocol", "fold", "folds", "person", "people", "val_fraction", "samples")
    names: tuple[str, ...]
    """Of the classes."""
    unit = "trials"
    """What "within" divides."""

    def __init__(
        self,
        protocol: Literal["cross", "within"] = "cross",
        fold: int = 0,
        folds: int = 10,
        person: str | None = None,
        **common: Any,
    ):
        super().__init__(**common)
        if (protocol == "within") != (person is not None):
            raise RecipeError("data.person is given with data.protocol within, and only with it")
        self.protocol = protocol
        self.fold = fold
        self.folds = folds
        self.person = person
        self._windows: Windows | None = None

    @property
    def about(self) -> str:
        """The protocol in one line, for the head of a run."""
        what = "people" if self.protocol == "cross" else f"{self.unit} of {self.person}"
        return f"{type(self).__name__}: fold {self.fold} of {self.folds} by {what}, {len(self.names)} classes"

    def recordings(self) -> list[Recording]:
        """Every recording that the settings ask for; raises Fault."""
        raise NotImplementedError

    def _read(self) -> Windows:
        recordings = self.recordings()
        if not recordings:
            raise Fault(f"{self.root} has no recordings")
        if self.person is not None:
            people = sorted({each.person for each in recordings})
            recordings = [each for each in recordings if each.person == self.person]
            if not recordings:
                raise RecipeError(f"data.person {self.person} is none of {people[0]} to {people[-1]}")
        _require_sound(recordings)
        windows = Windows(recordings)
        present = np.bincount(windows.targets, minlength=len(self.names))
        if not present.all():
            absent = ", ".join(name for name, count in zip(self.names, present, strict=True) if count == 0)
            raise Fault(
                f"{self.root} has no window of class {absent}, so no fold has; add recordings that have"
            )
        return windows

    def open(self, split):
        if self._windows is None:
            self._windows = self._read()
        windows = self._windows
        units = windows.people
        if self.protocol == "within":
            units = windows.trials
        parts = divide(self._in_order(windows, units), self.fold, self.folds, self.val_fraction)
        indices = np.flatnonzero(np.isin(units, sorted(parts[split])))
        absent = set(range(len(self.names))) - set(windows.targets[indices].tolist())
        if split == "train" and absent:
            names = ", ".join(self.names[k] for k in sorted(absent))
            raise RecipeError(f"class {names} has no training window in {self.about}; give other data.folds")
        return Part(windows, indices)

    def _in_order(self, windows: Windows, units: np.ndarray) -> list[str]:
        """People as they are numbered. Trials dealt out by class, so that each fold has its share of every class."""
        first = dict(zip(units[::-1].tolist(), windows.targets[::-1].tolist(), strict=True))
        ordered = sorted(first)
        if self.protocol == "cross":
            return ordered
        by_class = sorted(ordered, key=lambda unit: first[unit])
        return [unit for fold in range(self.folds) for unit in by_class[fold :: self.folds]]

    def transform(self, train):
        return torch.from_numpy


def _require_sound(recordings: list[Recording]) -> None:
    """No value that is no number, no flat channel, one shape, and no signal under two names."""
    seen: dict[str, Recording] = {}
    for each in recordings:
        if not np.isfinite(each.x).all():
            raise Fault(f"{each.path} has values that are no numbers (NaN or infinite)")
        _require_lively(each)
        if each.x.shape[1:] != recordings[0].x.shape[1:]:
            raise Fault(
                f"{each.path} has windows of {list(each.x.shape[1:])} channels and samples, {recordings[0].path} of "
                f"{list(recordings[0].x.shape[1:])}"
            )
        digest = hashlib.sha256(each.x.tobytes()).hexdigest()
        other = seen.setdefault(digest, each)
        if other is not each and len(each.x):
            raise Fault(f"{each.path} holds the same signal as {other.path}; remove the copy")


def _require_lively(recording: Recording) -> None:
    """A channel that is flat in a few windows is named, one that is flat in most of them is refused."""
    flat = recording.x.max(2) == recording.x.min(2)
    count, windows = flat.sum(0).max(initial=0), len(flat)
    if count == 0:
        return
    channel = int(flat.sum(0).argmax())
    first = recording.trials[int(flat[:, channel].argmax())]
    said = f"{recording.path} is flat in channel {channel} in {count} of {windows} windows, first in {first}"
    if count > windows / 2:
        raise Fault(said)
    rank_zero_warn(f"{said}; they are kept")


def standard(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Mean 0 and standard deviation 1 over ``axes``, as float32; a constant stays 0."""
    mean, deviation = x.mean(axes, keepdims=True), x.std(axes, keepdims=True)
    return ((x - mean) / np.where(deviation > 0, deviation, 1.0)).astype(np.float32)


# -- EDF


@dataclass(frozen=True)
class EDF:
    """Signals [channels, samples] of one rate, and annotations (onset in s, duration in s, text)."""

    x: np.ndarray
    notes: list[tuple[float, float, str]]
    start: datetime
    patient: str
    """Of the header; empty where it is anonymous."""


def read_edf(path: Path, channels: Iterable[str] | None, rate: int) -> EDF:
    """The named ``channels`` (without dots and case) of an EDF or EDF+ file, in that order; None: annotations alone.

    Raises:
        Fault: see :func:`reading`; a channel that is missing, or of another rate.
    """
    try:
        import pyedflib
    except ImportError as error:
        raise RecipeError("EDF files are read by pyedflib: pip install '.[examples]'") from error

    def plain(label: str) -> str:
        return label.replace(".", "").strip().lower()

    with reading(path):
        _require_whole_edf(path)
        with pyedflib.EdfReader(str(path)) as file:
            labels = [plain(label) for label in file.getSignalLabels()]
            signals = []
            for channel in channels or ():
                if plain(channel) not in labels:
                    raise Fault(
                        f"{path} has no channel {channel}; it has {', '.join(file.getSignalLabels()[:8])}"
                    )
                index = labels.index(plain(channel))
                found = file.getSampleFrequency(index)
                if found != rate:
                    raise Fault(f"{path} has {channel} at {found:g} Hz, {rate} Hz are needed")
                signals.append(file.readSignal(index))
            notes = [(float(a), float(b), str(c)) for a, b, c in zip(*file.readAnnotations(), strict=True)]
            start = file.getStartdatetime()
        with path.open("rb") as file:
            patient = " ".join(file.read(88)[8:].decode("latin-1").split())
        x = np.stack(signals) if signals else np.empty((0, 0))
        return EDF(x, notes, start, "" if set(patient) <= set("X ") else patient)


def _require_whole_edf(path: Path) -> None:
    """Raise ValueError where the file is not as long as its header says; the reader would print before it raises."""
    with path.open("rb") as file:
        header = file.read(256)
        count = int(header[252:256])
        file.seek(256 + 216 * count)
        samples = sum(int(file.read(8)) for _ in range(count))
    expected = int(header[184:192]) + 2 * samples * int(header[236:244])
    size = path.stat().st_size
    if size != expected:
        raise ValueError(f"its header says {expected} bytes, it has {size}")
