"""What the tests of the CUDA kernels share."""

from __future__ import annotations

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


@pytest.fixture
def chosen(shim, monkeypatch):
    """``backend="cupy"`` on CPU tensors."""
    monkeypatch.setitem(backends.BACKENDS, "cupy", replace(backends.BACKENDS["cupy"], device="", needs=""))
    backends._choose.cache_clear()
    backends.unusable.cache_clear()
    yield
    backends._choose.cache_clear()
    backends.unusable.cache_clear()


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
