"""DEAP: emotions from the EEG of people who watch music videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import RecipeError
from .files import Fault, find, reading, unpickle
from .signals import Recording, Signals, named, standard

__all__ = ["DEAP"]

RATE, BASELINE, SECONDS, EEG = 128, 3, 60, 32
LIMIT = 1e6
"""Microvolts; what is beyond them is no EEG, and would leave the rest of its channel flat."""
RATINGS = ("valence", "arousal", "dominance", "liking")


class DEAP(Signals):
    """DEAP, preprocessed for Python: [N, 32, seconds * 128], whether a rating is above 5.

    From each second the mean of the three seconds before the video is subtracted; then every channel of a person is
    standardised. "within" divides a person's videos: windows of one video in training and test, as many published
    figures have them, measure how well a video is recognised.

    Args:
        rating: that is told from the signal.
        seconds: of a window, a divisor of 60.
    """

    names = ("low", "high")
    classes = 2
    division = (*Signals.division, "rating")  # trials are dealt out by class
    tree = "data_preprocessed_python/s<person>.dat"

    def __init__(
        self,
        rating: Literal["valence", "arousal", "dominance", "liking"] = "valence",
        seconds: int = 60,
        folds: int = 32,
        **common: Any,
    ):
        super().__init__(folds=folds, **common)
        if seconds < 1 or SECONDS % seconds:
            raise RecipeError(f"data.seconds must divide {SECONDS}, got {seconds}")
        self.rating = rating
        self.seconds = seconds

    @property
    def remedy(self):
        return "put DEAP's data_preprocessed_python in its place, for which its publisher asks a signed agreement"

    def recordings(self):
        folder = self.root / "data_preprocessed_python"
        files = named(find(folder, ".dat"), r"s(\d+)(?i:\.dat)", "s<person>.dat, as s01.dat")
        if self.verify and len(files) != 32:
            raise Fault(f"DEAP has 32 people, {len(files)} are in {folder}")
        return [self._person(path) for path in files.values()]

    def _person(self, path: Path) -> Recording:
        content = unpickle(path)
        with reading(path):
            data, labels = np.asarray(content["data"], float), np.asarray(content["labels"], float)
            if (
                data.ndim != 3
                or not len(data)
                or data.shape[1] < EEG
                or data.shape[2] != (BASELINE + SECONDS) * RATE
            ):
                raise ValueError(
                    f"its data are {list(data.shape)}, not trials of 40 channels and 8064 samples"
                )
            if labels.shape != (len(data), len(RATINGS)) or not ((labels >= 1) & (labels <= 9)).all():
                raise ValueError(f"it needs {len(data)} rows of four ratings from 1 to 9")
        if self.verify and len(data) != 40:
            raise Fault(f"{path} has {len(data)} trials, DEAP has 40")
        beyond = np.argwhere(np.abs(data[:, :EEG]) > LIMIT)
        if len(beyond):
            trial, channel, sample = beyond[0]
            raise Fault(
                f"{path} has the value {data[trial, channel, sample]:g} in trial {trial}, channel {channel}, sample "
                f"{sample}; EEG in microvolts lies within {LIMIT:g}"
            )
        x = data[:, :EEG].reshape(len(data), EEG, -1, RATE)
        x = x[:, :, BASELINE:] - x[:, :, :BASELINE].mean(2, keepdims=True)
        x = standard(x.reshape(len(data), EEG, -1), (0, 2))
        parts = SECONDS // self.seconds
        x = x.reshape(len(data), EEG, parts, -1).swapaxes(1, 2).reshape(len(data) * parts, EEG, -1)
        high = (labels[:, RATINGS.index(self.rating)] > 5).astype(np.int64)
        trials = [f"video {k:02d}" for k in range(len(data)) for _ in range(parts)]
        return Recording(path, path.stem, x, np.repeat(high, parts), trials)
