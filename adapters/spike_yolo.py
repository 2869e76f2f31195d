"""SpikeYOLO's blocks: I-LIF, which emits 0..4 and subtracts what it emitted, at rest in every call."""

from typing import Any

import torch
from msf_pmsn_plugins.adapters.recipe import NORMS, Recipe

from msf_pmsn_plugins.swap.spec import Read


def _dynamics(module: Any) -> dict[str, Any]:
    """Its quantiser round(clamp(m, 0, D)) steps at k + 1/2, and the gradient passes from 0 to D; D is edited there."""
    with torch.no_grad():
        top = int(module.qtrick(torch.full((1,), 1e6)))
    return {
        "charge": "decay",
        "tau": 4 / 3,
        "D": top,
        "v_threshold": 0.5,
        "threshold_step": 1.0,
        "reset_step": 1.0,
        "v_reset": None,
        "detach_reset": True,
        "surrogate_function": "rectangular",
    }


RECIPE = Recipe(
    name="spike_yolo",
    source="Luo et al., Integer-Valued Training and Spike-Driven Inference Spiking Neural Network for High-performance "
    "and Energy-efficient Object Detection, ECCV 2024; github.com/BICLab/SpikeYOLO",
    classes=("DetectionModel",),
    paths=(r".*\.qtrick",),
    holds=("mem_update",),
    # [T, N, C, H, W]
    readings={
        "mem_update": Read(v_threshold=0.5, step_mode="m", time_dim=0, keeps_state=False, dynamics=_dynamics)
    },
    advice="It trains with T = 1, where I-LIF is a quantiser and a PMSN has nothing to integrate.",
    calibration=NORMS,
)
