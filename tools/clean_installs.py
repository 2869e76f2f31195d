"""Try a wheel in a bare environment: with torch alone, with each extra alone, replaced by an editable install, removed.

Nothing is downloaded: the environment sees, by links, those of the installed distributions that an extra asks for.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
Run = Callable[..., str]

TORCH_ALONE = """
import sys, torch, msf_pmsn_plugins
from msf_pmsn_plugins.neurons import MSF, PMSN

assert sys.prefix in msf_pmsn_plugins.__file__, msf_pmsn_plugins.__file__
for neuron in (MSF(), PMSN(3)):
    x = torch.randn(4, 2, 3, requires_grad=True)
    spikes, _ = neuron(x)
    spikes.sum().backward()
    assert spikes.shape == x.shape and torch.isfinite(x.grad).all()


def refused(extra, call):
    try:
        call()
    except ImportError as error:
        assert extra in str(error), f"the error does not name the extra {extra}: {error}"
    else:
        raise SystemExit(f"{extra} is there")


from importlib import import_module
if ALONE:
    for framework in ("spikingjelly", "snntorch"):
        refused(framework, lambda: import_module(f"msf_pmsn_plugins.{framework}"))
    refused("numba", lambda: MSF(backend="numba")(torch.ones(2, 1, 1)))
"""
SWAP = """
from torch import nn
from msf_pmsn_plugins import swap

net = swap.msf(nn.Sequential(nn.Linear(3, 4), stock), torch.rand(2, 3), D=4)
assert net(torch.rand(2, 3))[0].shape[-1] == 4
"""
# What an extra is for.
TRIALS = {
    "spikingjelly": "from spikingjelly.activation_based import neuron\nstock = neuron.LIFNode()" + SWAP,
    "snntorch": "import snntorch\nstock = snntorch.Leaky(0.9, init_hidden=True)" + SWAP,
    "cpu": "assert MSF(backend='numba')(torch.ones(2, 1, 1))[0].any()",
    "plot": "from msf_pmsn_plugins import plot\nplot.traces(MSF(), torch.ones(5, 1, 1))",
    "nir": "import_module('msf_pmsn_plugins.nir')",
    "neurobench": "import_module('msf_pmsn_plugins.neurobench')",
    "onnx": """
from msf_pmsn_plugins.export import Streaming
streaming, x = Streaming(MSF()), torch.ones(1, 3)
torch.onnx.export(streaming, (x, *streaming.initial_states(x)), "neuron.onnx", dynamo=True, verbose=False)
import onnxruntime
onnxruntime.InferenceSession("neuron.onnx")
""",
    "examples": "import lightning, timm, tonic, torchmetrics, sklearn, mnist1d, msf_pmsn_plugins.spikingjelly",
    "control": "import torchrl, gymnasium",
    "all": "from msf_pmsn_plugins.__main__ import main\nassert main(['recipes']) == 0",
}


def wanted(extra: str) -> list[Requirement]:
    """What an extra asks for beside torch, following references to others of ours."""
    found: list[Requirement] = []
    for line in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            found += [other for name in sorted(requirement.extras) for other in wanted(name)]
        else:
            found.append(requirement)
    return found


def closure(requirements: Iterable[Requirement]) -> dict[str, Distribution]:
    """The installed distributions that these ask for, by name; raises PackageNotFoundError where one is not there."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    open_ = [(requirement, extra) for requirement in requirements for extra in ("", *requirement.extras)]
    while open_:
        requirement, extra = open_.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found[name] = distribution(name)
        for line in found[name].requires or ():
            inner = Requirement(line)
            if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                open_ += [(inner, each) for each in ("", *inner.extras)]
    return found


def link(distributions: Iterable[Distribution], folder: Path) -> Path:
    """``folder`` with links to all that these distributions installed beside each other."""
    folder.mkdir()
    for found in distributions:
        site = Path(str(found.locate_file("")))
        for name in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(site / name)
    return folder


