"""Launches: compiled kernels on the device and stream of torch.

Tests put another :class:`Device` in the place of :data:`device` and run the same kernel text on a CPU.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import how_to_install
from .compile import OPTIONS, Kernel

# A tensor goes by its address, None as a null pointer, a numpy scalar or struct by value.
Argument = Tensor | None | Any


class Device(Protocol):
    """What the backend asks of a device."""

    def probe(self) -> None:
        """Raise unless kernels can be compiled."""

    def check(self, x: Tensor) -> None:
        """Raise unless kernels can run where ``x`` lies."""

    def multiprocessors(self, x: Tensor) -> int:
        """How many the device of ``x`` has."""

    def launch(
        self, kernel: Kernel, where: Tensor, blocks: int, threads: tuple[int, int], args: Sequence[Argument]
    ) -> None:
        """Run ``kernel`` on the device of ``where``, in the order of torch's work there."""


class _Stream(NamedTuple):
    """As much of a stream as CuPy's launch reads. Its own classes for another library's streams differ by version."""

    ptr: int


class CudaDevice:
    """CUDA through CuPy."""

    def __init__(self) -> None:
        self._functions: dict[tuple[int, Kernel], Any] = {}
        self._compiling = threading.Lock()

    def check(self, x: Tensor) -> None:
        if not x.is_cuda:
            raise ValueError(
                f"backend 'cupy' runs on CUDA tensors, this input is on {x.device}: move it, or set backend='auto'"
            )
        load_cupy()

    def multiprocessors(self, x: Tensor) -> int:
        return torch.cuda.get_device_properties(x.device).multi_processor_count

    def probe(self) -> None:
        """Compile the smallest kernel on torch's current device, or raise with what to do."""
        cupy, index = load_cupy(), torch.cuda.current_device()
        with cupy.cuda.Device(index):
            self._function(cupy, index, Kernel("probe.cu", "probe", (("IO", "IO_HALF"),)))

    def launch(
        self, kernel: Kernel, where: Tensor, blocks: int, threads: tuple[int, int], args: Sequence[Argument]
    ) -> None:
        cupy = load_cupy()
        index = where.device.index
        values = tuple(a.data_ptr() if isinstance(a, Tensor) else 0 if a is None else a for a in args)
        stream = _Stream(torch.cuda.current_stream(where.device).cuda_stream)
        # CuPy brings a CUDA runtime of its own, with a current device of its own.
        with torch.cuda.device(index), cupy.cuda.Device(index):
            self._function(cupy, index, kernel)((blocks,), threads, values, stream=stream)

    def _function(self, cupy: Any, index: int, kernel: Kernel) -> Any:
        """The kernel's handle on device ``index``, which is current. Kernels of one text lie in one module (CuPy's)."""
        function = self._functions.get((index, kernel))
        if function is None:
            with self._compiling:  # backward comes from a thread of its own for each device
                module = cupy.RawModule(code=kernel.text, options=OPTIONS)
                try:
                    function = module.get_function(kernel.name).kernel
                except Exception as error:
                    raise RuntimeError(_explain(cupy, kernel, str(error))) from error
                self._functions[index, kernel] = function
        return function


device: Device = CudaDevice()


def load_cupy() -> Any:
    """Import CuPy, or say how to get it."""
    try:
        import cupy
    except Exception as error:  # a missing library of CUDA is no ImportError everywhere
        raise ImportError(
            f"backend 'cupy' cannot import CuPy ({error}): {how_to_install('cupy')}, or set backend='auto'"
        ) from error
    return cupy


def _explain(cupy: Any, kernel: Kernel, log: str) -> str:
    """What to do about a kernel that did not compile."""
    built = cupy.cuda.get_local_runtime_version() // 1000
    ours = (torch.version.cuda or "none").split(".")[0]
    if str(built) != ours:
        advice = f"CuPy is built for CUDA {built}, {how_to_install('cupy')} (and uninstall the other CuPy)"
    elif re.search(r"could not open source file|cannot open source file|No such file", log):
        wheel = "nvidia-cuda-runtime-cu12" if built == 12 else f"nvidia-cuda-runtime=={built}.*"
        advice = f'the headers of CUDA are missing: pip install "{wheel}"'
    else:
        advice = "please report it with this text; backend='torch' works without a compiler"
    macros = " ".join(f"{name}={value}" for name, value in kernel.macros)
    return (
        f"backend 'cupy' could not compile {kernel.name} of {kernel.file}: {advice}\n"
        f"options: {' '.join(OPTIONS)}\nmacros: {macros}\n{log.strip()}"
    )
