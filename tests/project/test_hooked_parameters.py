"""Parameters that hooks of torch.nn.utils make before each call: a node has them made as its neuron's own call does."""

import copy

import pytest
import torch
from torch.nn.utils import prune, spectral_norm, weight_norm

from helpers import randn
from msf_pmsn_plugins import state as states
from msf_pmsn_plugins.neurons import MSF
from networks import both_hosts, nodes_for
from subjects import build_pmsn
from tolerances import F32, F64, assert_close, assert_same

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")

HOOKS = {
    "pruned": lambda neuron, name: prune.l1_unstructured(neuron, name, 0.3),
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
}
MAKERS = {
    **{f"PMSN {kind}": (lambda: build_pmsn(), kind, "CV_real") for kind in HOOKS},
    "PMSN direct gain": (lambda: build_pmsn(), "pruned", "D"),
    "MSF decay": (lambda: MSF(learn_decay=True), "pruned", "decay_logit"),
    "MSF charge": (lambda: MSF(charge="plif", w=0.5), "pruned", "w"),
    "MSF threshold": (lambda: MSF(learn_threshold=True), "pruned", "v_threshold"),
}
every = pytest.mark.parametrize("case", MAKERS)
steps_or_all = pytest.mark.parametrize("step_by_step", [True, False], ids=["steps", "sequence"])
both_dtypes = pytest.mark.parametrize("dtype", [F32, F64])


def hooked(case):
    """A neuron with such a parameter; in evaluation, where a spectral norm does not iterate."""
    make, kind, name = MAKERS[case]
    torch.manual_seed(0)
    neuron = make()
    HOOKS[kind](neuron, name)
    return neuron.eval()


def node_of(host, neuron, step_by_step, **options):
    module, name = nodes_for(host), type(neuron).__name__
    if host == "spikingjelly":
        cls = getattr(module, f"{name}Node")
        return cls.from_neuron(neuron, step_mode="s" if step_by_step else "m", **options).eval()
    return getattr(module, name).from_neuron(neuron, init_hidden=True, sequence=not step_by_step).eval()


def spikes(node, x_seq, step_by_step):
    """From rest."""
    states.write(node, {})
    return torch.stack([node(x) for x in x_seq]) if step_by_step else node(x_seq)


def inputs(dtype=F32):
    return 2 * randn(6, 4, 3, dtype=dtype)


def change(neuron):
    """All that the hooks read, in place, as an optimizer does."""
    for name, p in neuron.named_parameters():
        if name.endswith(("_orig", "_v", "_g")):
            p.add_(0.5 + torch.rand_like(p))


@both_dtypes
@steps_or_all
@every
@both_hosts
def test_a_node_trains_them_as_its_neuron_does(host, case, step_by_step, dtype):
    node, bare, x_seq = node_of(host, hooked(case), step_by_step), hooked(case), inputs(dtype)
    name = next(n for n, _ in bare.named_parameters() if n.endswith(("_orig", "_v")))
    optimizer = torch.optim.SGD(node.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        bare.zero_grad()
        bare.load_state_dict(node.neuron.state_dict())
        given, expected = spikes(node, x_seq, step_by_step), bare(x_seq)[0]
        assert_same(given, expected)
        given.square().mean().backward()
        expected.square().mean().backward()
        for p, q in zip(node.neuron.parameters(), bare.parameters(), strict=True):
            assert_close(p.grad, q.grad, "adjoint")
        assert getattr(node.neuron, name).grad.any()
        optimizer.step()


@steps_or_all
@every
@both_hosts
def test_a_changed_parameter_is_seen_without_gradients(host, case, step_by_step):
    node, x_seq = node_of(host, hooked(case), step_by_step), inputs()
    with torch.no_grad():
        before = spikes(node, x_seq, step_by_step)
        change(node.neuron)
        after = spikes(node, x_seq, step_by_step)
        assert not torch.equal(before, after)
        assert_same(after, node.neuron(x_seq)[0])


@every
def test_stored_membranes_see_them_too(case):
    node, x_seq = node_of("spikingjelly", hooked(case), False, store_v_seq=True), inputs()
    with torch.no_grad():
        spikes(node, x_seq, False)
        change(node.neuron)
        assert_same(spikes(node, x_seq, False), node.neuron(x_seq)[0])


def test_thresholds_of_each_element_see_them_too():
    node, x_seq = node_of("spikingjelly", hooked("PMSN pruned"), False), inputs()
    with torch.no_grad():
        for factor in (1.0, 0.25):
            node.neuron.CV_real_orig.mul_(factor)
            node.v_threshold = 1.0
            expected = spikes(node, x_seq, False)
            node.v_threshold = torch.ones(4, 3)
            node.neuron.CV_real_orig.mul_(2)
            node.neuron.CV_real_orig.div_(2)
            assert_same(spikes(node, x_seq, False), expected)


@every
@both_hosts
def test_what_is_saved_is_what_torch_saves(host, case):
    node, x_seq = node_of(host, hooked(case), False), inputs()
    names = set(hooked(case).state_dict())
    with torch.no_grad():
        expected = spikes(node, x_seq, False)
    for _ in range(2):
        spikes(node, x_seq, False).sum().backward()
        assert {n.removeprefix("neuron.") for n in node.state_dict() if n.startswith("neuron.")} == names
        with torch.no_grad():
            spikes(node, x_seq, False)
    other = node_of(host, hooked(case), False)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
        states.write(node, {})
        other.load_state_dict(copy.deepcopy(node.state_dict()))
        assert_same(spikes(other, x_seq, False), expected)


@both_hosts
def test_counters_see_the_node_alone(host):
    seen, node = [], node_of(host, build_pmsn(), False)
    node.neuron.register_forward_pre_hook(lambda *_: seen.append("before"))
    node.neuron.register_forward_hook(lambda *_: seen.append("after"))
    node.register_forward_hook(lambda *_: seen.append("node"))
    with torch.no_grad():
        spikes(node, inputs(), False)
    assert seen == ["node"]


@both_hosts
def test_compiled_nodes_make_them_too(host):
    torch._dynamo.reset()
    node, x_seq = node_of(host, hooked("PMSN pruned"), False), inputs()
    compiled = torch.compile(node, backend="aot_eager")
    with torch.no_grad():
        for factor in (1.0, 0.25, 3.0):
            node.neuron.CV_real_orig.mul_(factor)
            given = spikes(compiled, x_seq, False)
            states.write(node, {})
            assert_same(given, node.neuron(x_seq)[0])
