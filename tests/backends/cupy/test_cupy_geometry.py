"""How many blocks and threads a launch asks for, of any size, and that none asks the device for a value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msf_pmsn_plugins.backends.cupy import geometry, launch
from shim import library, run_kernel
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


class Recorder:
    """A device that runs nothing; for tensors of any size on torch's "meta" device, which has no memory to look at."""

    def __init__(self):
        self.launches = []

    def check(self, x):
        assert x.is_meta

    def multiprocessors(self, x):
        return 132

    def launch(self, kernel, where, blocks, threads, args):
        self.launches.append((kernel.name, blocks, threads, args))


def meta(problem):
    return {key: value.to("meta") if torch.is_tensor(value) else value for key, value in problem.items()}


def test_nothing_asks_for_a_value_on_the_device(monkeypatch):
    # A meta tensor raises on .item(), so this also holds for CUDA: no call waits for the device.
    device = Recorder()
    monkeypatch.setattr(launch, "device", device)
    for case in (MSFCase(learned="lanes", lengths=True, grad_membrane=True), MSFCase("plif", keep="code")):
        p = meta(msf_problem(case))
        msf_backward("cupy", case, p, msf_forward("cupy", case, p)[1])
    for case in (PMSNCase(lengths=True), PMSNCase(modes=9, reset_mode="cumulative")):
        p = meta(pmsn_problem(case))
        pmsn_backward("cupy", case, p, pmsn_forward("cupy", case, p)[1])
    assert len(device.launches) == 4 + 4 + 5


def test_geometry_beyond_two_to_the_31(monkeypatch):
    device = Recorder()
    monkeypatch.setattr(launch, "device", device)
    lanes = 2**36 + 4
    case = MSFCase()
    p = meta(msf_problem(case))
    p["x_seq"] = p["gs_seq"] = torch.empty(3, 1, lanes, device="meta")
    p["v"] = p["gv"] = torch.empty(1, lanes, device="meta")
    msf_backward("cupy", case, p, msf_forward("cupy", case, p)[1])
    for _name, blocks, threads, args in device.launches:
        assert threads == (256, 1)
        assert 2**31 > blocks > 0
        assert blocks * 256 * 4 >= lanes > (blocks - 1) * 256 * 4
        assert np.int64(lanes) in [a for a in args if isinstance(a, np.int64)]
    device.launches.clear()
    leads = 2**28 + 1
    case = PMSNCase()
    p = meta(pmsn_problem(case))
    seq, r = torch.empty(2, leads, 3, 16, device="meta"), torch.empty(leads, 3, 16, device="meta")
    z = torch.empty(leads, 3, 16, 4, device="meta", dtype=torch.complex64)
    p.update(x_seq=seq, gs_seq=seq, gy_seq=None, r=r, gr=r, z=z, gz=z)
    pmsn_backward("cupy", case, p, pmsn_forward("cupy", case, p)[1])
    for name, blocks, _threads, args in device.launches:
        assert 2**31 > blocks > 0
        if name == "pmsn_gather":
            # Memory for sums stays small, whatever the number of lanes.
            assert args[14].numel() <= geometry.FULL * 17


@pytest.mark.parametrize(
    ("leads", "columns"), [(1, 1), (1, 5), (7, 1), (1000, 1), (3, 100), (64, 512), (1, 10**6)]
)
def test_gather_geometry_covers_all_lanes(leads, columns):
    g = geometry.gather_of(leads, columns)
    wide, high = g.threads
    assert wide * high == geometry.THREADS
    assert g.blocks % g.rows == 0
    assert g.blocks // g.rows * wide >= columns
    assert g.rows * high < leads + high
    assert min(columns, 32) <= wide


@pytest.mark.parametrize(
    ("steps", "lanes", "registers", "expected"),
    [
        (1024, 16 * 128, 1, (1, 64, 32)),  # 32 blocks, not 2
        (1024, 16 * 128, 2, (1, 64, 16)),
        (1024, 16 * 128, 3, (1, 64, 8)),
        (1024, 16 * 128, 9, (1, 64, 4)),
        (63, 16 * 128, 1, (4, 256, 0)),  # short: the first reads would be most of it
        (1024, 132 * 256 * 4, 1, (1, 64, 32)),
        (1024, 132 * 256 * 4 + 1, 1, (4, 256, 0)),
    ],
)
def test_few_lanes_of_msf_take_a_thread_each(steps, lanes, registers, expected):
    assert geometry.packs_of(steps, lanes, 4, registers, 132) == geometry.Packs(*expected)


@pytest.mark.slow
def test_indices_beyond_two_to_the_31(shim):
    # Memory that nobody touches costs nothing: one block, the last, of 2**31 + 2048 lanes and two steps.
    lanes = 2**31 + 2048
    case = MSFCase("if", "none", levels=1, keep="none", shape=(1, 8), dtype=torch.float16)
    msf_forward("cupy", case, msf_problem(case))
    kernel = shim.launches[0].kernel
    x_seq, s_seq = (torch.empty(2, lanes, dtype=torch.float16) for _ in range(2))
    v, v_last = (torch.empty(lanes) for _ in range(2))
    block = 256 * 8
    x_seq[:, -block:] = torch.tensor([[1.0], [2.0]])
    v[-block:] = 0
    run_kernel(
        library(kernel.text),
        kernel.name,
        lanes // block,
        (256, 1),
        [
            *(x_seq, v, None, None, None, None, s_seq, None, v_last),
            *map(np.int64, (2, lanes, lanes, lanes)),
            *map(np.int32, (0, 0, 0)),
            *map(np.float32, (0, 1, 1, 0, 0.5)),
            np.array(([2.5],), dtype=[("at", np.float32, (1,))]),
        ],
        only=lanes // block - 1,
    )
    assert (s_seq[:, -block:] == torch.tensor([[0.0], [1.0]])).all()
    assert (v_last[-block:] == 3).all()
