"""Google Speech Commands, version 2: 35 words of many speakers."""

from __future__ import annotations

import hashlib
import re
import tarfile
from pathlib import Path

from torchvision.datasets.utils import download_url

from .audio import Spoken
from .files import Fault, find, reading, whole

__all__ = ["WORDS", "SpeechCommands"]

TEXT = """
backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine no off on one right
seven sheila six stop three tree two up visual wow yes zero
"""
WORDS = tuple(TEXT.split())
PUBLISHED = {"train": 84_843, "val": 9_981, "test": 11_005}
LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
ARCHIVE = "speech_commands_v0.02.tar.gz"
SITE = "http://download.tensorflow.org/data"
SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
NAME = re.compile(r"([a-z]+)/([^/]+)_nohash_\d+\.wav")  # the word, the speaker
NOISE = "_background_noise_"


def read_list(path: Path) -> set[str]:
    """The recordings that a list of the publisher names, as <word>/<file>.

    Raises:
        Fault: see :func:`reading`; a line that names no recording.
    """
    with reading(path):
        lines = path.read_text(encoding="utf-8").split()
    for number, line in enumerate(lines, 1):
        if not NAME.fullmatch(line):
            raise Fault(
                f"{path} has in line {number} {line[:60]!r}, not <word>/<speaker>_nohash_<number>.wav"
            )
    return set(lines)


class SpeechCommands(Spoken):
    """Google Speech Commands v2, 35 words: [100, N, 40]. Validation and test part are the publisher's lists.

    No speaker is in two parts. Recordings of background noise are left out.
    """

    classes = len(WORDS)
    folder = "SpeechCommands/speech_commands_v0.02"
    tree = f"{folder}/<word>/<speaker>_nohash_<number>.wav, {folder}/{{validation,testing}}_list.txt"
    _parts: dict[str, list[Path]] | None = None

    def fetch(self):
        def build(folder: Path) -> Path:
            download_url(f"{SITE}/{ARCHIVE}", folder)
            with (folder / ARCHIVE).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != SHA256:
                raise Fault(f"{SITE}/{ARCHIVE} has another checksum than the publisher's: fetch it again")
            with tarfile.open(folder / ARCHIVE) as archive:
                archive.extractall(folder / "set", filter="data")
            return folder / "set"

        whole(self.root / self.folder, build)

    def open(self, split):
        if self._parts is None:
            self._parts = self._divide()
        files = self._parts[split]
        return self.spectrograms(split, files, [WORDS.index(path.parent.name) for path in files])

    def _divide(self) -> dict[str, list[Path]]:
        """The files of each part."""
        folder = self.root / self.folder
        lists = {split: read_list(folder / name) for split, name in LISTS.items()}
        if twice := lists["val"] & lists["test"]:
            raise Fault(f"{folder} has {min(twice)} in both lists, of {' and '.join(LISTS.values())}")
        parts: dict[str, list[Path]] = {split: [] for split in PUBLISHED}
        heard: dict[str, tuple[str, Path]] = {}
        for path in find(folder, ".wav"):
            if path.parent == folder / NOISE:
                continue
            name = path.relative_to(folder).as_posix()
            match = NAME.fullmatch(name)
            if match is None or match[1] not in WORDS:
                raise Fault(
                    f"{path} is not one of {folder}/<word>/<speaker>_nohash_<number>.wav of the 35 words"
                )
            split = next((split for split, listed in lists.items() if name in listed), "train")
            before, other = heard.setdefault(match[2], (split, path))
            if before != split:
                raise Fault(
                    f"{path} is of the {split} part and {other} of the {before} part, but of one speaker; the lists "
                    f"{' and '.join(LISTS.values())} are not those of these files"
                )
            parts[split].append(path)
        for split, files in parts.items() if self.verify else ():
            if len(files) != PUBLISHED[split]:
                raise Fault(
                    f"Speech Commands v2 has {PUBLISHED[split]} {split} recordings, {len(files)} are in {folder}"
                )
        return parts
