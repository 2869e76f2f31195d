"""From a file to the state dict in it."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Entries of a file that may hold the weights.
WRAPPERS = ("state_dict", "model", "best_net", "model_state_dict", "net", "weights") + (
    "state_dict_ema",
    "model_ema",
    "ema",
)


def load(file: Any) -> Any:
    """What a file holds, or ``file`` itself if it is a dict; no code in it is run."""
    if isinstance(file, Mapping):
        return file
    if isinstance(file, nn.Module):
        raise TypeError("read takes a file or a state dict, got a module: pass its state_dict()")
    # Scripts save their arguments beside the weights; a Namespace runs no code.
    harmless: list[Any] = [
        c for c in (argparse.Namespace,) if c not in torch.serialization.get_safe_globals()
    ]
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "this file is not a plain checkpoint: it holds objects that may run code when they are read, so it was "
            "refused. If you trust it, read it where that does no harm, save its state dict alone and read that; or, "
            "for harmless types such as NumPy numbers, call read inside torch.serialization.safe_globals([..]).\n"
            f"{error}"
        ) from error


def unwrap(data: Any, weights: str | None) -> tuple[dict[str, Tensor], str]:
    """The state dict inside ``data``, and where it was."""
    path = []
    if weights is not None:
        if not isinstance(data, Mapping) or weights not in data:
            raise ValueError(f"the file has no entry {weights!r}; it holds {contents_of(data)}")
        data, path = data[weights], [weights]
    while not is_state_dict(data):
        found = [key for key in WRAPPERS if isinstance(data, Mapping) and isinstance(data.get(key), Mapping)]
        if not found:
            raise ValueError(
                f"found no state dict: {' / '.join(path) or 'the file'} holds {contents_of(data)}. Expected names of "
                "tensors, or an entry with them; name it with weights=.."
            )
        if len(found) > 1:
            raise ValueError(
                f"the file holds several entries with weights, {found}: choose one with weights=.."
            )
        path.append(found[0])
        data = data[found[0]]
    return dict(data), " / ".join(path) or "state dict"


def is_state_dict(data: Any) -> bool:
    """Whether it is a dict of tensors by name, and not empty."""
    return (
        isinstance(data, Mapping)
        and bool(data)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in data.items())
    )


def contents_of(data: Any) -> str:
    """What it holds, in words."""
    if not isinstance(data, Mapping):
        return f"a {type(data).__name__}"
    return ", ".join(f"{key!r} ({type(value).__name__})" for key, value in data.items()) or "nothing"
