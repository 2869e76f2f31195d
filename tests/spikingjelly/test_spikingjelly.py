"""The nodes as SpikingJelly sees them. Runs on 2.0.0 and, again, on 0.0.0.0.14."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import io
import itertools

import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, monitor, neuron, surrogate
from torch import nn

from helpers import ON_CPU, golden, tensor
from msf_pmsn_plugins import spikingjelly as framework
from msf_pmsn_plugins.neurons import MSF, PMSN
from msf_pmsn_plugins.spikingjelly import MSFNode, ParallelIFNode, PMSNNode
from msf_pmsn_plugins.spikingjelly import host as host_of_nodes
from msf_pmsn_plugins.surrogate import Surrogate
from tolerances import assert_close, assert_same

F32, F64 = torch.float32, torch.float64
NODES = {
    "msf": lambda **kw: MSFNode.published(**kw),
    "msf_soft": lambda **kw: MSFNode.published(v_reset=None, tau=2.0, **kw),
    "msf_host_surrogate": lambda **kw: MSFNode.published(surrogate_function=surrogate.ATan(), D=3, **kw),
    "msf_loop": lambda **kw: MSFNode.published(surrogate_function=surrogate.PiecewiseExp(), **kw),
    "pmsn": lambda **kw: PMSNNode(5, **kw),
    "pmsn_lazy": lambda **kw: PMSNNode(compartments=4, **kw),
    "pmsn_threshold": lambda **kw: PMSNNode(5, v_threshold=0.5, **kw),
}
functional_api = pytest.mark.skipif(
    not framework.FUNCTIONAL, reason="functional transitions came with SpikingJelly 2.0.0"
)


@pytest.fixture(params=NODES)
def node(request):
    torch.manual_seed(0)
    return NODES[request.param](step_mode="m")


@pytest.fixture
def x_seq():
    return torch.randn(6, 3, 5, 2, generator=torch.Generator().manual_seed(1)) * 1.5


def restart(node):
    functional.reset_net(node)
    return node


# Steps, chunks, state ----------------------------------------------------------------------------------------


def test_single_steps_equal_the_sequence(node, x_seq):
    s_seq, v = node(x_seq), node.v.clone()
    node = restart(node)
    node.step_mode = "s"
    assert_same(torch.stack([node(x) for x in x_seq]), s_seq)
    assert_close(node.v, v, "drive")


def test_chunks_equal_the_whole(node, x_seq):
    s_seq, v = node(x_seq), node.v.clone()
    restart(node)
    assert_same(torch.cat([node(x_seq[:1]), node(x_seq[1:4]), node(x_seq[4:])]), s_seq)
    assert_close(node.v, v, "drive")


def test_reset_gives_the_same_output_again(node, x_seq):
    net, x_seq = nn.Sequential(nn.Identity(), nn.Sequential(node)), 0.6 * x_seq.abs()
    first = net(x_seq)
    assert not torch.equal(net(x_seq), first), "state must run on without a reset"
    functional.reset_net(net)
    assert_same(net(x_seq), first)


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_state_of_another_batch_raises_and_stays(node, x_seq, mode, batch):
    node(x_seq)
    before = {k: v.clone() for k, v in node._memories.items() if isinstance(v, torch.Tensor)}
    node.step_mode = mode
    other = torch.randn(6, batch, 5, 2)
    with pytest.raises(ValueError, match="functional.reset_net") as error:
        node(other if mode == "m" else other[0])
    assert "(3, 5, 2)" in str(error.value)
    assert f"({batch}, 5, 2)" in str(error.value)
    for name, value in before.items():
        assert_same(node._memories[name], value)
    fresh = restart(copy.deepcopy(restart(node)))
    node.step_mode = fresh.step_mode = "m"
    assert_same(node(other), fresh(other))


def test_detach_net_cuts_the_graph(node, x_seq):
    net = nn.Sequential(node)
    x_seq.requires_grad_()
    net(x_seq)
    functional.detach_net(net)
    assert not any(v.requires_grad for v in node._memories.values() if isinstance(v, torch.Tensor))
    net(x_seq).sum().backward()
    x_seq.grad = None
    functional.detach_net(net)
    net(x_seq.detach().requires_grad_()).sum().backward()
    assert x_seq.grad is None


def test_truncated_backpropagation_over_windows(node, x_seq):
    """Two windows with a detach between them: gradients do not reach the first window from the second."""
    first, second = x_seq[:3].clone().requires_grad_(), x_seq[3:].clone().requires_grad_()
    node(first)
    node.detach()
    node(second).sum().backward()
    assert first.grad is None
    assert second.grad is not None


def test_store_v_seq(node, x_seq):
    s_seq = node(x_seq)
    restart(node)
    node.store_v_seq = True
    assert_same(node(x_seq), s_seq)
    assert node.v_seq.shape == x_seq.shape
    assert_same(node.v_seq[-1], node.v)
    v_seq = node.v_seq
    restart(node)
    assert node.v_seq is None
    node.step_mode = "s"
    for x in x_seq:
        node(x)
    assert_same(node.v_seq, v_seq)


def test_v_after_reset_is_below_the_threshold():
    node = MSFNode.published(step_mode="m", store_v_seq=True)
    node(torch.randn(20, 4, 3) * 3)
    assert (node.v_seq < 1).all()
    node = PMSNNode(3, v_threshold=0.3, step_mode="m", store_v_seq=True)
    node(torch.randn(20, 4, 3) * 3)
    assert ((node.v_seq >= 0) & (node.v_seq < 0.3)).all()


def test_v_of_pmsn_is_the_residual_in_volts():
    node = PMSNNode(3, v_threshold=0.5, step_mode="m")
    assert node.v == 0.0
    node(torch.rand(4, 2, 3))
    assert_same(node.v, node.r * 0.5)
    node.v = torch.full((2, 3), 0.25)
    assert_same(node.r, torch.full((2, 3), 0.5))


def test_monitors_see_spikes_and_state(node, x_seq):
    net = nn.Sequential(node)
    node.store_v_seq = True
    cls = type(node)
    spikes = monitor.OutputMonitor(net, cls)
    v_seq = monitor.AttributeMonitor("v_seq", False, net, cls)
    v = monitor.AttributeMonitor("v", False, net, cls)
    out = net(x_seq)
    assert_same(spikes.records[0], out)
    assert_same(v_seq.records[0], node.v_seq)
    assert_same(v.records[0], node.v)


@functional_api
def test_functional_transition_is_pure_and_equal(node, x_seq):
    node(x_seq)  # a lazy node finds its width
    restart(node)
    states = tuple(node._memories.values())
    (s_seq,), states = base.to_functional_forward(node)((x_seq,), states)
    assert all(isinstance(v, float) for v in node._memories.values()), (
        "the module's own state must stay untouched"
    )
    assert_same(node(x_seq), s_seq)
    for given, kept in zip(states, node._memories.values(), strict=True):
        assert_same(given, kept)
    with pytest.raises(ValueError, match="states"):
        base.to_functional_forward(node)((x_seq,), states[:-1])


# dtypes, devices, copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F64])
def test_dtypes(node, x_seq, dtype):
    assert node(x_seq.to(dtype)).dtype == dtype
    real, imag = (F64, torch.complex128) if dtype == F64 else (F32, torch.complex64)
    for value in node._memories.values():
        if isinstance(value, torch.Tensor):
            assert value.dtype in (real, imag)


def test_half_leaves_the_state_in_float32(node, x_seq):
    node(x_seq)
    v = node.v.clone()
    node.half()
    assert_same(node.v, v)
    node.to(torch.device("cpu"))
    assert_same(node.v, v)


def test_deepcopy_and_pickle(node, x_seq):
    expected = node(x_seq)
    restart(node)
    assert_same(copy.deepcopy(node)(x_seq), expected)
    file = io.BytesIO()
    torch.save(node, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=False)(x_seq), expected)


def test_state_dict_holds_parameters_alone(x_seq):
    node = PMSNNode(5, step_mode="m")
    node(x_seq)
    names = ["log_dt", "log_A_real", "A_imag", "VinvB_real", "VinvB_imag", "CV_real", "CV_imag", "D"]
    assert list(node.state_dict()) == [f"neuron.{n}" for n in names]
    assert sum(p.numel() for p in node.parameters()) == 5 * 26
    assert not MSFNode.published().state_dict()
    other = PMSNNode(step_mode="m")
    other.load_state_dict(node.state_dict())  # finds its width there
    restart(node)
    assert_same(other(x_seq), node(x_seq))


def test_the_node_and_the_neutral_neuron_share_their_numbers(x_seq):
    node = PMSNNode(5, step_mode="m")
    neutral = PMSN(5)
    neutral.load_state_dict(node.neuron.state_dict())
    assert_same(node(x_seq), neutral(x_seq)[0])
    assert_same(MSFNode.published(step_mode="m")(x_seq), MSF()(x_seq)[0])


def test_lazy_width_and_optimizer():
    node = PMSNNode(step_mode="m")
    net = nn.Sequential(node)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="channels=.*forward"):
        net.state_dict()
    copy.deepcopy(net)(torch.rand(4, 2, 3))
    net(torch.rand(4, 2, 6) * 3).sum().backward()
    before = node.neuron.D.detach().clone()
    optimizer.step()
    assert node.channels == 6
    assert not torch.equal(node.neuron.D, before), "the optimizer must hold the materialised parameters"


# Settings ----------------------------------------------------------------------------------------------------


def test_settings_take_effect_after_construction(x_seq):
    changed = MSFNode.published(step_mode="m")
    built = MSFNode.published(D=2, tau=2.0, decay_input=True, v_threshold=0.5, v_reset=None, step_mode="m")
    changed.D, changed.tau, changed.decay_input, changed.v_threshold, changed.v_reset = (
        2,
        2.0,
        True,
        0.5,
        None,
    )
    assert_same(changed(x_seq), built(x_seq))
    changed, built = PMSNNode(5, step_mode="m"), PMSNNode(5, v_threshold=0.5, step_mode="m")
    changed.load_state_dict(built.state_dict())
    changed.v_threshold = torch.tensor(0.5)  # what set_threshold_margin leaves there
    assert_same(changed(x_seq), built(x_seq))


def test_pmsn_refuses_what_it_does_not_have(x_seq):
    for name, value in (("v_reset", 0.0), ("detach_reset", False)):
        node = PMSNNode(5, step_mode="m")
        with pytest.raises(ValueError, match="whole thresholds"):
            setattr(node, name, value)
        node(x_seq)


def test_surrogate_objects_of_both_sides(x_seq):
    """The host's ATan in our node and our ATan in the host's node give the same gradients."""
    grads = []
    for node in (
        MSFNode.published(D=1, tau=2.0, surrogate_function=surrogate.ATan(), step_mode="m"),
        MSFNode.published(D=1, tau=2.0, surrogate_function="atan", step_mode="m"),
        neuron.LIFNode(
            tau=2.0, decay_input=False, surrogate_function=Surrogate("atan"), detach_reset=True, step_mode="m"
        ),
    ):
        x = x_seq.clone().requires_grad_()
        node(x).sum().backward()
        grads.append(x.grad)
    assert_same(grads[0], grads[1])
    assert_same(grads[0], grads[2])


def test_a_surrogate_may_be_exchanged(x_seq):
    node = MSFNode.published(surrogate_function=surrogate.PiecewiseExp(), step_mode="m")
    node(x_seq)
    for function in (Surrogate("gaussian"), surrogate.Sigmoid(), Surrogate("atan")):
        node.surrogate_function = function
        assert node.surrogate_function is function
        restart(node)(x_seq)


def test_backend_is_ours_on_every_version(x_seq):
    node = MSFNode.published(backend="torch", step_mode="m")
    assert node.backend == "torch"
    node(x_seq)
    with pytest.raises(ValueError, match="unknown backend 'cuda'.*'torch'"):
        MSFNode.published(backend="cuda")
    with pytest.raises(ValueError, match="unknown backend"):
        node.backend = "lava"
    if hasattr(functional, "set_backend"):
        net = nn.Sequential(node, PMSNNode(5))
        functional.set_backend(net, "auto")
        assert [m.backend for m in net] == ["auto", "auto"]


def test_set_step_mode_and_containers(x_seq):
    net = nn.Sequential(layer.Linear(2, 4), MSFNode.published(), PMSNNode(channel_dim=-1), layer.Linear(4, 2))
    functional.set_step_mode(net, "m")
    assert net(x_seq).shape == (6, 3, 5, 2)
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    assert net(x_seq[0]).shape == (3, 5, 2)
    wrapped = layer.MultiStepContainer(nn.Sequential(layer.Linear(2, 4), MSFNode.published()))
    wrapped[0][0].step_mode = "s"
    assert wrapped(x_seq).shape == (6, 3, 5, 4)


def test_default_surrogates_are_not_shared():
    a, b = (
        MSFNode.published(surrogate_function=surrogate.ATan()),
        MSFNode.published(surrogate_function=surrogate.ATan()),
    )
    assert a.surrogate_function is not b.surrogate_function


# Bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MSFNode.published(D=0), ValueError, "D"),
        (lambda: MSFNode.published(D=2.0), ValueError, "D"),
        (lambda: MSFNode.published(tau=0.5), ValueError, "tau"),
        (lambda: MSFNode.published(tau=float("nan")), ValueError, "tau"),
        (lambda: MSFNode.published(v_threshold=float("nan")), ValueError, "v_threshold"),
        (lambda: MSFNode.published(threshold_step=0.0), ValueError, "threshold_step"),
        (
            lambda: MSFNode.published(surrogate_function="arctan"),
            ValueError,
            "unknown surrogate 'arctan'.*atan",
        ),
        (lambda: MSFNode.published(surrogate_function=3), TypeError, "surrogate"),
        (lambda: MSFNode.published(step_mode="x"), ValueError, "step_mode"),
        (lambda: MSFNode.published(charge="lif", tau=1.0), ValueError, "tau"),
        (lambda: PMSNNode(0), ValueError, "channels"),
        (lambda: PMSNNode(4, compartments=1), ValueError, "compartments"),
        (lambda: PMSNNode(4, compartments=18), ValueError, "compartments"),
        (lambda: PMSNNode(4, v_threshold=0.0), ValueError, "v_threshold"),
        (lambda: PMSNNode(4, init="imagnet"), ValueError, "unknown init 'imagnet'.*imagenet"),
    ],
)
def test_bad_arguments_raise(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_integer_arguments_are_taken_as_numbers(x_seq):
    """The host asserts floats; an integer threshold is no mistake."""
    assert_same(
        MSFNode.published(v_threshold=1, v_reset=0, tau=2, step_mode="m")(x_seq),
        MSFNode.published(tau=2.0, step_mode="m")(x_seq),
    )


@pytest.mark.parametrize(
    "make", [lambda: MSFNode.published(step_mode="m"), lambda: PMSNNode(5, step_mode="m")]
)
def test_bad_inputs_raise(make):
    with pytest.raises(TypeError, match=r"real numbers.*complex64"):
        make()(torch.ones(4, 3, 5, dtype=torch.complex64))
    with pytest.raises(ValueError, match="time first"):
        make()(torch.tensor(4.0))
    with pytest.raises(TypeError, match=r"torch\.Tensor"):
        make()([1.0, 2.0])


def test_wrong_channel_count_names_both():
    with pytest.raises(ValueError, match="5 channels.*has 7"):
        PMSNNode(5, step_mode="m")(torch.rand(4, 2, 7))
    with pytest.raises(ValueError, match="channel_dim=3"):
        PMSNNode(5, channel_dim=3, step_mode="m")(torch.rand(4, 2, 5))


@pytest.mark.parametrize("shape", [(0, 3, 5, 2), (6, 0, 5, 2)])
def test_empty_tensors(node, shape):
    if node.__class__ is PMSNNode and node.channels is None:
        node(torch.rand(1, 1, 5, 2))
        restart(node)
    out = node(torch.empty(shape))
    assert out.shape == shape
    if shape[0] == 0:
        node(torch.randn(2, 3, 5, 2))
        v = node.v.clone()
        node(torch.empty(shape))
        assert_same(node.v, v)


def test_views_need_no_copy_by_the_caller(node, x_seq):
    expected = node(x_seq)
    for view in (x_seq.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), x_seq.clone()[:, :, :, :]):
        assert_same(restart(node)(view), expected)
    wide = torch.randn(6, 3, 5, 1)
    expected = restart(node)(wide.repeat(1, 1, 1, 2))
    assert_same(restart(node)(wide.expand(6, 3, 5, 2)), expected)


def test_nan_stays_in_its_lane(node, x_seq):
    clean = node(x_seq)
    x_seq[2, 1, 3, 0] = float("nan")
    out = restart(node)(x_seq)
    assert out.isfinite().all()
    mask = torch.ones_like(out, dtype=torch.bool)
    mask[2:, 1, 3, 0] = False
    assert_same(out[mask], clean[mask])
    assert not out[2:, 1, 3, 0].any()


# The host as a special case ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["f32", "f64"])
@pytest.mark.parametrize("name", ["atan", "sigmoid"])
@pytest.mark.parametrize(
    ("tau", "di", "th"), list(itertools.product(("2p0", "1p3333"), (0, 1), ("1p0", "0p5")))
)
def test_golden_lif(prefix, name, tau, di, th):
    """MSF with D = 1 against the numbers of SpikingJelly 2.0.0's LIFNode."""
    data = golden("spikingjelly_lif")
    dtype = F32 if prefix == "f32" else F64
    case = f"tau{tau}_di{di}_th{th}"
    node = MSFNode.published(
        D=1, tau=2.0 if tau == "2p0" else 4 / 3, decay_input=bool(di), v_threshold=1.0 if th == "1p0" else 0.5,
        surrogate_function=name, step_mode="m",
    )  # fmt: skip
    x = tensor(data["x"], dtype).requires_grad_()
    y = node(x)
    assert_same(y, tensor(data[f"y_{prefix}_{case}"]).to(dtype))
    assert_close(node.v, tensor(data[f"v_{prefix}_{case}"])[-1], "host")
    y.backward(tensor(data["gy"], dtype))
    # in the algebraic order of operations membranes differ by rounding, and the slopes with them
    assert_close(x.grad, tensor(data[f"gx_{name}_{prefix}_{case}"]), "adjoint")


