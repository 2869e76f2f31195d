"""Whole neurons with ``backend="cupy"`` on a CPU device (see ``shim``)."""

from __future__ import annotations

import pytest
import torch

from helpers import poisoned_empty
from msf_pmsn_plugins.neurons import MSF, PMSN
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
from tolerances import assert_close, assert_same

pytestmark = pytest.mark.usefixtures("chosen")


def train(neuron, x_seq, **how):
    """Outputs, last state, membranes and all gradients of one pass."""
    neuron.zero_grad()
    x_seq = x_seq.detach().clone().requires_grad_()
    s_seq, state, m_seq = neuron.sequence(x_seq, **how)
    weight = torch.linspace(-1, 1, s_seq.numel(), dtype=s_seq.dtype).reshape(s_seq.shape)
    loss = (s_seq * weight).sum() + sum((part.abs() ** 2).sum() for part in state if part.requires_grad)
    loss = loss if m_seq is None else loss + m_seq.tanh().mul(weight).sum()
    loss.backward()
    return [s_seq, *state, m_seq, x_seq.grad], {name: p.grad for name, p in neuron.named_parameters()}


MSFS = {
    "published": {"D": 4},
    "learned": {"D": 2, "charge": "plif", "w": 0.3, "surrogate": "atan", "detach_reset": False},
    "soft": {"D": 1, "reset_mode": "soft", "charge": "lif", "tau": 2.0, "surrogate": "triangle"},
}


@pytest.mark.parametrize(
    "how", [{}, {"membrane": True}, {"lengths": [0, 5, 3]}], ids=["plain", "m", "lengths"]
)
@pytest.mark.parametrize("name", list(MSFS))
def test_msf_is_the_torch_backend_to_the_bit(shim, name, how):
    torch.manual_seed(0)
    x_seq = torch.randn(5, 3, 8)
    with poisoned_empty():
        ours, gradients = train(MSF(**MSFS[name], backend="cupy"), x_seq, **how)
    theirs, expected = train(MSF(**MSFS[name], backend="torch"), x_seq, **how)
    assert [launch.kernel.name for launch in shim.launches] == ["msf_forward", "msf_backward"]
    for one, two in zip(ours, theirs, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert_same(one, two)
    for key in expected:
        assert_same(gradients[key], expected[key])


@pytest.mark.parametrize(
    "how", [{}, {"membrane": True}, {"lengths": [0, 5, 3]}], ids=["plain", "m", "lengths"]
)
@pytest.mark.parametrize(
    "settings", [{}, {"compartments": 8}, {"compartments": 17}], ids=["five", "eight", "seventeen"]
)
def test_pmsn_is_near_the_torch_backend(shim, settings, how):
    """Chosen by ``auto``, which looks at no sizes: there is none that a backend refuses."""
    torch.manual_seed(0)
    x_seq = torch.randn(5, 3, 6, 2) * 8
    ours, theirs = PMSN(6, **settings), PMSN(6, **settings, backend="torch")
    theirs.load_state_dict(ours.state_dict())
    with poisoned_empty():
        actual, gradients = train(ours, x_seq, **how)
    expected, expected_gradients = train(theirs, x_seq, **how)
    assert_same(actual[0], expected[0])
    for one, two in zip(actual, expected, strict=True):
        if one is not None:
            assert_close(one, two, "residual")
    for key in gradients:
        assert_close(gradients[key], expected_gradients[key], "pmsn_gradient")
    names = [launch.kernel.name for launch in shim.launches]
    first = [] if len(names) == 4 else ["pmsn_drive"]
    assert names == ["pmsn_forward", *first, "pmsn_gather", "pmsn_adjoint", "pmsn_parameters"]


# Kernel: what it reads and writes of the size of a sequence, in the order of its arguments; g: the drives' gradients.
MOVED = {
    "MSF": {"msf_forward": ["x", "s", "code"], "msf_backward": ["gs", "code", "gx"]},
    "PMSN": {"pmsn_forward": ["x", "s"], "pmsn_gather": ["gs", "x", "g"], "pmsn_adjoint": ["g", "gx"]},
}
BYTES = {"x": 2, "s": 2, "gs": 2, "gx": 2, "code": 1, "g": 4}


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list(MOVED))
def test_half_precision_moves_two_bytes_in_and_two_out(shim, name, half):
    """The very memory of the input, the spikes and their gradients, both ways: nothing is widened by a copy."""
    neuron = MSF(backend="cupy") if name == "MSF" else PMSN(8, compartments=4, backend="cupy")
    x_seq = (torch.randn(5, 3, 8) * 4).to(half).requires_grad_()
    s_seq, _ = neuron(x_seq)
    gs_seq = torch.randn(s_seq.shape).to(half)
    (gx_seq,) = torch.autograd.grad(s_seq, x_seq, gs_seq)
    known = {"x": x_seq, "s": s_seq, "gs": gs_seq, "gx": gx_seq}
    assert all(known[what].dtype == half for what in known)
    for one in shim.launches:
        moved = [arg for arg in one.args if torch.is_tensor(arg) and arg.numel() == x_seq.numel()]
        expected = MOVED[name].get(one.kernel.name, [])
        assert [arg.element_size() for arg in moved] == [BYTES[what] for what in expected]
        for what, arg in zip(expected, moved, strict=True):
            assert what not in known or arg.data_ptr() == known[what].data_ptr(), (one.kernel.name, what)
    assert MOVED[name].keys() <= {one.kernel.name for one in shim.launches}


