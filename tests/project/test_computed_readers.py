"""Who reads a computed parameter outside a call reads it as it is now, though no hook of torch's has run since."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm

from helpers import randn
from msf_pmsn_plugins.neurons import MSF, MSN, PMSN
from msf_pmsn_plugins.neurons.pmsn import PARAMETERS
from networks import nodes_for
from tolerances import F32, assert_close

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")

C = 4
X_SEQ = 2 * randn(6, 3, C, dtype=F32)


def several():
    return nn.Parameter(torch.linspace(0.3, 0.5, C))


MAKERS = {
    "threshold": (lambda: MSF(1, learn_threshold=True), "v_threshold"),
    "thresholds of channels": (lambda: MSF(1, v_threshold=several()), "v_threshold"),
    "reset": (lambda: MSF(1, reset_mode="soft", reset_step=several()), "reset_step"),
    "decay": (lambda: MSF(1, learn_decay=True), "decay_logit"),
    "decays": (lambda: MSF(1, decay=several()), "_decay"),
    "charge": (lambda: MSF(1, charge="plif", w=0.5), "w"),
    **{name: (lambda: PMSN(C), name) for name in PARAMETERS},
    "leak of MSN": (lambda: MSN(C, 3), "log_tau"),
    "coupling of MSN": (lambda: MSN(C, 3), "beta_up"),
    "feedback of MSN": (lambda: MSN(C, 3), "beta_down"),
    "gain of MSN": (lambda: MSN(C, 3), "gamma"),
    "time of MSN": (lambda: MSN(C, 3), "log_dt"),
}
SINGLE = ("threshold", "decay", "charge")
MSFS = ("threshold", "thresholds of channels", "reset", "decay", "decays", "charge")
MSNS = tuple(case for case in MAKERS if case.endswith("MSN"))


def pair(case, way):
    """A neuron with a parameter that is computed, changed since its hook ran, and a plain one of the same numbers."""
    make, name = MAKERS[case]
    torch.manual_seed(0)
    held, plain = make(), make()
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.1 * torch.rand_like(p))
    held.load_state_dict(plain.state_dict())
    if way == "pruned":
        prune.custom_from_mask(held, name, torch.ones_like(getattr(plain, name)))
    else:
        weight_norm(held, name)
    with torch.no_grad():
        held(X_SEQ)  # the hook leaves a value that does not learn
        getattr(held, f"{name}_orig" if way == "pruned" else f"{name}_g").mul_(1.5)
        getattr(plain, name).mul_(1.5)
    assert not torch.allclose(getattr(held, name), getattr(plain, name))
    return held, plain


def node_of(host, held):
    module, name = nodes_for(host), type(held).__name__
    if host == "spikingjelly":
        return getattr(module, f"{name}Node").from_neuron(held, step_mode="m")
    return getattr(module, name).from_neuron(held)


def words_of(node):
    values = {word: getattr(node, word, None) for word in ("v_threshold", "threshold", "beta", "w", "tau")}
    return {word: torch.as_tensor(value) for word, value in values.items() if value is not None}


def shown(host):
    return lambda held: words_of(node_of(host, held))


def stock(host):
    def read(held):
        node = node_of(host, held)
        made, lost = importlib.import_module(f"msf_pmsn_plugins.{host}.host").as_stock(node)
        parameters = torch.tensor(
            sorted(name in dict(made.named_parameters()) for name in ("w", "beta", "threshold"))
        )
        return words_of(made) | {"lost": torch.tensor(len(lost)), "learned": parameters}

    return read


def nir_file(held):
    pytest.importorskip("nir")
    pytest.importorskip("nirtorch")
    from msf_pmsn_plugins.nir import export_to_nir

    graph = export_to_nir(node_of("spikingjelly", held), X_SEQ)
    (node,) = (node for node in graph.nodes.values() if hasattr(node, "shape"))
    return {k: torch.as_tensor(v) for k, v in vars(node).items() if isinstance(v, float | int | np.ndarray)}


def tied(held):
    return dict(held.tie(tolerance=10.0).named_parameters())


def plotted(held):
    pytest.importorskip("matplotlib")
    from msf_pmsn_plugins.plot.compartments import _spectrum
    from msf_pmsn_plugins.plot.frequency import _charge_gains

    return dict(enumerate(_charge_gains(held) if isinstance(held, MSF) else _spectrum(held)))


def thresholds(held):
    return {"thresholds": torch.tensor(held.thresholds)}


def computed(held):
    s_seq, _state, m_seq = held.sequence(X_SEQ, membrane=True)
    s, _state, m = held.step(X_SEQ[0], held.initial_state(X_SEQ[0]))
    return {"s_seq": s_seq, "m_seq": m_seq, "s": s, "m": m}


READERS = {
    "shown by spikingjelly": (shown("spikingjelly"), SINGLE),
    "shown by snntorch": (shown("snntorch"), ("threshold", "thresholds of channels", "decay", "decays")),
    "stock of spikingjelly": (stock("spikingjelly"), SINGLE),
    "stock of snntorch": (stock("snntorch"), ("threshold", "thresholds of channels", "decay", "decays")),
    "nir": (nir_file, (*MSFS, *PARAMETERS)),
    "tie": (tied, PARAMETERS),
    "plot": (plotted, ("decay", "decays", "charge", "log_dt", "log_A_real", "A_imag")),
    "thresholds": (thresholds, ("threshold",)),
    "sequence": (computed, (*MSFS, *PARAMETERS, *MSNS)),
}


@pytest.mark.parametrize("way", ["pruned", "weight norm"])
@pytest.mark.parametrize(
    ("reader", "case"), [(reader, case) for reader, (_, cases) in READERS.items() for case in cases]
)
def test_it_is_read_as_it_is_now(reader, case, way):
    read, _cases = READERS[reader]
    if way == "weight norm" and MAKERS[case][0]().get_parameter(MAKERS[case][1]).dim() == 0:
        way = "pruned"  # torch normalises vectors
    held, plain = pair(case, way)
    ours, expected = read(held), read(plain)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(torch.as_tensor(ours[name]).float(), value.float(), "adjoint")
