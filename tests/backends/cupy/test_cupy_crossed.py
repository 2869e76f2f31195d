"""Where two axes meet in the kernels: layouts, paths, lengths, dtypes, modes and settings, every pair of values."""

from __future__ import annotations

import pytest

from covering import label
from shim.cases import check_msf, check_pmsn, cut_time, few_lanes, msf_problem, pmsn_problem
from shim.crossed import MSF_CASES, PMSN_CASES, msf_case, msf_laid_out, pmsn_case, pmsn_laid_out

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("poisoned")]


@pytest.mark.parametrize("case", MSF_CASES, ids=label)
def test_msf(shim, monkeypatch, case):
    msf = msf_case(case)
    if case["lanes"] == "ahead":
        few_lanes(monkeypatch, shim)
    check_msf(msf, msf_laid_out(case, msf_problem(msf)))
    macros = [dict(one.kernel.macros) for one in shim.launches]
    assert all(bool(found["AHEAD"]) == (case["lanes"] == "ahead") for found in macros)
    assert case["lanes"] != "straddling" or all(found["VEC"] > 1 for found in macros)


@pytest.mark.parametrize("case", PMSN_CASES, ids=label)
def test_pmsn(shim, monkeypatch, case):
    pmsn = pmsn_case(case)
    if case["path"] == "chunks":
        cut_time(monkeypatch, shim)
    check_pmsn(pmsn, pmsn_laid_out(case, pmsn_problem(pmsn)))
    chunked = any(one.kernel.name == "pmsn_chunk" for one in shim.launches)
    assert chunked == (case["path"] == "chunks")
