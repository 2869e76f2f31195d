"""The neurons under torch's own tools: precision, compile, copies, files, ensembles.

What the custom ops themselves must do (opcheck, functorch, autocast around a float32 run) is in test_ops.py; several
processes are in test_distributed.py.
"""

import ast
import copy
import io
from pathlib import Path

import pytest
import torch

import msf_pmsn_plugins
from helpers import loop, needs_torch, randn
from msf_pmsn_plugins import state as states
from msf_pmsn_plugins.neurons import MSF, ParallelIF
from networks import X_SEQ, both_hosts, every_host, network, rest, run
from subjects import build_pmsn
from tolerances import F32, assert_close, assert_same

both_neurons = pytest.mark.parametrize("make", [MSF, lambda: build_pmsn(3)], ids=["msf", "pmsn"])


# ---------------------------------------------------------------- mixed precision


@every_host
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_halves_the_layers_and_not_the_neurons(host, dtype):
    net, seen = network(host), {}
    for name, module in net.named_children():
        module.register_forward_hook(lambda _m, given, out, name=name: seen.update({name: (given[0], out)}))
    with torch.autocast("cpu", dtype=dtype):
        y = net(X_SEQ)
        carried = {} if host == "bare" else states.read(net)
    gradients = torch.autograd.grad(y.float().sum(), list(net.parameters()))
    for g, p in zip(gradients, net.parameters(), strict=True):
        assert g.dtype == p.dtype == F32
        assert torch.isfinite(g).all()
        assert g.any()
    for state in carried.values():
        assert {part.dtype for part in state} <= {F32, torch.complex64}
    names = ("msf", "pmsn") if host == "bare" else ("1", "3")
    for name in names:
        given, out = seen[name]
        out = out[0] if isinstance(out, tuple) else out
        assert given.dtype == out.dtype == dtype
        module = net.get_submodule(name)
        held = getattr(module, "neuron", module)
        # the oracle on the same half-precision currents, with autocast off
        assert_same(out, loop(held, given.detach())[0])
    assert y.any()


@every_host
def test_grad_scaler_scales_and_unscales_exactly(host):
    net = network(host)
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


@every_host
def test_grad_scaler_skips_a_step_that_overflows(host):
    net = network(host)
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


def compare_compiled(host, backend, x_seq=X_SEQ):
    net = network(host)
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


@both_hosts
def test_networks_compile_without_graph_breaks(host):
    compare_compiled(host, "aot_eager")


@pytest.mark.slow
@both_hosts
def test_a_compiled_network_carries_its_state(host):
    net = network(host)
    with torch.no_grad():
        whole = net(X_SEQ)
        rest(net)
        torch._dynamo.reset()
        compiled = torch.compile(net, backend="aot_eager")
        parts = [compiled(part) for part in X_SEQ.split(10)]
    assert_same(torch.cat(parts), whole)
    assert sorted(states.read(net)) == ["1", "3"]


