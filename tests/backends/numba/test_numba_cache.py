"""The compiled kernels on disk: found again, made again, never in the way, never beside the package."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="needs the extra cpu")

from numba import types
from numba.core import config
from numba.core.ccallback import CFunc
from numba_problems import everything, inputs

import msf_pmsn_plugins
from msf_pmsn_plugins.backends.numba import cache, kernels

KEY = b"k" * 32


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def nothing(address):
    pass


def compiled(name="tiny"):
    """Compile a small function, or load it; return whether it was loaded."""
    function = CFunc(nothing, ((types.int64,), types.void), {}, {})
    function._cache = cache.Cache(name)
    function.compile()
    function.ctypes(0)
    return bool(function.cache_hits)


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_function_is_compiled_once(here):
    assert [compiled(), compiled(), compiled("other")] == [False, True, False]
    assert len(files(here)) == 2
    assert all(path.parent == here / "msf_pmsn_plugins" for path in files(here))


def emptied(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turned(path):
    path.write_bytes(path.read_bytes()[::-1])


def one_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_another(path):
    """The file of another function, or of another machine."""
    compiled("other")
    (other,) = (file for file in path.parent.iterdir() if file.name.startswith("other"))
    shutil.copy(other, path)


def no_pickle(path):
    """A file that is whole, and no compiled function."""
    codegen = CFunc._targetdescr.target_context.codegen()
    key, place = cache.Cache("tiny")._place(codegen)
    assert place == path
    cache.write(path, key, b"this is no pickle")


@pytest.mark.parametrize("damage", [emptied, cut, turned, one_bit, of_another, no_pickle])
def test_a_damaged_file_is_made_again(here, damage):
    compiled()
    (path,) = files(here)
    whole = path.read_bytes()
    damage(path)
    assert path.read_bytes() != whole
    assert [compiled(), compiled()] == [False, True]


def test_a_folder_in_the_way_is_left_alone(here):
    compiled()
    (path,) = files(here)
    path.unlink()
    path.mkdir()
    assert not compiled()
    assert path.is_dir()
    assert not files(here)  # nor what was to become the file


@pytest.mark.parametrize("what", ["sources", "version", "processor"])
def test_what_depends_on_something_else_is_another_file(here, what, monkeypatch):
    compiled()
    if what == "sources":
        monkeypatch.setattr(cache, "_sources", lambda: b"other")
    elif what == "version":
        monkeypatch.setattr(cache, "__version__", "9")
    else:
        codegen = type(CFunc._targetdescr.target_context.codegen())
        monkeypatch.setattr(codegen, "magic_tuple", lambda self: ("other",))
    assert not compiled()
    assert len(files(here)) == 2


def test_without_sources_nothing_is_kept(here, monkeypatch):
    monkeypatch.setattr(cache, "_sources", lambda: None)
    assert [compiled(), compiled()] == [False, False]
    assert not files(here)


def test_the_hash_is_of_every_kernel_source():
    names = {path.name for path in (Path(cache.__file__).parent / "kernels").glob("*.py")}
    assert {"msf.py", "pmsn_forward.py", "pmsn_backward.py", "lanes.py", "charges.py"} <= names
    read = []

    class Source:
        def __init__(self, path):
            self.name, self.path = path.name, path

        def read_bytes(self):
            read.append(self.name)
            return self.path.read_bytes()

    class Folder:
        def __init__(self, path):
            self.path = path

        def iterdir(self):
            return map(Source, self.path.iterdir())

    found = cache.resources.files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache.resources, "files", lambda name: Folder(Path(str(found(name)))))
        assert cache._sources.__wrapped__() == cache._sources()
    assert set(read) == names


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "{home}/.cache/msf_pmsn_plugins"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/msf_pmsn_plugins"),
        ("linux", {"XDG_CACHE_HOME": ""}, "{home}/.cache/msf_pmsn_plugins"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, None),
        ("darwin", {}, "{home}/Library/Caches/msf_pmsn_plugins"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/msf_pmsn_plugins"),
    ],
)
def test_the_folder_is_where_the_platform_keeps_such_files(
    platform, environment, expected, monkeypatch, tmp_path
):
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in {"HOME": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    found = cache.folder()
    assert found == (None if expected is None else Path(expected.format(home=tmp_path)))


def _write_often(path, data):
    for _ in range(50):
        cache.write(path, KEY, data)


def test_eight_writers_at_once(tmp_path):
    """A reader finds one of the files whole, always."""
    path = tmp_path / "folder" / "file.bin"
    contents = {bytes([i]) * 200_000 for i in range(8)}
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    writers = [context.Process(target=_write_often, args=(path, data)) for data in contents]
    for writer in writers:
        writer.start()
    found = []
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            found.append(cache.read(path, KEY))
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    found.append(cache.read(path, KEY))
    assert set(found) <= contents
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]


def test_every_kernel_can_be_kept():
    """None holds an address, or anything else that another process has not."""
    everything(inputs())
    for name in kernels.__all__:
        kernel = getattr(kernels, name)
        compiled = kernel._compiled["float32"]
        assert compiled._library.has_dynamic_globals is False


UNWRITABLE = """
import sys
sys.path.insert(0, {folder!r})
import torch, msf_pmsn_plugins
assert msf_pmsn_plugins.__file__.startswith({folder!r})
from msf_pmsn_plugins.neurons import MSF
s, v, _ = MSF(decay=0.5, backend="numba").sequence(torch.tensor([[[1.0]], [[0.25]], [[1.0]]]))
assert s.flatten().tolist() == [1, 0, 1], s
print("fine")
"""


@pytest.mark.parametrize("named", [True, False], ids=["NUMBA_CACHE_DIR", "home"])
def test_without_a_writable_folder_kernels_are_in_memory(named, tmp_path):
    """Unwritable for root, too: where folders should be made, a file is in the way."""
    package = Path(msf_pmsn_plugins.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "folder")
    environment = {**os.environ, "NUMBA_CACHE_DIR": nowhere if named else ""}
    environment |= dict.fromkeys(("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"), nowhere)
    before = set(files(tmp_path))
    done = subprocess.run(
        [sys.executable, "-B", "-P", "-c", UNWRITABLE.format(folder=str(tmp_path))],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")
    assert set(files(tmp_path)) == before
