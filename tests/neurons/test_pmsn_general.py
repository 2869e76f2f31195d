"""PMSN: everything that its op can do, crossed, against a loop of ``step``."""

import functools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covering import label, pairwise
from helpers import PMSN_FLOATS, Way, all_backends, assert_matches_step, examples, randn
from layouts import SHAPES, laid_out
from msf_pmsn_plugins.neurons import ParallelIF
from msf_pmsn_plugins.neurons.pmsn import pmsn, pmsn_step
from msf_pmsn_plugins.settings import PMSNSettings
from msf_pmsn_plugins.surrogate import Surrogate
from msf_pmsn_plugins.tensors import PMSNState, PMSNWeights
from subjects import CUSTOM, SOMAS, HostObject, host_closure, with_soma
from tolerances import F32, F64, assert_same

DTYPES = {"f32": F32, "f64": F64, "bf16": torch.bfloat16}
SURROGATES = {
    "triangle": lambda: None,  # the default
    "atan": lambda: Surrogate("atan"),
    "narrow": lambda: Surrogate("rectangular", 0.25),
    "custom": lambda: CUSTOM,
    "object": HostObject,
    "closure": host_closure,
}
BY_NAME = {"_".join(map(str, soma)): soma for soma in SOMAS}
LENGTHS = {
    "whole": None,
    "lengths": torch.tensor([5, 2]),
    "mask": torch.tensor([[1, 1, 0, 1, 1], [0, 1, 0, 0, 1]], dtype=torch.bool).T.contiguous(),
}
FACTORS = {
    "soma": list(BY_NAME),
    "surrogate": list(SURROGATES),
    "layout": list(SHAPES),
    "dtype": list(DTYPES),
    "steps": list(LENGTHS),
    "membrane": ["membrane", "spikes"],
    "start": ["rest", "carried", "carried_grad", "carried_transposed"],
    "modes": ["modes1", "modes4", "tied"],
    "theta": ["theta1", "theta0.7"],
}
CASES = pairwise(FACTORS)


def build(case, dtype):
    kwargs = {
        "compartments": {"modes1": 2, "modes4": 5, "tied": 5}[case["modes"]],
        "tied": case["modes"] == "tied",
    }
    neuron = with_soma(
        BY_NAME[case["soma"]],
        channels=3,
        surrogate=SURROGATES[case["surrogate"]](),
        v_threshold=float(case["theta"][5:]),
        **kwargs,
    )
    return neuron.to(F64 if dtype == F64 else F32)


def inputs(case, neuron, dtype):
    x = laid_out((2 * randn(*SHAPES[case["layout"]])).to(dtype), case["layout"])
    if case["start"] == "rest":
        return x, None
    r, z = neuron.initial_state(x[0])
    r = r + 0.25 + 0.5 * (torch.arange(r.numel()) % 2).reshape(r.shape)
    z = randn(*z.shape, seed=3, dtype=z.dtype)
    if case["start"] == "carried_transposed":
        r, z = (part.movedim(1, -1).contiguous().movedim(-1, 1) for part in (r, z))
    wants = case["start"] == "carried_grad"
    return x, (r.requires_grad_(wants and neuron.reset_mode == "cumulative"), z.requires_grad_(wants))


@pytest.mark.parametrize("case", CASES, ids=label)
@all_backends
def test_the_op_is_the_loop_of_steps(case, backend):
    dtype = DTYPES[case["dtype"]]
    neuron = build(case, dtype)
    x, state = inputs(case, neuron, dtype)
    values = "residual" if neuron.reset_mode in ("serial", "cumulative") else "drive"
    s, _, m = assert_matches_step(
        neuron,
        x,
        state,
        replace(PMSN_FLOATS, values=values),
        Way("sequence", backend),
        lengths=LENGTHS[case["steps"]],
        membrane=case["membrane"] == "membrane",
    )
    assert s.any()
    assert (m is None) == (case["membrane"] == "spikes")
    for out in (s, m):
        assert out is None or out.stride() == torch.empty_like(x).stride()


def test_every_value_is_among_the_cases():
    assert 90 < len(CASES) < 200
    for name, values in FACTORS.items():
        assert {case[name] for case in CASES} == set(values)
    assert len({(case["soma"], case["layout"]) for case in CASES}) == len(BY_NAME) * len(SHAPES)


