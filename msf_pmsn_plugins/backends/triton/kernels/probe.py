"""The smallest kernel: whether Triton can compile and launch here."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def probe(x):
    """Store 1."""
    tl.store(x, 1.0)
