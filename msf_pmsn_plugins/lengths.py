"""Samples of different length: which steps of a sequence are valid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "Lengths",
    "ValidFirst",
    "check_lengths",
    "first_given",
    "last_valid",
    "live_steps",
    "valid_steps",
    "without_batch",
]

Lengths = Tensor | Sequence[int]


def first_given(*lengths: Lengths | None) -> Lengths | None:
    """The first that is not None."""
    for one in lengths:
        if one is not None:
            return one
    return None


def without_batch(x_seq: Tensor) -> ValueError:
    """The error for lengths of an ``x_seq`` whose steps have no batch axis."""
    return ValueError(
        f"lengths are a number for each sample, but one step of this input, {tuple(x_seq.shape[1:])}, has no batch "
        "axis: give it one, or cut the sequence"
    )


def check_lengths(x_seq: Tensor, lengths: Lengths) -> Tensor:
    """Lengths as int64 [N], or a mask as bool [T, N], on the device of ``x_seq``; raise if they do not fit it.

    Values are checked where that costs no synchronisation: lists and CPU tensors.
    """
    if x_seq.dim() < 2:
        raise without_batch(x_seq)
    steps, batch = x_seq.shape[:2]
    given = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths)
    if given.numel() == 0 and not isinstance(lengths, Tensor):
        given = given.long()  # of an empty list torch makes floats
    if given.dtype == torch.bool:
        if given.shape != (steps, batch):
            raise ValueError(
                f"a mask is [T, N] = {(steps, batch)} for this input, True at valid steps; got {tuple(given.shape)}"
            )
        return given.to(x_seq.device)
    if given.is_floating_point() or given.is_complex():
        raise TypeError(f"lengths must be integers [N] or a bool mask [T, N], got {given.dtype}")
    if given.shape != (batch,):
        raise ValueError(
            f"lengths need one entry for each of the {batch} samples, got shape {tuple(given.shape)}"
        )
    if given.device.type == "cpu" and batch and not (int(given.min()) >= 0 and int(given.max()) <= steps):
        raise ValueError(f"lengths must lie in 0..{steps}, the steps of this input; got {given.tolist()}")
    return given.to(x_seq.device, torch.int64)


def valid_steps(x_seq: Tensor, lengths: Lengths) -> Tensor:
    """``lengths`` or a mask for ``x_seq`` [T, N, *], checked, as a mask: bool [T, N], True at valid steps."""
    checked = check_lengths(x_seq, lengths)
    if checked.dtype == torch.bool:
        return checked
    return torch.arange(len(x_seq), device=checked.device).unsqueeze(1) < checked


def live_steps(lengths: Tensor, x_seq: Tensor) -> Tensor:
    """True where step t < lengths[n], bool [T, N, 1, ..] against ``x_seq`` [T, N, *]."""
    live = torch.arange(x_seq.shape[0], device=lengths.device).unsqueeze(1) < lengths
    return live.reshape(*live.shape, *[1] * (x_seq.dim() - 2))


class ValidFirst:
    """A sequence [T, N, *] with the steps of a mask, bool [T, N], in front of the others, in their order."""

    def __init__(self, x_seq: Tensor, mask: Tensor) -> None:
        self.count, self._like = mask.sum(0), x_seq
        self._passed = mask.cumsum(0)
        self._order = _against(torch.argsort((~mask).byte(), dim=0, stable=True), x_seq)

    def pack(self, x_seq: Tensor) -> Tensor:
        """The valid steps first."""
        return x_seq.gather(0, self._order)

    def unpack(self, seq: Tensor) -> Tensor:
        """The inverse of :meth:`pack`, in the layout of the sequence."""
        return torch.zeros_like(self._like, dtype=seq.dtype).scatter_(0, self._order, seq)

    def hold(self, start: Tensor, seq: Tensor) -> Tensor:
        """A state [N, *] and what it became at the valid steps -> what it was after each of all steps."""
        return torch.cat([start.unsqueeze(0), seq]).gather(0, _against(self._passed, seq))


def last_valid(start: Tensor, seq: Tensor, count: Tensor | None) -> Tensor:
    """A state [N, *] after the first ``count`` [N] of the steps that gave ``seq`` [T, N, *], None for all; a copy."""
    if count is None:
        return seq[-1].clone() if len(seq) else start
    return torch.cat([start.unsqueeze(0), seq]).gather(0, _against(count.unsqueeze(0), seq))[0]


def _against(index: Tensor, seq: Tensor) -> Tensor:
    """An index [T, N] for all elements of ``seq`` [T, N, *]."""
    return index.reshape(*index.shape, *[1] * (seq.dim() - 2)).expand(seq.shape)
