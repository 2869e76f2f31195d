"""The pages on snnTorch and NIR run, print what stands in them, and name tests that exist."""

import contextlib
import io
import re
from pathlib import Path

import pytest

pytest.importorskip("snntorch", reason="snnTorch is not installed")
pytest.importorskip("nirtorch", reason="nirtorch is not installed")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["snntorch", "nir"])
def test_page_prints_what_stands_in_it(page, tmp_path, monkeypatch):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    monkeypatch.chdir(tmp_path)
    namespace = {}
    blocks = re.findall(r"```python\n(.*?)```\n(?:\s*```text\n(.*?)```)?", text, flags=re.DOTALL)
    assert len(blocks) >= 3
    for code, shown in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), namespace)
        if shown:
            assert printed.getvalue() == shown


def rows():
    """The rows of the support table: feature, 1.0.0, 0.9.4, tests."""
    table = (ROOT / "docs" / "snntorch.md").read_text().split("## What works")[1].split("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("| \n").split(" | ")] for line in table.splitlines()[6:] if line
    ]


def test_every_row_of_the_support_table_names_tests_that_exist():
    found = rows()
    assert len(found) > 30
    for feature, new, old, tests in found:
        assert re.match(r"(works|refused|passes over|fail|wrong|drops|the same)", new), feature
        assert re.match(r"(works|refused|passes over|fail|wrong|drops|the same)", old), feature
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests)
        assert named, feature
        for file, test in named:
            (path,) = (ROOT / "tests").rglob(file)
            assert f"\ndef {test}(" in path.read_text(), f"{feature}: {file}::{test}"
