"""Max-Former: max-pooling and depth-wise convolutions for high frequencies, then spiking self-attention."""

from msf_pmsn_plugins.adapters.recipe import ATTENTION, RATES, Recipe

_ZOO = "spikingjelly.activation_based.model"

RECIPE = Recipe(
    name="max_former",
    source="Fang et al., Spiking Neural Networks Need High-Frequency Information, 2025, arXiv 2505.18608; "
    "github.com/bic-L/MaxFormer",
    models=(
        f"{_ZOO}.maxformer:maxformer_10_384",
        f"{_ZOO}.maxformer:maxformer_cifar",
        f"{_ZOO}.ms_resnet:max_resnet18",
    ),
    classes=("MaxFormer", "MaxResNet"),
    advice=ATTENTION + " Its max-pools stand behind norms, not behind spikes: counts do not reach them.",
    calibration=RATES,
)
