"""The pages run and print what stands in them; the tests that they name exist."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# Run by test_readme.py, or need a framework that is not installed on every run.
ELSEWHERE = {
    "control.md",
    "index.md",
    "neurobench.md",
    "nir.md",
    "recipes.md",
    "results.md",
    "saving.md",
    "spikingjelly.md",
    "snntorch.md",
    "swap.md",
}


def runnable(page):
    return page.name not in ELSEWHERE and "```python" in page.read_text()


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.stem)
def test_page_prints_what_stands_in_it(page):
    """Blocks share a namespace; a text block right after a python block is what that one prints."""
    namespace = {}
    pairs = re.findall(r"```python\n(.*?)```\n(?:\s*```text\n(.*?)```)?", page.read_text(), flags=re.DOTALL)
    for code, shown in pairs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page.name, "exec"), namespace)
        if shown:
            assert [line.rstrip() for line in printed.getvalue().splitlines()] == shown.splitlines()


def test_named_tests_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "identities.md").read_text())
    assert len(named) > 60
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {test}(" in path.read_text(), f"{file}::{test}"
