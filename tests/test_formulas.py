"""The hosts' surrogates by formula: the slopes of the object, or the object where the formula does not give them."""

import itertools
from functools import partial

import pytest
import torch

from msf_pmsn_plugins import formulas
from msf_pmsn_plugins.formulas import TRIED, standing_for
from msf_pmsn_plugins.neurons import MSF, PMSN
from msf_pmsn_plugins.neurons.slopes import FEW, ON_CPU, in_parts
from msf_pmsn_plugins.surrogate import Custom, Surrogate, gives_slopes, slope_of
from tolerances import assert_same

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")
from snntorch import surrogate as snntorch_surrogate
from spikingjelly.activation_based import surrogate

from msf_pmsn_plugins.snntorch.surrogates import as_surrogate
from msf_pmsn_plugins.spikingjelly import MSFNode
from msf_pmsn_plugins.spikingjelly.surrogates import BySteps, translate
from msf_pmsn_plugins.spikingjelly.version import FUNCTIONAL

# Edges of every formula, both zeros, the smallest numbers, far tails.
U = torch.cat(
    [
        torch.linspace(-4, 4, 1601, dtype=torch.float64),
        torch.tensor([0.0, 1e-40, -1e-40, 1e-6, -1e-6, 30.0, -30.0, 1e4, -1e4], dtype=torch.float64),
        *(torch.tensor([1, -1]) * w for w in (0.1, 0.25, 1 / 3, 0.37, 0.5, 1 / 2.7, 0.5 / 2.7, 1.0, 2.0)),
    ]
)


def spikingjelly_objects():
    """(name, object), each at its default parameters and at others."""
    others = {
        "LeakyKReLU": [{"leak": 0.2, "k": 0.7}],
        "PiecewiseLeakyReLU": [{"w": 0.37, "c": 0.2}, {"w": 1.0, "c": 0.0}],
        "S2NN": [{"alpha": 2.7, "beta": 0.6}],
        "SquarewaveFourierSeries": [{"n": 4, "T_period": 5.0}, {"n": 1, "T_period": 8.0}],
        "DeterministicPass": [],
    }
    names = [
        "PiecewiseQuadratic", "PiecewiseExp", "Sigmoid", "SoftSign", "SuperSpike", "ATan", "NonzeroSignLogAbs", "Erf",
        "PiecewiseLeakyReLU", "SquarewaveFourierSeries", "S2NN", "QPseudoSpike", "LeakyKReLU", "FakeNumericalGradient",
        "LogTailedReLU", "Rect", "DeterministicPass",
    ]  # fmt: skip
    for name in names:
        broken = name == "NonzeroSignLogAbs" and not FUNCTIONAL
        if hasattr(surrogate, name) and not broken:
            for parameters in ({}, *others.get(name, [{"alpha": 2.7}, {"alpha": 3}])):
                yield pytest.param(name, parameters, id="-".join([name, *map(str, parameters.values())]))


SNNTORCH = [
    pytest.param(name, parameters, id="-".join([name, *map(str, parameters.values())]))
    for name, parameters in (
        ("atan", {}),
        ("atan", {"alpha": 3.5}),
        ("fast_sigmoid", {}),
        ("fast_sigmoid", {"slope": 5}),
        ("sigmoid", {}),
        ("sigmoid", {"slope": 3.0}),
        ("triangular", {}),
        ("triangular", {"threshold": 0.5}),
        ("straight_through_estimator", {}),
        ("heaviside", {}),
        ("spike_rate_escape", {}),
        ("spike_rate_escape", {"beta": 2, "slope": 5}),
        ("SFS", {}),
        ("SFS", {"slope": 4, "B": 0.25}),
    )
]
BITS = {
    "PiecewiseQuadratic",
    "PiecewiseExp",
    "Rect",
    "ATan",
    "LeakyKReLU",
    "LogTailedReLU",
    "DeterministicPass",
}


