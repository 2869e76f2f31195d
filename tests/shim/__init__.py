"""A CPU in the place of the CUDA device: g++ compiles the text that NVRTC would get, fibers run its threads.

:class:`ShimDevice` takes what the backend would launch: the same text, geometry and argument list. It
keeps every launch with a copy of its inputs, for tests of the launch path and for replays under the sanitizers
(``replay.py``).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from msf_pmsn_plugins.backends.cupy.compile import Kernel

from . import promises

HERE = Path(__file__).parent
CXX = os.environ.get("CXX", "g++")
# As --fmad=false on the device: no contraction. -mfma keeps the written ones in hardware.
FLAGS = (
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-Wall",
    "-Werror",
    "-Wno-unknown-pragmas",
)
FMA = ("-mfma",) if os.uname().machine == "x86_64" else ()
BUILDS = Path(tempfile.gettempdir()) / f"msf-pmsn-shim-{os.getuid()}"


@dataclass(frozen=True)
class Build:
    """How to compile: optimisation and what is watched."""

    flags: tuple[str, ...] = ("-O1", "-DSHIM_POISON")
    # The scheduler is never instrumented, it only tells the sanitizer what it does.
    scheduler_flags: tuple[str, ...] = ("-O1",)


class BuildError(Exception):
    """A compiler's complaint."""


def run(*command: str | Path) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        raise BuildError(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


@functools.cache
def _shim_hash() -> str:
    files = sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp")])
    version = run(CXX, "--version")
    return hashlib.sha256(b"\0".join([version.encode(), *(file.read_bytes() for file in files)])).hexdigest()


def _cached(name: str, key: Any, make: Any) -> Path:
    """The file ``name`` made for ``key``; made once, whichever process comes first."""
    folder = BUILDS / hashlib.sha256(f"{_shim_hash()}{key!r}".encode()).hexdigest()[:24]
    if not (folder / name).exists():
        BUILDS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILDS) as scratch:
            make(Path(scratch), Path(scratch) / name)
            folder.mkdir(exist_ok=True)
            os.replace(Path(scratch) / name, folder / name)
    return folder / name


@functools.cache
def scheduler(build: Build) -> Path:
    """The object file of the scheduler."""
    flags = ("-std=c++17", "-fPIC", "-g", *build.scheduler_flags)
    return _cached(
        "scheduler.o",
        build,
        lambda _, out: run(CXX, *flags, "-c", HERE / "scheduler.cpp", "-o", out),
    )


def compile_text(text: str, build: Build, scratch: Path, *link: str | Path) -> None:
    """Compile a kernel text with an entry for each of its kernels."""
    (scratch / "kernel.cu").write_text(text)
    flags = [*FLAGS, *FMA, *build.flags, "-I", HERE, "-include", HERE / "cuda_shim.h"]
    # Which kernels there are is known after the preprocessor.
    plain = run(CXX, *flags, "-E", "-x", "c++", scratch / "kernel.cu")
    names = re.findall(r'extern "C"\s+void\s+(\w+)\(', plain)
    entries = "".join(f"SHIM_EXPORT({name})\n" for name in names)
    (scratch / "kernel.cpp").write_text(f'#include "kernel.cu"\n#include "exports.h"\n{entries}')
    run(CXX, *flags, scratch / "kernel.cpp", *link)


@functools.cache
def library(text: str, build: Build = Build()) -> ctypes.CDLL:
    """The shared library of a kernel text."""
    link = ("-fPIC", "-shared", scheduler(build))
    path = _cached(
        "kernel.so",
        (text, build),
        lambda scratch, out: compile_text(text, build, scratch, *link, "-o", out),
    )
    handle = ctypes.CDLL(str(path))
    handle.shim_launch.restype = ctypes.c_char_p
    return handle


@dataclass(frozen=True)
class Launch:
    """What the backend asked for: an argument is a tensor, None or a numpy value."""

    kernel: Kernel
    blocks: int
    threads: tuple[int, int]
    args: tuple[Any, ...]
    before: tuple[bytes | None, ...]  # the memory of each tensor, before the kernel ran


def memory(tensor: Tensor) -> ctypes.Array[ctypes.c_char]:
    """The bytes that a tensor reaches from its first element on."""
    reach = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    size = reach * tensor.element_size() if tensor.numel() else 0
    return (ctypes.c_char * size).from_address(tensor.data_ptr())


@dataclass
class ShimDevice:
    """A ``launch.Device`` of CPU tensors.

    ``order`` is that of threads and blocks: 0 ascending, 1 descending, others shuffle. ``edit`` changes kernel texts,
    to plant bugs. ``size`` is the number of multiprocessors: how few lanes are cut into chunks in time.
    """

    order: int = 0
    edit: Any = None
    size: int = 0
    launches: list[Launch] = field(default_factory=list)
    only: int = -1  # the one block to run

    def probe(self) -> None:
        pass

    def check(self, x: Tensor) -> None:
        assert x.device.type == "cpu"

    def multiprocessors(self, x: Tensor) -> int:
        return self.size

    def launch(
        self, kernel: Kernel, where: Tensor, blocks: int, threads: tuple[int, int], args: Sequence[Any]
    ) -> None:
        copies = tuple(memory(a).raw if isinstance(a, Tensor) else None for a in args)
        self.launches.append(Launch(kernel, blocks, threads, tuple(args), copies))
        text = kernel.text if self.edit is None else self.edit(kernel.text)
        promises.check(kernel, text, threads, args)
        run_kernel(library(text), kernel.name, blocks, threads, args, self.order, self.only)


def run_kernel(
    handle: ctypes.CDLL,
    name: str,
    blocks: int,
    threads: tuple[int, int],
    args: Sequence[Any],
    order: int = 0,
    only: int = -1,
) -> None:
    """Run a kernel as cuLaunchKernel would: with pointers to its arguments."""
    values = [
        np.array(a.data_ptr() if isinstance(a, Tensor) else 0 if a is None else a).reshape(1) for a in args
    ]
    pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    grid, block = (ctypes.c_uint * 3)(blocks, 1, 1), (ctypes.c_uint * 3)(*threads, 1)
    kernel = ctypes.cast(getattr(handle, f"shim_{name}"), ctypes.c_void_p)
    error = handle.shim_launch(kernel, grid, block, pointers, ctypes.c_uint(order), ctypes.c_long(only))
    if error:
        raise RuntimeError(f"{name}: {error.decode()}")
