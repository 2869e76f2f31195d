"""Write the project's address wherever it belongs: set ``repository`` in pyproject.toml, then run this.

It is written into the links and badges of README.md, ``[project.urls]``, CITATION.cff and the tutorials; the site reads
it when it is built. While it is empty, links are relative and there are no badges.
"""

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLAB = "https://colab.research.google.com"
IN_REPOSITORY = re.compile(r"\]\((?:https://[^\s)]+/(?:blob|raw)/main/)?((?:docs/|[A-Z]+\b)[^\s):]*)\)")
IN_COLAB = " (in Colab `%pip`, in a first cell)"
INSTALLS = re.compile(
    r"`pip install '(?:\.|msf-pmsn-plugins)(\[[\w,]+\])(?: @ git\+[^']*)?'`(?: from a clone|"
    + re.escape(IN_COLAB)
    + ")?"
)


def repository(pyproject: str | None = None) -> str:
    """The address as pyproject.toml has it, or nothing; raises SystemExit where it is no GitHub repository's."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8") if pyproject is None else pyproject
    address = tomllib.loads(text)["tool"]["msf-pmsn-plugins"]["repository"]
    if address and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]*\w", address):
        raise SystemExit(
            f"pyproject.toml: repository = {address!r}; it is https://github.com/owner/name, or empty"
        )
    return address


def site(address: str) -> str:
    """Where GitHub shows the documentation."""
    owner, name = address.split("/")[-2:]
    return f"https://{owner.lower()}.github.io/{name}/"


def colab(address: str, path: str) -> str:
    """The link that opens a notebook of the repository in Colab."""
    return f"{COLAB}/github/{'/'.join(address.split('/')[-2:])}/blob/main/{path}"


def between(text: str, name: str, lines: list[str], mark: tuple[str, str] = ("<!-- ", " -->")) -> str:
    """``text`` with ``lines`` between the two comments of that name."""
    begin, end = (
        f"{mark[0]}{words}{mark[1]}\n" for words in (f"{name}: written by tools/address.py", f"end of {name}")
    )
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"expected the lines {begin.strip()!r} and {end.strip()!r}")
    return before + begin + "".join(f"{line}\n" for line in lines) + end + after


def readme(text: str, address: str) -> str:
    """Links that also hold on the package index, and badges."""

    def link(match: re.Match[str]) -> str:
        kind = "raw" if match[1].endswith(".png") else "blob"
        return f"]({address}/{kind}/main/{match[1]})" if address else f"]({match[1]})"

    tests = f"{address}/actions/workflows/tests.yml"
    tutorial = colab(address, "docs/tutorials/with_spikingjelly.ipynb") if address else ""
    badges = [
        f"[![tests]({tests}/badge.svg)]({tests})",
        f"[![documentation]({address}/actions/workflows/docs.yml/badge.svg)]({site(address)})"
        if address
        else "",
        f"[![open in Colab]({COLAB}/assets/colab-badge.svg)]({tutorial})",
    ]
    return between(IN_REPOSITORY.sub(link, text), "badges", badges if address else [])


def pyproject(text: str, address: str) -> str:
    """``[project.urls]``, which the package index shows."""
    urls = [
        "[project.urls]",
        f'Repository = "{address}"',
        f'Documentation = "{site(address)}"' if address else "",
        f'Changelog = "{address}/blob/main/CHANGELOG.md"',
        f'Issues = "{address}/issues"',
    ]
    return between(text, "urls", urls if address else [], ("# ", ""))


def citation(text: str, address: str) -> str:
    """``repository-code``, before the licence."""
    text = re.sub(r"^repository-code: .*\n", "", text, flags=re.MULTILINE)
    line = f'repository-code: "{address}"\n' if address else ""
    return re.sub(r"^(?=license: )", line, text, count=1, flags=re.MULTILINE)


def notebook(text: str, address: str) -> str:
    """What to install: in Colab there is no clone."""
    package = f"msf-pmsn-plugins{{}} @ git+{address}" if address else ".{}"
    after = IN_COLAB if address else " from a clone"
    return INSTALLS.sub(lambda match: f"`pip install '{package.format(match[1])}'`{after}", text)


def forms() -> dict[Path, Callable[[str, str], str]]:
    """Each file that holds the address, and what makes its text."""
    named = {"README.md": readme, "pyproject.toml": pyproject, "CITATION.cff": citation}
    tutorials = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
    return {ROOT / name: form for name, form in named.items()} | dict.fromkeys(tutorials, notebook)


def main() -> None:
    if sys.argv[1:]:
        raise SystemExit(__doc__)
    address = repository()
    for path, form in forms().items():
        old = path.read_text(encoding="utf-8")
        if (new := form(old, address)) != old:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
