"""Where counts mean something else than the binary spikes that a model was made for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from .probe import Run

__all__ = ["attention", "gated", "pooled", "rate_buffers"]

GATES = ("AND", "IAND")


def _owners(model: nn.Module, path: str) -> Iterator[tuple[str, Any]]:
    """The modules around ``path``, outermost first."""
    parts = path.split(".")
    for i in range(len(parts)):
        owner = ".".join(parts[:i])
        yield owner, model.get_submodule(owner)


def _gate(model: nn.Module, path: str) -> str | None:
    """``"cnf='IAND'"`` where a block around ``path`` multiplies spikes."""
    for _, owner in _owners(model, path):
        for name in ("cnf", "connect_f"):
            if getattr(owner, name, None) in GATES:
                return f"{name}={getattr(owner, name)!r}"
    return None


def gated(model: nn.Module, paths: Sequence[str], run: Run) -> dict[str, str]:
    """The sites whose counts a SEW block with AND or IAND multiplies: those inside, and the one before them."""
    found = {path: gate for path in paths if (gate := _gate(model, path)) is not None}
    order = sorted((run.calls[path][0].order, path) for path in paths if run.calls.get(path))
    called = [path for _, path in order]
    for before, path in itertools.pairwise(called):
        if path in found and before not in found:
            found[before] = found[path]
    return found


def attention(model: nn.Module, path: str, counts: int) -> str | None:
    """What counts do to the attention right around ``path``."""
    for _, owner in list(_owners(model, path))[1:][-2:]:
        heads = isinstance(getattr(owner, "num_heads", None), int)
        if heads or re.search(r"(?i)attention|attn|SSA|SDSA", type(owner).__name__):
            scale = next(
                (
                    value
                    for name in ("scale", "attn_scale", "qk_scale")
                    if isinstance(value := getattr(owner, name, None), int | float)
                    and not isinstance(value, bool)
                ),
                None,
            )
            text = (
                f"attention multiplies spikes: with counts 0..{counts} a product of two reaches {counts**2} and of "
                f"three {counts**3} times that of binary spikes"
            )
            return text if scale is None else f"{text}; its fixed scale {scale} was tuned to binary spikes"
    return None


def pooled(run: Run, path: str) -> str | None:
    """What a max-pool right behind ``path`` does to counts."""
    kinds = {call.pooled for call in run.calls.get(path, []) if call.pooled is not None}
    if not kinds:
        return None
    return f"{kinds.pop()} takes its output: of binary spikes that is OR, of counts the largest"


def rate_buffers(model: nn.Module) -> list[str]:
    """Buffers and attributes that hold firing rates: a mean of counts may exceed 1."""
    pattern = re.compile(r"(?i)(fir(e|ing)|spik(e|ing))_?rates?")
    found = []
    for path, module in model.named_modules():
        names = [*dict(module.named_buffers(recurse=False)), *vars(module)]
        found += [f"{path}.{name}".lstrip(".") for name in names if pattern.search(name)]
    return found
