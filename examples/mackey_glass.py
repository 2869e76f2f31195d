"""NeuroBench's Mackey-Glass task: forecast ten Lyapunov times of a chaotic series, on one's own answers.

For each of its series a small network of LIF, MSF or PMSN neurons learns the next of 750 points from the one before.
Then it is shown these points once more, and goes on alone: each answer is its next input, for 750 points. NeuroBench's
harness gives the error (sMAPE, 0 to 200) and what a point costs; a count k is k accumulations.

    python examples/mackey_glass.py --json r.json           30 series a neuron; begun again, it goes on where it ended
    python examples/mackey_glass.py --minutes 10 --json r.json   those of them that begin within ten minutes
    python examples/mackey_glass.py --fast                  toy size: does it run?

The series is computed here (Runge-Kutta, double), the same bits on every machine. It is chaotic, so another solver's
series is another one after some Lyapunov times: official figures need NeuroBench's own file.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    import torch
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import Footprint, ParameterCount
    from neurobench.metrics.workload import SMAPE, ActivationSparsity
    from recipes import RecipeError, neurons
    from recipes.arguments import at_least_one, output
    from recipes.data.chaos import TEST, TRAIN, points
    from recipes.measured import measured
    from recipes.models import Forecaster
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset

    from msf_pmsn_plugins import neurobench, state
    from msf_pmsn_plugins.optim import param_groups
except ImportError as error:
    raise SystemExit(f'{error}\nTry: pip install ".[examples,neurobench]"') from error

NEURONS = {
    "LIF": neurons.LIF(tau=4.0),
    "MSF": neurons.MSF(D=4, tau=4.0),
    "PMSN": neurons.PMSN(),
}
METRICS = [
    SMAPE,
    ActivationSparsity,
    neurobench.SynapticOperations,
    neurobench.MembraneUpdates,
    neurobench.NeuronOperations,
]
HALF = 75 / 2  # points of half a Lyapunov time, by which the series are shifted


def train(net: nn.Module, series: Tensor, epochs: int, window: int = 50, batch: int = 64) -> float:
    """Learn one step ahead on ``series`` [points, 1], from rest at each window; returns the last epoch's mean loss."""
    windows = series.unfold(0, window + 1, 1).permute(2, 0, 1).contiguous()  # [window + 1, windows, 1]
    optimizer = torch.optim.AdamW(param_groups(net, 3e-3, 1e-3, 0.0, "smnist"))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    net.train()
    for _ in range(epochs):
        losses = []
        for some in torch.randperm(windows.shape[1]).split(batch):
            part = windows[:, some]
            neurons.reset(net)
            loss = nn.functional.mse_loss(net(part[:-1]), part[1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
    neurons.reset(net)
    return mean(losses)


class Forecast:
    """How the network answers NeuroBench: from the state that the training points leave, on its own answers."""

    def __init__(self, net: nn.Module, known: Tensor):
        neurons.reset(net.eval())
        with torch.no_grad():
            net(known.unsqueeze(1))
        self.warm = state.read(net)
        neurons.reset(net)

    def __call__(self, net: nn.Module, batch: Tensor) -> Tensor:
        """``batch`` [points, 1, 1], of which only the first is looked at -> forecasts [points, 1]."""
        state.write(net, self.warm)
        x, answers = batch[:1], []
        for _ in range(len(batch)):
            x = net(x)
            answers.append(x)
        return torch.cat(answers).squeeze(1)


def benchmark(net: nn.Module, series: Tensor, test: int) -> dict:
    """NeuroBench's figures of a trained network for the ``test`` points after the training points."""
    known, new = series[: -test - 1], series[-test - 1 :]
    samples = TensorDataset(new[:-1].unsqueeze(1), new[1:])
    model = neurobench.Model(net, Forecast(net, known))
    bench = Benchmark(model, DataLoader(samples, test), [], [], [[ParameterCount, Footprint], METRICS])
    return measured(bench)


def constant(known: Tensor, new: Tensor) -> float:
    """The error of who always answers the mean of the known points: what a forecast is worth beside."""
    return SMAPE()(None, known.mean().expand_as(new), (None, new))


def run(neuron: str, number: int, epochs: int, fast: bool) -> dict:
    """One series with one neuron: NeuroBench's figures, and how it was trained."""
    known, test = (100, 20) if fast else (TRAIN, TEST)
    series = points(known + test + 1, int(number * HALF)).float()
    torch.manual_seed(number)
    net = Forecaster([8, 8] if fast else [64, 64], NEURONS[neuron])
    start = time.process_time()
    loss = train(net, series[:known], epochs)
    row = {"neuron": neuron, "series": number, "epochs": epochs, "points": known}
    row |= {"seconds": time.process_time() - start, "loss": loss}
    return row | {"constant": constant(series[:known], series[known + 1 :])} | benchmark(net, series, test)


def table(rows: list[dict]) -> str:
    """The means over the series of each neuron."""
    lines = [
        "| neuron | series | sMAPE, mean (range) | training RMSE | parameters | MACs | ACs | sparsity | operations |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for neuron in dict.fromkeys(row["neuron"] for row in rows):
        mine = [row for row in rows if row["neuron"] == neuron]
        errors = [row["SMAPE"] for row in mine]
        step = mean(row["loss"] ** 0.5 for row in mine)
        macs, acs = (
            mean(row["SynapticOperations"][f"Effective_{k}"] for row in mine) for k in ("MACs", "ACs")
        )
        updates = mean(row["NeuronOperations"]["Effective Neuron Ops"] for row in mine)
        sparsity = mean(row["ActivationSparsity"] for row in mine)
        lines.append(
            f"| {neuron} | {len(mine)} | {mean(errors):.1f} ({min(errors):.1f} to {max(errors):.1f}) | {step:.4f} | "
            f"{mine[0]['ParameterCount']:,} | {macs:.0f} | {acs:.0f} | {sparsity:.2f} | {updates:,.0f} |"
        )
    constants = {row["series"]: row["constant"] for row in rows}.values()
    lines.append(
        f"| a constant, the mean of the training points | {len(constants)} | {mean(constants):.1f} "
        f"({min(constants):.1f} to {max(constants):.1f}) | | | | | | |"
    )
    return "\n".join(lines)


def done(path: Path | None, epochs: int, fast: bool) -> list[dict]:
    """The rows that ``path`` has from a run that was ended, of the same task and training."""
    if path is None or not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())
        other = [row for row in rows if (row["epochs"], row["points"]) != (epochs, 100 if fast else TRAIN)]
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"--json: {path} holds no rows of this command; give another file") from error
    if other:
        raise SystemExit(
            f"--json: {path} has rows of {other[0]['epochs']} epochs on {other[0]['points']} points; give another file"
        )
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neurons", nargs="+", choices=tuple(NEURONS), default=tuple(NEURONS))
    parser.add_argument("--series", type=int, default=30, help="how many of NeuroBench's 30")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--fast", action="store_true", help="toy size: the figures mean nothing")
    parser.add_argument(
        "--json", type=output, help="keep the raw numbers here, and take what is there already"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no series after so many")
    parser.add_argument("--threads", type=at_least_one, default=1)
    args = parser.parse_args()
    args.neurons = tuple(dict.fromkeys(args.neurons))  # a name given twice is one row
    if args.series < 1 or args.epochs < 1:
        raise SystemExit(f"--series and --epochs must be at least 1, got {args.series} and {args.epochs}")
    torch.set_num_threads(args.threads)
    epochs, count = (1, 1) if args.fast else (args.epochs, args.series)
    rows, end = done(args.json, epochs, args.fast), time.monotonic() + 60 * args.minutes
    have = {(row["neuron"], row["series"]) for row in rows}
    # series by series: whatever is done when it ends compares the neurons on the same ones
    wanted = [(neuron, number) for number in range(count) for neuron in args.neurons]
    missing = [pair for pair in wanted if pair not in have]
    while missing and time.monotonic() < end:
        try:
            rows.append(run(*missing.pop(0), epochs, args.fast))
        except RecipeError as error:
            raise SystemExit(f"error: {error}") from error
        print("{neuron}, series {series}: sMAPE {SMAPE:.1f}".format(**rows[-1]), file=sys.stderr, flush=True)
        if args.json:
            partial = args.json.with_name(f".{args.json.name}.partial")
            partial.write_text(json.dumps(rows, indent=1))
            partial.replace(args.json)  # whole, or not at all
    shown = [row for row in rows if (row["neuron"], row["series"]) in set(wanted)]
    if shown:
        print(table(sorted(shown, key=lambda row: args.neurons.index(row["neuron"]))))
    if missing:
        print(f"\n{len(missing)} of {len(wanted)} are not done; the same command goes on.")


if __name__ == "__main__":
    main()
