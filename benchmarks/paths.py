"""The ways in which users call the neurons, each beside the host's own neuron on the same path.

Loops of single steps, stored membranes, every surrogate object of both hosts, numbers that are learned or differ
between channels, other memory layouts. Ours is MSF with four thresholds, or PMSN; the host's neuron has one threshold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from clock import interleaved
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]  # [T, B, C, *] -> spikes of the same shape

LOOPS = [(25, 128, 1000), (100, 16, 128), (100, 1, 128)]
STORED = [(32, 16, 64, 16, 16), (128, 32, 256), (784, 16, 128)]
PLAIN = (128, 32, 256)
TOY = {len(shape): tuple([3, 2, 4, 2, 2][: len(shape)]) for shape in (PLAIN, STORED[0])}


@dataclass(frozen=True)
class Path:
    """One way of calling, ours and what it is compared with.

    Args:
        name: of the path.
        detail: of this row: a surrogate, a layout ..
        neuron: ``"MSF"`` or ``"PMSN"``.
        shape: [T, B, C, *].
        ours, host: make a callable from the channel count; ``host`` is ours on the plain path for a layout.
        lay_out: what is done to the input before the clock starts.
    """

    name: str
    detail: str
    neuron: str
    shape: tuple[int, ...]
    ours: Callable[[int], Forward]
    host: Callable[[int], Forward]
    against: str
    lay_out: Callable[[Tensor], Tensor] = torch.clone


def _parameters(forward: Forward) -> list[nn.Parameter]:
    module = getattr(forward, "module", None)
    return [p for p in module.parameters() if p.requires_grad] if isinstance(module, nn.Module) else []


class Whole:
    """A SpikingJelly node on whole sequences, reset before each."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, x_seq: Tensor) -> Tensor:
        self.module.reset()
        return self.module(x_seq)


class Steps(Whole):
    """A SpikingJelly node step by step."""

    def __call__(self, x_seq: Tensor) -> Tensor:
        self.module.reset()
        return torch.stack([self.module(x) for x in x_seq.unbind(0)])


class Loop:
    """A snnTorch neuron in the loop of its tutorials."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, x_seq: Tensor) -> Tensor:
        mem, spikes = self.module.reset_mem(), []
        for x in x_seq.unbind(0):
            spk, mem = self.module(x, mem)
            spikes.append(spk)
        return torch.stack(spikes)


class Sequence:
    """One of our snnTorch neurons on whole sequences."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, x_seq: Tensor) -> Tensor:
        self.module.reset_mem()
        return self.module(x_seq)[0]


def _surrogates() -> Iterator[tuple[str, Any]]:
    """The objects of SpikingJelly, then those of snnTorch, by name; those that draw at random or learn left out."""
    import inspect

    from snntorch import surrogate as snntorch_surrogates
    from spikingjelly.activation_based import surrogate

    from msf_pmsn_plugins.surrogate import gives_slopes

    for name, kind in inspect.getmembers(surrogate, inspect.isclass):
        base = getattr(surrogate, "SurrogateFunctionBase", ())
        own = kind.__module__ == surrogate.__name__ and (not base or issubclass(kind, base))
        if own and not name.endswith("Base"):
            try:
                made = kind()
            except TypeError:
                continue
            if gives_slopes(made):
                yield f"SpikingJelly {name}", made
    for name in ("atan", "fast_sigmoid", "sigmoid", "triangular", "straight_through_estimator"):
        yield f"snnTorch {name}", getattr(snntorch_surrogates, name)()


def paths(fast: bool = False) -> Iterator[Path]:
    """All rows of the benchmark; ``fast`` has every path at toy size."""
    for path in _paths():
        if not fast:
            yield path
        else:
            yield Path(**{**vars(path), "shape": TOY[len(path.shape)]})


