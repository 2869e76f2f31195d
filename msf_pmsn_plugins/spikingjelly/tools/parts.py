"""The parts that SpikingJelly 2.0.0 has and 0.0.0.0.14 lacks."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

__all__ = ["require"]


def require(part: str, instead: str) -> Any:
    """A part of SpikingJelly 2.0.0, or an ImportError that names what to do without it."""
    name = f"spikingjelly.activation_based.{part}"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        version = importlib.metadata.version("spikingjelly")
        raise ImportError(
            f"SpikingJelly {version} has no {name}, which 2.0.0 has; instead: {instead}"
        ) from error
