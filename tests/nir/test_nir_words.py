"""NIR: every word of every constructor that has a node goes through a file to the same outputs, or is refused."""

import inspect
import math

import pytest
import torch
from torch import nn

from msf_pmsn_plugins import neurons
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.surrogate import Custom, Soft, Surrogate, slope

nir = pytest.importorskip("nir", reason="nir is not installed")
pytest.importorskip("nirtorch", reason="nirtorch is not installed")
snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from nir_nets import BATCH, STEPS, randn, rest, steps  # noqa: E402
from spikingjelly.activation_based import surrogate as host_surrogate  # noqa: E402

from msf_pmsn_plugins import snntorch as of_snntorch  # noqa: E402
from msf_pmsn_plugins import spikingjelly as of_spikingjelly  # noqa: E402
from msf_pmsn_plugins.nir import export_to_nir, import_from_nir  # noqa: E402
from tolerances import assert_same  # noqa: E402

CHANNELS, WIDTH = 4, 3
SEQUENCES = {"snntorch": {"sequence": True}, "spikingjelly": {"step_mode": "m"}}


def spread(*shape):
    """Numbers in (0.3, 0.9)."""
    return 0.3 + 0.6 * torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def fires_above(u):
    return (u > 0).to(u.dtype)


class Case:
    """Words for a constructor, and who refuses them: ``export`` or a host, with what the message says."""

    def __init__(self, refused=None, **words):
        self.words, self.refused = words, refused or {}

    def __repr__(self):
        return ",".join(f"{name}={_brief(value)}" for name, value in self.words.items())


def _brief(value):
    if isinstance(value, torch.Tensor):
        return f"{type(value).__name__}{list(value.shape)}"
    return getattr(value, "__name__", type(value).__name__) if callable(value) else value


def refused(export=None, snntorch=None, spikingjelly=None, **words):
    given = {"export": export, "snntorch": snntorch, "spikingjelly": spikingjelly}
    return Case({name: message for name, message in given.items() if message}, **words)


def same(**words):
    return Case(**words)


SOFT, SUBTRACT, NONE = "before the decay", "no reset 'subtract'", "no reset 'none'"
FACTOR, PRODUCT = "no graded_spikes_factor", "no charge="

MSF_SURROGATES = [
    same(surrogate="sigmoid"),
    same(surrogate=Surrogate("atan", 3.0)),
    same(surrogate=Custom(lambda u: slope(u, "atan", 1.0))),
    same(surrogate=Soft("atan", 0.0)),
    refused(surrogate=Soft("atan"), export="parts of spikes"),
    refused(surrogate=torch.sigmoid, export="does not fire as the step"),
    refused(surrogate=fires_above, export="does not fire as the step"),
]
RATES = {"decay": {}, "none": {}, "tau": {"tau": 3.0}, "w": {"w": 0.4}}
MSF_CHARGES = [
    Case({} if name == "decay" else {"snntorch": PRODUCT}, charge=name, **RATES[charge.rate])
    for name, charge in CHARGES.items()
]
MSF_PAIRS = [
    refused(charge=("lif_product", "lif"), tau=3.0, snntorch=PRODUCT),
    refused(charge=("lif", "if"), tau=3.0, snntorch=PRODUCT),
    refused(charge=("if", "lif"), tau=3.0, snntorch=PRODUCT),
    refused(charge=("decay", "if"), snntorch=PRODUCT),
    refused(charge=("if", "decay"), snntorch=PRODUCT),
    refused(charge=("plif", "plif_product"), w=0.4, snntorch=PRODUCT),
    refused(charge=("plif", "lif"), tau=3.0, w=0.4, export="two rates"),
    refused(charge=("lif", "plif"), tau=3.0, w=0.4, export="two rates"),
    refused(charge=("decay", "lif"), tau=3.0, export="two rates"),
]
MSF_RATES = [
    refused(charge="plif", w=torch.linspace(-1, 1, CHANNELS), snntorch=PRODUCT),
    refused(charge="lif", tau=1.1, snntorch=PRODUCT),
]
AMOUNTS = (0.3, -0.2, 1.7, spread(CHANNELS), nn.Parameter(torch.tensor(0.3)), nn.Parameter(spread(CHANNELS)))

