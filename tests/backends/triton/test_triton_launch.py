"""What a launch tells Triton and asks of the device, through stand-ins for both."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="torch's wheels bring Triton on Linux only")

from triton_targets import recorded

from msf_pmsn_plugins.backends.triton import arguments, config, launch
from shim.cases import (
    MSFCase,
    PMSNCase,
    msf_backward,
    msf_forward,
    msf_problem,
    pmsn_backward,
    pmsn_forward,
    pmsn_problem,
)


class Kernel:
    """Keeps what it is launched with, and the device that was current."""

    def __init__(self, current):
        self.current, self.seen = current, []

    def __getitem__(self, grid):
        return lambda *args, **options: self.seen.append((self.current[-1], grid, args, options))


@pytest.fixture
def current(monkeypatch):
    """The devices that torch made current; the last is the one that is."""
    devices = [0]

    @contextlib.contextmanager
    def device(which):
        devices.append(getattr(which, "index", which))
        yield
        devices.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    return devices


def on_device(index):
    return SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))


@pytest.mark.parametrize("warps", [1, 4])
@pytest.mark.parametrize("index", [0, 1])
def test_a_launch_goes_to_the_device_of_its_tensors_unfused(current, index, warps):
    kernel = Kernel(current)
    launch.run(kernel, on_device(index), (7, 2), warps, (1, None, 3), {"BLOCK": 32})
    options = {"BLOCK": 32, "num_warps": warps, "enable_fp_fusion": False}
    assert kernel.seen == [(index, (7, 2), (1, None, 3), options)]
    assert current == [0]


def test_each_device_is_asked_for_its_own_size(monkeypatch):
    found = {
        0: SimpleNamespace(multi_processor_count=132),
        1: SimpleNamespace(multi_processor_count=104, warp_size=64),
    }
    monkeypatch.setattr(torch.cuda, "get_device_properties", found.__getitem__)
    launch._device.cache_clear()
    sizes = [launch.device_of(on_device(index)) for index in (0, 1, 0)]
    launch._device.cache_clear()
    nvidia, amd = config.Device(132), config.Device(104, 64)
    assert sizes == [nvidia, amd, nvidia]


def test_numbers_are_kept_for_each_dtype_and_device():
    """Rounded once, from double."""
    cpu, numbers = torch.device("cpu"), (0.1, 1 / 3)
    tables = [arguments.table(numbers, dtype, cpu) for dtype in (torch.float64, torch.float32)]
    for found, dtype in zip(tables, (torch.float64, torch.float32), strict=True):
        assert torch.equal(found, torch.tensor(numbers, dtype=dtype))
        assert arguments.table(numbers, dtype, cpu) is found
    assert arguments.table(numbers, torch.float32, torch.device("meta")).is_meta


CASES = {
    "MSF, numbers": MSFCase("plif", "soft", learned="lanes", threshold="one", amount="lanes", lengths=True),
    "MSF, bytes": MSFCase(keep="code", dtype=torch.bfloat16),
    # Of 16 neurons: the distance between steps may count as a multiple of 16, and that of a single step is one step.
    "MSF, slopes": MSFCase("lif", delay=True, slopes=True, grad_membrane=True, shape=(3, 16)),
    "PMSN": PMSNCase(3, lengths=True, grad_membrane=True),
    "PMSN, cumulative": PMSNCase(2, "cumulative", dtype=torch.float16),
    "PMSN, fixed": PMSNCase(2, fixed=True, burst="nearest"),
}
SHAPE = ("BLOCK", "STAGES", "HIGH", "WIDE")  # of a launch: it follows from the chunks


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "chunks"])
def test_any_number_of_steps_is_the_same_kernels(monkeypatch, case, cut):
    """Triton compiles a text anew for a 1, and for multiples of 16, unless it is told not to."""
    if cut:
        monkeypatch.setattr(config, "LEAST_STEPS", 2)
        monkeypatch.setattr(config, "LEAST_CHUNKS", 2)
    made = set()
    for steps in (6, 7, 16, 32) if cut else (1, 2, 16):
        seen = recorded(monkeypatch, 90)
        again = replace(case, steps=steps)
        if isinstance(case, MSFCase):
            p = msf_problem(again)
            msf_backward("triton", again, p, msf_forward("triton", again, p)[1])
        else:
            p = pmsn_problem(again)
            pmsn_forward("triton", again, p)
            pmsn_backward("triton", again, p, p["x_seq"])
        kept = [[pair for pair in one.constants if pair[0] not in SHAPE] for one in seen]
        made.add(str([(one.name, one.signature, one.aligned) for one in seen] + kept))
    assert len(made) == 1, made
