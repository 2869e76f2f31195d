"""Spikformer: spiking self-attention without softmax."""

from msf_pmsn_plugins.adapters.recipe import Recipe

_ZOO = "spikingjelly.activation_based.model.spikformer"

RECIPE = Recipe(
    name="spikformer",
    source="Zhou et al., Spikformer: When Spiking Neural Network Meets Transformer, ICLR 2023; "
    "github.com/ZK-Zhou/spikformer",
    models=tuple(f"{_ZOO}:{name}" for name in ("spikformer_cifar10", "spikformer_ti", "spikformer_s")),
    advice="Attention multiplies spikes: with counts 0..D the products q(k^T v) reach D^3 while the scale stays "
    "tuned to binary spikes; expect to lower the learning rate or to keep D small at the attention sites.",
)
