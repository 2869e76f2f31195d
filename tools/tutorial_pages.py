"""A hook of MkDocs: each notebook under docs/ becomes a page, with the outputs that it holds and a link to itself.

Where the project has an address, the page links to the notebook in Colab, and every page to the repository.
"""

import base64
import sys
import textwrap
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import address


def page(notebook: nbformat.NotebookNode, stem: str) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source.replace(".ipynb)", ".md)"))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        if printed.strip():
            parts.append(f"```text\n{fitted(printed.strip())}\n```")
        for output in cell.outputs:
            if picture := output.get("data", {}).get("image/png"):
                name = f"{stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(picture)
                parts.append(f"![What the code above draws]({name})")
    return "\n\n".join(parts), pictures


def fitted(printed: str) -> str:
    """What was printed, its long lines broken at spaces: a page shows 110 characters beside the menu."""
    lines = printed.splitlines()
    return "\n".join(textwrap.fill(line, 105, subsequent_indent=" " * 6) if line else line for line in lines)


def links(path: PurePosixPath, repository: str) -> str:
    """The last line of a tutorial: the notebook itself, and the same in Colab."""
    line = f"This page as a notebook: [{path.name}]({path.name})"
    return line + (f", [open in Colab]({address.colab(repository, f'docs/{path}')})" if repository else "")


def on_config(config: Any) -> Any:
    """Tell the theme where the project is, if it has an address."""
    if repository := address.repository():
        config.repo_url, config.repo_name = repository, "/".join(repository.split("/")[-2:])
        config.site_url = address.site(repository)
    return config


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page, and its pictures, for every notebook."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        path = PurePosixPath(file.src_uri)
        text, pictures = page(nbformat.read(file.abs_src_path, as_version=4), path.stem)
        text += f"\n\n{links(path, address.repository())}\n"
        files.append(File.generated(config, str(path.with_suffix(".md")), content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, str(path.parent / name), content=picture))
    return files
