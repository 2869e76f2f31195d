"""Which SpikingJelly is installed: 2.0.0 or 0.0.0.0.14."""

from ..words import install

try:
    from spikingjelly.activation_based import base
except ImportError as error:
    raise ImportError(
        f"msf_pmsn_plugins.spikingjelly needs SpikingJelly 2.0.0 or 0.0.0.0.14: {install('spikingjelly')}"
    ) from error

__all__ = ["FUNCTIONAL"]

# 2.0.0 has functional transitions, and other formulas for the same nodes.
FUNCTIONAL = hasattr(base.MemoryModule, "functional_forward")
