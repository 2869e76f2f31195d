"""The snnTorch nodes, on whichever version of snnTorch is installed (1.0.0 and 0.9.4 in CI)."""

import copy
import importlib
import io
import pickle
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from helpers import DTYPES, golden, tensor
from msf_pmsn_plugins import neurons
from msf_pmsn_plugins.surrogate import Surrogate
from tolerances import assert_close, assert_same

snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from snntorch import surrogate, utils  # noqa: E402
from snntorch.functional import probe, quant  # noqa: E402

from msf_pmsn_plugins.snntorch import MSF, PMSN, ParallelIF, SnnTorchNeuron, detach, reset  # noqa: E402

MECHANISMS = ("zero", "subtract", "none")
BOTH = pytest.mark.parametrize("make", [MSF.published, lambda **kw: PMSN(6, **kw)], ids=["msf", "pmsn"])


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def steps(neuron, x_seq, mem=None):
    """A loop of single steps: spikes [T, B, *], every mem, the last mem."""
    spks, mems = [], []
    for x in x_seq.unbind(0):
        spk, mem = neuron(x, mem)
        spks.append(spk)
        mems.append(mem)
    return torch.stack(spks), mems, mem


def parts(mem):
    return mem if isinstance(mem, tuple) else (mem,)


# Numbers: golden vectors and the stock neuron.


@pytest.mark.parametrize("sequence", [False, True], ids=["steps", "sequence"])
@pytest.mark.parametrize("mechanism", ["zero", "subtract"])
@pytest.mark.parametrize("threshold", [1.0, 0.5])
@pytest.mark.parametrize("beta", [0.25, 0.5])
@pytest.mark.parametrize("p", DTYPES)
def test_golden_leaky(p, beta, threshold, mechanism, sequence):
    g = golden("snntorch_leaky")
    key = f"{p}_beta{beta}_th{threshold}_{mechanism}_delay1".replace("0.", "0p").replace("1.", "1p")
    x = tensor(g["x"], DTYPES[p]).requires_grad_()
    gy = tensor(g["gy"], DTYPES[p])
    msf = MSF.published(
        beta, threshold, D=1, reset_mechanism=mechanism, spike_grad=Surrogate("atan", 2.0), sequence=sequence
    )
    if sequence:
        spk, mem = msf(x)
    else:
        spk, mems, mem = steps(msf, x)
        assert_same(torch.stack(mems), tensor(g["mem_" + key]))
    assert_same(spk, tensor(g["y_" + key], DTYPES[p]))
    assert_same(mem, tensor(g["mem_" + key][-1]))
    (spk * gy).sum().backward()
    assert_close(x.grad, tensor(g["gx_" + key]), "msf_gradient")


@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_ours_fires_where_the_stock_neuron_is_silent(threshold):
    g = golden("snntorch_leaky")
    x = tensor(g["x_tie"])
    spk, mems, _ = steps(MSF.published(0.25, threshold, D=1), x)
    silent = tensor(g[f"y_tie_beta0.25_th{threshold}_zero".replace("0.", "0p").replace("1.", "1p")])
    assert_same(spk, (torch.stack(mems) >= threshold).float())
    assert spk[0].sum() > silent[0].sum()  # before the two trajectories part
    assert ((spk[0] == 1) & (silent[0] == 0) == (x[0] == threshold)).all()


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(("beta", "threshold"), [(0.25, 1.0), (0.9, 0.3), (0.5, 0.7)])
@pytest.mark.parametrize("inhibition", [False, True])
@pytest.mark.parametrize("gradient", ["atan", surrogate.atan()], ids=["ours", "stock"])
@pytest.mark.filterwarnings("ignore:Inhibition:UserWarning")
def test_one_threshold_is_leaky_bit_for_bit(mechanism, beta, threshold, inhibition, gradient):
    kwargs = {"beta": beta, "threshold": threshold, "reset_mechanism": mechanism, "inhibition": inhibition}
    results = []
    for neuron in (snn.Leaky(**kwargs), MSF.published(D=1, spike_grad=gradient, **kwargs)):
        x = (1.5 * randn(50, 4, 8)).requires_grad_()
        spk, mems, mem = steps(neuron, x)
        ((spk * randn(50, 4, 8, seed=1)).sum() + mem.sum()).backward()
        results.append((spk, torch.stack(mems), x.grad))
    assert results[0][0].mean() > 0.02
    for stock, ours in zip(*results, strict=True):
        assert_same(ours, stock)


