"""Variable length and carried states: padded steps do nothing, states can be kept, cut, reordered and put back."""

import io
import mmap
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_msf import build as build_msf
from test_pmsn import build as build_pmsn
from test_pmsn import randn
from torch import nn

from helpers import DTYPES, ON_CPU, examples, loop, poisoned_empty
from msf_pmsn_plugins import state as states
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons import MSF, PMSN, ParallelIF
from msf_pmsn_plugins.surrogate import Custom, Soft
from tolerances import F32, F64, assert_close, assert_same

both_dtypes = pytest.mark.parametrize("p", DTYPES)
all_backends = pytest.mark.parametrize("backend", ON_CPU)
TRIANGLE = Custom(lambda u: (1 - u.abs()).clamp(min=0))

MAKERS = {
    "msf": lambda: MSF(D=3, decay=0.3),
    "msf-soft": lambda: MSF(D=3, decay=0.3, reset_mode="soft", detach_reset=False, surrogate="atan"),
    "msf-learned": lambda: MSF(D=2, decay=torch.tensor([0.3, 0.5, 0.8]), learn_decay=True, surrogate="atan"),
    "msf-loop": lambda: MSF(D=2, decay=0.3, surrogate=TRIANGLE),
    "pmsn": lambda: build_pmsn(3),
    "pmsn-serial": lambda: build_pmsn(3, reset_mode="serial"),
    "pmsn-none": lambda: build_pmsn(3, reset_mode="none"),
    "pmsn-cumulative": lambda: build_pmsn(3, reset_mode="cumulative"),
    "pmsn-burst": lambda: build_pmsn(3, burst=True),
    "pmsn-fixed": lambda: build_pmsn(3, residual="fixed"),
    "pmsn-loop": lambda: build_pmsn(3, surrogate=TRIANGLE),
    "parallel_if": lambda: ParallelIF(0.7),
}
all_neurons = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.fixture(autouse=True, scope="module")
def _poison():
    with poisoned_empty():
        yield


def named(neuron, backend):
    """With the backend, where the neuron has a kernel."""
    if neuron.surrogate is not TRIANGLE:
        neuron.backend = backend
    return neuron


def grad_of(outputs, leaves, seed=5):
    """Gradients of a fixed random functional of all real and complex outputs that have one."""
    total = 0
    for i, out in enumerate(outputs):
        if out is not None and out.requires_grad:
            real = torch.view_as_real(out) if out.is_complex() else out
            total = total + (real * randn(*real.shape, seed=seed + i, dtype=real.dtype)).sum()
    return torch.autograd.grad(total, leaves, allow_unused=True)


# ---------------------------------------------------------------- lengths


@all_neurons
@all_backends
@both_dtypes
def test_lengths_equal_separate_runs(p, backend, make):
    """Sample by sample: outputs, states, membranes; gradients to input and parameters; garbage in the padding."""
    neuron, dtype = named(make().to(DTYPES[p]), backend), DTYPES[p]
    lengths = torch.tensor([40, 0, 7, 33, 7])
    x = randn(40, 5, 3, 2, dtype=dtype) * 1.5
    for n, length in enumerate(lengths):
        x[length:, n] = torch.tensor([float("nan"), float("inf")])
    x.requires_grad_()
    rest = neuron.initial_state(x[0])
    start = tuple((part + 0.25).detach() for part in rest)
    s, state, m = neuron.sequence(x, start, membrane=True, lengths=lengths)
    gs, gm = randn(40, 5, 3, 2, seed=8, dtype=dtype), randn(40, 5, 3, 2, seed=9, dtype=dtype)
    leaves = [x, *neuron.parameters()]

    def loss(s, m, last, rows):
        parts = [part for part in last if part.requires_grad]
        real = [torch.view_as_real(part) if part.is_complex() else part for part in parts]
        return (
            (s * gs[: len(s), rows]).sum()
            + (m * gm[: len(m), rows]).sum()
            + sum((r * r.detach().sin()).sum() for r in real)
        )

    ours = torch.autograd.grad(loss(s, m, state, slice(None)), leaves, allow_unused=True)
    exact = isinstance(neuron, MSF) or neuron.surrogate is TRIANGLE
    expected = [torch.zeros_like(leaf) for leaf in leaves]
    for n, length in enumerate(lengths.tolist()):
        assert not s[length:, n].any()
        assert not m[length:, n].any()
        one = tuple(part[n : n + 1] for part in start)
        s1, state1, m1 = neuron.sequence(x[:length, n : n + 1], one, membrane=True)
        assert_same(s[:length, n : n + 1], s1)
        for part, part1 in zip(state, state1, strict=True):
            (assert_same if exact else assert_close)(part[n : n + 1], part1, *([] if exact else ["residual"]))
        (assert_same if exact else assert_close)(m[:length, n : n + 1], m1, *([] if exact else ["residual"]))
        if length:
            for total, part in zip(
                expected,
                torch.autograd.grad(loss(s1, m1, state1, slice(n, n + 1)), leaves, allow_unused=True),
                strict=True,
            ):
                total += 0 if part is None else part
    assert s.any()
    for g, total in zip(ours, expected, strict=True):
        assert torch.isfinite(g).all()
        assert_close(g, total, "pmsn_gradient" if p == "f32" else "pmsn_adjoint")
    for n, length in enumerate(lengths.tolist()):
        assert not ours[0][length:, n].any()


