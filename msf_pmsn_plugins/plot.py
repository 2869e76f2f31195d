"""Pictures of what the neurons do: one function a picture, drawn with matplotlib (extra ``plot``).

Every function draws into ``ax`` (``axes`` where there are several) or into a new figure, and returns what it drew into;
``ax.figure.savefig("name.png")`` or ``matplotlib.pyplot.show()`` do the rest. A ``neuron`` is one of
:mod:`msf_pmsn_plugins.neurons`, or a SpikingJelly node or snnTorch neuron that holds one. It is run from rest, without
gradients, and its own state is left as it is. Time is counted in steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .charges import CHARGES
from .neurons import MSF, PMSN, Neuron
from .surrogate import FireFunction, Surrogate
from .surrogate import summed_slope as _summed_slope

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Activity",
    "LayerActivity",
    "activity",
    "frequency_response",
    "gradient_by_lag",
    "impulse_response",
    "membrane_histogram",
    "modes",
    "raster",
    "summed_slope",
    "traces",
]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
BLACK, GREY = "#000000", "#999999"
CYCLE = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)


# ---------------------------------------------------------------- axes


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"msf_pmsn_plugins.plot cannot import matplotlib ({error}): pip install 'msf-pmsn-plugins[plot]'"
        ) from error
    return plt


def _subplots(given: Any, rows: int, columns: int, size: tuple[float, float], **options: Any) -> list[Axes]:
    """The axes that were given, checked, or those of a new figure of ``size`` inches."""
    count = rows * columns
    if given is None:
        _figure, grid = _pyplot().subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False, **options
        )
        return list(grid.flat)
    axes = [given] if hasattr(given, "plot") else list(given)
    if len(axes) != count:
        raise ValueError(f"this picture needs {count} axes, got {len(axes)}")
    return axes


def _dress(ax: Axes, xlabel: str, ylabel: str) -> None:
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def _whole_ticks(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(integer=True))


def _color(ax: Axes, color: str | None) -> str:
    """``color``, or the first of ours that no line of these axes has."""
    used = {line.get_color() for line in ax.lines}
    return color or next((ours for ours in CYCLE if ours not in used), BLACK)


# ---------------------------------------------------------------- what is drawn


def _held(source: Any, kinds: tuple[type[Neuron], ...] = (Neuron,)) -> Any:
    """The neutral neuron in ``source``, with the settings that its node has now."""
    sync_settings = getattr(source, "sync_settings", None)
    if callable(sync_settings):
        sync_settings(torch.get_default_dtype())
    held = source if isinstance(source, Neuron) else getattr(source, "neuron", None)
    if not isinstance(held, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(
            f"this picture is of {names} (of msf_pmsn_plugins.neurons, or held by a node of either framework), got "
            f"{type(source).__name__ if held is None else type(held).__name__}"
        )
    return held


def _sequence(x_seq: Any, what: str) -> Tensor:
    if not isinstance(x_seq, Tensor):
        raise TypeError(f"{what} must be a torch.Tensor, got {type(x_seq).__name__}")
    if x_seq.dim() == 0 or x_seq.numel() == 0:
        raise ValueError(
            f"{what} must be a sequence [T, *] with something in it, got shape {tuple(x_seq.shape)}"
        )
    return x_seq


@contextmanager
def _at_rest(node: Any, sequence: bool) -> Iterator[None]:
    """A node of either framework, at rest and in sequence or step mode; afterwards as it was."""
    if hasattr(node, "step_mode"):
        words = {"step_mode": "m" if sequence else "s", "store_v_seq": False}
    else:
        words = {"sequence": sequence, "init_hidden": False}
    before = {name: getattr(node, name) for name in (*words, "carried")}
    try:
        node.carried = None
        for name, value in words.items():
            setattr(node, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(node, name, value)


def _spikes(source: Any, x_seq: Tensor) -> Tensor:
    """The output [T, N, *] of a neuron, a node (without its hooks) or another callable."""
    held = getattr(source, "neuron", None)
    if isinstance(source, Neuron):
        return source.sequence(x_seq)[0]
    if isinstance(held, Neuron) and hasattr(source, "carried"):
        with _at_rest(source, sequence=True):
            out = source.forward(x_seq)
    else:
        out = source(x_seq)
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def _record(source: Any, x_seq: Tensor) -> tuple[Tensor, Tensor]:
    """Membranes before reset (volts) and spikes of a neuron or node, [T, N, *]."""
    held = _held(source)
    if hasattr(source, "reset_mechanism") and isinstance(held, MSF):
        # In snnTorch's words `mem` is that membrane, also for the dynamics that only this skin has.
        with _at_rest(source, sequence=False):
            mem = source.reset_mem()
            pairs = []
            for x in x_seq:
                spk, mem = source.forward(x, mem)
                pairs.append((mem, spk))
        m_seq, s_seq = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return m_seq, s_seq
    _s_seq, _state, m_seq = held.sequence(x_seq, membrane=True)
    assert m_seq is not None
    return m_seq, _spikes(source, x_seq)


def _thresholds(held: Any) -> list[float]:
    return held.thresholds if isinstance(held, MSF) else [float(held.v_threshold)]


def _flat(seq: Tensor) -> Tensor:
    """[T, *] -> [T, lanes], float64 on the CPU."""
    return seq.detach().to("cpu", torch.float64).reshape(len(seq), -1)


# ---------------------------------------------------------------- time


def traces(
    source: Any,
    x_seq: Tensor | None = None,
    *,
    s_seq: Tensor | None = None,
    thresholds: Sequence[float] = (),
    lanes: Sequence[int] = (0,),
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Membranes before reset over their spike counts, step by step.

    Args:
        source: a neuron, or membranes [T, *] in volts.
        x_seq: the input of a neuron, [T, N, *].
        s_seq: the counts that belong to membranes given as a tensor, in their shape; None draws the membranes alone.
        thresholds: lines to draw for membranes given as a tensor, volts; a neuron knows its own.
        lanes: which elements of one step [N, *], counted flat.
        axes: two axes (one, if there are no counts).

    Returns:
        the axes of the membranes and, if there are counts, those of the counts.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> above, below = plot.traces(neurons.MSF(), torch.randn(40, 1, 2).mul(2), lanes=[0, 1])
        >>> below.get_ylabel()
        'count'
    """
    if isinstance(source, Tensor):
        if x_seq is not None:
            raise ValueError(
                "x_seq is the input of a neuron; membranes given as a tensor take s_seq=, their counts"
            )
        m_seq = _sequence(source, "source")
    else:
        if s_seq is not None or len(thresholds):
            raise ValueError("a neuron makes its own counts and knows its thresholds: give x_seq alone")
        m_seq, s_seq = _record(source, _sequence(x_seq, "x_seq"))
        thresholds = _thresholds(_held(source))
    if s_seq is not None and s_seq.shape != m_seq.shape:
        raise ValueError(f"counts {tuple(s_seq.shape)} and membranes {tuple(m_seq.shape)} differ in shape")
    rows = 1 if s_seq is None else 2
    drawn = _subplots(axes, rows, 1, (7, 1.4 + 1.2 * rows), sharex=True, gridspec_kw=_heights(rows))
    for color, lane in zip(CYCLE * (1 + len(lanes) // len(CYCLE)), lanes, strict=False):
        drawn[0].plot(_flat(m_seq)[:, lane], color=color, linewidth=1.3, label=f"element {lane}")
        if s_seq is not None:
            drawn[1].step(range(len(s_seq)), _flat(s_seq)[:, lane], where="mid", color=color, linewidth=1.3)
    for d, theta in enumerate(thresholds):
        drawn[0].axhline(
            theta, color=GREY, linestyle=":", linewidth=1, label=None if d else "thresholds", zorder=1
        )
    _dress(drawn[0], "" if rows == 2 else "time, steps", "membrane, V")
    if rows == 2:
        _dress(drawn[1], "time, steps", "count")
        _whole_ticks(drawn[1])
    if len(lanes) > 1 or len(thresholds):
        drawn[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
    return drawn


def _heights(rows: int) -> dict[str, Any]:
    return {"height_ratios": (2, 1)} if rows == 2 else {}


def raster(
    source: Any, x_seq: Tensor | None = None, *, size: float | None = None, ax: Axes | None = None
) -> Axes:
    """Which neuron fires when, and how often: the area and the darkness of a dot are its count.

    Args:
        source: spikes [T, *], counts of any size; or a neuron. All elements of one step are drawn, so give one sample:
            ``s_seq[:, 0]``.
        x_seq: the input of a neuron, [T, N, *].
        size: diameter of the dot of the largest count, points; None fits the rows.
        ax: where to draw.

    Raises:
        ValueError: spikes that are negative or not finite.

    Examples:
        >>> from msf_pmsn_plugins import plot
        >>> ax = plot.raster(torch.tensor([[0, 1], [4, 0]]))
        >>> ax.collections[0].get_offsets().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    if not isinstance(source, Tensor):
        with torch.no_grad():
            _held(source)
            source = _spikes(source, _sequence(x_seq, "x_seq"))
    elif x_seq is not None:
        raise ValueError("x_seq is the input of a neuron; spikes given as a tensor take none")
    counts = _flat(_sequence(source, "source"))
    if not (torch.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("spikes must be finite and not negative")
    (ax,) = _subplots(ax, 1, 1, (7, 3))
    units = counts.shape[1]
    largest = float(counts.max())
    if size is None:
        height = ax.bbox.height * 72 / ax.figure.dpi
        size = min(8.0, max(1.5, 1.1 * height / units))
    t, unit = counts.nonzero(as_tuple=True)
    value = counts[t, unit]
    whole = bool((value == value.round()).all())
    many = largest > 1 or not whole
    colors = {"c": value, **_dark(largest, whole and largest <= 10)} if many else {"color": BLACK}
    area = size**2 * value / max(largest, 1.0)
    dots = ax.scatter(t, unit, s=area, linewidths=0, marker="o", **colors)
    ax.set(xlim=(-0.5, len(counts) - 0.5), ylim=(-0.5, units - 0.5))
    _dress(ax, "time, steps", "neuron")
    ax.grid(visible=False)
    _whole_ticks(ax)
    if many:
        ax.figure.colorbar(
            dots,
            ax=ax,
            label="count",
            pad=0.01,
            ticks=range(1, int(largest) + 1) if whole and largest <= 10 else None,
        )
    return ax


def _dark(largest: float, few: bool) -> dict[str, Any]:
    """Colours from viridis' green to its darkest end, so that every count is seen on white; a step each if ``few``."""
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize

    count = int(largest) if few else 256
    cmap = ListedColormap(colormaps["viridis"](torch.linspace(0.75, 0, count).numpy()))
    edges = torch.arange(0.5, largest + 1).tolist()
    return {"cmap": cmap, "norm": BoundaryNorm(edges, count) if few else Normalize(0.0, largest)}


# ---------------------------------------------------------------- membranes


def membrane_histogram(
    source: Any,
    x_seq: Tensor | None = None,
    *,
    without: str = "none",
    bins: int = 80,
    ax: Axes | None = None,
) -> Axes:
    """Distribution of the membrane before reset: as it is, and with the reset taken away.

    Args:
        source: an MSF or PMSN, or a pair of membranes of any shape, volts: with and without reset.
        x_seq: the input of a neuron, [T, N, *].
        without: the ``reset_mode`` that stands for no reset. ``"none"`` of MSF is the leaky integrator, that of PMSN
            the drive alone (the published ablation); ``"cumulative"`` of PMSN sums the drives up without end.
        bins: bars over the range of both.
        ax: where to draw.

    Raises:
        ValueError: a neuron without such a reset mode, or membranes of which none is finite.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> ax = plot.membrane_histogram(neurons.PMSN(8), torch.randn(50, 4, 8), without="cumulative")
    """
    thresholds: list[float] = []
    if isinstance(source, tuple | list):
        if x_seq is not None:
            raise ValueError("x_seq is the input of a neuron; a pair of membranes takes none")
        with_reset, free = source
        labels = ("with reset", "without reset")
    else:
        held = _held(source, (MSF, PMSN))
        thresholds = _thresholds(held)
        with_reset = _record(source, _sequence(x_seq, "x_seq"))[0]
        labels = (f"with reset ({held.reset_mode})", f"without reset ({without})")
        before = held.reset_mode
        held.reset_mode = without
        try:
            with torch.no_grad():
                free = held.sequence(x_seq, membrane=True)[2]
        finally:
            held.reset_mode = before
    values = [part.detach().to("cpu", torch.float64).flatten() for part in (with_reset, free)]
    values = [part[torch.isfinite(part)] for part in values]
    if not all(len(part) for part in values):
        raise ValueError("no membrane is finite: there is nothing to count")
    low, high = (float(extreme(torch.cat(values))) for extreme in (torch.min, torch.max))
    edges = torch.linspace(low, max(high, low + 1e-6), bins + 1, dtype=torch.float64)
    (ax,) = _subplots(ax, 1, 1, (7, 3))
    for part, label, color in zip(values, labels, (BLUE, RED), strict=True):
        density = torch.histogram(part, edges, density=True).hist
        ax.stairs(density, edges, fill=True, color=color, alpha=0.25)
        ax.stairs(density, edges, color=color, linewidth=1.3, label=label)
    for d, theta in enumerate(thresholds):
        ax.axvline(theta, color=GREY, linestyle=":", linewidth=1, label=None if d else "thresholds")
    _dress(ax, "membrane before reset, V", "density, 1/V")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return ax


# ---------------------------------------------------------------- PMSN's compartments


@torch.no_grad()
def _spectrum(held: PMSN) -> tuple[Tensor, Tensor]:
    """Frequency in cycles per step and decay time in steps of each mode, float64 [channels, modes]."""
    log_dt, log_a, a_imag = (
        p.detach().to("cpu", torch.float64) for p in (held.log_dt, held.log_A_real, held.A_imag)
    )
    dt = torch.exp(log_dt).unsqueeze(1) * held.dt_scale
    return a_imag.abs() * dt / (2 * math.pi), torch.exp(-log_a) / dt


def _pick(held: PMSN, channel: int | None) -> slice:
    """The channels to draw: one, or all."""
    channels = held.channels
    if channels is None:
        raise ValueError("this PMSN has no channels yet: pass channels=..., or run one forward pass first")
    if channel is None:
        return slice(None)
    if not 0 <= channel < channels:
        raise ValueError(f"channel must lie in 0..{channels - 1}, got {channel}")
    return slice(channel, channel + 1)


@torch.no_grad()
def _weights(held: PMSN, channel: int | None) -> tuple[Tensor, Tensor, Tensor]:
    pick = _pick(held, channel)
    e, w, d = (part.detach().cpu()[pick] for part in held.weights(torch.float64))
    a = 1 + e
    return a, w, d


def impulse_response(
    neuron: Any, steps: int | None = None, *, channel: int | None = None, ax: Axes | None = None
) -> Axes:
    """What each hidden compartment of a PMSN passes to the soma after an input of 1: ``Re(w_n a_n^l)`` at lag l.

    The black line is their sum. The direct gain ``D``, which adds to it at lag 0 alone, is left out: it would dwarf the
    rest. Conjugate modes have the same response: of two lines that coincide the second is dashed.

    Args:
        neuron: a PMSN.
        steps: lags to draw; None is three times the median decay time, from 16 to 2000.
        channel: one neuron of the layer; None is the mean over the layer, shaded from its 10th to its 90th percentile
            for the sum.
        ax: where to draw.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> ax = plot.impulse_response(neurons.PMSN(16), 100)
        >>> [line.get_label() for line in ax.lines]
        ['compartment 1', 'compartment 2', 'compartment 3', 'compartment 4', 'sum']
    """
    held = _held(neuron, (PMSN,))
    a, w, _d = _weights(held, channel)
    if steps is None:
        decay_time = _spectrum(held)[1][_pick(held, channel)].median()
        steps = int(min(2000, max(16, 3 * float(decay_time))))
    lag = torch.arange(steps)
    response = (w.unsqueeze(-1) * a.unsqueeze(-1) ** lag).real  # [channels, modes, steps]
    total = response.sum(1)
    (ax,) = _subplots(ax, 1, 1, (7, 3))
    for n, part in enumerate(response.mean(0)):
        twin = n >= response.shape[1] / 2 and not held.tied
        style: dict[str, Any] = {"linestyle": (0, (4, 4)), "linewidth": 1.8} if twin else {"linewidth": 1.8}
        ax.plot(lag, part, color=CYCLE[n % 6], label=f"compartment {n + 1}", **style)
    _band(ax, lag, total, BLACK)
    ax.plot(lag, total.mean(0), color=BLACK, linewidth=1, label="sum")
    _dress(ax, "lag, steps", "response, V per unit input")
    ax.set_title("layer mean" if channel is None else f"neuron {channel}", fontsize="medium")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
    return ax


def modes(
    neuron: Any, *, channel: int | None = None, bins: int = 30, axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Frequencies and decay times of the hidden compartments of a PMSN: how they are spread over the layer.

    Frequencies are ``abs(A_imag) dt / 2 pi``, in cycles per step; beyond 0.5 (hatched) they are aliased. Decay times
    are ``1 / (exp(log_A_real) dt)``, in steps. Bars of the compartments are stacked, a dashed line is the layer's mean.

    Args:
        neuron: a PMSN.
        channel: mark the compartments of this one neuron.
        bins: bars.
        axes: two axes.

    Returns:
        the axes of the frequencies and of the decay times.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> left, right = plot.modes(neurons.PMSN(64), channel=3)
        >>> left.get_xlabel()
        'frequency, cycles per step'
    """
    held = _held(neuron, (PMSN,))
    pick = _pick(held, channel)
    drawn = _subplots(axes, 1, 2, (8, 3), sharey=True)
    xlabels = ("frequency, cycles per step", "decay time, steps")
    for ax, values, xlabel in zip(drawn, _spectrum(held), xlabels, strict=True):
        moving = values[values > 0]
        if len(moving):
            low, high = moving.min() / 1.2, moving.max() * 1.2
            edges = torch.logspace(float(low.log10()), float(high.log10()), bins + 1, dtype=values.dtype)
            columns = [column[column > 0].numpy() for column in values.T]
            colors = [CYCLE[n % 6] for n in range(values.shape[1])]
            labels = [f"compartment {n + 1}" for n in range(values.shape[1])]
            ax.hist(columns, bins=edges.tolist(), stacked=True, color=colors, label=labels, alpha=0.8)
            ax.set_xscale("log")
            mean = float(moving.mean())
            ax.axvline(mean, color=BLACK, linestyle="--", linewidth=1, label=f"layer mean {mean:.3g}")
        if len(moving) < values.numel():
            resting = values.numel() - len(moving)
            ax.text(0.02, 0.97, f"{resting} at 0", transform=ax.transAxes, va="top", fontsize="small")
        if channel is not None:
            own = values[pick].flatten()
            style: dict[str, Any] = {
                "marker": "^",
                "s": 60,
                "color": BLACK,
                "edgecolors": "white",
                "zorder": 3,
                "clip_on": False,
            }
            ax.scatter(own, [0.0] * len(own), label=f"neuron {channel}", **style)
        _dress(ax, xlabel, "")
    if float(_spectrum(held)[0].max()) > 0.5:
        drawn[0].axvspan(
            0.5, drawn[0].get_xlim()[1], facecolor="none", edgecolor=GREY, hatch="///", linewidth=0
        )
    drawn[0].set_ylabel("compartments")
    _whole_ticks(drawn[0])
    handles, labels = drawn[1].get_legend_handles_labels()
    drawn[1].legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small"
    )
    drawn[0].legend(*_only_mean(drawn[0]), frameon=False, fontsize="small", loc="upper left")
    return drawn


def _only_mean(ax: Axes) -> tuple[list[Any], list[str]]:
    pairs = [pair for pair in zip(*ax.get_legend_handles_labels(), strict=True) if "mean" in pair[1]]
    return [handle for handle, _ in pairs], [label for _, label in pairs]


# ---------------------------------------------------------------- frequency


def _charge_gains(held: MSF) -> tuple[Tensor, Tensor]:
    """Gain of the input and decay of the membrane in one step, float64 [channels]; [1] without channels."""
    charge = CHARGES[held.charge[0 if held.training else 1]]
    rates: dict[str, Any] = {"decay": held.decay, "tau": held.tau, "none": 0.0}
    rate = held.w.sigmoid() if charge.rate == "w" else rates[charge.rate]
    rate = torch.as_tensor(rate, dtype=torch.float64, device="cpu").detach().reshape(-1)
    one, zero = torch.ones_like(rate), torch.zeros_like(rate)
    gain, decay = (charge.forward(x, v, rate, 0.0, held.input_scale) for x, v in ((one, zero), (zero, one)))
    return gain, decay


@torch.no_grad()
def _linear_response(held: Any, omega: Tensor, channel: int | None) -> Tensor:
    """Transfer function from the input to the membrane (MSF) or to the drive of the soma (PMSN), [channels, f]."""
    delay = torch.exp(-1j * omega)
    if isinstance(held, MSF):
        gain, decay = _charge_gains(held)
        return gain.unsqueeze(-1) / (1 - decay.unsqueeze(-1) * delay)
    a, w, d = (part.unsqueeze(-1) for part in _weights(held, channel))
    modes = w / (1 - a * delay) + w.conj() / (1 - a.conj() * delay)
    return modes.sum(1) / 2 + d


def _batch_of_steps(held: Any, current: Tensor) -> Tensor:
    """``current`` [T, lanes] in every channel: the input [T, lanes, .., C, ..] that ``channel_dim`` asks for."""
    rates = held.decay_logit if isinstance(held, MSF) else held.D
    channels = len(rates) if rates is not None and rates.dim() else 1
    dims = held.channel_dim if isinstance(held.channel_dim, tuple | list) else (held.channel_dim,)
    shape = [1] * (dims[-1] if dims[-1] > 0 else -dims[0])
    shape[dims[-1] - 1 if dims[-1] > 0 else dims[-1]] = channels
    return current.reshape(*current.shape, *[1] * len(shape)).expand(*current.shape, *shape)


@torch.no_grad()
def _measured_response(
    source: Any, held: Any, amplitude: float, bias: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Frequencies, and the spikes' fundamental per amplitude of a sine as input, [channels, f]."""
    cycles = torch.logspace(0, math.log10(steps / 2 - 1), 40).round().unique()
    omega = 2 * math.pi * cycles / steps
    t = torch.arange(2 * steps).unsqueeze(1)
    current = bias + amplitude * torch.sin(omega * t)
    s_seq = _spikes(source, _batch_of_steps(held, current))[
        steps:
    ].double()  # the first half is the transient
    s_seq = s_seq.reshape(steps, len(cycles), -1)
    wave = torch.exp(-1j * (omega * t[steps:]).double()).unsqueeze(-1)
    return cycles / steps, (s_seq * wave).sum(0).abs().T * (2 / (steps * amplitude))


def frequency_response(
    neuron: Any,
    *,
    channel: int | None = None,
    amplitude: float | None = None,
    bias: float = 0.0,
    steps: int = 512,
    label: str | None = None,
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Gain of a neuron over frequency: which rhythms of its input it passes on.

    The line is exact: from the input to the membrane below threshold (MSF), or to the drive of the soma (PMSN). With
    ``amplitude`` dots are added, measured: the neuron is fed ``bias + amplitude sin``, and a dot is the amplitude of
    that frequency in its spikes, per ``amplitude``. Draw several neurons into one ``ax`` to compare them.

    Args:
        neuron: an MSF or PMSN.
        channel: one neuron of the layer; None is the mean of the gains over the layer, shaded from the 10th to the
            90th percentile.
        amplitude, bias: of the sine, in units of the input.
        steps: length of the measurement, after as many steps of run-in; at least 8.
        label, color: of this neuron; None takes the name of its class, the next colour.
        ax: where to draw.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> ax = plot.frequency_response(neurons.MSF(decay=0.9))
        >>> ax = plot.frequency_response(neurons.PMSN(16), amplitude=2.0, steps=64, ax=ax)
    """
    held = _held(neuron, (MSF, PMSN))
    pick = (
        _pick(held, channel)
        if isinstance(held, PMSN)
        else slice(channel, None if channel is None else channel + 1)
    )
    if steps < 8 or (amplitude is not None and not amplitude > 0):
        raise ValueError(f"steps must be at least 8 and amplitude positive, got {steps} and {amplitude}")
    (ax,) = _subplots(ax, 1, 1, (7, 3.2))
    color = _color(ax, color)
    label = type(held).__name__ if label is None else label
    f = torch.logspace(-3.3, math.log10(0.5), 400, dtype=torch.float64)
    gain = _linear_response(held, 2 * math.pi * f, channel).abs()
    gain = gain if isinstance(held, PMSN) else gain[pick]
    _band(ax, f, gain, color)
    ax.plot(f, gain.mean(0), color=color, linewidth=1.6, label=label)
    if amplitude is not None:
        at, spikes = _measured_response(neuron, held, amplitude, bias, steps)
        style: dict[str, Any] = {
            "linestyle": "none",
            "marker": "o",
            "markersize": 4,
            "markerfacecolor": "white",
        }
        ax.plot(at, spikes[pick].mean(0), color=color, label=f"{label}, its spikes", **style)
    ax.set(xscale="log", yscale="log")
    _dress(ax, "frequency, cycles per step", "gain, output per unit input")
    ax.legend(frameon=False, fontsize="small")
    return ax


def _band(ax: Axes, x: Tensor, lanes: Tensor, color: str) -> None:
    """Shade from the 10th to the 90th percentile of ``lanes`` [lanes, x]."""
    if len(lanes) > 1:
        low, high = torch.quantile(lanes, torch.tensor([0.1, 0.9], dtype=lanes.dtype), dim=0)
        ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


# ---------------------------------------------------------------- gradients


def gradient_by_lag(
    neuron: Any,
    x_seq: Tensor,
    *,
    label: str | None = None,
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How far back the gradient reaches: its size at the input ``lag`` steps before the last output.

    The size is the root mean square over all elements of ``d sum(s[T-1]) / d x[T-1-lag]``. Lags without any gradient
    are left out: the axis is logarithmic. Draw several neurons into one ``ax`` to compare them.

    Args:
        neuron: a neuron, or any callable from [T, N, *] to spikes [T, N, *], such as a network (at rest: its nodes keep
            their states).
        x_seq: the input, [T, N, *].
        label, color: of this neuron; None takes the name of its class, the next colour.
        ax: where to draw.

    Raises:
        ValueError: no gradient arrives at the input.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> x_seq = torch.randn(60, 32, 8).mul(2)
        >>> ax = plot.gradient_by_lag(neurons.MSF(), x_seq)
        >>> ax = plot.gradient_by_lag(neurons.PMSN(8), x_seq, ax=ax)
    """
    x = _sequence(x_seq, "x_seq").detach().clone().requires_grad_()
    if isinstance(neuron, Neuron) or isinstance(getattr(neuron, "neuron", None), Neuron):
        _held(neuron)
    with torch.enable_grad():
        last = _spikes(neuron, x)[-1].sum()
        gradient = torch.autograd.grad(last, x, allow_unused=True)[0] if last.requires_grad else None
    if gradient is None or not gradient.any():
        raise ValueError(
            "no gradient arrives at the input: its surrogate is zero at all membranes of the last step"
        )
    size = _flat(gradient).square().mean(1).sqrt().flip(0)
    (ax,) = _subplots(ax, 1, 1, (7, 3))
    lag = size.nonzero().squeeze(1)
    name = type(getattr(neuron, "neuron", neuron)).__name__ if label is None else label
    ax.plot(lag, size[lag], color=_color(ax, color), linewidth=1.6, marker="o", markersize=2.5, label=name)
    ax.set_yscale("log")
    _dress(ax, "lag, steps", "gradient, rms")
    ax.legend(frameon=False, fontsize="small")
    return ax


def summed_slope(
    source: Any,
    surrogate: str | Surrogate | FireFunction | None = None,
    *,
    label: str | None = None,
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The slope that a neuron passes back, over its membrane, beside the derivative of ReLU.

    The slope is :func:`msf_pmsn_plugins.surrogate.summed_slope`, one surrogate for each threshold. For burst spikes of
    PMSN see :data:`msf_pmsn_plugins.neurons.pmsn.BURSTS`: they have another slope and are refused.

    Args:
        source: a neuron, or thresholds in volts.
        surrogate: the surrogate of thresholds given as numbers: a name, an object or a callable.
        label, color: of this line; None takes the surrogate's name, the next colour.
        ax: where to draw; a second line there leaves ReLU as it is.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> ax = plot.summed_slope(neurons.MSF(D=4))
        >>> ax = plot.summed_slope([1, 2, 3, 4], "atan", ax=ax)
        >>> [line.get_label() for line in ax.lines]
        ["ReLU's derivative", 'rectangular, width 0.5', 'atan, width 2']
    """
    if isinstance(source, list | tuple):
        if surrogate is None:
            raise ValueError("thresholds alone have no slope: give a surrogate")
        thresholds = [float(theta) for theta in source]
        surrogate = Surrogate(surrogate) if isinstance(surrogate, str) else surrogate
    else:
        if surrogate is not None:
            raise ValueError("a neuron has a surrogate of its own: give thresholds to draw another one")
        held = _held(source)
        if getattr(held, "burst", False):
            raise ValueError("with burst spikes the slope repeats itself at every threshold: set burst=False")
        thresholds, surrogate = _thresholds(held), held.surrogate
    assert surrogate is not None
    low, high = min(0.0, thresholds[0] - 1.5), thresholds[-1] + 1.5
    # between round numbers, where windows meet: there the rectangle is 0 at single points
    u = low + (torch.arange(4000, dtype=torch.float64) + 0.5) * ((high - low) / 4000)
    (ax,) = _subplots(ax, 1, 1, (7, 3))
    if not ax.lines:
        style: dict[str, Any] = {
            "color": GREY,
            "linewidth": 2.5,
            "linestyle": "-",
            "label": "ReLU's derivative",
        }
        ax.step([min(low, -0.5), 0.0, high], [0.0, 0.0, 1.0], where="pre", **style)
        shown = len(thresholds) <= 16
        ax.set_xticks([0.0, *thresholds] if shown else [0.0, thresholds[0], thresholds[-1]])
    name = getattr(surrogate, "name", type(surrogate).__name__)
    width = getattr(surrogate, "width", None)
    text = name if width is None else f"{name}, width {width:.3g}"
    slopes = _summed_slope(u, thresholds, surrogate)
    ax.plot(u, slopes, color=_color(ax, color), linewidth=1.5, label=label or text)
    _dress(ax, "membrane, V (ticks: thresholds)", "slope, count per V")
    ax.legend(frameon=False, fontsize="small")
    return ax


# ---------------------------------------------------------------- dead and hyperactive neurons


@dataclass
class LayerActivity:
    """What one layer fired: sums over all samples and steps that were seen, for each of its neurons."""

    kind: str
    high: float
    seen: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Spikes of each neuron, [*] of one step [N, *]."""
    active: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Steps in which each neuron fired at least once, [*]."""
    largest: float = 0.0
    """Largest count in one step."""

    def add(self, s_seq: Tensor) -> None:
        """Count ``s_seq`` [M, *], M samples and steps."""
        s_seq = s_seq.detach().to(torch.float64)
        total, active = (part.sum(0).cpu() for part in (s_seq, (s_seq > 0).double()))
        if self.seen and total.shape != self.total.shape:
            raise ValueError(
                f"this layer had {tuple(self.total.shape)} neurons before and has {tuple(total.shape)} now: its report "
                "needs inputs of one size"
            )
        self.total = self.total + total if self.seen else total
        self.active = self.active + active if self.seen else active
        self.seen += len(s_seq)
        self.largest = max(self.largest, float(s_seq.max()) if s_seq.numel() else 0.0)

    @property
    def rate(self) -> Tensor:
        """Spikes per step of each neuron, [*]."""
        return self.total / self.seen

    @property
    def dead(self) -> Tensor:
        """Neurons that never fired, bool [*]."""
        return self.active == 0

    @property
    def hyperactive(self) -> Tensor:
        """Neurons that fired in at least the share ``high`` of all steps, bool [*]."""
        return (self.active >= self.high * self.seen) & ~self.dead


@dataclass
class Activity:
    """The report of :func:`activity`: print it, plot it, or read ``layers``, by path in the network."""

    high: float
    layers: dict[str, LayerActivity] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [("layer", "neuron", "neurons", "spikes/step", "largest", "dead", "hyperactive")]
        for path, layer in self.layers.items():
            dead, hyperactive = _percent(layer.dead), _percent(layer.hyperactive)
            numbers = f"{layer.total.numel():,}", f"{float(layer.rate.mean()):.4f}", f"{layer.largest:g}"
            rows.append((path or "(root)", layer.kind, *numbers, f"{dead:.1f} %", f"{hyperactive:.1f} %"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = [
            [
                cell.rjust(width) if i > 1 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            for row in rows
        ]
        aligned.insert(1, ["-" * width for width in widths])
        foot = f"dead: never fired; hyperactive: fired in at least {100 * self.high:g} % of all steps"
        return "\n".join(["  ".join(row) for row in aligned] + [foot])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Shares of dead, ordinary and hyperactive neurons, a bar for each layer, first layer on top."""
        if not self.layers:
            raise ValueError("no layer has fired yet: run the network inside the with block first")
        (ax,) = _subplots(ax, 1, 1, (7, 1.2 + 0.4 * len(self.layers)))
        names = [f"{path or '(root)'} ({layer.kind})" for path, layer in self.layers.items()]
        dead = [_percent(layer.dead) for layer in self.layers.values()]
        hyper = [_percent(layer.hyperactive) for layer in self.layers.values()]
        left = [0.0] * len(names)
        ordinary = [100 - a - b for a, b in zip(dead, hyper, strict=True)]
        parts = (
            ("dead", dead, GREY, "//"),
            ("ordinary", ordinary, SKY, ""),
            ("hyperactive", hyper, RED, "xx"),
        )
        for label, shares, color, hatch in parts:
            style: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
            ax.barh(range(len(names)), shares, left=left, height=0.65, label=label, **style)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        for row, layer in enumerate(self.layers.values()):
            rate = float(layer.rate.mean())
            ax.text(101, row, f"{rate:.3g} spikes/step", va="center", fontsize="small")
        ax.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 100))
        ax.invert_yaxis()
        _dress(ax, "share of neurons, %", "")
        ax.grid(axis="y", visible=False)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize="small")
        return ax


def _percent(which: Tensor) -> float:
    return 100 * float(which.double().mean())


@contextmanager
def activity(net: nn.Module, high: float = 0.9) -> Iterator[Activity]:
    """Watch the neurons of a network: which never fire, which fire nearly always.

    Every neuron of ``net``, bare or held by a node, is counted in every forward pass inside the ``with`` block, whether
    it runs step by step or over whole sequences.

    Args:
        net: a network, or a single neuron or node.
        high: a neuron is hyperactive that fires in at least this share of all steps, in (0, 1].

    Raises:
        ValueError: no such neuron in ``net``.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> neuron = neurons.MSF(D=2)
        >>> with plot.activity(neuron) as report:
        ...     _ = neuron(torch.tensor([[[0.0, 1.0, 3.0]], [[0.0, 0.0, 3.0]]]))
        >>> print(report)
        layer   neuron  neurons  spikes/step  largest    dead  hyperactive
        ------  ------  -------  -----------  -------  ------  -----------
        (root)  MSF           3       0.8333        2  33.3 %       33.3 %
        dead: never fired; hyperactive: fired in at least 90 % of all steps
        >>> ax = report.plot()
    """
    if not 0 < high <= 1:
        raise ValueError(f"high, a share of all steps, must lie in (0, 1], got {high!r}")
    nodes = {path: m for path, m in net.named_modules() if isinstance(getattr(m, "neuron", None), Neuron)}
    inside = {id(node.neuron) for node in nodes.values()}
    bare = {path: m for path, m in net.named_modules() if isinstance(m, Neuron) and id(m) not in inside}
    if not nodes and not bare:
        raise ValueError("this network has no neuron of msf_pmsn_plugins that could be watched")
    report = Activity(high)

    def watch(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            s = output[0] if isinstance(output, tuple) else output
            kind = type(getattr(module, "neuron", module)).__name__
            step_by_step = (
                getattr(module, "step_mode", "m") == "s" or getattr(module, "sequence", True) is False
            )
            layer = report.layers.setdefault(path, LayerActivity(kind, high))
            layer.add(s if step_by_step else s.flatten(0, 1))

        return hook

    handles = [module.register_forward_hook(watch(path)) for path, module in (nodes | bare).items()]
    try:
        yield report
    finally:
        for handle in handles:
            handle.remove()