def test_subtract_removes_the_threshold_once_per_spike():
    spk, mems, _ = steps(
        MSF.published(0.5, D=4, reset_mechanism="subtract"), torch.tensor([[[3.25]], [[0.5]], [[0.0]]])
    )
    assert spk.flatten().tolist() == [3, 0, 0]
    assert [m.item() for m in mems] == [3.25, 0.5 * 3.25 + 0.5 - 3, 0.5 * -0.875]


def test_counts_and_membranes_are_the_held_neurons():
    x = 3 * randn(12, 4, 8)
    spk, mems, _ = steps(MSF.published(D=4), x)
    s, _, m = neurons.MSF(D=4).sequence(x, membrane=True)
    assert spk.max() > 1
    assert_same(spk, s)
    assert_same(torch.stack(mems), m)


@pytest.mark.parametrize("threshold", [1.0, 0.3])
def test_pmsn_mem_is_volts_and_hidden_state(threshold):
    torch.manual_seed(0)
    pmsn = PMSN(6, compartments=4, threshold=threshold)
    x = 2 * randn(9, 3, 6)
    spk, mems, mem = steps(pmsn, x)
    s, (r, z_held), m = pmsn.neuron.sequence(x, membrane=True)
    assert spk.sum() > 0
    assert_close(torch.stack(mems), m, "drive")
    assert type(torch.stack(mems)) is torch.Tensor
    v, z = pmsn.carried
    assert_same(pmsn(x[0], (v, z))[0], pmsn(x[0], mem)[0])  # the explicit tuple is taken everywhere
    assert (v.shape, z.shape, z.dtype) == ((3, 6), (3, 6, 3), torch.complex64)
    assert_same(spk, s)
    assert_close(v, r * threshold, "drive")
    assert_close(z, z_held, "drive")


# Sequences.


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(
    "gradient", [None, "sigmoid", surrogate.fast_sigmoid()], ids=["own", "name", "stock"]
)
def test_msf_sequence_is_steps_is_chunks(mechanism, gradient):
    results = []
    for way in ("steps", "sequence", "chunks"):
        msf = MSF.published(D=3, reset_mechanism=mechanism, spike_grad=gradient, sequence=way != "steps")
        x = (2 * randn(11, 4, 5)).requires_grad_()
        if way == "steps":
            spk, _, mem = steps(msf, x)
        elif way == "sequence":
            spk, mem = msf(x)
        else:
            first, mem = msf(x[:4])
            none, mem = msf(x[4:4], mem)
            rest, mem = msf(x[4:], mem)
            spk = torch.cat([first, none, rest])
        ((spk * randn(11, 4, 5, seed=1)).sum() + (mem * randn(4, 5, seed=2)).sum()).backward()
        results.append((spk, mem, x.grad))
    for spk, mem, grad in results[1:]:
        assert_same(spk, results[0][0])
        assert_same(mem, results[0][1])
        assert_close(grad, results[0][2], "adjoint")


