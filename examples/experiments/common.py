"""What the experiments share: neurons, one training loop, arguments, a table and a JSON file.

An experiment is a module with ``TITLE``, ``KEYS`` and ``VALUES`` (the columns of its table), ``SEEDS`` (how many,
unless the command line says) and ``runs(options)``, which yields one plain dict for each run. Where some of them need
a clone of the authors' repository, ``PUBLISHED`` says of which.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

try:
    import torch
    from recipes import neurons
    from recipes.arguments import at_least_one, output
    from torch import Tensor, nn

    from msf_pmsn_plugins import __version__
    from msf_pmsn_plugins.optim import param_groups
except ImportError as error:
    raise SystemExit(f'{error}\nTry: pip install ".[examples]"') from error


def all_neurons(steps: int, k: int = 32) -> dict[str, neurons.Factory]:
    """Every neuron that a configuration can name; PSN needs the number of steps."""
    return {
        "LIF": neurons.LIF(),
        "LIF, no reset": neurons.LIF(reset=False),
        "MSF": neurons.MSF(),
        "PMSN": neurons.PMSN(),
        "PMSN, no reset": neurons.PMSN(reset=False),
        "PSN": neurons.PSN(steps),
        "masked PSN": neurons.MaskedPSN(steps, k),
        "SlidingPSN": neurons.SlidingPSN(k),
        "ReLU": neurons.ReLU(),
    }


@dataclass(frozen=True)
class Data:
    """Inputs with the batch on ``axis``, labels [N], and lengths [N] where samples differ in length."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    lengths: Tensor | None = None
    lengths_test: Tensor | None = None
    axis: int = 1

    def few(self, n: int) -> "Data":
        """The first n samples of each set."""
        some = torch.arange(n)
        parts = (self.x, self.x_test), (self.y, self.y_test), (self.lengths, self.lengths_test)
        (x, u), (y, v), lengths = parts
        x, u = (part.index_select(self.axis, some[: part.shape[self.axis]]) for part in (x, u))
        return Data(x, y[:n], u, v[:n], *(part if part is None else part[:n] for part in lengths), self.axis)


@dataclass(frozen=True)
class Recipe:
    """AdamW and a cosine to 0, the same for every neuron; PMSN's own parameters at the published rates."""

    epochs: int
    batch: int
    lr: float = 1e-2
    weight_decay: float = 1e-2
    neuron_lr: float = 1e-3
    rates: str = "smnist"


