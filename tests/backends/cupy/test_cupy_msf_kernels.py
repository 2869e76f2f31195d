"""The CUDA text of MSF on a CPU (see ``shim``) against the oracle."""

from __future__ import annotations

import itertools

import pytest
import torch

from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.surrogate import SURROGATES
from shim.cases import (
    MSFCase,
    check_msf,
    check_states,
    msf_backward,
    msf_forward,
    msf_problem,
    slow_unless,
    views,
)
from shim.edges import check_nan_and_inf, check_padding
from tolerances import assert_same

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("poisoned")]

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


def cycle(*lists):
    """As many tuples as the longest list has entries; the shorter ones start over."""
    count = max(map(len, lists))
    return list(zip(*(itertools.islice(itertools.cycle(values), count) for values in lists), strict=True))


CHARGE_CASES = [
    MSFCase(charge, reset, surrogate, levels, lengths=lengths, v_reset=-0.25 if reset == "hard" else 0.0)
    for charge, reset, surrogate, levels, lengths in cycle(
        list(CHARGES), ["hard", "soft", "none"], list(SURROGATES), [1, 4], [False, True, False]
    )
]


@pytest.mark.parametrize("delay", [False, True])
@pytest.mark.parametrize("reset_mode", ["hard", "soft", "none"])
def test_states_come_out_of_every_step(reset_mode, delay):
    check_states(MSFCase(reset_mode=reset_mode, delay=delay, lengths=True))


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
def test_an_undecayed_reset_at_once(detach):
    case = MSFCase(reset_mode="soft", retake=True, lengths=True, levels=2, surrogate="atan", detach=detach)
    check_msf(case)
    check_states(case)


@pytest.mark.parametrize("case", CHARGE_CASES, ids=lambda case: f"{case.charge}-{case.reset_mode}")
def test_every_charge(case):
    check_msf(case)


@pytest.mark.parametrize("surrogate", list(SURROGATES))
@pytest.mark.parametrize("reset", slow_unless([("hard", 1), ("hard", 3), ("soft", 3)], [("hard", 3)]))
def test_a_reset_with_its_gradient(surrogate, reset):
    reset_mode, levels = reset
    check_msf(MSFCase("lif", reset_mode, surrogate, levels, detach=False, v_reset=0.5, grad_membrane=True))


@pytest.mark.parametrize("learned", ["one", "lanes"])
@pytest.mark.parametrize("charge", [name for name, rule in CHARGES.items() if rule.rate_grad])
def test_a_learned_rate(charge, learned):
    reset_mode = {"plif": "soft", "plif_product": "none"}.get(charge, "hard")
    check_msf(MSFCase(charge, reset_mode, "atan", learned=learned, lengths=learned == "lanes", detach=False))


NUMBERS = [
    MSFCase("plif", "soft", "atan", 3, learned="lanes", threshold="one", amount="lanes", detach=False),
    MSFCase("decay", "hard", "triangle", 1, threshold="lanes", detach=False, v_reset=0.25, lengths=True),
    MSFCase("lif", "none", levels=300, threshold="one", grad_membrane=True, dtype=F64, steps=2, shape=(2, 4)),
    MSFCase("decay", "soft", "triangle", 4, amount="one", dtype=F64, shape=(3, 5), lengths=True),
    MSFCase("decay", "hard", "atan", 2, learned="one", threshold="lanes", dtype=BF16, shape=(2, 16)),
]


@pytest.mark.parametrize(
    "case", NUMBERS, ids=lambda c: f"{c.learned}-{c.threshold}-{c.amount}-{c.reset_mode}"
)
def test_numbers_that_are_tensors(case):
    check_msf(case)


@pytest.mark.parametrize("keep", ["membrane", "code"])
@pytest.mark.parametrize("reset_mode", ["hard", "soft", "none"])
def test_a_delayed_reset(reset_mode, keep):
    case = MSFCase(
        "lif", reset_mode, delay=True, keep=keep, v_reset=-0.25 * (reset_mode == "hard"), lengths=True
    )
    check_msf(case)


@pytest.mark.parametrize("reset_mode", ["hard", "soft", "none"])
def test_a_delayed_reset_of_tensors(reset_mode):
    amount = "lanes" if reset_mode == "soft" else ""
    check_msf(
        MSFCase(
            *("plif_decay_input", reset_mode, "triangle", 2),
            delay=True,
            learned="one",
            threshold="lanes",
            amount=amount,
            grad_membrane=True,
            shape=(3, 5),
        )
    )


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize("reset_mode", ["hard", "soft", "none"])
def test_slopes_that_are_given(reset_mode, detach):
    check_msf(
        MSFCase("lif", reset_mode, "triangle", slopes=True, detach=detach, lengths=True, threshold="one")
    )


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16])
@pytest.mark.parametrize("shape", [(2, 16), (3, 5)], ids=["wide", "one-lane"])
def test_msf_in_every_dtype(shim, dtype, shape):
    check_msf(MSFCase("decay", surrogate="triangle", dtype=dtype, shape=shape, lengths=True))
    wide = shape == (2, 16)
    assert all(
        ("VEC", 16 // dtype.itemsize if wide else 1) in launch.kernel.macros for launch in shim.launches
    )


@pytest.mark.parametrize("reset_mode", ["hard", "soft", "none"])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_kept_bytes_give_the_same_bits(dtype, reset_mode):
    check_msf(MSFCase("lif", reset_mode, levels=5, dtype=dtype, keep="code", lengths=True))


@pytest.mark.parametrize("levels", slow_unless([1, 2, 127, 128, 256, 257, 1000], [1, 257]))
def test_any_number_of_thresholds(levels):
    check_msf(MSFCase(levels=levels, steps=2, shape=(2, 4)))


# One library serves all of these.
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 8, 64, 300])
@pytest.mark.parametrize("lanes", [1, 3, 64, 130, 1028])
def test_any_size(steps, lanes):
    check_msf(MSFCase(steps=steps, shape=(lanes,), seed=steps + lanes))


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_nan_and_inf_do_as_in_the_oracle(reset, detach):
    check_nan_and_inf("cupy", reset, detach)


def test_padding_may_hold_anything():
    check_padding("cupy")


@pytest.mark.parametrize("view", ["odd", "gap", "turned", "repeated"])
def test_views_of_msf(shim, view):
    case = MSFCase("plif", surrogate="atan", learned="one", grad_membrane=True, shape=(3, 8))
    p = msf_problem(case)
    for key in ("x_seq", "gs_seq", "gm_seq"):
        p[key] = views(p[key])[view]
    for key in ("v", "gv"):
        p[key] = views(p[key][None])["odd"][0]
    plain = {key: value.clone().contiguous() if torch.is_tensor(value) else value for key, value in p.items()}
    results = []
    for given in (p, plain):
        forward = msf_forward("cupy", case, given)
        results.append((*forward, *msf_backward("cupy", case, given, forward[1])))
    for one, two in zip(*results, strict=True):
        assert_same(one, two)
    assert ("VEC", 1) in shim.launches[0].kernel.macros
    assert ("VEC", 4) in shim.launches[2].kernel.macros
