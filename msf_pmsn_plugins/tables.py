"""Lists of dataclasses that print as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

__all__ = ["Table", "aligned"]

Row = TypeVar("Row")


class Table(list[Row]):
    """Dataclasses of one kind; prints as a table.

    Args:
        rows: the dataclasses.
        columns: the fields to print; None prints all.
        heads: what stands above a column that is not headed by the name of its field.
        note: a line below the table.
    """

    def __init__(
        self,
        rows: Iterable[Row] = (),
        columns: Sequence[str] | None = None,
        heads: Mapping[str, str] | None = None,
        note: str = "",
    ) -> None:
        super().__init__(rows)
        self.columns, self.heads, self.note = columns, heads or {}, note

    def __str__(self) -> str:
        if not self:
            return "(empty)"
        names = self.columns or [field.name for field in fields(self[0])]  # type: ignore[arg-type]
        head = [self.heads.get(name, name.replace("_", " ")) for name in names]
        text = aligned([head, *([_cell(getattr(row, name)) for name in names] for row in self)])
        return f"{text}\n{self.note}" if self.note else text


def aligned(rows: Sequence[Sequence[str]], right_from: int | None = None) -> str:
    """Rows of text in columns, a rule below the first; those from ``right_from`` on end at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ruled = [rows[0], ["-" * width for width in widths], *rows[1:]]
    right_from = len(widths) if right_from is None else right_from

    def line(row: Sequence[str]) -> str:
        pairs = zip(row, widths, strict=True)
        return "  ".join(
            cell.ljust(width) if i < right_from else cell.rjust(width)
            for i, (cell, width) in enumerate(pairs)
        ).rstrip()

    return "\n".join(map(line, ruled))


def _cell(value: Any) -> str:
    """Whole and large numbers written out, others to three figures."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value == value // 1 or abs(value) >= 1000 else f"{value:.3g}"
