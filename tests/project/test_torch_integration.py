"""The neurons under torch's own tools: precision, compile, export, capture, workers, copies, weights made of others.

What the custom ops themselves must do (opcheck, functorch, autocast around a float32 run) is in test_ops.py; several
processes are in test_distributed.py.
"""

import contextlib
import copy
import io
import multiprocessing
import re
from pathlib import Path

import pytest
import torch
from test_pmsn import build
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from helpers import loop
from msf_pmsn_plugins import state as states
from msf_pmsn_plugins.backends import torch_backend
from msf_pmsn_plugins.export import RealPMSN, Streaming
from msf_pmsn_plugins.neurons import MSF, PMSN, ParallelIF, msf, pmsn
from msf_pmsn_plugins.neurons.pmsn import PARAMETERS
from msf_pmsn_plugins.surrogate import Surrogate
from tolerances import F32, F64, assert_close, assert_same


def randn(*shape, seed=0, dtype=F32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


class Bare(nn.Module):
    """MSF and PMSN without a framework."""

    def __init__(self):
        super().__init__()
        self.first, self.msf, self.second, self.pmsn = nn.Linear(3, 6), MSF(), nn.Linear(6, 4), PMSN(4)

    def forward(self, x_seq):
        return self.pmsn(self.second(self.msf(self.first(x_seq))[0]))[0]


def network(face, step_by_step=False, seed=0):
    """Linear, MSF, Linear, PMSN in one of the three faces, with the same numbers; sequences, or single steps."""
    torch.manual_seed(seed)
    if face == "bare":
        return Bare()
    skin = pytest.importorskip(f"msf_pmsn_plugins.{face}")
    layers = nn.Linear(3, 6), nn.Linear(6, 4)
    if face == "spikingjelly":
        mode = "s" if step_by_step else "m"
        nodes = skin.MSFNode.published(step_mode=mode), skin.PMSNNode(4, step_mode=mode)
    else:
        options = {"init_hidden": True, "sequence": not step_by_step}
        nodes = skin.MSF.published(**options), skin.PMSN(4, **options)
    return nn.Sequential(layers[0], nodes[0], layers[1], nodes[1])


def rest(net):
    states.write(net, {}) if not isinstance(net, Bare) else None


every_face = pytest.mark.parametrize("face", ["bare", "spikingjelly", "snntorch"])
both_skins = pytest.mark.parametrize("face", ["spikingjelly", "snntorch"])
both_neurons = pytest.mark.parametrize("make", [MSF, lambda: build(3)], ids=["msf", "pmsn"])

X_SEQ = 3 * randn(20, 5, 3)


def run(net, x_seq=X_SEQ):
    """Output from rest and the gradients of its sum."""
    rest(net)
    y = net(x_seq)
    gradients = torch.autograd.grad(y.float().sum(), list(net.parameters()))
    rest(net)
    return y, gradients


# ---------------------------------------------------------------- mixed precision


@every_face
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_halves_the_layers_and_not_the_neurons(face, dtype):
    net, seen = network(face), {}
    for name, module in net.named_children():
        module.register_forward_hook(lambda _m, given, out, name=name: seen.update({name: (given[0], out)}))
    with torch.autocast("cpu", dtype=dtype):
        y = net(X_SEQ)
        carried = {} if face == "bare" else states.read(net)
    gradients = torch.autograd.grad(y.float().sum(), list(net.parameters()))
    for g, p in zip(gradients, net.parameters(), strict=True):
        assert g.dtype == p.dtype == F32
        assert torch.isfinite(g).all()
        assert g.any()
    for state in carried.values():
        assert {part.dtype for part in state} <= {F32, torch.complex64}
    names = ("msf", "pmsn") if face == "bare" else ("1", "3")
    for name in names:
        given, out = seen[name]
        out = out[0] if isinstance(out, tuple) else out
        assert given.dtype == out.dtype == dtype
        module = net.get_submodule(name)
        held = getattr(module, "neuron", module)
        # the oracle on the same half-precision currents, with autocast off
        assert_same(out, loop(held, given.detach())[0])
    assert y.any()


@every_face
def test_grad_scaler_scales_and_unscales_exactly(face):
    net = network(face)
    plain = run(net)[1]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = torch.optim.SGD(net.parameters(), 0.125)
    before = [p.detach().clone() for p in net.parameters()]
    scaler.scale(net(X_SEQ).sum()).backward()
    scaler.unscale_(optimizer)
    for p, g in zip(net.parameters(), plain, strict=True):
        assert_same(p.grad, g)  # a power of two changes no mantissa
    scaler.step(optimizer)
    for p, old, g in zip(net.parameters(), before, plain, strict=True):
        assert_same(p, old - 0.125 * g)


@every_face
def test_grad_scaler_skips_a_step_that_overflows(face):
    net = network(face)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    before = [p.detach().clone() for p in net.parameters()]
    scaler.scale(2.0**20 * net(X_SEQ).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**119
    for p, old in zip(net.parameters(), before, strict=True):
        assert_same(p, old)


# ---------------------------------------------------------------- compile


def compare_compiled(face, backend, x_seq=X_SEQ):
    net = network(face)
    eager_y, eager_g = run(net, x_seq)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    y = compiled(x_seq)
    gradients = torch.autograd.grad(y.sum(), list(net.parameters()))
    if backend == "aot_eager":
        assert_same(y, eager_y)
    else:  # the linear layers may round otherwise
        assert (y != eager_y).float().mean() <= 0.01
    for g, e in zip(gradients, eager_g, strict=True):
        assert_close(g, e, "adjoint" if backend == "aot_eager" else "pmsn_gradient")


@both_skins
def test_networks_compile_without_graph_breaks(face):
    compare_compiled(face, "aot_eager")


@pytest.mark.slow
@both_skins
def test_a_compiled_network_carries_its_state(face):
    net = network(face)
    with torch.no_grad():
        whole = net(X_SEQ)
        rest(net)
        torch._dynamo.reset()
        compiled = torch.compile(net, backend="aot_eager")
        parts = [compiled(part) for part in X_SEQ.split(10)]
    assert_same(torch.cat(parts), whole)
    assert sorted(states.read(net)) == ["1", "3"]


def test_steps_compile_without_graph_breaks():
    for make in (MSF, lambda: build(3), ParallelIF):
        neuron, x = make(), 2 * randn(4, 3)
        torch._dynamo.reset()
        compiled = torch.compile(neuron.step, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            s, state, m = compiled(x, neuron.initial_state(x))
            expected, expected_state, expected_m = neuron.step(x, neuron.initial_state(x))
        for a, b in zip((s, m, *state), (expected, expected_m, *expected_state), strict=True):
            assert_same(a, b)


@pytest.mark.slow
@every_face
def test_networks_compile_with_inductor(face):
    compare_compiled(face, "inductor")


@pytest.mark.slow
@both_neurons
def test_steps_compile_with_inductor(make):
    """The step is plain torch; inductor may contract products, so values off a tie are compared."""
    neuron, x = make(), 2 * randn(4, 3)
    torch._dynamo.reset()
    compiled = torch.compile(neuron.step, fullgraph=True)
    s, state, m = compiled(x, neuron.initial_state(x))
    expected, expected_state, expected_m = neuron.step(x, neuron.initial_state(x))
    assert_same(s, expected)
    assert_close(m, expected_m, "drive")
    for a, b in zip(state, expected_state, strict=True):
        assert_close(a, b, "drive")


# ---------------------------------------------------------------- export

OTHERS = {
    "msf": MSF,
    "msf-soft-reset": lambda: MSF(reset_mode="soft", surrogate="atan"),
    "msf-plif": lambda: MSF(charge="plif", w=0.3, v_reset=0.25),
    "msf-learned": lambda: MSF(decay=torch.tensor([0.25, 0.5, 0.125]), learn_decay=True),
    "pmsn": lambda: build(3),
    "pmsn-burst": lambda: build(3, burst=True, coeff=0.7, v_threshold=0.3),
    "pmsn-serial": lambda: build(3, reset_mode="serial", dt_scale=2.0),
    "pmsn-cumulative": lambda: build(3, reset_mode="cumulative"),
    "parallel-if": lambda: ParallelIF(0.7),
}


# The others differ in arithmetic that is checked without export.
SOME = ("msf", "msf-learned", "pmsn", "pmsn-cumulative", "parallel-if")


def some(names):
    """All names, those that are not among ``names`` as slow tests."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]


def real(state):
    return tuple(torch.view_as_real(part) if part.is_complex() else part for part in state)


def stream(step, x_seq, given):
    """Outputs and last states of a function ``(x, *states) -> (y, *states)``."""
    outputs = []
    for x in x_seq:
        y, *given = step(x, *given)
        outputs.append(y)
    return torch.stack(outputs), tuple(given)


@pytest.mark.parametrize("name", OTHERS)
def test_streaming_one_neuron_is_its_loop(name):
    neuron, x_seq = OTHERS[name](), 2 * randn(30, 4, 3)
    streaming = Streaming(neuron)
    given = streaming.initial_states(x_seq[0])
    assert len(given) == len(streaming.state_names) == len(neuron.state_names)
    s_seq, last = stream(streaming, x_seq, given)
    expected, expected_state, _ = loop(neuron, x_seq)
    assert_same(s_seq, expected)
    for part, other in zip(last, real(expected_state), strict=True):
        assert part.dtype == F32
        assert_close(part, other, "residual")
    # a stream that forgets its state is another one: this test would see it
    forgetful = torch.stack([streaming(x, *given)[0] for x in x_seq])
    assert not torch.equal(forgetful, s_seq)


@pytest.mark.parametrize("modes", [1, 3])
def test_real_arithmetic_is_pmsn_to_the_bit_where_it_is_exact(modes):
    """Dyadic weights and inputs: every product fits the mantissa, so the two have no excuse to differ."""
    neuron = build(3, modes + 1)
    real_one = RealPMSN(neuron)
    turn = torch.tensor([0, 0.5, 0.5j, -0.5j])
    a = turn[torch.arange(3 * modes).reshape(3, modes) % 4]
    w = torch.complex(randn(3, modes).mul(4).round() / 4, randn(3, modes, seed=1).mul(4).round() / 4)
    d = randn(3, seed=2).mul(4).round() / 4
    for name, value in (("a", a), ("w", w)):
        getattr(real_one, name).copy_(torch.view_as_real(value))
    real_one.d.copy_(d)
    x_seq = randn(6, 5, 3, seed=3).mul(4).round() / 4
    s_seq, (r, z), m_seq = loop(real_one, x_seq)
    r2, z2 = neuron.initial_state(x_seq[0])
    for t, x in enumerate(x_seq):
        s, r2, z2, m = pmsn.pmsn_step(x, r2, z2, a, w, d, 1.0, Surrogate("triangle"))
        assert_same(s_seq[t], s)
        assert_same(m_seq[t], m)
    assert_same(r, r2)
    assert_same(z, torch.view_as_real(z2))
    assert s_seq.any()


def test_real_arithmetic_silences_a_lane_with_a_bad_input():
    neuron = RealPMSN(build(3))
    x_seq = randn(6, 2, 3)
    x_seq[2, 0, 1] = torch.inf
    s_seq, state, _ = loop(neuron, x_seq)
    assert not s_seq[2:, 0, 1].any()
    assert torch.isnan(state[1][0, 1]).all()
    assert torch.isfinite(state[1][1]).all()


@both_skins
def test_streaming_a_network_is_the_network(face):
    net = network(face, step_by_step=True)
    with torch.no_grad():
        expected = torch.stack([net(x) for x in X_SEQ])
        rest(net)
        streaming = Streaming(net)
        assert streaming.state_names == ["1.v", "3.r", "3.z"]
        given = streaming.initial_states(X_SEQ[0])
        assert [tuple(part.shape) for part in given] == [(5, 6), (5, 4), (5, 4, 4, 2)]
        s_seq, _ = stream(streaming, X_SEQ, given)
    assert_same(s_seq, expected)
    assert expected.any()
    assert type(net[1]).__name__ in ("MSFNode", "MSF")  # a copy was taken


def test_streaming_keeps_one_node_at_two_paths_one():
    pytest.importorskip("spikingjelly")
    from msf_pmsn_plugins.spikingjelly import MSFNode

    node = MSFNode.published()
    net = nn.Sequential(node, nn.Linear(3, 3), node)
    streaming = Streaming(net)
    assert streaming.state_names == ["0.v"]
    expected = torch.stack([net(x) for x in X_SEQ])
    assert_same(stream(streaming, X_SEQ, streaming.initial_states(X_SEQ[0]))[0], expected)


def test_streaming_a_snntorch_neuron_with_graded_spikes():
    skin = pytest.importorskip("msf_pmsn_plugins.snntorch")
    neuron = skin.MSF.published(init_hidden=True, graded_spikes_factor=0.5)
    expected = torch.stack([neuron(x) for x in X_SEQ])
    streaming = Streaming(neuron)
    assert_same(stream(streaming, X_SEQ, streaming.initial_states(X_SEQ[0]))[0], expected)
    assert (expected % 1).any()


def _refused():
    sj = pytest.importorskip("msf_pmsn_plugins.spikingjelly")
    snn = pytest.importorskip("msf_pmsn_plugins.snntorch")
    yield sj.MSFNode.published(step_mode="m"), r"set_step_mode\(net, 's'\)"
    yield sj.PMSNNode(), "has no channels yet"
    yield PMSN(3, residual="fixed"), "residual='float'"
    yield PMSN(3, context="global"), "no single step"
    yield snn.MSF.published(), "init_hidden=True"
    yield snn.MSF.published(init_hidden=True, output=True), "output=False"
    yield snn.MSF.published(init_hidden=True, sequence=True), "sequence=False"
    yield snn.MSF.published(init_hidden=True, inhibition=True), "inhibition=False"
    yield snn.MSF.published(init_hidden=True, state_quant=lambda mem: mem), "state_quant=False"
    yield (
        snn.MSF.published(init_hidden=True, reset_mechanism="subtract"),
        "takes the threshold away undecayed",
    )
    yield nn.Linear(2, 2), "no neuron"


def test_streaming_refuses_what_it_would_get_wrong():
    for module, message in _refused():
        with pytest.raises(ValueError, match=message):
            Streaming(nn.Sequential(module))
    with pytest.raises(ValueError, match="1 states needed"):
        Streaming(MSF())(torch.zeros(2, 3))


@pytest.mark.parametrize(
    "strict", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["non-strict", "strict"]
)
@pytest.mark.parametrize("name", some(SOME))
def test_export_of_a_step(name, strict):
    """The plain step, complex states and all, with a free batch size; and its real form."""
    neuron, x_seq = OTHERS[name](), 2 * randn(8, 4, 3)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = neuron

        def forward(self, x, *state):
            s, state, _ = self.neuron.step(x, state)
            return s, *state

    expected = loop(neuron, x_seq)[0]
    for module in (Step(), Streaming(neuron)):
        start = (
            neuron.initial_state(x_seq[0]) if isinstance(module, Step) else module.initial_states(x_seq[0])
        )
        batch = torch.export.Dim("batch")
        free = {0: batch}
        with torch.no_grad():
            program = torch.export.export(
                module, (x_seq[0], *start), dynamic_shapes=(free, (free,) * len(start)), strict=strict
            )
        s_seq, _ = stream(program.module(), x_seq, start)
        assert_same(s_seq, expected)
        one = stream(program.module(), x_seq[:, :1], tuple(part[:1] for part in start))[0]
        assert_same(one, expected[:, :1])
        if isinstance(module, Streaming):
            ops = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
            assert not [op for op in ops if "msf_pmsn_plugins" in op]
            kinds = [
                node.meta["val"].dtype
                for node in program.graph.nodes
                if hasattr(node.meta.get("val"), "dtype")
            ]
            assert not any(kind.is_complex for kind in kinds)


def onnx_session(streaming, x, given):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    batch = torch.export.Dim("batch")
    file = io.BytesIO()
    program = torch.onnx.export(
        streaming,
        (x, *given),
        input_names=["x", *streaming.state_names],
        output_names=["y", *(f"{name}.next" for name in streaming.state_names)],
        dynamic_shapes=({0: batch}, ({0: batch},) * len(given)),
        dynamo=True,
        verbose=False,
    )
    program.save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    assert names == ["x", *streaming.state_names]

    def step(x, *given):
        feed = dict(zip(names, (part.numpy() for part in (x, *given)), strict=True))
        return tuple(map(torch.from_numpy, session.run(None, feed)))

    return step


@pytest.mark.parametrize("name", some(("pmsn",)))
def test_onnx_runs_the_step_of_the_oracle(name):
    neuron, x_seq = OTHERS[name](), 2 * randn(30, 4, 3)
    streaming = Streaming(neuron)
    given = streaming.initial_states(x_seq[0])
    step = onnx_session(streaming, x_seq[0], given)
    expected, expected_state, _ = loop(neuron, x_seq)
    s_seq, last = stream(step, x_seq, given)
    assert_same(s_seq, expected)
    assert expected.any()
    for part, other in zip(last, real(expected_state), strict=True):
        assert_close(part, other, "residual")
    one = stream(step, x_seq[:, :1], tuple(part[:1] for part in given))[0]
    assert_same(one, expected[:, :1])


@pytest.mark.parametrize("face", ["spikingjelly", pytest.param("snntorch", marks=pytest.mark.slow)])
def test_onnx_streams_a_network(face):
    net = network(face, step_by_step=True)
    with torch.no_grad():
        expected = torch.stack([net(x) for x in X_SEQ])
        rest(net)
        streaming = Streaming(net)
        given = streaming.initial_states(X_SEQ[0])
    step = onnx_session(streaming, X_SEQ[0], given)
    assert_same(stream(step, X_SEQ, given)[0], expected)


def test_onnx_refuses_a_sequence():
    """Its custom op has no translation: the step is what is exported."""
    pytest.importorskip("onnxscript")
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="msf_pmsn_plugins.msf"):
        torch.onnx.export(MSF().eval(), (torch.zeros(4, 2, 3),), io.BytesIO(), dynamo=True, verbose=False)


def test_the_onnx_example_of_the_docs_runs(tmp_path, monkeypatch):
    """The page itself is run without the extra; this block needs it."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "pytorch.md").read_text()
    before, block = re.search(
        r"```python\n(from msf_pmsn_plugins.export.*?)```.*?```py\n(.*?)```", page, re.DOTALL
    ).groups()
    namespace = {"torch": torch, "PMSN": PMSN}
    exec(compile(before, "pytorch.md", "exec"), namespace)
    exec(compile(block, "pytorch.md", "exec"), namespace)
    assert namespace["session"].get_outputs()[0].name == "y"
    assert sum(s.sum() for s in namespace["spikes"]) > 0


# ---------------------------------------------------------------- CUDA graphs


class NoWaiting(torch.utils._python_dispatch.TorchDispatchMode):
    """Raise where a CUDA graph could not be captured: at a copy between the host and a device.

    The device is ``meta``, so no GPU is needed: its tensors have no values, and reading one, or a size that depends on
    one, raises by itself.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [
            t for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)
        ]
        places = {t.device.type for t in tensors if t.dim()}  # numbers are passed along with the kernel
        assert len(places) <= 1, f"{func} works on {places}"
        return out


@pytest.fixture
def kernels(monkeypatch):
    """The code of the torch backend runs on meta tensors too, in place of the shapes that its custom ops declare."""
    for module, names in ((msf, ("_msf_op", "_msf_backward_op")), (pmsn, ("_pmsn_op", "_pmsn_backward_op"))):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name)._init_fn)
    # only sets flags, and autocast does not know the device
    monkeypatch.setattr(torch_backend, "_full_precision", lambda x: contextlib.nullcontext())


CAPTURED = {
    "msf": lambda: MSF(),
    "msf-atan-through-reset": lambda: MSF(surrogate="atan", detach_reset=False),
    "msf-learned": lambda: MSF(decay=0.5, learn_decay=True),
    "pmsn": lambda: PMSN(3),
    "pmsn-burst": lambda: PMSN(3, burst=True, coeff=0.2),
    "pmsn-cumulative": lambda: PMSN(3, reset_mode="cumulative"),
    "parallel-if": lambda: ParallelIF(),
}


@pytest.mark.parametrize("name", CAPTURED)
def test_nothing_waits_for_the_device(name, kernels):
    """Forward and backward of sequence and step could be captured in a CUDA graph."""
    neuron = CAPTURED[name]().to("meta")
    for steps, membrane in ((70 if isinstance(neuron, PMSN) else 5, False), (5, True)):
        x_seq = torch.empty(steps, 4, 3, device="meta").requires_grad_()
        with NoWaiting():
            s_seq, state, _m = neuron.sequence(x_seq, membrane=membrane)
            s_seq, _state, _m = neuron.sequence(s_seq, state)
            torch.autograd.grad(s_seq.sum(), [x_seq, *neuron.parameters()])
    if name != "pmsn-burst":
        with NoWaiting():
            s, state, _m = neuron.step(x_seq[0], neuron.initial_state(x_seq[0]))
            s, state, _m = neuron.step(s, state)
            torch.autograd.grad(s.sum(), x_seq)


@both_skins
def test_nothing_in_the_nodes_waits_for_the_device(face, kernels):
    net = network(face).to("meta")
    x_seq = torch.empty(5, 4, 3, device="meta")
    with NoWaiting():
        torch.autograd.grad(net(x_seq).sum(), list(net.parameters()))


def test_reading_a_length_waits_for_the_device(kernels):
    """The one thing that a CUDA graph cannot hold, and proof that the tests above can fail."""
    x_seq = torch.empty(70, 4, 3, device="meta")
    lengths = torch.empty(4, dtype=torch.int64, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError), match="(?i)unique|item|meta"):
        PMSN(3).to("meta").sequence(x_seq, lengths=lengths)
    with pytest.raises(AssertionError, match="works on"), NoWaiting():
        torch.empty(3).to("meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@both_neurons
def test_a_cuda_graph_replays_the_neuron(make):
    neuron = make().cuda()
    x_seq = (2 * randn(70, 4, 3)).cuda()
    expected = neuron(x_seq)[0]
    graph = torch.cuda.CUDAGraph()
    held = torch.zeros_like(x_seq)
    with torch.no_grad():
        neuron(held)  # warm up
        with torch.cuda.graph(graph):
            s_seq, _ = neuron(held)
    held.copy_(x_seq)
    graph.replay()
    assert_same(s_seq, expected)


# ---------------------------------------------------------------- workers


class Encoded(Dataset):
    """Samples that a model turns into spikes where they are read: in the workers."""

    def __init__(self, model):
        self.model = model

    def __len__(self):
        return 6

    def __getitem__(self, index):
        with torch.no_grad():
            rest(self.model)
            return self.model(3 * randn(12, 1, 3, seed=index))[:, 0]


class Collate:
    """The same, for a batch."""

    def __init__(self, model):
        self.model = model

    def __call__(self, samples):
        x_seq = torch.stack(samples, 1)
        with torch.no_grad():
            rest(self.model)
            return x_seq, self.model(x_seq)


class Inputs(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return 3 * randn(12, 3, seed=index)


def check_workers(model, method):
    context = multiprocessing.get_context(method)
    loader = DataLoader(Encoded(model), batch_size=3, num_workers=1, multiprocessing_context=context)
    expected = torch.stack([Encoded(model)[i] for i in range(6)])
    assert_same(torch.cat(list(loader)), expected)
    assert expected.any()
    with torch.no_grad():
        model.get_parameter(next(n for n, _ in model.named_parameters() if "A_imag" in n)).mul_(3)
    # a worker that starts now has the new weights, not those remembered before; a copy remembers nothing
    twin = copy.deepcopy(model)
    loader = DataLoader(
        Inputs(), batch_size=3, num_workers=1, collate_fn=Collate(model), multiprocessing_context=context
    )
    for x_seq, spikes in loader:
        assert_same(spikes, Collate(twin)(list(x_seq.unbind(1)))[1])


@every_face
def test_models_work_in_forked_workers(face):
    check_workers(network(face), "fork")


@pytest.mark.slow
@every_face
def test_models_work_in_spawned_workers(face):
    check_workers(network(face), "spawn")


# ---------------------------------------------------------------- copies and files


@every_face
def test_a_copy_is_independent(face):
    net = network(face)
    y, gradients = run(net)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    twin_y, twin_gradients = run(twin)
    assert_same(twin_y, y)
    for a, b in zip(twin_gradients, gradients, strict=True):
        assert_same(a, b)
    assert not run(net)[0].any()


@every_face
def test_weights_and_states_come_back_from_a_file_without_code(face):
    net = network(face)
    whole = run(net)[0]
    kept = {}
    if face != "bare":
        with torch.no_grad():
            net(X_SEQ[:9])
        kept = states.read(net)
    file = io.BytesIO()
    torch.save({"model": net.state_dict(), "states": kept}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)  # tensors and numbers alone
    other = network(face, seed=1)
    other.load_state_dict(loaded["model"])
    assert_same(run(other)[0], whole)
    if face != "bare":
        states.write(other, loaded["states"])
        with torch.no_grad():
            assert_same(other(X_SEQ[9:]), whole[9:])


# ---------------------------------------------------------------- weights that are made of others, and never stale


def fresh(neuron):
    """A new neuron with the same numbers, which has computed nothing yet."""
    other = PMSN(neuron.channels, neuron.compartments)
    with torch.no_grad():
        for name in PARAMETERS:
            getattr(other, name).copy_(getattr(neuron, name))
    return other


def assert_not_stale(neuron, x_seq=X_SEQ):
    """Spikes and weights without gradients are those of the parameters as they are now."""
    held = getattr(neuron, "neuron", neuron)
    expected = fresh(held)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for _ in range(2):
                assert all(map(torch.equal, held.weights(), [w.detach() for w in expected.weights()]))
                assert_same(held(x_seq)[0], expected(x_seq)[0])


class Double(nn.Module):
    """A parametrisation with a setting that may change outside of any parameter."""

    factor = 2.0

    def forward(self, value):
        return self.factor * value

    def right_inverse(self, value):
        return value / self.factor


PARAMETRISE = {
    "own": lambda neuron, name: parametrize.register_parametrization(neuron, name, Double()),
    "weight_norm": lambda neuron, name: parametrizations.weight_norm(neuron, name),
    "spectral_norm": lambda neuron, name: parametrizations.spectral_norm(neuron, name),
    "orthogonal": lambda neuron, name: parametrizations.orthogonal(neuron, name),
}


@pytest.mark.parametrize("kind", PARAMETRISE)
@pytest.mark.parametrize("name", ["A_imag", "CV_real"])
def test_parametrised_parameters_learn_and_are_never_stale(kind, name):
    torch.manual_seed(0)
    neuron = PMSN(6)
    with torch.no_grad():
        getattr(neuron, name).add_(randn(6, 4))
    x_seq = 3 * randn(20, 5, 6)
    assert_not_stale(neuron, x_seq)
    PARAMETRISE[kind](neuron, name)
    neuron.eval()  # a spectral norm iterates in training
    assert parametrize.is_parametrized(neuron, name)
    assert_not_stale(neuron, x_seq)
    optimizer = torch.optim.SGD(neuron.parameters(), 0.05)
    for _ in range(2):
        optimizer.zero_grad()
        s_seq = neuron(x_seq)[0]
        expected = fresh(neuron)
        assert_same(s_seq, expected(x_seq)[0])
        s_seq.sum().backward()
        expected(x_seq)[0].sum().backward()
        originals = [p for n, p in neuron.named_parameters() if "parametrizations" in n]
        assert all(torch.isfinite(p.grad).all() for p in originals)
        assert any(p.grad.any() for p in originals)
        assert_same(neuron.D.grad, expected.D.grad)
        # the chain rule through the parametrisation, from the plain neuron's gradient
        chained = torch.autograd.grad(
            getattr(neuron, name), originals, getattr(expected, name).grad, allow_unused=True
        )
        for p, g in zip(originals, chained, strict=True):
            if g is not None:
                assert_close(p.grad, g, "adjoint")
        before = getattr(neuron, name).detach().clone()
        optimizer.step()
        assert not torch.equal(getattr(neuron, name), before)
        assert_not_stale(neuron, x_seq)
    file = io.BytesIO()
    torch.save(neuron.state_dict(), file)
    file.seek(0)
    twin = PMSN(6)
    PARAMETRISE[kind](twin, name)
    twin.eval().load_state_dict(torch.load(file, weights_only=True))
    assert_same(twin(x_seq)[0], neuron(x_seq)[0])
    parametrize.remove_parametrizations(neuron, name)
    assert_not_stale(neuron, x_seq)
    assert_same(twin(x_seq)[0], neuron(x_seq)[0])


def test_a_parametrisation_that_changes_its_mind_is_followed():
    neuron = PMSN(3)
    parametrize.register_parametrization(neuron, "A_imag", Double())
    assert_not_stale(neuron)
    neuron.parametrizations.A_imag[0].factor = 5.0  # no parameter has changed
    assert_not_stale(neuron)
    with parametrize.cached():
        assert_not_stale(neuron)


@both_skins
def test_a_node_may_be_parametrised_too(face):
    net = network(face)
    held = net[3].neuron
    parametrize.register_parametrization(held, "log_dt", Double())
    y, gradients = run(net)
    other = network(face)
    other[3].neuron.load_state_dict({name: getattr(held, name).detach() for name in PARAMETERS})
    other_y, other_gradients = run(other)
    assert_same(y, other_y)
    by_name = dict(zip((n for n, _ in net.named_parameters()), gradients, strict=True))
    others = dict(zip((n for n, _ in other.named_parameters()), other_gradients, strict=True))
    assert_close(
        by_name["3.neuron.parametrizations.log_dt.original"], 2 * others["3.neuron.log_dt"], "adjoint"
    )


@every_face
def test_moving_averages_of_a_model_follow_it(face):
    net = network(face)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    expected = None
    for _ in range(3):
        rest(net)
        optimizer.zero_grad()
        net(X_SEQ).sum().backward()
        optimizer.step()
        average.update_parameters(net)
        now = [p.detach().clone() for p in net.parameters()]
        expected = now if expected is None else [e.lerp(p, 0.5) for e, p in zip(expected, now, strict=True)]
        held = average.module.pmsn if face == "bare" else average.module[3].neuron
        assert_not_stale(held, 3 * randn(20, 5, 4))
    for a, b in zip(average.parameters(), expected, strict=True):
        assert_close(a, b, "drive")
    rest(average.module)
    other = network(face, seed=1)
    other.load_state_dict(average.module.state_dict())
    assert_same(average(X_SEQ), run(other)[0])


def test_remembered_weights_are_not_baked_into_a_graph():
    """Tracers without torch.compile's flag: what they record must read the parameters, not a remembered value."""
    from torch.fx.experimental.proxy_tensor import make_fx

    neuron, x = PMSN(3).requires_grad_(False), 3 * randn(5, 3)
    state = neuron.initial_state(x)

    def step(x, r, z):
        s, (r, z), m = neuron.step(x, (r, z))
        return s, r, z, m

    tracers = {
        "make_fx": lambda: make_fx(step)(x, *state),
        "compile": lambda: torch.compile(step, backend="aot_eager"),
    }
    for name, trace in tracers.items():
        torch._dynamo.reset()
        with torch.no_grad():
            neuron.step(x, state)  # remembered
            traced = trace()
            for _ in range(2):
                for out, expected in zip(traced(x, *state), step(x, *state), strict=True):
                    assert torch.equal(out, expected), name
                neuron.A_imag.mul_(1.5)
                neuron.D.add_(0.5)


# ---------------------------------------------------------------- ensembles


@every_face
def test_vmap_over_an_ensemble_of_networks(face):
    nets = [network(face, seed=seed) for seed in range(3)]
    assert_same(run(nets[0])[0], run(network(face))[0])
    parameters, buffers = torch.func.stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")

    def call(parameters, buffers):
        rest(base)
        try:
            return torch.func.functional_call(base, (parameters, buffers), (X_SEQ,))
        finally:
            rest(base)

    together = torch.vmap(call)(parameters, buffers)
    gradients = torch.autograd.grad(together.sum(), list(parameters.values()))
    for i, net in enumerate(nets):
        y, expected = run(net)
        assert (
            together[i] != y
        ).float().mean() <= 0.01  # a batched product of the linear layers may round otherwise
        for g, e in zip(gradients, expected, strict=True):
            assert_close(g[i], e, "pmsn_gradient")
    # the networks themselves are as they were
    assert_same(run(nets[0])[0], run(network(face))[0])
    with torch.no_grad():
        for p in parameters.values():
            p.mul_(1.5)
        again = torch.vmap(call)(parameters, buffers)
        for i, net in enumerate(nets):
            for n, p in net.named_parameters():
                p.copy_(parameters[n][i])
            rest(net)
            assert (again[i] != net(X_SEQ)).float().mean() <= 0.01
        assert not torch.equal(again, together)
