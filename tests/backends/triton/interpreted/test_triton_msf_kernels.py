"""The Triton text of MSF under the interpreter against the oracle: its axes crossed."""

from __future__ import annotations

import pytest
import torch

from covering import label, pairwise
from msf_pmsn_plugins.backends.triton import config, launch
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.surrogate import SURROGATES
from shim.cases import MSFCase, check_msf, laid_out, msf_problem
from shim.crossed import LAYOUTS, LENGTHS
from shim.edges import check_nan_and_inf, check_padding

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("poisoned", "launches")]

DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
SHAPES = {"one": (1,), "odd": (3, 5), "wide": (2, 16), "blocks": (3, 130)}
FACTORS = {
    "charge": list(CHARGES),
    "reset": ["hard", "soft", "none"],
    "surrogate": list(SURROGATES),
    "levels": ["1", "2", "4", "7"],
    "dtype": list(DTYPES),
    "keep": ["membrane", "code"],
    "through": ["detached", "attached", "delayed", "retaken", "retaken-attached"],
    "slopes": ["named", "given"],
    "rate": ["number", "one", "lanes"],
    "threshold": ["number", "one", "lanes"],
    "amount": ["number", "one", "lanes"],
    "lengths": LENGTHS,
    "gm": ["", "gm"],
    "shape": list(SHAPES),
    "layout": LAYOUTS,
    "states": ["plain", "odd", "lazy"],
    "steps": ["1", "2", "6"],
}


def possible(case):
    numbers = (case["rate"], case["threshold"], case["amount"])
    if case["rate"] != "number" and CHARGES[case["charge"]].rate_grad is None:
        return False
    if case["amount"] != "number" and case["reset"] != "soft":
        return False
    if "retaken" in case["through"] and case["reset"] != "soft":
        return False
    if case["keep"] == "code":
        rectangle = case["surrogate"] == "rectangular" and case["slopes"] == "named" and not case["gm"]
        return rectangle and "attached" not in case["through"] and numbers == ("number",) * 3
    return True


def built(case):
    """The case of ``shim.cases``."""
    rate, threshold, amount = (
        "" if case[name] == "number" else case[name] for name in ("rate", "threshold", "amount")
    )
    return MSFCase(
        *(case["charge"], case["reset"], case["surrogate"], int(case["levels"]), DTYPES[case["dtype"]]),
        keep=case["keep"],
        detach="attached" not in case["through"],
        learned=rate,
        threshold=threshold,
        amount=amount,
        delay=case["through"] == "delayed",
        retake="retaken" in case["through"],
        slopes=case["slopes"] == "given",
        lengths=case["lengths"] != "whole",
        grad_membrane=bool(case["gm"]),
        v_reset=-0.25 if case["reset"] == "hard" else 0.0,
        steps=int(case["steps"]),
        shape=SHAPES[case["shape"]],
    )


@pytest.mark.parametrize("case", pairwise(FACTORS, possible), ids=label)
def test_crossed(case):
    made = built(case)
    odd = ("v", "gv") if case["states"] == "odd" else ()
    lazy, strided = case["states"] == "lazy", case["lengths"] == "strided"
    p = laid_out(msf_problem(made), case["layout"], odd, lazy, strided)
    check_msf(made, p, backend="triton")


@pytest.mark.parametrize("levels", [3, 5, 127, 128, 300])
def test_any_number_of_thresholds(levels):
    check_msf(MSFCase(levels=levels, steps=2, shape=(2, 4), threshold="lanes"), backend="triton")


@pytest.mark.parametrize("steps", [3, 64])
@pytest.mark.parametrize("lanes", [1, 31, 33, 1028])
def test_any_size(steps, lanes):
    check_msf(MSFCase(steps=steps, shape=(lanes,), seed=steps + lanes), backend="triton")


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_nan_and_inf_do_as_in_the_oracle(reset, detach):
    check_nan_and_inf("triton", reset, detach)


def test_padding_may_hold_anything():
    check_padding("triton")


@pytest.mark.parametrize("processors", [1, 4, 132])
def test_the_shape_of_a_launch_changes_no_bit(monkeypatch, processors, launches):
    monkeypatch.setattr(launch, "INTERPRETED", config.Device(processors))
    case = MSFCase("plif", "soft", "atan", learned="one", lengths=True, shape=(3, 200))
    check_msf(case, backend="triton")
    (_, (programs,), warps, args, settings), *_ = launches
    assert settings["BLOCK"] == {1: 128, 4: 32, 132: 32}[processors]
    assert (programs - 1) * settings["BLOCK"] < 600 <= programs * settings["BLOCK"]
    assert 600 in [arg for arg in args if type(arg) is int]
    assert warps == min(4, settings["BLOCK"] // 32)
