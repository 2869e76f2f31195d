"""Backends: providers of ``msf_forward``, ``msf_backward``, ``pmsn_forward``, ``pmsn_backward`` behind the custom ops.

A backend is a package and one line in :data:`BACKENDS`. It holds two modules, ``msf`` and ``pmsn``, with those
functions and ``KNOWS``, the words of :func:`~msf_pmsn_plugins.settings.asks` that it has, and ``"states out"`` if MSF
keeps ``"state"`` (None: all); the package holds ``unusable()``, why it cannot work here (``""`` if it can).
``"auto"`` takes the first one that is installed where the input lies, works, and knows all that is asked; torch does.
A name given explicitly is used or raises.

Tensors come as the op was given them, nothing copied or converted on the way:

- Sequences [T, N, *] (MSF) and [T, L, C, K] (PMSN) in any strides; ``x_seq`` in float32, float64, float16 or bfloat16.
- Outputs lie as ``torch.empty_like`` of the input; the gradient of ``x_seq`` in any dense layout, best as a stack of
  steps of the incoming one (:func:`~msf_pmsn_plugins.tensors.stacked_strides`).
- Spikes or counts, their incoming gradient ``s`` and the outgoing one of ``x_seq`` have the dtype of ``x_seq``.
- All else (states, weights, parameters, kept membranes and drives, slopes, and the gradients of them) is float64 where
  ``x_seq`` is, else float32: :func:`~msf_pmsn_plugins.tensors.state_dtype`. Computed is in that dtype; the gradient of
  a half-precision ``x_seq`` is rounded once, at the end. ``"code"`` keeps uint8; lengths are int64.
- Any number of modes, thresholds, lanes and steps: a backend is chosen by words alone, before sizes are known.
- A backend whose kernels know no half precision widens by itself: ``halves.widens`` around its functions.
- A backward of MSF reads values of ``x_seq`` only with a tensor of rates, of ``v0`` only with one, a delayed reset or a
  tensor of resets; where the op has no need of them, it gives something of that shape and dtype.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor, version  # not "import torch": backends.torch would take that name once it is loaded

from ..words import install

__all__ = ["BACKENDS", "Backend", "load", "resolve"]


@dataclass(frozen=True)
class Backend:
    """Where a backend is, and what it needs.

    Args:
        package: the dotted name of its package.
        device: the type of device it runs on, ``""`` for any.
        needs: the module that must be importable.
        extra: the extra of this package that installs it; ``{cuda}`` is torch's version of CUDA. ``""``: none does.
        rocm: it runs on AMD's devices too, whose type torch also calls ``"cuda"``.
        keeps_drive: its backward of PMSN reads the drive that the forward keeps, instead of walking forward again.
    """

    package: str
    device: str = ""
    needs: str = ""
    extra: str = ""
    rocm: bool = True
    keeps_drive: bool = False

    def runs_on(self, device: str) -> bool:
        """Whether it has kernels for devices of this type."""
        return self.device in ("", device) and (self.rocm or version.hip is None)

    def installed(self) -> bool:
        """Whether the module that it needs can be found; nothing is imported."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None


# The order is that in which "auto" asks. Triton comes with torch's wheels: who installed CuPy beside it wants CuPy.
BACKENDS: dict[str, Backend] = {
    "numba": Backend("msf_pmsn_plugins.backends.numba", "cpu", "numba", "cpu"),
    "cupy": Backend("msf_pmsn_plugins.backends.cupy", "cuda", "cupy", "cupy{cuda}", rocm=False),
    "triton": Backend("msf_pmsn_plugins.backends.triton", "cuda", "triton"),
    "torch": Backend("msf_pmsn_plugins.backends.torch", keeps_drive=True),
}


CUDA_EXTRAS = ("12", "13")  # the versions of CUDA that an extra brings CuPy for


def how_to_install(name: str) -> str:
    """What installs the library of a backend beside this torch, or that nothing does."""
    extra = BACKENDS[name].extra
    if "{cuda}" not in extra:
        return install(extra) if extra else f"pip install {BACKENDS[name].needs}"
    known = " or ".join(CUDA_EXTRAS)
    if version.cuda is None:
        kind = "for ROCm" if version.hip else "without CUDA"
        return f"this torch is built {kind}: install one for CUDA {known}"
    major = version.cuda.split(".")[0]
    if major not in CUDA_EXTRAS:
        return f"this torch brings CUDA {major}, and the extras are for CUDA {known}: install a torch for one of them"
    return f"this torch brings CUDA {major}: {install(extra.format(cuda=major))}"


