"""The custom ops under torch's own machinery: compile, functorch, autocast, backends."""

import sys
import types

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call

from helpers import needs_torch, randn, sequence
from msf_pmsn_plugins import backends
from msf_pmsn_plugins.backends import BACKENDS, Backend
from msf_pmsn_plugins.neurons import MSF, MSN, PMSN
from msf_pmsn_plugins.neurons.msf import msf
from msf_pmsn_plugins.neurons.pmsn import pmsn
from msf_pmsn_plugins.neurons.pmsn.module import PARAMETERS
from msf_pmsn_plugins.settings import MSFSettings
from msf_pmsn_plugins.tensors import MSFParameters, PMSNWeights
from subjects import at_rest, build_pmsn
from tolerances import F32, F64, assert_close, assert_same

# ---------------------------------------------------------------- compile


def compiled(function, **kwargs):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **kwargs)


def outputs_and_gradients(function, neuron, x):
    s, state, m = function(x)
    up = randn(*x.shape, seed=5, dtype=x.dtype)
    last = [torch.view_as_real(t) if t.is_complex() else t for t in state]
    total = sum((t * up).sum() for t in (s, m) if t is not None) + sum(t.sum() for t in last)
    return s, m, state, torch.autograd.grad(total, [x, *neuron.parameters()])


@pytest.mark.parametrize("steps", [4, 64])
@pytest.mark.parametrize("kind", ["msf", "plif", "pmsn", "pmsn-axes"])
def test_compile_without_graph_breaks(kind, steps):
    neuron = {
        "msf": lambda: MSF(surrogate="atan", detach_reset=False),
        "plif": lambda: MSF(charge="plif", w=0.3),
        "pmsn": lambda: build_pmsn(3),
        "pmsn-axes": lambda: build_pmsn(6, channel_dim=(-2, -1)),
    }[kind]()
    shape = (steps, 4, 2, 3) if kind == "pmsn-axes" else (steps, 4, 3, 2)
    # the loop of PMSN's membranes unrolls when traced, so it is traced for the short sequence only
    membrane = steps == 4 or isinstance(neuron, MSF)
    function = lambda x: neuron.sequence(x, membrane=membrane)  # noqa: E731
    # a transposed input, as after a permute(), has strides of its own
    for x in (randn(*shape, dtype=F32), randn(*reversed(shape), dtype=F32).permute(3, 2, 1, 0))[
        : 2 if steps == 4 else 1
    ]:
        x = (2 * x).detach().requires_grad_()
        ours = outputs_and_gradients(compiled(function), neuron, x)
        eager = outputs_and_gradients(function, neuron, x)
        assert_same(ours[0], eager[0])
        if membrane:
            assert_same(ours[1], eager[1])
        for a, b in zip((*ours[2], *ours[3]), (*eager[2], *eager[3]), strict=True):
            assert_close(a, b, "adjoint")


@pytest.mark.parametrize("make", [MSF, lambda: build_pmsn(3)], ids=["msf", "pmsn"])
def test_compile_with_a_changing_number_of_steps(make):
    neuron = make()
    function = compiled(lambda x: neuron(x)[0], dynamic=True)
    for steps in (3, 40):
        x = 2 * randn(steps, 4, 3, dtype=F32)
        assert_same(function(x), neuron(x)[0])


def test_export():
    for neuron in (MSF(), build_pmsn(3)):
        x = 2 * randn(6, 4, 3, dtype=F32)
        program = torch.export.export(neuron, (x,))
        assert_same(program.module()(x)[0], neuron(x)[0])


@pytest.mark.parametrize(
    "make", [MSF, lambda: PMSN(4), lambda: PMSN(4, residual="fixed")], ids=["msf", "pmsn", "fixed"]
)
def test_export_with_any_number_of_steps(make):
    needs_torch(2, 7, "exports with a free number of steps")
    neuron = make().eval()
    steps = torch.export.Dim("T", min=2, max=512)
    program = torch.export.export(neuron, (randn(20, 3, 4, dtype=F32),), dynamic_shapes=({0: steps},))
    x = randn(33, 3, 4, dtype=F32)
    assert_same(program.module()(x)[0], neuron(x)[0])