@pytest.mark.parametrize("th", ["1p0", "0p5"])
def test_golden_ties_fire(th):
    data = golden("spikingjelly_lif")
    node = MSFNode.published(D=1, tau=2.0, v_threshold=1.0 if th == "1p0" else 0.5, step_mode="m")
    y = node(tensor(data["x_tie"]))
    assert_same(y, tensor(data[f"y_tie_tau2p0_di0_th{th}"]).float())
    assert y.any()


BUILT_IN = ["Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "Erf", "SuperSpike", "Rect"]


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize("name", [n for n in BUILT_IN if hasattr(surrogate, n)])
def test_d1_with_the_hosts_charge_is_the_host_to_the_bit(name, detach, mode):
    """Spikes, membranes and gradients, over charges, thresholds, resets, dtypes, training and evaluation."""
    generator = torch.Generator().manual_seed(0)
    x0, g0 = (torch.randn(5, 3, 20, generator=generator) * k for k in (2, 1))
    sg = getattr(surrogate, name)(alpha=2.7)
    settings = itertools.product((0.0, None, -0.3), (0.7,), (True, False), (F32, F64))
    for v_reset, v_threshold, training, dtype in settings:
        common = (v_threshold, v_reset, sg, detach)
        hosts = [neuron.IFNode(*common, step_mode=mode)]
        for tau, decay_input in itertools.product((2.0, 1.7), (True, False)):
            hosts.append(neuron.LIFNode(tau, decay_input, *common, step_mode=mode))
            hosts.append(neuron.ParametricLIFNode(tau, decay_input, *common, step_mode=mode))
        for host in hosts:
            ours = MSFNode.published(D=1, backend="torch", **host_of_nodes.site_dynamics(host))
            results = []
            for node in (host.train(training), ours.train(training)):
                x = x0.to(dtype, copy=True).requires_grad_()
                y = node(x) if mode == "m" else torch.stack([node(x_t) for x_t in x])
                if y.requires_grad:  # 0.0.0.0.14 has no gradient in evaluation
                    y.backward(g0.to(dtype))
                results.append((y.detach(), node.v.detach().to(dtype), x.grad))
            (y, v, gx), (y_ours, v_ours, gx_ours) = results
            label = f"{host}"
            assert torch.equal(y, y_ours), label
            assert torch.equal(v, v_ours), label
            if gx is not None and (detach or v_reset in (0.0, None)):
                assert torch.equal(gx, gx_ours), label
            elif gx is not None:  # the host adds three terms in another order there
                assert_close(gx_ours, gx, "adjoint")


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize("v_reset", [0.0, -0.2, None])
@pytest.mark.parametrize("backend", ON_CPU)
def test_one_threshold_on_every_backend(backend, v_reset, detach, mode, layout):
    """Bits forward; gradients within 1e-6 of the largest where kernels multiply in their own order."""
    generator = torch.Generator().manual_seed(0)
    x0, g0 = (torch.randn(9, 3, 8, 5, 4, generator=generator) * k for k in (2, 1))
    if layout == "channels last":
        x0 = x0.transpose(2, 4).contiguous().transpose(2, 4)
    for tau, decay_input in itertools.product((2.0, 3.0), (True, False)):
        settings = {"tau": tau, "decay_input": decay_input, "v_reset": v_reset, "detach_reset": detach}
        results = []
        for node in (neuron.LIFNode(**settings), MSFNode(D=1, backend=backend, **settings)):
            node.step_mode = mode
            x = x0.clone().requires_grad_()
            y = node(x) if mode == "m" else torch.stack([node(x_t) for x_t in x])
            y.backward(g0)
            results.append((y.detach(), node.v.detach(), x.grad))
        (y, v, gx), (y_ours, v_ours, gx_ours) = results
        assert torch.equal(y, y_ours)
        assert torch.equal(v, v_ours)
        assert float((gx - gx_ours).abs().max()) <= 1e-6 * float(gx.abs().max())


def test_plif_learns_its_w_like_the_host():
    host = neuron.ParametricLIFNode(init_tau=2.0, detach_reset=True, step_mode="m")
    ours = MSFNode.published(D=1, **host_of_nodes.site_dynamics(host))
    x = torch.randn(8, 4, 6)
    for node in (host, ours):
        node(x).sum().backward()
    assert_close(ours.neuron.w.grad, host.w.grad, "adjoint")
    with torch.no_grad():
        host.w.fill_(0.4)
    ours.load_state_dict(host.state_dict())  # the published key is `w`
    assert ours.neuron.w.item() == host.w.item()


def test_hard_reset_with_counts_above_one():
    """The host's (1 - s) v + s v_reset would leave -7 here."""
    node = MSFNode.published(D=4, v_reset=0.25)
    assert node(torch.tensor([[3.5]])).item() == 3.0
    assert node.v.item() == 0.25


# Registration ------------------------------------------------------------------------------------------------


@functional_api
def test_register_builds_a_distributed_sew_resnet():
    from spikingjelly.activation_based.distributed.vision.config import NeuronConfig, _resolve_neuron_config

    framework.register()
    framework.register()  # twice is harmless
    config = NeuronConfig(class_path="msf_pmsn_plugins.spikingjelly.MSFNode", kwargs={"D": 2})
    assert _resolve_neuron_config(config) is not None


@pytest.mark.skipif(framework.FUNCTIONAL, reason="SpikingJelly 2.0.0 has a registry")
def test_register_without_a_registry_says_so():
    with pytest.raises(ImportError, match=r"2\.0\.0"):
        framework.register()


def test_entry_points_name_the_nodes():
    found = {e.name: e.load() for e in importlib.metadata.entry_points(group="spikingjelly.neurons")}
    assert found == {"MSFNode": MSFNode, "PMSNNode": PMSNNode}


def test_training_goes_down_with_both_nodes():
    """A tiny recipe with either node learns; gradients reach every parameter."""
    for make in (lambda: MSFNode.published(), lambda: PMSNNode()):
        torch.manual_seed(0)
        net = nn.Sequential(layer.Linear(3, 16), make(), layer.Linear(16, 2))
        functional.set_step_mode(net, "m")
        x, target = torch.randn(10, 8, 3), torch.randint(2, (8,))
        net(x)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        losses = []
        for _ in range(30):
            functional.reset_net(net)
            loss = nn.functional.cross_entropy(net(x).mean(0), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]
        assert all(p.grad is not None for p in net.parameters())


# Found in review ---------------------------------------------------------------------------------------------


def test_settings_are_handed_over_at_once():
    held = MSFNode.published(tau=2.0, v_reset=None, decay_input=True).neuron
    assert (held.decay, held.reset_mode, held.input_scale) == (0.5, "soft", 0.5)


@pytest.mark.parametrize(
    ("name", "value"), [("tau", 0.5), ("v_threshold", float("nan")), ("v_reset", float("inf")), ("D", 0)]
)
def test_bad_values_set_later_raise_at_the_call_at_the_latest(name, value, x_seq):
    node = MSFNode.published(step_mode="m")
    with pytest.raises(ValueError, match=name):
        setattr(node, name, value)
        node(x_seq)
    if name == "v_threshold":
        node = PMSNNode(5, step_mode="m")
        with pytest.raises(ValueError, match=name):
            node.v_threshold = value
            node(x_seq)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MSFNode.published(tau="2"), ValueError, "tau"),
        (lambda: MSFNode.published(v_reset="0"), TypeError, "v_reset"),
        (lambda: PMSNNode(v_threshold=torch.ones(3)), TypeError, "v_threshold"),
        (
            lambda: MSFNode.published(surrogate_function=surrogate.ATan),
            TypeError,
            "class ATan: give an object",
        ),
        (lambda: MSFNode.published(charge="lif", tau=2.0, decay_input=True), ValueError, "decay_input"),
        (lambda: PMSNNode(4, channel_dim="1"), TypeError, "channel_dim"),
        (lambda: PMSNNode(True), ValueError, "channels"),
        (
            lambda: PMSNNode(channel_dim=0, step_mode="m")(torch.rand(4, 2, 3)),
            ValueError,
            "axis 0 is the batch",
        ),
        (
            lambda: MSFNode.published(D=300, step_mode="m")(torch.rand(4, 2, 3).bfloat16()),
            ValueError,
            "cannot hold all counts",
        ),
    ],
)
def test_more_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_site_that_does_not_spike_is_refused():
    host = neuron.LIFNode(surrogate_function=surrogate.Sigmoid(spiking=False))
    with pytest.raises(ValueError, match="spiking=False"):
        host_of_nodes.site_dynamics(host)


