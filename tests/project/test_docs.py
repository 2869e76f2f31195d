"""The pages run and print what stands in them; the tests that they name exist."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# Pages whose code other tests run: with a framework that must be there, or a folder of their own.
ELSEWHERE = {
    "control.md": "examples/test_control.py",
    "index.md": "project/test_readme.py",
    "neurobench.md": "neurobench/test_neurobench.py",
    "nir.md": "snntorch/test_snntorch_docs.py",
    "recipes.md": "adapters/test_adapters.py",
    "saving.md": "swap/test_swap_saving.py",
    "snntorch.md": "project/test_readme.py",
    "spikingjelly.md": "project/test_readme.py",
    "swap.md": "project/test_readme.py",
}


def runnable(page):
    return page.name not in ELSEWHERE and "```python" in page.read_text()


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.stem)
def test_page_prints_what_stands_in_it(page, tmp_path, monkeypatch):
    """Blocks share a namespace; a text block right after a python block is what that one prints."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    pairs = re.findall(r"```python\n(.*?)```\n(?:\s*```text\n(.*?)```)?", page.read_text(), flags=re.DOTALL)
    for code, shown in pairs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page.name, "exec"), namespace)
        if shown:
            assert [line.rstrip() for line in printed.getvalue().splitlines()] == shown.splitlines()


@pytest.mark.parametrize("page", ELSEWHERE)
def test_pages_left_out_here_are_run_elsewhere(page):
    text = (ROOT / "tests" / ELSEWHERE[page]).read_text()
    assert page in text or f'"{page.removesuffix(".md")}"' in text
    assert "exec(" in text
    assert "```python" in (ROOT / "docs" / page).read_text() or page == "index.md"


def test_no_code_hides_from_these_tests():
    """Languages that a test runs, or that are no Python; a block of another name would never be tried."""
    for page in [*PAGES, ROOT / "README.md"]:
        languages = set(re.findall(r"^\s*```(\w+)$", page.read_text(), flags=re.MULTILINE))
        assert languages <= {"python", "text", "console", "bash", "toml", "yaml", "json"}, page.name


def test_named_tests_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "identities.md").read_text())
    assert len(named) > 60
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {test}(" in path.read_text(), f"{file}::{test}"


def tree():
    """The tree of docs/design.md: what it lists under each folder. Names end where two spaces begin."""
    text = (ROOT / "docs" / "design.md").read_text()
    lines = re.search(r"```text\n(msf_pmsn_plugins/\n.*?)```", text, flags=re.DOTALL)[1].splitlines()
    listed, path = {}, []
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"  +", line.strip())[0].split()
        path[depth:] = [names[0].rstrip("/")]
        for name in names:
            listed.setdefault("/".join(path[:depth]), set()).add(name)
    return listed


@pytest.mark.parametrize("folder", [folder for folder in tree() if folder])
def test_the_tree_of_the_design_is_the_folder(folder):
    """A folder that it opens is listed whole."""
    parts = {path.name for path in (ROOT / folder).glob("*.py")}
    parts |= {f"{path.parent.name}/" for path in (ROOT / folder).glob("*/__init__.py")}
    assert parts - tree()[folder] <= {"__init__.py"}
    assert tree()[folder] <= parts


def test_the_tree_of_the_design_opens_what_a_reader_looks_for():
    assert {*tree()} >= {"msf_pmsn_plugins", "msf_pmsn_plugins/neurons", "msf_pmsn_plugins/backends"}
    assert all((ROOT / name).is_dir() for name in tree()[""])