@all_backends
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("name", CHARGES)
def test_lengths_for_every_charge(name, reset, backend):
    neuron = build_msf(name, D=3, reset_mode=reset, detach_reset=False, surrogate="atan", backend=backend)
    x = (randn(6, 4, 3) * 2).requires_grad_()
    lengths = torch.tensor([6, 3, 0, 1])
    s, (v,), m = neuron.sequence(x, lengths=lengths, membrane=True)
    s_, (v_,), m_ = loop(neuron, x, lengths=lengths)
    for ours, theirs in ((s, s_), (v, v_), (m, m_)):
        assert_same(ours, theirs)
    leaves = [x, *neuron.parameters()]
    for ours, theirs in zip(grad_of((s, v, m), leaves), grad_of((s_, v_, m_), leaves), strict=True):
        assert_close(ours, theirs, "adjoint")


@all_neurons
@all_backends
@examples(15)
@given(data=st.data())
def test_a_mask_skips_steps_anywhere(backend, make, data):
    """A mask with holes equals the sequence without the skipped steps."""
    steps, batch = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 3))
    mask = torch.tensor(
        data.draw(
            st.lists(st.lists(st.booleans(), min_size=batch, max_size=batch), min_size=steps, max_size=steps)
        )
    )
    neuron = named(make().double(), backend)
    x = randn(steps, batch, 3, seed=data.draw(st.integers(0, 99))) * 2
    s, state, m = neuron.sequence(torch.where(mask.unsqueeze(2), x, torch.nan), lengths=mask, membrane=True)
    for n in range(batch):
        rows = mask[:, n]
        s1, state1, m1 = neuron.sequence(x[rows, n : n + 1], membrane=True)
        assert_same(s[rows, n : n + 1], s1)
        assert_close(m[rows, n : n + 1], m1, "residual")
        assert not s[~rows, n].any()
        for part, part1 in zip(state, state1, strict=True):
            assert_close(part[n : n + 1], part1, "residual")


def test_lengths_as_a_list_and_for_heads_beside_the_batch():
    neuron = PMSN(4, channel_dim=2)  # [N, heads, C, positions]
    x = randn(9, 3, 2, 4, 5, dtype=F32) * 3
    s, (r, _), _ = neuron.sequence(x, lengths=[9, 4, 0])
    one, (r1, _), _ = neuron.sequence(x[:4, 1:2])
    assert_same(s[:4, 1:2], one)
    assert_close(r[1:2], r1, "residual")
    assert not s[4:, 1].any()
    assert not s[:, 2].any()
    assert neuron(x, lengths=[9, 4, 0])[0].equal(s)


