"""Pictures of what the neurons do: one function a picture, drawn with matplotlib (extra ``plot``).

Every function draws into ``ax`` (``axes`` where there are several) or into a new figure, and returns what it drew into;
``ax.figure.savefig("name.png")`` or ``matplotlib.pyplot.show()`` do the rest. A ``neuron`` is one of
:mod:`msf_pmsn_plugins.neurons`, or a SpikingJelly node or snnTorch neuron that holds one. It is run from rest, without
gradients, and its own state is left as it is. Time is counted in steps.
"""

from __future__ import annotations

from .compartments import impulse_response, modes
from .frequency import frequency_response
from .gradients import gradient_by_lag, summed_slope
from .membranes import membrane_histogram
from .report import Activity, LayerActivity, activity
from .time import raster, traces

__all__ = [
    "Activity",
    "LayerActivity",
    "activity",
    "frequency_response",
    "gradient_by_lag",
    "impulse_response",
    "membrane_histogram",
    "modes",
    "raster",
    "summed_slope",
    "traces",
]
