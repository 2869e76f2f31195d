"""Backends: providers of ``msf_fwd``, ``msf_bwd``, ``pmsn_fwd``, ``pmsn_bwd`` behind the custom ops.

A backend is one module and one line in :data:`BACKENDS`. ``"auto"`` takes the fastest one that is installed where the
input lies: Numba for CPU tensors, CuPy for CUDA tensors, else torch. A name given explicitly is used or raises.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["BACKENDS", "load", "resolve"]

BACKENDS: dict[str, str] = {
    "torch": "msf_pmsn_plugins.backends.torch_backend",
    "numba": "msf_pmsn_plugins.backends.numba_backend",
    "cupy": "msf_pmsn_plugins.backends.cupy_backend",
}

# Backend -> the device it runs on, the module it needs, the extra that installs it for torch's version of CUDA.
NEEDS = {"numba": ("cpu", "numba", "cpu"), "cupy": ("cuda", "cupy", "cupy{cuda}")}
INSTALLED = {name: importlib.util.find_spec(module) is not None for name, (_, module, _) in NEEDS.items()}
RECOMPUTE_DRIVE = frozenset({"numba", "cupy"})  # their PMSN backward keeps no drive, it walks forward again


def check(name: str) -> str:
    """Return ``name`` if it is ``"auto"`` or a key of :data:`BACKENDS`, else raise ValueError."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; known: 'auto', {', '.join(map(repr, BACKENDS))}")
    return name


def resolve(name: str, x: Tensor) -> str:
    """The backend that will run ``x``: ``name`` itself if it can, or the choice of ``"auto"``.

    Raises:
        ValueError: an unknown backend, or one that does not run where ``x`` lies.
        ImportError: a backend whose library is not installed.
    """
    if check(name) == "auto":
        for candidate, (device, _, _) in NEEDS.items():
            if x.device.type == device and INSTALLED[candidate]:
                return candidate
        return "torch"
    if name in NEEDS:
        device, module, extra = NEEDS[name]
        if x.device.type != device:
            raise ValueError(
                f"backend {name!r} runs on {device!r} tensors, this input is on {x.device}: move it, or set "
                "backend='auto'"
            )
        if not INSTALLED[name]:
            extra = extra.format(cuda=(torch.version.cuda or "13").split(".")[0])
            raise ImportError(
                f"backend {name!r} needs {module}: pip install \"msf-pmsn-plugins[{extra}]\", or set backend='auto'"
            )
    return name


def load(name: str) -> ModuleType:
    """Import the backend's module."""
    return importlib.import_module(BACKENDS[name])
