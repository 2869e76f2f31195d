"""PMSN: golden vectors of the published code."""

import copy
import itertools

import pytest
import torch

from helpers import (
    DTYPES,
    FAST,
    LOOP,
    all_ways,
    both_dtypes,
    golden,
    tensor,
)
from msf_pmsn_plugins.neurons.pmsn.module import PARAMETERS
from subjects import (
    drive,
    drive_by_loop,
    from_golden,
)
from tolerances import F64, assert_close, assert_flips_proved, assert_same

# ---------------------------------------------------------------- golden vectors


def check_linear_adjoint(neuron, u, gs, s, m):
    """Gradients where a membrane moved by a volt: the float64 adjoint of the drive, fed this run's own slopes."""
    wide, x = copy.deepcopy(neuron).double(), u.detach().double().requires_grad_()
    y = drive(wide, x)[1]
    gy = gs * (1 - (m.double() - 1).abs()).clamp(min=0) * (y > 0)
    expected = torch.autograd.grad(y, [x, *wide.parameters()], gy)
    for ours, theirs in zip(torch.autograd.grad(s, [u, *neuron.parameters()], gs), expected, strict=True):
        assert_close(ours, theirs, "pmsn_gradient_long")


def check_golden(g, prefix, gradients, neuron, u, gs, spikes, y, delta, gu, way):
    """One golden case, time first: spikes, drive, membrane, gradients to the input and all eight parameters."""
    dtype = u.dtype
    u.requires_grad_()
    s, _, m = way(neuron, u)
    own = drive_by_loop(neuron, u) if way == LOOP else drive(neuron, u, way.backend)[1]
    assert_close(own, y, "drive")
    if dtype == F64:
        assert_same(s, spikes.to(F64))
        assert_close(m, delta, "drive")
    else:
        assert_flips_proved(s, own, spikes, y)
        agree = (s.double() == spikes).all(0)  # a flipped lane is a threshold off from there on
        # errors of the drives add up, and so do the roundings of r + y and of the cut chunks' drives
        accumulated = torch.cumsum((own.double() - y).abs() + 2.0**-22 * (delta.abs() + y.abs()), 0)
        # A residual may wrap without a flipped spike (1.99998 V, 2.00003 V): the next membrane is a volt off.
        before = torch.cumsum(torch.relu(y), 0).roll(1, 0)
        near = (before - before.round()).abs() <= accumulated
        error = (m - delta).abs()
        wrapped = near & ((error - 1).abs() <= accumulated)
        assert ((error <= accumulated) | wrapped | ~agree).all()
        assert agree.float().mean() > 0.9
        assert wrapped.sum() <= 2
        if wrapped.any() or not agree.all():
            check_linear_adjoint(neuron, u, gs, s, m.detach())
            return
    grads = torch.autograd.grad(s, [u, *(getattr(neuron, name) for name in PARAMETERS)], gs)
    tolerance = "pmsn_gradient" if len(u) <= 128 else "pmsn_gradient_long"
    assert_close(grads[0], gu, tolerance)
    for name, grad in zip(PARAMETERS, grads[1:], strict=True):
        assert_close(grad, tensor(g[f"{prefix}g_{name}_{gradients}"]), tolerance)


SMNIST = [
    (part, modes, steps)
    for part, modes, steps in itertools.product(("init", "pert"), (2, 4, 5, 8), (1, 7, 32, 128, 784))
    if part == "init" or (modes in (4, 5) and steps <= 128)
]


@both_dtypes
@pytest.mark.parametrize(
    ("part", "modes", "steps", "way"),
    [
        (*case, way) for case in SMNIST for way in [LOOP, *FAST] if way != LOOP or case[2] <= 128
    ],  # the loop is slow
)
def test_golden_smnist(part, modes, steps, way, p):
    g, case = golden("pmsn_smnist"), f"{part}_N{modes}_L{steps}_"
    first = lambda name, dtype=None: tensor(g[name], dtype).permute(2, 0, 1).contiguous()  # noqa: E731
    check_golden(
        g,
        case,
        "f64",
        from_golden(g, f"{part}_N{modes}_", DTYPES[p]),
        first(f"u_L{steps}", DTYPES[p]),
        first(f"gs_L{steps}", DTYPES[p]),
        first(f"{case}spk_f64"),
        first(f"{case}y_f64"),
        first(f"{case}delta_f64"),
        first(f"{case}gu_f64"),
        way,
    )
    assert_flips_proved(
        first(f"{case}spk_f32"), first(f"{case}y_f32"), first(f"{case}spk_f64"), first(f"{case}y_f64")
    )