def test_plif_keeps_dtype_and_requires_grad():
    host = neuron.ParametricLIFNode(step_mode="m").double()
    with torch.no_grad():
        host.w += 1 / 3
    host.w.requires_grad_(False)
    held = MSFNode.published(D=1, **host_of_nodes.site_dynamics(host)).neuron
    assert held.w.dtype == F64
    assert held.w.item() == host.w.item()
    assert not held.w.requires_grad


def test_to_empty_and_meta():
    node = PMSNNode(4, step_mode="m")
    node(torch.rand(3, 2, 4))
    assert node.to_empty(device="meta").r.device.type == "meta"


def test_a_width_found_in_inference_mode_can_be_trained():
    node = PMSNNode(step_mode="m")
    with torch.inference_mode():
        node(torch.rand(3, 2, 4))
    functional.reset_net(node)
    node(torch.rand(3, 2, 4)).sum().backward()
    assert node.neuron.D.grad is not None


def test_any_neutral_neuron_becomes_a_node():
    """The generic node runs a neuron that has nothing but a step."""
    from msf_pmsn_plugins.neurons import Neuron

    class Counter(Neuron):
        state_names = ("total",)

        def initial_state(self, x):
            return (torch.zeros_like(x),)

        def step(self, x, state):
            total = state[0] + x
            return (total >= 1).to(x.dtype), (total,), total

    node = framework.SpikingJellyNode(Counter(), "m")
    x = torch.full((4, 2, 3), 0.5)
    assert_same(node(x).mean((1, 2)), torch.tensor([0.0, 1, 1, 1]))
    assert_same(node.total, torch.full((2, 3), 2.0))
    functional.reset_net(node)
    assert node.total == 0.0