def _paths() -> Iterator[Path]:
    import snntorch
    from snntorch import surrogate as snntorch_surrogates
    from spikingjelly.activation_based import neuron

    from msf_pmsn_plugins import snntorch as ours
    from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode

    nodes: dict[str, Any] = {
        "MSF": lambda c, **k: MSFNode.published(D=4, **k),
        "PMSN": lambda c, **k: PMSNNode(c, **k),
    }
    neurons: dict[str, Any] = {"MSF": lambda c, **k: ours.MSF(beta=0.5, D=4, **k), "PMSN": ours.PMSN}
    for kind in ("MSF", "PMSN"):
        for shape in LOOPS:
            yield Path(
                "snnTorch's loop",
                "",
                kind,
                shape,
                lambda c, kind=kind: Loop(neurons[kind](c)),
                lambda c: Loop(snntorch.Leaky(0.5)),
                "Leaky",
            )
            fast_sigmoid = snntorch_surrogates.fast_sigmoid()  # as most of its tutorials have it
            yield Path(
                "snnTorch's loop",
                "spike_grad=fast_sigmoid()",
                kind,
                shape,
                lambda c, kind=kind, made=fast_sigmoid: Loop(neurons[kind](c, spike_grad=made)),
                lambda c, made=fast_sigmoid: Loop(snntorch.Leaky(0.5, spike_grad=made)),
                "Leaky",
            )
            yield Path(
                'SpikingJelly, step_mode="s"',
                "",
                kind,
                shape,
                lambda c, kind=kind: Steps(nodes[kind](c)),
                lambda c: Steps(neuron.LIFNode()),
                "LIFNode",
            )
        for shape in STORED:
            yield Path(
                "store_v_seq=True",
                "",
                kind,
                shape,
                lambda c, kind=kind: Whole(nodes[kind](c, step_mode="m", store_v_seq=True)),
                lambda c: Whole(neuron.LIFNode(step_mode="m", store_v_seq=True)),
                "LIFNode",
            )
        for name, made in _surrogates():
            host = made if name.startswith("SpikingJelly") else None
            if host is None:
                yield Path(
                    "surrogate objects",
                    name,
                    kind,
                    PLAIN,
                    lambda c, kind=kind, made=made: Sequence(
                        neurons[kind](c, spike_grad=made, sequence=True)
                    ),
                    lambda c, made=made: Loop(snntorch.Leaky(0.5, spike_grad=made)),
                    "Leaky",
                )
            else:
                yield Path(
                    "surrogate objects",
                    name,
                    kind,
                    PLAIN,
                    lambda c, kind=kind, made=made: Whole(
                        nodes[kind](c, step_mode="m", surrogate_function=made)
                    ),
                    lambda c, made=made: Whole(neuron.LIFNode(step_mode="m", surrogate_function=made)),
                    "LIFNode",
                )
    yield from _numbers(neurons["MSF"])
    yield from _layouts(nodes)


def _numbers(make: Any) -> Iterator[Path]:
    """Decay, threshold and reset that are learned or differ between channels."""
    import snntorch
    from spikingjelly.activation_based import neuron

    from msf_pmsn_plugins.neurons import MSF

    rows: list[tuple[str, dict[str, Any]]] = [
        ("learned decay", {"learn_beta": True}),
        ("learned threshold", {"learn_threshold": True}),
        ("both learned", {"learn_beta": True, "learn_threshold": True}),
        ("reset_mechanism='subtract'", {"reset_mechanism": "subtract"}),
    ]
    for name, settings in rows:
        yield Path(
            "learned numbers, resets",
            name,
            "MSF",
            PLAIN,
            lambda c, s=settings: Sequence(make(c, sequence=True, **s)),
            lambda c, s=settings: Loop(snntorch.Leaky(0.5, **s)),
            "Leaky",
        )

    class Bare:
        """A neuron without a host."""

        def __init__(self, module: Any) -> None:
            self.module = module

        def __call__(self, x_seq: Tensor) -> Tensor:
            return self.module(x_seq)[0]

    for name, bare in (
        ("a decay and a threshold for each channel", {"per_channel": True}),
        ("I-LIF", {"thresholds": [0.5, 1.5, 2.5, 3.5], "reset_mode": "soft", "reset_step": 1.0}),
    ):

        def build(c: int, bare: dict[str, Any] = bare) -> Forward:
            if "per_channel" in bare:
                return Bare(MSF(decay=torch.rand(c), v_threshold=torch.rand(c) + 0.5))
            return Bare(MSF(**bare))

        host = getattr(neuron, "ILIFNode", None) if name == "I-LIF" else None
        yield Path(
            "learned numbers, resets",
            name,
            "MSF",
            PLAIN,
            build,
            (lambda c, host=host: Whole(host(step_mode="m")))
            if host
            else (lambda c: Loop(snntorch.Leaky(torch.rand(c)))),
            "ILIFNode" if host else "Leaky",
        )


