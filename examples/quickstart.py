"""Swap, train, see the difference: MSF and PMSN on two small real tasks, on a CPU.

1. MNIST-1D, 40 numbers in sequence, one per time step. The same three-layer network is trained with LIF, MSF,
   PMSN and SlidingPSN neurons. The task is about memory.
2. Handwritten digits. SpikingJelly's own SEW-ResNet-18, unmodified, is trained as it comes (IF) and with its
   neurons swapped for MSF and for PMSN, from the same initial weights.

    python examples/quickstart.py              one seed, a few minutes on two cores
    python examples/quickstart.py --fast       everything once at toy size: does it run?
    python examples/quickstart.py --seeds 3    mean and range over three seeds
"""

import argparse
import json
import platform
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean

try:
    import torch
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from mnist1d.data import make_dataset
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.base import MemoryModule
    from spikingjelly.activation_based.model.sew_resnet import sew_resnet18
    from spikingjelly.activation_based.surrogate import ATan

    from msf_pmsn_plugins import __version__, swap
    from msf_pmsn_plugins.optim import param_groups
    from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
except ImportError as error:
    raise SystemExit(f'quickstart.py: {error}\nTry: pip install ".[examples]"') from error


@dataclass(frozen=True)
class Recipe:
    """AdamW and a cosine to 0, the same for every neuron of a task."""

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    neuron_lr: float  # PMSN's own parameters take multiples of it, as published ...
    rates: str  # ... for this task
    test_every: int = 1  # epochs; testing takes time


MNIST1D, DIGITS = "MNIST-1D", "Digits"
RECIPES = {
    MNIST1D: Recipe(30, 100, lr=1e-2, weight_decay=1e-2, neuron_lr=1e-3, rates="smnist", test_every=3),
    DIGITS: Recipe(6, 25, lr=1e-3, weight_decay=1e-2, neuron_lr=1e-3, rates="imagenet"),
}


@dataclass
class Run:
    """One training: part of a row of the table and of a line of the figure."""

    task: str
    neuron: str
    seed: int
    parameters: int = 0
    epochs: list[int] = field(default_factory=list)  # after which the test accuracy was measured ...
    curve: list[float] = field(default_factory=list)  # ... in %
    spikes: float = 0.0  # per neuron and step, over the test set
    seconds: float = 0.0  # of training, without the evaluations
    raster: torch.Tensor | None = None  # [T, neurons] of the second layer, for one test sample


# Task 1: MNIST-1D


def mnist1d_data():
    """Inputs [T=40, N, 1] and labels, for training and for testing; made here, from a fixed seed, standardised."""
    made = make_dataset()
    x, x_test = (torch.tensor(made[key]).float().t().unsqueeze(-1) for key in ("x", "x_test"))
    return x, torch.tensor(made["y"]), x_test, torch.tensor(made["y_test"])


MNIST1D_NEURONS = {
    "LIF": lambda: neuron.LIFNode(tau=2.0, surrogate_function=ATan(), detach_reset=True, step_mode="m"),
    "MSF": lambda: MSFNode.published(D=4, step_mode="m"),
    "PMSN": lambda: PMSNNode(channels=64, compartments=5, step_mode="m"),
    "SlidingPSN": lambda: neuron.SlidingPSN(k=32, step_mode="m"),  # sees 32 of the 40 steps
}


class SequenceNet(torch.nn.Module):
    """(Linear 64, BatchNorm, neuron) x 3, mean over time, Linear 10."""

    def __init__(self, make_neuron):
        super().__init__()
        # The neurons come last: some draw random numbers, and all nets shall start from the same weights.
        self.linears = torch.nn.ModuleList(torch.nn.Linear(width, 64) for width in (1, 64, 64))
        self.head = torch.nn.Linear(64, 10)
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm1d(64) for _ in range(3))
        self.neurons = torch.nn.ModuleList(make_neuron() for _ in range(3))

    def forward(self, x):  # [T, N, 1]
        for linear, norm, node in zip(self.linears, self.norms, self.neurons, strict=True):
            x = linear(x)
            x = node(norm(x.flatten(0, 1)).view_as(x))  # BatchNorm over time and batch together
        return self.head(x.mean(0, keepdim=True))  # one answer; the digits network gives one per step


# Task 2: handwritten digits


def digits_data(steps=4, train=250, test=300):
    """Images [T=4, N, 3, 16, 16], constant in time, and labels. Not all 1,797: it keeps the example short."""
    digits = load_digits()
    images = torch.tensor(digits.images).float().unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(images, size=(16, 16), mode="bilinear").numpy()
    split = {"train_size": train, "test_size": test, "stratify": digits.target, "random_state": 0}
    x, x_test, y, y_test = (torch.tensor(a) for a in train_test_split(images, digits.target, **split))
    x, x_test = (images.expand(steps, -1, 3, -1, -1).contiguous() for images in (x, x_test))
    return x, y, x_test, y_test


