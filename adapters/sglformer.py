"""SGLFormer: attention in windows and over the whole image, next to each other."""

from msf_pmsn_plugins.adapters.recipe import ATTENTION, RATES, Recipe

from msf_pmsn_plugins.swap.spec import Rule

RECIPE = Recipe(
    name="sglformer",
    source="Zhang et al., SGLFormer: Spiking Global-Local-Fusion Transformer with High Performance, Frontiers in "
    "Neuroscience 2024; github.com/ZhangHanN1/SGLFormer",
    classes=("vit_snn", "sglformer_ima"),
    paths=(r"(blocks|localblock)\.\d+\.(ssa1|local2_SSA)",),
    # [N, heads, tokens, C/heads]: the channels lie on two axes that are no neighbours, so one set a head
    pmsn_rules={
        r"re:.*(ssa\d|SSA)\.attn_lif": Rule(channel_dim=1),
        r"re:tokenizer\..*": Rule(channel_dim=1),
    },
    legacy="sequential",
    advice=ATTENTION,
    calibration=RATES,
)
