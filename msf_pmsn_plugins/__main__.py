"""``python -m msf_pmsn_plugins``: plan a swap of someone's model, list recipes, look at this installation."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from msf_pmsn_plugins.adapters import Recipe, get, loadable, recognise

from . import __version__, swap
from . import doctor as _doctor
from .swap.legacy import LAYOUTS, legacy_imports
from .swap.published import load_published

PLAN = """\
Build a model, run it a few times without gradients, and print what a swap of its neurons would do. Nothing is swapped.

WARNING: this imports and runs the file that you name, as python would. Only name files that you trust.

  python -m msf_pmsn_plugins plan path/to/model.py:factory --input 4,2,3,32,32
  python -m msf_pmsn_plugins plan model.py --call 'sew_resnet18(connect_f="ADD", T=4)' --legacy --input 2,3,32,32
  python -m msf_pmsn_plugins plan spikingjelly.activation_based.model.sew_resnet:sew_resnet18 --step-mode m \\
      --kwargs '{"cnf": "ADD", "spiking_neuron": "@spikingjelly.activation_based.neuron:IFNode"}' --input 4,2,3,32,32
"""

# Each target, with its class and the option that it alone takes.
TARGETS: dict[str, tuple[type[swap.MSF | swap.PMSN], str]] = {
    "msf": (swap.MSF, "D"),
    "pmsn": (swap.PMSN, "compartments"),
}
# What a plan that was saved brings.
PLANNED = ("input", "target", "D", "compartments", "dynamics", "time_dim")


class UserError(Exception):
    """What the user gave cannot be done: one line, no traceback."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for an unresolved plan or a failed test, 2 for an error."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except UserError as error:
        if getattr(args, "traceback", False) and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    about = "Plan a swap of somebody's model, list recipes, look at this installation."
    parser = argparse.ArgumentParser(prog="python -m msf_pmsn_plugins", description=about)
    parser.add_argument("--version", action="version", version=f"msf-pmsn-plugins {__version__}")
    commands = parser.add_subparsers(required=True, metavar="plan | recipes | doctor")
    verbatim = argparse.RawDescriptionHelpFormatter

    plan = commands.add_parser(
        "plan",
        help="what a swap would do to a model",
        description=PLAN,
        formatter_class=verbatim,
        usage=f"{parser.prog} plan MODEL --input SHAPE [options; --help lists them]",
    )
    plan.set_defaults(run=_plan)
    plan.add_argument(
        "model", help="path/to/model.py:name or package.module:name; a function, a class or a module"
    )
    plan.add_argument("--kwargs", metavar="JSON", help='arguments; "@module:name" is that object')
    plan.add_argument(
        "--call", metavar="EXPR", help="build it by this expression, run inside the file instead"
    )
    plan.add_argument(
        "--input", metavar="4,2,3,32,32", help="shape of the example input; needed without --load"
    )
    plan.add_argument("--save", type=Path, metavar="FILE", help="write the plan there, as JSON")
    plan.add_argument(
        "--load", type=Path, metavar="FILE", help="read a plan instead: does it fit this model?"
    )
    plan.add_argument("--target", choices=[*TARGETS], help="what to put in (msf)")
    plan.add_argument("--D", type=int, help=f"thresholds of MSF ({swap.MSF.D})")
    plan.add_argument("--compartments", type=int, help=f"compartments of PMSN ({swap.PMSN.compartments})")
    plan.add_argument(
        "--dynamics",
        choices=("site", "published"),
        help="charge, reset and surrogate: of the old neuron (site), or the paper's; the threshold stays the old one's",
    )
    plan.add_argument("--time-dim", choices=("auto", "0", "1"), help="axis of time in the input (auto)")
    plan.add_argument("--step-mode", choices=("s", "m"), help="SpikingJelly: set_step_mode first")
    plan.add_argument("--checkpoint", type=Path, help="load these published weights first")
    plan.add_argument(
        "--recipe", default="auto", help="use the rules of this recipe, of the one recognised (auto), or none"
    )
    plan.add_argument(
        "--legacy",
        nargs="?",
        const="module",
        choices=LAYOUTS,
        help="import under swap.legacy_imports(), with these names in containers",
    )
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.add_argument("--traceback", action="store_true", help="show where the model's own code failed")

    about = "List the published models whose swap is prepared, or show what is known of one."
    listing = commands.add_parser("recipes", help="list the published models, or show one", description=about)
    listing.set_defaults(run=_recipes)
    listing.add_argument("name", nargs="?", help="a recipe, to see its rules and training settings")
    listing.add_argument("--json", action="store_true", help="print as JSON")

    about = (
        "Versions, backends with the reason for each that is missing, and a self-test of about ten seconds."
    )
    doctor = commands.add_parser(
        "doctor", help="versions, backends, and a short self-test", description=about
    )
    doctor.set_defaults(run=_doctor.run)
    doctor.add_argument("--json", action="store_true", help="print as JSON")
    return parser


