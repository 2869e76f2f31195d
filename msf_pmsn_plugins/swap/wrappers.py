"""Models that something has wrapped already: what a wrapper prepared does not follow a swap inside."""

from __future__ import annotations

import torch
from torch import nn

from .spec import SwapError

__all__ = ["refuse_wrapped"]

WRAPPERS = (
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "FSDPModule",
    "OptimizedModule",
)


def refuse_wrapped(model: nn.Module, sites: list[str]) -> None:
    """Raise SwapError where ``model``, or a part of it with neurons, is wrapped, compiled or scripted."""
    for path, module in model.named_modules():
        if not path or any(site.startswith(f"{path}.") or site == path for site in sites):
            wrapper = _wrapper(module)
            if wrapper is not None:
                raise SwapError(
                    f"{path or 'the model'} is {wrapper} already, which would not know the new neurons: swap first, "
                    "then wrap"
                )


def _wrapper(module: nn.Module) -> str | None:
    names = {cls.__name__ for cls in type(module).__mro__}
    found = next((name for name in WRAPPERS if name in names), None)
    if found is not None:
        return f"wrapped in {found}"
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted"
    return "compiled" if getattr(module, "_compiled_call_impl", None) is not None else None
