"""One state dict: that of the held neuron. Across frameworks, backends, dtypes, devices and versions of this package.

``python tests/test_state_dict.py`` writes the stored checkpoint anew, which only a new format asks for.
"""

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import nn

import msf_pmsn_plugins
from helpers import GOLDEN, ON_CPU
from msf_pmsn_plugins import neurons
from tolerances import assert_close, assert_same

snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from spikingjelly.activation_based import neuron  # noqa: E402

from msf_pmsn_plugins.snntorch import MSF, PMSN, ParallelIF, reset  # noqa: E402
from msf_pmsn_plugins.spikingjelly import MSFNode, ParallelIFNode, PMSNNode  # noqa: E402

STORED = GOLDEN / "state_dicts_v1_settings.pt"
EARLIER = GOLDEN / "state_dicts_v1.pt"  # before the metadata held the settings of PMSN
STEPS, BATCH, CHANNELS = 12, 3, 4
DECAYS = (0.25, 0.5, 0.625, 0.75)  # a quarter: in float32 and in double alike


def taus(decays=DECAYS):
    return 1 / (1 - torch.tensor(decays))


# What one neuron is called: bare, as a node of SpikingJelly, as a neuron of snnTorch; sequences all.
KINDS = {
    "msf": (
        lambda: neurons.MSF(D=3),
        lambda: MSFNode.published(D=3, step_mode="m"),
        lambda: MSF.published(D=3, sequence=True),
    ),
    "msf_learned": (
        lambda: neurons.MSF(D=3, decay=0.5, learn_decay=True),
        lambda: MSFNode.from_neuron(neurons.MSF(D=3, decay=0.5, learn_decay=True), step_mode="m"),
        lambda: MSF.published(0.5, D=3, learn_beta=True, sequence=True),
    ),
    "msf_channels": (
        lambda: neurons.MSF(D=3, decay=torch.tensor(DECAYS), learn_decay=True),
        lambda: MSFNode.from_neuron(KINDS["msf_channels"][0](), step_mode="m"),
        lambda: MSF.published(torch.tensor(DECAYS), D=3, learn_beta=True, sequence=True),
    ),
    "pmsn": (
        lambda: neurons.PMSN(CHANNELS),
        lambda: PMSNNode(CHANNELS, step_mode="m"),
        lambda: PMSN(CHANNELS, sequence=True),
    ),
    "pmsn_tied": (
        lambda: neurons.PMSN(CHANNELS, tied=True, compartments=7),
        lambda: PMSNNode.from_neuron(KINDS["pmsn_tied"][0](), step_mode="m"),
        lambda: PMSN.from_neuron(KINDS["pmsn_tied"][0](), sequence=True),
    ),
    "parallel_if": (
        lambda: neurons.ParallelIF(0.5),
        lambda: ParallelIFNode(0.5, step_mode="m"),
        lambda: ParallelIF(0.5, sequence=True),
    ),
}
FORMS = ("bare", "spikingjelly", "snntorch")
every_kind = pytest.mark.parametrize("kind", KINDS)
every_form = pytest.mark.parametrize("form", FORMS)


def build(kind, form, seed=0):
    torch.manual_seed(seed)
    module = KINDS[kind][FORMS.index(form)]()
    held = module if form == "bare" else module.neuron
    with torch.no_grad():
        for parameter in held.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return module