@pytest.mark.parametrize("threshold", [1.0, 0.3])
def test_pmsn_sequence_is_steps_is_chunks(threshold):
    results = []
    for way in ("steps", "sequence", "chunks"):
        torch.manual_seed(0)
        pmsn = PMSN(6, threshold=threshold, sequence=way != "steps").double()
        x = (2 * randn(11, 3, 6, dtype=torch.float64)).requires_grad_()
        if way == "steps":
            spk, _, mem = steps(pmsn, x)
        elif way == "sequence":
            spk, mem = pmsn(x)
        else:
            first, mem = pmsn(x[:4])
            rest, mem = pmsn(x[4:], mem)
            spk = torch.cat([first, rest])
        ((spk * randn(11, 3, 6, seed=1)).sum() + mem[1].abs().sum()).backward()
        results.append((spk, *mem, x.grad, pmsn.neuron.A_imag.grad))
    assert results[0][0].sum() > 0
    for spk, v, z, *grads in results[1:]:
        assert_same(
            spk, results[0][0]
        )  # in double no membrane of these comes near a multiple of the threshold
        assert_close(v, results[0][1], "drive")
        assert_close(z, results[0][2], "drive")
        for grad, expected in zip(grads, results[0][3:], strict=True):
            assert_close(grad, expected, "pmsn_adjoint")


@BOTH
def test_hidden_state_goes_on_over_chunks(make):
    torch.manual_seed(0)
    hidden = make(init_hidden=True, sequence=True)
    x = 2 * randn(9, 3, 6)
    whole = hidden(x)
    reset(hidden)
    assert_same(torch.cat([hidden(x[:2]), hidden(x[2:])]), whole)


@pytest.mark.filterwarnings("ignore:Inhibition:UserWarning")
@pytest.mark.parametrize("sequence", [False, True])
def test_inhibition_lets_the_largest_membrane_emit(sequence):
    msf = MSF.published(inhibition=True, sequence=sequence)
    x = torch.tensor([[3.5, 1.5, 2.5], [0.5, 0.25, torch.nan]])
    spk, _ = msf(x.unsqueeze(0) if sequence else x)
    assert_same(spk.reshape(2, 3), torch.tensor([[3.0, 0, 0], [0, 0, 0]]))
    if not sequence:
        assert_same(msf.fire_inhibition(1, x[:1]), torch.tensor([[3.0, 0, 0]]))
        with pytest.raises(ValueError, match="axis 1"):
            MSF.published(inhibition=True)(torch.zeros(3))


# Conventions: arity, hidden and passed state, errors.


@BOTH
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("init_hidden", [False, True])
def test_arity(make, init_hidden, output, sequence):
    neuron = make(init_hidden=init_hidden, output=output, sequence=sequence)
    x = randn(5, 2, 6) if sequence else randn(2, 6)
    out = neuron(x)
    if init_hidden and not output:
        assert out.shape == x.shape
    else:
        spk, mem = out
        assert spk.shape == x.shape
        assert parts(mem)[0].shape == (2, 6)
        assert all(a is b for a, b in zip(parts(mem), parts(neuron.mem), strict=True))


@BOTH
def test_left_out_mem_goes_on_and_reset_mem_starts_anew(make):
    torch.manual_seed(0)
    neuron, x = make(), 2 * randn(6, 3, 6)
    explicit, _, _ = steps(neuron, x)
    mem = neuron.reset_mem()
    assert_same(
        steps(neuron, x, mem)[0], explicit
    )  # the state at rest may be passed, as in snnTorch's examples
    neuron.reset_mem()
    assert_same(torch.stack([neuron(step)[0] for step in x]), explicit)


@BOTH
def test_state_of_another_batch_raises_until_reset(make):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), make(init_hidden=True))
    fresh = net(randn(2, 6))
    with pytest.raises(ValueError, match=r"\(2, 6\).*\(5, 6\).*msf_pmsn_plugins\.snntorch\.reset\(net\)"):
        net(randn(5, 6))
    assert parts(net[1].mem)[0].shape == (2, 6)
    reset(net)
    net(randn(5, 6))
    reset(net)
    assert_same(net(randn(2, 6)), fresh)
    loose = make()
    with pytest.raises(ValueError, match=r"\(2, 6\).*\(5, 6\).*reset"):
        loose(randn(5, 6), net[1].mem)


@BOTH
def test_mem_with_init_hidden_leaves_the_state(make):
    neuron = make(init_hidden=True)
    neuron(randn(2, 6))
    before = neuron.mem
    with pytest.raises(TypeError, match="init_hidden=True"):
        neuron(randn(2, 6), before)
    assert neuron.mem is before


