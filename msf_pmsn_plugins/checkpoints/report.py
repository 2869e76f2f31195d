"""What is reported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mismatch:
    """An entry that was found but does not fit."""

    published: str
    ours: str
    why: str

    def __str__(self) -> str:
        return f"{self.published} -> {self.ours}: {self.why}"


@dataclass(frozen=True)
class Report:
    """What :func:`read` did. ``print`` it; :attr:`ok` is False if anything was left over on either side."""

    source: str
    weights: str
    """The entry of the file that was read, and the prefix taken from its names."""
    loaded: dict[str, str]
    """Published name -> name in the model."""
    missing: dict[str, str]
    """Name in the model -> the published name it was looked for under."""
    unexpected: tuple[str, ...]
    """Published names without a place in the model."""
    mismatched: tuple[Mismatch, ...]
    unused: tuple[str, ...]
    """Published names that the model lacks and the published forward pass never uses."""
    left_out: tuple[str, ...]
    """Published names renamed to None."""
    converted: tuple[str, ...]
    """Loaded entries whose dtype changed."""
    different: tuple[str, ...]
    """Settings of the model's neurons that are not the published ones."""
    not_stored: tuple[str, ...]
    """What the file does not say."""

    @property
    def ok(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{self.source}, {self.weights}: {len(self.loaded)} entries loaded"]
        renamed = [f"{a} -> {b}" for a, b in self.loaded.items() if a != b]
        missing = [f"{ours} (looked for as {published})" for ours, published in self.missing.items()]
        for title, entries in (
            ("renamed", renamed),
            ("missing in the file", missing),
            ("unexpected in the file", self.unexpected),
            ("not fitting", self.mismatched),
            ("never used by the published forward pass, and not in the model", self.unused),
            ("left out as asked", self.left_out),
            ("dtype changed", self.converted),
            ("not the published setting", self.different),
            ("not stored in the file, to be set by you", self.not_stored),
        ):
            if entries:
                lines += [f"{title} ({len(entries)}):", *(f"  {entry}" for entry in entries)]
        return "\n".join(lines)


class Incomplete(ValueError):
    """The file and the model do not match entry by entry. Nothing was loaded; see :attr:`report`."""

    def __init__(self, report: Report) -> None:
        super().__init__(
            f"nothing was loaded, because the file and the model differ. Rename with rename={{published: yours}}, or "
            f"load what fits with strict=False.\n{report}"
        )
        self.report = report
