"""A few crossed problems of each kernel, for the default tests; the others are marked ``kernels``."""

from __future__ import annotations

import pytest
import torch

from msf_pmsn_plugins.neurons import MSF, PMSN, ParallelIF
from shim.cases import (
    MSFCase,
    PMSNCase,
    check_msf,
    check_pmsn,
    check_states,
    msf_problem,
    pmsn_problem,
    views,
)
from tolerances import assert_close, assert_same

pytestmark = pytest.mark.usefixtures("poisoned", "launches")

MSF_CASES = {
    "published": MSFCase(levels=4, shape=(3, 11)),
    "learned": MSFCase(
        *("plif", "soft", "sigmoid", 5),
        learned="lanes",
        threshold="one",
        amount="lanes",
        detach=False,
        lengths=True,
        grad_membrane=True,
    ),
    "bytes": MSFCase("lif", levels=3, dtype=torch.bfloat16, keep="code", lengths=True),
    "delayed": MSFCase("lif_product", "soft", "atan", delay=True, dtype=torch.float64, lengths=True),
    "retaken": MSFCase("decay", "soft", "atan", 5, retake=True, detach=False, amount="lanes", lengths=True),
}


@pytest.mark.parametrize("case", MSF_CASES.values(), ids=list(MSF_CASES))
def test_msf_in_a_view(case):
    p = msf_problem(case)
    for key in ("x_seq", "gs_seq", "gm_seq"):
        p[key] = views(p[key])["gap"]
    check_msf(case, p, backend="triton")


@pytest.mark.parametrize("delay", [False, True], ids=["now", "delayed"])
@pytest.mark.parametrize("reset_mode", ["hard", "soft", "none"])
def test_states_come_out_of_every_step(reset_mode, delay):
    check_states(MSFCase(reset_mode=reset_mode, delay=delay, lengths=True), "triton")


def test_states_come_out_of_an_undecayed_reset():
    check_states(MSFCase(reset_mode="soft", retake=True, lengths=True), "triton")


PMSN_CASES = {
    "published": PMSNCase(5, threshold=0.75),
    "serial": PMSNCase(3, "serial", dtype=torch.float64, lengths=True, grad_membrane=True, threshold=0.75),
    "cumulative": PMSNCase(1, "cumulative", surrogate="gaussian", lengths=True, slopes=True),
    "fixed": PMSNCase(2, fixed=True, burst="nearest", threshold=0.3, lengths=True),
}


@pytest.mark.parametrize("case", PMSN_CASES.values(), ids=list(PMSN_CASES))
def test_pmsn_in_a_view(case):
    p = pmsn_problem(case)
    p["x_seq"], p["gs_seq"] = views(p["x_seq"])["gap"], views(p["gs_seq"])["turned"]
    check_pmsn(case, p, backend="triton")


@pytest.mark.usefixtures("chunked")
def test_pmsn_in_chunks():
    check_pmsn(PMSNCase(3, lengths=True, steps=7), backend="triton")


@pytest.mark.usefixtures("chosen")
def test_under_torch_compile(launches):
    """The ops are opaque to the compiler, which plans around them."""
    neuron, x_seq = MSF(backend="triton"), torch.randn(4, 2, 8, requires_grad=True)
    compiled = torch.compile(lambda x: neuron(x)[0], backend="aot_eager", fullgraph=True)
    expected = neuron(x_seq)[0]
    (g_expected,) = torch.autograd.grad(expected.sum(), x_seq)
    launches.clear()
    s_seq = compiled(x_seq)
    assert_same(s_seq, expected)
    assert_same(torch.autograd.grad(s_seq.sum(), x_seq)[0], g_expected)
    assert [name for name, *_ in launches] == ["msf_forward", "msf_backward"]


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("make", [MSF, lambda **how: PMSN(6, **how)], ids=["MSF", "PMSN"])
def test_a_neuron_trains(make):
    x_seq = torch.randn(5, 3, 6, 2).mul(4).movedim(2, -1).contiguous().movedim(-1, 2)
    ours, theirs = make(backend="triton"), make(backend="torch")
    theirs.load_state_dict(ours.state_dict())
    results = []
    for neuron in (ours, theirs):
        x = x_seq.clone().requires_grad_()
        s_seq, (state, *_), m_seq = neuron.sequence(x, membrane=True, lengths=[0, 5, 3])
        (s_seq.square().sum() + m_seq.tanh().sum()).backward()
        results.append((s_seq, state, m_seq, x.grad))
    assert_same(results[0][0], results[1][0])
    for one, two in zip(*results, strict=True):
        assert_close(one, two, "residual")
        assert one.stride() == two.stride()


TRAJECTORIES = {
    "retake": lambda **how: MSF(
        D=2, decay=0.5, reset_mode="soft", retake=True, detach_reset=False, surrogate="atan", **how
    ),
    "floor": lambda **how: PMSN(6, **how),
    "cumulative": lambda **how: PMSN(6, reset_mode="cumulative", **how),
    "parallel-if": lambda **how: ParallelIF(**how),
}


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("make", TRAJECTORIES.values(), ids=list(TRAJECTORIES))
def test_the_states_of_every_step_and_their_gradients(make, launches):
    """In double, where the last bits of a drive move no spike."""
    x_seq = torch.randn(5, 3, 6, dtype=torch.float64).mul(4)
    ours, theirs = make(backend="triton").double(), make(backend="torch").double()
    theirs.load_state_dict(ours.state_dict())
    results = []
    for neuron in (ours, theirs):
        x = x_seq.clone().requires_grad_()
        s_seq, last, kept = neuron.trajectory(x, lengths=torch.tensor([0, 5, 3]))
        parts = [s_seq, *last, *kept.values()]
        loss = sum((part.abs() ** 2).sum() for part in parts if part.requires_grad)
        results.append([*parts, *torch.autograd.grad(loss, [x, *neuron.parameters()], allow_unused=True)])
        with torch.no_grad():
            results[-1] += neuron.trajectory(x, lengths=torch.tensor([0, 5, 3]))[2].values()
    assert launches
    for one, two in zip(*results, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert_close(one, two, "pmsn_adjoint")
