"""Spike-driven Transformer v3 (E-SpikeFormer): quantisers 0..4 in place of neurons, for training in one step."""

from msf_pmsn_plugins.adapters.recipe import NORMS, Recipe

from msf_pmsn_plugins.swap.spec import Activation

RECIPE = Recipe(
    name="spike_driven_transformer_v3",
    source="Yao et al., Scaling Spike-driven Transformer with Efficient Spike Firing Approximation Training, IEEE "
    "TPAMI 2025; github.com/BICLab/Spike-Driven-Transformer-V3",
    classes=("Spiking_vit_MetaFormer_Spike_SepConv",),
    holds=("MultiSpike",),
    readings={"MultiSpike": Activation()},
    advice="It trains with quantisers, without time: an MSF takes over their very levels, and a PMSN has nothing to "
    "integrate.",
    calibration=NORMS,
)
