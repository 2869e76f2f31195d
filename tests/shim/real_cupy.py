"""Real CuPy and real NVRTC on a machine without a device: what no stand-in for CuPy can show.

``driver.cpp`` stands in for CUDA's driver, and the few calls of CuPy's runtime that need a device are replaced in its
table of C functions. CuPy then compiles for :data:`CAPABILITY` and packs the arguments of every launch as it always
does; :class:`RealCupyDevice` hands the array that ``cuLaunchKernel`` would get to g++'s build of the same text.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from msf_pmsn_plugins.backends.cupy.compile import Kernel
from msf_pmsn_plugins.backends.cupy.launch import CudaDevice

from . import CXX, HERE, _cached, library, run

DEVICES = 2
CAPABILITY = (9, 0)
_current = threading.local()  # each thread has a current device


def current_device() -> int:
    """CuPy's, of this thread."""
    return getattr(_current, "index", 0)


def _set_device(index: int, _skip: int = 0) -> None:
    _current.index = index


def _attribute(attribute: int, _device: int = 0, _skip: int = 0) -> int:
    return {75: CAPABILITY[0], 76: CAPABILITY[1]}.get(attribute, 1)


# Name in CuPy's table, its C type, and what stands in for it.
_int, _object = ctypes.c_int, ctypes.py_object
REPLACED: list[tuple[str, Any, Callable[..., Any]]] = [
    ("getDevice", ctypes.PYFUNCTYPE(_int, _int), lambda _skip: current_device()),
    ("setDevice", ctypes.PYFUNCTYPE(_object, _int, _int), _set_device),
    ("getDeviceCount", ctypes.PYFUNCTYPE(_int, _int), lambda _skip: DEVICES),
    ("_ensure_context", ctypes.PYFUNCTYPE(_object), lambda: None),
    ("deviceGetAttribute", ctypes.PYFUNCTYPE(_int, _int, _int, _int), _attribute),
]
_kept: list[Any] = []  # what C code holds a pointer to


def _replace(table: dict[str, Any], name: str, kind: Any, function: Callable[..., Any]) -> None:
    """Put ``function`` in a table of Cython's, from which other modules take their C functions at import."""
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [_object]
    api.PyCapsule_New.restype, api.PyCapsule_New.argtypes = _object, [ctypes.c_void_p] * 3
    signature = ctypes.create_string_buffer(api.PyCapsule_GetName(table[name]))
    callback = kind(function)
    _kept.extend([signature, callback])
    pointers = (ctypes.cast(part, ctypes.c_void_p) for part in (callback, signature))
    table[name] = api.PyCapsule_New(*pointers, None)


def _compiler_of(major: int) -> None:
    """Load NVRTC from NVIDIA's wheels: a library that is loaded is found by its name."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec and spec.submodule_search_locations) or ()]
    for name in ("libnvrtc-builtins.so.*", f"libnvrtc.so.{major}"):
        pattern = f"{'cu13' if major == 13 else 'cuda_nvrtc'}/lib/{name}"
        path = next((path for root in roots for path in root.glob(pattern)), None)
        if path is None:
            raise FileNotFoundError(f"no wheel of NVIDIA's holds {pattern}")
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


@functools.cache
def install() -> Driver:
    """Import CuPy over the stub driver, once in a process. Nothing else may have imported it before."""
    import cupy_backends.cuda.api.runtime as runtime

    for name, kind, function in REPLACED:
        _replace(runtime.__pyx_capi__, name, kind, function)
    runtime.getDevice, runtime.setDevice = current_device, _set_device
    runtime.getDeviceCount, runtime.deviceGetAttribute = lambda: DEVICES, _attribute
    import cupy

    _compiler_of(cupy.cuda.get_local_runtime_version() // 1000)
    flags = ("-shared", "-fPIC", "-O1", HERE / "driver.cpp")
    path = str(_cached("libcuda.so", "driver", lambda _, out: run(CXX, *flags, "-o", out)))
    plain = ctypes.CDLL

    class CDLL(plain):  # type: ignore[misc, valid-type]
        def __init__(self, name: str, *args: Any, **options: Any) -> None:
            super().__init__(path if name == "libcuda.so.1" else name, *args, **options)

    ctypes.CDLL = CDLL  # type: ignore[misc]
    try:  # CuPy opens the driver with its first module
        cupy.RawModule(code='extern "C" __global__ void first() {}').get_function("first").kernel  # noqa: B018
    finally:
        ctypes.CDLL = plain  # type: ignore[misc]
    return Driver(plain(path))


class Driver:
    """What the stub driver saw."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self._handle = handle
        handle.stub_counts.restype = ctypes.POINTER(ctypes.c_long * 3)

    def counts(self) -> SimpleNamespace:
        """Modules loaded, functions looked up, launches so far."""
        numbers = self._handle.stub_counts().contents
        return SimpleNamespace(**dict(zip(("modules", "functions", "launches"), numbers, strict=True)))

    def set_hook(self, function: Callable[..., int]) -> None:
        """``function(name, blocks, threads_x, threads_y, stream, arguments) -> error`` at every launch."""
        kind = ctypes.CFUNCTYPE(
            *(_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        )
        _kept.append(kind(function))
        self._handle.stub_set_hook(_kept[-1])


@dataclass
class Launched:
    """What the driver was given for a launch."""

    kernel: Kernel
    device: int
    stream: int


@dataclass
class RealCupyDevice:
    """A ``launch.Device`` of CPU tensors: the backend's own way through CuPy, then g++'s build of the text.

    ``index`` and ``stream`` are what torch would say of the tensors' device and its current stream (``pretend_cuda``).
    """

    driver: Driver
    index: int = 0
    size: int = 0
    launches: list[Launched] = field(default_factory=list)
    cuda: CudaDevice = field(default_factory=CudaDevice)

    def __post_init__(self) -> None:
        self._kernel = threading.local()  # under way in this thread
        self.driver.set_hook(self._run)

    def probe(self) -> None:
        self.cuda.probe()

    def check(self, x: Tensor) -> None:
        assert x.device.type == "cpu"

    def multiprocessors(self, x: Tensor) -> int:
        return self.size

    def launch(
        self, kernel: Kernel, where: Tensor, blocks: int, threads: tuple[int, int], args: Sequence[Any]
    ) -> None:
        self._kernel.now = kernel
        on_device: Any = SimpleNamespace(device=SimpleNamespace(index=self.index))
        self.cuda.launch(kernel, on_device, blocks, threads, args)

    def _run(self, name: bytes, blocks: int, x: int, y: int, stream: int | None, arguments: int) -> int:
        kernel = self._kernel.now
        assert name.decode() == kernel.name
        self.launches.append(Launched(kernel, current_device(), stream or 0))
        handle = library(kernel.text)
        entry = ctypes.cast(getattr(handle, f"shim_{kernel.name}"), ctypes.c_void_p)
        grid, block = (ctypes.c_uint * 3)(blocks, 1, 1), (ctypes.c_uint * 3)(x, y, 1)
        error = handle.shim_launch(
            entry, grid, block, ctypes.c_void_p(arguments), ctypes.c_uint(0), ctypes.c_long(-1)
        )
        return 700 if error else 0  # CUDA_ERROR_ILLEGAL_ADDRESS
