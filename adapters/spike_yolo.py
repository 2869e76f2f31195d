"""SpikeYOLO's blocks: I-LIF, which emits 0..4 and subtracts what it emitted, at rest in every call."""

from msf_pmsn_plugins.adapters.recipe import NORMS, Recipe

from msf_pmsn_plugins.swap.spec import Read

RECIPE = Recipe(
    name="spike_yolo",
    source="Luo et al., Integer-Valued Training and Spike-Driven Inference Spiking Neural Network for High-performance "
    "and Energy-efficient Object Detection, ECCV 2024; github.com/BICLab/SpikeYOLO",
    classes=("DetectionModel",),
    paths=(r".*\.qtrick",),
    holds=("mem_update",),
    # [T, N, C, H, W]: round(clamp(m, 0, 4)) steps at k + 1/2, and the gradient passes from 0 to 4
    readings={
        "mem_update": Read(
            v_threshold=0.5,
            step_mode="m",
            time_dim=0,
            keeps_state=False,
            dynamics={
                "charge": "decay",
                "tau": 4 / 3,
                "D": 4,
                "v_threshold": 0.5,
                "threshold_step": 1.0,
                "reset_step": 1.0,
                "v_reset": None,
                "detach_reset": True,
                "surrogate_function": "rectangular",
            },
        )
    },
    advice="It trains with T = 1, where I-LIF is a quantiser and a PMSN has nothing to integrate.",
    calibration=NORMS,
)
