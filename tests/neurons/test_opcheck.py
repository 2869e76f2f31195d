"""The custom ops by torch's own opcheck; they neither write nor alias their inputs."""

import itertools
from dataclasses import replace

import pytest
import torch

from helpers import all_backends, randn
from msf_pmsn_plugins.neurons.pmsn import pmsn
from msf_pmsn_plugins.settings import MSFSettings, PMSNSettings, flatten
from msf_pmsn_plugins.tensors import MSFParameters, PMSNState, PMSNWeights
from tolerances import F32, F64, assert_same

OPS = torch.ops.msf_pmsn_plugins
both_dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
LAYOUTS = ["contiguous", "transposed", "expanded"]
all_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def laid_out(x, layout):
    """The same shape with other strides."""
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    return x[:, :1].expand(x.shape) if layout == "expanded" else x


def uniform(*shape, seed=2, dtype=F64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


PLAIN = MSFSettings("decay", (1.0, 2.0), rate=0.25, surrogate="atan", width=2.0)
GENERAL = MSFSettings("plif", (0.0, 1.0), reset_mode="soft", surrogate="atan", width=2.0)


def msf_tensors(dtype, layout="contiguous", steps=5):
    """Input, state, and all three tensors of the parameters: a channel's, one number, an element's."""
    x = laid_out(randn(steps, 3, 4, dtype=dtype) * 2, layout)
    v = randn(3, 4, seed=1, dtype=dtype)
    rate, threshold, reset = (
        uniform(4, dtype=dtype),
        uniform(seed=3, dtype=dtype),
        uniform(3, 4, dtype=dtype),
    )
    return x, v, MSFParameters(rate, 0.5 + threshold, reset)


def pmsn_tensors(dtype, layout="contiguous", steps=5, lanes=(2, 3, 4), modes=2):
    complex_ = dtype.to_complex()
    x = laid_out(randn(steps, *lanes, dtype=dtype) * 2, layout)
    r = uniform(*lanes, seed=3, dtype=dtype)
    e = (0.5 * torch.tanh(randn(lanes[1], modes, seed=4, dtype=dtype)) - 1).to(complex_)
    w, z = randn(lanes[1], modes, seed=6, dtype=complex_), randn(*lanes, modes, seed=8, dtype=complex_)
    return x, PMSNState(r, z), PMSNWeights(e, w, randn(lanes[1], seed=10, dtype=dtype))


@all_backends
@both_dtypes
@all_layouts
@pytest.mark.parametrize("steps", [0, 5])
def test_opcheck_msf(steps, layout, dtype, backend):
    x, v, parameters = msf_tensors(dtype, layout, steps)
    some = torch.tensor([steps, steps // 2, 0])
    resets = itertools.product(("hard", "soft", "none"), (False, True))
    keeps = itertools.cycle((("membrane", None), ("code", some), ("none", None), ("membrane", some)))
    for (reset_mode, delay), (keep, lengths) in zip(resets, keeps, strict=False):
        settings = replace(PLAIN, reset_mode=reset_mode, reset_delay=delay, keep=keep)
        args = (x, v, None, None, None, lengths, *flatten(settings), backend)
        torch.library.opcheck(OPS.msf.default, args)
    args = (x, v, *parameters, some, *flatten(GENERAL), backend)
    torch.library.opcheck(OPS.msf.default, args)


@all_backends
@both_dtypes
@all_layouts
@pytest.mark.parametrize("steps", [0, 5])
def test_opcheck_msf_backward(steps, layout, dtype, backend):
    x, v, parameters = msf_tensors(dtype, layout, steps)
    gs = laid_out(randn(steps, 3, 4, seed=5, dtype=dtype), layout)
    kept, none = torch.empty_like(x).copy_(x), MSFParameters()
    attached = replace(PLAIN, detach_reset=False)
    for given, tensors, slopes, settings in (
        ((gs, None, None), none, (None, None), attached),
        ((None, gs, None), parameters, (None, None), GENERAL),
        ((None, None, randn(3, 4, seed=6, dtype=dtype)), none, (None, None), attached),
        ((gs, gs, v), parameters, (None, None), replace(GENERAL, reset_delay=True)),
        ((gs, None, v), none, (kept.abs(), kept.abs()), replace(attached, surrogate="")),
    ):
        args = (*given, x, kept, v, *tensors, None, *slopes, *flatten(settings), backend)
        torch.library.opcheck(OPS.msf_backward.default, args)


@all_backends
@both_dtypes
@all_layouts
@pytest.mark.parametrize("steps", [0, 5, 70])
def test_opcheck_pmsn(steps, layout, dtype, backend):
    x, state, weights = pmsn_tensors(dtype, layout, steps)
    some = torch.tensor([steps, steps // 2])
    for lengths, settings in (
        (None, PMSNSettings(0.5)),
        (some, PMSNSettings(0.5, "cumulative", keep_drive=False)),
        (None, PMSNSettings(0.5, burst="nearest", fixed=True, keep_membrane=True)),
        (some, PMSNSettings(0.5, keep_residual=True)),
    ):
        args = (x, *state, *weights, lengths, *flatten(settings), backend)
        torch.library.opcheck(OPS.pmsn.default, args)


@all_backends
@both_dtypes
@all_layouts
@pytest.mark.parametrize("steps", [0, 5, 70])
def test_opcheck_pmsn_backward(steps, layout, dtype, backend):
    x, state, weights = pmsn_tensors(dtype, layout, steps)
    gs, y = (laid_out(randn(*x.shape, seed=i, dtype=dtype), layout) for i in (11, 12))
    some = torch.tensor([steps, steps // 2])
    for given, lengths, slopes, settings in (
        ((gs, None, None, None, None), None, None, PMSNSettings(0.5, state_grad=False)),
        ((None, gs, gs, *state), some, None, PMSNSettings(0.5, "cumulative")),
        ((None, None, None, None, None), None, None, PMSNSettings(0.5, "serial", "sawtooth")),
        ((gs, None, None, None, None), some, y.abs(), PMSNSettings(0.5, surrogate="")),
    ):
        args = (*given, x, y, *state, *weights, lengths, slopes, *flatten(settings), backend)
        torch.library.opcheck(OPS.pmsn_backward.default, args)


@all_backends
@pytest.mark.parametrize("some", [None, torch.tensor([3, 5])], ids=["whole", "lengths"])
def test_the_gradient_of_the_state_is_made_where_it_is_wanted(backend, some):
    x, state, weights = pmsn_tensors(F64)

    def run(state_grad):
        settings = flatten(PMSNSettings(0.5, state_grad=state_grad))
        given = (x, None, None, None, state.z, x, x, *state, *weights, some, None)
        return OPS.pmsn_backward(*given, *settings, backend)

    wanted, unwanted = run(True), run(False)
    assert wanted[2].shape == state.z.shape
    assert unwanted[2].shape == (0,)
    for i in (0, 1, 3, 4, 5):
        assert torch.equal(wanted[i], unwanted[i])
    for wants in (False, True):
        x_, z_ = x.clone().requires_grad_(), state.z.clone().requires_grad_(wants)
        s_seq, _y, _m, last = pmsn(x_, PMSNState(state.r, z_), weights, PMSNSettings(0.5), backend=backend)
        (s_seq.sum() + last.z.abs().sum()).backward()
        assert (z_.grad is not None) == wants


@all_backends
@pytest.mark.parametrize("steps", [0, 1, 40])
def test_ops_never_write_or_alias_their_inputs(steps, backend):
    x, v, parameters = msf_tensors(F64, steps=steps)
    u, state, weights = pmsn_tensors(F64, steps=steps)
    for op, tensors, settings in (
        (OPS.msf, (x, v, None, None, None), PLAIN),
        (OPS.msf, (x, v, *parameters), replace(GENERAL, reset_delay=True)),
        (OPS.pmsn, (u, *state, *weights), PMSNSettings(0.5, keep_membrane=True)),
        (OPS.pmsn, (u, *state, *weights), PMSNSettings(0.5, "cumulative", keep_membrane=True)),
        (OPS.pmsn, (u, *state, *weights), PMSNSettings(0.5, "none", keep_membrane=True)),
    ):
        given = [t for t in tensors if t is not None]
        before = [t.clone() for t in given]
        outputs = op(*tensors, None, *flatten(settings), backend)
        for t, old in zip(given, before, strict=True):
            assert_same(t, old)
            assert not any(t.numel() and t.data_ptr() == o.data_ptr() for o in outputs)
        places = [o.data_ptr() for o in outputs if o.numel()]
        assert len(set(places)) == len(places)