@BOTH
def test_bad_input(make):
    with pytest.raises(TypeError, match="complex64"):
        make()(torch.zeros(2, 6, dtype=torch.complex64))
    with pytest.raises(TypeError, match="torch.Tensor"):
        make(sequence=True)([1.0])
    with pytest.raises(ValueError, match=r"\[T, B, \*\]"):
        make(sequence=True)(torch.tensor(6.0))
    for mem, kind in (((1.0, 2.0), "float, float"), (0.0, "float"), ((), "nothing")):
        with pytest.raises(TypeError, match=f"tuple of tensors, got {kind}: pass what"):
            make()(torch.zeros(2, 6), mem)
    with pytest.raises(TypeError, match="torch.Tensor"):
        make()(None)


@pytest.mark.parametrize(
    "make",
    [MSF, lambda **kw: MSF(state_quant=torch.tanh, **kw), lambda **kw: PMSN(6, **kw), ParallelIF],
    ids=["msf", "quantised", "pmsn", "parallel_if"],
)
def test_an_empty_sequence_keeps_the_graph(make):
    neuron = make(sequence=True)
    x = torch.zeros(0, 5, 6, requires_grad=True)
    spk, mem = neuron(x)
    assert spk.shape == x.shape
    assert mem is neuron.mem
    assert neuron.carried is None
    spk.sum().backward()
    assert x.grad.shape == x.shape


@BOTH
def test_empty_tensors_and_views(make):
    torch.manual_seed(0)
    neuron = make(sequence=True)
    spk, mem = neuron(torch.zeros(3, 0, 6))
    assert spk.shape == (3, 0, 6)
    assert parts(mem)[0].shape == (0, 6)
    reset(neuron)
    x = 2 * randn(4, 2, 6)
    _, mem = neuron(x)
    spk, same = neuron(x[:0], mem)
    assert spk.shape == (0, 2, 6)
    assert same is mem
    with pytest.raises(ValueError, match=r"\(2, 6\).*\(5, 6\)"):
        neuron(torch.zeros(0, 5, 6), mem)
    reset(neuron)
    strided = neuron(x.transpose(0, 1).contiguous().transpose(0, 1))[0]
    reset(neuron)
    assert_same(strided, neuron(x)[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParallelIF(learn_threshold=True), "learn_threshold"),
        (lambda: MSF.published(beta=1.0, learn_beta=True), "starts in"),
        (lambda: MSF.published(beta=1.5), "beta"),
        (lambda: MSF.published(beta=torch.rand(3) - 1), "beta"),
        (lambda: MSF.published(threshold=torch.zeros(3)), "threshold"),
        (lambda: PMSN(6, threshold=torch.ones(3)), "one number"),
        (lambda: MSF.published(threshold=nn.Parameter(torch.tensor(1.0))), "learned"),
        (lambda: MSF.published(threshold=0.0), "threshold"),
        (lambda: MSF.published(reset_mechanism="hard"), "'zero', 'subtract', 'none'"),
        (lambda: MSF.published(state_quant=True), "state_quant"),
        (lambda: MSF.published(spike_grad="atna"), "known: rectangular"),
        (lambda: MSF.published(backend="tpu"), "unknown backend"),
        (lambda: PMSN(6, state_quant=quant.state_quant()), "complex"),
        (lambda: PMSN(6, learn_threshold=True), "learn_threshold"),
        (lambda: PMSN(6, compartments=1), "compartments"),
    ],
)
def test_what_cannot_be_kept_is_refused(make, message):
    alive = len(snn.SpikingNeuron.instances)
    with pytest.raises(ValueError, match=message):
        make()
    assert len(snn.SpikingNeuron.instances) == alive  # no half-built neuron in the host's list


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="spike_grad"):
        MSF.published(spike_grad=3)
    with pytest.raises(TypeError):
        PMSN(6, reset_mechanism="zero")


