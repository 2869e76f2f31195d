"""Two published spiking neurons, MSF and PMSN, for SpikingJelly and snnTorch."""

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout adapters/ lies beside this folder; Python started there takes it in place of an installed package.
_BESIDE = os.path.dirname(__path__[0])
if not os.path.isdir(os.path.join(__path__[0], "adapters")) and os.path.isdir(
    os.path.join(_BESIDE, "adapters")
):
    __path__.append(_BESIDE)

if not TYPE_CHECKING:  # a type checker would take every name for one that exists

    def __getattr__(name: str) -> Any:
        """A public submodule, imported when it is first named."""
        from importlib import import_module, util

        if not name.startswith("_") and util.find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        where = f"the neurons are in {__name__}.snntorch, {__name__}.spikingjelly and {__name__}.neurons"
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: {where}")
