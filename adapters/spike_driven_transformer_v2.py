"""Spike-driven Transformer v2 (Meta-SpikeFormer): one time step by default."""

from msf_pmsn_plugins.adapters.recipe import ATTENTION, RATES, Recipe

RECIPE = Recipe(
    name="spike_driven_transformer_v2",
    source="Yao et al., Spike-driven Transformer V2, ICLR 2024; github.com/BICLab/Spike-Driven-Transformer-V2",
    classes=("Spiking_vit_MetaFormer",),
    holds=("MultiStepLIFNode",),  # the quantised one, of the same class and paths, has none
    legacy="sequential",
    advice=ATTENTION
    + " T is 1 by default, so a PMSN has nothing to integrate: set model.T = 4 before the plan, as "
    "the published fine-tuning does.",
    calibration=RATES,
    training={
        "imagenet": {"T": 1, "epochs": 200, "batch_size": 128, "gpus": 8, "blr": 6e-4, "warmup_epochs": 10},
        "imagenet, fine-tuned": {
            "T": 4,
            "epochs": 50,
            "batch_size": 24,
            "gpus": 8,
            "blr": 2e-5,
            "warmup_epochs": 5,
            "kd": True,
            "teacher_model": "caformer_b36_in21ft1k",
            "distillation_type": "hard",
            "start": "the T = 1 model",
        },
    },
)