# One source of truth.


def test_numbers_change_after_construction():
    msf = MSF.published(D=1)
    x = torch.full((1, 1), 0.5)
    assert (msf.beta, msf.threshold, msf.reset_mechanism, msf.reset_mechanism_val) == (0.25, 1.0, "zero", 1)
    msf(x)
    msf.beta, msf.threshold = torch.tensor(0.5), 0.75
    spk, mem = msf(x)
    assert (spk, mem) == (1, 0.75)
    msf.reset_mechanism = "none"
    assert msf(x)[1] == 0.875
    assert msf.neuron.reset_mode == "none"
    msf.spike_grad = nn.Identity()  # a module, too, comes into effect
    x.requires_grad_()
    msf(x)[0].backward()
    assert x.grad == 1
    for name, value in (
        ("beta", 2.0),
        ("threshold", nn.Parameter(torch.ones(()))),
        ("reset_mechanism", "soft"),
    ):
        with pytest.raises(ValueError, match=name.split("_")[0]):
            setattr(msf, name, value)
    assert (msf.beta, msf.threshold, msf.reset_mechanism) == (0.5, 0.75, "none")


def test_pmsn_keeps_its_own_reset():
    pmsn = PMSN(6)
    pmsn.reset_mechanism = "subtract"
    with pytest.raises(ValueError, match="its own way"):
        pmsn.reset_mechanism = "zero"
    pmsn.threshold = 2.0
    assert pmsn.neuron.v_threshold == 2.0
    assert_same(pmsn.fire(torch.tensor([1.9, 2.0])), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("gradient", ["atan", "fast_sigmoid", "straight_through_estimator", "triangular"])
def test_stock_surrogates_give_their_gradient_under_our_forward(gradient):
    function = getattr(surrogate, gradient)()
    u = torch.tensor([-2.0, -0.25, 0.0, 0.25, 2.0])
    stock, ours = u.clone().requires_grad_(), (u + 1).unsqueeze(0).requires_grad_()
    function(stock).sum().backward()
    msf = MSF.published(D=1, spike_grad=function)
    spk, _ = msf(ours)
    spk.sum().backward()
    assert spk.flatten().tolist() == [0, 0, 1, 1, 1]
    assert_same(ours.grad[0], stock.grad)
    assert msf(ours.detach().half(), msf.reset_mem())[0].dtype == torch.float16


def test_surrogate_disable_cuts_the_gradient():
    x = (2 * randn(4, 2, 6)).requires_grad_()
    for make in (MSF, lambda **kw: PMSN(6, **kw)):
        for neuron in (make(surrogate_disable=True), make(surrogate_disable=True, sequence=True)):
            spk, mem = neuron(x if neuron.sequence else x[0])
            assert spk.sum() > 0
            assert not spk.requires_grad
            assert parts(mem)[-1].requires_grad  # the membrane is still differentiable


@BOTH
@pytest.mark.parametrize("sequence", [False, True])
def test_graded_factor_is_applied_once(make, sequence):
    torch.manual_seed(0)
    plain = make(sequence=sequence)
    x = 3 * randn(4, 2, 6) if sequence else 3 * randn(2, 6)
    spk, _ = plain(x)
    assert spk.sum() > 0
    graded = copy.deepcopy(plain)
    graded.reset_mem()
    graded.graded_spikes_factor = torch.tensor(3.0)
    assert_same(graded(x)[0], 3 * spk)
    learned = make(learn_graded_spikes_factor=True)
    assert "graded_spikes_factor" in dict(learned.named_parameters())
    out, _ = learned(randn(2, 6).half())
    assert out.dtype == torch.float16
    out.sum().backward()


@pytest.mark.parametrize("amount", [None, 0.3, torch.tensor([0.2, 0.5, 0.9, 1.4, 0.7, 1.1])], ids=str)
@pytest.mark.parametrize("words", [{}, {"retake": True}, {"reset_delay": True}], ids=str)
@pytest.mark.parametrize("D", [1, 3])
def test_a_quantiser_that_changes_nothing_changes_nothing(D, words, amount):
    x = torch.randn(20, 3, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    found = []
    for quantise in (False, lambda mem: mem):
        held = neurons.MSF(D, 0.5, reset_mode="soft", reset_step=amount, **words)
        neuron = MSF.from_neuron(held, sequence=True)
        neuron.state_quant = quantise
        found.append(neuron(x))
    (s, mem), (s_quantised, mem_quantised) = found
    assert s.any()
    assert torch.equal(s_quantised, s)
    assert torch.equal(mem_quantised, mem)


def test_state_quant_is_what_leaky_does():
    quantise = quant.state_quant(num_bits=4, threshold=1.0)
    x = 1.5 * randn(20, 3, 4)
    results = []
    for neuron in (
        snn.Leaky(0.5, reset_mechanism="zero", state_quant=quantise),
        MSF.published(0.5, D=1, state_quant=quantise, spike_grad="atan"),
    ):
        xi = x.clone().requires_grad_()
        spk, mems, _ = steps(neuron, xi)
        spk.sum().backward()
        results.append((spk, torch.stack(mems), xi.grad))
    assert len(results[0][1].unique()) <= 16
    assert results[0][0].sum() > 0
    for stock, ours in zip(*results, strict=True):
        assert_same(ours, stock)
    spk, mem = MSF.published(0.5, D=1, state_quant=quantise, sequence=True)(x)
    assert_same(spk, results[0][0])
    assert_same(mem, results[0][1][-1])


# Dtypes, saving, copying.


@BOTH
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_output_has_the_inputs_dtype_and_state_does_not(make, dtype, sequence):
    neuron = make(sequence=sequence)
    if dtype != torch.float32:
        neuron = neuron.to(dtype)
    x = randn(3, 2, 6, dtype=dtype)
    spk, mem = neuron(x if sequence else x[0])
    assert spk.dtype == dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert parts(mem)[0].dtype == wide
    if isinstance(mem, tuple):
        assert mem[1].dtype == wide.to_complex()
    before = [part.clone() for part in parts(mem)]
    neuron.half()
    for part, kept in zip(parts(neuron.mem), before, strict=True):
        assert_same(part, kept)


@BOTH
def test_state_moves_with_the_module(make):
    neuron = make()
    neuron(randn(2, 6))
    neuron.to("meta")
    assert all(part.device.type == "meta" for part in parts(neuron.mem))
    assert neuron.threshold.device.type == "meta"


@BOTH
def test_state_dict_round_trip(make):
    torch.manual_seed(0)
    source = make(threshold=0.3, graded_spikes_factor=2.0)
    source(randn(2, 6))
    state = source.state_dict()
    assert not any("mem" in key for key in state)
    assert {"threshold", "graded_spikes_factor", "reset_mechanism_val"} <= set(state)
    target = make()
    target.load_state_dict(state)
    assert target.neuron.v_threshold == 0.3
    x = 2 * randn(2, 6)
    assert_same(target(x)[0], source(x, source.reset_mem())[0])
    # the held neuron's own entries are complete
    canonical = {f"neuron.{key}": value for key, value in source.neuron.state_dict().items()}
    make().load_state_dict(canonical)


def test_a_checkpoint_of_leaky_loads():
    msf = MSF.published(D=1)
    msf.load_state_dict(snn.Leaky(0.5, threshold=0.75).state_dict())  # "subtract" is Leaky's default
    assert (msf.beta, msf.threshold, msf.reset_mechanism) == (0.5, 0.75, "subtract")
    each = snn.Leaky(torch.rand(3), threshold=torch.rand(3) + 0.5)
    msf.load_state_dict(each.state_dict())
    assert_same(msf.beta, each.beta)
    assert_same(msf.threshold, each.threshold)
    with pytest.raises(RuntimeError, match="one number"):
        PMSN(3).load_state_dict(each.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="its own way"):
        PMSN(6).load_state_dict({**PMSN(6).state_dict(), "reset_mechanism_val": torch.tensor(1)})


def test_lazy_pmsn():
    pmsn = PMSN()
    assert pmsn.channels is None
    optimizer = torch.optim.SGD(pmsn.parameters(), 0.1)
    spk, _ = pmsn(randn(2, 7))
    spk.sum().backward()
    optimizer.step()
    assert pmsn.channels == 7
    loaded = PMSN()
    loaded.load_state_dict(pmsn.state_dict())
    assert_same(loaded.neuron.log_dt, pmsn.neuron.log_dt)
    with pytest.raises(ValueError, match="channels=5"):
        pmsn(randn(2, 5))


@BOTH
def test_pickle_and_deepcopy_also_with_a_graph(make):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), make(spike_grad="atan", init_hidden=True))
    net(randn(2, 6))
    assert any(part.requires_grad for part in parts(net[1].mem))
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    copies = [copy.deepcopy(net), torch.load(file, weights_only=False), pickle.loads(pickle.dumps(net))]
    expected = net(2 * randn(2, 6, seed=1))
    for twin in copies:
        assert not any(part.requires_grad for part in parts(twin[1].mem))
        assert_same(twin(2 * randn(2, 6, seed=1)), expected)


