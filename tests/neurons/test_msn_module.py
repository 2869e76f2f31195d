"""MSN as a module: ``sequence`` against ``step``, shapes, dtypes, errors, saving."""

import contextlib
import copy
import io
import itertools
import math
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import (
    DTYPES,
    ROOT,
    Way,
    both_dtypes,
    chunks,
    examples,
    loop,
    randn,
    sequence,
)
from msf_pmsn_plugins.backends import BACKENDS, Backend
from msf_pmsn_plugins.neurons import MSN
from msf_pmsn_plugins.neurons.msn import PARAMETERS
from msf_pmsn_plugins.surrogate import Surrogate
from subjects import MSN_SETTINGS, build_msn
from tolerances import F32, F64, assert_close, assert_same

PLAIN = [Way(path) for path in ("loop", "sequence", "chunks")]


def label(settings):
    return "-".join(map(str, settings.values()))


# ---------------------------------------------------------------- step, sequence, chunks


@pytest.mark.parametrize("settings", MSN_SETTINGS, ids=label)
@both_dtypes
@pytest.mark.parametrize("compartments", [1, 2, 4])
def test_sequence_is_the_loop(compartments, p, settings):
    """Bit-equal outputs; gradients of spikes, membranes and states to input, states and parameters."""
    if compartments == 1:
        settings = {**settings, "reset_feedback": 0.0}
    neuron = build_msn(3, compartments, dtype=DTYPES[p], **settings)
    x = randn(25, 2, 3, 2, dtype=DTYPES[p])
    v0, h0 = (
        randn(2, 3, 2, seed=5, dtype=DTYPES[p]),
        randn(2, 3, 2, compartments - 1, seed=6, dtype=DTYPES[p]),
    )
    ups = [
        randn(*shape, seed=i, dtype=DTYPES[p])
        for i, shape in enumerate((x.shape, x.shape, v0.shape, h0.shape))
    ]
    results, unused = [], {"allow_unused": True, "materialize_grads": True}
    for path in (loop, sequence, chunks):
        leaves = [t.clone().requires_grad_() for t in (x, v0, h0)]
        s, (v, h), m = path(neuron, leaves[0], tuple(leaves[1:]))
        # the attached floor takes the whole gradient from the residual
        pairs = [(part, up) for part, up in zip((s, m, v, h), ups, strict=True) if part.requires_grad]
        outputs, upstream = zip(*pairs, strict=True)
        grads = torch.autograd.grad(outputs, [*leaves, *neuron.parameters()], upstream, **unused)
        results.append(((s, m, v, h), grads))
    assert 0.05 < results[0][0][0].mean() < 0.95
    for outputs, grads in results[1:]:
        for ours, theirs in zip(outputs, results[0][0], strict=True):
            assert_same(ours, theirs)
        for ours, theirs in zip(grads, results[0][1], strict=True):
            assert_close(ours, theirs, "pmsn_adjoint")


def test_step_is_the_oracle():
    """The loop of the helper is one `step` after another."""
    neuron, x = build_msn(3), randn(12, 2, 3, dtype=F32)
    state, rows = neuron.initial_state(x[0]), []
    for x_t in x:
        s, state, m = neuron.step(x_t, state)
        rows.append((s, m))
    s_seq, last, m_seq = sequence(neuron, x)
    assert_same(s_seq, torch.stack([s for s, _ in rows]))
    assert_same(m_seq, torch.stack([m for _, m in rows]))
    for ours, theirs in zip(last, state, strict=True):
        assert_same(ours, theirs)


@examples(25)
@given(steps=st.integers(0, 30), seed=st.integers(0, 99), data=st.data())
def test_every_chunking_has_equal_bits(steps, seed, data):
    neuron, x = (
        build_msn(2, feedback="membrane", reset_feedback=0.2),
        randn(steps, 2, 2, seed=seed, dtype=F32),
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=4)))
    sizes = [b - a for a, b in itertools.pairwise([0, *cuts, steps])]
    (s, state, m), (s_, state_, m_) = sequence(neuron, x), chunks(neuron, x, sizes=sizes)
    for ours, theirs in zip((s_, m_, *state_), (s, m, *state), strict=True):
        assert_same(ours, theirs)


