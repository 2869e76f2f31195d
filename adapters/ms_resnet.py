"""MS-ResNet: residual sums of membranes, neurons before the convolutions."""

from msf_pmsn_plugins.adapters.recipe import NORMS, Recipe

from msf_pmsn_plugins.swap.spec import Read

_ZOO = "spikingjelly.activation_based.model.ms_resnet"

RECIPE = Recipe(
    name="ms_resnet",
    source="Hu et al., Advancing Spiking Neural Networks Towards Deep Residual Learning, IEEE TNNLS 2024; "
    "github.com/Ariande1/MS-ResNet",
    models=tuple(f"{_ZOO}:ms_resnet{depth}" for depth in (18, 34)),
    classes=("MSResNet", "ResNet_origin_18", "ResNet_104"),
    # its own neuron: [T, N, C, H, W], at rest in every call, constants in its module
    readings={
        "mem_update": Read(
            v_threshold=0.5,
            step_mode="m",
            time_dim=0,
            keeps_state=False,
            dynamics={
                "charge": "decay",
                "tau": 4 / 3,
                "v_threshold": 0.5,
                "v_reset": 0.0,
                "detach_reset": True,
                "surrogate_function": "rectangular",
            },
        )
    },
    advice="The published mem_update fires above its threshold of 0.5, MSF at it; T is its module's time_window (6), "
    "whatever the length of the input. The sums between blocks carry membranes, not spikes, so counts add no bound "
    "there. The first threshold stays 0.5, the spacing is 1.0 unless given: consider threshold_step=0.5.",
    calibration=NORMS,
    training={
        "imagenet": {
            "T": 6,
            "opt": "sgd",
            "momentum": 0.9,
            "lr": 0.1,
            "batch_size": 256,
            "epochs": 125,
            "weight_decay": "1e-5 for 18 and 34 layers (the repository corrects the paper's 1e-4)",
        },
    },
)