PARALLEL = pairwise(
    {
        "burst": ["single", "nearest", "sawtooth"],
        "surrogate": list(SURROGATES),
        "layout": list(SHAPES),
        "dtype": list(DTYPES),
        "steps": list(LENGTHS),
        "membrane": ["membrane", "spikes"],
        "start": ["rest", "carried"],
    }
)


@pytest.mark.parametrize("case", PARALLEL, ids=label)
@all_backends
def test_the_parallel_reset_is_the_loop_of_steps(case, backend):
    dtype = DTYPES[case["dtype"]]
    burst = {"single": False, "nearest": True, "sawtooth": "published"}[case["burst"]]
    neuron = ParallelIF(0.7, SURROGATES[case["surrogate"]](), burst)
    x = laid_out((2 * randn(*SHAPES[case["layout"]])).to(dtype), case["layout"])
    state = None
    if case["start"] == "carried":
        (r,) = neuron.initial_state(x[0])
        state = (r + 0.25,)
    s, _, m = assert_matches_step(
        neuron,
        x,
        state,
        PMSN_FLOATS,
        Way("sequence", backend),
        lengths=LENGTHS[case["steps"]],
        membrane=case["membrane"] == "membrane",
    )
    assert s.any()
    for out in (s, m):
        assert out is None or out.stride() == torch.empty_like(x).stride()


# ---------------------------------------------------------------- where every sum is exact


def eighths(data, *shape):
    count = torch.Size(shape).numel()
    drawn = data.draw(st.lists(st.integers(-16, 16), min_size=count, max_size=count))
    return torch.tensor(drawn, dtype=F64).reshape(shape) / 8


def by_steps(x_seq, state, weights, settings):
    """Spikes, membranes and last state by the oracle; the op's weights in shapes that broadcast against one step."""
    e, w, d = weights
    one = PMSNWeights(e.unsqueeze(1), w.unsqueeze(1), d.unsqueeze(1))
    rows = []
    for x in x_seq:
        s, state, m = pmsn_step(x, state, one, settings)
        rows.append((s, m))
    s_seq, m_seq = (torch.stack(column) for column in zip(*rows, strict=True))
    return s_seq, m_seq, state


@all_backends
@pytest.mark.parametrize("soma", SOMAS, ids=lambda soma: "-".join(map(str, soma)))
@examples(8)
@given(data=st.data())
def test_gradients_are_exact_on_a_lattice(backend, soma, data):
    """Factors of modulus 1 or 0 over several blocks, or halves; all numbers are dyadic, so double holds every sum."""
    reset_mode, burst, residual = soma
    long = data.draw(st.booleans())
    factors, steps = ([1, -1, 1j, -1j, 0], 40) if long else ([0, 0.5, -0.5, 0.5j, -0.5j], 8)
    settings = PMSNSettings(
        reset_mode=reset_mode,
        burst={False: "", True: "nearest", "published": "sawtooth"}[burst],
        fixed=residual == "fixed",
        keep_membrane=True,
    )
    a = torch.tensor(
        [data.draw(st.lists(st.sampled_from(factors), min_size=2, max_size=2)) for _ in range(2)]
    )
    e = a.to(torch.complex128) - 1
    w = torch.complex(eighths(data, 2, 2), eighths(data, 2, 2))
    x, d = eighths(data, steps, 1, 2, 2), eighths(data, 2)
    r = eighths(data, 1, 2, 2).abs() % 1
    z = torch.complex(eighths(data, 1, 2, 2, 2), eighths(data, 1, 2, 2, 2))
    ups = [eighths(data, steps, 1, 2, 2), eighths(data, steps, 1, 2, 2)]
    up_z = torch.complex(eighths(data, 1, 2, 2, 2), eighths(data, 1, 2, 2, 2))
    results = []
    for run in (by_steps, functools.partial(by_the_op, backend=backend)):
        leaves = [part.clone().requires_grad_() for part in (x, z, e, w, d)]
        s, m, last = run(leaves[0], PMSNState(r, leaves[1]), PMSNWeights(*leaves[2:]), settings)
        grads = torch.autograd.grad((s, m, last.z), leaves, (*ups, up_z))
        results.append((s, m, *last, *grads))
    for theirs, ours in zip(*results, strict=True):
        assert_same(ours, theirs)


def by_the_op(x_seq, state, weights, settings, backend):
    s, _y, m, last = pmsn(x_seq, state, weights, settings, backend=backend)
    return s, m, last
