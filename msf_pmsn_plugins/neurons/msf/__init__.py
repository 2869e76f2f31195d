"""MSF: the equations (``step``), all steps at once (``op``), the module."""

from .module import MSF
from .op import msf
from .step import msf_step

__all__ = ["MSF", "msf", "msf_step"]
