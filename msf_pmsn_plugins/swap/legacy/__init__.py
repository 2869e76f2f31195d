"""Old import names, so that published model files import and build as they are.

::

    with swap.legacy_imports():
        from model import spikformer  # spikingjelly.clock_driven, backend='cupy', timm.models.layers ..
        net = spikformer(...)

What a name stands for: on SpikingJelly 0.0.0.0.14 its own ``clock_driven``; on 2.0.0, which has none, the nodes below.
They have the original's equations in its order of operations, its arguments and its ``state_dict`` keys, and compute
with torch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .layers import LAYOUTS
from .other_packages import timm, unused
from .spikingjelly import old_spikingjelly

__all__ = ["LAYOUTS", "legacy_imports"]

_active = threading.Lock()


@contextmanager
def legacy_imports(*, seq_to_ann: str = "module") -> Iterator[None]:
    """Let published model files import and build unchanged on SpikingJelly 2.0.0 and 0.0.0.0.14, without CuPy.

    Inside the context these resolve: ``spikingjelly.clock_driven`` (neuron, layer, functional, surrogate, encoding,
    rnn, ann2snn, model, accelerating), ``spikingjelly.cext.neuron``, ``backend='cupy'`` on nodes and
    ``functional.set_backend`` (computed with torch where CuPy cannot be had), ``timm.models.layers``,
    ``timm.models.registry``, ``timm.models.vision_transformer._cfg`` (the installed timm at its present place, else the
    few functions that recipes take from it), and einops and torchinfo where they are not installed, for files that
    import them without use.

    On exit ``sys.modules`` and every changed attribute are as before, also after an exception. Models that were built
    inside stay usable: import and build inside, run where you like.

    Args:
        seq_to_ann: the child names of ``SeqToANNContainer`` and ``MultiStepContainer``. ``"module"``: those of the
            2021 snapshot that SEW ResNet's files and checkpoints are made for (``conv1.module.0.weight``);
            ``"sequential"``: those of the releases (``conv1.0.weight``). Either loads the state dict of the other.

    Raises:
        RuntimeError: it is active already. The names belong to the whole process, so there is one at a time: neither
            nested nor in two threads. Other threads see the old names as well while it is active.
        ImportError: SpikingJelly is not installed; or, inside, a name that is not offered.
        ValueError: an unknown ``seq_to_ann``.
    """
    if seq_to_ann not in LAYOUTS:
        raise ValueError(f"seq_to_ann must be one of {LAYOUTS}, got {seq_to_ann!r}")
    if not _active.acquire(blocking=False):
        raise RuntimeError(
            "legacy_imports() is active already, here or in another thread. It changes import names of the whole "
            "process: leave the first context before you enter another"
        )
    try:
        with ExitStack() as changes:
            old_spikingjelly(changes, seq_to_ann)
            timm(changes)
            unused(changes)
            yield
    finally:
        _active.release()
