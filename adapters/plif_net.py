"""The networks of the PLIF paper: convolutions and two linear layers, a voting layer last."""

from msf_pmsn_plugins.adapters.recipe import CONVOLUTIONS, NORMS, Recipe

_ZOO = "spikingjelly.activation_based.model.parametric_lif_net"
_NETS = ("MNISTNet", "FashionMNISTNet", "NMNISTNet", "CIFAR10Net", "CIFAR10DVSNet", "DVSGestureNet")

RECIPE = Recipe(
    name="plif_net",
    source="Fang et al., Incorporating Learnable Membrane Time Constant to Enhance Learning of Spiking Neural "
    "Networks, ICCV 2021",
    models=tuple(f"{_ZOO}:{name}" for name in _NETS),
    classes=_NETS,
    rules=CONVOLUTIONS,  # one image size only, so sizes cannot tell the channels
    advice="Its spikes are max-pooled: of binary spikes that is OR, of counts the largest. The last neurons vote: the "
    "voting layer averages counts, so logits grow with D.",
    calibration=NORMS,
)
