"""The workflows run what .ci/run runs, on the versions that the package names, and publish what was checked."""
# ruff: noqa: E402

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import release_check

MAKE = re.compile(r"\bmake ([\w-]+(?: ARGS=\S+)?)")


def jobs(name):
    path = ROOT / ".github" / "workflows" / f"{name}.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_workflow_of_tests_runs_the_targets_of_ci():
    wanted = MAKE.findall((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert len(wanted) == len(set(wanted)) > 5
    runs = [run for job in jobs("tests").values() for run in commands(job)]
    assert sorted(MAKE.findall("\n".join(runs))) == sorted(wanted)


def test_the_versions_that_are_tested_are_the_versions_that_are_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert named == jobs("tests")["tests"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={named[0]}"


def test_what_is_published_is_what_was_checked():
    build, publish = jobs("release")["build"], jobs("release")["publish"]
    assert [run for run in commands(build) if "build" in run] == []
    assert 'make release-check ARGS="--release --out dist"' in commands(build)
    (kept,) = (step["with"] for step in build["steps"] if "upload" in step.get("uses", ""))
    (taken,) = (step["with"] for step in publish["steps"] if "download" in step.get("uses", ""))
    assert kept == taken == {"name": "dist", "path": "dist/"}


@pytest.fixture
def passing(monkeypatch, tmp_path):
    """A release check that builds two files and finds nothing wrong."""

    def check(work):
        (work / "dist").mkdir()
        (work / "dist" / "a.whl").write_text("wheel")
        (work / "dist" / "a.tar.gz").write_text("sdist")
        return work / "dist"

    monkeypatch.setattr(release_check, "check", check)
    monkeypatch.setattr(release_check, "check_tables", lambda release: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["release_check.py", *map(str, arguments)])
        release_check.main()

    return run


def test_the_release_check_hands_out_the_files_that_passed(passing, monkeypatch, tmp_path):
    out = tmp_path / "dist"
    passing("--out", out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"a.whl": "wheel", "a.tar.gz": "sdist"}
    with pytest.raises(SystemExit, match="exists: name a new folder"):
        passing("--out", out)

    def fails(work):
        raise SystemExit("the wheel lacks something")

    monkeypatch.setattr(release_check, "check", fails)
    with pytest.raises(SystemExit, match="lacks something"):
        passing("--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()
