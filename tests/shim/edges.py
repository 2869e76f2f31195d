"""What the kernels of every GPU backend must do at the edges, on the problems of ``cases``."""

from __future__ import annotations

import torch

from shim.cases import (
    MSFCase,
    PMSNCase,
    msf_backward,
    msf_forward,
    msf_oracle,
    msf_problem,
    pmsn_backward,
    pmsn_forward,
    pmsn_problem,
)
from tolerances import assert_same


def check_nan_and_inf(backend: str, reset: str, detach: bool) -> None:
    """NaN and inf do as in the oracle."""
    case = MSFCase("lif", reset, "triangle", detach=detach, shape=(4, 8))
    p = msf_problem(case)
    p["x_seq"][1, 0], p["x_seq"][2, 1, :4], p["x_seq"][0, 2] = torch.nan, torch.inf, -torch.inf
    (s, kept, v), expected = msf_forward(backend, case, p), msf_oracle(case, p)
    for actual, ref in zip((s, kept, v), expected[:3], strict=True):
        assert_same(actual, ref)
    for grad, ref in zip(
        msf_backward(backend, case, p, kept), msf_backward("torch", case, p, kept), strict=True
    ):
        assert_same(grad, ref)


def check_padding(backend: str) -> None:
    """Padded steps of MSF may hold anything."""
    case = MSFCase("plif", "hard", "atan", learned="lanes", lengths=True, shape=(4, 8), grad_membrane=True)
    p = msf_problem(case)
    padded = (torch.arange(case.steps)[:, None] >= p["lengths"])[..., None]
    assert padded.any()
    dirty = dict(p)
    for key in ("x_seq", "gs_seq", "gm_seq"):
        dirty[key] = torch.where(padded, torch.nan, p[key])
    kept = msf_forward(backend, case, p)[1]
    for clean, other in [
        (msf_forward(backend, case, p), msf_forward(backend, case, dirty)),
        (msf_backward(backend, case, p, kept), msf_backward(backend, case, dirty, kept)),
    ]:
        for one, two in zip(clean, other, strict=True):
            assert_same(one, two)
            assert torch.isfinite(one).all()


def check_lost_lanes(case: PMSNCase, backend: str) -> None:
    """A lane of PMSN that is lost to inf or NaN spoils no other, and nothing that lanes share."""
    p = pmsn_problem(case)
    lost = {**p, "x_seq": p["x_seq"].clone(), "z": p["z"].clone()}
    lost["x_seq"][4, 0], lost["z"][1, 0] = torch.inf, torch.nan
    s, y, m, r, z = pmsn_forward(backend, case, lost)
    s_ref, y_ref, m_ref, r_ref, z_ref = pmsn_forward("torch", case, lost)
    assert_same(s, s_ref)
    for one, two in ((y, y_ref), (m, m_ref), (r, r_ref), (z.real, z_ref.real)):
        assert_same(one.isnan(), two.isnan())
    assert y[4:, 0].isnan().all()
    assert y[:, 1, 0].isnan().all()
    assert torch.isfinite(y[:, 2:]).all()
    grads = pmsn_backward(backend, case, lost, y)
    # What the parameters get is what the other lanes, and the steps before, give.
    live = {**p, "gs_seq": p["gs_seq"].clone(), "x_seq": p["x_seq"].clone(), "z": p["z"].clone()}
    live["gs_seq"][4:, 0], live["gs_seq"][:, 1, 0] = 0, 0
    live["x_seq"][4, 0], live["z"][1, 0] = 0, 0
    ref = pmsn_backward(backend, case, live, y)
    for one, two in zip(grads[3:], ref[3:], strict=True):
        assert_same(one, two)
    assert_same(grads[0][:, 2:], ref[0][:, 2:])


def check_lengths_out_of_range(backend: str) -> None:
    """They stay in memory: on a device nobody looks at their values."""
    case = PMSNCase(lengths=True, steps=11)  # whose last chunk is shorter, where time is cut
    p = pmsn_problem(case)
    results = []
    for low, high in ((-7, 10**9), (0, case.steps)):
        given = {**p, "lengths": torch.tensor([low, high, 3, low, high])}
        forward = pmsn_forward(backend, case, given)
        results.append((*forward, *pmsn_backward(backend, case, given, forward[1])))
    for one, two in zip(*results, strict=True):
        assert_same(one, two)


def check_fixed_chunks(backend: str) -> None:
    """In fixed point a sequence in pieces has the bits of the whole."""
    case = PMSNCase(fixed=True, steps=12, threshold=0.7)
    p = pmsn_problem(case)
    whole = pmsn_forward(backend, case, p)
    parts, state = [], p
    for piece in p["x_seq"].split([1, 5, 6]):
        s, y, _, r, z = pmsn_forward(backend, case, {**state, "x_seq": piece})
        parts.append((s, y))
        state = {**state, "r": r, "z": z}
    assert_same(torch.cat([s for s, _ in parts]), whole[0])
    assert_same(torch.cat([y for _, y in parts]), whole[1])
    assert_same(state["r"], whole[3])
    assert_same(state["z"], whole[4])
