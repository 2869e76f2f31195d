"""The crossed designs of the kernels' tests: every pair of layouts, paths, lengths, dtypes, modes and settings."""

from __future__ import annotations

from typing import Any

import torch

from covering import Case, pairwise

from .cases import STATES, MSFCase, PMSNCase, laid_out

DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = ["plain", "odd", "gap", "skew", "turned", "repeated", "negated", "apart"]
LENGTHS = ["whole", "lengths", "strided"]

MSF = {
    "dtype": list(DTYPES),
    "layout": LAYOUTS,
    "steps": ["1", "5", "40"],
    "lanes": ["packs", "straddling", "single", "ahead"],
    "lengths": LENGTHS,
    "states": ["plain", "odd-v", "odd-gv", "lazy"],
    "kept": ["membrane", "code"],
    "numbers": ["constants", "one", "lanes"],
    "reset": ["hard", "soft", "none"],
    "when": ["at-once", "delayed"],
    "grads": ["s", "m", "attached", "slopes"],
}
# Packs of lanes within samples and, with 5 lanes to a sample, across them; no packs; one lane a thread, read ahead.
LANES = {"packs": (2, 16), "straddling": (8, 5), "single": (3, 5), "ahead": (3, 5)}


def possible_msf(case: Case) -> bool:
    bytes_suffice = case["numbers"] == "constants" and case["grads"] == "s"
    passes_gradient = case["when"] == "at-once" or case["grads"] != "attached"
    # One reason at a time against packs, and none where they are wanted.
    reasons = (
        (case["layout"] in ("odd", "skew", "apart")) + ("odd" in case["states"]) + (case["lanes"] == "single")
    )
    packs = reasons == 0 if case["lanes"] == "straddling" else reasons <= 1 or case["lanes"] == "ahead"
    return passes_gradient and packs and (case["kept"] == "membrane" or bytes_suffice)


def msf_case(case: Case) -> MSFCase:
    numbers = "" if case["numbers"] == "constants" else case["numbers"]
    return MSFCase(
        charge="plif_decay_input" if numbers else "decay",
        reset_mode=case["reset"],
        surrogate="rectangular" if case["kept"] == "code" else "atan",
        dtype=DTYPES[case["dtype"]],
        keep=case["kept"],
        detach=case["grads"] != "attached",
        learned=numbers,
        threshold=numbers,
        amount=numbers if case["reset"] == "soft" else "",
        delay=case["when"] == "delayed",
        slopes=case["grads"] == "slopes",
        lengths=case["lengths"] != "whole",
        grad_membrane=case["grads"] == "m",
        v_reset=0.25 if case["reset"] == "hard" else 0.0,
        steps=int(case["steps"]),
        shape=LANES[case["lanes"]],
        seed=1,
    )


def msf_laid_out(case: Case, p: dict[str, Any]) -> dict[str, Any]:
    """The problem ``p`` in the memory that the case asks for."""
    odd = {"odd-v": ("v",), "odd-gv": ("gv",)}.get(case["states"], ())
    return laid_out(p, case["layout"], odd, case["states"] == "lazy", case["lengths"] == "strided")


MSF_CASES = pairwise(MSF, possible_msf)

PMSN = {
    "dtype": list(DTYPES),
    "layout": LAYOUTS,
    "path": ["whole", "chunks"],
    "modes": ["0", "3", "6"],
    "lanes": ["5x3x2", "33x1x1", "2x70x1"],
    "lengths": LENGTHS,
    "states": ["plain", "odd", "lazy"],
    # The reset with the gradients that come beside that of the spikes: of drives (y), membranes (m), or slopes.
    "soma": [
        "floor",
        "floor-slopes",
        "floor-y-m",
        "serial-m",
        "none-y",
        "cumulative",
        "cumulative-y-m",
        "fixed-y-m",
    ],
    "burst": ["", "nearest", "sawtooth"],
}


def possible_pmsn(case: Case) -> bool:
    return case["path"] == "whole" or (case["modes"] != "0" and "fixed" not in case["soma"])


def pmsn_case(case: Case) -> PMSNCase:
    reset, *grads = case["soma"].split("-")
    fixed = reset == "fixed"
    return PMSNCase(
        modes=int(case["modes"]),
        reset_mode="floor" if fixed else reset,
        burst=case["burst"],
        fixed=fixed,
        dtype=DTYPES[case["dtype"]],
        lengths=case["lengths"] != "whole",
        grad_drive="y" in grads,
        grad_membrane="m" in grads,
        slopes="slopes" in grads,
        threshold=0.75,
        steps=11,
        lanes=tuple(map(int, case["lanes"].split("x"))),
    )


def pmsn_laid_out(case: Case, p: dict[str, Any]) -> dict[str, Any]:
    """The problem ``p`` in the memory that the case asks for."""
    odd = STATES if case["states"] == "odd" else ()
    return laid_out(p, case["layout"], odd, case["states"] == "lazy", case["lengths"] == "strided")


PMSN_CASES = pairwise(PMSN, possible_pmsn)