WORDS = {
    neurons.MSF: {
        "D": [same(D=1), same(D=6)],
        "decay": [
            same(decay=0.0),
            same(decay=1.0),
            same(decay=0.9),
            same(decay=spread(CHANNELS)),
            same(decay=spread(CHANNELS, WIDTH)),
            same(decay=nn.Parameter(spread(CHANNELS))),
        ],
        "input_scale": [same(input_scale=0.6), same(input_scale=-1.0)],
        "v_threshold": [
            same(v_threshold=0.3),
            same(v_threshold=torch.tensor(0.3)),
            same(v_threshold=spread(CHANNELS)),
            same(v_threshold=nn.Parameter(-spread(CHANNELS))),
        ],
        "threshold_step": [same(threshold_step=0.1)],
        "v_reset": [refused(v_reset=-0.25, snntorch="no v_reset=-0.25")],
        "reset_mode": [
            same(reset_mode="hard"),
            refused(reset_mode="soft", snntorch=SOFT),
            refused(reset_mode="none", spikingjelly=NONE),
        ],
        "detach_reset": [
            same(detach_reset=False),
            refused(detach_reset=False, reset_mode="soft", snntorch=SOFT),
        ],
        "surrogate": MSF_SURROGATES,
        "charge": MSF_CHARGES + MSF_PAIRS,
        "tau": MSF_RATES,
        "w": MSF_RATES,
        "thresholds": [same(thresholds=[0.25, 0.75, 2.0]), same(thresholds=[0.4])],
        "learn_decay": [same(learn_decay=True), same(learn_decay=True, decay=spread(CHANNELS))],
        "learn_threshold": [
            same(learn_threshold=True),
            same(learn_threshold=True, v_threshold=spread(CHANNELS, WIDTH)),
        ],
        "reset_step": [refused(reset_step=amount, reset_mode="soft", snntorch=SOFT) for amount in AMOUNTS]
        + [
            refused(reset_step=amount, reset_mode="soft", retake=True, spikingjelly=SUBTRACT)
            for amount in AMOUNTS
        ],
        "reset_delay": [
            same(reset_delay=True),
            refused(reset_delay=True, reset_mode="soft", spikingjelly=SUBTRACT),
            refused(reset_delay=True, reset_mode="none", spikingjelly=NONE),
        ],
        "retake": [
            same(retake=True),
            refused(retake=True, reset_mode="soft", spikingjelly=SUBTRACT),
            refused(retake=True, reset_delay=True, reset_mode="soft", spikingjelly=SUBTRACT),
        ],
        "channel_dim": [
            same(channel_dim=-1, decay=spread(WIDTH)),
            same(channel_dim=(1, 2), decay=spread(CHANNELS * WIDTH)),
        ],
        "backend": [same(backend="torch")],
    },
    neurons.PMSN: {
        "channels": [same(channels=CHANNELS)],
        "compartments": [same(compartments=2), same(compartments=9)],
        "channel_dim": [
            same(channel_dim=(1, 2), channels=CHANNELS * WIDTH),
            same(channel_dim=-1, channels=WIDTH),
        ],
        "v_threshold": [same(v_threshold=0.3)],
        "surrogate": MSF_SURROGATES,
        "init": [same(init=name) for name in ("sequence", "shd", "imagenet")],
        "reset_mode": [same(reset_mode=name) for name in ("floor", "serial", "none", "cumulative")],
        "burst": [same(burst=True), same(burst="published", reset_mode="serial")],
        "coeff": [same(coeff=0.2), same(coeff=3.0)],
        "residual": [same(residual="fixed")],
        "tied": [same(tied=True), same(tied=True, compartments=9)],
        "context": [same(context="global")],
        "dt_scale": [same(dt_scale=2.0)],
        "backend": [same(backend="torch")],
    },
    neurons.ParallelIF: {
        "v_threshold": [same(v_threshold=0.3)],
        "surrogate": MSF_SURROGATES,
        "burst": [same(burst=True), same(burst="published")],
        "backend": [same(backend="torch")],
    },
    of_spikingjelly.MSFNode: {
        "tau": [same(tau=1.0), same(tau=3.0), same(tau=math.inf)],
        "decay_input": [same(decay_input=True), refused(decay_input=False, charge=None, snntorch=PRODUCT)],
        "v_threshold": [same(v_threshold=0.3)],
        "v_reset": [
            refused(v_reset=None, snntorch=SOFT),
            refused(v_reset=-0.25, snntorch="no v_reset=-0.25"),
        ],
        "surrogate_function": [
            same(surrogate_function=host_surrogate.ATan()),
            same(surrogate_function=host_surrogate.PiecewiseQuadratic()),
            same(surrogate_function="published"),
            refused(
                surrogate_function=host_surrogate.ATan(spiking=False), export="does not fire as the step"
            ),
        ],
        "detach_reset": [same(detach_reset=True), same(detach_reset=False)],
        "step_mode": [same(step_mode="m")],
        "store_v_seq": [same(store_v_seq=True)],
        "D": [same(D=1), same(D=6)],
        "threshold_step": [same(threshold_step=0.1)],
        "thresholds": [same(thresholds=[0.25, 0.75, 2.0])],
        "charge": [
            refused(charge=None, snntorch=PRODUCT),
            refused(charge=None, v_reset=None, snntorch=PRODUCT),
            refused(charge="if", snntorch=PRODUCT),
        ],
        "w": [refused(charge="plif_decay_input", w=0.4, snntorch=PRODUCT)],
        "backend": [same(backend="torch")],
    },
    of_spikingjelly.PMSNNode: {
        "channels": [same(channels=CHANNELS)],
        "compartments": [same(compartments=3)],
        "channel_dim": [same(channel_dim=(1, 2), channels=CHANNELS * WIDTH)],
        "v_threshold": [same(v_threshold=0.3)],
        "surrogate_function": [same(surrogate_function=host_surrogate.ATan())],
        "step_mode": [same(step_mode="m")],
        "backend": [same(backend="torch")],
        "store_v_seq": [same(store_v_seq=True)],
        "init": [same(init="shd")],
        "store_z_seq": [same(store_z_seq=True)],
    },
    of_spikingjelly.ParallelIFNode: {
        "v_threshold": [same(v_threshold=0.3)],
        "surrogate_function": [same(surrogate_function=host_surrogate.ATan())],
        "step_mode": [same(step_mode="m")],
        "backend": [same(backend="torch")],
        "store_v_seq": [same(store_v_seq=True)],
        "burst": [same(burst=True)],
    },
}

