"""Spiking VGG, with and without batch norm."""

from msf_pmsn_plugins.adapters.recipe import CONVOLUTIONS, Recipe

_ZOO = "spikingjelly.activation_based.model.spiking_vgg"
_NAMES = tuple(f"spiking_vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn"))

RECIPE = Recipe(
    name="spiking_vgg",
    source="SpikingJelly's model zoo, after Simonyan and Zisserman, 2014",
    models=tuple(f"{_ZOO}:{name}" for name in _NAMES),
    classes=("SpikingVGG",),
    rules=CONVOLUTIONS,
    advice="Its spikes are max-pooled: of binary spikes that is OR, of counts the largest.",
    calibration="match_norms on a few batches for the nets with batch norm, match_rates for those without.",
)
