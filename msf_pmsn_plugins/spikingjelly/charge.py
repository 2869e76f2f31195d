"""How the installed SpikingJelly charges its nodes, as keys of :data:`msf_pmsn_plugins.charges.CHARGES`."""

from __future__ import annotations

from .version import FUNCTIONAL

__all__ = ["lif_charge", "plif_charge"]


def lif_charge(decay_input: bool, v_reset: float | None) -> tuple[str, str]:
    """The charge of ``LIFNode``, in training and in evaluation, in its own order of operations."""
    full = "lif_decay_input" if decay_input else "lif"
    if FUNCTIONAL:
        return full, full
    # 0.0.0.0.14 leaves out a rest of 0; in evaluation, in another place, a rest of None alone.
    short = "lif_rest_zero_decay_input" if decay_input else "lif_product"
    return short if v_reset in (None, 0) else full, short if v_reset is None else full


def plif_charge(decay_input: bool, v_reset: float | None) -> str:
    """The charge of ``ParametricLIFNode``."""
    if decay_input:
        return "plif_decay_input"
    return "plif_product" if not FUNCTIONAL and v_reset in (None, 0) else "plif"
