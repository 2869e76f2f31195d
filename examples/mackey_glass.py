"""NeuroBench's Mackey-Glass task: forecast ten Lyapunov times of a chaotic series, on one's own answers.

For each of its series a small network of LIF, MSF or PMSN neurons learns the next of 750 points from the one before.
Then it is shown these points once more, and goes on alone: each answer is its next input, for 750 points. NeuroBench's
harness gives the error (sMAPE, 0 to 200) and what a point costs; a count k is k accumulations.

    python examples/mackey_glass.py                         30 series a neuron
    python examples/mackey_glass.py --series 5 --json r.json
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
    from recipes import neurons
    from recipes.data.chaos import TEST, TRAIN, points
    from recipes.models import Forecaster
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset

    from msf_pmsn_plugins import neurobench, state
    from msf_pmsn_plugins.optim import param_groups
except ImportError as error:
    raise SystemExit(f'{error}\nTry: pip install "msf-pmsn-plugins[examples,neurobench]"') from error

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
    return bench.run(quiet=True)


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
    row = {"neuron": neuron, "series": number, "seconds": time.process_time() - start, "loss": loss}
    return row | {"constant": constant(series[:known], series[known + 1 :])} | benchmark(net, series, test)


def table(rows: list[dict]) -> str:
    """The means over the series of each neuron."""
    lines = [
        "| neuron | sMAPE, mean (range) | one step, RMSE | parameters | MACs | accumulations | sparsity | operations |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
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
            f"| {neuron} | {mean(errors):.1f} ({min(errors):.1f} to {max(errors):.1f}) | {step:.4f} | "
            f"{mine[0]['ParameterCount']:,} | {macs:.0f} | {acs:.0f} | {sparsity:.2f} | {updates:,.0f} |"
        )
    lines.append(
        f"\nA constant, the mean of the training points: sMAPE {mean(row['constant'] for row in rows):.1f}."
    )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neurons", nargs="+", choices=tuple(NEURONS), default=tuple(NEURONS))
    parser.add_argument("--series", type=int, default=30, help="how many of NeuroBench's 30")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--fast", action="store_true", help="toy size: the figures mean nothing")
    parser.add_argument("--json", type=Path, help="write the raw numbers here")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.series < 1 or args.epochs < 1:
        raise SystemExit(f"--series and --epochs must be at least 1, got {args.series} and {args.epochs}")
    torch.set_num_threads(args.threads)
    rows = []
    for neuron in args.neurons:
        for number in range(1 if args.fast else args.series):
            rows.append(run(neuron, number, 1 if args.fast else args.epochs, args.fast))
            print(f"{neuron}, series {number}: sMAPE {rows[-1]['SMAPE']:.1f}", file=sys.stderr, flush=True)
            if args.json:  # what is done is kept if the rest is not awaited
                args.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
