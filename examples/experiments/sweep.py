"""Compartments n = 2 to 17, and accuracy against energy.

PMSN with n compartments beside LIF and sliding PSN of two orders, all in the same network: digits pixel by pixel in
a random order, or any configuration of train.py. Energy is counted on test samples by msf_pmsn_plugins.energy in
the papers' convention (float32 at 45 nm, no memory traffic).

    python examples/experiments/sweep.py --plot sweep.png
    python examples/experiments/sweep.py --config examples/configs/psmnist.yaml --out runs/sweep --plot sweep.png
    ... --config C --out O -- --trainer.max_epochs 20 --data.root ~/data        what follows -- goes to train.py

With --config every network is trained by ``train.py fit`` and measured by ``train.py test`` on its best checkpoint,
in a folder of its own under --out; what is there already is not trained again, so an interrupted sweep goes on.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import common
import torch
from common import Recipe
from digits import build, sequences
from recipes import neurons
from recipes.arguments import output, picture
from yaml import safe_load

from msf_pmsn_plugins import energy

SEEDS = 1
TITLE = "Compartments and energy (digits, permuted pixels, T = 64)"
KEYS = ("neuron", "size")
VALUES = ("parameters", "spikes", "energy", "seconds", "accuracy")
COLUMNS = {"energy": ("energy, nJ a sample", ".0f")}
COMPARTMENTS = (2, 3, 4, 5, 9, 17)


def candidates():
    """(neuron, what is swept) -> factory."""
    found = {("PMSN", f"n = {n}"): neurons.PMSN(n) for n in COMPARTMENTS}
    found |= {("SlidingPSN", f"k = {k}"): neurons.SlidingPSN(k) for k in (8, 32)}
    return {("LIF", "-"): neurons.LIF(), **found}


def chosen(options):
    """Those of the neurons that were asked for, in all their sizes."""
    names = options.chosen({name: None for name, _ in candidates()})
    return {key: neuron for key, neuron in candidates().items() if key[0] in names}


@torch.no_grad()
def nanojoules(model, x):
    """Energy of one sample in the papers' convention, nJ; ``x`` with the axes that ``model.time_first_input`` names."""
    model.eval()
    neurons.reset(model)
    batch = x.shape[model.time_first_input.index("N")]
    with energy.counting(model, samples=batch, strict=True) as counts:
        model(x)
    neurons.reset(model)
    return counts.energy()[-1].total


def runs(options):
    data = sequences(permuted=True)
    data = data.few(64) if options.fast else data
    recipe = Recipe(epochs=1 if options.fast else 10, batch=64)
    for seed in range(options.seeds):
        for (name, size), neuron in chosen(options).items():
            torch.manual_seed(seed)
            model = build(neuron)
            seconds = common.train(model, data, recipe, seed)
            yield {
                "neuron": name,
                "size": size,
                "seed": seed,
                "parameters": sum(p.numel() for p in model.parameters()),
                **common.evaluate(model, data),
                "energy": nanojoules(model, data.x_test),
                "seconds": seconds,
            }


def plot(rows):
    """Accuracy against energy, means over the seeds. Points have labels on the long curves, others in the legend."""
    points: dict = {}
    for row in rows:
        point = row["energy"], row["accuracy"] / 100
        points.setdefault(row["neuron"], {}).setdefault(row["size"], []).append(point)
    curves = {}
    for name, sizes in points.items():
        middles = [torch.tensor(pairs).mean(0).tolist() for pairs in sizes.values()]
        if len(sizes) > 2:
            curves[name] = [(*middle, size) for middle, size in zip(middles, sizes, strict=True)]
        else:
            curves[", ".join([name, *(size for size in sizes if size != "-")])] = middles
    return energy.plot(curves)


# Any configuration of train.py


def overrides(config, neuron):
    """The arguments of train.py that put ``neuron`` into ``config``.

    Where the configuration has a PMSN, a PMSN keeps all of its settings but the compartments.
    """
    path = "--model.network.init_args.neuron"
    own = safe_load(config.read_text())["model"]["network"]["init_args"]["neuron"]
    if isinstance(neuron, neurons.PMSN) and own["class_path"] == "recipes.neurons.PMSN":
        return [f"{path}.init_args.compartments", str(neuron.compartments)]
    line = {"class_path": f"recipes.neurons.{type(neuron).__name__}", "init_args": vars(neuron)}
    return [path, json.dumps(line)]


def tested(folder):
    """The test accuracy in % that train.py logged last in ``folder``, or None."""
    found = None
    for path in sorted(
        folder.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])
    ):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found = 100 * float(row["test/acc"]) if row.get("test/acc") else found
    return found


def with_config(config, out, candidates, arguments):
    """Train and test every neuron in the network of ``config``; one row each."""
    from stream import instantiate

    train = str(common.HERE.parent / "train.py")
    for (name, size), neuron in candidates.items():
        folder = out / f"{name} {size}".replace(" ", "").replace("=", "").strip("-")
        settings = ["--config", str(config), *overrides(config, neuron), *arguments]
        best = folder / "checkpoints" / "best.ckpt"
        if tested(folder) is None:
            subprocess.run([sys.executable, train, "fit", *settings, "--out", str(folder)], check=True)
            ending = ["--ckpt_path", str(best), "--out", str(folder)]
            subprocess.run([sys.executable, train, "test", *settings, *ending], check=True)
        # The neuron and the data as they were trained, from the configuration that train.py saved there.
        saved = max(folder.glob("logs/version_*/config.yaml"), key=lambda p: int(p.parent.name.split("_")[1]))
        model, data = instantiate(saved, best)
        data.setup("test")
        x, *_ = data.arrange(next(iter(data.test_dataloader())))
        yield {
            "neuron": name,
            "size": size,
            "seed": 0,
            "parameters": sum(p.numel() for p in model.parameters()),
            "accuracy": tested(folder),
            "energy": nanojoules(model, x),
        }


def main():
    arguments, passed_on = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, passed_on = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_arguments(parser)
    parser.add_argument("--json", type=output, help="write the raw numbers here")
    parser.add_argument("--plot", type=picture, help="draw accuracy against energy here")
    parser.add_argument("--config", type=Path, help="a configuration of train.py")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sweep"), help="folder of the trained networks (%(default)s)"
    )
    args = parser.parse_args(arguments)
    options = common.options_of(args)
    if args.config:
        rows = list(with_config(args.config, args.out, chosen(options), passed_on))
        done = {"experiment": "sweep", "config": str(args.config), "rows": rows}
        print(common.table(sys.modules[__name__], rows))
    else:
        done = common.report(sys.modules[__name__], options)
    if args.json:
        args.json.write_text(json.dumps(done, indent=1) + "\n")
    if args.plot:
        plot(done["rows"]).figure.savefig(args.plot, dpi=150)
        print(f"figure saved to {args.plot}")


if __name__ == "__main__":
    main()
