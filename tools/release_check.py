"""Build the distributions, validate them, and try the wheel in bare environments; name the stale tables.

With --release, stale tables are an error. With --out, the very files that passed lie there afterwards.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import clean_installs
import provenance

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "site"
)
IN_SDIST = (
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "adapters/__init__.py",
    "examples/quickstart.py",
    "msf_pmsn_plugins/py.typed",
    "tests/project/test_packaging.py",
)

# Runs in the throwaway environment.
SMOKE = """
import sys
from importlib.metadata import entry_points, version
import msf_pmsn_plugins

assert sys.prefix in msf_pmsn_plugins.__file__, msf_pmsn_plugins.__file__
assert msf_pmsn_plugins.__version__ == version("msf-pmsn-plugins")
for group in ("spikingjelly.neurons", "snntorch.neurons", "msf_pmsn_plugins.recipes"):
    points = [point for point in entry_points(group=group) if point.value.startswith("msf_pmsn_plugins.")]
    assert points, group
    for point in points:
        point.load()
    print(group + ":", *(point.name for point in points))
try:
    import adapters
except ImportError:
    pass
else:
    raise SystemExit("a bare adapters package was installed")
"""


def run(*command: object, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        shown = " ".join(part for part in map(str, command) if "\n" not in part)
        raise SystemExit(f"{result.stdout}\nfailed: {shown}")
    return result.stdout


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def contents(wheel: Path) -> dict[str, int]:
    """Return name and checksum of each file; RECORD follows from the others."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            item.filename: item.CRC for item in archive.infolist() if not item.filename.endswith("/RECORD")
        }


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(message)


def check(work: Path) -> Path:
    """Build and try the distributions below ``work``; returns the folder of the two files that passed."""
    build = (sys.executable, "-P", "-m", "build", "--no-isolation")
    tree = shutil.copytree(ROOT, work / "tree", ignore=LEFT_OUT)
    run(*build, "--sdist", "--wheel", tree, cwd=work)
    sdist, wheel = only(tree / "dist", "*.tar.gz"), only(tree / "dist", "*.whl")
    run(sys.executable, "-P", "-m", "twine", "check", "--strict", sdist, wheel, cwd=work)
    print(f"metadata      valid: {wheel.name}, {sdist.name}")

    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(work / "sdist", filter="data")
    missing = sorted(set(IN_SDIST) - names)
    require(not missing, f"missing from the sdist: {missing}")
    print(f"sdist         {len(names)} entries, complete")

    source = only(work / "sdist", "*")
    run(*build, "--wheel", source, cwd=work)
    direct, rebuilt = contents(wheel), contents(only(source / "dist", "*.whl"))
    differing = sorted(name for name in direct | rebuilt if direct.get(name) != rebuilt.get(name))
    require(not differing, f"the wheel from the sdist differs in {differing}")
    top = {name.split("/")[0] for name in direct if ".dist-info/" not in name}
    require(top == {"msf_pmsn_plugins"}, f"top-level names in the wheel: {sorted(top)}")
    require("msf_pmsn_plugins/adapters/__init__.py" in direct, "the wheel lacks the adapters")
    require("msf_pmsn_plugins/py.typed" in direct, "the wheel lacks py.typed")
    print(f"wheel         {len(direct)} files, the same from the checkout and from the sdist")

    venv = work / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=work)
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", wheel, cwd=work)
    # Sharing torch: a plain path line, behind which an editable install of this package is not seen.
    shared = Path(torch.__file__).parents[1]
    (only(venv / "lib", "python*") / "site-packages" / "shared.pth").write_text(f"{shared}\n")
    report = run(python, "-c", SMOKE, cwd=work)
    print("installed     entry points load:")
    for line in report.splitlines():
        print(f"              {line}")
    clean_installs.check(wheel, tree, work, run)
    return wheel.parent


def check_tables(release: bool) -> None:
    """Print which measured tables are stale; with ``release`` that is an error."""
    stale = provenance.stale()
    print(
        "tables        "
        + (f"{len(stale)} stale, `make results` makes them anew" if stale else "none is stale")
    )
    for table, reason in stale.items():
        print(f"              {table}: {reason}")
    for table, what in provenance.unfinished().items():
        print(f"              {table}: {what}, as its page says (hours: see tools/results.py)")
    require(not (stale and release), "a release needs tables that are true: make results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", action="store_true", help="fail where a measured table is stale")
    parser.add_argument("--out", type=Path, help="a new folder for the distributions that passed")
    args = parser.parse_args()
    require(args.out is None or not args.out.exists(), f"--out {args.out} exists: name a new folder")
    check_tables(args.release)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    print(f"release check {project['name']}")
    with tempfile.TemporaryDirectory(prefix="release-check-") as folder:
        passed = check(Path(folder))
        if args.out is not None:
            shutil.copytree(passed, args.out)
    print("release check passed")


if __name__ == "__main__":
    main()