def _layouts(nodes: dict[str, Any]) -> Iterator[Path]:
    """Against ourselves on contiguous input."""

    def channels_last(x: Tensor) -> Tensor:
        return x.flatten(0, 1).to(memory_format=torch.channels_last).view(x.shape)

    def batch_first(x: Tensor) -> Tensor:
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    for name, shape, lay_out in (
        ("channels_last", STORED[0], channels_last),
        ("batch first", PLAIN, batch_first),
    ):
        for kind in ("MSF", "PMSN"):
            build = functools.partial(lambda c, kind: Whole(nodes[kind](c, step_mode="m")), kind=kind)
            yield Path("layouts", name, kind, shape, build, build, "contiguous", lay_out)


def _calls(forward: Forward, x: Tensor, gs: Tensor) -> dict[str, Callable[[], Any]]:
    x = x.detach().requires_grad_()
    leaves = [x, *_parameters(forward)]

    def inference() -> Tensor:
        with torch.no_grad():
            return forward(x)

    def training() -> Any:
        return torch.autograd.grad(forward(x), leaves, gs, allow_unused=True)

    return {"inference": inference, "training": training}


def measure(path: Path, rounds: int, budget: float) -> dict[str, Any]:
    """Medians of both, in turns, one thread."""
    torch.manual_seed(0)
    x, gs = torch.randn(path.shape), torch.randn(path.shape)
    laid, gs_laid = path.lay_out(x), path.lay_out(gs)
    ours = _calls(path.ours(path.shape[2]), laid, gs_laid)
    host = _calls(path.host(path.shape[2]), x, gs)
    _check(path, ours, host, laid)
    row: dict[str, Any] = {key: getattr(path, key) for key in ("name", "detail", "neuron", "against")}
    row["shape"] = list(path.shape)
    for mode in ("training", "inference"):
        times = interleaved({"ours": ours[mode], "host": host[mode]}, rounds, budget)
        (mine, best), (theirs, their_best) = times["ours"], times["host"]
        row[mode] = {"ours": mine, "host": theirs, "ratio": theirs / mine, "best": their_best / best}
    return row


def _check(path: Path, ours: Any, host: Any, laid: Tensor) -> None:
    """Counts of the right shape; on another layout the same numbers."""
    s = ours["inference"]()
    if s.shape != laid.shape or not bool((s == s.round()).all()):
        raise SystemExit(f"{path.name} {path.detail}: counts in the shape of the input expected")
    if path.against == "contiguous" and path.neuron == "MSF" and not torch.equal(s, host["inference"]()):
        raise SystemExit(f"{path.name} {path.detail}: other spikes than on contiguous input")


def line(row: dict[str, Any]) -> str:
    """One row, to be printed while others are measured."""
    what = ", ".join(filter(None, (row["name"], row["detail"], row["neuron"], str(row["shape"]))))
    ratios = ", ".join(f"{mode} {row[mode]['ratio']:.2f}" for mode in ("training", "inference"))
    return f"{what}: against {row['against']} {ratios}"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, a table a path."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        lines += [
            f"### {name}",
            "",
            "| | shape | against | training | inference |",
            "| --- | --- | --- | ---: | ---: |",
        ]
        for row in (row for row in rows if row["name"] == name):
            label = row["neuron"] + (f", {row['detail']}" if row["detail"] else "")
            lines.append(
                f"| {label} | {row['shape']} | {row['against']} | {row['training']['ratio']:.2f} | "
                f"{row['inference']['ratio']:.2f} |"
            )
        lines.append("")
    return "\n".join(lines)
