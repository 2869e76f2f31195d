"""Samples of different length: which steps of a sequence are valid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Lengths", "check_lengths", "first_given", "live_steps", "valid_steps"]

Lengths = Tensor | Sequence[int]


def first_given(*lengths: Lengths | None) -> Lengths | None:
    """The first that is not None."""
    for one in lengths:
        if one is not None:
            return one
    return None


def check_lengths(x_seq: Tensor, lengths: Lengths) -> Tensor:
    """Lengths as int64 [N], or a mask as bool [T, N], on the device of ``x_seq``; raise if they do not fit it.

    Values are checked where that costs no synchronisation: lists and CPU tensors.
    """
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