def test_lengths_of_an_empty_batch_or_sequence():
    for neuron in (MSF(), PMSN(3), ParallelIF()):
        assert neuron(torch.zeros(4, 0, 3), lengths=[])[0].shape == (4, 0, 3)
        assert neuron(torch.zeros(0, 2, 3), lengths=[0, 0])[0].shape == (0, 2, 3)
        assert neuron(torch.zeros(0, 2, 3), lengths=torch.zeros(0, 2, dtype=torch.bool))[0].shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([3, 5], ValueError, r"lie in 0..4"),
        ([-1, 2], ValueError, r"lie in 0..4"),
        ([3], ValueError, "one entry for each of the 2 samples"),
        (torch.ones(2, 4, dtype=torch.bool), ValueError, r"a mask is \[T, N\] = \(4, 2\)"),
        (torch.ones(2), TypeError, "must be integers"),
        ([1.5, 2.0], TypeError, "must be integers"),
    ],
)
def test_bad_lengths(lengths, error, message):
    for neuron in (MSF(), PMSN(3)):
        with pytest.raises(error, match=message):
            neuron(torch.zeros(4, 2, 3), lengths=lengths)


def test_lengths_under_compile():
    neuron = MSF()
    x, lengths = randn(5, 3, 4, dtype=F32) * 2, torch.tensor([5, 2, 0])
    compiled = torch.compile(
        lambda x, lengths: neuron(x, lengths=lengths)[0], fullgraph=True, backend="aot_eager"
    )
    with torch.no_grad():
        # a length on the CPU is checked by value, which a graph cannot hold: a mask is not
        mask = torch.arange(5).unsqueeze(1) < lengths
        assert_same(compiled(x, mask), neuron(x, lengths=lengths)[0])


# ---------------------------------------------------------------- states of neurons


@all_neurons
def test_states_can_be_saved_cut_reordered_and_go_on(make):
    neuron, x = make(), randn(20, 4, 3, dtype=F32) * 2
    _, state = neuron(x[:9])
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    whole, last = neuron(x[9:], state)
    assert_same(neuron(x[9:], again)[0], whole)
    # three of four go on, in another order, one of them twice
    index = torch.tensor([3, 0, 3])
    part, part_last = neuron(x[9:, index], states.select(state, index))
    assert_same(part, whole[:, index])
    for ours, theirs in zip(part_last, states.select(last, index), strict=True):
        assert_close(ours, theirs, "residual")
    keep = torch.tensor([True, False, False, True])
    assert_same(neuron(x[9:, keep], states.select(state, keep))[0], whole[:, keep])
    assert_same(neuron(x[9:, 1:3], states.select(state, slice(1, 3)))[0], whole[:, 1:3])


@all_neurons
def test_states_change_their_width(make):
    neuron, x = make(), randn(20, 4, 3, dtype=F32)
    _, state = neuron(x[:9])
    wide = states.move(state, dtype=F64)
    assert [part.dtype for part in wide] == [torch.complex128 if part.is_complex() else F64 for part in state]
    neuron.to(F64)(x[9:].double(), wide)
    back = states.move(wide, "cpu", F32)
    for ours, theirs in zip(back, state, strict=True):
        assert_same(ours, theirs)
    with pytest.raises(ValueError, match="float32 or float64"):
        states.move(state, dtype=torch.float16)


def test_detached_states_truncate_the_gradient():
    for neuron in (MSF(D=1, surrogate="atan", reset_mode="none"), build_pmsn(3)):
        x = randn(8, 2, 3, dtype=F32).requires_grad_()
        _, state = neuron(x[:4])
        (g,) = torch.autograd.grad(neuron(x[4:], state)[0].sum(), x)
        assert g[:4].any()
        _, state = neuron(x[:4])
        (g,) = torch.autograd.grad(neuron(x[4:], states.detach(state))[0].sum(), x)
        assert not g[:4].any()
        assert g[4:].any()


def test_select_refuses_what_would_drop_the_batch():
    for index in (0, 1.5, torch.tensor(0), torch.tensor([0.0])):
        with pytest.raises(TypeError, match="index must be"):
            states.select((torch.zeros(3),), index)


def test_select_and_detach_take_any_nesting():
    nested = {"a": [torch.arange(3.0, requires_grad=True), None, 7]}
    chosen = states.select(nested, slice(1, None))
    assert chosen["a"][0].tolist() == [1.0, 2.0]
    assert chosen["a"][1:] == [None, 7]
    assert not states.detach(nested)["a"][0].requires_grad


