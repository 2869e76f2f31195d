"""snnTorch's own calls that do not know our neurons: a warning of its reset, a refusal of its tracers."""

from __future__ import annotations

import functools
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["refuse_tracers", "warn_of_their_reset"]


@functools.cache
def warn_of_their_reset() -> None:
    """Say once that ``snntorch.utils.reset`` passes our neurons by, where it walks a list of the host's classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # for the import alone
        from snntorch import utils
    if utils.reset.__module__ == utils.__name__ and hasattr(utils, "_layer_check"):
        warnings.warn(
            "snntorch.utils.reset does not reset neurons of msf_pmsn_plugins: call "
            "msf_pmsn_plugins.snntorch.reset(net), or put the code that calls it into "
            "`with msf_pmsn_plugins.snntorch.patched():`",
            stacklevel=_outside() + 1,
        )


def _outside() -> int:
    """How many frames above the caller of this the package was entered: where a warning belongs."""
    package, frame, level = str(Path(__file__).parents[1]), sys._getframe(1), 0
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    return level


def refuse_tracers(name: str, x: Any) -> None:
    """Raise where a tracer that does not know this neuron would make something wrong of it."""
    instead = "use msf_pmsn_plugins.nir.export_to_nir"
    if isinstance(x, torch.fx.Proxy):
        raise TypeError(
            f"{name} cannot be traced symbolically: for NIR {instead}, elsewhere name it as a leaf module"
        )
    if not torch.compiler.is_compiling() and nn.Module.__call__.__module__ == "nirtorch.graph":
        raise TypeError(
            f"snntorch.export_nir and nirtorch.extract_nir_graph do not know {name} and may leave an empty node in "
            f"the graph: {instead}"
        )