def assert_stands(given, function, dtype, to_the_bit):
    """``given`` has the slopes of ``function`` at U, where that has any."""
    u = U.to(dtype)
    assert isinstance(given, (Surrogate, Custom)), given
    slopes, expected = slope_of(given, u), slope_of(function, u)
    assert (slopes.dtype, slopes.shape) == (dtype, u.shape)
    assert slopes.isfinite().all()
    known = expected.isfinite()
    if to_the_bit:
        assert_same(slopes[known], expected[known])
    # Both round the argument of an exponential, which weighs in the tail as much as the argument is large.
    # 0.0.0.0.14 has its parameters in float32.
    tail = 1e-14 if dtype == torch.float64 and FUNCTIONAL else 1e-6
    torch.testing.assert_close(
        slopes[known], expected[known], rtol=2 * tail, atol=tail * float(expected[known].abs().max()) / 10
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "parameters"), list(spikingjelly_objects()))
def test_kernels_take_a_formula_for_every_object_of_spikingjelly(name, parameters, dtype):
    function = getattr(surrogate, name)(**parameters)
    for detach_reset in (True, False):
        given = translate(function, dtype, detach_reset, exact=False)
        if name == "PiecewiseLeakyReLU" and not FUNCTIONAL:
            assert given is function  # its slope there is another
            continue
        if name in ("SoftSign", "SuperSpike", "ATan") and not isinstance(given, (Surrogate, Custom)):
            assert given is function  # on its own path to the bit, in float64 and in 0.0.0.0.14
            continue
        assert_stands(given, function, dtype, FUNCTIONAL and name in BITS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "parameters"), SNNTORCH)
def test_kernels_take_a_formula_for_every_function_of_snntorch(name, parameters, dtype):
    function = getattr(snntorch_surrogate, name)(**parameters)
    ours = as_surrogate(function)
    assert ours.function is function  # which a stock neuron is given back
    assert_stands(ours.for_kernels, function, dtype, name in ("triangular", "heaviside"))
    if name == "sigmoid":  # the host's is inf/inf far below the threshold, with every backend
        assert slope_of(ours, torch.tensor([-30.0, 30.0])).isfinite().all()


@pytest.mark.parametrize("name", ["SSO", "LSO"])
def test_functions_that_draw_at_random_stay(name):
    function = getattr(snntorch_surrogate, name)()
    ours = as_surrogate(function)
    assert ours.function is function
    assert ours.for_kernels is ours


def test_an_object_is_kept_where_the_formula_does_not_give_its_slopes(monkeypatch):
    function = surrogate.Rect(alpha=2.0) if hasattr(surrogate, "Rect") else surrogate.PiecewiseQuadratic(2.0)
    monkeypatch.setattr(type(function), "forward", lambda self, u: 2 * surrogate.ATan()(u))
    assert translate(function, torch.float32, True, exact=False) is function
    assert isinstance(translate(function, torch.float32, True, exact=True), BySteps)
    assert standing_for(surrogate.Sigmoid(alpha=4.0), "sigmoid", {"width": torch.tensor(4.0)}) is None
    assert standing_for(surrogate.Sigmoid(alpha=4.0), "sigmoid", {"width": -1.0}) is None
    assert standing_for(surrogate.QPseudoSpike(alpha=2.0), formulas.q_pseudo_spike, {"alpha": 1}) is None
    assert standing_for(surrogate.Sigmoid(alpha=4.0), formulas.rect, {"alpha": 4.0}) is None
    assert standing_for(lambda u: u * float("nan"), formulas.straight_through, {}) is None
    with pytest.raises(KeyboardInterrupt):
        standing_for(interrupted, formulas.straight_through, {})


def interrupted(u):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("name", "parameters"), list(spikingjelly_objects()))
def test_infinite_membranes_have_the_slopes_of_the_object(name, parameters):
    function, u = getattr(surrogate, name)(**parameters), torch.tensor([float("inf"), -float("inf")])
    given = translate(function, torch.float32, True, exact=False)
    slopes, expected = slope_of(given, u), slope_of(function, u)
    known = expected.isfinite()
    assert_same(slopes[known], expected[known])