# ---------------------------------------------------------------- states of networks, both faces

spikingjelly = pytest.importorskip("msf_pmsn_plugins.spikingjelly")
snntorch = pytest.importorskip("msf_pmsn_plugins.snntorch")


def networks():
    torch.manual_seed(0)
    from spikingjelly.activation_based import layer

    yield nn.Sequential(
        layer.Linear(3, 6, step_mode="m"),
        spikingjelly.MSFNode.published(step_mode="m"),
        layer.Linear(6, 4, step_mode="m"),
        spikingjelly.PMSNNode(4, step_mode="m"),
        spikingjelly.ParallelIFNode(0.5, step_mode="m"),
    )
    torch.manual_seed(0)
    yield nn.Sequential(
        nn.Linear(3, 6),
        snntorch.MSF.published(init_hidden=True, sequence=True),
        nn.Linear(6, 4),
        snntorch.PMSN(4, init_hidden=True, sequence=True),
        snntorch.ParallelIF(0.5, init_hidden=True, sequence=True),
    )


def rest(net):
    states.write(net, {})


@pytest.mark.parametrize("face", [0, 1], ids=["spikingjelly", "snntorch"])
def test_a_network_goes_on_from_its_states(face):
    net = list(networks())[face]
    x = randn(12, 4, 3, dtype=F32) * 3
    assert states.read(net) == {}
    whole = net(x)
    rest(net)
    assert states.read(net) == {}
    first = net(x[:5])
    kept = states.detach(states.read(net))
    assert sorted(kept) == ["1", "3", "4"]
    assert_same(torch.cat([first, net(x[5:])]), whole)
    # another network goes on with half of the batch, from a file
    file = io.BytesIO()
    torch.save(kept, file)
    file.seek(0)
    other = list(networks())[face]
    chosen = torch.tensor([2, 0])
    states.write(other, states.select(torch.load(file, weights_only=True), chosen))
    assert_same(other(x[5:, chosen]), whole[5:, chosen])


def test_states_of_another_network_are_refused():
    first, second = networks()
    first(torch.ones(2, 2, 3))
    kept = states.read(first)
    kept["7"] = kept.pop("1")
    with pytest.raises(KeyError, match=r"no MSF or PMSN node at \['7'\]"):
        states.write(second, kept)


@pytest.mark.parametrize("face", [0, 1], ids=["spikingjelly", "snntorch"])
def test_padded_network_equals_separate_runs(face):
    net = list(networks())[face]
    x, lengths = randn(12, 3, 3, dtype=F32) * 3, torch.tensor([12, 5, 0])
    with states.padded(net, lengths):
        padded = net(x)
        carried = states.read(net)
    assert all(node.lengths is None for node in net if hasattr(node, "lengths"))
    for n, length in enumerate(lengths.tolist()):
        assert not padded[length:, n].any()
        rest(net)
        if length:
            assert_same(net(x[:length, n : n + 1]), padded[:length, n : n + 1])
            for path, state in states.read(net).items():
                for ours, theirs in zip(states.select(carried[path], slice(n, n + 1)), state, strict=True):
                    assert_close(ours, theirs, "residual")
    assert padded.any()
    with pytest.raises(ValueError, match="no MSF or PMSN node"), states.padded(nn.Linear(2, 2), lengths):
        pass


def test_node_takes_lengths_or_a_mask_in_the_call():
    x, lengths = randn(6, 3, 4, dtype=F32) * 2, torch.tensor([6, 2, 0])
    mask = torch.arange(6).unsqueeze(1) < lengths
    expected, (v,), m = MSF().sequence(x, lengths=lengths, membrane=True)
    for valid in (lengths, lengths.tolist(), mask):
        for store in (False, True):
            node = spikingjelly.MSFNode.published(step_mode="m", store_v_seq=store)
            assert_same(node(x, lengths=valid), expected)
            assert_same(node.v, v)
            if store:
                assert_same(node.v_seq[-1], v)
        neuron = snntorch.MSF.published(sequence=True)
        spk, mem = neuron(x, lengths=valid)
        assert_same(spk, expected)
        assert_same(mem[0], m[5, 0])
        assert_same(mem[1], m[1, 1])
        assert not mem[2].any()
        assert_same(neuron(x)[0], snntorch.MSF.published(sequence=True)(x, mem)[0])


