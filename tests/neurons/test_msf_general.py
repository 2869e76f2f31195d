"""MSF: everything that its one op can do, crossed, against a loop of ``step``.

Inputs and tensors are dyadic, so that in double every sum is exact and the gradients of all parameters are compared bit
for bit; else gradients follow the table of tolerances, spikes, membranes and states never do.
"""

import pytest
import torch
from torch import nn

from covering import label, pairwise
from helpers import EXACT, MSF_FLOATS, Way, all_backends, assert_matches_step, randn
from layouts import SHAPES, laid_out
from msf_pmsn_plugins.neurons import MSF
from msf_pmsn_plugins.surrogate import Surrogate
from subjects import CUSTOM, HostObject, host_closure
from tolerances import F32, F64, assert_same

DTYPES = {"f32": F32, "f64": F64, "f16": torch.float16, "bf16": torch.bfloat16}


SURROGATES = {
    "rectangular": lambda: None,  # the default
    "triangle": lambda: Surrogate("triangle"),
    "atan": lambda: Surrogate("atan"),
    "custom": lambda: CUSTOM,
    "object": HostObject,
    "closure": host_closure,
}
INEXACT = ("atan",)


def values(kind, low, dtype, *numbers):
    """A number, or a tensor of one number, of one for each channel, or of one for each element of one step."""
    shape = {"one": (), "channel": (3,), "element": None}[kind.split("_")[0]]
    choice = torch.tensor(numbers, dtype=dtype)
    index = torch.arange(24, dtype=torch.int64) * 7 % len(numbers)
    picked = choice[index]
    made = picked[0].clone() if shape == () else picked[:3].clone() if shape else picked.clone()
    return nn.Parameter(made) if kind.endswith("learned") else made


TENSORS = ("one", "channel", "element")
KINDS = [*TENSORS, *(f"{kind}_learned" for kind in TENSORS)]
FACTORS = {
    "rate": ["number", "sigmoid", "sigmoid_channel", "plif", "lif", *KINDS],
    "threshold": ["number", "list", *KINDS],
    "amount": ["default", "number", *KINDS],
    "reset": ["hard", "hard_at", "soft", "none"],
    "delay": ["now", "delayed"],
    "through": ["detached", "attached"],
    "surrogate": list(SURROGATES),
    "layout": list(SHAPES),
    "dtype": list(DTYPES),
    "steps": ["whole", "lengths", "mask"],
    "membrane": ["membrane", "spikes"],
    "start": ["rest", "carried", "carried_transposed"],
    "D": ["D1", "D3"],
}


def possible(case):
    return case["delay"] == "now" or case["through"] == "detached"


CASES = pairwise(FACTORS, possible)


