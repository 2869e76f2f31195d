"""A network that train.py has trained, in NeuroBench's harness: error, size, sparsity and operations on its test part.

    python examples/harness.py --config runs/dvsgesture/logs/version_0/config.yaml \\
        --checkpoint runs/dvsgesture/checkpoints/best.ckpt
    python examples/harness.py --config .. --checkpoint .. --samples 100 --json figures.json

Of classes it gives the accuracy, of primate reaching NeuroBench's R2 on the whole test part, run as one sequence. An
operation is one of a sample, in primate reaching one of a step; a count k is k accumulations.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    import torch
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
    from neurobench.metrics.workload import R2, ActivationSparsity, ClassificationAccuracy
    from recipes import RecipeError
    from recipes.data.base import Data
    from recipes.data.detection import DetectionData
    from recipes.data.reaching import PrimateReaching
    from recipes.measured import measured
    from recipes.trained import add_arguments, draw, instantiate
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset

    from msf_pmsn_plugins import neurobench
except ImportError as error:
    raise SystemExit(f'{error}\nTry: pip install ".[examples,neurobench]"') from error

STATIC = [ParameterCount, Footprint, ConnectionSparsity]
WORKLOAD = [
    ActivationSparsity,
    neurobench.SynapticOperations,
    neurobench.MembraneUpdates,
    neurobench.NeuronOperations,
]


def classes(net: nn.Module, data: Data) -> dict:
    """The figures of a network that tells classes."""
    if getattr(data, "variable", False):
        raise RecipeError("harness.py takes samples of one length; give data.variable false")

    def run(net: nn.Module, batch: Tensor) -> Tensor:
        out = net(data.arrange((batch,))[0])
        return (out.mean(0) if out.dim() == 3 else out).argmax(1)

    metrics = [STATIC, [ClassificationAccuracy, *WORKLOAD]]
    return measured(Benchmark(neurobench.Model(net, run), data.test_dataloader(), [], [], metrics))


def reaching(net: nn.Module, data: PrimateReaching, steps: int | None) -> dict:
    """The figures of a network that tells a velocity at each step, the test part run as one sequence from rest."""
    x, y = (torch.from_numpy(each[:steps]).float() for each in data.part("test"))
    model = neurobench.Model(net, lambda net, batch: net(batch.unsqueeze(1)).squeeze(1))
    loader = DataLoader(TensorDataset(x, y), len(x))
    return measured(Benchmark(model, loader, [], [], [STATIC, [R2, *WORKLOAD]]))


def figures(config: Path, checkpoint: Path, samples: int | None = None) -> dict:
    """NeuroBench's figures of a run of train.py; of ``samples`` drawn from its test part, or of the first steps."""
    net, data = instantiate(config, checkpoint)
    if isinstance(data, DetectionData):
        raise RecipeError(
            "harness.py knows no measure for detectors; `python examples/detect.py test` gives their AP"
        )
    data.setup("test")
    if isinstance(data, PrimateReaching):
        return reaching(net, data, samples)
    if data.classes is None:
        raise RecipeError(
            f"harness.py knows no measure for {type(data).__name__}; mackey_glass.py has that of Mackey-Glass"
        )
    if samples is not None:
        draw(data, samples)
    return classes(net, data)


def table(found: dict) -> str:
    """A line a figure; those with parts have a line each."""
    lines = ["| figure | |", "| --- | ---: |"]
    for name, value in found.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        lines += [f"| {f'{name}, {part}' if part else name} | {float(each):,.4g} |" for part, each in parts]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        "--samples",
        type=int,
        help="so many drawn from the test part, always the same; in primate reaching, its first steps",
    )
    args = parser.parse_args()
    if args.samples is not None and args.samples < 1:
        raise SystemExit(f"--samples must be at least 1, got {args.samples}")
    torch.set_num_threads(args.threads)
    try:
        found = figures(args.config, args.checkpoint, args.samples)
    except (RecipeError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
