"""SEW ResNet: residual blocks that add spikes element-wise."""

from msf_pmsn_plugins.adapters.recipe import Recipe

_ZOO = "spikingjelly.activation_based.model.sew_resnet"

RECIPE = Recipe(
    name="sew_resnet",
    source="Fang et al., Deep Residual Learning in Spiking Neural Networks, NeurIPS 2021; "
    "github.com/fangwei123456/Spike-Element-Wise-ResNet",
    models=tuple(f"{_ZOO}:sew_resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    advice="Use cnf='ADD': AND and IAND multiply spikes and go wrong on counts ((1 - x)*y is negative for x > 1).",
)