def one_step(kind, shape, made):
    """An element's numbers in the shape of one step."""
    if isinstance(made, torch.Tensor) and kind.startswith("element"):
        count = torch.Size(shape[1:]).numel()
        repeated = made.detach().repeat(-(-count // len(made)))[:count].reshape(shape[1:])
        return nn.Parameter(repeated) if isinstance(made, nn.Parameter) else repeated
    return made


def build(case, dtype):
    shape, wide = SHAPES[case["layout"]], F64 if dtype == F64 else F32
    kwargs = {"D": int(case["D"][1:]), "surrogate": SURROGATES[case["surrogate"]]()}
    rate, threshold, amount = case["rate"], case["threshold"], case["amount"]
    if rate.startswith("sigmoid"):
        kwargs |= {
            "learn_decay": True,
            "decay": 0.25 if rate == "sigmoid" else torch.tensor([0.25, 0.5, 0.75]),
        }
    elif rate == "plif":
        kwargs |= {"charge": "plif", "w": torch.tensor([0.0, 0.5, -0.5])}
    elif rate == "lif":
        kwargs |= {"charge": "lif", "tau": 2.0}
    elif rate == "number":
        kwargs["decay"] = 0.5
    else:
        kwargs["decay"] = one_step(rate, shape, values(rate, 0, wide, 0.25, 0.5, 1.0))
    if threshold == "list":
        kwargs["thresholds"] = [0.5, 1.0, 2.5][: kwargs.pop("D")]
    elif threshold != "number":
        kwargs["v_threshold"] = one_step(threshold, shape, values(threshold, 0, wide, 0.5, 1.0, 0.75))
    if amount == "number":
        kwargs["reset_step"] = 0.5
    elif amount != "default":
        kwargs["reset_step"] = one_step(amount, shape, values(amount, 0, wide, 1.0, 0.5, 0.25))
    reset = case["reset"].partition("_")[0]
    neuron = MSF(
        v_reset=-0.25 if case["reset"] == "hard_at" else 0.0,
        reset_mode=reset,
        reset_delay=case["delay"] == "delayed",
        detach_reset=case["through"] == "detached",
        **kwargs,
    )
    return neuron.to(wide)


def inputs(case, dtype):
    """Multiples of 1/8, few enough bits for both halves; the state carried in needs a gradient."""
    x = torch.round(16 * randn(*SHAPES[case["layout"]])) / 8
    x = laid_out(x.to(dtype), case["layout"])
    if case["start"] == "rest":
        return x, None
    v = (torch.round(8 * randn(*x.shape[1:], seed=7)) / 8).to(F64 if dtype == F64 else F32)
    if case["start"] == "carried_transposed":
        v = v.movedim(1, -1).contiguous().movedim(-1, 1)
    return x, (v.requires_grad_(),)


LENGTHS = {
    "whole": None,
    "lengths": torch.tensor([5, 2]),
    "mask": torch.tensor([[1, 1, 0, 1, 1], [0, 1, 0, 0, 1]], dtype=torch.bool).T.contiguous(),
}


def is_exact(case):
    return (
        case["dtype"] == "f64"
        and case["surrogate"] not in INEXACT
        and case["rate"] not in ("sigmoid", "sigmoid_channel", "plif")
    )


@pytest.mark.parametrize("case", CASES, ids=label)
@all_backends
def test_the_op_is_the_loop_of_steps(case, backend):
    dtype = DTYPES[case["dtype"]]
    neuron, (x, state) = build(case, dtype), inputs(case, dtype)
    precision = EXACT if is_exact(case) else MSF_FLOATS
    s, _, m = assert_matches_step(
        neuron,
        x,
        state,
        precision,
        Way("sequence", backend),
        lengths=LENGTHS[case["steps"]],
        membrane=case["membrane"] == "membrane",
    )
    assert s.any()
    assert (m is None) == (case["membrane"] == "spikes")
    for out in (s, m):
        assert out is None or out.stride() == torch.empty_like(x).stride()


def test_every_pair_of_values_is_among_the_cases():
    assert 60 < len(CASES) < 160
    for name, values in FACTORS.items():
        assert {case[name] for case in CASES} == set(values)
    seen = {(case["rate"], case["threshold"]) for case in CASES}
    assert len(seen) == len(FACTORS["rate"]) * len(FACTORS["threshold"])
    assert ("delayed", "attached") not in {(case["delay"], case["through"]) for case in CASES}


def i_lif(x_seq, decay=0.25, D=4):
    """I-LIF: fires at k + 1/2, and a reset takes 1 per spike, not the threshold."""
    v, out = torch.zeros_like(x_seq[0]), []
    for x in x_seq:
        v = decay * v + x
        s = sum((v >= k + 0.5).to(v.dtype) for k in range(D))
        out.append(s)
        v = v - s
    return torch.stack(out), v


@all_backends
def test_an_integer_neuron_that_rounds(backend):
    x = 3 * randn(6, 4, 500, dtype=F32)
    neuron = MSF(thresholds=[0.5, 1.5, 2.5, 3.5], reset_mode="soft", reset_step=1.0, backend=backend)
    s, (v,) = neuron(x)
    expected, v_expected = i_lif(x)
    assert_same(s, expected)
    assert_same(v, v_expected)
    spaced = MSF(D=4, v_threshold=0.5, reset_mode="soft", reset_step=1.0, backend=backend)
    assert_same(spaced(x)[0], expected)


def leaky(x_seq, beta, theta, reset, D=1):
    """snnTorch's order: the reset of the last step's spike, on the charged membrane, undecayed where it subtracts."""
    mem, out = torch.zeros_like(x_seq[0]), []
    for x in x_seq:
        fired = (mem >= theta).to(mem.dtype)
        if reset == "soft":
            mem = beta * mem + x - fired * theta
        else:
            mem = beta * (mem * (1 - fired)) + x
        out.append((mem >= theta).to(mem.dtype))
    return torch.stack(out), mem


@all_backends
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_a_delayed_reset_by_the_hosts_equations(reset, backend):
    x = 2 * randn(12, 3, 40, dtype=F32)
    neuron = MSF(D=1, decay=0.5, v_threshold=0.5, reset_mode=reset, reset_delay=True, backend=backend)
    s, (v,) = neuron(x)
    expected, mem = leaky(x, 0.5, 0.5, reset)
    assert expected.any()
    assert_same(s, expected)
    assert_same(v, mem)


@all_backends
def test_a_delayed_reset_reads_the_state_that_comes_in(backend):
    """A state above the threshold was not reset yet: it is, at the first step."""
    neuron = MSF(D=2, decay=0.5, reset_mode="soft", reset_delay=True, backend=backend)
    s, (v,), m = neuron.sequence(torch.zeros(2, 1, 2), (torch.tensor([[2.5, 0.5]]),), membrane=True)
    assert m.tolist() == [[[0.5 * 2.5 - 2, 0.25]], [[-0.375, 0.125]]]
    assert not s.any()
    assert v.tolist() == [[-0.375, 0.125]]


@all_backends
def test_what_is_learned_learns(backend):
    """A step of descent on each tensor alone lowers the loss."""
    x = 2 * randn(20, 8, 3)
    for name in ("decay", "v_threshold", "reset_step"):
        tensor = nn.Parameter(torch.full((3,), 0.5))
        settings = {"decay": 0.75, name: tensor}
        neuron = MSF(D=2, reset_mode="soft", surrogate="atan", backend=backend, **settings).double()
        (parameter,) = neuron.parameters()
        loss = lambda: (neuron(x)[0].mean((0, 1)) - 0.25).square().sum()  # noqa: E731, B023
        before = loss()
        (g,) = torch.autograd.grad(before, parameter)
        assert g.abs().min() > 0
        with torch.no_grad():
            parameter.sub_(0.1 * g / g.norm())
            assert loss() < before, name


@all_backends
@pytest.mark.parametrize("shape", [(), (3,)], ids=["one", "channel"])
@pytest.mark.parametrize("delay", [False, True], ids=["now", "delayed"])
def test_a_learned_threshold_learns_from_what_a_reset_takes(backend, shape, delay):
    """Left to itself a soft reset takes the first threshold: its gradient is that of both."""

    def gradients(reset_step):
        threshold = nn.Parameter(torch.full(shape, 1.0))
        amount = nn.Parameter(torch.full(shape, 1.0)) if reset_step else None
        settings = {"reset_mode": "soft", "reset_delay": delay, "detach_reset": delay, "backend": backend}
        neuron = MSF(D=2, v_threshold=threshold, reset_step=amount, **settings)
        s_seq, _ = neuron(randn(6, 2, 3, 4) * 2)
        (s_seq * torch.arange(s_seq.numel()).reshape(s_seq.shape) / 64).sum().backward()
        return [parameter.grad for parameter in neuron.parameters()]

    (whole,), parts = gradients(reset_step=False), gradients(reset_step=True)
    assert all(part.any() for part in parts)
    torch.testing.assert_close(whole, sum(parts))


@all_backends
@pytest.mark.parametrize("D", [1, 3])
def test_the_window_of_the_rectangle_is_open(backend, D):
    """Where a membrane lies exactly at its edge, the slope is 0; the windows of neighbours do not overlap there."""
    x_seq = (torch.arange(-8, 24, dtype=torch.float32) / 4).reshape(1, 4, 8).requires_grad_()
    neuron = MSF(D=D, decay=0.5, surrogate=Surrogate("rectangular", 0.5), backend=backend)
    s_seq, _ = neuron(x_seq)
    s_seq.sum().backward()
    m = x_seq.detach()
    inside = sum(((m - theta).abs() < 0.5).float() for theta in range(1, D + 1))
    assert torch.equal(x_seq.grad, inside)
    assert ((m - 1).abs() == 0.5).any()
