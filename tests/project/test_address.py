"""The project's address stands in one place; set there, it appears in every other."""

import re
import sys
import tomllib
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import address as tool  # noqa: E402

HOME = "https://github.com/some-one/a.name"
FORMS = tool.forms()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_the_files_hold_the_address_as_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert FORMS[path](text, tool.repository()) == text, "run tools/address.py"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_address_is_written_over_another_and_taken_away(path):
    form, text = FORMS[path], path.read_text(encoding="utf-8")
    plain, there = form(text, ""), form(text, HOME)
    assert HOME in there
    assert HOME not in plain
    assert form(there, HOME) == there
    assert form(form(text, "https://github.com/before/it"), HOME) == there
    assert form(there, "") == plain


def test_the_readme_links_to_the_repository_and_has_badges():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", tool.readme(text, HOME))
    assert len(targets) > 20
    assert all(target.startswith("https://") for target in targets)
    inside = [target for target in targets if target.startswith((f"{HOME}/blob/", f"{HOME}/raw/"))]
    assert all((ROOT / re.split("/main/|#", target)[1]).exists() for target in inside)
    assert f"{HOME}/raw/main/docs/quickstart.png" in inside
    assert f"[![tests]({HOME}/actions/workflows/tests.yml/badge.svg)]" in tool.readme(text, HOME)
    assert not any("://" in target for target in re.findall(r"\]\(([^)]+)\)", tool.readme(text, "")))


def test_the_package_index_gets_urls():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    urls = tomllib.loads(tool.pyproject(text, HOME))["project"]["urls"]
    assert set(urls) == {"Repository", "Documentation", "Changelog", "Issues"}
    assert urls["Repository"] == HOME
    assert urls["Documentation"] == "https://some-one.github.io/a.name/"
    assert "urls" not in tomllib.loads(tool.pyproject(text, ""))["project"]


def test_the_site_links_to_it_and_its_tutorials_open_in_colab(monkeypatch):
    pytest.importorskip("mkdocs")
    import tutorial_pages

    monkeypatch.setattr(tool, "repository", lambda: HOME)
    config = tutorial_pages.on_config(SimpleNamespace(repo_url=None, site_url=None))
    assert (config.repo_url, config.repo_name) == (HOME, "some-one/a.name")
    path = PurePosixPath("tutorials/images.ipynb")
    link = "https://colab.research.google.com/github/some-one/a.name/blob/main/docs/tutorials/images.ipynb"
    assert link in tutorial_pages.links(path, HOME)
    assert "colab" not in tutorial_pages.links(path, "")


@pytest.mark.parametrize("wrong", ["github.com/a/b", "https://github.com/a", "https://github.com/a/b/"])
def test_what_is_no_address_is_refused(wrong):
    with pytest.raises(SystemExit, match="https://github.com/owner/name"):
        tool.repository(f'[tool.msf-pmsn-plugins]\nrepository = "{wrong}"')
