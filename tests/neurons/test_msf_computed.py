"""Numbers of MSF that are computed from others: parametrised, pruned, views, replicas. Nothing is lost on the way."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from helpers import randn
from msf_pmsn_plugins import snntorch as ours_snntorch
from msf_pmsn_plugins import spikingjelly as ours_spikingjelly
from msf_pmsn_plugins.neurons import MSF, PMSN
from tolerances import F32, F64, assert_close, assert_same

C = 5
X_SEQ = 3 * randn(7, 4, C, dtype=F32)
MASK = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0])


def numbers(dtype=F32):
    return torch.linspace(0.5, 0.9, C, dtype=dtype)


NEURONS = {
    "v_threshold": lambda values, **kw: MSF(v_threshold=nn.Parameter(values), **kw),
    "reset_step": lambda values, **kw: MSF(reset_mode="soft", reset_step=nn.Parameter(values), **kw),
    "_decay": lambda values, **kw: MSF(decay=nn.Parameter(values), **kw),
    "decay_logit": lambda values, **kw: MSF(decay=values, learn_decay=True, **kw),
    "w": lambda values, **kw: MSF(charge="plif", w=values, **kw),
}
every_number = pytest.mark.parametrize("name", NEURONS)


class Double(nn.Module):
    """A parametrisation that is exact in both directions."""

    def forward(self, value):
        return 2 * value

    def right_inverse(self, value):
        return value / 2


def replicate(module):
    """What ``DataParallel`` makes for another device: parameters become tensors that are no leaves."""
    replica = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, 1 * parameter)
    for name, child in module._modules.items():
        setattr(replica, name, None if child is None else replicate(child))
    return replica


def parametrised(module, held, name):
    parametrize.register_parametrization(held, name, Double())
    return module, held.parametrizations[name].original, lambda g: 2 * g


def pruned(module, held, name):
    prune.custom_from_mask(held, name, MASK)
    mask = getattr(held, f"{name}_mask")
    return module, getattr(held, f"{name}_orig"), lambda g: mask * g


def replica(module, held, name):
    return replicate(module), getattr(held, name), lambda g: g


def view(module, held, name):
    value = getattr(held, name).detach()
    flat = nn.Parameter(torch.cat([value.new_zeros(2), value, value.new_zeros(1)]))
    delattr(held, name)
    setattr(held, name, flat[2:-1])
    return module, flat, lambda g: torch.cat([g.new_zeros(2), g, g.new_zeros(1)])


def unsafe_view(module, held, name):
    """As a wrapper does it that passes the module by."""
    value = getattr(held, name).detach()
    flat = nn.Parameter(value.clone())
    held(X_SEQ.to(value.dtype))  # the neuron has seen the plain parameter
    del held._parameters[name]
    held.__dict__[name] = flat[:]
    return module, flat, lambda g: g


WAYS = {f.__name__: f for f in (parametrised, pruned, replica, view, unsafe_view)}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def steps(step):
    def run(neuron, x_seq):
        state, s_seq = neuron.initial_state(x_seq[0]), []
        for x in x_seq:
            s, state, _m = step(neuron)(x, state)
            s_seq.append(s)
        return torch.stack(s_seq), state[0]

    return run


def sequence(neuron, x_seq):
    s_seq, (v, *_), _m = neuron.sequence(x_seq)
    return s_seq, v


def called(neuron, x_seq):
    s_seq, (v, *_) = neuron(x_seq)
    return s_seq, v


def trajectory(neuron, x_seq):
    s_seq, _state, kept = neuron.trajectory(x_seq)
    return s_seq, kept["v"].sum(0)


def spikingjelly(step_mode, **options):
    def run(node, x_seq):
        s_seq = node(x_seq) if step_mode == "m" else torch.stack([node(x) for x in x_seq])
        return s_seq, node.v

    run.node = lambda neuron: ours_spikingjelly.MSFNode.from_neuron(neuron, step_mode, **options)
    return run


def snntorch(whole):
    def run(node, x_seq):
        mem, s_seq = node.reset_mem(), []
        if whole:
            return node(x_seq, mem)
        for x in x_seq:
            s, mem = node(x, mem)
            s_seq.append(s)
        return torch.stack(s_seq), mem

    run.node = lambda neuron: ours_snntorch.MSF.from_neuron(neuron, sequence=whole)
    return run


RUNS = {
    "step": steps(lambda neuron: neuron.step),
    "single": steps(lambda neuron: neuron.single),
    "sequence": sequence,
    "called": called,
    "trajectory": trajectory,
    "spikingjelly-s": spikingjelly("s"),
    "spikingjelly-m": spikingjelly("m"),
    "spikingjelly-stored": spikingjelly("m", store_v_seq=True),
    "snntorch-s": snntorch(False),
    "snntorch-m": snntorch(True),
}
every_run = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


def learn(module, run, x_seq, leaf):
    """Spikes, state, and the gradient to ``leaf``."""
    s_seq, v = run(module, x_seq)
    (gradient,) = torch.autograd.grad((s_seq * torch.arange(1, C + 1)).sum() + v.square().sum(), leaf)
    return s_seq, v, gradient


def in_host(neuron, run):
    return getattr(run, "node", lambda held: held)(neuron)


@every_run
@every_way
@every_number
@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_computed_numbers_compute_and_learn_as_plain_ones(name, way, run, backend, dtype):
    x_seq = X_SEQ.to(dtype)
    plain = NEURONS[name](numbers(dtype), backend=backend)
    held = copy.deepcopy(plain)
    if way is pruned:
        with torch.no_grad():
            getattr(plain, name).mul_(MASK)
    module, leaf, chain = way(in_host(held, run), held, name)
    expected = learn(in_host(plain, run), run, x_seq, getattr(plain, name))
    assert expected[2].any()
    s_seq, v, gradient = learn(module, run, x_seq, leaf)
    assert_same(s_seq, expected[0])
    assert_same(v, expected[1])
    assert_close(gradient, chain(expected[2]), "adjoint")


@every_run
@every_number
@pytest.mark.parametrize("way", [parametrised, pruned])
def test_computed_numbers_follow_what_they_are_made_of(name, way, run):
    """Nodes do not call the neuron they hold, so no hook of torch's prunes it anew."""
    held = NEURONS[name](numbers())
    module, leaf, _chain = way(in_host(held, run), held, name)
    for change in (0.0, 0.05):
        with torch.no_grad():
            leaf.add_(change)
            plain = NEURONS[name](numbers())
            now = 2 * leaf if way is parametrised else MASK * leaf
            getattr(plain, name).copy_(now)
            getattr(module, "reset", lambda: None)()
            assert_same(run(module, X_SEQ)[0], run(in_host(plain, run), X_SEQ)[0])
        getattr(module, "reset", lambda: None)()
        learn(module, run, X_SEQ, leaf)