# Utilities over whole networks.


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.stock = snn.Leaky(0.5, init_hidden=True)
        self.deep = nn.ModuleDict(
            {
                "msf": MSF.published(init_hidden=True),
                "pmsn": nn.Sequential(PMSN(6, init_hidden=True)),
                "syn": snn.Synaptic(0.5, 0.5, init_hidden=True),
                "rec": snn.RLeaky(0.5, linear_features=6, init_hidden=True),
            }
        )

    def forward(self, x):
        x = 2 * self.deep["msf"](self.fc(x) + x)
        return self.deep["rec"](self.deep["syn"](self.deep["pmsn"](2 * self.stock(x))))


def states(net):
    stock = [
        net.stock.mem,
        net.deep["syn"].syn,
        net.deep["syn"].mem,
        net.deep["rec"].mem,
        net.deep["rec"].spk,
    ]
    return [*stock, net.deep["msf"].mem, *net.deep["pmsn"][0].mem]


@pytest.mark.parametrize("copied", [False, True])
def test_reset_and_detach_reach_every_neuron(copied):
    torch.manual_seed(0)
    net = Mixed()
    net = copy.deepcopy(net) if copied else net
    x = 2 * randn(4, 3, 6)
    first = torch.stack([net(step) for step in x])
    other = Mixed()
    other(x[0])
    assert any(part.requires_grad for part in states(net))
    detach(net)
    assert not any(part.requires_grad for part in states(net))
    assert any(part.abs().sum() > 0 for part in states(net))
    reset(net)
    assert all(part.abs().sum() == 0 for part in states(net))
    assert any(part.abs().sum() > 0 for part in states(other))  # another net is left alone
    assert_same(torch.stack([net(step) for step in x]), first)


