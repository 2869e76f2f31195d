"""PMSN: the equations (``step``), its weights (``discretise``), all steps at once (``op``, ``reset``), the module."""

from .discretise import INITS, Init, discretise
from .module import PARAMETERS, PER_CHANNEL, PMSN, VARIANTS
from .op import pmsn
from .reset import parallel_reset
from .step import BURSTS, RESET_MODES, pmsn_step

__all__ = [
    "BURSTS",
    "INITS",
    "PARAMETERS",
    "PER_CHANNEL",
    "PMSN",
    "RESET_MODES",
    "VARIANTS",
    "Init",
    "discretise",
    "parallel_reset",
    "pmsn",
    "pmsn_step",
]
