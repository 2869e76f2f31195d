"""The networks of snnTorch's tutorials: layers and leaky neurons, stepped in a Python loop."""

from msf_pmsn_plugins.adapters.recipe import Recipe

RECIPE = Recipe(
    name="snntorch_tutorials",
    source="Eshraghian et al., Training Spiking Neural Networks Using Lessons From Deep Learning, Proceedings of the "
    "IEEE 2023; snntorch.readthedocs.io, tutorials 5 to 7",
    classes=("Net",),
    paths=(r"fc\d?", r"lif1"),
    advice="The loop calls every neuron once per step, [N, C] or [N, C, H, W], so a PMSN runs step by step: the same "
    "numbers as in parallel, without its speed. Use msf_pmsn_plugins.snntorch.reset(net) between batches: "
    "snntorch.utils.reset does not reach the new neurons. A stock neuron fires above its threshold, MSF at it.",
    calibration="match_rates on a few batches.",
    training={
        "mnist, fully connected (tutorial 5)": {
            "num_steps": 25,
            "hidden": 1000,
            "beta": 0.95,
            "opt": "adam",
            "lr": 5e-4,
            "betas": (0.9, 0.999),
            "epochs": 1,
            "batch_size": 128,
            "loss": "cross entropy on the membrane of the last layer, every step",
        },
        "mnist, convolutional (tutorial 6)": {
            "num_steps": 50,
            "beta": 0.5,
            "spike_grad": "fast_sigmoid(slope=25)",
            "opt": "adam",
            "lr": 1e-2,
            "betas": (0.9, 0.999),
            "epochs": 1,
            "batch_size": 128,
            "loss": "ce_rate_loss",
        },
    },
)
