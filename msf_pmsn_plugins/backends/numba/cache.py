"""Compiled kernels on disk, in the user's cache folder: a file for each, made again when what it depends on changed.

A file is a hash and what it is the hash of. Whatever else lies there (cut short, from another machine, a folder) is
no such file: the kernel is compiled, and the file made again where that is possible. Where it is not, kernels stay in
memory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import sys
import tempfile
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from ... import __version__

__all__ = ["Cache", "folder"]


def folder() -> Path | None:
    """Where compiled kernels lie: below ``NUMBA_CACHE_DIR``, else in the user's cache folder; None: nowhere."""
    if config.CACHE_DIR:
        return Path(config.CACHE_DIR, "msf_pmsn_plugins")
    if sys.platform == "win32":
        user = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        user = "~/Library/Caches"
    else:
        user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    # A relative path would depend on where a program was started.
    path = Path(os.path.expanduser(user))
    return path / "msf_pmsn_plugins" if path.is_absolute() else None


@functools.cache
def _sources() -> bytes | None:
    """The hash of all kernel sources; None without sources."""
    known = hashlib.sha256()
    files = sorted(
        (file for file in resources.files(f"{__package__}.kernels").iterdir() if file.name.endswith(".py")),
        key=lambda file: file.name,
    )
    for file in files:
        text = file.read_bytes()
        known.update(f"{file.name} {len(text)}\n".encode() + text)
    return known.digest() if files else None


def read(path: Path, key: bytes) -> bytes | None:
    """What :func:`write` wrote there for ``key``; None if anything else lies there, or nothing."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    data = content[len(key) :]
    return data if content[: len(key)] == _stamp(key, data) else None


def write(path: Path, key: bytes, data: bytes) -> None:
    """Write a file at once or not at all, if it can be written: other processes may do the same."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_stamp(key, data) + data)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise


def _stamp(key: bytes, data: bytes) -> bytes:
    return hashlib.sha256(key + data).digest()


class Cache(_Cache):
    """What numba asks for one compiled function."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def cache_path(self) -> str | None:
        path = folder()
        return None if path is None else str(path)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None."""
        target_context.refresh()
        key, path = self._place(target_context.codegen())
        data = None if path is None else read(path, key)
        if data is not None:
            with contextlib.suppress(Exception):  # an unlucky combination of versions: compile
                return CompileResult._rebuild(target_context, *pickle.loads(data))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function."""
        key, path = self._place(data.codegen)
        if path is not None and not data.library.has_dynamic_globals:
            write(path, key, dumps(data._reduce()))

    def _place(self, codegen: Any) -> tuple[bytes, Path | None]:
        """The hash of all that a compiled function depends on, and its file, if it may have one."""
        versions = __version__, numba.__version__, version("llvmlite"), sys.version, config.OPT
        known = self.name, _sources(), versions, codegen.magic_tuple()  # the last: the CPU and its features
        key = hashlib.sha256(repr(known).encode()).digest()
        path = folder()
        if path is None or _sources() is None:
            return key, None
        return key, path / f"{self.name}-{key.hex()[:16]}.bin"

    def enable(self) -> None: ...

    def disable(self) -> None: ...

    def flush(self) -> None: ...