OPTIONS = {
    "spike_grad": [
        same(spike_grad=snn.surrogate.fast_sigmoid()),
        same(spike_grad=torch.sigmoid),  # its gradient alone is used
        refused(spike_grad=Soft("atan"), export="parts of spikes"),
    ],
    "surrogate_disable": [same(surrogate_disable=True)],
    "init_hidden": [same(init_hidden=False)],
    "inhibition": [refused(inhibition=True, export="inhibition")],
    "output": [same(output=True)],
    "graded_spikes_factor": [
        refused(graded_spikes_factor=0.3, spikingjelly=FACTOR),
        refused(graded_spikes_factor=spread(CHANNELS, WIDTH), spikingjelly=FACTOR),
    ],
    "learn_graded_spikes_factor": [
        refused(learn_graded_spikes_factor=True, graded_spikes_factor=0.3, spikingjelly=FACTOR),
        same(learn_graded_spikes_factor=True),
    ],
    "sequence": [same(sequence=True)],
    "backend": [same(backend="torch")],
}
WORDS |= {
    of_snntorch.MSF: {
        **OPTIONS,
        "beta": [same(beta=0.9), same(beta=spread(CHANNELS, WIDTH)), same(beta=spread(WIDTH))],
        "threshold": [same(threshold=0.3), same(threshold=spread(CHANNELS, 1))],
        "learn_beta": [same(learn_beta=True), same(learn_beta=True, beta=spread(CHANNELS, WIDTH))],
        "learn_threshold": [same(learn_threshold=True)],
        "reset_mechanism": [
            same(reset_mechanism="zero"),
            refused(reset_mechanism="subtract", spikingjelly=SUBTRACT),
            refused(reset_mechanism="none", spikingjelly=NONE),
        ],
        "state_quant": [refused(state_quant=torch.round, export="state_quant")],
        "reset_delay": [
            same(reset_delay=False),
            refused(reset_delay=False, reset_mechanism="subtract", spikingjelly=SUBTRACT),
            refused(reset_delay=False, reset_mechanism="none", spikingjelly=NONE),
        ],
        "D": [same(D=1), same(D=6)],
        "threshold_step": [same(threshold_step=0.1)],
        "thresholds": [same(thresholds=[0.25, 0.75, 2.0])],
    },
    of_snntorch.PMSN: {
        **OPTIONS,
        "channels": [same(channels=CHANNELS)],
        "compartments": [same(compartments=3)],
        "channel_dim": [same(channel_dim=(1, 2), channels=CHANNELS * WIDTH)],
        "threshold": [same(threshold=0.3)],
        "learn_threshold": [],  # the constructor refuses it
        "state_quant": [],  # likewise
        "init": [same(init="shd")],
    },
    of_snntorch.ParallelIF: {
        **OPTIONS,
        "threshold": [same(threshold=0.3)],
        "learn_threshold": [],  # likewise
        "burst": [same(burst=True)],
    },
    snn.Leaky: {
        "beta": [same(beta=0.5), same(beta=spread(CHANNELS, WIDTH)), same(beta=0.0), same(beta=1.5)],
        "threshold": [same(threshold=0.3), same(threshold=-0.3), same(threshold=spread(CHANNELS, WIDTH))],
        "spike_grad": [
            same(spike_grad=snn.surrogate.fast_sigmoid()),
            refused(spike_grad=torch.sigmoid, export="fires above its threshold"),
            refused(spike_grad=Surrogate("atan"), export="fires above its threshold"),
        ],
        "surrogate_disable": [same(surrogate_disable=True)],
        "init_hidden": [same(init_hidden=False)],
        "inhibition": [refused(inhibition=True, export="inhibition")],
        "learn_beta": [same(learn_beta=True)],
        "learn_threshold": [same(learn_threshold=True)],
        "reset_mechanism": [
            refused(reset_mechanism="subtract", export="'zero' alone"),
            refused(reset_mechanism="none", export="'zero' alone"),
        ],
        "state_quant": [refused(state_quant=torch.round, export="state_quant")],
        "output": [same(output=True)],
        "graded_spikes_factor": [refused(graded_spikes_factor=0.3, export="graded_spikes_factor")],
        "learn_graded_spikes_factor": [same(learn_graded_spikes_factor=True)],
        "reset_delay": [
            same(reset_delay=False),
            refused(reset_delay=False, threshold=-0.3, export="takes off twice"),
            refused(reset_delay=False, reset_mechanism="subtract", export="'zero' alone"),
        ],
    },
}
USUAL = {
    neurons.MSF: {"D": 3, "decay": 0.75, "v_threshold": 0.5, "threshold_step": 0.7},
    neurons.PMSN: {"channels": CHANNELS},
    of_spikingjelly.MSFNode: {
        "D": 3,
        "tau": 4.0,
        "v_threshold": 0.5,
        "threshold_step": 0.7,
        "charge": "decay",
    },
    of_spikingjelly.PMSNNode: {"channels": CHANNELS},
    of_snntorch.MSF: {"D": 3, "beta": 0.75, "threshold": 0.5, "reset_mechanism": "zero", "init_hidden": True},
    of_snntorch.PMSN: {"channels": CHANNELS, "init_hidden": True},
    of_snntorch.ParallelIF: {"init_hidden": True},
    snn.Leaky: {"beta": 0.9, "threshold": 0.5, "reset_mechanism": "zero", "init_hidden": True},
}


