"""The VGG of TET: [N, T, C, H, W] throughout, with a neuron of its own."""

from typing import Any

from msf_pmsn_plugins.adapters.recipe import NORMS, Recipe

from msf_pmsn_plugins.surrogate import Surrogate
from msf_pmsn_plugins.swap.spec import Read, Rule


def _dynamics(module: Any) -> dict[str, Any]:
    return {
        "charge": "decay",
        "tau": 1 / (1 - module.tau),  # its tau is the decay
        "v_threshold": module.thresh,
        "v_reset": 0.0,
        "detach_reset": False,
        "surrogate_function": Surrogate("triangle", module.gama),
    }


RECIPE = Recipe(
    name="tet_vgg",
    source="Deng et al., Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting, ICLR 2022; "
    "github.com/Gus-Lab/temporal_efficient_training",
    classes=("VGGSNN", "VGGSNNwoAP"),
    holds=("LIFSpike",),
    rules={"re:.*": Rule(channel_dim=1)},  # one image size only, so sizes cannot tell the channels
    readings={
        "LIFSpike": Read(
            v_threshold=lambda module: module.thresh,
            step_mode="m",
            time_dim=1,
            keeps_state=False,
            dynamics=_dynamics,
        )
    },
    advice="The published LIFSpike fires above its threshold, MSF at it. "
    "The output keeps time on axis 1, for TET's loss.",
    calibration=NORMS,
)
