"""Files with nodes of NIR and of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from .. import __version__
from .libraries import nir
from .nodes import OURS


@contextmanager
def registered() -> Iterator[None]:
    """See :func:`msf_pmsn_plugins.nir.registered`."""
    listed = getattr(nir.ir, "__all_ir", None)
    if not (isinstance(listed, list) and "LIF" in listed and callable(getattr(nir.ir, "dict2NIRNode", None))):
        raise RuntimeError(
            f"nir {nir.version} keeps its list of nodes in another place, so ours cannot be read: install nir>=1.0.7,<2"
        )
    new = {name: cls for name, cls in OURS.items() if getattr(nir.ir, name, None) is not cls}
    if taken := sorted(name for name in new if name in listed or hasattr(nir.ir, name)):
        raise RuntimeError(f"nir {nir.version} has nodes of its own named {taken}")
    try:
        for name, cls in new.items():
            listed.append(name)
            setattr(nir.ir, name, cls)
        yield
    finally:
        for name in new:
            listed.remove(name)
            delattr(nir.ir, name)


def read(path: str | Path) -> Any:
    """See :func:`msf_pmsn_plugins.nir.read`."""
    with h5py.File(path, "r") as file:
        if "node" not in file:
            raise ValueError(f"{path} is no NIR file: it has no group 'node', only {sorted(file)}")
        kinds: set[str] = set()
        file["node"].visititems(
            lambda name, item: kinds.add(item[()].decode()) if name.split("/")[-1] == "type" else None
        )
    with registered():
        unknown = sorted(kind for kind in kinds if kind not in getattr(nir.ir, "__all_ir"))
        if unknown:
            raise ValueError(
                f"{path} holds nodes that neither nir {nir.version} nor msf-pmsn-plugins {__version__} knows: "
                f"{', '.join(unknown)}. Another package wrote them: read the file with it"
            )
        graph = nir.read(path, type_check=False)
        for node in graph.nodes.values():
            if isinstance(node, nir.Conv2d) and node.input_shape is not None:
                _set_types(node)
        graph.infer_types()
        graph.check_types()
        return graph


def _set_types(conv: Any) -> None:
    """The shapes around a convolution; NIR's own take every kernel for a square one, and groups for one."""
    channels, inputs, *kernel = conv.weight.shape
    size = nir.ir.utils.calculate_conv_output(
        conv.input_shape, conv.padding, conv.dilation, kernel, conv.stride
    )
    conv.input_type = {"input": np.array([inputs * int(conv.groups), *conv.input_shape])}
    conv.output_type = {"output": np.array([channels, *size])}
