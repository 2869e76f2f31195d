"""Arguments of the commands, refused while nothing is computed yet: each is a ``type`` of argparse."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from pathlib import Path

__all__ = ["at_least_one", "output", "picture"]


def at_least_one(text: str) -> int:
    """A whole number from 1 on."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number from 1 on, got {text}")
    return int(text)


def output(text: str) -> Path:
    """A file that can be written."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{text} is a folder; give a file")
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"there is no folder {path.parent} for {path.name}: make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ArgumentTypeError(f"{text} cannot be written: give another place")
    return path


def picture(text: str) -> Path:
    """A file that matplotlib can draw into."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentTypeError(f'{error}; pip install "msf-pmsn-plugins[plot]"') from error
    path, formats = output(text), sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in formats:
        raise ArgumentTypeError(f"{text} ends in none of {', '.join(f'.{name}' for name in formats)}")
    return path