def test_a_sequence_takes_the_matrix_exponential_once(monkeypatch):
    taken, exponential = [], torch.linalg.matrix_exp
    monkeypatch.setattr(torch.linalg, "matrix_exp", lambda t: taken.append(t.shape) or exponential(t))
    neuron, x = build_msn(3, 4), randn(10, 2, 3, dtype=F32)
    sequence(neuron, x)
    assert taken == [(3, 6, 6)]
    loop(neuron, x)
    assert len(taken) == 11
    assert "weights" not in neuron.__dict__


def test_compiles_without_graph_breaks():
    neuron, x = build_msn(2, 3), randn(3, 2, 2, dtype=F32)
    compiled = torch.compile(lambda x: neuron.sequence(x, membrane=True), backend="aot_eager", fullgraph=True)
    (s, state, m), (s_, state_, m_) = compiled(x), sequence(neuron, x)
    for ours, theirs in zip((s, m, *state), (s_, m_, *state_), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("way", PLAIN, ids=str)
def test_causality_of_outputs_and_gradients(way):
    neuron, x = build_msn(3, dtype=F64), randn(20, 2, 3).requires_grad_()
    s, _, m = way(neuron, x)
    for t in (0, 7, 19):
        (gx,) = torch.autograd.grad(s[t].sum(), x, retain_graph=True)
        assert not gx[t + 1 :].any()
        changed = x.detach().clone()
        changed[t + 1 :] += 3
        s_, _, m_ = way(neuron, changed)
        assert_same(s_[: t + 1], s[: t + 1])
        assert_same(m_[: t + 1], m[: t + 1])


def test_the_feedback_reaches_the_next_step_and_not_its_own():
    """ds[1]/dx[0] runs through the soma alone when the dendrite does not drive it."""
    for feedback, seen in (("residual", 0.25), ("membrane", 1.25)):
        neuron = MSN(1, 2, feedback=feedback).double()
        with torch.no_grad():
            for name, value in (("log_dt", 0.0), ("log_tau", math.inf), ("beta_up", 1.0), ("beta_down", 1.0)):
                getattr(neuron, name).fill_(value)
            neuron.gamma.copy_(torch.tensor([[0.0, 1.0]]))
        x = torch.tensor([1.25, 0.0], dtype=F64).reshape(2, 1, 1)
        _, _, m = sequence(neuron, x)
        # 1.25 V fire, 0.25 V remain; the dendrite then hands on what it saw of the soma
        assert m.flatten().tolist() == [1.25, 0.25 + seen]


def test_truncated_backpropagation():
    """A detached state cuts the gradient at the chunk and nothing else."""
    neuron, x = build_msn(3, dtype=F64), randn(30, 2, 3).requires_grad_()
    s_1, state, _ = sequence(neuron, x[:20])
    s_2, _, _ = sequence(neuron, x[20:], tuple(part.detach() for part in state))
    assert_same(torch.cat([s_1, s_2]), sequence(neuron, x)[0])
    (cut,) = torch.autograd.grad(s_2.sum(), x, retain_graph=True)
    assert not cut[:20].any()
    assert cut[20:].any()
    s_2, _, _ = sequence(neuron, x[20:], state)
    (whole,) = torch.autograd.grad(s_2.sum(), x)
    assert whole[:20].any()
    assert_close(whole[20:], cut[20:], "pmsn_adjoint")


@pytest.mark.parametrize("way", PLAIN, ids=str)
def test_batch_rows_and_channels_are_independent(way):
    neuron, x = build_msn(3), randn(20, 4, 3, dtype=F32)
    s, _, m = way(neuron, x)
    changed = x.clone()
    changed[:, 2, 1] += 2
    s_, _, m_ = way(neuron, changed)
    same = torch.ones(4, 3, dtype=torch.bool)
    same[2, 1] = False
    assert_same(s_[:, same], s[:, same])
    assert_same(m_[:, same], m[:, same])
    assert (m_[:, 2, 1] != m[:, 2, 1]).all()


def test_lengths_are_samples_of_their_own():
    neuron, x = build_msn(3, reset_feedback=0.3, feedback="membrane"), randn(12, 4, 3, dtype=F32)
    lengths = [12, 0, 5, 7]
    garbage = x.clone()
    for n, length in enumerate(lengths):
        garbage[length:, n] = math.nan
    s, (v, h), m = neuron.sequence(garbage, membrane=True, lengths=lengths)
    for n, length in enumerate(lengths):
        s_, (v_, h_), m_ = sequence(neuron, x[:length, n : n + 1])
        assert_same(s[:length, n : n + 1], s_)
        assert_same(m[:length, n : n + 1], m_)
        assert not s[length:, n].any()
        assert_same(v[n : n + 1], v_)
        assert_same(h[n : n + 1], h_)


# ---------------------------------------------------------------- shapes, dtypes, bad numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F32, F64])
@pytest.mark.parametrize("compartments", [1, 3])
def test_states_are_float32_or_float64(dtype, compartments):
    neuron = build_msn(3, compartments, dtype=F64 if dtype == F64 else F32)
    x = (torch.randint(-96, 97, (20, 4, 3, 2), generator=torch.Generator().manual_seed(0)) / 32).to(dtype)
    x.requires_grad_()
    s, (v, h), m = sequence(neuron, x)
    state = F64 if dtype == F64 else F32
    assert (s.dtype, v.dtype, h.dtype, m.dtype) == (dtype, state, state, state)
    assert (s.shape, v.shape, h.shape) == (x.shape, (4, 3, 2), (4, 3, 2, compartments - 1))
    assert neuron.state_spec(x[0]) == ((v.shape, state), (h.shape, state))
    assert_same(s.to(state), sequence(neuron, x.detach().to(state))[0])
    (gx,) = torch.autograd.grad(s.sum(), x)
    assert gx.dtype == dtype
    assert gx.any()


def test_half_parameters_compute_in_float32():
    neuron, x = build_msn(3).to(torch.bfloat16), randn(20, 2, 3).to(torch.bfloat16)
    s, (v, h), _ = sequence(neuron, x)
    assert (s.dtype, v.dtype, h.dtype) == (torch.bfloat16, F32, F32)
    assert_same(s.float(), sequence(copy.deepcopy(neuron).float(), x.float())[0])


@pytest.mark.parametrize("way", PLAIN, ids=str)
@pytest.mark.parametrize("shape", [(0, 2, 3), (6, 0, 3), (6, 2, 3, 0)])
def test_empty_inputs(shape, way):
    neuron = build_msn(3)
    state = tuple(torch.full_like(part, 0.5) for part in neuron.initial_state(torch.empty(shape[1:])))
    path = sequence if shape[0] == 0 else way
    s, last, m = path(neuron, torch.empty(shape), state)
    assert s.shape == m.shape == shape
    for ours, theirs in zip(last, state, strict=True):
        assert ours.shape == theirs.shape
        if shape[0] == 0:
            assert_same(ours, theirs)


@pytest.mark.parametrize("compartments", [1, 3])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_input_silences_its_own_lane_from_then_on(bad, compartments):
    neuron, x = build_msn(3, compartments), randn(30, 2, 3, dtype=F32) * 2
    clean, _, m_clean = sequence(neuron, x)
    x[12, 1, 2] = bad
    s, (v, h), m = sequence(neuron, x)
    assert clean[12:, 1, 2].any()
    assert not s[12:, 1, 2].any()
    assert m[12:, 1, 2].isnan().all()
    assert v[1, 2].isnan()
    assert h[1, 2].isnan().all()
    m[12:, 1, 2] = m_clean[12:, 1, 2]
    assert_same(m, m_clean)


@pytest.mark.parametrize(
    ("channel_dim", "shape"),
    [(1, (2, 6, 4)), (-1, (2, 5, 6)), ((1, 2), (2, 2, 3, 5)), ([-2, -1], (2, 5, 3, 2))],
)
def test_channel_axis_anywhere(channel_dim, shape):
    neuron, plain = build_msn(6, channel_dim=channel_dim, dtype=F64), build_msn(6, dtype=F64)
    x = randn(20, *shape)
    s, (v, h), m = sequence(neuron, x)
    dims = channel_dim if isinstance(channel_dim, tuple | list) else (channel_dim,)
    axes = [d % len(shape) for d in dims]

    def flat(t, lead):
        """Channels last, all else in front."""
        rest = [i for i in range(len(shape)) if i not in axes]
        order = [*range(lead), *(i + lead for i in (*rest, *axes)), *range(len(shape) + lead, t.dim())]
        return t.permute(order).reshape(*t.shape[:lead], -1, 6, *t.shape[len(shape) + lead :])

    s_, (v_, h_), m_ = sequence(plain, flat(x, 1))
    assert s.sum() > 0
    for ours, theirs in ((flat(s, 1), s_), (flat(m, 1), m_), (flat(v, 0), v_), (flat(h, 0), h_)):
        assert_close(ours, theirs, "drive")


@pytest.mark.parametrize("view", ["transposed", "expanded", "strided"])
def test_views_equal_their_contiguous_copy(view):
    base = randn(12, 6, 3, 4, dtype=F32)
    x = {
        "transposed": base.transpose(0, 1)[:, :3].transpose(1, 2).contiguous().transpose(1, 2),
        "expanded": base[:, :1, :, :1].expand(12, 5, 3, 2),
        "strided": base[::2, ::2, :, ::3],
    }[view]
    x = x if x.shape[2] == 3 else x.permute(0, 1, 3, 2)[:, :, :3]
    assert not x.is_contiguous()
    neuron = build_msn(3)
    s, _, m = sequence(neuron, x)
    s_, _, m_ = sequence(neuron, x.contiguous())
    assert_same(s, s_)
    assert_same(m, m_)


# ---------------------------------------------------------------- surrogates and backends


@pytest.mark.parametrize("surrogate", ["rectangular", "atan", "sigmoid", Surrogate("triangle", 0.25)])
def test_other_surrogates_change_the_gradient_only(surrogate):
    x = randn(20, 2, 3).requires_grad_()
    s, _, _ = sequence(build_msn(3, dtype=F64), x)
    s_, _, _ = sequence(build_msn(3, dtype=F64, surrogate=surrogate), x)
    assert_same(s_, s)
    (g,), (g_,) = torch.autograd.grad(s.sum(), x), torch.autograd.grad(s_.sum(), x)
    assert not torch.allclose(g, g_)


@pytest.mark.parametrize("mode", ["subtract", "floor"])
def test_a_strict_callable_decides_what_is_taken(mode):
    """Where a callable stays silent at a tie the threshold stays too: no spike is lost."""
    neuron = MSN.lif(1, 1.0, reset_mode=mode, surrogate=lambda u: (u > 0).to(u.dtype))
    s, (v, _), m = sequence(neuron, torch.tensor([1.0, 0.25]).reshape(2, 1, 1))
    assert s.flatten().tolist() == [0, 1]
    assert m.flatten().tolist() == [1.0, 1.25]
    assert v.item() == 0.25


def test_a_backend_without_a_kernel_raises(monkeypatch):
    monkeypatch.setitem(BACKENDS, "other", Backend("msf_pmsn_plugins.backends.torch"))
    with pytest.raises(ValueError, match="backend 'other' has no kernel for MSN: set backend='auto'"):
        MSN(3, backend="other")
    neuron = MSN(3)
    neuron.backend = "other"
    with pytest.raises(ValueError, match="no kernel"):
        neuron(torch.zeros(2, 1, 3))
    neuron.backend = "torch"
    neuron(torch.zeros(2, 1, 3))
    assert neuron.supported_backends == ("auto", "torch")


# ---------------------------------------------------------------- construction, errors, saving


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"compartments": 0}, ValueError, "compartments must be an integer, at least 1, got 0"),
        ({"compartments": 2.0}, ValueError, "at least 1, got 2.0"),
        ({"compartments": True}, ValueError, "at least 1, got True"),
        ({"channels": 0}, ValueError, "channels must be a positive integer or None"),
        ({"channel_dim": "1"}, TypeError, "channel_dim must be an integer or a tuple"),
        ({"channel_dim": ()}, TypeError, "channel_dim must be an integer or a tuple"),
        ({"v_threshold": 0}, ValueError, "v_threshold must be positive, got 0"),
        ({"v_threshold": -1.0}, ValueError, "v_threshold must be positive"),
        ({"v_threshold": math.inf}, ValueError, "v_threshold must be a finite number"),
        ({"reset_mode": "hard"}, ValueError, "unknown reset_mode 'hard'; known: subtract, floor"),
        ({"feedback": "soma"}, ValueError, "unknown feedback 'soma'; known: residual, membrane"),
        ({"reset_feedback": "a"}, TypeError, "reset_feedback must be a finite number"),
        ({"compartments": 1, "reset_feedback": 0.5}, ValueError, "one compartment only: leave it 0"),
        ({"init": "shd"}, ValueError, "couples the soma to every compartment.*known: sequence, imagenet"),
        ({"init": "mnist"}, ValueError, "init 'mnist' .unknown.; known: sequence, imagenet"),
        ({"surrogate": "step"}, ValueError, "unknown surrogate"),
        ({"backend": "cuda"}, ValueError, "unknown backend"),
        ({"start": {"tau": 1.0}}, ValueError, "start has 'tau', which is no parameter.*log_tau_soma"),
        (
            {"compartments": 1, "start": {"beta_up": 1.0}},
            ValueError,
            "no parameter of an MSN with 1 compartments",
        ),
        (
            {"start": {"gamma": (1.0, 2.0)}},
            ValueError,
            r"start\['gamma'\] is a number or 5 of them, got \(1.0, 2.0\)",
        ),
        ({"start": {"log_dt": (1.0, 2.0)}}, ValueError, r"start\['log_dt'\] is a number, got"),
        ({"start": {"gamma": math.inf}}, ValueError, r"start\['gamma'\] must be finite, got inf"),
        ({"start": {"log_tau": -math.inf}}, ValueError, "must be finite, or inf for no leak, got -inf"),
        ({"start": {"log_tau": math.nan}}, ValueError, "must be finite, or inf for no leak, got nan"),
        ({"start": {"gamma": "one"}}, TypeError, r"start\['gamma'\] is made of numbers, got 'one'"),
    ],
)
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        MSN(**{"channels": 3, **kwargs})


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5, math.nan])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match="decay"):
        MSN.lif(3, decay)


