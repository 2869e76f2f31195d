"""The pages on snnTorch and NIR run, print what stands in them, and have tests behind each row."""

import contextlib
import io
import re
import tomllib
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
    """The rows of the support table: feature, 1.0.0, 0.9.4."""
    table = (ROOT / "docs" / "snntorch.md").read_text().split("## What works")[1].split("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("| \n").split(" | ")] for line in table.splitlines()[6:] if line
    ]


def test_every_row_of_the_support_table_has_tests_that_exist():
    found = rows()
    proofs = tomllib.loads((Path(__file__).parent / "support.toml").read_text(encoding="utf-8"))
    assert len(found) > 30
    assert [feature for feature, _, _ in found] == list(proofs)
    for feature, new, old in found:
        assert re.match(r"(works|refused|passes over|fail|wrong|drops|the same)", new), feature
        assert re.match(r"(works|refused|passes over|fail|wrong|drops|the same)", old), feature
        assert proofs[feature], feature
        for file, test in (proof.split("::") for proof in proofs[feature]):
            (path,) = (ROOT / "tests").rglob(file)
            assert f"\ndef {test}(" in path.read_text(), f"{feature}: {file}::{test}"