def cases():
    for kind, table in WORDS.items():
        for word, listed in table.items():
            for number, case in enumerate(listed):
                home = kind.__module__.split(".")[1] if "." in kind.__module__ else ""
                yield pytest.param(kind, case, id=f"{home}-{kind.__name__}-{word}-{number}-{case!r}")


@pytest.mark.parametrize("kind", WORDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_no_word_is_left_out(kind):
    known = set(inspect.signature(kind).parameters)
    if "options" in known:
        known |= set(inspect.signature(of_snntorch.SnnTorchNeuron).parameters) - {"held"}
    assert set(WORDS[kind]) == known - {"options"}


def outputs(net, x_seq, whole):
    """Outputs [T, ..] from rest, in training and in evaluation."""
    both = []
    for training in (True, False):
        net.train(training)
        if not whole:
            both.append(steps(net, x_seq)[0].detach())
            continue
        rest(net)
        out = net(x_seq)
        both.append((out[0] if isinstance(out, tuple) else out).detach())
    return torch.stack(both)


@pytest.mark.filterwarnings("ignore:NIR cannot keep:UserWarning")
@pytest.mark.filterwarnings("ignore:the learned graded_spikes_factor:UserWarning")
@pytest.mark.filterwarnings("ignore:Inhibition:UserWarning")
@pytest.mark.parametrize(("kind", "case"), list(cases()))
def test_a_word_goes_through_a_file_or_is_refused(kind, case, tmp_path):
    torch.manual_seed(0)
    module = kind(**{**USUAL.get(kind, {}), **case.words})
    net = nn.Sequential(module)
    whole = (
        isinstance(module, neurons.Neuron) or case.words.get("step_mode") == "m" or "sequence" in case.words
    )
    x_seq = randn(STEPS, BATCH, CHANNELS, WIDTH)
    x_seq[::3] = (x_seq[::3] * 4).round() / 4  # ties
    example = x_seq if whole else x_seq[0]
    if message := case.refused.get("export"):
        with pytest.raises(ValueError, match=message):
            export_to_nir(net, example)
        return
    nir.write(tmp_path / "net.nir", export_to_nir(net, example))
    expected = outputs(net, x_seq, whole)
    assert 0 < expected.count_nonzero() < expected.numel()
    for host in ("snntorch", "spikingjelly"):
        words = dict(SEQUENCES[host]) if whole else {}
        words |= {"backend": case.words["backend"]} if "backend" in case.words else {}
        if message := case.refused.get(host):
            with pytest.raises(ValueError, match=message):
                import_from_nir(tmp_path / "net.nir", host, **words)
        else:
            assert_same(outputs(import_from_nir(tmp_path / "net.nir", host, **words), x_seq, whole), expected)


STANDARD = [neurons.MSF, of_spikingjelly.MSFNode, of_snntorch.MSF]


@pytest.mark.filterwarnings("ignore:the learned graded_spikes_factor:UserWarning")
@pytest.mark.filterwarnings("ignore:Inhibition:UserWarning")
@pytest.mark.parametrize(("kind", "case"), [param for param in cases() if param.values[0] in STANDARD])
def test_a_word_goes_through_a_standard_node_or_is_refused(kind, case):
    torch.manual_seed(0)
    words = {**USUAL[kind], "D": 1, **case.words}
    module = kind(**words)
    held = module if kind is neurons.MSF else module.neuron
    whole = kind is neurons.MSF or words.get("step_mode") == "m" or "sequence" in words
    x_seq = randn(STEPS, BATCH, CHANNELS, WIDTH)
    x_seq[::3] = (x_seq[::3] * 4).round() / 4  # ties
    example = x_seq if whole else x_seq[0]
    fits = held.D == 1 and held.reset_mode == "hard" and held.charge == ("decay", "decay")
    graded = bool((getattr(module, "graded_spikes_factor", torch.ones(1)) != 1).any())
    if not fits or graded or "export" in case.refused:
        with pytest.raises(
            ValueError, match=r"standard=True cannot say this MSF|does not fire as|is not in the node"
        ):
            export_to_nir(module, example, standard=True)
        return
    graph = export_to_nir(module, example, standard=True)
    assert {type(node) for node in graph.nodes.values()} <= {nir.Input, nir.Output, nir.LIF, nir.IF}
    expected = outputs(nn.Sequential(module), x_seq, whole)
    for host in ("snntorch", "spikingjelly"):
        sequences = SEQUENCES[host] if whole else {}
        if host == "snntorch" and held.v_reset != 0:
            with pytest.raises(ValueError, match="no v_reset"):
                import_from_nir(graph, host, **sequences)
        else:
            assert_same(outputs(import_from_nir(graph, host, **sequences), x_seq, whole), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_leaky_of_half_precision_is_refused(dtype):
    net = nn.Sequential(snn.Leaky(**USUAL[snn.Leaky])).to(dtype)
    with pytest.raises(ValueError, match=r"keeps its membrane in torch\..*net.float\(\)"):
        export_to_nir(net, torch.zeros(2, 3, dtype=dtype))
