"""Spikingformer: residual sums of currents, neurons before the weights."""

from msf_pmsn_plugins.adapters.recipe import ATTENTION, RATES, Recipe

RECIPE = Recipe(
    name="spikingformer",
    source="Zhou et al., Spikingformer: Spike-driven Residual Learning for Transformer-based Spiking Neural Network, "
    "2023; github.com/zhouchenlin2096/Spikingformer",
    classes=("vit_snn",),
    paths=(r"block\.\d+\.attn\.attn_lif", r"block\.\d+\.mlp\.mlp1_lif"),
    legacy="sequential",
    advice=ATTENTION + " The sums between blocks carry currents, not spikes, so counts add no bound there.",
    calibration=RATES,
)