@every_number
def test_parametrised_numbers_load_copy_and_are_called_by_function(name):
    def made(values):
        neuron = NEURONS[name](values)
        parametrize.register_parametrization(neuron, name, Double())
        return neuron

    neuron, other = made(numbers()), made(numbers().flip(0))
    entry = f"parametrizations.{name}.original"
    assert list(neuron.state_dict()) == [entry]
    assert not torch.equal(neuron(X_SEQ)[0], other(X_SEQ)[0])
    by_function = torch.func.functional_call(other, {entry: neuron.state_dict()[entry]}, (X_SEQ,))
    assert_same(by_function[0], neuron(X_SEQ)[0])
    assert_same(copy.deepcopy(neuron)(X_SEQ)[0], neuron(X_SEQ)[0])
    file = io.BytesIO()
    torch.save(neuron.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same(other(X_SEQ)[0], neuron(X_SEQ)[0])
    parametrize.remove_parametrizations(other, name)
    assert_same(other(X_SEQ)[0], neuron(X_SEQ)[0])


@every_number
def test_a_parametrised_number_is_compiled(name):
    neuron = NEURONS[name](numbers())
    parametrize.register_parametrization(neuron, name, Double())
    leaf = neuron.parametrizations[name].original
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda module, x_seq: sequence(module, x_seq), backend="aot_eager", fullgraph=True
    )
    for ours, expected in zip(
        learn(neuron, compiled, X_SEQ, leaf), learn(neuron, sequence, X_SEQ, leaf), strict=True
    ):
        assert_close(ours, expected, "adjoint")