def test_state_dicts_of_the_other_framework_load_strictly():
    snntorch = pytest.importorskip("snntorch")
    assert snntorch
    from msf_pmsn_plugins import snntorch as other

    x = torch.randn(7, 2, 5) * 1.5
    theirs, ours, neutral = other.PMSN(5, threshold=0.5, sequence=True), PMSNNode(5, step_mode="m"), PMSN(5)
    ours.load_state_dict(theirs.state_dict())
    assert ours.v_threshold == 0.5
    assert_same(ours(x), theirs(x)[0])
    neutral.load_state_dict(ours.state_dict())
    ours.load_state_dict(neutral.state_dict())
    theirs.load_state_dict(ours.state_dict())
    theirs.load_state_dict(neutral.state_dict())
    msf, node = (
        other.MSF.published(beta=0.5, threshold=0.7, D=3, sequence=True),
        MSFNode.published(D=3, step_mode="m"),
    )
    node.load_state_dict(msf.state_dict())
    assert_same(node(x), msf(x)[0])
    node.load_state_dict(other.MSF.published(beta=1.0).state_dict())
    assert node.tau == float("inf")
    with pytest.raises(RuntimeError, match="reset_mechanism"):
        node.load_state_dict(other.MSF.published(reset_mechanism="subtract").state_dict())
    with pytest.raises(RuntimeError, match="graded"):
        node.load_state_dict(other.MSF.published(graded_spikes_factor=2.0).state_dict())
    three = torch.tensor([0.5, 0.7, 0.9])
    for word, name in (("beta", "beta"), ("threshold", "threshold"), ("graded_spikes_factor", "graded")):
        state = snntorch.Leaky(**{"beta": 0.5, "reset_mechanism": "zero", word: three}).state_dict()
        with pytest.raises(RuntimeError, match=f"the node: {name}.* holds 3 numbers"):
            node.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("v_reset", [0.0, 0.3, None])