@contextmanager
def _stage(text: str, quiet: bool = False) -> Iterator[None]:
    """Say on stderr what is going on; an error of the user's own code becomes a sentence."""
    if not quiet:
        print(f"{text.rstrip(',')} ..", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{text} failed: there is no file {error.filename}") from error
    except Exception as error:
        raise UserError(f"{text} failed with {type(error).__name__}: {error}") from error
    if not quiet and (seconds := time.perf_counter() - start) > 1:
        print(f"  {seconds:.1f} s", file=sys.stderr, flush=True)


# plan -----------------------------------------------------------------------------------------------------------------


def _plan(args: argparse.Namespace) -> int:
    if args.load is None and args.input is None:
        raise UserError("give --input, the shape of an example input, or --load, a plan that was saved")
    if args.load is not None and (planned := [_option(name) for name in PLANNED if _given(args, name)]):
        raise UserError(f"{', '.join(planned)}: a plan that is loaded brings its own: leave them out")
    shape = _shape(args.input) if args.load is None else ()
    target = _target(args)
    with legacy_imports(seq_to_ann=args.legacy) if args.legacy else nullcontext():
        file, _, name = args.model.rpartition(":") if ":" in args.model else (args.model, "", "")
        with _stage(f"importing {file}"):
            module = _import(file)
        with _stage("building the model"):
            model = _build(module, name, args)
    if args.step_mode:
        with _stage(f"setting step_mode={args.step_mode!r}", quiet=True):
            from spikingjelly.activation_based import functional

            functional.set_step_mode(model, args.step_mode)
    recipe = _recipe(model, args.recipe)
    if args.checkpoint:
        with _stage(f"loading {args.checkpoint}"):
            report = load_published(model, args.checkpoint, recipe)
            print(f"  {len(report.loaded)} entries", file=sys.stderr)
    options: dict[str, Any] = {
        "dynamics": args.dynamics or "site",
        "time_dim": int(args.time_dim) if args.time_dim in ("0", "1") else "auto",
    }
    if args.load is not None:
        with _stage(f"reading {args.load}"):
            plan = swap.Plan.from_dict(model, json.loads(args.load.read_text(encoding="utf-8")))
    else:
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        with _stage(f"planning, by some forward passes of an input [{args.input}],"):
            make = swap.plan if recipe is None else recipe.plan
            plan = make(model, x, target, **options)
    if args.save is not None:
        with _stage(f"writing {args.save}", quiet=True):
            args.save.write_text(json.dumps(plan.to_dict(), indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(
            json.dumps(
                {"recipe": recipe and recipe.name, "resolved": not plan.unresolved, **plan.to_dict()},
                indent=2,
            )
        )
    else:
        print(plan)
        if recipe is not None:
            print(f"recipe {recipe.name}: {recipe.advice}")
            print(f"after the swap: {recipe.calibration}")
    return 1 if plan.unresolved else 0


def _given(args: argparse.Namespace, name: str) -> bool:
    return getattr(args, name) is not None


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _target(args: argparse.Namespace) -> swap.MSF | swap.PMSN:
    """The target; an option that belongs to the other is no silent one."""
    name = args.target or "msf"
    kind, own = TARGETS[name]
    for other, (_, word) in TARGETS.items():
        if other != name and _given(args, word):
            raise UserError(f"{_option(word)} is for --target {other}; {name} takes {_option(own)}")
    try:
        return kind(**({own: getattr(args, own)} if _given(args, own) else {}))
    except (ValueError, TypeError) as error:  # it names the argument
        raise UserError(str(error)) from error


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UserError(f"--input is a shape such as 4,2,3,32,32, got {text!r}")
    return shape


def _import(name: str) -> ModuleType:
    """A module by its name, or a file by its path, whose folder is importable as if it were run there."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    if not path.is_file():
        raise UserError(f"there is no file {name}")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


class _Names(dict[str, Any]):
    """What an expression may name: what the file has, and importable modules."""

    def __missing__(self, name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            raise KeyError(name) from None


def _build(module: ModuleType, name: str, args: argparse.Namespace) -> nn.Module:
    try:
        kwargs = {} if args.kwargs is None else json.loads(args.kwargs)
    except json.JSONDecodeError:
        kwargs = None
    if not isinstance(kwargs, dict):
        raise UserError(f'--kwargs is a JSON object such as {{"T": 4}}, got {args.kwargs}')
    if args.call:
        if _given(args, "kwargs"):
            raise UserError("--kwargs are the arguments of a name: write them into the expression of --call")
        made = eval(args.call, {}, _Names(vars(module)))
    else:
        if not name:
            raise UserError(f"name what to build: {args.model}:<name>, or give --call")
        if not hasattr(module, name):
            near = [n for n in vars(module) if not n.startswith("_")]
            raise UserError(f"{module.__name__} has no {name!r}; it has {', '.join(near[:40])}")
        made = getattr(module, name)
        if not isinstance(made, nn.Module):
            made = made(**{key: _resolve(value) for key, value in kwargs.items()})
        elif kwargs:
            raise UserError(f"{name} is a built model: it takes no --kwargs")
    if not isinstance(made, nn.Module):
        raise UserError(f"{args.call or name} gives a {type(made).__name__}, not a torch.nn.Module")
    return made


def _resolve(value: Any) -> Any:
    """``"@module:name"`` as that object, everywhere in a JSON value."""
    if isinstance(value, dict):
        return {key: _resolve(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolve(inner) for inner in value]
    if isinstance(value, str) and value.startswith("@"):
        module, _, name = value[1:].partition(":")
        return getattr(importlib.import_module(module), name)
    return value


def _recipe(model: nn.Module, name: str) -> Recipe | None:
    if name == "auto":
        return recognise(model)
    try:
        return None if name == "none" else get(name)
    except KeyError as error:
        raise UserError(error.args[0]) from error


# recipes --------------------------------------------------------------------------------------------------------------


def _recipes(args: argparse.Namespace) -> int:
    if args.name:
        recipe = _recipe(nn.Identity(), args.name)
        assert recipe is not None
        print(json.dumps(_facts(recipe), indent=2) if args.json else _describe(recipe))
        return 0
    found = loadable()
    if args.json:
        print(json.dumps([_facts(recipe) for recipe in found], indent=2))
        return 0
    width = max(len(recipe.name) for recipe in found)
    for recipe in found:
        print(f"{recipe.name.ljust(width)}  {recipe.source.split(';')[0]}")
    print(f"\n{len(found)} recipes; python -m msf_pmsn_plugins recipes NAME shows one")
    return 0


def _facts(recipe: Recipe) -> dict[str, Any]:
    def plain(rules: Any) -> dict[str, str]:
        return {key if isinstance(key, str) else key.__name__: str(rule) for key, rule in rules.items()}

    return {
        **{
            name: getattr(recipe, name)
            for name in ("name", "source", "models", "classes", "advice", "calibration")
        },
        "rules": plain(recipe.rules),
        "pmsn_rules": plain(recipe.pmsn_rules),
        "keys": dict(recipe.keys),
        "training": {name: dict(values) for name, values in recipe.training.items()},
    }


def _describe(recipe: Recipe) -> str:
    facts = _facts(recipe)
    lines = [
        f"{facts['name']}: {facts['source']}",
        "",
        facts["advice"],
        "",
        f"After the swap: {facts['calibration']}",
    ]
    for title in ("models", "rules", "pmsn_rules", "keys"):
        if entries := facts[title]:
            items = entries if isinstance(entries, tuple) else [f"{a} -> {b}" for a, b in entries.items()]
            lines += ["", f"{title.replace('_', ' ')}:", *(f"  {item}" for item in items)]
    for name, values in facts["training"].items():
        lines += ["", f"published training, {name}:", *(f"  {key}: {value}" for key, value in values.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
