"""SpikingResformer: ResNet's stages with dual spike self-attention; neurons are subclasses of SpikingJelly's."""

from msf_pmsn_plugins.adapters.recipe import ATTENTION, NORMS, Recipe

from msf_pmsn_plugins.swap.spec import Rule

RECIPE = Recipe(
    name="spiking_resformer",
    source="Shi, Hao and Yu, SpikingResformer: Bridging ResNet and Vision Transformer in Spiking Neural Networks, CVPR "
    "2024; github.com/xyshi2000/SpikingResformer",
    classes=("SpikingResformer",),
    # [N, heads, tokens, tokens'] between two products: no channels, so one set a head
    pmsn_rules={r"re:.*\.activation_attn": Rule(channel_dim=1)},
    advice=ATTENTION
    + " Its files build neurons with backend='cupy': build them under swap.legacy_imports().",
    calibration=NORMS,
)
