"""EEGMMIDB: imagined movements of fists and feet from 64 channels of EEG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from .. import RecipeError
from .files import Fault, find
from .signals import EDF, Recording, Signals, named, read_edf, standard

__all__ = ["EEGMMIDB"]

RATE, SECONDS, TRIALS = 160, 3, 21
LEFT_OUT = (88, 92, 100, 104)
"""People with another rate, or trials of other lengths."""
MONTAGE = """
Fc5 Fc3 Fc1 Fcz Fc2 Fc4 Fc6 C5 C3 C1 Cz C2 C4 C6 Cp5 Cp3 Cp1 Cpz Cp2 Cp4 Cp6 Fp1 Fpz Fp2 Af7 Af3 Afz Af4 Af8
F7 F5 F3 F1 Fz F2 F4 F6 F8 Ft7 Ft8 T7 T8 T9 T10 Tp7 Tp8 P7 P5 P3 P1 Pz P2 P4 P6 P8 Po7 Po3 Poz Po4 Po8 O1 Oz O2 Iz
"""
FISTS, BOTH, REST = (4, 8, 12), (6, 10, 14), (1,)
CUES = (
    {(run, "T1"): 0 for run in FISTS} | {(run, "T2"): 1 for run in FISTS} | {(run, "T2"): 3 for run in BOTH}
)


class EEGMMIDB(Signals):
    """PhysioNet's motor imagery: [N, 64, 480], the first three seconds of a trial, standardised for each run.

    Left fist, right fist, rest (windows of the run with open eyes) and feet, at most 21 of each for a person; people
    88, 92, 100 and 104 are left out. "cross" has folds of whole people in their order, five as in the literature.

    Args:
        classes: 2 (fists), 3 (and rest) or 4 (and feet).
    """

    tree = "S<person>/S<person>R<run>.edf"

    def __init__(self, classes: Literal[2, 3, 4] = 4, folds: int = 5, **common: Any):
        super().__init__(folds=folds, **common)
        if classes not in (2, 3, 4):
            raise RecipeError(f"data.classes must be 2, 3 or 4, got {classes}")
        self.classes = classes
        self.names = ("left fist", "right fist", "rest", "feet")[:classes]

    @property
    def remedy(self):
        return "put PhysioNet's eegmmidb 1.0.0 in its place"

    def recordings(self):
        runs = FISTS + (REST if self.classes > 2 else ()) + (BOTH if self.classes > 3 else ())
        people: dict[int, dict[int, Path]] = {}
        files = named(
            find(self.root, ".edf"), r"S(\d{3})R(\d\d)(?i:\.edf)", "S<person>R<run>.edf, as S001R04.edf"
        )
        for name, path in files.items():
            person, run = map(int, name)
            if run in runs and person not in LEFT_OUT:
                people.setdefault(person, {})[run] = path
        if self.verify and len(people) != 105:
            raise Fault(f"EEGMMIDB has 105 people without the four, {len(people)} are in {self.root}")
        read = []
        for person, own in people.items():
            absent = [run for run in runs if run not in own]
            if absent:
                raise Fault(f"{self.root}/S{person:03d}/S{person:03d}R{absent[0]:02d}.edf is missing")
            taken = dict.fromkeys(range(self.classes), 0)
            read += [self._run(own[run], run, f"S{person:03d}", taken) for run in runs]
        return [each for each in read if len(each.x)]

    def _run(self, path: Path, run: int, person: str, taken: dict[int, int]) -> Recording:
        """The windows of a run; ``taken`` counts those of each class that this person has already."""
        edf, size = read_edf(path, MONTAGE.split(), RATE), RATE * SECONDS
        signal = standard(edf.x, (1,))
        windows = []
        for start, label in _trials(path, run, edf):
            if taken[label] < TRIALS:
                taken[label] += 1
                windows.append((start, label))
        return Recording(
            path,
            person,
            np.array([signal[:, start : start + size] for start, _ in windows], np.float32).reshape(
                -1, 64, size
            ),
            np.array([label for _, label in windows], np.int64),
            [f"run {run} trial {start}" for start, _ in windows],
        )


def _trials(path: Path, run: int, edf: EDF) -> list[tuple[int, int]]:
    """First sample and label of every trial of a run; one that does not hold a window is left out and named."""
    size, length = RATE * SECONDS, edf.x.shape[1]
    trials = [(start, 2) for start in range(0, length - size + 1, size)] if run in REST else []
    short, notes = [], sorted(edf.notes)
    for (onset, duration, text), following in zip(notes, [*notes[1:], None], strict=True):
        if text not in ("T0", "T1", "T2"):
            raise Fault(f"{path} has the annotation {text!r}, which is none of T0, T1, T2")
        if (run, text) not in CUES:
            continue
        start = round(onset * RATE)
        lasts = min(duration, (following[0] if following else math.inf) - onset, length / RATE - onset)
        if following and following[0] == onset:
            raise Fault(f"{path} has two annotations at {onset:g} s: {text} and {following[2]}")
        if start < 0 or round(lasts * RATE) < size:
            short.append(f"{text} at {onset:g} s ({max(0.0, lasts):g} s)")
        else:
            trials.append((start, CUES[run, text]))
    if not trials:
        raise Fault(f"{path} has no trial of {SECONDS} s: {', '.join(short) or 'there is none'}")
    if short:
        rank_zero_warn(
            f"{path}, {length / RATE:g} s: left out are trials that end, or meet the next or the end of the recording, "
            f"before their window of {SECONDS} s does: {', '.join(short)}"
        )
    return trials
