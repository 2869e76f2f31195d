"""Sleep-EDF: five stages of sleep from 30 seconds of one night's signal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from .files import Fault, find
from .signals import Recording, Signals, read_edf, standard

__all__ = ["SleepEDF"]

RATE, SECONDS = 100, 30
STAGES = {
    f"Sleep stage {name}": label for label, names in enumerate(("W", "1", "2", "34", "R")) for name in names
}
DROPPED = ("Sleep stage ?", "Movement time")


class SleepEDF(Signals):
    """PhysioNet's Sleep-EDF expanded, sleep-cassette: [N, channels, 3000], standardised for each night.

    Waking hours are cut to half an hour before the first and after the last sleep. Folds are by person, both nights
    together: 20 folds of 20 people, or 10 of 78. (The published script shuffled the windows of all nights, so that
    training and test shared nights, and chose the epoch on the test fold.)

    Args:
        people: 20, those of the release of 2013, or 78.
        channels: of 100 Hz.
    """

    names = ("W", "N1", "N2", "N3", "REM")
    classes = len(names)
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
        nights = [path for path in find(folder, "-psg.edf") if path.name.startswith("SC4")]
        nights = [path for path in nights if self.people == 78 or int(path.name[3:5]) < 20]
        hypnograms = find(folder, "-hypnogram.edf")
        wanted = 39 if self.people == 20 else 153
        if self.verify and len(nights) != wanted:
            raise Fault(f"the {self.people} people have {wanted} nights, {len(nights)} are in {folder}")
        read = []
        for path in nights:
            own = [other for other in hypnograms if other.name[:6] == path.name[:6]]
            if len(own) != 1:
                raise Fault(
                    f"{path} has {len(own)} hypnograms beside it, {path.name[:6]}*-Hypnogram.edf; one is needed"
                )
            read.append(self._night(path, own[0]))
        return read

    def _night(self, path: Path, hypnogram: Path) -> Recording:
        signal = read_edf(path, self.channels, RATE).x
        size = RATE * SECONDS
        starts, labels = [], []
        for onset, duration, text in read_edf(hypnogram, None, RATE).notes:
            if text not in STAGES and text not in DROPPED:
                raise Fault(f"{hypnogram} has the stage {text!r}, which is none of {', '.join(STAGES)}")
            for k in range(int(duration // SECONDS)):
                start = round((onset + k * SECONDS) * RATE)
                # hypnograms run past the signal
                if text in STAGES and start + size <= signal.shape[1]:
                    starts.append(start)
                    labels.append(STAGES[text])
        asleep = np.flatnonzero(np.array(labels) != 0)
        if len(asleep) == 0:
            raise Fault(f"{hypnogram} has no sleep within the signal of {path.name}")
        half_hour = 1800 // SECONDS
        kept = range(max(0, asleep[0] - half_hour), min(len(labels), asleep[-1] + half_hour + 1))
        signal = standard(signal, (1,))
        return Recording(
            path,
            path.name[3:5],
            np.stack([signal[:, starts[i] : starts[i] + size] for i in kept]),
            np.array([labels[i] for i in kept]),
            [f"night {path.name[5]} window {i}" for i in kept],
        )
