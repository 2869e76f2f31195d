"""The one table of tolerances, and the comparisons that use it. There is no looser mode anywhere.

A tolerance is (rtol, atol), and rtol is relative to the *largest* entry of the expected array: small entries of a
gradient carry the rounding of the large ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

F32, F64 = torch.float32, torch.float64

TOLERANCES: dict[str, dict[torch.dtype, tuple[float, float]]] = {
    # m = decay*m + x, the same operations in the same order as the published code, compared with its float64 run
    "membrane": {F32: (2e-6, 0.0), F64: (1e-15, 0.0)},
    # gradients of MSF against the published float64 run: its surrogates pass through float32 in places
    "msf_gradient": {F32: (1e-5, 0.0), F64: (1e-9, 0.0)},
    # a hand-written adjoint against autograd of the same formula: a few roundings per step
    "adjoint": {F32: (1e-5, 1e-6), F64: (1e-12, 1e-13)},
    # derivative of a surrogate against its formula
    "slope": {F32: (1e-6, 0.0), F64: (1e-14, 0.0)},
    # PMSN's drive y in another order of summation (blocks, FFT, recurrence), up to 784 steps
    "drive": {F32: (1e-5, 0.0), F64: (1e-11, 0.0)},
    # residual after up to 100 steps, no spike flipped: the errors of the drives add up (large drives: many volts)
    "residual": {F32: (2e-4, 0.0), F64: (1e-10, 0.0)},
    # discretisation against high precision: value and gradient lose no digits at any step size
    "discretise": {F32: (1e-6, 0.0), F64: (2e-15, 0.0)},
    "discretise_gradient": {F32: (2e-6, 0.0), F64: (1e-14, 0.0)},
    # PMSN's gradients against the published float64 run, up to 128 steps
    "pmsn_gradient": {F32: (1e-4, 0.0), F64: (1e-9, 0.0)},
    # beyond 128 steps: errors of y accumulate in the membrane, which the triangle passes on
    "pmsn_gradient_long": {F32: (5e-3, 0.0), F64: (1e-9, 0.0)},
    # PMSN's gradients against float64 autograd of a loop of `step`
    "pmsn_adjoint": {F32: (1e-4, 1e-6), F64: (1e-10, 1e-13)},
    # published initial values are float32 numbers from another linear-algebra library
    "initial_values": {F32: (1e-6, 1e-4), F64: (1e-6, 1e-4)},
    # SpikingJelly and snnTorch against MSF, where the order of operations differs
    "host": {F32: (2e-6, 0.0), F64: (1e-14, 0.0)},
}


def assert_close(actual: Tensor, expected: Tensor, name: str, dtype: torch.dtype | None = None) -> None:
    """Raise unless ``actual`` meets ``expected`` within the tolerance ``name`` of ``dtype`` (of ``actual``)."""
    dtype = actual.dtype if dtype is None else dtype
    dtype = dtype.to_real() if dtype.is_complex else dtype
    # a half is rounded once, from a float32 that is itself a few units of its last place off
    rtol, atol = TOLERANCES[name].get(dtype) or (torch.finfo(dtype).eps, 0.0)
    wide = torch.complex128 if expected.is_complex() else F64
    actual, expected = actual.detach().to(wide), expected.detach().to(wide)
    assert actual.shape == expected.shape
    if expected.numel():
        error = (actual - expected).abs().max().item()
        scale = expected.abs().max().item()
        assert error <= rtol * scale + atol, (
            f"{name}: error {error:.3g} at scale {scale:.3g}, allowed {rtol:g}, {atol:g}"
        )


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Raise unless every element is equal (NaN equals NaN) and dtypes and shapes agree."""
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=0, atol=0, equal_nan=True)


def assert_flips_proved(
    s_seq: Tensor, y_seq: Tensor, s_ref: Tensor, y_ref: Tensor, v_threshold: float = 1.0, share: float = 0.01
) -> None:
    """Raise unless every spike of PMSN that differs from the float64 reference is proved harmless.

    ``c``, the sum of the clamped drive, decides ``s[t] = floor(c[t]/theta) > floor(c[t-1]/theta)``. A flip is forgiven
    only where one of the two lies within the *accumulated* error of the drives, plus the rounding of the sum, of
    a multiple of the threshold; and no more than ``share`` of all spikes may flip.
    """
    y_ref = y_ref.double()
    c = torch.cumsum(torch.relu(y_ref), 0)
    bound = torch.cumsum((y_seq.double() - y_ref).abs(), 0) + 2.0**-23 * len(c) ** 0.5 * v_threshold
    near = (c - torch.round(c / v_threshold) * v_threshold).abs() <= bound
    near = near | torch.cat([torch.zeros_like(near[:1]), near[:-1]])
    flips = s_seq.double() != s_ref.double()
    assert not (flips & ~near).any(), f"{int((flips & ~near).sum())} flipped spikes without a proof"
    assert flips.sum() <= share * flips.numel(), f"{int(flips.sum())} of {flips.numel()} spikes flipped"


def parted_lanes(
    s_seq: Tensor, m_seq: Tensor, s_ref: Tensor, m_ref: Tensor, v_threshold: float, share: float = 0.2
) -> Tensor:
    """The lanes [N, *] of PMSN that part from a reference in double; raise unless each has a proof, or if many do.

    Proof: where a lane parts first, the reference's membrane lies within rounding of a multiple of the threshold, then
    or one step before (a residual that wraps leaves the spike as it is). From there on it is a threshold off.
    """
    if len(s_seq) == 0:
        return torch.zeros(s_seq.shape[1:], dtype=torch.bool)
    rtol, _ = TOLERANCES["residual"][m_seq.dtype]
    bound = rtol * max(float(m_ref.abs().nan_to_num(0, 0, 0).max()), v_threshold) if m_ref.numel() else 0.0
    differ = (s_seq.double() != s_ref.double()) | ((m_seq.double() - m_ref.double()).abs() > bound)
    differ = differ.detach()
    near = (m_ref - torch.round(m_ref / v_threshold) * v_threshold).abs().detach() <= bound
    near = near | torch.cat([torch.zeros_like(near[:1]), near[:-1]])
    parted, first = differ.any(0), differ.byte().argmax(0, keepdim=True)
    unproved = parted & ~near.gather(0, first).squeeze(0)
    assert not unproved.any(), f"{int(unproved.sum())} lanes part from the loop without a proof"
    assert parted.sum() <= share * parted.numel(), f"{int(parted.sum())} of {parted.numel()} lanes part"
    return parted
