"""The compiled half of the Numba backend."""

from .msf import msf_backward, msf_forward
from .pmsn_backward import pmsn_backward
from .pmsn_forward import pmsn_forward
from .pmsn_step import pmsn_step, pmsn_step_back

__all__ = ["msf_backward", "msf_forward", "pmsn_backward", "pmsn_forward", "pmsn_step", "pmsn_step_back"]