def test_a_formula_that_differs_near_the_threshold_alone_does_not_stand():
    if hasattr(surrogate, "PiecewiseLeakyReLU"):
        function = surrogate.PiecewiseLeakyReLU(w=0.01, c=0.2)
        assert (translate(function, torch.float32, True, exact=False) is function) == (not FUNCTIONAL)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf")])
def test_an_erf_that_is_no_density_keeps_its_own_derivative(alpha):
    function, u = surrogate.Erf(alpha=alpha), torch.tensor([-1.0, -0.25, 0.5])
    given = translate(function, torch.float32, True, exact=False)
    torch.testing.assert_close(slope_of(given, u), slope_of(function, u), equal_nan=True)


@pytest.mark.parametrize("non_fake", [False, True])
def test_formulas_stand_where_tensors_are_fake(non_fake):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=non_fake), torch.device("meta"):
        assert as_surrogate(snntorch_surrogate.fast_sigmoid()).standing is not None
        node = MSFNode.published(D=2, surrogate_function=surrogate.LeakyKReLU(), step_mode="m")
        x = torch.randn(3, 2, device="cpu", requires_grad=True)
        node(x).sum().backward()
    assert isinstance(node.neuron.surrogate, Custom)
    assert x.grad.shape == x.shape


def test_trying_out_draws_nothing_and_is_not_counted():
    from torch.utils.flop_counter import FlopCounterMode

    before = torch.get_rng_state()
    with FlopCounterMode(display=False) as counter:
        translate(surrogate.LeakyKReLU(), torch.float32, True, exact=False)
    assert counter.get_total_flops() == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert len(TRIED) == len(set(TRIED))


def test_a_parameter_that_changes_between_calls_is_seen():
    x = torch.linspace(0, 2, 6).reshape(2, 3).requires_grad_()

    def gradient(node):
        node.reset()
        (g,) = torch.autograd.grad(node(x).sum(), x)
        return g

    node = MSFNode.published(D=2, surrogate_function=surrogate.LeakyKReLU(leak=0.1, k=1.0), step_mode="m")
    gradient(node)
    for name, value in (("k", 3.0), ("leak", -2.0)):
        setattr(node.surrogate_function, name, value)
        fresh = surrogate.LeakyKReLU(leak=node.surrogate_function.leak, k=node.surrogate_function.k)
        assert_same(gradient(node), gradient(MSFNode.published(D=2, surrogate_function=fresh, step_mode="m")))


@pytest.mark.parametrize("name", ["PiecewiseQuadratic", "ATan", "Sigmoid", "Erf"])
def test_a_forward_that_somebody_puts_into_the_object_is_seen(name):
    x = torch.linspace(-1, 2, 6).reshape(2, 3).requires_grad_()
    node = MSFNode(D=2, surrogate_function=getattr(surrogate, name)(), step_mode="m")
    other = MSFNode(D=2, surrogate_function=surrogate.ATan(alpha=5.0), step_mode="m")
    node(x)
    node.surrogate_function.forward = lambda u: surrogate.ATan(alpha=5.0)(u)
    for backend in ("auto", "torch"):
        node.backend = other.backend = backend
        node.reset()
        other.reset()
        given, expected = (torch.autograd.grad(one(x).sum(), x)[0] for one in (node, other))
        torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("channels", [7, 8])
def test_a_surrogate_that_knows_its_channels_is_called_step_by_step(channels):
    rate = torch.linspace(0.5, 2, channels)

    def fire(u):
        s = torch.sigmoid(rate * u)
        return (u >= 0).to(u.dtype) + s - s.detach()

    x = torch.randn(5, 3, channels, requires_grad=True)
    given, expected = (
        torch.autograd.grad(MSF(D=2, surrogate=fire, backend=backend)(x)[0].sum(), x)[0]
        for backend in ("auto", "torch")
    )
    torch.testing.assert_close(given, expected)


# In parts


