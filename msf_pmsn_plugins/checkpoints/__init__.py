"""Read the state dicts that the published PMSN and MSF code saves.

``read(file, model)`` renames the published entries to those of ``model``, checks every one of them, loads, and reports.
The names are facts read in the published code; see :data:`SOURCES` for what each script saves, and for what it does
not save and you must set yourself.

In the PMSN code a neuron at ``<path>`` holds ``<path>.D`` and the other seven parameters under ``<path>.kernel``. Here
they are all held by a :class:`~msf_pmsn_plugins.neurons.PMSN`, at ``<path>`` or, inside a node, at ``<path>.neuron``.
The MSF neuron has no parameters: its files hold convolutions, norms and linear layers only.
"""

from __future__ import annotations

from .reader import read
from .report import Incomplete, Mismatch, Report
from .sources import SOURCES, Source

__all__ = ["SOURCES", "Incomplete", "Mismatch", "Report", "Source", "read"]