# ---------------------------------------------------------------- functorch


def pmsn_function(neuron, x):
    def loss(parameters, x=x):
        s, (_, z) = functional_call(neuron, parameters, (x,))
        return s.sum() + torch.view_as_real(z).square().sum()

    return loss


def test_func_grad_over_pmsn_parameters():
    neuron, x = build_pmsn(3, dtype=F64), randn(40, 2, 3)
    parameters = dict(neuron.named_parameters())
    loss = pmsn_function(neuron, x)
    grads = torch.func.grad(loss)({n: p.detach() for n, p in parameters.items()})
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    for name, theirs in zip(parameters, expected, strict=True):
        assert_close(grads[name], theirs, "discretise_gradient")  # by autograd there, by hand in eager mode
        assert theirs.any()


def test_vmap_over_pmsn_parameters_equals_separate_runs():
    models, x = [build_pmsn(3, dtype=F64, seed=s) for s in (0, 20, 40)], randn(40, 2, 3)
    stacked, _ = torch.func.stack_module_state(models)
    stacked = {n: p.detach() for n, p in stacked.items()}
    loss = pmsn_function(models[0], x)
    s, (r, z) = torch.vmap(lambda p: functional_call(models[0], p, (x,)))(stacked)
    values, grads = torch.vmap(loss)(stacked), torch.vmap(torch.func.grad(loss))(stacked)
    for i, model in enumerate(models):
        s_i, (r_i, z_i) = model(x)
        for a, b in ((s, s_i), (r, r_i), (z, z_i)):
            assert_same(a[i], b)
        parameters = dict(model.named_parameters())
        value = loss(parameters)
        assert_same(values[i], value)
        for name, theirs in zip(
            parameters, torch.autograd.grad(value, list(parameters.values())), strict=True
        ):
            assert_close(grads[name][i], theirs, "adjoint")


def test_vmap_over_inputs_equals_a_batch():
    for neuron in (MSF(charge="plif", w=0.2), build_pmsn(3)):
        x = 2 * randn(5, 40, 2, 3, dtype=F32)  # five sequences
        s, state = torch.vmap(neuron)(x)
        gradient = lambda part: torch.func.grad(lambda u: neuron(u)[0].sum())(part)  # noqa: E731, B023
        grads = torch.vmap(gradient)(x)
        for i in range(5):
            s_i, state_i = neuron(x[i])
            assert_same(s[i], s_i)
            for a, b in zip(state, state_i, strict=True):
                assert_same(a[i], b)
            assert_close(grads[i], gradient(x[i]), "adjoint")


def test_vmap_over_the_rate_of_msf():
    x, rates = 2 * randn(9, 4), torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    settings = MSFSettings("decay", (1.0, 2.0), surrogate="atan", width=2.0)
    rest = torch.zeros(4, dtype=F64)
    call = lambda k: msf(x, rest, settings, MSFParameters(rate=k))[0].sum()  # noqa: E731
    grads = torch.vmap(torch.func.grad(call))(rates)
    for i in range(3):
        assert_close(grads[i], torch.func.grad(call)(rates[i]), "adjoint")
    assert grads.all()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("make", [MSF, lambda: build_pmsn(3)], ids=["msf", "pmsn"])