def sew_resnet():
    """SpikingJelly's SEW-ResNet-18 with the neuron of its paper."""
    settings = {"surrogate_function": ATan(), "detach_reset": True}
    network = sew_resnet18(cnf="ADD", num_classes=10, spiking_neuron=neuron.IFNode, **settings)
    functional.set_step_mode(network, "m")
    return network


# All there is to a swap: PMSN learns the channels of each layer from the example input `x`.
DIGITS_NEURONS = {
    "IF": lambda network, x: network,
    "MSF": lambda network, x: swap.msf(network, x, D=4),
    "PMSN": lambda network, x: swap.pmsn(network, x, compartments=5, init="imagenet"),
}


def train_all(recipes, data, seeds, progress):
    """Every neuron on both tasks, seed after seed."""
    runs = []
    for seed in range(seeds):
        for name, make_neuron in MNIST1D_NEURONS.items():
            torch.manual_seed(seed)
            model = SequenceNet(make_neuron)
            runs.append(train(model, data[MNIST1D], recipes[MNIST1D], Run(MNIST1D, name, seed), progress))
    for seed in range(seeds):
        for name, swapped in DIGITS_NEURONS.items():
            torch.manual_seed(seed)  # hence the same initial weights
            with warnings.catch_warnings():  # read: counts are pooled, and the optimizer comes after the swap
                warnings.simplefilter("ignore", swap.SwapWarning)
                model = swapped(sew_resnet(), data[DIGITS][0][:, :2])
            runs.append(train(model, data[DIGITS], recipes[DIGITS], Run(DIGITS, name, seed), progress))
    return runs


