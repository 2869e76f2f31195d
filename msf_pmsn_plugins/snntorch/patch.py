"""snnTorch's own calls made right for our neurons, inside a ``with`` block."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .states import reset
from .training import BPTT, RTRL, TBPTT

__all__ = ["patched"]


@contextmanager
def patched() -> Iterator[None]:
    """Inside, snnTorch's own calls are right for the neurons here; outside, snnTorch is as it was.

    ``snntorch.utils.reset`` is :func:`reset`; ``snntorch.backprop.BPTT``, ``TBPTT`` and ``RTRL`` are those of this
    module; ``snntorch.import_nir.import_from_nir`` refuses a graph with our nodes (0.9.4 drops what it does not know).
    A name that was imported before (``from snntorch.utils import reset``) stays what it was.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # for the import alone
        from snntorch import backprop, utils
    places: list[tuple[Any, str, Any]] = [(utils, "reset", reset)]
    places += [(backprop, driver.__name__, driver) for driver in (BPTT, TBPTT, RTRL)]
    try:
        from snntorch import import_nir
    except ImportError:  # without nir there is nothing to refuse
        pass
    else:
        places.append((import_nir, "import_from_nir", _refusing(import_nir.import_from_nir)))
    before = [getattr(module, name) for module, name, _ in places]
    try:
        for module, name, ours in places:
            setattr(module, name, ours)
        yield
    finally:
        for (module, name, _), old in zip(places, before, strict=True):
            setattr(module, name, old)


def _refusing(importer: Callable[..., Any]) -> Callable[..., Any]:
    def import_from_nir(graph: Any, *args: Any, **kwargs: Any) -> Any:
        for name, node in graph.nodes.items():
            if type(node).__module__.startswith("msf_pmsn_plugins."):
                raise TypeError(
                    f"snnTorch does not know the node {name!r} ({type(node).__name__}): use "
                    "msf_pmsn_plugins.nir.import_from_nir"
                )
        return importer(graph, *args, **kwargs)

    return import_from_nir
