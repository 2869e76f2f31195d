"""Networks with learnable delays: a dilated convolution over time with learnable spacings before every neuron."""

from typing import Any

from msf_pmsn_plugins.adapters.recipe import NORMS, Recipe

from msf_pmsn_plugins.swap.spec import Keep


def is_readout(module: Any, path: str) -> bool:
    """The last neuron integrates below a threshold of 1e9, which it never reaches."""
    threshold = getattr(module, "v_threshold", None)
    return isinstance(threshold, float) and threshold >= 1e6


RECIPE = Recipe(
    name="learnable_delays",
    source="Hammouamri, Khalfaoui-Hassani and Masquelier, Learning Delays in Spiking Neural Networks using Dilated "
    "Convolutions with Learnable Spacings, ICLR 2024; github.com/Thvnvtos/SNN-delays",
    classes=("SnnDelays",),
    rules={is_readout: Keep()},
    advice="Make the optimizers after the swap. Delays and the compartments of a PMSN both carry the past: with long "
    "kernels take fewer compartments.",
    calibration=NORMS,
    training={
        "shd": {
            "time_step": 10,
            "n_bins": 5,
            "n_hidden_layers": 2,
            "n_hidden_neurons": 256,
            "dropout_p": 0.4,
            "tau": 1.005,
            "v_threshold": 1.0,
            "surrogate": "ATan(alpha=5)",
            "max_delay": 25,
            "opt": "adam",
            "lr_w": 1e-3,
            "lr_pos": 0.1,
            "weight_decay": 1e-5,
            "epochs": 150,
            "batch_size": 256,
            "scheduler_w": "one_cycle",
            "scheduler_pos": "cosine",
            "DCLSversion": "gauss",
        },
    },
)
