"""What :mod:`mutation_check` breaks: one line of the package each, and the tests that must notice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OP, MODULE = "neurons/msf/op.py", "neurons/msf/module.py"
PMSN_STEP, PMSN_OP, PMSN_MODULE = "neurons/pmsn/step.py", "neurons/pmsn/op.py", "neurons/pmsn/module.py"
HOLD, GLOBAL, WEIGHTS = "neurons/pmsn/discretise.py", "neurons/pmsn/reset.py", "neurons/pmsn/weights.py"
MSF_TORCH, PMSN_TORCH = "backends/torch/msf.py", "backends/torch/pmsn.py"

N = "tests/neurons/test_"
MSF = f"{N}msf.py {N}msf_edges.py {N}msf_thresholds.py {N}msf_charges.py {N}msf_published.py"
MSF_GENERAL = f"{N}msf_general.py"
PMSN = f"{N}pmsn.py {N}pmsn_adjoint.py {N}pmsn_edges.py {N}pmsn_resets.py {N}pmsn_published.py"
PMSN_GENERAL = f"{N}pmsn_general.py"
DISCRETISE, VARIANTS, LENGTHS = f"{N}pmsn_discretise.py", f"{N}pmsn_variants.py", f"{N}lengths.py"
GRAPH, LOST, LAYOUTS = f"{N}graph_weights.py", f"{N}lost_lanes.py", f"{N}layouts.py"
THREADS = f"{N}threads.py"
OPCHECK, SOFT, STATES = f"{N}opcheck.py", f"{N}soft.py", f"{N}states.py"


@dataclass(frozen=True)
class Mutant:
    """What is broken, in which file, and the tests that must notice, in which environment."""

    what: str
    file: str
    old: str
    new: str
    tests: str
    environment: Mapping[str, str] = field(default_factory=dict)


MUTANTS = [
    Mutant(
        "MSF oracle: strict threshold",
        "surrogate.py",
        "return (u >= 0).to(u.dtype)",
        "return (u > 0).to(u.dtype)",
        MSF,
    ),
    Mutant(
        "MSF: strict first threshold",
        MSF_TORCH,
        "s = (m >= thresholds[0]).to(m.dtype)",
        "s = (m > thresholds[0]).to(m.dtype)",
        MSF,
    ),
    Mutant("MSF: strict later thresholds", MSF_TORCH, "s += m >= theta", "s += m > theta", MSF),
    Mutant(
        "MSF: hard reset at two spikes only",
        MSF_TORCH,
        "return reset.forward(m, (s > 0).to(m.dtype), s, r, values.reset)",
        "return reset.forward(m, (s > 1).to(m.dtype), s, r, values.reset)",
        MSF,
    ),
    Mutant(
        "MSF: soft reset of one threshold whatever the count",
        "resets.py",
        "lambda m, f, s, r, q: m - s * q",
        "lambda m, f, s, r, q: m - f * q",
        MSF,
    ),
    Mutant(
        "MSF: reset potential forgotten",
        "resets.py",
        "return torch.where(f > 0, r, m)",
        "return torch.where(f > 0, 0.0 * r, m)",
        MSF,
    ),
    Mutant(
        "MSF: gradient through a fired step",
        "resets.py",
        "lambda g, fired: torch.where(fired, 0.0, g)",
        "lambda g, fired: g",
        MSF,
    ),
    Mutant(
        "MSF: gradient through an attached hard reset",
        "resets.py",
        "lambda g, m, r, q: (g * (r - m), None)",
        "lambda g, m, r, q: (g * r, None)",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: gradient through an attached soft reset",
        "resets.py",
        "lambda g, m, r, q: (None, -(g * q))",
        "lambda g, m, r, q: (None, g * q)",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: backward in the wrong order of time",
        MSF_TORCH,
        "for t in range(len(self.kept) - 1, -1, -1):",
        "for t in range(len(self.kept)):",
        MSF,
    ),
    Mutant(
        "MSF: slope at the first threshold only",
        MSF_TORCH,
        "total = total + slope(m_seq - theta, name, width)",
        "total = total + 0 * slope(m_seq - theta, name, width)",
        MSF,
    ),
    Mutant("MSF: closed window of the rectangle", "surrogate.py", "(u.abs() < a)", "(u.abs() <= a)", MSF),
    Mutant(
        "MSF: closed window of the kept byte",
        MSF_TORCH,
        "count += (m - theta).abs() < width",
        "count += (m - theta).abs() <= width",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: decay forgotten in the backward",
        "charges.py",
        "return (g if b == 1.0 else b * g), k * g",
        "return (g if b == 1.0 else b * g), g",
        MSF,
    ),
    Mutant(
        "MSF: gradient of the rate with the membrane before reset",
        MSF_TORCH,
        "return self.reset.forward(before, (s > 0).to(s.dtype), s, settings.v_reset, self.values.reset)",
        "return before",
        MSF,
    ),
    Mutant(
        "MSF: lengths off by one",
        "lengths.py",
        "device=lengths.device).unsqueeze(1) < lengths",
        "device=lengths.device).unsqueeze(1) <= lengths",
        LENGTHS,
    ),
    Mutant(
        "nodes: lengths off by one",
        "lengths.py",
        "device=checked.device).unsqueeze(1) < checked",
        "device=checked.device).unsqueeze(1) <= checked",
        "tests/project/test_network_states.py tests/snntorch/test_snntorch_conformance.py",
    ),
    Mutant(
        "MSF oracle: a delayed soft reset is decayed",
        "resets.py",
        "        before_charge=False,\n",
        "        before_charge=True,\n",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: a delayed reset acts at once",
        MSF_TORCH,
        "after = m if settings.reset_delay else after_reset(m, s - taken",
        "after = after_reset(m, s - taken",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: a delayed reset forgets the state that comes in",
        MSF_TORCH,
        "s_last = _count(v, values.thresholds) if settings.reset_delay else v",
        "s_last = torch.zeros_like(v)",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: a delayed reset lets the gradient of a fired step through",
        MSF_TORCH,
        "self.reset.kept(before, self.fired[t - 1] if t else self.v0_fired)",
        "before",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: gradient of the threshold with the wrong sign",
        MSF_TORCH,
        "parts[1] = -fired",
        "parts[1] = fired",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: gradient of the threshold misses the reset",
        MSF_TORCH,
        "parts = self._parts(t, gm, gv, fired)",
        "parts = self._parts(t, gm, gv, gs * self.total[t])",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: gradient of the reset amount for one spike whatever the count",
        MSF_TORCH,
        "parts[2] = -_count(m, self.values.thresholds)",
        "parts[2] = -_count(m, self.values.thresholds[:1])",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: gradient of a delayed reset amount from the wrong step",
        MSF_TORCH,
        "m = (self.kept[t - 1] if t else self.v0) if settings.reset_delay else self.kept[t]",
        "m = self.kept[t]",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: a default reset amount has no gradient of its own",
        MODULE,
        "reset = threshold.view_as(threshold)",
        "reset = threshold.detach()",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: a lost lane spoils what is shared",
        "tensors.py",
        "g.masked_fill(gone, 0.0).sum_to_size(parameter.shape)",
        "g.sum_to_size(parameter.shape)",
        LOST,
    ),
    Mutant(
        "MSF: slopes at the first threshold for all",
        "neurons/slopes.py",
        "torch.stack([m - theta for theta in thresholds])",
        "torch.stack([m - thresholds[0] for theta in thresholds])",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: slopes read from the byte that is kept",
        OP,
        'settings = settings.but(surrogate="")\n    return settings.but(keep=_keep',
        "pass\n    return settings.but(keep=_keep",
        MSF_GENERAL,
    ),
    Mutant(
        "MSF: a step with a slope is run as one without",
        "surrogate.py",
        "if draws or not slope.shape == apart.shape == u.shape:\n        return False\n"
        "    alike = torch.allclose(slope, apart, rtol=1e-5, equal_nan=True)\n    return alike and",
        "return slope.shape == u.shape and",
        SOFT,
    ),
    Mutant(
        "layout: the order of memory upside down",
        "neurons/layout.py",
        "order = sorted(axes, key=x.stride, reverse=True)",
        "order = sorted(axes, key=x.stride)",
        LAYOUTS,
    ),
    Mutant(
        "layout: parameters keep the order of the input",
        OP,
        "return permuted(parameter.reshape(*[1] * missing, *parameter.shape), order)",
        "return parameter",
        MSF_GENERAL,
    ),
    Mutant(
        "layout: states keep the order of memory",
        OP,
        "run(permuted(x_seq, order), permuted(v, order), parameters",
        "run(permuted(x_seq, order), permuted(v, order).flip(-1), parameters",
        MSF_GENERAL,
    ),
    Mutant(
        "layout: a mask gives up that of the input",
        "lengths.py",
        "return torch.zeros_like(self._like, dtype=seq.dtype).scatter_(0, self._order, seq)",
        "return torch.zeros_like(seq).scatter_(0, self._order, seq)",
        MSF_GENERAL,
    ),
    Mutant(
        "PMSN oracle: strict threshold",
        PMSN_STEP,
        "s = torch.where(k >= 1, k if burst else 1.0, 0.0)",
        "s = torch.where(v > 1, k if burst else 1.0, 0.0)",
        PMSN,
    ),
    Mutant(
        "PMSN: strict threshold",
        PMSN_TORCH,
        "torch.where(soma.k_seq >= 1, soma.k_seq if settings.burst else 1.0, 0.0)",
        "torch.where((soma.k_seq >= 1) & (soma.v_seq > 1), soma.k_seq if settings.burst else 1.0, 0.0)",
        PMSN,
    ),
    Mutant(
        "PMSN oracle: one threshold removed instead of all",
        PMSN_STEP,
        "    v = r + q\n    k = torch.floor(v.detach())\n    return v, k, v.detach() - k",
        "    v = r + q\n    k = torch.floor(v.detach())\n    return v, k, v.detach() - k.clamp(max=1)",
        PMSN,
    ),
    Mutant(
        "PMSN: missing clamp of the drive",
        PMSN_TORCH,
        "q_seq = (torch.relu(y_seq) / theta).double()",
        "q_seq = (y_seq / theta).double()",
        PMSN,
    ),
    Mutant(
        "PMSN: missing mask of the clamp",
        PMSN_TORCH,
        "gy_seq = torch.where(y_seq > 0, gv_seq, 0.0)",
        "gy_seq = gv_seq",
        PMSN,
    ),
    Mutant(
        "PMSN: whole thresholds enter the sum",
        PMSN_TORCH,
        "total = torch.cumsum(q_seq - torch.floor(q_seq), 0).add_(r)",
        "total = torch.cumsum(q_seq, 0).add_(r)",
        LOST,
    ),
    Mutant(
        "PMSN oracle: residual in volts",
        PMSN_STEP,
        "    v = r + q\n    k = torch.floor(v.detach())\n    return v, k, v.detach() - k",
        "    v = r / theta + q\n    k = torch.floor(v.detach())\n    return v, k, v.detach() - k",
        PMSN,
    ),
    Mutant(
        "PMSN: slope in units of the threshold",
        PMSN_TORCH,
        "        u_seq = volts - theta\n    return slope",
        "        u_seq = v_seq - 1\n    return slope",
        PMSN,
    ),
    Mutant(
        "PMSN oracle: input one step late",
        PMSN_STEP,
        "z = z + (e * z + x.unsqueeze(-1))\n    y = (w * z)",
        "z, late = z + (e * z + x.unsqueeze(-1)), z\n    y = (w * late)",
        PMSN,
    ),
    Mutant(
        "PMSN: missing zero-order hold",
        HOLD,
        "return z * phi, c * b * (phi * dt)",
        "return z * phi, c * b * dt",
        DISCRETISE,
    ),
    Mutant(
        "PMSN: missing zero-order hold in training",
        HOLD,
        "return e, c * b * held",
        "return e, c * b * dt",
        DISCRETISE,
    ),
    Mutant(
        "PMSN: cancelling zero-order hold",
        HOLD,
        "torch.expm1(z.real) * torch.cos(z.imag) - 2 * sine * sine",
        "torch.exp(z.real) * torch.cos(z.imag) - 1",
        DISCRETISE,
    ),
    Mutant(
        "PMSN: gradient of the step size without that of the factor",
        HOLD,
        "g_dt = (g_held * phi.conj()).real + (gz * torch.complex(-leak, inputs[2]).conj()).real",
        "g_dt = (g_held * phi.conj()).real",
        DISCRETISE,
    ),
    Mutant(
        "PMSN: missing conjugate in the adjoint",
        PMSN_TORCH,
        "afters, jump = [], block.jump.conj_physical()",
        "afters, jump = [], block.jump",
        PMSN,
    ),
    Mutant(
        "PMSN: missing conjugate in the gradient of w",
        PMSN_TORCH,
        "powers = block.powers.conj_physical()",
        "powers = block.powers",
        PMSN,
    ),
    Mutant(
        "PMSN: modes folded as conjugate pairs",
        PMSN_TORCH,
        "kernel = (w * powers[..., :size]).real.sum(1)",
        "kernel = 2 * (w * powers[..., :size]).real[:, : (e.shape[1] + 1) // 2].sum(1)",
        PMSN,
    ),
    Mutant(
        "PMSN: a rounded factor between blocks",
        PMSN_TORCH,
        "exact = e.to(torch.complex128)",
        "exact = (1 + e).to(torch.complex128) - 1",
        f"{N}drift.py",
    ),
    Mutant(
        "PMSN: cumulative mode without its gradient through time",
        PMSN_TORCH,
        "gy_seq = gv_seq.flip(0).cumsum(0).flip(0) + after",
        "gy_seq = gv_seq + after",
        PMSN,
    ),
    Mutant(
        "PMSN: gradient through the reset",
        PMSN_TORCH,
        '    elif settings.reset_mode == "cumulative":\n        after',
        '    if settings.reset_mode in ("floor", "cumulative"):\n        after',
        PMSN,
    ),
    Mutant(
        "PMSN oracle: serial reset of a negative membrane",
        PMSN_STEP,
        "k = torch.floor(v.detach()).clamp(min=0)",
        "k = torch.floor(v.detach())",
        PMSN,
    ),
    Mutant(
        "PMSN: residual rounded up to a threshold",
        PMSN_TORCH,
        ".clamp_(max=1 - torch.finfo(r.dtype).eps / 2)",
        ".clamp_(max=1)",
        PMSN,
    ),
    Mutant(
        "PMSN: fixed point loses its carry",
        PMSN_TORCH,
        "before = torch.cat([(start & fraction).unsqueeze(0), residual[:-1]])",
        "before = torch.cat([residual[:1] * 0, residual[:-1]])",
        PMSN,
    ),
    Mutant(
        "PMSN: membranes out in units of the threshold",
        PMSN_TORCH,
        "m_seq.copy_(soma.v_seq * settings.v_threshold)",
        "m_seq.copy_(soma.v_seq)",
        PMSN,
    ),
    Mutant(
        "PMSN: gradient of the membranes dropped",
        PMSN_TORCH,
        "gv_seq = gv_seq if grads.m is None else gv_seq + grads.m",
        "gv_seq = gv_seq",
        PMSN,
    ),
    Mutant(
        "PMSN: slopes of a callable in units of the threshold",
        PMSN_OP,
        "slope_of(surrogate, slope_argument(m / settings.v_threshold, settings))",
        "slope_of(surrogate, slope_argument(m, settings))",
        PMSN_GENERAL,
    ),
    Mutant(
        "PMSN: a NaN state spoils what is shared",
        PMSN_TORCH,
        "for part in (x_seq, gy_seq, torch.view_as_real(z))",
        "for part in (x_seq, gy_seq)",
        LOST,
    ),
    Mutant(
        "PMSN: one output twice",
        PMSN_OP,
        "m_seq = m_seq.new_empty(0) if m_seq is y_seq else m_seq",
        "m_seq = y_seq if m_seq.numel() == y_seq.numel() == 0 else m_seq",
        OPCHECK,
    ),
    Mutant(
        "PMSN: channels inside swapped with positions",
        PMSN_OP,
        "return x.squeeze(axis + 1).unflatten(axis - 1, (shape[1], shape[3])).movedim(axis, axis + 1)",
        "return x.squeeze(axis + 1).unflatten(axis - 1, (shape[3], shape[1])).movedim(axis - 1, axis + 1)",
        PMSN_GENERAL,
    ),
    Mutant(
        "PMSN: weights shared after a backward",
        WEIGHTS,
        "        graph.made = None",
        "        pass",
        GRAPH,
    ),
    Mutant(
        "PMSN: weights shared by all graphs",
        WEIGHTS,
        "graph.leads_to(state) and ",
        "",
        GRAPH,
    ),
    Mutant(
        "PMSN: a graph shared by threads",
        WEIGHTS,
        "class _OfThread(threading.local)",
        "class _OfThread",
        THREADS,
    ),
    Mutant("PMSN: weights shared past a detached state", WEIGHTS, " and left.grad_fn is not None", "", GRAPH),
    Mutant(
        "PMSN: stale weights in a stream",
        WEIGHTS,
        "            elif _compare(known.data_ptr(), now.data_ptr(), known.nbytes):\n                return False\n",
        "",
        STATES + " tests/neurons/test_weights.py",
    ),
    Mutant(
        "PMSN: coeff left out of the direct gain",
        PMSN_MODULE,
        "d if self.coeff == 1 else self.coeff * d",
        "d",
        VARIANTS,
    ),
    Mutant(
        "PMSN: a tied pair counted once",
        PMSN_MODULE,
        "factor = self.coeff * (2 if self.tied else 1)",
        "factor = self.coeff",
        VARIANTS,
    ),
    Mutant(
        "PMSN: dt_scale the wrong way",
        PMSN_MODULE,
        "log_dt + math.log(self.dt_scale)",
        "log_dt - math.log(self.dt_scale)",
        VARIANTS,
    ),
    Mutant(
        "PMSN: global context keeps the local input",
        GLOBAL,
        "response * mean + d.reshape(-1, 1) * x_clean",
        "response * mean + d.reshape(-1, 1) * mean",
        VARIANTS,
    ),
    Mutant(
        "PMSN: a lost lane of the global context spoils the others",
        GLOBAL,
        "mean, x_clean = torch.where(lost, 0.0, mean), torch.where(lost, 0.0, x_seq)",
        "x_clean = x_seq",
        LOST,
    ),
    Mutant(
        "state: reordering forgets the order",
        "state.py",
        "lambda tensor: tensor[chosen.to(tensor.device)]",
        "lambda tensor: tensor[: len(index)]",
        STATES,
    ),
]
