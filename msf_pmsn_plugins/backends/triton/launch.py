"""Launches: kernels on the device and stream of torch, or under Triton's interpreter."""

from __future__ import annotations

import functools
import os
import re
import shutil
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from .config import Device
from .kernels.probe import probe as probe_kernel

Settings = Mapping[str, str | int | bool]

OLDEST = (3, 2)  # Triton of the oldest torch that is supported
INTERPRETED = Device(processors=1)


def interpreted() -> bool:
    """Whether kernels run on the CPU: ``TRITON_INTERPRET=1`` was set before Triton was imported."""
    return not isinstance(probe_kernel, triton.JITFunction)


def check(x: Tensor) -> None:
    """Raise unless kernels can run where ``x`` lies."""
    if not (x.is_cuda or interpreted()):
        raise ValueError(
            f"backend 'triton' runs on CUDA and ROCm tensors, this input is on {x.device}: move it, or set "
            "backend='auto'"
        )


def device_of(x: Tensor) -> Device:
    """What configurations ask of the device of ``x``."""
    return INTERPRETED if not x.is_cuda else _device(x.device.index)


@functools.cache
def _device(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    return Device(found.multi_processor_count, getattr(found, "warp_size", 32))


def run(
    kernel: Any, where: Tensor, grid: tuple[int, ...], warps: int, args: Iterable[Any], settings: Settings
) -> None:
    """Run ``kernel`` on the device of ``where``, in the order of torch's work there.

    ``settings`` are what it is compiled for. The bits are those of the text: what is fused is written so.
    """
    options = {"num_warps": warps, "enable_fp_fusion": False}
    if not where.is_cuda:
        kernel[grid](*args, **settings, **options)
        return
    with torch.cuda.device(where.device):  # Triton launches on the current one
        kernel[grid](*args, **settings, **options)


def probe() -> None:
    """Compile the smallest kernel and load it onto torch's current device; raise RuntimeError with what to do.

    Without a tensor: torch may be tracing with ones that have no memory.
    """
    version = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2])
    if version < OLDEST:
        raise RuntimeError(
            f"Triton {triton.__version__} is too old, {'.'.join(map(str, OLDEST))} is the oldest that has what the "
            'kernels need: pip install --upgrade "torch>=2.6", which brings its own'
        )
    if interpreted():
        return
    try:
        _launcher = probe_kernel.warmup(torch.float32, grid=(1,)).run  # what loads it is the attribute
    except Exception as error:  # a compiler's exit status, an assertion, an OSError
        raise RuntimeError(f"{advice(error)} ({type(error).__name__}: {error})") from error


def advice(error: Exception) -> str:
    """What to do about a Triton that cannot compile or launch, from what is missing here."""
    text = f"{type(error).__name__}: {error}"
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if re.search(r"libcuda|libamdhip", text) and "cannot" in text:
        return "Triton does not find the library of the driver: sudo ldconfig, or set TRITON_LIBCUDA_PATH to its folder"
    if "active drivers" in text:
        return "Triton finds no driver of a GPU: see what nvidia-smi or rocm-smi says"
    if not any(map(shutil.which, _compilers())):
        return "Triton needs a C compiler: apt install gcc, or set CC"
    if not headers.exists():
        return f"Triton needs Python's headers, {headers} is missing: apt install python3-dev"
    return "please report it with this text; backend='torch' works without a compiler"


def _compilers() -> Sequence[str]:
    return [name for name in (os.environ.get("CC"), "gcc", "clang", "cc") if name]