def test_stock_reset_does_not_raise_on_a_mixed_net():
    net = Mixed()
    net(randn(3, 6))
    utils.reset(net)


def test_class_methods_reach_the_hosts_list():
    a, b, p = MSF.published(), MSF.published(), PMSN(6)
    for neuron in (a, b, p):
        neuron(randn(2, 6).requires_grad_())
    MSF.detach_hidden()
    assert not a.mem.requires_grad
    assert p.mem.requires_grad
    MSF.reset_hidden()
    assert a.mem.shape == b.mem.shape == (0,)
    assert p.mem.shape == (2, 6)
    SnnTorchNeuron.reset_hidden()
    assert p.mem.shape == (0,)


def test_reset_names_a_neuron_that_cannot_be_reset():
    class Homemade(snn.SpikingNeuron):
        mem = 0.0

    with pytest.raises(TypeError, match="Homemade at '0'"):
        reset(nn.Sequential(Homemade()))


@BOTH
def test_truncated_backpropagation_over_two_windows(make):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), make(init_hidden=True))
    x = randn(8, 3, 6)
    for window in x.split(4):
        net.zero_grad()
        sum(net(step).sum() for step in window).backward()
        detach(net)
    # by hand: the second window alone, from the detached state of the first
    expected = net[0].weight.grad.clone()
    net.zero_grad()
    reset(net)
    with torch.no_grad():
        for step in x[:4]:
            net(step)
    sum(net(step).sum() for step in x[4:]).backward()
    assert expected.abs().sum() > 0
    assert_close(net[0].weight.grad, expected, "adjoint")