@dataclass
class Environment:
    """A virtual environment without packages of its own, pip included."""

    folder: Path
    run: Run

    def __post_init__(self) -> None:
        self.run(sys.executable, "-m", "venv", "--without-pip", self.folder, cwd=self.folder.parent)
        (self.site,) = (self.folder / "lib").glob("python*/site-packages")
        self.python = self.folder / "bin" / "python"
        self.empty = self.files()

    def files(self) -> set[str]:
        """All that lies in its site-packages, but for what is shared."""
        found = {path.relative_to(self.site).as_posix() for path in self.site.rglob("*")}
        return found - {"shared.pth"}

    def pip(self, *arguments: object) -> str:
        return self.run(sys.executable, "-m", "pip", "--python", self.python, *arguments, cwd=self.folder)

    def share(self, folder: Path) -> None:
        """Let it see the packages in ``folder``: a plain path line, in which no .pth file is read."""
        (self.site / "shared.pth").write_text(f"{folder}\n")

    def python_runs(self, code: str) -> str:
        return self.run(self.python, "-c", code, cwd=self.folder)


def try_extras(environment: Environment, folder: Path) -> tuple[list[str], list[str]]:
    """Run what each extra is for where there is nothing else; the names of those tried, and of those not installed."""
    torch = Requirement("torch")
    tried, absent = [], []
    environment.share(link(closure([torch]).values(), folder / "torch-alone"))
    environment.python_runs("ALONE = True" + TORCH_ALONE)
    for extra in PROJECT["optional-dependencies"]:
        try:
            found = closure([torch, *wanted(extra)])
        except PackageNotFoundError:
            absent.append(extra)
            continue
        environment.share(link(found.values(), folder / extra))
        environment.python_runs("ALONE = False" + TORCH_ALONE + TRIALS.get(extra, ""))
        tried.append(extra)
    return tried, absent


def replace_and_remove(environment: Environment, wheel: Path, tree: Path, folder: Path) -> None:
    """The wheel is installed; an editable install takes its place, the wheel that one's, and then nothing is left."""
    shared = closure([Requirement("torch"), Requirement("setuptools")])
    environment.share(link(shared.values(), folder / "with-setuptools"))
    where = "import msf_pmsn_plugins.adapters, os; print(os.path.dirname(msf_pmsn_plugins.__file__))"

    environment.pip("install", "--no-deps", "--no-build-isolation", "-e", tree)
    left = {name for name in environment.files() if name.startswith("msf_pmsn_plugins/")}
    if left:
        raise SystemExit(f"an editable install leaves files of the wheel: {sorted(left)[:5]}")
    found = environment.python_runs(where).splitlines()[-1]  # after torch's warning that there is no NumPy
    if found != str(tree / "msf_pmsn_plugins"):
        raise SystemExit(f"after an editable install the package comes from {found}")

    environment.pip("install", "--no-deps", wheel)
    if any("__editable__" in name for name in environment.files()):
        raise SystemExit("the wheel leaves files of the editable install")
    environment.python_runs("ALONE = False" + TORCH_ALONE)  # it leaves compiled files
    environment.pip("uninstall", "-y", PROJECT["name"])
    if left := environment.files() - environment.empty:
        raise SystemExit(f"uninstalling leaves {sorted(left)[:5]}")


def check(wheel: Path, tree: Path, work: Path, run: Run) -> None:
    """All of it, with a line for each; raises SystemExit at the first failure."""
    folder = work / "shared"
    folder.mkdir()
    environment = Environment(work / "bare", run)
    environment.pip("install", "--no-deps", wheel)
    tried, absent = try_extras(environment, folder)
    # Started there, Python takes the checkout's folder in place of what is installed.
    run(environment.python, "-m", "msf_pmsn_plugins", "recipes", cwd=tree)
    print(f"clean         works with torch alone, and with each of {', '.join(tried)} alone")
    if absent:
        print(f"              not installed here, so not tried: {', '.join(absent)}")
    replace_and_remove(environment, wheel, tree, folder)
    print(
        "              the command line runs in a checkout too; an editable install takes the wheel's place whole, and "
        "back; uninstalling leaves nothing"
    )
    shutil.rmtree(environment.folder)