@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
def test_snntorch_memory_at_each_length(reset):
    """The membrane of each sample at its own end, also where a sample has no valid step; equal to separate runs."""
    x, lengths = randn(6, 3, 4, dtype=F32) * 2, torch.tensor([6, 2, 0])
    start = randn(3, 4, seed=3, dtype=F32)
    neuron = snntorch.MSF.published(beta=0.5, reset_mechanism=reset, sequence=True)
    spk, mem = neuron(x, start, lengths=lengths)
    for n, length in enumerate(lengths.tolist()):
        one, end = neuron(x[:length, n : n + 1], start[n : n + 1])
        assert_same(spk[:length, n : n + 1], one)
        assert_same(mem[n : n + 1], end)


def test_lengths_belong_to_sequences():
    node = spikingjelly.MSFNode.published(step_mode="s")
    node.lengths = [1, 1]
    with pytest.raises(ValueError, match="lengths belong to sequences"):
        node(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="lengths belong to sequences"):
        snntorch.MSF.published()(torch.zeros(2, 3), lengths=[1, 1])


# ---------------------------------------------------------------- variants through the faces


def test_variants_reach_the_held_neuron():
    options = {"reset_mode": "serial", "burst": True, "coeff": 0.5, "tied": True, "dt_scale": 0.5}
    x = randn(20, 2, 3, dtype=F32) * 3
    torch.manual_seed(1)
    neuron = PMSN(3, **options)
    torch.manual_seed(1)
    node = spikingjelly.PMSNNode.from_neuron(PMSN(3, **options), step_mode="m")
    torch.manual_seed(1)
    skin = snntorch.PMSN.from_neuron(PMSN(3, **options), sequence=True)
    assert skin.reset_mechanism == "subtract"
    expected = neuron(x)[0]
    assert expected.max() > 1
    assert_same(node(x), expected)
    assert_same(skin(x)[0], expected)


def test_explicit_thresholds_in_both_faces():
    x, thresholds = randn(9, 2, 3, dtype=F32) * 3, [0.5, 1.0, 4.0]
    expected = MSF(thresholds=thresholds)(x)[0]
    node = spikingjelly.MSFNode.published(thresholds=thresholds, step_mode="m")
    assert (node.D, node.v_threshold) == (3, 0.5)
    assert_same(node(x), expected)
    assert_same(snntorch.MSF.published(thresholds=thresholds, sequence=True)(x)[0], expected)
    node.v_threshold = 2.0
    with pytest.raises(ValueError, match="do not fit the explicit thresholds"):
        node(x)
    node.thresholds = [2.0, 3.0]
    assert node(x).max() == 2
    assert node.thresholds == [2.0, 3.0]


def test_learned_decay_in_both_faces():
    x, beta = randn(9, 2, 3, dtype=F32) * 2, torch.tensor([0.2, 0.5, 0.9])
    held = MSF(decay=beta, learn_decay=True, surrogate="atan")
    node = spikingjelly.MSFNode.from_neuron(held, step_mode="m")
    skin = snntorch.MSF.published(beta=beta, learn_beta=True, spike_grad="atan", sequence=True)
    assert_close(skin.beta, beta, "slope")
    assert_close(node.tau.detach(), 1 / (1 - beta), "host")
    skin.load_state_dict(node.neuron.state_dict())
    assert_same(node(x), skin(x)[0])
    node(x).sum().backward()
    assert node.neuron.decay_logit.grad.shape == (3,)
    node.tau = 2.0
    assert node.neuron.decay.tolist() == pytest.approx([0.5] * 3)
    copy_ = snntorch.MSF.published(beta=0.5, learn_beta=True)
    copy_.load_state_dict({**snntorch.MSF.published(beta=0.75, learn_beta=True).state_dict()})
    assert copy_.beta.item() == pytest.approx(0.75)


