"""The framework-neutral neurons: equations, custom ops and modules."""

from .base import Neuron
from .msf import MSF
from .pmsn import PMSN

__all__ = ["MSF", "NEURONS", "PMSN", "Neuron"]

NEURONS: dict[str, type[Neuron]] = {"msf": MSF, "pmsn": PMSN}
