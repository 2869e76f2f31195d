"""What one operation costs, pJ: 45 nm, M. Horowitz, "Computing's energy problem", ISSCC 2014."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Energy of one multiplication and one addition, pJ."""

    multiply: float
    add: float

    @property
    def mac(self) -> float:
        """One multiply-accumulate."""
        return self.multiply + self.add


FLOAT32 = Costs(3.7, 0.9)
FLOAT16 = Costs(1.1, 0.4)
SRAM_PJ_PER_BIT = 20 / 64  # 64 bits from a cache of 32 kB cost 20 pJ


def integer(a_bits: int, b_bits: int, sum_bits: int = 32) -> Costs:
    """Integers of ``a_bits`` times ``b_bits``, summed in ``sum_bits``: linear in the bits of both operands.

    Anchored at the published 32-bit numbers (3.1 and 0.1 pJ); the published 8-bit ones (0.2 and 0.03) are met to 17 %.
    """
    return Costs(3.1 * a_bits * b_bits / 32**2, 0.1 * sum_bits / 32)
