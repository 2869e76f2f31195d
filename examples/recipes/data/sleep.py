"""Sleep-EDF: five stages of sleep from 30 seconds of one night's signal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from .files import Fault, find
from .signals import Recording, Signals, named, read_edf, standard

__all__ = ["SleepEDF"]

RATE, SECONDS = 100, 30
STAGES = {
    f"Sleep stage {name}": label for label, names in enumerate(("W", "1", "2", "34", "R")) for name in names
}
DROPPED = ("Sleep stage ?", "Movement time")
FORM = "SC4<person><night>E0-PSG.edf or SC4<person><night>EC-Hypnogram.edf, as SC4001E0-PSG.edf"


class SleepEDF(Signals):
    """PhysioNet's Sleep-EDF expanded, sleep-cassette: [N, channels, 3000], standardised for each night.

    Waking hours are cut to half an hour before the first and after the last sleep. Folds are by person, both nights
    together: 20 folds of 20 people, or 10 of 78. (The published script shuffled the windows of all nights, so that
    training and test shared nights, and chose the epoch on the test fold.) "within" deals out single windows, so that
    neighbours, which are much alike, are in different parts: its figures say little of another night.

    Args:
        people: 20, those of the release of 2013, or 78.
        channels: of 100 Hz.
    """

    names = ("W", "N1", "N2", "N3", "REM")
    classes = len(names)
    unit = "single windows, neighbours in different parts,"
    tree = "sleep-cassette/SC4<person><night>*-PSG.edf and SC4<person><night>*-Hypnogram.edf"

    def __init__(
        self,
        people: Literal[20, 78] = 20,
        channels: tuple[str, ...] = ("EEG Fpz-Cz",),
        folds: int = 20,
        **common: Any,
    ):
        super().__init__(folds=folds, **common)
        self.people = people
        self.channels = channels

    @property
    def remedy(self):
        return "put PhysioNet's sleep-edfx 1.0.0 in its place"

    def recordings(self):
        folder = self.root / "sleep-cassette"
        files = find(folder, ".edf")
        scored = [path for path in files if path.name.lower().endswith("-hypnogram.edf")]
        nights = named(
            [path for path in files if path not in scored], r"SC4(\d\d)(\d)[A-Z]\d(?i:-psg\.edf)", FORM
        )
        hypnograms = named(scored, r"SC4(\d\d)(\d)[A-Z]([A-Z])(?i:-hypnogram\.edf)", FORM)
        nights = {key: path for key, path in nights.items() if self.people == 78 or int(key[0]) < 20}
        wanted = 39 if self.people == 20 else 153
        if self.verify and len(nights) != wanted:
            raise Fault(f"the {self.people} people have {wanted} nights, {len(nights)} are in {folder}")
        read = []
        for (person, night), path in nights.items():
            own = [other for key, other in hypnograms.items() if key[:2] == (person, night)]
            if len(own) != 1:
                raise Fault(
                    f"{path} has {len(own)} hypnograms beside it, {path.name[:6]}*-Hypnogram.edf; one is needed"
                )
            read.append(self._night(path, own[0]))
        return read

    def _night(self, path: Path, hypnogram: Path) -> Recording:
        night, scored = read_edf(path, self.channels, RATE), read_edf(hypnogram, None, RATE)
        if night.start != scored.start:
            raise Fault(
                f"{path} begins at {night.start}, {hypnogram} at {scored.start}; they are not of one night"
            )
        if night.patient and scored.patient and night.patient != scored.patient:
            rank_zero_warn(f"{path} is of patient {night.patient!r}, {hypnogram} of {scored.patient!r}")
        size = RATE * SECONDS
        # hypnograms run past the signal
        windows = [each for each in _stages(hypnogram, scored.notes) if each[0] + size <= night.x.shape[1]]
        asleep = [i for i, (_, label) in enumerate(windows) if label != 0]
        if not asleep:
            raise Fault(f"{hypnogram} has no sleep within the signal of {path.name}")
        half_hour = 1800 // SECONDS
        kept = range(max(0, asleep[0] - half_hour), min(len(windows), asleep[-1] + half_hour + 1))
        signal = standard(night.x, (1,))
        return Recording(
            path,
            path.name[3:5],
            np.stack([signal[:, windows[i][0] : windows[i][0] + size] for i in kept]),
            np.array([windows[i][1] for i in kept]),
            [f"night {path.name[5]} window {i}" for i in kept],
        )


def _stages(path: Path, notes: list[tuple[float, float, str]]) -> list[tuple[int, int]]:
    """First sample and label of every scored half minute; raises Fault where stages overlap or end within one."""
    windows, end = [], 0
    for onset, duration, text in sorted(notes):
        if text not in STAGES and text not in DROPPED:
            raise Fault(f"{path} has the stage {text!r}, which is none of {', '.join(STAGES)}")
        start = round(onset * RATE)
        if start < end:
            raise Fault(
                f"{path}: {text!r} begins at {onset:g} s, before {end / RATE:g} s, where the stage before it ends"
            )
        if text in STAGES:
            if duration <= 0 or duration % SECONDS:
                raise Fault(
                    f"{path}: {text!r} at {onset:g} s lasts {duration:g} s, no multiple of {SECONDS} s"
                )
            windows += [(start + k * SECONDS * RATE, STAGES[text]) for k in range(int(duration // SECONDS))]
        end = start + round(max(duration, 0) * RATE)
    return windows
