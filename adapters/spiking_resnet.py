"""Spiking ResNet: ResNet with every activation a spiking neuron, and sums before the last one of a block."""

from msf_pmsn_plugins.adapters.recipe import CONVOLUTIONS, NORMS, Recipe

_ZOO = "spikingjelly.activation_based.model.spiking_resnet"

RECIPE = Recipe(
    name="spiking_resnet",
    source="SpikingJelly's model zoo, and the baseline of the SEW ResNet paper: Fang et al., NeurIPS 2021",
    models=tuple(f"{_ZOO}:spiking_resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    classes=("SpikingResNet",),
    rules=CONVOLUTIONS,
    legacy="module",
    advice="Identities pass through a neuron in every block, so counts are cut to D at each: deeper nets lose what SEW "
    "ResNet keeps.",
    calibration=NORMS,
)