LAYOUTS = {
    "contiguous": lambda *shape: torch.randn(shape),
    "channels_last": lambda t, n, c, *rest: torch.randn(t, n, *rest, c).movedim(-1, 2),
    "batch_first": lambda t, n, *rest: torch.randn(n, t, *rest).transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("by_step", [False, True], ids=["elements", "steps"])
def test_parts_are_all_elements_once_and_none_is_larger_than_a_cache(layout, by_step):
    x = LAYOUTS[layout](9, 4, 16, 16, 16)
    out = torch.zeros_like(x)
    sizes = []
    for a, b in in_parts(x, out, by_step=by_step):
        sizes.append(a.numel())
        assert a.dim() == (5 if by_step else 1)
        b.add_(a)
    assert_same(out, x)
    assert len(sizes) > 1
    assert max(sizes) <= ON_CPU
    assert sum(sizes) == x.numel()


@pytest.mark.parametrize("shape", [(0, 2, 3), (3, 0, 3), (1, 1, 1)])
def test_parts_of_little_are_one(shape):
    assert [part[0].numel() for part in in_parts(torch.ones(shape))] == [torch.Size(shape).numel()]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("neuron", ["number", "channels", "learned", "attached", "pmsn"])
def test_slopes_made_in_parts_are_those_of_one_call(neuron, layout, monkeypatch):
    """More membranes than fit a part, and fewer than are worth a call for each threshold, give the same gradients."""
    torch.manual_seed(3)
    make = {
        "number": lambda: MSF(D=3, surrogate=derivative),
        "channels": lambda: MSF(D=3, v_threshold=torch.rand(16, 1, 1) + 0.5, surrogate=derivative),
        "learned": lambda: MSF(D=3, learn_threshold=True, surrogate=derivative),
        "attached": lambda: MSF(D=3, detach_reset=False, surrogate=derivative),
        "pmsn": lambda: PMSN(16, surrogate=derivative),
    }[neuron]
    derivative = Custom(partial(formulas.fast_sigmoid, slope=3.0))
    module = make()
    x = LAYOUTS[layout](5, 2, 16, 4, 4).requires_grad_()

    def gradients(on_cpu, few):
        monkeypatch.setattr("msf_pmsn_plugins.neurons.slopes.ON_CPU", on_cpu)
        monkeypatch.setattr("msf_pmsn_plugins.neurons.slopes.FEW", few)
        module.zero_grad()
        (g,) = torch.autograd.grad(module(x)[0].sum(), x)
        return g

    whole = gradients(1 << 30, 0)
    for on_cpu, few in itertools.product((1, 700, 1 << 30), (0, FEW)):
        assert_same(gradients(on_cpu, few), whole)


OWN = {
    "channels": lambda u: u * torch.tensor([1.0] * 7 + [5.0]),
    "neighbours": lambda u: u * (1 + u.detach().abs().mean()),
}


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("neuron", ["msf", "pmsn"])
def test_a_callable_that_is_not_element_by_element_runs_step_by_step(neuron, own):
    """Kernels would ask it about other elements together than the step does."""

    def function(u):
        through = OWN[own](u)
        return (u >= 0).to(u.dtype) + (through - through.detach())

    assert not gives_slopes(function)
    make = {"msf": lambda s: MSF(D=2, surrogate=s), "pmsn": lambda s: PMSN(8, surrogate=s)}[neuron]
    torch.manual_seed(0)
    x = torch.randn(6, 4, 8, requires_grad=True)
    module = make(function)
    (g,) = torch.autograd.grad(module(x)[0].sum(), x)
    state, spikes = module.initial_state(x[0]), []
    for x_t in x:
        s, state, _ = module.step(x_t, state)
        spikes.append(s)
    (expected,) = torch.autograd.grad(torch.stack(spikes).sum(), x)
    assert_same(g, expected)


def test_who_watches_sees_one_call_of_the_surrogate():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    calls = []

    def derivative(u):
        calls.append(u.shape)
        return torch.ones_like(u)

    msf = MSF(D=1, surrogate=Custom(derivative))
    x = torch.randn(3, 2, ON_CPU, requires_grad=True)
    msf(x)[0].sum().backward()
    assert len(calls) == 6
    calls.clear()
    with Watching():
        msf(x)[0].sum().backward()
    assert len(calls) == 1
