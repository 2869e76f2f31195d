"""NeuroBench's own names: the one place that imports them, and says so if they have moved."""

from importlib.metadata import PackageNotFoundError, version

from ..words import install

KNOWN = "2.3"
REMEDY = install("neurobench")


def installed() -> str:
    """The version of NeuroBench, "" where there is none."""
    try:
        return version("neurobench")
    except PackageNotFoundError:
        return ""


if installed() and installed().split(".")[:2] != KNOWN.split("."):
    raise ImportError(
        f"NeuroBench {installed()} may count otherwise than {KNOWN}, which msf_pmsn_plugins.neurobench knows: {REMEDY}"
    )
try:
    from neurobench.blocks.layer import STATELESS_LAYERS, SUPPORTED_LAYERS
    from neurobench.hooks.layer import LayerHook
    from neurobench.hooks.neuron import NeuronHook
    from neurobench.metrics import workload
    from neurobench.metrics.abstract import AccumulatedMetric
    from neurobench.metrics.utils.layers import single_layer_MACs
    from neurobench.metrics.workload.neuron_operations import neuron_ops_reset_operations
    from neurobench.models import NeuroBenchModel
except ImportError as error:
    raise ImportError(f"NeuroBench {installed()} cannot be imported ({error}): {REMEDY}") from error

__all__ = [
    "STATELESS_LAYERS",
    "SUPPORTED_LAYERS",
    "AccumulatedMetric",
    "LayerHook",
    "NeuroBenchModel",
    "NeuronHook",
    "neuron_ops_reset_operations",
    "single_layer_MACs",
    "workload",
]
