"""MA-SNN: attention over time, channels and space around LIF neurons; Att-MS-ResNet."""

from msf_pmsn_plugins.adapters.recipe import CONVOLUTIONS, NORMS, Recipe

_ZOO = "spikingjelly.activation_based.model.masnn"

RECIPE = Recipe(
    name="ma_snn",
    source="Yao et al., Attention Spiking Neural Networks, IEEE TPAMI 2023",
    models=(f"{_ZOO}:masnn_dvs128_gesture", f"{_ZOO}:att_ms_resnet18"),
    classes=("MASNN", "AttMSResNet"),
    rules=CONVOLUTIONS,  # one image size only, so sizes cannot tell the channels
    advice="The weights of its attention over time belong to one T: T cannot be changed after training. "
    "Att-MS-ResNet has T = 1 by default, so a PMSN has nothing to integrate: build it with T > 1.",
    calibration=NORMS,
)