def test_soft_forward_in_both_faces():
    x = randn(9, 2, 3, dtype=F32) * 2
    expected = MSF(surrogate=Soft("sigmoid"))(x)[0]
    assert not torch.equal(expected, expected.round())
    assert_same(spikingjelly.MSFNode.published(surrogate_function=Soft("sigmoid"), step_mode="m")(x), expected)
    assert_same(snntorch.MSF.published(spike_grad=Soft("sigmoid"), sequence=True)(x)[0], expected)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_parallel_if_node(step_mode):
    x = randn(30, 4, 5, dtype=F32)
    expected = ParallelIF(0.5)(x)[0]
    node = spikingjelly.ParallelIFNode(0.5, step_mode=step_mode, store_v_seq=True)
    out = node(x) if step_mode == "m" else torch.stack([node(step) for step in x])
    assert_same(out, expected)
    assert node.v_seq.shape == x.shape
    assert_close(node.v, node.carried[0] * 0.5, "host")
    with pytest.raises(ValueError, match="ParallelIFNode always resets by whole thresholds"):
        node.v_reset = 0.0
    skin = snntorch.ParallelIF(0.5, sequence=step_mode == "m")
    out = skin(x)[0] if step_mode == "m" else torch.stack([skin(step)[0] for step in x])
    assert_same(out, expected)


def test_weights_that_are_remembered_follow_every_change():
    """A stream makes its weights once; they must never be those of older parameters, settings or dtypes."""
    neuron = PMSN(3)
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))

    def fresh(dtype=torch.float32):
        other = PMSN(3, coeff=neuron.coeff, dt_scale=neuron.dt_scale)
        other.load_state_dict(neuron.state_dict())
        return [weight.detach() for weight in other.weights(dtype)]

    def change_data():
        neuron.A_imag.data.mul_(1.5)  # leaves no trace in the version counter

    def change_setting():
        neuron.coeff, neuron.dt_scale = 0.5, 2.0

    def optimise():
        optimizer = torch.optim.SGD(neuron.parameters(), 0.1)
        neuron.sequence(x)[0].sum().backward()
        optimizer.step()

    with torch.inference_mode():
        neuron.sequence(x)  # remembered in the narrowest of modes
    for change in (lambda: None, change_data, change_setting, optimise, neuron.reset_parameters):
        change()
        for _ in range(2):
            with torch.no_grad():
                assert all(map(torch.equal, neuron.weights(), fresh()))
                assert all(map(torch.equal, neuron.weights(torch.float64), fresh(torch.float64)))
    neuron.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    neuron.sequence(leaf)[0].sum().backward()  # weights that need no gradient, in a graph that keeps them
    assert leaf.grad.abs().sum() > 0
    assert neuron.weights()[0] is neuron.weights()[0]
    assert all(weight.requires_grad for weight in neuron.requires_grad_(True).weights())


def test_functional_parameters_are_never_remembered():
    neuron = PMSN(3)
    neuron.weights()
    ensemble = torch.stack([neuron.A_imag.detach(), 2 * neuron.A_imag.detach()])

    def rotation(a_imag):
        return torch.func.functional_call(Weights(neuron), {"neuron.A_imag": a_imag}, ())[0].angle()

    with torch.no_grad():
        both = torch.func.vmap(rotation)(ensemble)
        # The last bit of a sine depends on where in a vector it is computed; a remembered weight would be far off.
        assert_close(both[0], rotation(ensemble[0]), "slope")
        assert_close(both[1], rotation(ensemble[1]), "slope")


class Weights(torch.nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.neuron = neuron

    def forward(self):
        return self.neuron.weights()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("make", [MSF, lambda: PMSN(128)], ids=["msf", "pmsn"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_stream_of_single_steps_holds_no_more_memory_with_time(make, mode, backend):
    neuron, x = make(), torch.randn(1, 1, 128)
    neuron.backend = backend
    resident = []
    with mode():
        state = None
        for steps in (500, 3000):
            for _ in range(steps):
                _s, state = neuron(x, state)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * mmap.PAGESIZE)
    assert resident[1] - resident[0] < 3000 * 256  # half of what a step puts out