def train(model, data, recipe, run, progress):
    """Train on the mean answer over time, and fill in `run`. The last epoch counts: nothing selects by test data."""
    x, y, x_test, y_test = data
    groups = param_groups(model, recipe.lr, recipe.neuron_lr, recipe.weight_decay, recipe.rates)
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs)
    order = torch.Generator().manual_seed(run.seed)  # every neuron meets the same batches
    run.parameters = sum(p.numel() for p in model.parameters())
    bar = progress.add_task(f"{run.task}: {run.neuron}, seed {run.seed}", total=recipe.epochs, accuracy="")
    for epoch in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        model.train()
        for batch in torch.randperm(len(y), generator=order).split(recipe.batch):
            loss = torch.nn.functional.cross_entropy(model(x[:, batch]).mean(0), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            functional.reset_net(model)
        schedule.step()
        run.seconds += time.perf_counter() - start
        progress.update(bar, advance=1)
        if epoch % recipe.test_every == 0:
            logits, spikes = evaluate(model, x_test)
            run.epochs.append(epoch)
            run.curve.append(100 * (logits.argmax(1) == y_test).double().mean().item())
            progress.update(bar, accuracy=f"{run.curve[-1]:.1f} %")
    # Sums, not flags: an MSF neuron that answers 3 has sent three spikes.
    run.spikes = sum(s.sum().item() for s in spikes) / sum(s.numel() for s in spikes)
    run.raster = spikes[1][:, 0].flatten(1)
    return run


@torch.no_grad()
def evaluate(model, x):
    """Logits, and the output [T, N, ...] of every neuron layer in order."""
    spikes = []
    nodes = [module for module in model.modules() if isinstance(module, MemoryModule)]
    hooks = [node.register_forward_hook(lambda _node, _args, out: spikes.append(out)) for node in nodes]
    model.eval()
    logits = model(x).mean(0)
    functional.reset_net(model)
    for hook in hooks:
        hook.remove()
    return logits, spikes


def rows_of(runs):
    """{(task, neuron): its runs, one per seed}, in order."""
    names = dict.fromkeys((run.task, run.neuron) for run in runs)
    return {name: [run for run in runs if (run.task, run.neuron) == name] for name in names}


def table_of(runs, accuracies=True):
    table = Table("Task", "Neuron")
    titles = (
        "Parameters",
        "Spikes per\nneuron\nand step",
        "Train\nseconds",
        *["Test\naccuracy %"] * accuracies,
    )
    for title in titles:
        table.add_column(title, justify="right")
    for (task, name), seeds in rows_of(runs).items():
        last = [run.curve[-1] for run in seeds]
        spread = f" ({min(last):.1f}–{max(last):.1f})" if len(seeds) > 1 else ""
        spikes, seconds = mean(run.spikes for run in seeds), mean(run.seconds for run in seeds)
        numbers = f"{seeds[0].parameters:,}", f"{spikes:.3f}", f"{seconds:.0f}", f"{mean(last):.1f}{spread}"
        shown = numbers[: len(titles)]
        table.add_row(task if name in ("LIF", "IF") else "", name, *shown, end_section=name == "SlidingPSN")
    return table


# Okabe and Ito's colours, which colour-blind readers can tell apart; lines and markers differ as well.
STYLES = {
    "LIF": {"color": "#000000", "linestyle": ":", "marker": "o"},
    "IF": {"color": "#000000", "linestyle": ":", "marker": "o"},
    "MSF": {"color": "#D55E00", "linestyle": "-", "marker": "s"},
    "PMSN": {"color": "#0072B2", "linestyle": "-", "marker": "^"},
    "SlidingPSN": {"color": "#009E73", "linestyle": "--", "marker": "D"},
}


def figure_of(runs):
    """Above: test accuracy by epoch, mean and range of the seeds. Below: spikes of one MNIST-1D test sample."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.1, 1), hspace=0.04)
    curves = dict(zip((MNIST1D, DIGITS), above.subplots(1, 2), strict=True))
    for (task, name), seeds in rows_of(runs).items():
        percent = torch.tensor([run.curve for run in seeds])
        middle, epochs = percent.mean(0), seeds[0].epochs
        style = {**STYLES[name], "markersize": 5}
        curves[task].plot(epochs, middle, label=f"{name}, {middle[-1]:.1f} %", **style)
        curves[task].fill_between(epochs, percent.amin(0), percent.amax(0), color=style["color"], alpha=0.15)
    for task, axis in curves.items():
        axis.set(title=task, xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 102))
        axis.locator_params(axis="x", integer=True)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", title="after the last epoch")

    colors = ListedColormap(["white", *colormaps["viridis_r"](torch.linspace(0.3, 1, 4).numpy())])
    rasters = below.subplots(1, len(MNIST1D_NEURONS), sharey=True)
    for axis, name in zip(rasters, MNIST1D_NEURONS, strict=True):
        raster = rows_of(runs)[MNIST1D, name][0].raster
        image = axis.imshow(raster.t(), cmap=colors, vmin=-0.5, vmax=4.5, aspect="auto")
        axis.set_title(f"{name}\n{raster.mean():.2f} spikes per neuron and step", fontsize="medium")
        axis.set_xlabel("time step")
    rasters[0].set_ylabel("neuron of the second layer")
    below.suptitle("What the second layer answers to one test sample of MNIST-1D")
    below.colorbar(image, ax=rasters, ticks=range(5), pad=0.01, label="spikes in one step")
    return figure


def main():
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=verbatim)
    parser.add_argument("--fast", action="store_true", help="100 samples, two epochs: under a minute")
    parser.add_argument("--seeds", type=int, default=1, choices=range(1, 11), metavar="1..10")
    parser.add_argument("--out", type=Path, default="quickstart.png", help="the figure (%(default)s)")
    parser.add_argument("--json", type=Path, help="also write the raw numbers here")
    args = parser.parse_args()
    for path in filter(None, (args.out, args.json)):  # not after minutes of training
        if not path.parent.is_dir():
            parser.error(f"there is no folder {path.parent} for {path.name}: make it first")
    formats = Figure().canvas.get_supported_filetypes()
    if args.out.suffix.removeprefix(".").lower() not in formats:
        parser.error(f"--out {args.out} ends in none of {', '.join(f'.{name}' for name in sorted(formats))}")

    recipes, data = RECIPES, {MNIST1D: mnist1d_data(), DIGITS: digits_data()}
    if args.fast:
        recipes = {task: replace(recipe, epochs=2, test_every=1) for task, recipe in recipes.items()}
        data = {k: (x[:, :100], y[:100], u[:, :100], v[:100]) for k, (x, y, u, v) in data.items()}

    console, threads = Console(highlight=False), torch.get_num_threads()
    versions = {"msf-pmsn-plugins": __version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in ("torch", "spikingjelly")}
    console.print(", ".join(f"{name} {number}" for name, number in versions.items()))
    toy = ", toy size: it runs, and learns nothing yet" if args.fast else ""
    console.print(f"CPU, {threads} thread{'s' if threads > 1 else ''}{toy}")
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[accuracy]}")
    silent = not console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=silent) as progress:
        runs = train_all(recipes, data, args.seeds, progress)

    console.print(table_of(runs, accuracies=not args.fast))
    figure = figure_of(runs)
    if args.fast:
        figure.suptitle("Toy size: it runs, and learns nothing yet")
    figure.savefig(args.out, dpi=150)
    console.print(f"Figure saved to {args.out}", soft_wrap=True)
    if args.json:
        rows = [{key: value for key, value in vars(run).items() if key != "raster"} for run in runs]
        settings = {task: asdict(recipe) for task, recipe in recipes.items()}
        report = {"versions": versions, "threads": threads, "recipes": settings, "runs": rows}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