def test_jvp_raises_instead_of_returning_a_zero_tangent(make, mode):
    """Without gradients too, where the ops run without their Functions."""
    neuron, x = make(), randn(4, 2, 3, dtype=F32)
    with mode():
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.func.jvp(lambda u: neuron(u)[0], (x,), (torch.ones_like(x),))
        with forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError)):
            neuron(forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize("make", [MSF, lambda: build_pmsn(3)], ids=["msf", "pmsn"])
def test_functional_transforms_work_without_gradients(make):
    neuron, x = make(), 2 * randn(4, 2, 3, dtype=F32)
    call = lambda u: neuron(u)[0].sum()  # noqa: E731
    expected = torch.func.grad(call)(x)
    with torch.no_grad():
        assert_same(torch.func.grad(call)(x), expected)
        both = torch.vmap(lambda u: neuron(u)[0])(torch.stack([x, -x]))
        assert_same(both[0], neuron(x)[0])
    assert expected.any()


def test_jvp_over_pmsn_parameters_raises():
    neuron, x = build_pmsn(3), randn(4, 2, 3, dtype=F32)
    parameters = {n: p.detach() for n, p in neuron.named_parameters()}
    ones = {n: torch.ones_like(p) for n, p in parameters.items()}
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(lambda p: functional_call(neuron, p, (x,))[0], (parameters,), (ones,))


def test_second_derivatives_raise_or_are_right_but_never_silently_zero():
    """The adjoint is an op without a derivative of its own."""
    for neuron in (MSF(surrogate="atan"), build_pmsn(3)):
        x = (2 * randn(6, 2, 3, dtype=F32)).requires_grad_()
        (g,) = torch.autograd.grad(neuron(x)[0].sum(), x, create_graph=True)
        with pytest.raises(RuntimeError):
            torch.autograd.grad(g.square().sum(), x)


# ---------------------------------------------------------------- precision of the surroundings


def results(neuron, x):
    x = x.detach().requires_grad_()
    s, state, m = sequence(neuron, x)
    return s, *state, m, *torch.autograd.grad(s.sum(), [x, *neuron.parameters()])


@pytest.mark.parametrize(
    "make", [MSF, lambda: MSF(charge="plif", w=0.3), lambda: build_pmsn(3)], ids=["msf", "plif", "pmsn"]
)
def test_autocast_changes_nothing_in_a_float32_run(make):
    neuron, x = make(), 2 * randn(70, 4, 3, dtype=F32)
    plain = results(neuron, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = results(neuron, x)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    for a, b in zip(cast, plain, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_matmul_precision_changes_nothing(precision):
    neuron, x = build_pmsn(3), 2 * randn(70, 16, 3, dtype=F32)
    plain = results(neuron, x)
    torch.set_float32_matmul_precision(precision)
    try:
        reduced = results(neuron, x)
        assert torch.get_float32_matmul_precision() == precision  # put back as it was found
    finally:
        torch.set_float32_matmul_precision("highest")
    for a, b in zip(reduced, plain, strict=True):
        assert_same(a, b)


def test_deterministic():
    for neuron in (MSF(surrogate="atan"), build_pmsn(3)):
        x = 2 * randn(70, 16, 3, dtype=F32)
        for a, b in zip(results(neuron, x), results(neuron, x), strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_grad_and_inference_mode(mode):
    for neuron in (MSF(), build_pmsn(3)):
        x = 2 * randn(40, 2, 3, dtype=F32).requires_grad_()
        with mode():
            s, state = neuron(x)
            s2, _ = neuron(x, state)
        assert not any(part.requires_grad for part in (s, *state))
        expected, state = neuron(x)
        assert_same(s, expected)
        assert_same(s2, neuron(x, state)[0])


@pytest.mark.parametrize("make", [lambda: PMSN(3), lambda: MSN(3)], ids=["pmsn", "msn"])
def test_a_neuron_made_in_inference_mode_can_be_trained(make):
    with torch.inference_mode():
        neuron = make()
        neuron(torch.ones(2, 1, 3))
    neuron(torch.ones(2, 1, 3))[0].sum().backward()
    assert all(p.grad is not None for p in neuron.parameters() if p.requires_grad)


# ---------------------------------------------------------------- gradients that are asked for or not


def test_unused_outputs_need_no_gradient():
    """Only the state, only the membrane, or only the spikes may enter the loss."""
    for neuron in (MSF(surrogate="atan"), build_pmsn(3)):
        x = (2 * randn(40, 2, 3, dtype=F32)).requires_grad_()
        s, state, m = sequence(neuron, x)
        last = torch.view_as_real(state[-1]) if state[-1].is_complex() else state[-1]
        for out in (s, m, last):
            (g,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
            assert g.any()


def test_frozen_parameters_and_input():
    neuron, x = build_pmsn(3), (2 * randn(40, 2, 3, dtype=F32)).requires_grad_()
    full = torch.autograd.grad(neuron(x)[0].sum(), [x, *neuron.parameters()])
    for name in PARAMETERS:
        getattr(neuron, name).requires_grad_(name == "A_imag")
    g_x, g_a = torch.autograd.grad(neuron(x)[0].sum(), [x, neuron.A_imag])
    assert_same(g_x, full[0])
    assert_same(g_a, full[1 + [n for n, _ in neuron.named_parameters()].index("A_imag")])
    (g_a,) = torch.autograd.grad(neuron(x.detach())[0].sum(), [neuron.A_imag])
    assert_same(g_a, full[1 + [n for n, _ in neuron.named_parameters()].index("A_imag")])


# ---------------------------------------------------------------- backends


@pytest.fixture
def counting(monkeypatch):
    """The torch backend under another name; the names of the functions that ran."""
    calls = []

    def wrapped(module, name):
        def call(*args):
            calls.append(name)
            return getattr(module, name)(*args)

        return call

    package = types.ModuleType("counting")
    package.unusable = lambda: ""
    modules = {"counting": package}
    for neuron in ("msf", "pmsn"):
        real, own = backends.load("torch", neuron), types.ModuleType(f"counting.{neuron}")
        own.KNOWS = real.KNOWS
        for name in (f"{neuron}_forward", f"{neuron}_backward"):
            setattr(own, name, wrapped(real, name))
        modules[own.__name__] = own
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(BACKENDS, "counting", Backend("counting", keeps_drive=True))
    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))
    return calls


@pytest.mark.parametrize("make", [MSF, lambda: build_pmsn(3)], ids=["msf", "pmsn"])
def test_the_named_backend_runs_forward_and_backward(make, counting):
    neuron, x = make(), (2 * randn(5, 2, 3, dtype=F32)).requires_grad_()
    results(neuron, x)
    assert counting == []  # "auto" did not take it
    neuron.backend = "torch"
    plain = results(neuron, x)
    neuron.backend = "counting"
    named = results(neuron, x)
    kind = "msf" if isinstance(neuron, MSF) else "pmsn"
    assert counting == [f"{kind}_forward", f"{kind}_backward"]
    for a, b in zip(named, plain, strict=True):
        assert_same(a, b)


def test_a_named_backend_that_cannot_be_imported_raises(monkeypatch):
    monkeypatch.setitem(BACKENDS, "absent", Backend("msf_pmsn_plugins.backends.absent"))
    for neuron in (MSF(backend="absent"), PMSN(3, backend="absent")):
        with pytest.raises(ImportError, match="backend 'absent' does not work here.*backend='auto'"):
            neuron(torch.zeros(2, 2, 3))


def test_the_functions_refuse_an_unknown_backend():
    x = torch.zeros(2, 1, 1, 3)
    none = torch.zeros(1, 1, dtype=torch.complex64)
    with pytest.raises(ValueError, match="unknown backend 'gpu'"):
        pmsn(x, at_rest(x[0], 1), PMSNWeights(none, none, torch.ones(1)), backend="gpu")
    with pytest.raises(ValueError, match="unknown backend 'gpu'"):
        msf(torch.zeros(2, 3), torch.zeros(3), MSFSettings("decay", (1.0,)), backend="gpu")
