"""Files that may be missing, cut, foreign, locked or on a full disk: read, named, identified and made in one way."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]

from .. import RecipeError

__all__ = [
    "Fault",
    "Locked",
    "find",
    "identify",
    "one_line",
    "places",
    "reading",
    "require_apart",
    "twins",
    "unpickle",
    "whole",
]

EDGE = 65_536
"""Bytes at either end of a file that tell it from another of the same name, size and time."""


class Fault(RecipeError):
    """What is wrong with one file; the data set that it belongs to adds the remedy."""


class Locked(Fault):
    """A file or folder that this user may not read."""


def one_line(error: BaseException) -> str:
    """The message of an error without its line ends; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Whatever goes wrong inside becomes one :class:`Fault` that names the file.

    Raises:
        Fault: the file is missing, no file, not readable for this user, or what its reader said of it.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise Fault(f"{path} is a folder or device, not a file")
        if path.is_file() and path.stat().st_size == 0:
            raise Fault(f"{path} is empty")
        yield
    except RecipeError:
        raise
    except FileNotFoundError as error:
        raise Fault(f"{path} is missing") from error
    except PermissionError as error:
        raise Locked(f"{path} may not be read by this user ({one_line(error)})") from error
    except Exception as error:  # the readers of pickles, images, HDF5 and event files raise all kinds
        raise Fault(f"{path} is cut or of another type ({one_line(error)})") from error


def find(folder: Path, *endings: str) -> list[Path]:
    """All files under ``folder`` with one of the endings, in any case of letters, sorted.

    Raises:
        Fault: a folder that is missing, that may not be read, or that is named like a file: what lies in it would be
            left out in silence.
    """

    def stop(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise Locked(f"{error.filename} may not be read by this user") from error
        raise Fault(f"{error.filename} is missing or no folder") from error

    found = []
    for path, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        for name in folders:
            if name.lower().endswith(endings):
                raise Fault(f"{Path(path, name)} is a folder, not a file")
        found += [Path(path, name) for name in files if name.lower().endswith(endings)]
    return sorted(found)


class _Arrays(pickle.Unpickler):
    """Reads what arrays, numbers, text and containers need, and nothing that runs code."""

    allowed = frozenset(
        (f"numpy.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            (f"{core}.multiarray", "_reconstruct"),
            (f"{core}.multiarray", "scalar"),
            (f"{core}.numeric", "_frombuffer"),
        )
    ) | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, but only arrays and plain values are read"
            )
        return super().find_class(module, name)


def unpickle(path: Path) -> Any:
    """A pickle of arrays and plain values, also of Python 2; anything that would run code is refused.

    Raises:
        Fault: see :func:`reading`.
    """
    with reading(path), path.open("rb") as file:
        return _Arrays(file, encoding="latin1").load()


# -- which file is it


def _digest(path: Path) -> str:
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identify(path: Path, full: bool) -> str:
    if full:
        return f"{path.resolve()} {_digest(path)}"
    with reading(path), path.open("rb") as file:
        facts = path.stat()
        ends = file.read(EDGE)
        file.seek(max(0, facts.st_size - EDGE))
        ends += file.read(EDGE)
        digest = hashlib.sha256(ends).hexdigest()
        return f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns} {facts.st_ino} {digest}"


def identify(files: Sequence[Path], full: bool) -> list[str]:
    """A line for each file that another file, or other content, does not share.

    Args:
        full: hash the whole content. Else path, size, time in nanoseconds, inode and :data:`EDGE` bytes at either end.

    Raises:
        Fault: a file that cannot be read.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: _identify(Path(path), full), files))


def _size(path: Path) -> int:
    with reading(path):
        return path.stat().st_size


def _end(path: Path) -> tuple[int, bytes]:
    """Size and last bytes: few files that differ have both in common."""
    with reading(path), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4096))
        return size, file.read()


def twins(some: Iterable[Path], others: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Pairs of files, one of ``some`` and one of ``others``, of the same content.

    Raises:
        Fault: a file that cannot be read.
    """
    parts = [list(some), list(others)]
    keys: list[list[Any]] = []
    for key in (_size, _end, _digest):  # whole files are read only where all else is equal
        with ThreadPoolExecutor() as pool:
            keys = [list(pool.map(key, paths)) for paths in parts]
        shared = set(keys[0]) & set(keys[1])
        kept = [[i for i, one in enumerate(mine) if one in shared] for mine in keys]
        parts = [[paths[i] for i in indices] for paths, indices in zip(parts, kept, strict=True)]
        keys = [[mine[i] for i in indices] for mine, indices in zip(keys, kept, strict=True)]
    first = dict(zip(keys[0], parts[0], strict=True))
    return [(first[key], path) for key, path in zip(keys[1], parts[1], strict=True)]


def require_apart(
    some: Iterable[Path], others: Iterable[Path], one: str = "training", other: str = "the test"
) -> None:
    """Raise RecipeError where a file of part ``one`` is in ``other`` too, under whatever name."""
    shared = twins(some, others)
    if shared:
        raise RecipeError(
            f"{len(shared)} of the files of {one} are in {other} too, the first is {shared[0][0]}, as {shared[0][1]}; "
            "take them out of one part"
        )


# -- where files are made


def places(given: str | None, beside: Path) -> list[Path]:
    """Folders where made files may lie, first choice first: the given one, or ``beside`` and the user's cache."""
    if given is not None:
        return [Path(os.path.expanduser(given))]
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [beside, Path(user) / "msf-pmsn-plugins" / "frames"]


def writable(folder: Path) -> bool:
    """False where this user may not make files in ``folder``; a full disk is another matter."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS)
    return True


def _lock(folder: Path) -> int | None:
    """Hold ``folder`` as long as this process, or a worker of it, lives; None where another one holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system that locks no folders: not known to be left over
        os.close(handle)
        return None
    return handle


def _sweep(parent: Path) -> None:
    """Remove the unfinished folders of processes that were killed."""
    if fcntl is None:
        return
    for folder in parent.glob(".*.partial-*"):
        try:
            handle = _lock(folder)
        except OSError:  # gone meanwhile
            continue
        if handle is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def whole(target: Path, build: Callable[[Path], Path | None], remedy: str = "free some space") -> None:
    """Make the folder ``target`` in one move: what ``build`` leaves in a new folder beside it (or returns a part of).

    An interrupted ``build`` leaves no ``target``; what a killed one leaves, a hidden folder beside it, the next call
    sweeps away.

    Raises:
        RecipeError: the place may not be written, the disk is full, the network failed, or ``build`` did.
    """
    if target.exists():
        return
    folder, handle = None, None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        handle = _lock(folder) if fcntl else None
        made = build(folder) or folder
        made.chmod(0o755)
        made.rename(target)
    except RecipeError:
        raise
    except (OSError, RuntimeError) as error:
        if not target.exists():  # else another process was faster
            if isinstance(error, URLError | ConnectionError | TimeoutError):
                raise RecipeError(
                    f"{target} could not be fetched: {one_line(error)}; check the network, or put the publisher's "
                    "files there by hand"
                ) from error
            raise RecipeError(
                f"{target} could not be made{_free(target)}: {one_line(error)}; {remedy}"
            ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _free(target: Path) -> str:
    try:
        return f" ({shutil.disk_usage(target.parent).free / 2**30:.1f} GiB free there)"
    except OSError:
        return ""
