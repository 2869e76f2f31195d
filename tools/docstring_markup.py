"""Turn the docstrings' few bits of reStructuredText into Markdown for the documentation."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")  # :class:`~package.Name` -> `Name`
LITERAL = re.compile(r"^::$|(?<=\S:):$", re.MULTILINE)  # before an indented block
TABLE = re.compile(r"^=+(?:[ ]+=+)+\n(?:.*\n)*?=+(?:[ ]+=+)+\n(?:.*\n)*?=+(?:[ ]+=+)+$", re.MULTILINE)


def markdown(text: str) -> str:
    text = TABLE.sub(lambda match: f"```text\n{match.group()}\n```", text)
    return LITERAL.sub("", ROLE.sub(r"`\1`", text))


class DocstringMarkup(griffe.Extension):
    """Rewrites every docstring as it is collected."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
