"""What the tests of the CUDA kernels share."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from helpers import poisoned_empty
from msf_pmsn_plugins import backends
from msf_pmsn_plugins.backends.cupy import launch
from shim import ShimDevice
from shim.cases import cut_time


@pytest.fixture
def shim(monkeypatch):
    """A CPU in the place of the CUDA device."""
    device = ShimDevice()
    monkeypatch.setattr(launch, "device", device)
    return device


@contextlib.contextmanager
def choosing_afresh():
    """``auto`` remembers nothing from before, and nothing of this afterwards."""
    caches = (backends._choose, backends.unusable, backends._warn_unusable)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def chosen_on_cpu(monkeypatch):
    """A table in which CuPy comes first, for tensors of any device."""
    first = replace(backends.BACKENDS["cupy"], device="", needs="")
    monkeypatch.setattr(backends, "BACKENDS", {"cupy": first, "torch": backends.BACKENDS["torch"]})
    with choosing_afresh():
        yield


@pytest.fixture
def chosen(shim, chosen_on_cpu):
    """``backend="cupy"`` on CPU tensors."""
    return shim


@pytest.fixture
def poisoned(shim):
    """The same, with memory that nobody wrote full of NaN."""
    with poisoned_empty():
        yield


@pytest.fixture
def chunked(shim, monkeypatch):
    """Every sequence of four steps and more is cut."""
    cut_time(monkeypatch, shim)
    yield
    names = {launch.kernel.name for launch in shim.launches}
    assert {"pmsn_chunk", "pmsn_carry", "pmsn_soma"} <= names
