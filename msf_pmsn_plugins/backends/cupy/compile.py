"""A kernel's text: a file of this folder with its includes put in and its settings as macros in front."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources

# No fused multiply-add but where the text says so: the bits are then those of the oracle, on every device. The same
# for all kernels: CuPy runs NVRTC once for each set of options, whatever its cache on disk holds.
OPTIONS = ("--std=c++17", "--fmad=false")

Macros = tuple[tuple[str, str | int], ...]


@dataclass(frozen=True)
class Kernel:
    """A kernel of one file, for one setting.

    ``macros`` are the settings that the file names in its first lines, in any order.
    """

    file: str
    name: str
    macros: Macros

    @cached_property
    def text(self) -> str:
        """What the compiler gets."""
        defines = "".join(f"#define {name} {value}\n" for name, value in self.macros)
        return f'{defines}#line 1 "{self.file}"\n{source(self.file)}'


@cache
def source(file: str) -> str:
    """The text of a kernel file with its own includes put in: CuPy's disk cache looks at nothing but the text."""
    text = (resources.files(__package__) / file).read_text(encoding="utf-8")

    def put_in(match: re.Match[str]) -> str:
        line = text.count("\n", 0, match.start()) + 2
        return f'#line 1 "{match[1]}"\n{source(match[1])}#line {line} "{file}"'

    return re.sub(r'#include "(\w+\.cuh)"', put_in, text)


@cache
def variants(file: str, kind: str) -> tuple[str, ...]:
    """The names that a file has a struct ``<kind>_<name>`` for."""
    return tuple(re.findall(rf"^struct {kind}_(\w+)", source(file), re.MULTILINE))


def words(file: str, kind: str) -> list[str]:
    """What a file knows, in the words of :func:`~msf_pmsn_plugins.settings.asks`."""
    return [f"{kind} {name!r}" for name in variants(file, kind)]


def variant(file: str, kind: str, name: str) -> str:
    """``charge_lif`` of ``"charge"`` and ``"lif"``; raise ValueError where the file has no such struct."""
    if name not in variants(file, kind):
        raise ValueError(
            f"backend 'cupy' has no {kind} {name!r}; known: {', '.join(variants(file, kind))}. "
            "Set backend='torch', which knows them all"
        )
    return f"{kind}_{name}"