@pytest.mark.parametrize(
    "couplings", [(0.0, 0.5), (-1.0, 0.5), (0.5, 0.5), (-0.5, 0.0), (-0.5, 1.0), (-0.5, -0.5)]
)
def test_bad_couplings(couplings):
    with pytest.raises(ValueError, match=r"beta_[12] must lie in \((-1, 0|0, 1)\), got"):
        MSN.tc_lif(3, *couplings)


def test_bad_inputs():
    neuron = MSN(3)
    with pytest.raises(ValueError, match="this MSN has 3 channels, but axis 1 of one step .2, 4. has 4"):
        neuron(torch.zeros(5, 2, 4))
    with pytest.raises(ValueError, match="this MSN has 3 channels, but axis 1 of one step .2,. has 2"):
        neuron(torch.zeros(5, 2))
    with pytest.raises(TypeError, match="real numbers"):
        neuron(torch.zeros(5, 2, 3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="left by another batch"):
        neuron(torch.zeros(5, 2, 3), neuron.initial_state(torch.zeros(4, 3)))
    with pytest.raises(ValueError, match=r"a tuple of 2 tensors \('v', 'h'\)"):
        neuron(torch.zeros(5, 2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="cannot take the channel count"):
        MSN()(torch.zeros(5, 2, 0))
    neuron.v_threshold = -1.0
    with pytest.raises(ValueError, match="v_threshold must be positive"):
        neuron(torch.zeros(5, 2, 3))


def test_channels_from_the_first_input():
    neuron = MSN(start={"log_tau_soma": 1.0})
    assert neuron.channels is None
    held = list(neuron.parameters())
    with pytest.raises(RuntimeError, match="channel count is not known yet"):
        neuron.state_dict()
    with pytest.raises(RuntimeError, match="channel count is not known yet"):
        neuron.weights()
    torch.manual_seed(3)
    neuron(torch.zeros(1, 2, 7))
    assert neuron.channels == 7
    assert all(a is b for a, b in zip(held, neuron.parameters(), strict=True))
    torch.manual_seed(3)
    for ours, theirs in zip(
        neuron.parameters(), MSN(7, start={"log_tau_soma": 1.0}).parameters(), strict=True
    ):
        assert_same(ours, theirs)


@pytest.mark.parametrize("make", [MSN.lif, MSN.tc_lif, MSN])
def test_born_in_inference_mode_it_still_trains(make):
    neuron = make()
    with torch.inference_mode():
        neuron(torch.zeros(1, 2, 3))
    neuron.gamma.requires_grad = True
    neuron(torch.ones(2, 2, 3))[0].sum().backward()
    assert neuron.gamma.grad is not None


@pytest.mark.parametrize("compartments", [1, 2, 5])
def test_state_dict_round_trip(compartments):
    neuron, x = build_msn(3, compartments), randn(15, 2, 3, dtype=F32)
    saved = neuron.state_dict()
    names = PARAMETERS if compartments > 1 else ("log_dt", "log_tau_soma", "gamma")
    assert set(saved) == set(names)
    count = 2 + compartments + 3 * (compartments - 1)
    assert sum(q.numel() for q in neuron.parameters()) == 3 * count
    for fresh in (MSN(3, compartments), MSN(None, compartments)):
        fresh.load_state_dict(saved)
        assert_same(sequence(fresh, x)[2], sequence(neuron, x)[2])
    held = torch.nn.Module()
    held.neuron = neuron
    fresh = MSN(None, compartments)
    fresh.load_state_dict(held.state_dict())
    assert_same(sequence(fresh, x)[2], sequence(neuron, x)[2])
    for twin in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert_same(sequence(twin, x)[2], sequence(neuron, x)[2])
    with pytest.raises(RuntimeError, match="size mismatch"):
        MSN(3, compartments + 1).load_state_dict({**saved, **dict.fromkeys(PARAMETERS, saved["gamma"])})


def test_extra_repr_says_what_it_is():
    assert repr(MSN(3, 4, v_threshold=0.5, feedback="membrane", reset_feedback=0.25)) == (
        "MSN(channels=3, compartments=4, channel_dim=1, v_threshold=0.5, reset_mode='subtract', feedback='membrane', "
        "reset_feedback=0.25, detach_reset=True, init='sequence', backend='auto')"
    )


def test_an_optimizer_with_an_l2_penalty_leaves_an_absent_leak_alone():
    neuron = MSN(3)
    trained = torch.optim.SGD([q for q in neuron.parameters() if q.requires_grad], 0.1, weight_decay=0.1)
    everything = torch.optim.SGD(neuron.parameters(), 0.1, weight_decay=0.1)
    for optimizer in (trained, everything):
        optimizer.zero_grad()
        neuron(5 * randn(20, 2, 3, dtype=F32))[0].sum().backward()
        optimizer.step()
    assert neuron.log_tau_soma.isinf().all()
    assert all(not q.isnan().any() for q in neuron.parameters())


# ---------------------------------------------------------------- docs


def test_the_example_of_the_page_prints_what_stands_below_it():
    page = (ROOT / "docs" / "msn.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    shown = re.findall(r"```text\n(.*?)```", page[page.index(code) :], flags=re.DOTALL)[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/msn.md", "exec"), {})
    assert printed.getvalue().splitlines() == shown.splitlines()
