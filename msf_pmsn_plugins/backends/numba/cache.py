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
from pathlib import Path
from typing import Any

import llvmlite
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
        codegen = target_context.codegen()
        found = self._place(codegen)
        if found is None:
            return None
        path, key = found
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            data = content[len(key) :]
            if content[: len(key)] == hashlib.sha256(key + data).digest():
                with contextlib.suppress(Exception):  # an unlucky combination of versions: compile
                    return CompileResult._rebuild(target_context, *pickle.loads(data))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the file at once or not at all: other processes may do the same."""
        found = self._place(data.codegen)
        if found is None or data.library.has_dynamic_globals:
            return
        path, key = found
        content = dumps(data._reduce())
        content = hashlib.sha256(key + content).digest() + content
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                os.replace(part, path)
            except BaseException:
                os.unlink(part)
                raise

    def _place(self, codegen: Any) -> tuple[Path, bytes] | None:
        """The file, and the hash of all that the compiled function depends on."""
        path, sources = folder(), _sources()
        if path is None or sources is None:
            return None
        versions = __version__, numba.__version__, llvmlite.__version__, sys.version, config.OPT
        key = hashlib.sha256(repr((self.name, sources, versions, codegen.magic_tuple())).encode()).digest()
        return path / f"{self.name}-{key.hex()[:16]}.bin", key

    def enable(self) -> None: ...

    def disable(self) -> None: ...

    def flush(self) -> None: ...
