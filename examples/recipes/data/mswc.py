"""MSWC in NeuroBench's selection: 100 words to learn from many recordings, and 100 of ten other languages from few."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import RecipeError
from .audio import Spoken
from .files import Fault, reading
from .frames import Frames

__all__ = ["LANGUAGES", "MSWC"]

LANGUAGES = ("fa", "eo", "pt", "eu", "pl", "cy", "nl", "ru", "es", "it")
PARTS = {"train": 500, "val": 100, "test": 100}
"""Recordings of each of the 100 words."""
LATER = 200  # of each of the ten words of a language: the first half are shots, the others queries


@dataclass(frozen=True)
class Listed:
    """The recordings of a list, and the word of each."""

    files: list[Path]
    words: list[str]


def read_list(path: Path, clips: Path) -> Listed:
    """Rows <clip>,<word>,<language> below a header; the clip is <language>/clips/<clip> of ``clips``, as a WAV file.

    Raises:
        Fault: see :func:`reading`; another header, or a row that is no such row.
    """
    with reading(path):
        header, *rows = path.read_text(encoding="utf-8").splitlines() or [""]
        if header.split(",")[1:2] != ["WORD"]:
            raise ValueError(f"it begins with {header[:40]!r}, not with names of columns, the second WORD")
        files, words = [], []
        for number, row in enumerate(rows, 2):
            fields = row.strip().split(",")
            if len(fields) != 3 or not all(fields):
                raise ValueError(f"line {number} is {row[:60]!r}, not <clip>,<word>,<language>")
            clip, word, language = fields
            files.append((clips / language / "clips" / clip).with_suffix(".wav"))
            words.append(word)
    if not files:
        raise Fault(f"{path} lists no recordings")
    return Listed(files, words)


class MSWC(Spoken):
    """The 100 base words: [100, N, 40]; ``later`` has those of another language. Parts are the lists of the publisher.

    NeuroBench's archive holds Opus files of 48 kHz, or, in a second one, WAV files of 16 kHz, which are read here.
    """

    classes = 100
    tree = (
        "MSWC/base_{train,val,test}.csv, MSWC/en/clips/*/*.wav, MSWC/<language>/evaluation.csv, "
        "MSWC/<language>/clips/*/*.wav"
    )

    def __init__(self, **common: Any):
        super().__init__(**common)
        self._lists: dict[str, Listed] | None = None

    @property
    def remedy(self):
        return "put NeuroBench's mswc_fscil_subset, with WAV files of 16 kHz, in its place"

    @property
    def words(self) -> list[str]:
        """The base words, each at the index that is its label."""
        return sorted(set(self.lists()["train"].words))

    def lists(self) -> dict[str, Listed]:
        """The recordings of the three parts of the base words, of which none is in two parts."""
        if self._lists is not None:
            return self._lists
        folder = self.root / "MSWC"
        found = {split: read_list(folder / f"base_{split}.csv", folder) for split in PARTS}
        words, seen = set(found["train"].words), {}
        if len(words) > self.classes or (self.verify and len(words) < self.classes):
            raise Fault(
                f"{folder / 'base_train.csv'} has {len(words)} words, MSWC has {self.classes} base words"
            )
        for split, part in found.items():
            path = folder / f"base_{split}.csv"
            if other := set(part.words) - words:
                raise Fault(f"{path} has the word {min(other)!r}, which base_train.csv has not")
            if self.verify and len(part.files) != PARTS[split] * self.classes:
                raise Fault(
                    f"{path} has {len(part.files)} recordings, MSWC has {PARTS[split] * self.classes} in it"
                )
            for file in part.files:
                if file in seen:
                    raise Fault(f"{path} lists {file}, which base_{seen[file]}.csv lists too")
                seen[file] = split
        self._lists = found
        return found

    def open(self, split):
        part, index = self.lists()[split], {word: k for k, word in enumerate(self.words)}
        return self.spectrograms(split, part.files, [index[word] for word in part.words])

    def later(self, language: str) -> tuple[Frames, list[np.ndarray]]:
        """The recordings of another language, and for each of its ten words the indices of its recordings, as listed.

        Raises:
            RecipeError: a list that is missing or damaged, or, with ``verify``, another number of words or recordings.
        """
        return self._guarded(lambda: self._later(language))

    def _later(self, language: str) -> tuple[Frames, list[np.ndarray]]:
        if language not in LANGUAGES:
            raise RecipeError(f"the languages are {', '.join(LANGUAGES)}, got {language!r}")
        path = self.root / "MSWC" / language / "evaluation.csv"
        listed = read_list(path, self.root / "MSWC")
        words = list(dict.fromkeys(listed.words))
        labels = np.array([words.index(word) for word in listed.words])
        members = [np.flatnonzero(labels == label) for label in range(len(words))]
        if self.verify and [len(each) for each in members] != [LATER] * 10:
            raise Fault(
                f"{path} has {len(labels)} recordings of {len(words)} words, MSWC has {LATER} of each of 10"
            )
        return self.spectrograms(language, listed.files, labels), members