@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("name", ["MSF", "PMSN"])
@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_half_precision_of_autocast_reaches_the_kernels(chosen, host, name, step_mode):
    pytest.importorskip(host)
    if host == "spikingjelly":
        from msf_pmsn_plugins import spikingjelly

        how = {} if name == "MSF" else {"channels": 8}
        node = getattr(spikingjelly, f"{name}Node")(step_mode=step_mode, **how)
    else:
        from msf_pmsn_plugins import snntorch

        how = {"beta": 0.5} if name == "MSF" else {"channels": 8}
        node = getattr(snntorch, name)(**how, init_hidden=True)
    layer = torch.nn.Linear(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_seq = layer(torch.randn(3, 2, 6))
        s_seq = node(x_seq if step_mode == "m" and host == "spikingjelly" else x_seq[0])
    assert s_seq.dtype == torch.bfloat16
    s_seq.float().sum().backward()
    for one in chosen.launches:
        macros = dict(one.kernel.macros)
        assert macros["IO"] == "IO_BFLOAT16"
    assert {one.kernel.name for one in chosen.launches} >= {f"{name.lower()}_forward"}
    assert layer.weight.grad.any()


def test_single_steps_are_the_sequence(shim):
    neuron, x_seq = MSF(backend="cupy"), torch.randn(5, 2, 3)
    whole, (v,) = neuron(x_seq)
    state, parts = None, []
    for x in x_seq:
        s, state = neuron(x.unsqueeze(0), state)
        parts.append(s)
    assert_same(torch.cat(parts), whole)
    assert_same(state[0], v)


def test_under_torch_compile(shim):
    neuron, x_seq = MSF(backend="cupy"), torch.randn(4, 2, 8, requires_grad=True)
    compiled = torch.compile(lambda x: neuron(x)[0], backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(neuron(x_seq)[0].sum(), x_seq)
    s_seq = compiled(x_seq)
    assert_same(s_seq, neuron(x_seq)[0])
    assert_same(torch.autograd.grad(s_seq.sum(), x_seq)[0], expected)


def test_spikingjelly_node(shim):
    pytest.importorskip("spikingjelly")
    from msf_pmsn_plugins.spikingjelly import MSFNode

    x_seq, grads = torch.randn(4, 2, 8), []
    for backend in ("cupy", "torch"):
        x = x_seq.clone().requires_grad_()
        MSFNode.published(step_mode="m", backend=backend)(x).square().sum().backward()
        grads.append(x.grad)
    assert_same(*grads)
    assert len(shim.launches) == 2


@pytest.mark.parametrize("shape", [(0, 3, 8), (4, 0, 8), (4, 3, 0)])
def test_nothing_to_do_launches_nothing(shim, shape):
    x_seq = torch.randn(shape, requires_grad=True)
    v = torch.randn(shape[1:])
    s_seq, (v_last,) = MSF(backend="cupy")(x_seq, (v,))
    assert s_seq.shape == shape
    assert_same(v_last, v)
    (s_seq.sum() + v_last.sum()).backward()
    assert x_seq.grad.shape == shape
    p = pmsn_problem(PMSNCase(steps=shape[0], lanes=(shape[1], 3, shape[2])))
    assert_same(pmsn_forward("cupy", PMSNCase(), p)[3], p["r"])
    *_, gz0, ga, _gw, _gd = pmsn_backward("cupy", PMSNCase(), p, p["x_seq"])
    assert_same(gz0, p["gz"])
    assert not ga.any()
    assert not shim.launches


@pytest.mark.parametrize("missing", ["gs_seq", "gv", "gz", "gr", "gy_seq", "gm_seq"])
def test_a_missing_gradient_is_zero(shim, missing):
    case = MSFCase(shape=(2, 4), grad_membrane=missing == "gm_seq")
    p = msf_problem(case)
    kept = msf_forward("cupy", case, p)[1]
    if missing in p:
        zero = {**p, missing: torch.zeros_like(p[missing])}
        results = [msf_backward("cupy", case, q, kept)[:2] for q in ({**p, missing: None}, zero)]
        for one, two in zip(*results, strict=True):
            assert_same(one, two)
    for modes in (2, 6):
        case = PMSNCase(modes, "cumulative", grad_drive=missing == "gy_seq")
        p = pmsn_problem(case)
        if p.get(missing) is not None:
            zero = {**p, missing: torch.zeros_like(p[missing])}
            results = [pmsn_backward("cupy", case, q, p["x_seq"]) for q in ({**p, missing: None}, zero)]
            for one, two in zip(*results, strict=True):
                assert_same(one, two)


LAYOUTS = {
    "batch first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels last": lambda x: x.movedim(2, -1).contiguous().movedim(-1, 2),
    "slice of steps": lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],
    "time last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
}


@pytest.mark.parametrize("make", [MSF, lambda **how: PMSN(6, **how)], ids=["MSF", "PMSN"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_layouts_are_those_of_the_torch_backend(chosen, make, layout):
    torch.manual_seed(0)
    x_seq = LAYOUTS[layout](torch.randn(5, 3, 6, 2) * 4)
    ours, theirs = make(backend="cupy"), make(backend="torch")
    theirs.load_state_dict(ours.state_dict())
    results = []
    for neuron in (ours, theirs):
        x = x_seq.detach().requires_grad_()
        s_seq, (state, *_), m_seq = neuron.sequence(x, membrane=True, lengths=[0, 5, 3])
        (s_seq.square().sum() + m_seq.tanh().sum()).backward()
        results.append((s_seq, state, m_seq, x.grad))
    for one, two in zip(*results, strict=True):
        assert_close(one, two, "residual")
        assert one.stride() == two.stride()
    assert chosen.launches
