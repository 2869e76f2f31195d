"""The framework-neutral neurons: equations, custom ops and modules."""

from .base import Neuron
from .msf import MSF
from .msn import MSN
from .parallel_if import ParallelIF
from .pmsn import PMSN, parallel_reset

__all__ = ["MSF", "MSN", "NEURONS", "PMSN", "Neuron", "ParallelIF", "parallel_reset"]

NEURONS: dict[str, type[Neuron]] = {"msf": MSF, "pmsn": PMSN, "msn": MSN, "parallel_if": ParallelIF}