def test_steps_compile_without_graph_breaks():
    for make in (MSF, lambda: build_pmsn(3), ParallelIF):
        neuron, x = make(), 2 * randn(4, 3, dtype=F32)
        torch._dynamo.reset()
        compiled = torch.compile(neuron.step, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            s, state, m = compiled(x, neuron.initial_state(x))
            expected, expected_state, expected_m = neuron.step(x, neuron.initial_state(x))
        for a, b in zip((s, m, *state), (expected, expected_m, *expected_state), strict=True):
            assert_same(a, b)


@pytest.mark.slow
@every_host
def test_networks_compile_with_inductor(host):
    compare_compiled(host, "inductor")


@pytest.mark.slow
@both_neurons
def test_steps_compile_with_inductor(make):
    """The step is plain torch; inductor may contract products, so values off a tie are compared."""
    neuron, x = make(), 2 * randn(4, 3, dtype=F32)
    torch._dynamo.reset()
    compiled = torch.compile(neuron.step, fullgraph=True)
    s, state, m = compiled(x, neuron.initial_state(x))
    expected, expected_state, expected_m = neuron.step(x, neuron.initial_state(x))
    assert_same(s, expected)
    assert_close(m, expected_m, "drive")
    for a, b in zip(state, expected_state, strict=True):
        assert_close(a, b, "drive")


TRACED = ["neurons", "spikingjelly", "snntorch", "surrogate.py", "settings.py"]


def test_code_that_is_traced_asks_for_types_as_the_oldest_torch_can():
    """``isinstance(x, A | B)`` breaks the tracer of torch.compile before 2.9."""
    package = Path(msf_pmsn_plugins.__file__).parent
    files = [file for name in TRACED for file in [package / name, *(package / name).rglob("*.py")]]
    files = [file for file in files if file.suffix == ".py"]
    assert len(files) > 30
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                assert not isinstance(node.args[1], ast.BinOp), f"{file}, line {node.lineno}"


def forward(neuron, x_seqs):
    with torch.no_grad():
        return torch.vmap(lambda x_seq: neuron(x_seq)[0])(x_seqs)


def backward(neuron, x_seqs):
    return torch.vmap(lambda x_seq: neuron(x_seq)[0])(x_seqs)


def per_sample(neuron, x_seqs):
    with torch.no_grad():  # the parameters are not differentiated a second time
        return torch.vmap(torch.func.grad(lambda x_seq: neuron(x_seq)[0].sum()))(x_seqs)


@pytest.mark.parametrize("how", [forward, backward, per_sample])
@pytest.mark.parametrize(
    "make",
    [MSF, lambda: MSF(surrogate="gaussian", learn_decay=True, D=2), lambda: build_pmsn(3), ParallelIF],
    ids=["msf", "msf-learned", "pmsn", "parallel-if"],
)
def test_compile_over_vmap(make, how):
    if how is backward:
        needs_torch(2, 7, "backward through vmap")
    neuron, x_seqs = make(), 2 * randn(3, 8, 4, 3, dtype=F32)
    torch._dynamo.reset()
    compiled = torch.compile(how, fullgraph=True, backend="aot_eager")
    results = []
    for function in (how, compiled):
        given = x_seqs.clone().requires_grad_(how is backward)
        y = function(neuron, given)
        wanted = [given, *neuron.parameters()] if how is backward else []
        results.append((y, *(torch.autograd.grad(y.sum(), wanted) if wanted else ())))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, "adjoint")
        assert other.any()


@both_hosts
def test_a_network_compiles_over_vmap(host):
    net = network(host)
    parameters, buffers = torch.func.stack_module_state([network(host, seed=seed) for seed in range(2)])

    def call(parameters, buffers):
        rest(net)
        try:
            return torch.func.functional_call(net, (parameters, buffers), (X_SEQ,))
        finally:
            rest(net)

    eager = torch.vmap(call)(parameters, buffers)
    torch._dynamo.reset()
    compiled = torch.compile(torch.vmap(call), backend="aot_eager")(parameters, buffers)
    assert_same(compiled, eager)


# ---------------------------------------------------------------- copies and files


@every_host
def test_a_copy_is_independent(host):
    net = network(host)
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


@every_host
def test_weights_and_states_come_back_from_a_file_without_code(host):
    net = network(host)
    whole = run(net)[0]
    kept = {}
    if host != "bare":
        with torch.no_grad():
            net(X_SEQ[:9])
        kept = states.read(net)
    file = io.BytesIO()
    torch.save({"model": net.state_dict(), "states": kept}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)  # tensors and numbers alone
    other = network(host, seed=1)
    other.load_state_dict(loaded["model"])
    assert_same(run(other)[0], whole)
    if host != "bare":
        states.write(other, loaded["states"])
        with torch.no_grad():
            assert_same(other(X_SEQ[9:]), whole[9:])


# ---------------------------------------------------------------- ensembles


@every_host
def test_vmap_over_an_ensemble_of_networks(host):
    needs_torch(2, 7, "backward through vmap")
    nets = [network(host, seed=seed) for seed in range(3)]
    assert_same(run(nets[0])[0], run(network(host))[0])
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
    assert_same(run(nets[0])[0], run(network(host))[0])
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
