"""From a file to the state dict in it."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

# Entries of a file that may hold the weights.
WRAPPERS = (
    *("state_dict", "model", "best_net", "model_state_dict", "net", "weights"),
    *("state_dict_ema", "model_ema", "ema"),
)


# The first bytes of what comes in place of a checkpoint.
IMPOSTORS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights: run git lfs pull",
    b"<": "is a web page, not a checkpoint: the download needs a login, or has moved",
    b"{": "is JSON, not a checkpoint",
    b"\x89HDF": "is an HDF5 file, not a checkpoint of torch.save",
}
FLOAT8 = "floats of 8 bits or fewer, whose scale stands elsewhere: convert it to float32"
BLANK = b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"  # what text may begin with: marks of its encoding, and white space


def read_state_dict(file: Any, weights: str | None = None) -> tuple[dict[str, Tensor], str]:
    """The state dict in a file, or in what a file holds, and where in it: the only way in for both readers.

    Raises:
        ValueError: no checkpoint, an unsafe or damaged one, none or several state dicts in it, or an entry without
            plain numbers; one line that names the file.
        OSError: a file that cannot be opened.
    """
    name = name_of(file)
    state, where = unwrap(load(file), weights, name)
    for key, value in state.items():
        if why := _no_numbers(value):
            raise ValueError(f"{name}: entry {key!r} is {why}")
    return state, where


def name_of(file: Any) -> str:
    """The path of a file as a message names it."""
    path = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
    return repr(os.fspath(path)) if isinstance(path, str | os.PathLike) else "the file"


def load(file: Any) -> Any:
    """What a file holds, or ``file`` itself if it is a dict; no code in it is run."""
    if isinstance(file, Mapping):
        return file
    if isinstance(file, nn.Module):
        raise TypeError("read takes a file or a state dict, got a module: pass its state_dict()")
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:
            return _read(opened, name_of(file))
    if not hasattr(file, "read"):
        raise TypeError(f"read takes a file or a state dict, got {type(file).__name__}")
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"{name_of(file)} is open for text: open it with mode 'rb', or pass its path")
    return _read(file, name_of(file))


def _read(file: IO[bytes], name: str) -> Any:
    zipped = _check_head(file, name).startswith(b"PK")
    # Scripts save their arguments beside the weights; a Namespace runs no code.
    harmless: list[Any] = [
        c for c in (argparse.Namespace,) if c not in torch.serialization.get_safe_globals()
    ]
    try:
        with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on the format: what does not fit is said below
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"Unsupported (?:global|class)[^\n]*|[^\n]*GLOBAL[^\n]*", str(error))
        # An old file that ends inside a name is cut, and the half name is no class.
        if unsafe is None or not (zipped or file.read(1)):
            raise _damaged(name, error) from error
        raise ValueError(
            f"{name} is not a plain checkpoint: it holds objects that may run code when they are read, so it was "
            f"refused ({unsafe[0].strip()}). If you trust it, read it where that does no harm, save its state dict "
            "alone and read that; or, for harmless types such as NumPy numbers, call read inside "
            "torch.serialization.safe_globals([..])"
        ) from error
    except (
        Exception
    ) as error:  # a damaged file fails anywhere in torch's reader, as anything, OSError among it
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> ValueError:
    line = next(iter(str(error).splitlines()), "")
    return ValueError(
        f"{name} cannot be read: it is no checkpoint of torch.save, or was cut short or damaged "
        f"({type(error).__name__}{': ' if line else ''}{line})"
    )


def _check_head(file: IO[bytes], name: str) -> bytes:
    """The first bytes, where the file can go back to them; raise ValueError if they are those of something else."""
    if not file.seekable():
        return b""
    at = file.tell()
    head = file.read(64)
    file.seek(at)
    if not head:
        raise ValueError(f"{name} is empty: nothing was written, or nothing was downloaded")
    if head[8:10] == b'{"':
        raise ValueError(f"{name} is a safetensors file: pass what safetensors.torch.load_file returns")
    for start, what in IMPOSTORS.items():
        if head.lstrip(BLANK).startswith(start):
            raise ValueError(f"{name} {what}")
    return head


def _no_numbers(value: Tensor) -> str:
    """Why an entry cannot be copied as it is; empty if it can."""
    if is_lazy(value):
        return "not initialized, so it has no values: run the model once before it is saved"
    if value.is_meta:
        return "a meta tensor, which has no values"
    if value.is_quantized:
        return "quantized: dequantize it before it is saved"
    if value.is_nested or value.layout != torch.strided:
        layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        return f"no dense tensor ({layout}): make it dense before it is saved"
    if value.is_floating_point() and value.element_size() < 2:
        return FLOAT8
    return ""


def unwrap(data: Any, weights: str | None, name: str = "the file") -> tuple[dict[str, Tensor], str]:
    """The state dict inside ``data``, and where it was."""
    path = []
    if weights is not None:
        if not isinstance(data, Mapping) or weights not in data:
            raise ValueError(f"{name} has no entry {weights!r}; it holds {contents_of(data)}")
        data, path = data[weights], [weights]
    around: list[Any] = []
    while not is_state_dict(data):
        if any(data is outer for outer in around):
            raise ValueError(
                f"found no state dict: {name} holds a dict that holds itself, at {' / '.join(path)}"
            )
        around.append(data)
        found = [key for key in WRAPPERS if isinstance(data, Mapping) and isinstance(data.get(key), Mapping)]
        if not found:
            where = (
                f"{' / '.join(path)} of {name}" if path and name != "the file" else " / ".join(path) or name
            )
            raise ValueError(
                f"found no state dict: {where} holds {contents_of(data)}. Expected names of tensors, or an entry with "
                "them; name it with weights=.."
            )
        if len(found) > 1:
            raise ValueError(
                f"{name} holds several entries with weights, {found}: choose one with weights=.."
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
    entries = sorted(data.items(), key=lambda entry: isinstance(entry[1], Tensor))  # what is odd comes first
    shown = [f"{key!r} ({type(value).__name__})" for key, value in entries[:20]]
    return ", ".join([*shown, *([f"{len(data) - 20} more"] if len(data) > 20 else [])]) or "nothing"
