"""Pictures of what the neurons do: one function a picture, drawn with matplotlib (extra ``plot``).

Every function draws into ``ax`` (``axes`` where there are several) or into a new figure, and returns what it drew into;
``ax.figure.savefig("name.png")`` or ``matplotlib.pyplot.show()`` do the rest. A ``neuron`` is one of
:mod:`msf_pmsn_plugins.neurons`, or a SpikingJelly node or snnTorch neuron that holds one; :func:`raster`,
:func:`traces`, :func:`histogram` and :func:`activity` also take the frameworks' own neurons and whole networks, and
:func:`compare` draws several side by side. All are run from rest, without gradients, and left as they were. Time is
counted in steps.
"""

from __future__ import annotations

from .compartments import impulse_response, modes
from .frequency import frequency_response
from .gradients import gradient_by_lag, summed_slope
from .membranes import histogram
from .report import Activity, LayerActivity, activity
from .side_by_side import compare
from .time import raster, traces

__all__ = [
    "Activity",
    "LayerActivity",
    "activity",
    "compare",
    "frequency_response",
    "gradient_by_lag",
    "histogram",
    "impulse_response",
    "modes",
    "raster",
    "summed_slope",
    "traces",
]