@all_ways
@both_dtypes
def test_golden_serial(p, way):
    g = golden("pmsn_serial")
    first = lambda name, dtype=None: tensor(g[name], dtype).permute(2, 0, 1).contiguous()  # noqa: E731
    for mode in ("parallel", "serial"):
        check_golden(
            g,
            f"{mode}_",
            "f64",
            from_golden(g, dtype=DTYPES[p]),
            first("u", DTYPES[p]),
            first("gs", DTYPES[p]),
            first(f"{mode}_spk_f64"),
            first("parallel_y_f64"),
            first("parallel_delta_f64"),
            first(f"{mode}_gu_f64"),
            way,
        )


@all_ways
@both_dtypes
@pytest.mark.parametrize(("name", "form"), [("pmsn_shd", "2d"), ("pmsn_shd", "3d"), ("pmsn_imagenet", "5d")])
def test_golden_time_major(name, form, p, way):
    g = golden(name)
    lead = (int(g["T"]), int(g["B"]))
    u = tensor(g[f"u_{form}"], DTYPES[p])
    shape = (*lead, *u.shape[2:]) if form == "5d" else (*lead, *u.shape[1:])
    # y and delta are stored as (B, C, X*Y, T)
    last = lambda key: tensor(g[key]).permute(3, 0, 1, 2).reshape(shape)  # noqa: E731
    as_is = lambda key, dtype=None: tensor(g[key], dtype).reshape(shape)  # noqa: E731
    check_golden(
        g,
        f"{form}_reset_",
        "f64",
        from_golden(g, dtype=DTYPES[p]),
        as_is(f"u_{form}", DTYPES[p]),
        as_is(f"gs_{form}", DTYPES[p]),
        as_is(f"{form}_reset_spk_f64"),
        last(f"{form}_reset_y_f64"),
        last(f"{form}_reset_delta_f64"),
        as_is(f"{form}_reset_gu_f64"),
        way,
    )


COLUMNS = {"reset": "floor", "noreset": "none", "cumsum": "cumulative"}


@all_ways
@both_dtypes
@pytest.mark.parametrize("form", ["2d", "3d"])
@pytest.mark.parametrize("variant", COLUMNS)
def test_golden_sequential_cifar_by_columns(variant, form, p, way):
    """Unpaired modes, coeff 0.2, three resets."""
    g, dtype = golden("pmsn_seqcifar32"), DTYPES[p]
    lead = (int(g["T"]), int(g["B"]))
    u = tensor(g[f"u_{form}"], dtype)
    shape = (*lead, *u.shape[1:])
    u = u.reshape(shape).requires_grad_()
    last = lambda key: tensor(g[key]).permute(3, 0, 1, 2).reshape(shape)  # noqa: E731
    neuron = from_golden(g, dtype=dtype, coeff=0.2, reset_mode=COLUMNS[variant])
    s, _, m = way(neuron, u)
    # no margin of these files is below the rounding of a float32 run
    assert_same(s.double(), tensor(g[f"{form}_{variant}_spk_f64"], F64).reshape(shape))
    assert_close(m, last(f"{form}_{variant}_delta_f64"), "residual")
    grads = torch.autograd.grad(
        s, [u, *(getattr(neuron, n) for n in PARAMETERS)], tensor(g[f"gs_{form}"], dtype).reshape(shape)
    )
    assert_close(grads[0], tensor(g[f"{form}_{variant}_gu_f64"]).reshape(shape), "pmsn_gradient")
    for name, grad in zip(PARAMETERS, grads[1:], strict=True):
        assert_close(grad, tensor(g[f"{form}_{variant}_g_{name}_f64"]), "pmsn_gradient")


@all_ways
@both_dtypes
@pytest.mark.parametrize("steps", [7, 32])
def test_golden_burst(steps, p, way):
    """Counts without an upper limit, with the published sawtooth as their slope."""
    g, dtype = golden("pmsn_burst"), DTYPES[p]
    first = lambda key, dtype=F64: tensor(g[f"{key}"], dtype).permute(2, 0, 1).contiguous()  # noqa: E731
    neuron = from_golden(g, dtype=dtype, burst="published")
    u = first(f"u_L{steps}", dtype).requires_grad_()
    s, _, m = way(neuron, u)
    assert s.max() >= 3
    assert_same(s.double(), first(f"L{steps}_spk_f64"))
    assert_close(m, first(f"L{steps}_delta_f64"), "residual")
    leaves = [u, *(getattr(neuron, n) for n in PARAMETERS)]
    grads = torch.autograd.grad(s, leaves, first(f"gs_L{steps}", dtype))
    assert_close(grads[0], first(f"L{steps}_gu_f64"), "pmsn_gradient")
    for name, grad in zip(PARAMETERS, grads[1:], strict=True):
        assert_close(grad, tensor(g[f"L{steps}_g_{name}_f64"]), "pmsn_gradient")
