"""What a build carries, in each of the four ways to install, and what its metadata promises."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import entry_points, metadata, requires, version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DATA = {".cu", ".cuh", ".typed"}
IGNORED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "site"
)


def run(*command: object, cwd: Path, **env: str) -> str:
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def expected() -> set[str]:
    """Return the files that an installed package holds, by their installed names."""
    names = set()
    for folder, prefix in ((ROOT / "msf_pmsn_plugins", ""), (ROOT / "adapters", "adapters/")):
        for path in folder.rglob("*"):
            if path.suffix in {".py"} | DATA:
                names.add(f"msf_pmsn_plugins/{prefix}{path.relative_to(folder).as_posix()}")
    return names


def wheel_files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the sources, so that no build leaves anything in the checkout or finds leftovers there."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "tree", ignore=IGNORED)


@pytest.fixture(scope="module")
def built(tree: Path) -> tuple[Path, Path]:
    pytest.importorskip("build")
    run(sys.executable, "-P", "-m", "build", "--no-isolation", "--sdist", "--wheel", tree, cwd=tree.parent)
    (sdist,), (wheel,) = (tree / "dist").glob("*.tar.gz"), (tree / "dist").glob("*.whl")
    return sdist, wheel


def test_wheel(built: tuple[Path, Path]) -> None:
    assert wheel_files(built[1]) == expected()


def test_sdist(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    installed_to_source = {
        name.removeprefix("msf_pmsn_plugins/") if "/adapters/" in name else name for name in expected()
    }
    assert installed_to_source <= names
    assert {"CHANGELOG.md", "LICENSE", "README.md", "CITATION.cff", "examples/quickstart.py"} <= names
    assert {"CONTRIBUTING.md", ".github/workflows/tests.yml"} <= names
    tests = {
        f"tests/{path.relative_to(ROOT / 'tests').as_posix()}" for path in (ROOT / "tests").rglob("*.py")
    }
    assert tests <= names
    if (ROOT / ".git").exists():  # a checkout knows what belongs to it
        tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
        assert {name for name in tracked if (ROOT / name).is_file()} <= names


def test_sdist_to_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    run(sys.executable, "-P", "-m", "build", "--no-isolation", "--wheel", source, cwd=tmp_path)
    (wheel,) = (source / "dist").glob("*.whl")
    assert wheel_files(wheel) == expected()


def test_editable(tree: Path, tmp_path: Path) -> None:
    """Everything is importable, and a new file in either folder is seen at once."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / "bin" / "python"
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
    )
    (site,) = (venv / "lib").glob("python*/site-packages")
    (site / "shared.pth").write_text(
        f"{Path(torch.__file__).parents[1]}\n{Path(pytest.__file__).parents[1]}\n"
    )
    run(*pip, "--ignore-installed", "-e", tree, cwd=tmp_path)
    (tree / "adapters" / "probe.py").write_text("WHERE = __file__\n")
    (tree / "msf_pmsn_plugins" / "probe.py").write_text("WHERE = __file__\n")
    code = """
import importlib.util
from importlib.resources import files
import msf_pmsn_plugins.adapters.probe as adapter, msf_pmsn_plugins.probe as module
print(adapter.WHERE, module.WHERE, files("msf_pmsn_plugins").joinpath("py.typed").is_file())
print(*(importlib.util.find_spec(name) is None for name in ("tests", "examples", "tools")))
"""
    try:
        out = run(python, "-P", "-c", code, cwd=tmp_path).split()
    finally:
        (tree / "adapters" / "probe.py").unlink()
        (tree / "msf_pmsn_plugins" / "probe.py").unlink()
    assert out == [f"{tree}/adapters/probe.py", f"{tree}/msf_pmsn_plugins/probe.py", "True", *3 * ["True"]]


def test_adapters_are_no_top_level_package() -> None:
    code = "import adapters"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert "msf_pmsn_plugins.adapters" in result.stderr


def test_version_is_one() -> None:
    tree = ast.parse((ROOT / "msf_pmsn_plugins" / "__init__.py").read_text(encoding="utf-8"))
    (literal,) = (
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
        if isinstance(node.value, ast.Constant)
    )
    assert version("msf-pmsn-plugins") == literal
    assert f"version: {literal}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{literal}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("group", sorted(PROJECT["entry-points"]))
def test_entry_points_resolve(group: str) -> None:
    declared = PROJECT["entry-points"][group]
    found = {point.name: point for point in entry_points(group=group) if point.value in declared.values()}
    assert set(found) == set(declared)
    for name, point in found.items():
        thing = point.load()
        if group != "msf_pmsn_plugins.recipes":
            assert thing.__name__ == name


def test_torch_is_the_only_hard_dependency() -> None:
    hard = [Requirement(line).name for line in requires("msf-pmsn-plugins") or () if "extra ==" not in line]
    assert hard == ["torch"]


def extra(name: str) -> set[str]:
    """Return the distributions behind an extra, following references to our own."""
    names: set[str] = set()
    for line in PROJECT["optional-dependencies"][name]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            names = names.union(*(extra(other) for other in requirement.extras))
        else:
            names.add(requirement.name)
    return names


def test_every_extra_is_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import clean_installs

    on_cpu = {name for name in PROJECT["optional-dependencies"] if not name.startswith("cupy")}
    assert set(clean_installs.TRIALS) == on_cpu
    assert {"nir", "nirtorch", "torch"} <= set(clean_installs.closure(clean_installs.wanted("nir")))
    assert "spikingjelly" not in clean_installs.closure(clean_installs.wanted("snntorch"))


def test_extras() -> None:
    extras = set(PROJECT["optional-dependencies"])
    assert extras == {
        *("spikingjelly", "snntorch", "cpu", "cupy12", "cupy13"),
        *("examples", "plot", "nir", "neurobench", "onnx", "control", "all"),
    }
    assert set(metadata("msf-pmsn-plugins").get_all("Provides-Extra") or ()) == extras
    assert {"snntorch", "torch", "numpy"} <= extra("snntorch")
    on_cpu = set().union(*(extra(name) for name in extras if not name.startswith("cupy")))
    assert extra("all") == on_cpu
    assert not any(name.startswith("cupy") for name in extra("all"))
