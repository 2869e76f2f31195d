"""QKFormer: query-key attention over tokens, then spiking self-attention."""

from msf_pmsn_plugins.adapters.recipe import ATTENTION, RATES, Recipe

from msf_pmsn_plugins.swap.spec import Rule

_COMMON = {"opt": "adamw", "sched": "cosine", "smoothing": 0.1, "amp": True}

PROJECTION = r"re:(.*\.ssa|stage3\.\d+\.attn)\.proj_lif"  # of the CIFAR files, and of the ImageNet file

RECIPE = Recipe(
    name="qkformer",
    source="Zhou et al., QKFormer: Hierarchical Spiking Transformer using Q-K Attention, NeurIPS 2024; "
    "github.com/zhouchenlin2096/QKFormer",
    models=("spikingjelly.activation_based.model.qkformer:qkformer_10_384",),
    classes=("QKFormer", "spiking_transformer", "hierarchical_spiking_transformer", "vit_snn"),
    # four repositories call their model vit_snn, and its blocks block or blocks
    paths=(r"stage1\.\d+\.(tssa|attn)",),
    pmsn_rules={
        # one number a head and token, [N, heads, 1, tokens]: no channels, so one set of parameters a head
        r"re:stage\d\.\d+\.tssa\.attn_lif": Rule(channel_dim=1),
        r"re:stage[12]\.\d+\.attn\.attn_lif": Rule(channel_dim=1),
        # [T*B, C, N]: integrating over T*B would carry one sample's spikes into the next
        PROJECTION: Rule(folded="fix"),
    },
    rules={
        # MSF keeps what was published there, so that D = 1 changes nothing
        PROJECTION: Rule(folded="reproduce"),
    },
    legacy="sequential",
    advice=ATTENTION + " The published proj_lif of the last stage takes [T*B, C, N] and so carries "
    "its membrane from sample to sample: MSF reproduces that, PMSN unfolds it.",
    calibration=RATES,
    training={
        "cifar10": {
            **_COMMON,
            "T": 4,
            "depths": 4,
            "dim": 384,
            "num_heads": 8,
            "mlp_ratio": 4,
            "patch_size": 4,
            "epochs": 400,
            "batch_size": 64,
            "lr": 1e-3,
            "min_lr": 1e-5,
            "weight_decay": 0.06,
            "warmup_epochs": 20,
            "warmup_lr": 1e-5,
            "cooldown_epochs": 10,
            "mixup": 0.5,
            "mixup_off_epoch": 200,
        },
        "cifar10-dvs": {
            **_COMMON,
            "T": 16,
            "epochs": 96,
            "batch_size": 16,
            "lr": 5e-3,
            "min_lr": 1e-5,
            "weight_decay": 0.06,
            "warmup_epochs": 10,
            "warmup_lr": 1e-5,
            "cooldown_epochs": 10,
            "mixup": 0.5,
        },
        "imagenet": {
            "T": 4,
            "epochs": 200,
            "batch_size": 64,
            "blr": 6e-4,
            "min_lr": 1e-6,
            "weight_decay": 0.05,
            "warmup_epochs": 5,
            "drop_path": 0.1,
            "aa": "rand-m9-mstd0.5-inc1",
            "reprob": 0.25,
            "smoothing": 0.1,
        },
    },
)