def currents(dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    return (2 * torch.randn(STEPS, BATCH, CHANNELS, generator=generator, dtype=torch.float64)).to(dtype)


def rest(module):
    reset(module)
    for part in module.modules():
        if isinstance(part, neuron.BaseNode):
            part.reset()


def spikes(module, x):
    rest(module)
    out = module(x)
    return out[0] if isinstance(out, tuple) else out


# Across the frameworks.


@every_kind
@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", FORMS)
def test_one_framework_reads_the_others_strictly(source, target, kind):
    saved, fresh = build(kind, source), build(kind, target, seed=1)
    x = currents()
    expected = spikes(saved, x)
    assert expected.sum() > 0
    if any(True for _ in saved.parameters()):
        assert not torch.equal(spikes(fresh, x), expected)
    state = saved.state_dict()
    if (source, target) == ("snntorch", "bare"):  # snnTorch's numbers have no place there: said, not dropped
        with pytest.raises(RuntimeError, match='"graded_spikes_factor"'):
            fresh.load_state_dict(state)
        state = {name: value for name, value in state.items() if name.startswith("neuron.")}
    result = fresh.load_state_dict(state)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert_same(spikes(fresh, x), expected)
    canonical = {name.removeprefix("neuron."): value for name, value in fresh.state_dict().items()}
    for name, value in (saved if source == "bare" else saved.neuron).state_dict().items():
        assert_same(canonical[name], value)


@every_kind
@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", FORMS)
def test_what_lacks_or_is_too_much_is_named(source, target, kind):
    state = build(kind, source).state_dict()
    if (source, target) == ("snntorch", "bare"):
        state = {name: value for name, value in state.items() if name.startswith("neuron.")}
    fresh = build(kind, target, seed=1)
    with pytest.raises(RuntimeError, match='Unexpected key.*"decay_rate"'):
        fresh.load_state_dict({**state, "decay_rate": torch.ones(1)})
    for name in [key for key in state if key.startswith("neuron.")][:1]:
        with pytest.raises(RuntimeError, match="Missing key"):
            fresh.load_state_dict({key: value for key, value in state.items() if key != name})


class Net(nn.Module):
    """The same network in either framework."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.fc1 = nn.Linear(CHANNELS, 8)
        options = {"step_mode": "m"} if form == "spikingjelly" else {"sequence": True, "init_hidden": True}
        held = neurons.MSF(D=3, decay=0.5, learn_decay=True)
        self.msf = (MSFNode if form == "spikingjelly" else MSF).from_neuron(held, **options)
        self.fc2 = nn.Linear(8, 5)
        self.pmsn = (PMSNNode if form == "spikingjelly" else PMSN)(5, **options)

    def forward(self, x):
        return self.pmsn(self.fc2(self.msf(self.fc1(x))))


def train(net, steps):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        rest(net)
        loss = (net(currents()).mean(0) - 0.25).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("here", "there"), [FORMS[1:], FORMS[:0:-1]], ids=["to-snntorch", "to-spikingjelly"])
def test_train_in_one_and_go_on_in_the_other(here, there):
    net = Net(here)
    first = train(net, 4)
    assert first[-1] != first[0]
    other = Net(there)
    other.load_state_dict(net.state_dict())
    assert_same(spikes(other, currents()), spikes(net, currents()))
    assert train(other, 4) == train(net, 4)
    net.load_state_dict(other.state_dict())  # and back


# What snnTorch's own neurons save.


def test_learned_numbers_of_leaky_become_ours():
    leaky = snn.Leaky(
        torch.tensor([0.3, 0.6]), threshold=torch.tensor([0.5, 0.75]), learn_beta=True, learn_threshold=True
    )
    kwargs = {"learn_beta": True, "learn_threshold": True, "threshold": torch.ones(2)}
    msf = MSF.published(torch.tensor([0.5, 0.5]), D=1, **kwargs)
    msf.load_state_dict(leaky.state_dict())
    assert_close(msf.beta, torch.tensor([0.3, 0.6]), "membrane")
    assert_same(msf.threshold, torch.tensor([0.5, 0.75]))
    assert msf.reset_mechanism == "subtract"
    scalar = MSF.published(0.5, D=1, learn_beta=True, learn_threshold=True)
    with pytest.raises(RuntimeError, match="beta"):
        scalar.load_state_dict(leaky.state_dict())
    with pytest.raises(RuntimeError, match=r"\(0, 1\)"):
        scalar.load_state_dict(snn.Leaky(1.0, learn_beta=True).state_dict())
    scalar.load_state_dict(snn.Leaky(0.75, threshold=0.5).state_dict())  # fixed there, learned here
    assert scalar.threshold == 0.5


def test_a_learned_number_does_not_vanish_in_a_fixed_one():
    state = MSF.published(learn_beta=True).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected.*neuron\.decay_logit"):
        MSF.published().load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected.*neuron\.v_threshold"):
        MSF.published().load_state_dict(MSF.published(learn_threshold=True).state_dict())
    with pytest.raises(RuntimeError, match=r"Missing.*neuron\.v_threshold"):
        MSF.published(learn_threshold=True).load_state_dict(MSFNode.published().state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected.*neuron\.v_threshold"):
        MSFNode.published().load_state_dict(MSF.published(learn_threshold=True).state_dict())


# Backends, dtypes, devices.


@every_kind
@pytest.mark.parametrize("backend", ON_CPU)
def test_backends_read_one_another(backend, kind):
    saved = build(kind, "snntorch").double()
    saved.neuron.backend = "torch"
    fresh = build(kind, "spikingjelly", seed=1).double()
    fresh.backend = backend
    fresh.load_state_dict(saved.state_dict())
    x = currents(torch.float64)
    assert_same(spikes(fresh, x), spikes(saved, x))
    assert fresh.backend == backend


@every_kind
@every_form
@pytest.mark.parametrize(
    ("here", "there"), [("float64", "float32"), ("float32", "float64"), ("float32", "bfloat16")]
)
def test_dtypes(here, there, form, kind):
    here, there = getattr(torch, here), getattr(torch, there)
    saved, fresh = build(kind, form).to(here), build(kind, form, seed=1).to(there)
    fresh.load_state_dict(saved.state_dict())
    expected = copy.deepcopy(saved).to(there)
    for (name, value), (_, other) in zip(fresh.named_parameters(), expected.named_parameters(), strict=True):
        assert value.dtype == there, name
        assert_same(value, other)
    x = currents(there)
    assert_same(spikes(fresh, x), spikes(expected, x))


@every_kind
@every_form
def test_devices(form, kind):
    """A network without memory takes its parameters from a file, wherever they were saved."""
    saved = build(kind, form)
    empty = build(kind, form, seed=1).to("meta")
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    empty.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), assign=True)
    assert {p.device.type for p in empty.parameters()} <= {"cpu"}
    assert_same(spikes(empty, currents()), spikes(saved, currents()))
    moved = build(kind, form).to("meta").state_dict()
    assert all(value.is_meta for name, value in moved.items() if not name.endswith(("threshold", "beta")))


@every_form
def test_a_network_built_on_meta(form):
    saved = build("pmsn", form)
    with torch.device("meta"):
        empty = build("pmsn", form, seed=1)
    empty.load_state_dict(saved.state_dict(), assign=True)
    assert_same(spikes(empty, currents()), spikes(saved, currents()))


@every_kind
@every_form
@pytest.mark.parametrize("built_there", [False, True], ids=["moved", "built_there"])
def test_a_network_leaves_meta(form, kind, built_there):
    """At rest, whatever state it had there: meta holds no values."""
    saved = build(kind, form)
    with torch.device("meta" if built_there else "cpu"):
        empty = build(kind, form, seed=1).to("meta")
    if built_there is False:
        spikes(empty, currents().to("meta"))
    empty.to_empty(device="cpu").load_state_dict(saved.state_dict())
    assert getattr(empty, "carried", None) is None
    assert_same(spikes(empty, currents()), spikes(saved, currents()))


def test_an_msn_leaves_meta():
    saved = neurons.MSN.tc_lif(CHANNELS)
    with torch.device("meta"):
        empty = neurons.MSN.tc_lif(CHANNELS)
    empty.to_empty(device="cpu").load_state_dict(saved.state_dict())
    assert_same(spikes(empty, currents()), spikes(saved, currents()))


def test_learned_threshold_on_meta():
    with torch.device("meta"):
        msf = MSF.published(learn_threshold=True, threshold=0.75, sequence=True)
    assert msf.threshold.is_meta
    msf.load_state_dict(MSF.published(learn_threshold=True, threshold=0.5).state_dict(), assign=True)
    assert msf.threshold == 0.5
    with torch.device("meta"), pytest.raises(ValueError, match="starts positive"):
        MSF.published(learn_threshold=True, threshold=-1.0)


# Versions of this package. The format is `_version` of the modules, which torch keeps in the metadata of a state dict,
# beside its entries: every way of loading stays strict, and dicts without metadata (other formats of files, snnTorch's
# neurons, this package before it had a number) are format 1.


def stored():
    """Every kind in every form: its state dict, an input and what it answers, in float64 (no spike is a near one)."""
    entries = {}
    for kind in KINDS:
        for form in FORMS:
            module = build(kind, form, seed=len(entries)).double()
            entries[f"{kind}/{form}"] = {
                "state_dict": module.state_dict(),
                "spikes": spikes(module, currents(torch.float64)).to(torch.uint8),
            }
    return {"version": msf_pmsn_plugins.__version__, "x": currents(torch.float64), "entries": entries}


@every_kind
@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("path", [STORED, EARLIER], ids=["stored", "earlier"])
@pytest.mark.filterwarnings("error:.*were trained with")
def test_stored_checkpoint(source, target, kind, path):
    """A file that an earlier version of this package wrote is read, strictly, and gives the spikes of that version."""
    file = torch.load(path, weights_only=True)
    entry = file["entries"][f"{kind}/{source}"]
    state = entry["state_dict"]
    assert {held["version"] for held in state._metadata.values()} == {1}
    if (source, target) == ("snntorch", "bare"):
        state = {name: value for name, value in state.items() if name.startswith("neuron.")}
    module = build(kind, target, seed=99).double()
    module.load_state_dict(state)
    assert entry["spikes"].sum() > 0
    assert_same(spikes(module, file["x"]), entry["spikes"].double())


def test_the_stored_checkpoint_is_what_is_written_today():
    """The names, shapes, dtypes and formats: a change of any needs a new format and another file beside this one."""
    file, now = torch.load(STORED, weights_only=True), stored()
    assert file["entries"].keys() == now["entries"].keys()
    for name, entry in file["entries"].items():
        state, own = entry["state_dict"], now["entries"][name]["state_dict"]
        assert state._metadata == own._metadata, name
        assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
            k: (v.shape, v.dtype) for k, v in own.items()
        }, name


@every_kind
@every_form
def test_a_state_dict_without_metadata_is_read(form, kind):
    saved, fresh = build(kind, form), build(kind, form, seed=1)
    plain = dict(saved.state_dict())
    assert not hasattr(plain, "_metadata")
    fresh.load_state_dict(plain)
    assert_same(spikes(fresh, currents()), spikes(saved, currents()))


def with_a_new_word(metadata):
    """A setting that this version does not know, beside those of PMSN."""
    for value in [value for value in metadata.values() if isinstance(value, dict)]:
        with_a_new_word(value)
    if "variants" in metadata:
        metadata["variants"]["novel"] = 3


@every_kind
@every_form
def test_a_newer_format_is_refused(form, kind):
    state = build(kind, form).state_dict()
    state._metadata["neuron" if form == "spikingjelly" else ""]["version"] = 2
    with_a_new_word(state._metadata)
    with pytest.raises(RuntimeError, match="format 2, and this msf-pmsn-plugins reads up to 1.*upgrade"):
        build(kind, form).load_state_dict(state)


# Settings that give the entries their meaning.


def in_form(held, form):
    if form == "bare":
        return held
    if form == "spikingjelly":
        return (MSFNode if isinstance(held, neurons.MSF) else PMSNNode).from_neuron(held, step_mode="m")
    return (MSF if isinstance(held, neurons.MSF) else PMSN).from_neuron(held, sequence=True)


def through_a_file(module, form):
    """The state dict of a network with ``module`` in it, without the numbers of snnTorch's own."""
    file = io.BytesIO()
    torch.save(nn.Sequential(nn.Linear(1, 1), module).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for name in [
        name for name in state if form == "snntorch" and name.startswith("1.") and ".neuron." not in name
    ]:
        del state[name]
    return state


OTHERWISE = {
    "D=2 thresholds": (lambda: neurons.MSF(D=2), lambda: neurons.MSF(D=5), "D=5", "D=2"),
    "coeff": (lambda: neurons.PMSN(4, coeff=0.25), lambda: neurons.PMSN(4), "coeff=1.0", "coeff=0.25"),
    "dt_scale": (lambda: neurons.PMSN(4), lambda: neurons.PMSN(4, dt_scale=2), "dt_scale=2", "dt_scale=1.0"),
    "burst": (
        lambda: neurons.PMSN(4, burst="published"),
        lambda: neurons.PMSN(4),
        "burst=False",
        "burst='published'",
    ),
    "context": (
        lambda: neurons.PMSN(4),
        lambda: neurons.PMSN(4, context="global"),
        "context='global'",
        "context='local'",
    ),
    "residual": (
        lambda: neurons.PMSN(4, residual="fixed"),
        lambda: neurons.PMSN(4),
        "residual='float'",
        "residual='fixed'",
    ),
    "reset_mode": (
        lambda: neurons.PMSN(4, reset_mode="none"),
        lambda: neurons.PMSN(4),
        "reset_mode='floor'",
        "reset_mode='none'",
    ),
    "two": (
        lambda: neurons.PMSN(4, coeff=0.5, dt_scale=2.0),
        lambda: neurons.PMSN(4),
        "coeff=1.0, dt_scale=1.0",
        "coeff=0.5, dt_scale=2.0",
    ),
}


@pytest.mark.parametrize("case", OTHERWISE)
@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", FORMS)
def test_weights_that_were_trained_otherwise_are_warned_of(source, target, case):
    saved, own, has, had = OTHERWISE[case]
    net = nn.Sequential(nn.Linear(1, 1), in_form(own(), target))
    with pytest.warns(UserWarning, match="were trained with") as caught:
        net.load_state_dict(through_a_file(in_form(saved(), source), source))
    (text,) = [str(w.message) for w in caught if "were trained with" in str(w.message)]
    noun = " thresholds" if "thresholds" in case else ""
    keeps = "them" if case == "two" else "it"
    assert text.startswith(("1: ", "1.neuron: "))
    assert text.partition(": ")[2] == (
        f"these weights were trained with {had}{noun}, this neuron has {has} and keeps {keeps}; "
        f"set {had} to compute what was trained"
    )


@pytest.mark.parametrize("case", OTHERWISE)
@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", FORMS)
@pytest.mark.filterwarnings("error:.*were trained with")
def test_the_same_settings_and_files_without_any_load_silently(source, target, case):
    saved, own, _has, _had = OTHERWISE[case]
    state = through_a_file(in_form(saved(), source), source)
    nn.Sequential(nn.Linear(1, 1), in_form(saved(), target)).load_state_dict(state)
    del state._metadata
    nn.Sequential(nn.Linear(1, 1), in_form(own(), target)).load_state_dict(state)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", FORMS)
def test_tied_and_untied_modes_do_not_load_each_other(source, target, tied, strict):
    """Of the same shapes: two pairs, or two modes."""
    pairs, modes = neurons.PMSN(4, 5, tied=True), neurons.PMSN(4, 3)
    saved, own = (pairs, modes) if tied else (modes, pairs)
    net = nn.Sequential(nn.Linear(1, 1), in_form(own, target))
    with pytest.raises(
        RuntimeError, match=f"tied={tied}, this neuron has tied={not tied}.*compartments={5 if tied else 3}"
    ):
        net.load_state_dict(through_a_file(in_form(saved, source), source), strict=strict)


if __name__ == "__main__":
    torch.save(stored(), STORED)
    print(f"{STORED.relative_to(Path.cwd())}: {STORED.stat().st_size} bytes")
