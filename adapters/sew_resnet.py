"""SEW ResNet: residual blocks that add spikes element-wise."""

from msf_pmsn_plugins.adapters.recipe import CONVOLUTIONS, NORMS, Recipe

_ZOO = "spikingjelly.activation_based.model.sew_resnet"

RECIPE = Recipe(
    name="sew_resnet",
    source="Fang et al., Deep Residual Learning in Spiking Neural Networks, NeurIPS 2021; "
    "github.com/fangwei123456/Spike-Element-Wise-ResNet",
    models=tuple(f"{_ZOO}:sew_resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    classes=("SEWResNet", "ResNetN"),
    rules=CONVOLUTIONS,  # the DVS nets take one image size only, at which channels, height and width coincide
    legacy="module",
    advice="Use cnf='ADD': AND and IAND multiply spikes and go wrong on counts ((1 - x)*y is negative for x > 1). "
    "With ADD the bound of a stage grows by D per block.",
    calibration=NORMS,
    keys={
        # the published files and clock_driven's zoo, whose containers hold convolution and norm, into the newer zoo
        r"(layer\d\.\d+)\.conv(\d)\.(?:module\.)?0\.(.+)": r"\1.conv\2.\3",
        r"(layer\d\.\d+)\.conv(\d)\.(?:module\.)?1\.(.+)": r"\1.bn\2.\3",
        r"(layer\d\.\d+)\.downsample\.0\.(?:module\.)?(\d)\.(.+)": r"\1.downsample.\2.\3",
        # torchvision's ResNet, whose names the newer zoo has, into the published files
        r"(layer\d\.\d+)\.conv(\d)\.(weight)": r"\1.conv\2.module.0.\3",
        r"(layer\d\.\d+)\.bn(\d)\.(.+)": r"\1.conv\2.module.1.\3",
        r"(layer\d\.\d+)\.downsample\.(\d)\.(\w+)": r"\1.downsample.0.module.\2.\3",
    },
    training={
        "imagenet": {
            "T": 4,
            "connect_f": "ADD",
            "opt": "sgd",
            "momentum": 0.9,
            "lr": 0.1,
            "weight_decay": 0.0,
            "epochs": 320,
            "cos_lr_T": 320,
            "batch_size": 32,
            "gpus": 8,
            "amp": True,
        },
        "dvsgesture": {
            "T": 16,
            "T_train": 12,
            "connect_f": "ADD",
            "opt": "sgd",
            "momentum": 0.9,
            "lr": 0.001,
            "weight_decay": 0.0,
            "epochs": 192,
            "lr_step_size": 64,
            "lr_gamma": 0.1,
            "batch_size": 16,
            "amp": True,
        },
        "cifar10dvs": {
            "T": 16,
            "opt": "sgd",
            "momentum": 0.9,
            "lr": 0.1,
            "epochs": 64,
            "lr_scheduler": "CosALR",
            "T_max": 64,
            "batch_size": 16,
        },
    },
)
