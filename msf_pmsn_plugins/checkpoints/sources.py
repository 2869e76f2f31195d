"""What is published: how to know the state dict of each script, and what it leaves open."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..neurons import MSF, PMSN, Neuron


def _last_convolutions(names: Collection[str]) -> set[str]:
    """The convolution after the last neuron of each stage: computed and thrown away by the published forward."""
    found: dict[str, int] = {}
    for name in names:
        if at := re.match(r"(linear_layers2?)\.(\d+)\.", name):
            found[at[1]] = max(int(at[2]), found.get(at[1], 0))
    ends = tuple(f"{stage}.{last}." for stage, last in found.items())
    return {name for name in names if name.startswith(ends)} if ends else set()


def _none(names: Collection[str]) -> set[str]:
    return set()


@dataclass(frozen=True)
class Source:
    """One published script: how to know its state dict, and what the state dict leaves open.

    ``needs`` and ``lacks`` are patterns of names that must and must not occur. ``settings`` are the attributes that the
    published neurons have, ``notes`` what else a file does not hold; ``unused`` finds entries that the published
    forward pass never uses, which a model may lack.
    """

    neuron: type[Neuron]
    needs: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unused: Callable[[Collection[str]], set[str]] = _none

    def fits(self, names: Collection[str]) -> bool:
        return not self.lacking(names) and not any(re.match(p, n) for p in self.lacks for n in names)

    def lacking(self, names: Collection[str]) -> list[str]:
        """The patterns that no name matches."""
        return [pattern for pattern in self.needs if not any(re.match(pattern, name) for name in names)]


_PMSN = {
    "v_threshold": 1.0,
    "coeff": 1.0,
    "reset_mode": "floor",
    "burst": False,
    "context": "local",
    "dt_scale": 1.0,
}
_MSF = {
    "thresholds": [1.0, 2.0, 3.0, 4.0],
    "decay": 0.25,
    "input_scale": 1.0,
    "charge": ("decay", "decay"),
    "v_reset": 0.0,
    "reset_mode": "hard",
}
_TRIANGLE = "the threshold and the surrogate (triangle, half-width 1 V) are constants of the code"
_RESIDUAL = "spikes are added to those of the neurons before; T and the order of the pixels are the data's"
_FLAGS = (
    "coeff and the reset are flags of the script: the published run is --reset --coeff 0.2. Without --reset it is "
    "reset_mode='none', with --cumsum and without --reset 'cumulative'"
)
_COUNTS = "thresholds, decay and surrogate (rectangular, half-width 0.5) are constants of the code"

SOURCES: dict[str, Source] = {
    "pmsn": Source(
        PMSN,
        (r"(.*\.)?kernel\.log_dt$",),
        settings={"v_threshold": 1.0, "burst": False, "context": "local", "dt_scale": 1.0},
        notes=(
            _TRIANGLE,
            "coeff and the reset are arguments of the published neuron in one script (CIFAR by columns)",
        ),
    ),
    "pmsn-smnist": Source(
        PMSN,
        (r"encoder\.weight$", r"PMSN_layers\.0\.kernel\.log_dt$", r"decoder\.weight$"),
        (r"PMSN_layers2\.",),
        settings=_PMSN,
        notes=(_TRIANGLE, _RESIDUAL),
    ),
    "pmsn-cifar-pixels": Source(
        PMSN,
        (r"PMSN_layers\.0\.kernel\.log_dt$", r"PMSN_layers2\.0\.kernel\.log_dt$", r"fc1\.weight$"),
        settings=_PMSN,
        notes=(_TRIANGLE, _RESIDUAL),
        unused=_last_convolutions,
    ),
    "pmsn-cifar-columns": Source(
        PMSN,
        (r"static_conv\.0\.weight$", r"conv1\.0\.kernel\.log_dt$", r"fc\.1\.kernel\.log_dt$"),
        settings={**_PMSN, "coeff": 0.2},
        notes=(
            _TRIANGLE,
            _FLAGS,
            "T is 32, the width of the image",
        ),
    ),
    "pmsn-shd": Source(
        PMSN,
        (r"hidden1\.0\.weight$", r"hidden1\.[12]\.kernel\.log_dt$", r"fc\.0\.weight$"),
        settings=_PMSN,
        notes=(_TRIANGLE, "T is 250 bins on [0, 1.4] s; 700 inputs are summed 5 to 1"),
    ),
    "pmsn-imagenet": Source(
        PMSN,
        (r"sn1\.kernel\.log_dt$", r"layer1\.0\.sn1\.kernel\.log_dt$", r"pe$"),
        settings=_PMSN,
        notes=(_TRIANGLE, "T is the first axis of pe, published 4; branches are added (cnf='ADD')"),
    ),
    "msf": Source(MSF, (), settings=_MSF, notes=(_COUNTS,)),
    "msf-cifar10": Source(
        MSF,
        (r"conv1\.0\.0\.weight$", r"layer1\.0\.snn_conv1\.1\.0\.weight$", r"fc\.weight$"),
        (r"layer4\.", r"conv2\.", r"backbone\."),
        settings=_MSF,
        notes=(_COUNTS, "T is 1"),
    ),
    "msf-cifar10-dvs": Source(
        MSF,
        (
            r"conv1\.0\.0\.weight$",
            r"conv2\.0\.0\.weight$",
            r"layer1\.0\.snn_conv1\.1\.0\.weight$",
            r"fc\.weight$",
        ),
        (r"layer4\.",),
        settings=_MSF,
        notes=(_COUNTS, "T is 16"),
    ),
    "msf-imagenet": Source(
        MSF,
        (r"conv1\.0\.0\.weight$", r"layer4\.0\.snn_conv1\.1\.0\.weight$", r"fc\.weight$"),
        settings=_MSF,
        notes=(_COUNTS, "T is 1"),
    ),
    "msf-detection": Source(
        MSF,
        (r"backbone\.backbone\.conv1\.0\.0\.weight$", r"head\.stems\.0\.residual_function\.1\.0\.weight$"),
        settings={**_MSF, "thresholds": [float(d) for d in range(1, 9)]},
        notes=(_COUNTS, "T is 1"),
    ),
    "msf-sleep": Source(
        MSF,
        (r"block1\.0\.0\.weight$", r"block2\.0\.0\.weight$", r"block3\.0\.0\.weight$", r"fc\.weight$"),
        settings=_MSF,
        notes=(
            _COUNTS,
            "T is 30 steps of 100 samples; D, decay and the first threshold are arguments of the script",
        ),
    ),
    "msf-sine": Source(
        MSF,
        (r"fc1\.0\.weight$", r"fc2\.0\.weight$"),
        (r"(?!fc[12]\.0\.(weight|bias)$)",),
        settings={**_MSF, "thresholds": [0.5, 1.5, 2.5, 3.5]},
        notes=(_COUNTS, "T is 300; a file of the LIF network has the same names"),
    ),
}


def recognise(source: str | None, names: Collection[str]) -> str:
    """The source that was asked for, checked, or the one that ``names`` are of."""
    special = {name: kind for name, kind in SOURCES.items() if "-" in name}
    alike = [name for name, kind in special.items() if kind.fits(names)]
    if source is None:
        if len(alike) == 1:
            return alike[0]
        raise ValueError(
            f"the names in this file are not those of one published script (alike: {', '.join(alike) or 'none'}). Give "
            "source=..: 'pmsn' or 'msf' for a network of your own that holds the published neuron, or one of "
            f"{', '.join(special)}"
        )
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; known: {', '.join(SOURCES)}")
    if not SOURCES[source].fits(names):
        lacking = SOURCES[source].lacking(names)
        why = (
            f"no name matches {', '.join(lacking)}"
            if lacking
            else "it has names that those files do not have"
        )
        hint = (
            f"It looks like {', '.join(alike)}"
            if alike
            else "Saved by this package? Then use load_state_dict"
        )
        raise ValueError(f"this is no file of {source}: {why}. {hint}")
    return source