def test_monitors_record():
    net = nn.Sequential(nn.Linear(6, 6), MSF.published(init_hidden=True))
    spikes = probe.OutputMonitor(net, MSF)
    membranes = probe.AttributeMonitor("mem", False, net, MSF)
    for step in randn(3, 2, 6):
        net(step)
    assert [record.shape for record in spikes.records] == 3 * [(2, 6)]
    assert [record.shape for record in membranes.records] == 3 * [(2, 6)]


@BOTH
def test_training_lowers_the_loss(make):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 6), make(init_hidden=True, sequence=True), nn.Linear(6, 2))
    x = randn(4, 32, 10)
    y = (x.mean(0)[:, 0] > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    losses = []
    for _ in range(25):
        reset(net)
        loss = nn.functional.cross_entropy(net(x).mean(0), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("gradient", ["atan", surrogate.atan()], ids=["ours", "stock"])
@pytest.mark.parametrize("init_hidden", [False, True])
def test_compile_has_no_graph_break(init_hidden, gradient):
    torch._dynamo.reset()
    msf = MSF.published(D=2, init_hidden=init_hidden, spike_grad=gradient)
    eager = copy.deepcopy(msf)
    compiled = torch.compile(msf, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        x = 2 * randn(3, 4, seed=seed)
        out, expected = compiled(x), eager(x)
        assert_same(out if init_hidden else out[0], expected if init_hidden else expected[0])


def test_a_new_neuron_works_through_the_base_class():
    class Counter(neurons.Neuron):
        def initial_state(self, x):
            return (torch.zeros_like(x),)

        def step(self, x, state):
            n = state[0] + 1
            return (n >= 2).to(x.dtype) + 0 * x, (n,), n

    neuron = SnnTorchNeuron(Counter(), sequence=True)
    spk, mem = neuron(torch.zeros(3, 2, 1))
    assert spk[:, 0, 0].tolist() == [0, 1, 1]
    assert mem.tolist() == [[3], [3]]


def test_without_snntorch_the_import_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("msf_pmsn_plugins.snntorch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "snntorch", None)
    with pytest.raises(ImportError, match=r"msf-pmsn-plugins\[snntorch\]"):
        importlib.import_module("msf_pmsn_plugins.snntorch")


def test_no_warning_on_the_usual_path():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MSF.published(init_hidden=True)(randn(2, 6))
        PMSN(6)(randn(2, 6))


@pytest.mark.parametrize("as_given", [list, tuple, np.asarray, lambda v: np.asarray(v, dtype=np.float32)])
@pytest.mark.parametrize("learn", [False, True])
def test_numbers_come_as_leaky_takes_them(as_given, learn):
    beta, threshold = as_given([0.9, 0.8, 0.5]), as_given([1.0, 0.5, 2.0])
    options = {"learn_beta": learn, "learn_threshold": learn}
    ours = MSF(beta, threshold, D=1, **options)
    stock = snn.Leaky(beta, threshold=threshold, **options)
    x = 2 * randn(4, 3)
    assert_same(ours(x)[0], stock(x)[0].float())
    assert_close(ours.beta.float(), stock.beta.detach().float(), "slope")
    if not learn:
        ours.beta = as_given([0.1, 0.2, 0.3])
        assert_close(ours.beta.float(), torch.tensor([0.1, 0.2, 0.3]), "slope")
