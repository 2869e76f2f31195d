"""QSD-Transformer: Meta-SpikeFormer with quantised weights, and quantisers in place of neurons."""

from msf_pmsn_plugins.adapters.recipe import NORMS, Recipe

from msf_pmsn_plugins.swap.spec import Activation

RECIPE = Recipe(
    name="qsd_transformer",
    source="Qiu et al., Quantized Spike-driven Transformer, ICLR 2025; github.com/bollossom/QSD-Transformer",
    classes=("Spiking_vit_MetaFormer",),
    holds=("Multispike",),
    readings={"Multispike": Activation(), "Multispike_att": Activation()},
    advice="It trains with quantisers, without time: an MSF takes over their very levels, and a PMSN has nothing to "
    "integrate.",
    calibration=NORMS,
)