@pytest.mark.parametrize("name", ["v_threshold", "reset_step", "_decay"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_pruning_and_views_leave_no_buffer_of_the_value(name, way):
    held = NEURONS[name](numbers())
    module, _leaf, _chain = way(held, held, name)
    assert name not in dict(module.named_buffers())


@pytest.mark.parametrize("name", ["v_threshold", "reset_step", "_decay"])
def test_pruning_without_gradients_leaves_the_same_entries(name):
    def entries():
        neuron = NEURONS[name](numbers())
        prune.custom_from_mask(neuron, name, MASK)
        neuron(X_SEQ)
        return list(neuron.state_dict())

    expected = entries()
    with torch.no_grad():
        assert entries() == expected


@pytest.mark.parametrize("name", ["v_threshold", "reset_step", "_decay"])
def test_a_tensor_that_is_learned_elsewhere_learns(name):
    kept = numbers().requires_grad_()
    neuron = NEURONS[name](numbers())
    expected = learn(neuron, sequence, X_SEQ, getattr(neuron, name))
    delattr(neuron, name)
    setattr(neuron, name, kept)
    for ours, theirs in zip(learn(neuron, sequence, X_SEQ, kept), expected, strict=True):
        assert_same(ours, theirs)
    setattr(neuron, name, numbers())  # a constant is a buffer again
    assert name in dict(neuron.named_buffers())


@pytest.mark.parametrize("channels", [False, True])
def test_a_parametrised_decay_is_assigned_through_its_parametrisation(channels):
    neuron = MSF(decay=numbers() if channels else 0.5, learn_decay=True)
    parametrize.register_parametrization(neuron, "decay_logit", Double())
    neuron.decay = 0.25
    assert_close(neuron.decay.detach(), torch.full_like(neuron.decay, 0.25), "drive")
    node = ours_spikingjelly.MSFNode(charge="plif", w=0.0)
    parametrize.register_parametrization(node.neuron, "w", Double())
    node.tau = 4.0
    assert float(node.tau) == pytest.approx(4.0)


def test_a_pruned_decay_is_not_assigned_over():
    neuron = MSF(decay=numbers(), learn_decay=True)
    prune.custom_from_mask(neuron, "decay_logit", MASK)
    with pytest.raises(RuntimeError, match="decay_logit of this MSF is computed from other tensors"):
        neuron.decay = 0.25


OWNERS = {
    "neuron": lambda held: (held, "v_threshold"),
    "spikingjelly": lambda held: (ours_spikingjelly.MSFNode.from_neuron(held), "v_threshold"),
    "snntorch": lambda held: (ours_snntorch.MSF.from_neuron(held), "threshold"),
}
every_owner = pytest.mark.parametrize("owner", OWNERS.values(), ids=OWNERS)


@every_owner
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("way", [parametrised, None], ids=["parametrised", "plain"])
def test_a_number_goes_into_a_learned_threshold(way, dtype, owner):
    held = MSF(learn_threshold=True).to(dtype)
    module, word = owner(held)
    leaf = held.v_threshold if way is None else way(module, held, "v_threshold")[1]
    if module is held and way is None:
        with pytest.raises(TypeError, match="v_threshold"):  # torch's own, of any module
            module.v_threshold = 2.6
        return
    setattr(module, word, 2.6)
    assert_same(leaf.detach(), torch.tensor(2.6 if way is None else 1.3, dtype=dtype))
    assert_same(held(X_SEQ.to(dtype))[0], MSF(v_threshold=torch.tensor(2.6, dtype=dtype))(X_SEQ.to(dtype))[0])
    setattr(module, word, torch.tensor(1.5, dtype=dtype))
    assert held.v_threshold.item() == 1.5


def test_a_margin_is_no_learned_threshold():
    """``set_threshold_margin`` assigns a tensor of one batch."""
    node = ours_spikingjelly.MSFNode.from_neuron(MSF(learn_threshold=True))
    with pytest.raises(ValueError, match=r"v_threshold .* learned in the shape \(\), got \(4, 5\)"):
        node.v_threshold = torch.ones(4, C)


@every_owner
@pytest.mark.parametrize("learned", [False, True])
def test_a_pruned_threshold_is_not_assigned_over(learned, owner):
    """Nor half: a sequence, a call and single steps agree on the one that is there."""
    held = MSF(v_threshold=nn.Parameter(numbers()), decay=0.5, learn_decay=learned)
    module, word = owner(held)
    prune.custom_from_mask(held, "v_threshold", MASK)
    with pytest.raises(RuntimeError, match="v_threshold of this MSF is computed from other tensors"):
        setattr(module, word, 2.5)
    expected = called(held, X_SEQ)
    for run in ("sequence", "single", "step"):
        for given, theirs in zip(RUNS[run](held, X_SEQ), expected, strict=True):
            assert_same(given, theirs)


@pytest.mark.parametrize("name", ["reset_step", "_decay"])
def test_other_pruned_numbers_are_not_assigned_over(name):
    neuron = NEURONS[name](numbers())
    prune.custom_from_mask(neuron, name, MASK)
    with pytest.raises(RuntimeError, match=f"{name} of this MSF is computed from other tensors"):
        setattr(neuron, name.removeprefix("_"), 0.25)


def test_a_node_keeps_a_threshold_that_learns():
    node = ours_spikingjelly.MSFNode(step_mode="m")
    theta = torch.tensor(0.75, requires_grad=True)
    node.v_threshold = 2 * theta
    node(X_SEQ).sum().backward()
    assert theta.grad.abs() > 0


@pytest.mark.parametrize("run", ["called", "sequence", "single", "step"])
@pytest.mark.parametrize("name", ["A_imag", "log_dt", "D"])
def test_a_pruned_pmsn_follows_its_parameters(name, run):
    neuron, plain = PMSN(C), PMSN(C)
    plain.load_state_dict(neuron.state_dict())
    mask = torch.ones_like(getattr(plain, name))
    mask[1] = 0
    prune.custom_from_mask(neuron, name, mask)
    leaf = getattr(neuron, f"{name}_orig")
    for _ in range(2):
        with torch.no_grad():
            leaf.add_(0.1)
            getattr(plain, name).copy_(mask * leaf)
        expected = learn(plain, RUNS[run], X_SEQ, getattr(plain, name))
        s_seq, _v, gradient = learn(neuron, RUNS[run], X_SEQ, leaf)
        assert_same(s_seq, expected[0])
        assert_close(gradient, mask * expected[2], "adjoint")
