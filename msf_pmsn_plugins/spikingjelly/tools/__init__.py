"""SpikingJelly's own utilities, made right for integer spikes: counters, memory optimisation, deployment, exchange.

What needs SpikingJelly 2.0.0 says so on 0.0.0.0.14, and names what does the same there. Nothing here changes
SpikingJelly itself.
"""

from .counters import OpCounters, count_rules, op_counters, simple_energy, state_rules
from .exchange import binary_input, to_stock
from .memory import CountCompressor, keep_counts, optimize_memory

__all__ = [
    "CountCompressor",
    "OpCounters",
    "binary_input",
    "count_rules",
    "keep_counts",
    "op_counters",
    "optimize_memory",
    "simple_energy",
    "state_rules",
    "to_stock",
]
