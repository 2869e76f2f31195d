"""Single steps out of torch: streaming, torch.export, ONNX."""

import functools
import io

import pytest
import torch
from torch import nn

from helpers import loop, needs_torch, randn
from msf_pmsn_plugins.export import RealPMSN, Streaming
from msf_pmsn_plugins.neurons import MSF, PMSN, ParallelIF
from msf_pmsn_plugins.neurons.nodes import held_by, is_node
from msf_pmsn_plugins.neurons.pmsn import pmsn_step
from msf_pmsn_plugins.settings import PMSNSettings
from msf_pmsn_plugins.tensors import PMSNState, PMSNWeights
from networks import X_SEQ, both_hosts, network, nodes_for, rest
from subjects import build_pmsn
from tolerances import F32, assert_close, assert_same

# ---------------------------------------------------------------- export


OTHERS = {
    "msf": MSF,
    "msf-soft-reset": lambda: MSF(reset_mode="soft", surrogate="atan"),
    "msf-plif": lambda: MSF(charge="plif", w=0.3, v_reset=0.25),
    "msf-learned": lambda: MSF(decay=torch.tensor([0.25, 0.5, 0.125]), learn_decay=True),
    "pmsn": lambda: build_pmsn(3),
    "pmsn-burst": lambda: build_pmsn(3, burst=True, coeff=0.7, v_threshold=0.3),
    "pmsn-serial": lambda: build_pmsn(3, reset_mode="serial", dt_scale=2.0),
    "pmsn-cumulative": lambda: build_pmsn(3, reset_mode="cumulative"),
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
    neuron, x_seq = OTHERS[name](), 2 * randn(30, 4, 3, dtype=F32)
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
    neuron = build_pmsn(3, modes + 1)
    real_one = RealPMSN(neuron)
    turn = torch.tensor([0, 0.5, 0.5j, -0.5j])
    a = turn[torch.arange(3 * modes).reshape(3, modes) % 4]
    w = randn(3, modes, dtype=torch.complex64)
    w = torch.complex(w.real.mul(4).round(), w.imag.mul(4).round()) / 4
    weights = PMSNWeights(a - 1, w, randn(3, seed=2, dtype=F32).mul(4).round() / 4)
    for name, value in (("e", weights.e), ("w", w)):
        getattr(real_one, name).copy_(torch.view_as_real(value))
    real_one.d.copy_(weights.d)
    x_seq = randn(6, 5, 3, seed=3, dtype=F32).mul(4).round() / 4
    s_seq, (r, z), m_seq = loop(real_one, x_seq)
    state = PMSNState(*neuron.initial_state(x_seq[0]))
    for t, x in enumerate(x_seq):
        s, state, m = pmsn_step(x, state, weights, PMSNSettings())
        assert_same(s_seq[t], s)
        assert_same(m_seq[t], m)
    assert_same(r, state.r)
    assert_same(z, torch.view_as_real(state.z))
    assert s_seq.any()


def test_real_arithmetic_silences_a_lane_with_a_bad_input():
    neuron = RealPMSN(build_pmsn(3))
    x_seq = randn(6, 2, 3, dtype=F32)
    x_seq[2, 0, 1] = torch.inf
    s_seq, state, _ = loop(neuron, x_seq)
    assert not s_seq[2:, 0, 1].any()
    assert torch.isnan(state[1][0, 1]).all()
    assert torch.isfinite(state[1][1]).all()


@both_hosts
def test_streaming_a_network_is_the_network(host):
    net = network(host, step_by_step=True)
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
    MSFNode = nodes_for("spikingjelly").MSFNode

    node = MSFNode.published()
    net = nn.Sequential(node, nn.Linear(3, 3), node)
    streaming = Streaming(net)
    assert streaming.state_names == ["0.v"]
    expected = torch.stack([net(x) for x in X_SEQ])
    assert_same(stream(streaming, X_SEQ, streaming.initial_states(X_SEQ[0]))[0], expected)


class Named(nn.Module):
    """A network that calls a part of its own as a node calls its neuron."""

    def __init__(self):
        super().__init__()
        self.fc, self.neuron = nn.Linear(3, 3), MSF(D=4)

    def forward(self, x):
        return self.neuron(self.fc(x))


def test_a_network_with_a_neuron_of_that_name_is_no_node():
    net = Named()
    assert not is_node(net)
    assert held_by(net) is None
    streaming = Streaming(net)
    assert streaming.state_names == ["neuron.v"]
    expected = net.neuron(net.fc(X_SEQ))[0]
    assert_same(stream(streaming, X_SEQ, streaming.initial_states(X_SEQ[0]))[0], expected)
    assert expected.any()


@pytest.mark.parametrize("factor", [0.5, torch.tensor([0.5, 1.0, 2.0])], ids=["one", "by channel"])
def test_streaming_a_snntorch_neuron_with_graded_spikes(factor):
    module = nodes_for("snntorch")
    neuron = module.MSF.published(init_hidden=True, graded_spikes_factor=factor)
    expected = torch.stack([neuron(x) for x in X_SEQ])
    streaming = Streaming(neuron)
    assert_same(stream(streaming, X_SEQ, streaming.initial_states(X_SEQ[0]))[0], expected)
    assert (expected % 1).any()


@pytest.mark.parametrize("D", [1, 4])
@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_streaming_resets_as_the_snntorch_neuron_does(reset, delay, D):
    framework = nodes_for("snntorch")
    neuron = framework.MSF(beta=0.9, D=D, init_hidden=True, reset_mechanism=reset, reset_delay=delay)
    x_seq = X_SEQ + 0.5
    expected = torch.stack([neuron(x) for x in x_seq])
    streaming = Streaming(neuron)
    assert torch.equal(stream(streaming, x_seq, streaming.initial_states(x_seq[0]))[0], expected)
    assert expected.any()


def _refused():
    sj = nodes_for("spikingjelly")
    snn = nodes_for("snntorch")
    yield sj.MSFNode.published(step_mode="m"), r"set_step_mode\(net, 's'\)"
    yield sj.PMSNNode(), "has no channels yet"
    yield PMSN(3, residual="fixed"), "residual='float'"
    yield PMSN(3, context="global"), "no single step"
    yield snn.MSF.published(), "init_hidden=True"
    yield snn.MSF.published(init_hidden=True, output=True), "output=False"
    yield snn.MSF.published(init_hidden=True, sequence=True), "sequence=False"
    yield snn.MSF.published(init_hidden=True, inhibition=True), "inhibition=False"
    yield snn.MSF.published(init_hidden=True, state_quant=lambda mem: mem), "state_quant=False"
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
    neuron, x_seq = OTHERS[name](), 2 * randn(8, 4, 3, dtype=F32)

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
    neuron, x_seq = OTHERS[name](), 2 * randn(30, 4, 3, dtype=F32)
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


@pytest.mark.parametrize("host", ["spikingjelly", pytest.param("snntorch", marks=pytest.mark.slow)])
def test_onnx_streams_a_network(host):
    net = network(host, step_by_step=True)
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


EXPORTERS = {
    "torch.export": lambda net, x: torch.export.export(net, (x,), strict=False),
    "torch.export strict": lambda net, x: torch.export.export(net, (x,), strict=True),
    "onnx": lambda net, x: torch.onnx.export(net, (x,), io.BytesIO(), dynamo=True, verbose=False),
    "onnx by TorchScript": lambda net, x: torch.onnx.export(net, (x,), io.BytesIO(), dynamo=False),
}


@functools.cache
def tells_of_export(strict):
    """Whether this torch says to a module that it is being exported: 2.6 never does, 2.7 and 2.8 not if strict."""

    class Probe(nn.Module):
        def forward(self, x):
            return x + 1 if torch.compiler.is_exporting() else x + 0

    if not hasattr(torch.compiler, "is_exporting"):
        return False
    zero = torch.zeros(1)
    return bool(torch.export.export(Probe(), (zero,), strict=strict).module()(zero))


def causes(error):
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export")
@pytest.mark.parametrize("what", ["a step", "a carried state"])
@pytest.mark.parametrize("exporter", EXPORTERS)
@both_hosts
def test_a_program_without_the_memory_of_its_nodes_is_refused(host, exporter, what):
    if exporter == "onnx":
        pytest.importorskip("onnxscript")
    if exporter.startswith("torch.export") and not tells_of_export("strict" in exporter):
        pytest.skip("this torch cannot tell an export from a compilation")
    net = network(host, step_by_step=what == "a step")
    given = X_SEQ[0] if what == "a step" else X_SEQ
    with torch.no_grad():
        if what == "a carried state":
            net(X_SEQ)
        for module in (net, net[3]) if what == "a step" else (net,):  # PMSN alone too
            x = given if module is net else torch.rand(5, 4)
            with pytest.raises(Exception) as raised:  # noqa: PT011  # of the exporter's own
                EXPORTERS[exporter](module, x)
            text = "\n".join(causes(raised.value))
            assert "msf_pmsn_plugins.export.Streaming(net)" in text
            assert "set_step_mode(net, 'm')" in text or "sequence=True" in text


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@both_hosts
def test_export_of_whole_sequences_from_rest(host, strict):
    if strict and host == "snntorch":
        needs_torch(2, 7, "strict exports of modules that set an attribute")
    net = network(host)
    with torch.no_grad():
        expected = net(X_SEQ)
        rest(net)
        program = torch.export.export(net, (X_SEQ,), strict=strict).module()
        for _ in range(2):  # every call starts at rest
            assert_same(program(X_SEQ), expected)
        rest(net)  # torch before 2.9 leaves the tensors of its tracing in the states
        assert_same(net(X_SEQ), expected)


@pytest.mark.parametrize("name", ["MSF", "PMSN"])
def test_export_of_a_snntorch_step_with_its_mem(name):
    """What is passed in and out is no memory inside."""
    needs_torch(2, 7, "exports of modules that set an attribute")
    module = nodes_for("snntorch")
    neuron = module.MSF.published() if name == "MSF" else module.PMSN(3)
    zeros = torch.zeros(5, 3)
    mem = zeros if name == "MSF" else (zeros, torch.zeros(5, 3, 4, dtype=torch.complex64))
    with torch.no_grad():
        program = torch.export.export(neuron, (X_SEQ[0], mem)).module()
        expected = neuron.neuron.sequence(X_SEQ)[0]
        s_seq = []
        for x in X_SEQ:
            s, mem = program(x, mem)
            s_seq.append(s)
    assert_same(torch.stack(s_seq), expected)
    assert expected.any()
