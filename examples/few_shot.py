"""NeuroBench's few-shot task: words of ten languages, ten at a time, each from five recordings, none forgotten.

A network that train.py has trained on the 100 base words of MSWC (examples/configs/mswc.yaml) keeps its weights; its
last layer becomes the means of what is before it: a recording is the word whose mean is nearest. Every session adds ten
words of another language; NeuroBench's harness tells the words of all sessions so far apart.

    python examples/few_shot.py --config runs/mswc/logs/version_0/config.yaml \\
        --checkpoint runs/mswc/checkpoints/best.ckpt
    python examples/few_shot.py --config .. --checkpoint .. --seed 1 --json sessions.json
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    import harness
    import numpy as np
    import torch
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import ClassificationAccuracy
    from recipes import RecipeError, neurons
    from recipes.data.frames import Frames
    from recipes.data.mswc import LANGUAGES, MSWC
    from recipes.measured import measured
    from recipes.models import SequenceNet
    from recipes.trained import add_arguments, instantiate
    from torch import Tensor, nn
    from torch.utils.data import ConcatDataset, DataLoader, Dataset

    from msf_pmsn_plugins import neurobench
except ImportError as error:
    raise SystemExit(f'{error}\nTry: pip install ".[examples,neurobench]"') from error


class Chosen(Dataset):
    """Some recordings, with a label of their own: (x [T, bands], label)."""

    def __init__(self, source: Frames, indices: np.ndarray, label: int, data: MSWC):
        self.source, self.indices, self.label = source, indices, label
        self.transform = data.transform(False)

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.transform(self.source[self.indices[index]][0]), self.label


@torch.no_grad()
def centre(net: SequenceNet, recordings: Dataset, batch: int) -> Tensor:
    """The mean over ``recordings`` of what the last layer sees, [width]."""
    total = torch.zeros(net.decoder.in_features)
    for x, _ in DataLoader(recordings, batch):
        total += net.hidden_spikes(x.transpose(0, 1)).mean(0).sum(0)
        neurons.reset(net)
    return total / len(recordings)


def nearest(means: list[Tensor]) -> nn.Linear:
    """The layer whose largest output is that of the nearest mean: 2 m x - m m, |x - m| squared but for x x and sign."""
    stacked = torch.stack(means)
    layer = nn.Linear(stacked.shape[1], len(stacked))
    layer.weight.data, layer.bias.data = 2 * stacked, -stacked.square().sum(1)
    return layer


def accuracy(net: SequenceNet, tests: list[Dataset], batch: int, workload: tuple = ()) -> dict:
    """NeuroBench's figures on ``tests`` together."""
    model = neurobench.Model(net, lambda net, x: net(x.transpose(0, 1)).argmax(1))
    loader = DataLoader(ConcatDataset(tests), batch)
    found = measured(Benchmark(model, loader, [], [], [[], [ClassificationAccuracy, *workload]]))
    model.cleanup_hooks()
    return found


def sessions(net: SequenceNet, data: MSWC, seed: int, shots: int = 5, queries: int = 100) -> list[dict]:
    """The base words, then a session for each language, in an order drawn by ``seed``."""
    draw, batch = np.random.default_rng(seed), data.batch_size
    train = data.samples["train"].source
    base = [np.flatnonzero(train.targets == label) for label in range(len(data.words))]
    means = [centre(net, Chosen(train, members, 0, data), batch) for members in base]
    net.decoder = nearest(means)
    tests: list[Dataset] = [data.samples["test"]]
    found = [{"session": "base", "words": len(means)} | accuracy(net, tests, batch, tuple(harness.WORKLOAD))]
    for language in draw.permutation(LANGUAGES).tolist():
        frames, words = data.later(language)
        for members in words:
            half = len(members) // 2
            if half < shots:
                raise RecipeError(
                    f"a word of {language} has {len(members)} recordings, {2 * shots} are needed"
                )
            support = draw.choice(members[:half], shots, replace=False)
            asked = draw.choice(members[half:], min(queries, len(members) - half), replace=False)
            tests.append(Chosen(frames, asked, len(means), data))
            means.append(centre(net, Chosen(frames, support, 0, data), batch))
        net.decoder = nearest(means)
        row = {"session": language, "words": len(means)} | accuracy(net, tests, batch)
        row["queries"] = accuracy(net, tests[1:], batch)["ClassificationAccuracy"]
        found.append(row)
    return found


def table(rows: list[dict]) -> str:
    """A line a session, and the mean that NeuroBench ranks by."""
    lines = [
        "| session | words so far | accuracy, % | of the new languages alone, % |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        alone = f"{100 * row['queries']:.2f}" if "queries" in row else ""
        lines.append(
            f"| {row['session']} | {row['words']} | {100 * row['ClassificationAccuracy']:.2f} | {alone} |"
        )
    lines.append(f"| mean | | {100 * mean(row['ClassificationAccuracy'] for row in rows):.2f} | |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of order, shots and queries")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        net, data = instantiate(args.config, args.checkpoint)
        if not isinstance(net, SequenceNet) or not isinstance(data, MSWC):
            raise RecipeError(
                f"few_shot.py takes a SequenceNet trained on MSWC, got {type(net).__name__} on {type(data).__name__}"
            )
        data.setup("test")
        rows = sessions(net.eval(), data, args.seed)
    except (RecipeError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