def train(model: nn.Module, data: Data, recipe: Recipe, seed: int) -> float:
    """Train with cross-entropy; the last epoch counts, nothing is selected on test data. Returns CPU seconds."""
    groups = param_groups(model, recipe.lr, recipe.neuron_lr, recipe.weight_decay, recipe.rates)
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    order = torch.Generator().manual_seed(seed)  # every neuron meets the same batches
    start = time.process_time()
    model.train()
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(data.y), generator=order).split(recipe.batch):
            logits = call(model, data.x.index_select(data.axis, batch), pick(data.lengths, batch))
            loss = nn.functional.cross_entropy(logits, data.y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return time.process_time() - start


def call(model: nn.Module, x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Logits [N, classes] of a batch, from rest; per-step logits are averaged."""
    neurons.reset(model)
    logits = model(x) if lengths is None else model(x, lengths)
    return logits.mean(0) if logits.dim() == 3 else logits


def pick(lengths: Tensor | None, batch: Tensor) -> Tensor | None:
    return None if lengths is None else lengths[batch]


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, batch: int = 256) -> dict[str, float]:
    """Accuracy in % and mean output of a neuron and step (a count of 3 is three spikes) on the test set."""
    sums, sizes, right = 0.0, 0, 0

    def count(_node: nn.Module, _inputs: Any, out: Tensor) -> None:
        nonlocal sums, sizes
        sums += out.sum(dtype=torch.float64).item()
        sizes += out.numel()

    hooks = [node.register_forward_hook(count) for node in sites(model)]
    model.eval()
    for some in torch.arange(len(data.y_test)).split(batch):
        logits = call(model, data.x_test.index_select(data.axis, some), pick(data.lengths_test, some))
        right += int((logits.argmax(1) == data.y_test[some]).sum())
    for hook in hooks:
        hook.remove()
    return {"accuracy": 100 * right / len(data.y_test), "spikes": sums / max(sizes, 1)}


def sites(model: nn.Module) -> list[nn.Module]:
    """The neurons of a model that a factory made, in order; the ReLU of an ANN too."""
    from spikingjelly.activation_based.base import MemoryModule

    return [m for m in model.modules() if isinstance(m, MemoryModule | nn.ReLU) or type(m).__name__ == "PSN"]


def compare(
    build: Callable[[neurons.Factory], nn.Module],
    candidates: Mapping[str, neurons.Factory],
    data: Data,
    recipe: Recipe,
    seeds: Iterable[int],
    **labels: Any,
) -> Iterator[dict[str, Any]]:
    """Train the same network with each neuron, from the same weights, on the same batches."""
    for seed in seeds:
        for name, neuron in candidates.items():
            torch.manual_seed(seed)
            model = build(neuron)
            seconds = train(model, data, recipe, seed)
            size = sum(p.numel() for p in model.parameters())
            yield {
                **labels,
                "neuron": name,
                "seed": seed,
                "parameters": size,
                **evaluate(model, data),
                "seconds": seconds,
            }


class Unavailable(SystemExit):
    """The data of an experiment cannot be loaded; the message says what to install."""


# Arguments, table, file


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    fast: bool = False
    seeds: int = 0  # as many as the experiment says
    neurons: tuple[str, ...] = ()
    published: Path | None = None

    def chosen(self, candidates: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ``candidates`` that were asked for; all if none was named."""
        unknown = [name for name in self.neurons if name not in candidates]
        if unknown:
            raise SystemExit(f"--neurons: unknown here {unknown}; known: {', '.join(candidates)}")
        return {name: value for name, value in candidates.items() if not self.neurons or name in self.neurons}


# Columns that all experiments share: name in the rows -> title and format.
COLUMNS = {
    "parameters": ("parameters", ",.0f"),
    "spikes": ("spikes per neuron and step", ".3f"),
    "seconds": ("CPU seconds", ".0f"),
    "accuracy": ("test accuracy, %", ".1f"),
}


def table(experiment: ModuleType, rows: list[dict[str, Any]]) -> str:
    """The Markdown table of an experiment: means over the seeds, with the range."""
    columns = {**COLUMNS, **getattr(experiment, "COLUMNS", {})}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in experiment.KEYS), []).append(row)
    lines = [[*experiment.KEYS, *(columns[name][0] for name in experiment.VALUES)]]
    for key, group in groups.items():
        cells = [_cell([row.get(name) for row in group], columns[name][1]) for name in experiment.VALUES]
        lines.append([*map(str, key), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = len(experiment.KEYS)
    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    padded = [
        [
            cell.ljust(w) if i < left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


def _cell(values: list[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    middle, low, high = (format(value, form) for value in (mean(known), min(known), max(known)))
    return middle if low == high else f"{middle} ({low} to {high})"


def report(experiment: ModuleType, options: Options) -> dict[str, Any]:
    """Run an experiment, print its table, return what goes into the JSON file."""
    options = settled(experiment, options)
    start, rows = time.process_time(), []
    print(f"{experiment.TITLE}{': toy size, the numbers mean nothing' if options.fast else ''}", flush=True)
    for row in experiment.runs(options):
        rows.append(row)
        if sys.stdout.isatty():
            print(f"  {', '.join(str(row[key]) for key in experiment.KEYS)}, seed {row.get('seed', '-')}")
    print(table(experiment, rows), flush=True)
    seconds = round(time.process_time() - start, 1)
    return {**description(experiment, options), "seconds": seconds, "rows": rows}


def settled(experiment: ModuleType, options: Options) -> Options:
    """``options`` with the number of seeds that the experiment has of its own, where none was asked for."""
    return replace(options, seeds=1 if options.fast else options.seeds or experiment.SEEDS)


def description(experiment: ModuleType, options: Options) -> dict[str, Any]:
    """What a report says of itself beside its rows; ``options`` are settled."""
    name = Path(experiment.__file__ or "").stem
    command = (
        f"python examples/experiments/{name}.py {'--fast' if options.fast else f'--seeds {options.seeds}'}"
    )
    if options.neurons:
        command += f' --neurons "{";".join(options.neurons)}"'
    versions = {"msf-pmsn-plugins": __version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in ("torch", "spikingjelly", "numpy")}
    return {
        "experiment": name,
        "command": command,
        "versions": versions,
        "threads": torch.get_num_threads(),
    }


def main(experiment: ModuleType) -> None:
    """The command line of one experiment."""
    parser = argparse.ArgumentParser(
        description=experiment.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, getattr(experiment, "PUBLISHED", None))
    parser.add_argument("--json", type=output, help="write the raw numbers here")
    args = parser.parse_args()
    done = report(experiment, options_of(args))
    if args.json:
        args.json.write_text(json.dumps(done, indent=1) + "\n")
        print(f"numbers written to {args.json}")


def add_arguments(parser: argparse.ArgumentParser, published: str | None = None) -> None:
    """Those of every experiment, and ``--published`` with the help ``published`` where it has rows of others' code."""
    parser.add_argument(
        "--fast", action="store_true", help="toy size, seconds: does it run? The numbers mean nothing"
    )
    parser.add_argument(
        "--seeds", type=at_least_one, help="how many; every experiment has a number of its own"
    )
    parser.add_argument("--neurons", default="", help="only these, separated by semicolons")
    if published:
        parser.add_argument("--published", type=Path, help=published)
    parser.add_argument(
        "--threads", type=at_least_one, default=1, help="of torch (%(default)s: the nets are small)"
    )


def options_of(args: argparse.Namespace) -> Options:
    torch.set_num_threads(args.threads)
    chosen = tuple(name.strip() for name in args.neurons.split(";") if name.strip())
    return Options(args.fast, args.seeds or 0, chosen, getattr(args, "published", None))