@pytest.mark.parametrize("kind", ["ATan", "Sigmoid", "PiecewiseQuadratic"])
def test_a_surrogate_that_does_not_spike_fires_and_resets_in_parts(kind, v_reset, detach, step_mode, dtype):
    found = []
    for node_of in (neuron.LIFNode, functools.partial(MSFNode, D=1)):
        function = getattr(surrogate, kind)()
        function.set_spiking_mode(False)
        node = node_of(surrogate_function=function, v_reset=v_reset, step_mode=step_mode, detach_reset=detach)
        x = torch.randn(6, 3, 4, dtype=dtype, generator=torch.Generator().manual_seed(0)).mul(2)
        x.requires_grad_()
        s_seq = node(x) if step_mode == "m" else torch.stack([node(part) for part in x])
        weight = torch.arange(6, dtype=dtype).reshape(6, 1, 1)
        found.append((s_seq, node.v, torch.autograd.grad((s_seq * weight).sum(), x)[0]))
        function.set_spiking_mode(True)
        functional.reset_net(node)
        assert set(node(x[0] if step_mode == "s" else x).unique().tolist()) <= {0.0, 1.0}
    (s, v, g), (s_ours, v_ours, g_ours) = found
    assert_same(s_ours, s)
    assert_same(v_ours, v)
    assert torch.allclose(g_ours, g, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    assert ((s > 0) & (s < 1)).any()


CONSTANTS = {
    "msf tau": (lambda **words: MSFNode(**words), "tau"),
    "msf v_reset": (lambda **words: MSFNode(**words), "v_reset"),
    "pmsn": (lambda **words: PMSNNode(5, **words), "v_threshold"),
    "parallel_if": (lambda **words: ParallelIFNode(**words), "v_threshold"),
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_a_parameter_for_what_is_not_learned_is_refused(kind):
    make, word = CONSTANTS[kind]
    value = nn.Parameter(torch.tensor(3.0))
    with pytest.raises(TypeError, match=f"^{word} is a number here and is not learned"):
        make(**{word: value})
    node = make()
    before = dict(node.named_parameters())
    with pytest.raises(TypeError, match=f"^{word} is a number here and is not learned"):
        setattr(node, word, value)
    assert dict(node.named_parameters()).keys() == before.keys()
    setattr(node, word, value.detach())
    assert getattr(node, word) == 3.0


def test_tau_of_a_learned_w_is_given_as_a_value():
    node = MSFNode(charge="plif_decay_input", w=0.0)
    with pytest.raises(TypeError, match="^tau is a number here and is not learned"):
        node.tau = nn.Parameter(torch.tensor(4.0))
    node.tau = 4.0
    assert float(node.tau) == pytest.approx(4.0)