def check(name: str) -> str:
    """Return ``name`` if it is ``"auto"`` or a key of :data:`BACKENDS`, else raise ValueError."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; known: 'auto', {', '.join(map(repr, BACKENDS))}")
    return name


def load(name: str, neuron: str) -> ModuleType:
    """The backend's module for ``neuron``, ``"msf"`` or ``"pmsn"``, imported on first use."""
    module = _loaded.get((name, neuron))
    if module is None:
        module = _loaded[name, neuron] = importlib.import_module(f"{BACKENDS[name].package}.{neuron}")
    return module


_loaded: dict[tuple[str, str], ModuleType] = {}


def knows(name: str, neuron: str, word: str) -> bool:
    """Whether a backend has what ``word`` names."""
    known = load(name, neuron).KNOWS
    return known is None or word in known


def _lacks(name: str, neuron: str, words: tuple[str, ...]) -> str:
    """The first of ``words`` that a backend has not, ``""`` if it has all."""
    return next((word for word in words if not knows(name, neuron, word)), "")


@functools.cache
def unusable(name: str) -> str:
    """Why an installed backend cannot work here, ``""`` if it can; found out, and said, once."""
    try:
        reason = str(importlib.import_module(BACKENDS[name].package).unusable())
    except Exception as error:  # a library that is broken, whatever it raises
        reason = f"it cannot be imported ({type(error).__name__}: {error})"
    return reason


@functools.cache
def _warn_unusable(name: str, reason: str) -> None:
    warnings.warn(f"backend {name!r} is installed but not used: {reason}", RuntimeWarning, stacklevel=2)


def resolve(name: str, x: Tensor, neuron: str, words: tuple[str, ...]) -> str:
    """The backend that will run ``x``: ``name`` itself if it can, or the choice of ``"auto"``.

    Args:
        name: ``"auto"`` or a key of :data:`BACKENDS`.
        x: an input, of which the device is asked.
        neuron: ``"msf"`` or ``"pmsn"``.
        words: what it will have to do, :func:`~msf_pmsn_plugins.settings.asks`.

    Raises:
        ValueError: an unknown backend, one that does not run where ``x`` lies, or lacks what is asked.
        ImportError: a backend whose library is not installed, or does not work.
    """
    return _constant(name, x.device.type, neuron, words)


def _constant(name: str, device: str, neuron: str, words: tuple[str, ...]) -> str:
    return _choose(name, device, neuron, words)


# What torch.compiler.assume_constant_result does; that one imports the whole compiler.
for _function in (knows, _constant):
    vars(_function)["_dynamo_marked_constant"] = True


@functools.cache
def _choose(name: str, device: str, neuron: str, words: tuple[str, ...]) -> str:
    if check(name) != "auto":
        _require(name, device)
        if word := _lacks(name, neuron, words):
            raise ValueError(f"backend {name!r} has no {word}: set backend='auto'")
        return name
    for candidate, backend in BACKENDS.items():
        if not backend.runs_on(device) or not backend.installed():
            continue
        if reason := unusable(candidate):
            _warn_unusable(candidate, reason)
        elif not _lacks(candidate, neuron, words):
            return candidate
    raise ValueError(f"no backend has all of: {', '.join(words)}")


def _require(name: str, device: str) -> None:
    backend = BACKENDS[name]
    if backend.device not in ("", device):
        raise ValueError(
            f"backend {name!r} runs on {backend.device!r} tensors, this input is on {device!r}: move it, or set "
            "backend='auto'"
        )
    if not backend.runs_on(device):
        raise ValueError(
            f"backend {name!r} runs on NVIDIA's devices, this torch is built for ROCm: set backend='auto'"
        )
    if not backend.installed():
        raise ImportError(
            f"backend {name!r} needs {backend.needs}: {how_to_install(name)}, or set backend='auto'"
        )
    if reason := unusable(name):
        raise ImportError(f"backend {name!r} does not work here, {reason}; or set backend='auto'")
