"""Spoken words: WAV files, and their spectrograms, which are kept like frames of events."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import wavfile
from torch import Tensor

from .. import RecipeError
from .base import Data
from .files import Fault, reading
from .frames import Frames, Separate

__all__ = ["Spectrogram", "Spoken", "read_wav"]

RATE = 16_000


def read_wav(path: Path) -> np.ndarray:
    """A second of mono sound, 16-bit numbers at 16 kHz: int16 [16000], zeros at the end of a shorter recording.

    Raises:
        Fault: see :func:`reading`; another rate, type or number of channels; a longer recording; one that is cut.
    """
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of text
        # mapped into memory, since else a file that ends before its header says so is read as a shorter one
        rate, found = wavfile.read(path, mmap=True)
        if rate != RATE:
            raise Fault(f"{path} has {rate} Hz, {RATE} Hz are needed: resample it")
        if found.dtype != np.int16 or found.ndim != 1:
            channels = 1 if found.ndim == 1 else found.shape[1]
            raise Fault(f"{path} has {channels} channels of {found.dtype}; one channel of int16 is needed")
        if len(found) > RATE:
            raise Fault(f"{path} has {len(found) / RATE:.2f} s, at most 1 s is needed: cut it")
        return np.pad(found, (0, RATE - len(found)))


@dataclass(frozen=True)
class Spectrogram:
    """How loud a second of sound is, in hundredths of a decibel: signal int16 [16000] -> int64 [steps, bands].

    Hann windows of two and a half steps, around the middle of each; triangular bands of equal width on the mel scale
    (HTK's), from 0 to 8 kHz. A sine of amplitude a (int16) in the middle of a band has 20 log10(a) decibels; silence 0.

    Args:
        steps: windows of the recording, a divisor of 8000.
        bands: of frequency.
    """

    steps: int = 100
    bands: int = 40

    def __post_init__(self):
        if self.steps < 1 or RATE // 2 % self.steps or self.bands < 1:
            raise RecipeError(
                f"data.steps must divide {RATE // 2} and data.bands be positive, got {self.steps} and {self.bands}"
            )
        if (self.filters.sum(1) == 0).any():
            raise RecipeError(
                f"data.bands {self.bands} are too narrow for {self.steps} steps; lower one of them"
            )

    @property
    def shape(self) -> tuple[int]:
        return (self.bands,)

    @cached_property
    def window(self) -> np.ndarray:
        width = 5 * RATE // self.steps // 2
        return 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(width) + 0.5) / width)

    @cached_property
    def size(self) -> int:
        """Of the Fourier transform: a power of two."""
        return 1 << (len(self.window) - 1).bit_length()

    @cached_property
    def filters(self) -> np.ndarray:
        """The weight of each frequency in each band: [bands, size // 2 + 1]."""
        top = 2595 * np.log10(1 + RATE / 2 / 700)
        corners = 700 * (10 ** (np.linspace(0, top, self.bands + 2) / 2595) - 1)
        low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
        found = np.linspace(0, RATE / 2, self.size // 2 + 1)
        return np.clip(np.minimum((found - low) / (middle - low), (high - found) / (high - middle)), 0, None)

    def __call__(self, signal: np.ndarray) -> np.ndarray:
        hop, width = RATE // self.steps, len(self.window)
        around = (width - hop) // 2
        padded = np.pad(signal.astype(np.float64), (around, width - hop - around))
        windows = np.lib.stride_tricks.sliding_window_view(padded, width)[::hop]
        power = np.abs(np.fft.rfft(windows * self.window, self.size)) ** 2 / (self.window.sum() / 2) ** 2
        return np.rint(1000 * np.log10(1 + power @ self.filters.T)).astype(np.int64)


class Clips(Separate):
    """WAV files of a second each."""

    refuse_empty = False  # some are silent


def standard(frames: np.ndarray) -> Tensor:
    """Decibels with mean 0 and standard deviation 1 over the recording, float32 [T, bands]; silence stays 0."""
    x = torch.from_numpy(frames.astype(np.float32))
    return (x - x.mean()) / x.std(correction=0).clamp(min=1.0)


class Spoken(Data):
    """Words spoken in a second, as spectrograms [T, N, bands], standardised one by one.

    Args:
        steps: of time, a divisor of 8000.
        bands: of frequency.
    """

    layout = "TNC"

    def __init__(self, steps: int = 100, bands: int = 40, **common: Any):
        super().__init__(**common)
        self.spectrogram = Spectrogram(steps, bands)

    def spectrograms(self, split: str, files: Sequence[Path], labels: Sequence[int]) -> Frames:
        source = Clips(type(self).__name__, files, labels, read_wav)
        return Frames(source, split, self.spectrogram, self.places(), self.verify, self.num_workers)

    def transform(self, train):
        return standard
