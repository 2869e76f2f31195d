"""Arguments of the commands, refused while nothing is computed yet: types of argparse, and what jsonargparse says."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from pathlib import Path

__all__ = ["at_least_one", "output", "picture", "said"]


def at_least_one(text: str) -> int:
    """A whole number from 1 on."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number from 1 on, got {text}")
    return int(text)


def output(text: str) -> Path:
    """A file that can be written."""
    path = Path(text).expanduser()
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
        raise ArgumentTypeError(f'{error}; pip install ".[plot]"') from error
    path, formats = output(text), sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in formats:
        raise ArgumentTypeError(f"{text} ends in none of {', '.join(f'.{name}' for name in formats)}")
    return path


NOISE = (
    "Does not validate against",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
    "Subtypes:",
    "Subclass types expect",
    "a class path (str)",
    "a dict with",
    "Given value type:",
    *(f"Given value: {whole}" for whole in ("{", "[", "Namespace(", "NestedArg(")),
)
"""Lines of jsonargparse about the types that it tried."""


def said(error: Exception) -> str:
    """What jsonargparse says in a tree of lines, in one: the name of the setting, its class, and what is wrong."""
    names, owner, wrong = [], "", []
    for line in str(error).splitlines():
        text = line.strip(" -")
        if match := re.fullmatch(r'Parser key "([^"]+)": *(.*)', text):
            names.append(match[1])
            text = match[2]
        if match := re.fullmatch(r"Problem with given class_path '([^']+)':", text):
            owner = f" ({match[1]})"
        elif text and not text.startswith(NOISE):
            wrong.append(text.replace("Expected a dot import path string", "there is no such class"))
    return f"{'.'.join(names)}{owner}{': ' if names else ''}{'; '.join(wrong)}"
