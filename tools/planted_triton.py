"""Bugs for :mod:`planted_bugs` in the kernels and launcher of the Triton backend, and the tests that must notice."""

from __future__ import annotations

import planted_device
from mutants import Mutant

T = "tests/backends/triton/"
SAMPLE = f"{T}interpreted/test_triton_sample.py -k"
SAMPLE_MSF, SAMPLE_PMSN = f"{SAMPLE} test_msf", f"{SAMPLE} test_pmsn"
MSF, PMSN = (f"-m kernels {T}interpreted/test_triton_{neuron}_kernels.py -k" for neuron in ("msf", "pmsn"))


def crossed(neuron: str, axes: str) -> str:
    """The part of the crossed tests where a bug's axes lie, without PMSN's many lanes, which take long to interpret."""
    return f"{neuron} 'test_crossed and not inner and {axes}'"


CROSSED_MSF = f"{MSF} test_crossed"
VIEWS, LENGTHS, LAZY = "(gap or skew or apart)", "(lengths or strided)", "(lazy or negated)"
VIEWS_MSF, VIEWS_PMSN = crossed(MSF, VIEWS), crossed(PMSN, f"{VIEWS} and not chunks")
LENGTHS_MSF, LAZY_MSF, LAZY_PMSN = crossed(MSF, LENGTHS), crossed(MSF, LAZY), crossed(PMSN, LAZY)
NUMBERS, DELAYED, ATTACHED = crossed(MSF, "(one or lanes)"), crossed(MSF, "delayed"), crossed(MSF, "attached")
CUMULATIVE, BURSTS = crossed(PMSN, "cumulative"), crossed(PMSN, "(nearest or sawtooth)")
HALVES_MSF, HALVES_PMSN = (crossed(neuron, "(f16 or bf16)") for neuron in (MSF, PMSN))
CHUNKS, CHUNKS_LENGTHS = crossed(PMSN, "chunks"), crossed(PMSN, f"chunks and {LENGTHS}")
SIZES_MSF, SIZES_PMSN = (
    f"-m kernels {T}interpreted/test_triton_sizes.py -k '{neuron}'" for neuron in ("MSF", "PMSN")
)
LAUNCH = f"{T}test_triton_launch.py"
RETAKEN, RESIDUALS = f"{SAMPLE} retaken", f"{SAMPLE} 'pmsn_in or states_of_every_step'"
READ_AHEAD = f"{T}test_triton_backend.py -k reads_enough"
ROUNDED = f"-m kernels {T}test_triton_compiled.py -k 'rounded_as_written and sm_120'"


def bug(what: str, file: str, old: str, new: str, tests: str) -> Mutant:
    environment = {"TRITON_INTERPRET": "1"} if "interpreted" in tests else {}
    return Mutant(f"Triton: {what}", f"backends/triton/{file}", old, new, tests, environment)


def kernel(what: str, file: str, old: str, new: str, tests: str) -> Mutant:
    return bug(what, f"kernels/{file}", old, new, tests)


BUGS = [
    # The lanes of a block.
    kernel(
        "lengths of the first lane for a whole block",
        "msf_forward.py",
        "lane // sample, inside",
        "lane * 0 + tl.program_id(0) * BLOCK // sample, inside",
        LENGTHS_MSF,
    ),
    kernel("a valid step too many", "msf_forward.py", "t < own_steps", "t <= own_steps", LENGTHS_MSF),
    kernel(
        "rates of the first lane for all", "lanes.py", "values + lane * STEP", "values + lane * 0", NUMBERS
    ),
    bug("samples counted along the last axis", "msf.py", "v.shape[0]) if", "v.shape[-1]) if", LENGTHS_MSF),
    kernel("lanes beyond the last are stored", "msf_forward.py", "_ty), mask=inside)", "_ty))", CROSSED_MSF),
    kernel(
        "modes beyond the last are read",
        "modes.py",
        "real = (mode < COUNT) & inside",
        "real = (mode < MODES) & inside",
        SAMPLE_PMSN,
    ),
    kernel(
        "sums of columns beyond the last are stored",
        "pmsn_gather.py",
        "(column < columns)[None, :])",
        "(column >= 0)[None, :])",
        SAMPLE_PMSN,
    ),
    kernel(
        "infinite gradients meet weights that are not there",
        "pmsn_adjoint.py",
        "if COUNT < MODES:",
        "if COUNT > MODES:",
        f"{PMSN} infinite_gradient",
    ),
    bug(
        "lanes of a last part of a block",
        "config.py",
        "return parts(lanes, self.block)",
        "return max(1, lanes // self.block)",
        f"{MSF} any_size",
    ),
    bug(
        "columns of a last part of a block",
        "config.py",
        "across = parts(columns, wide)",
        "across = max(1, columns // wide)",
        f"{PMSN} any_shape",
    ),
    # Sequences read as contiguous.
    kernel(
        "MSF reads x as contiguous",
        "msf_forward.py",
        "x_seq + t * x_step + lane",
        "x_seq + t * tl.cast(lanes, tl.int64) + lane",
        VIEWS_MSF,
    ),
    *(
        kernel(
            f"MSF's backward reads {name} as contiguous",
            "msf_backward.py",
            f"{name}_seq + t * tl.cast({name}_step, tl.int64) + lane",
            f"{name}_seq + t * lanes + lane",
            VIEWS_MSF,
        )
        for name in ("gs", "gm", "x")
    ),
    kernel(
        "MSF's backward reads slopes as contiguous",
        "msf_backward.py",
        "total_seq + t * tl.cast(total_step, tl.int64) + lane",
        "total_seq + t * lanes + lane",
        crossed(MSF, "given"),
    ),
    kernel(
        "slopes at the first threshold lie as the sums do",
        "msf_backward.py",
        "t * tl.cast(first_slope_step, tl.int64)",
        "t * tl.cast(total_step, tl.int64)",
        crossed(MSF, "given and attached"),
    ),
    kernel(
        "PMSN reads x as contiguous",
        "pmsn_forward.py",
        "t * tl.cast(x_step, tl.int64)",
        "t * tl.cast(lanes, tl.int64)",
        VIEWS_PMSN,
    ),
    kernel(
        "chunks read x as contiguous",
        "pmsn_chunks.py",
        "x_seq + now * x_step",
        "x_seq + now * lanes",
        crossed(PMSN, f"chunks and {VIEWS}"),
    ),
    *(
        kernel(
            f"the gather reads {name} as contiguous",
            "pmsn_gather.py",
            f"{name}_seq + now * {name}_step",
            f"{name}_seq + now * lanes",
            VIEWS_PMSN,
        )
        for name in ("x", "gs", "gy", "gm")
    ),
    *(
        kernel(
            f"the drive's walk reads {name} as contiguous",
            "pmsn_drive.py",
            f"{name}_seq + t * tl.cast({name}_step, tl.int64) + lane, mask=runs, other=0).to(r",
            f"{name}_seq + t * tl.cast(lanes, tl.int64) + lane, mask=runs, other=0).to(r",
            crossed(PMSN, f"{VIEWS} and (cumulative or chunks)"),
        )
        for name in ("x", "gs", "gy", "gm")
    ),
    kernel(
        "sums over later steps read gy as contiguous",
        "pmsn_drive.py",
        "gy_seq + t * tl.cast(gy_step, tl.int64) + lane, mask=runs, other=0).to(g.dtype)",
        "gy_seq + t * tl.cast(lanes, tl.int64) + lane, mask=runs, other=0).to(g.dtype)",
        crossed(PMSN, f"{VIEWS} and cumulative"),
    ),
    # What a pointer does not show.
    *planted_device.bugs(
        bug,
        distance=VIEWS_MSF,
        permuted=crossed(MSF, "turned"),
        sequences=LAZY_MSF,
        states=LAZY_MSF,
        complex_states=LAZY_PMSN,
    ),
    bug(
        "MSF takes strided lengths as they lie",
        "msf.py",
        "x.seq, v0, plain(lengths)",
        "x.seq, v0, lengths",
        crossed(MSF, "strided"),
    ),
    bug(
        "PMSN takes strided lengths as they lie",
        "pmsn.py",
        "lengths=plain(lengths)",
        "lengths=lengths",
        crossed(PMSN, "strided"),
    ),
    # Thresholds, resets and surrogates.
    kernel("a tie with the first threshold", "lanes.py", "s = (m >= theta0)", "s = (m > theta0)", SAMPLE_MSF),
    kernel("a tie with the fifth threshold", "lanes.py", "m >= threshold(", "m > threshold(", CROSSED_MSF),
    kernel(
        "a closed window in the kept byte",
        "lanes.py",
        "(tl.abs(m - theta0) < width)",
        "(tl.abs(m - theta0) <= width)",
        crossed(MSF, "code"),
    ),
    kernel(
        "the slope at another threshold",
        "msf_backward.py",
        "slope(SURROGATE, m - theta2, p, q)",
        "slope(SURROGATE, m - theta1, p, q)",
        CROSSED_MSF,
    ),
    kernel("a detached reset passes a gradient", "msf_backward.py", "DETACH or DELAY", "DELAY", SAMPLE_MSF),
    kernel(
        "an attached soft reset at the first threshold alone",
        "resets.py",
        "(gs - gv * q) * total",
        "gs * total - gv * q * first",
        ATTACHED,
    ),
    kernel(
        "a hard reset passes a gradient",
        "resets.py",
        'if RESET == "hard":\n        g = tl.where',
        'if RESET == "soft":\n        g = tl.where',
        CROSSED_MSF,
    ),
    kernel(
        "a delayed soft reset before the charge",
        "msf_forward.py",
        'if DELAY and RESET != "soft":',
        'if DELAY and RESET != "none":',
        DELAYED,
    ),
    kernel(
        "a learned rate sees a delayed soft reset",
        "msf_backward.py",
        'elif RESET == "soft":\n                reset = before',
        'elif RESET == "none":\n                reset = before',
        DELAYED,
    ),
    kernel(
        "a soft reset's amount counts spikes once",
        "msf_backward.py",
        "subtracted = count(m, theta0, theta1, theta2, theta3, numbers, first, LEVELS) * g",
        "subtracted = (m >= theta0).to(g.dtype) * g",
        NUMBERS,
    ),
    kernel(
        "states out before the reset", "msf_forward.py", "k = after", "k = m", f"{SAMPLE} states_come_out"
    ),
    kernel(
        "an undecayed reset takes again what it took",
        "msf_forward.py",
        "s != taken, s - taken",
        "s != taken, s",
        f"{MSF} 'test_crossed and retaken'",
    ),
    kernel(
        "residuals out before the reset",
        "pmsn_forward.py",
        "tl.store(r_seq + at, r, mask",
        "tl.store(r_seq + at, v, mask",
        SAMPLE_PMSN,
    ),
    kernel(
        "bursts count fractions without a reset",
        "soma.py",
        "v = divide(y, theta)\n        k = tl.floor(v)",
        "v = divide(y, theta)\n        k = v",
        BURSTS,
    ),
    kernel("a serial reset adds", "soma.py", "v - tl.where(k < 0.0, 0.0, k)", "v - k", SAMPLE_PMSN),
    kernel(
        "a fixed residual is cut off",
        "soma.py",
        "rint(steps * 16777216.0)",
        "tl.floor(steps * 16777216.0)",
        crossed(PMSN, "fixed"),
    ),
    kernel(
        "a drive of zero counts as clamped no more",
        "soma.py",
        "tl.where(y > 0.0, g, 0.0)",
        "tl.where(y >= 0.0, g, 0.0)",
        crossed(PMSN, "(0-floor or 0-fixed)"),
    ),
    kernel(
        "a cumulative drive's own gradient counts for later ones",
        "soma.py",
        'if gy is not None and RESET != "cumulative":',
        "if gy is not None:",
        CUMULATIVE,
    ),
    # Lengths.
    kernel(
        "padding moves a gradient", "msf_backward.py", "tl.where(runs, g_before, g)", "g_before", LENGTHS_MSF
    ),
    kernel(
        "padding counts for a learned rate",
        "msf_backward.py",
        "tl.where(runs, rate_gradient(CHARGE, gm, x, reset, r), 0.0)",
        "rate_gradient(CHARGE, gm, x, reset, r)",
        LENGTHS_MSF,
    ),
    kernel(
        "lengths beyond the sequence are believed",
        "lanes.py",
        "tl.minimum(tl.maximum(own, 0), steps)",
        "tl.maximum(own, 0)",
        f"{PMSN} lengths_out_of_range",
    ),
    # Gradients of the initial state, and what lanes share.
    kernel(
        "the gradient of the last membrane is forgotten",
        "msf_backward.py",
        "g = tl.load(gv + lane, mask=inside, other=0)",
        "g = tl.zeros_like(start)",
        SAMPLE_MSF,
    ),
    bug(
        "the gradient of the last modes is forgotten",
        "pmsn.py",
        "_Pieces(self.call.state.z, None, self.gz, None)",
        "_Pieces(self.call.state.z, None, None, None)",
        SAMPLE_PMSN,
    ),
    kernel(
        "the gradient of the first residual in volts",
        "pmsn_drive.py",
        "theta * later, mask=inside",
        "later, mask=inside",
        CUMULATIVE,
    ),
    kernel(
        "sums for the parameters in float32",
        "pmsn_gather.py",
        "sums.to(tl.float64)",
        "sums.to(tl.float32).to(tl.float64)",
        crossed(PMSN, "f64"),
    ),
    kernel(
        "a lost lane adds to the parameters",
        "pmsn_gather.py",
        "good = runs & (poison == 0.0)",
        "good = runs",
        f"{PMSN} 'lost_lane and whole'",
    ),
    kernel(
        "each row of programs takes all lanes",
        "pmsn_gather.py",
        "range(row * HIGH, leads * chunks, rows * HIGH)",
        "range(row * HIGH, leads * chunks, HIGH)",
        f"{PMSN} few_rows",
    ),
    # Chunks.
    kernel(
        "all chunks as long as the first",
        "pmsn_chunks.py",
        "ar = tl.where(full, whole_r, tl.where(none, 0.0, rest_r))",
        "ar = tl.where(full, whole_r, whole_r)",
        CHUNKS,
    ),
    kernel(
        "chunks beyond the length move the state",
        "pmsn_chunks.py",
        "tl.where(none, 0.0, rest_r)",
        "rest_r",
        CHUNKS_LENGTHS,
    ),
    kernel(
        "gradients carried forward in time",
        "pmsn_chunks.py",
        "g = tl.cast(chunks - 1 - i, tl.int64)",
        "g = tl.cast(i, tl.int64)",
        CHUNKS,
    ),
    kernel("gradients carried without a conjugate", "pmsn_chunks.py", "ai = -ai", "ai = ai", CHUNKS),
    kernel(
        "the first chunk begins with nothing",
        "pmsn_chunks.py",
        "zr, zi = pairs(given, lane, inside, 0.0, COUNT, MODES)",
        "zr = zr * 1.0",
        CHUNKS,
    ),
    kernel(
        "every chunk ends with the last gradient",
        "pmsn_gather.py",
        "ends = inside & (begin + span >= steps)",
        "ends = inside",
        CHUNKS,
    ),
    kernel(
        "lengths of chunks by their own number",
        "modes.py",
        "lane // columns, inside",
        "v // columns, inside",
        CHUNKS_LENGTHS,
    ),
    kernel(
        "the last chunk as long as the others",
        "modes.py",
        "tl.minimum(tl.maximum(valid, 0), span)",
        "tl.maximum(valid, 0) * 0 + span",
        CHUNKS,
    ),
    kernel(
        "gradients stored beyond the last step",
        "pmsn_adjoint.py",
        "mask=inside & (begin + t < steps)",
        "mask=inside",
        CHUNKS,
    ),
    kernel(
        "drives of chunks beyond the lengths stay unwritten",
        "pmsn_forward.py",
        "tl.where(runs, y, 0.0), mask=inside)",
        "tl.where(runs, y, 0.0), mask=runs)",
        CHUNKS_LENGTHS,
    ),
    kernel(
        "the loss of a lane counted within its chunk",
        "pmsn_chunks.py",
        "tl.minimum(first_lost, now)",
        "tl.minimum(first_lost, t)",
        f"{PMSN} 'lost_lane and chunks'",
    ),
    bug(
        "a fixed-point residual is cut in time",
        "pmsn.py",
        "modes, settings.fixed, device)",
        "modes, False, device)",
        crossed(PMSN, "fixed and chunks"),
    ),
    # Half precision, and numbers.
    kernel(
        "membranes rounded to halves",
        "msf_forward.py",
        "m = charge(CHARGE, x, before, rate, r, scale)",
        "m = charge(CHARGE, x, before, rate, r, scale).to(x_seq.dtype.element_ty).to(v.dtype)",
        HALVES_MSF,
    ),
    kernel(
        "gradients of membranes rounded to halves",
        "msf_backward.py",
        "g = g_before\n",
        "g = g_before.to(gx_seq.dtype.element_ty).to(g.dtype)\n",
        HALVES_MSF,
    ),
    bug(
        "gradients of drives are rounded to halves",
        "pmsn.py",
        "g_seq=gx_seq if x_seq.dtype == real else empty(x_seq.shape, x_seq, real)",
        "g_seq=gx_seq",
        HALVES_PMSN,
    ),
    bug(
        "products with slopes are rounded to halves",
        "pmsn.py",
        "gs=steps_of(gs_seq)",
        "gs=steps_of(gs_seq.to(x_seq.dtype))",
        crossed(PMSN, "(f16 or bf16) and given"),
    ),
    bug(
        "numbers of a float64 neuron are rounded to float32",
        "arguments.py",
        "torch.tensor(numbers, dtype=dtype,",
        "torch.tensor(numbers, dtype=torch.float32,",
        crossed(MSF, "f64"),
    ),
    # 32 bits.
    *(
        kernel(
            f"{which} counts lanes in 32 bits",
            file,
            "tl.program_id(0).to(tl.int64) * BLOCK",
            "tl.program_id(0) * BLOCK",
            tests,
        )
        for which, file, tests in (
            ("MSF", "msf_forward.py", SIZES_MSF),
            ("MSF's backward", "msf_backward.py", SIZES_MSF),
            ("PMSN", "pmsn_forward.py", SIZES_PMSN),
            ("the adjoint", "pmsn_adjoint.py", SIZES_PMSN),
        )
    ),
    kernel(
        "the gather counts columns in 32 bits",
        "pmsn_gather.py",
        "tl.program_id(0).to(tl.int64) * WIDE + place",
        "tl.program_id(0) * WIDE + place",
        SIZES_PMSN,
    ),
    *(
        kernel(
            f"{which} multiplies time by lanes in 32 bits",
            file,
            f"at = {begin} * tl.cast(lanes, tl.int64) + lane",
            f"at = {begin} * lanes + lane",
            tests,
        )
        for which, file, begin, tests in (
            ("MSF", "msf_forward.py", "t", SIZES_MSF),
            ("PMSN", "pmsn_forward.py", "t", SIZES_PMSN),
            ("the drive's walk", "pmsn_drive.py", "g_seq + t", SIZES_PMSN),
        )
    ),
    kernel(
        "MSF multiplies time by the distance in 32 bits",
        "msf_forward.py",
        "x_step = tl.cast(x_step, tl.int64)",
        "x_step = x_step + 0",
        SIZES_MSF,
    ),
    # The launcher.
    bug("products and sums are fused", "launch.py", '_fusion": False', '_fusion": True', LAUNCH),
    bug("kernels run on device 0", "launch.py", "cuda.device(where.device)", "cuda.device(0)", LAUNCH),
    bug("the processors of device 0", "launch.py", "_device(x.device.index)", "_device(0)", LAUNCH),
    bug("warps of 32 threads everywhere", "launch.py", 'getattr(found, "warp_size", 32)', "32", LAUNCH),
    bug(
        "numbers are kept whatever their dtype",
        "arguments.py",
        "@functools.cache\ndef table(",
        "kept: dict = {}\n\n\ndef table(numbers, *how):\n"
        "    return kept.setdefault(numbers, _table(numbers, *how))\n\n\ndef _table(",
        LAUNCH,
    ),
    kernel(
        "MSF is compiled for every number of steps",
        "msf_forward.py",
        '@triton.jit(do_not_specialize=["steps", "sample"])',
        "@triton.jit",
        LAUNCH,
    ),
    bug(
        "kernels for a reset at once where it is delayed",
        "msf.py",
        '"DELAY": settings.reset_delay',
        '"DELAY": False',
        DELAYED,
    ),
    # An undecayed reset at once, residuals of every step, few lanes.
    kernel(
        "a spike that was taken first is taken again",
        "msf_forward.py",
        "s != taken, s - taken, r",
        "s > 0, s, r",
        RETAKEN,
    ),
    kernel(
        "what the charged membrane fires is taken first, not what the state does",
        "msf_forward.py",
        "taken = count(v, ",
        "taken = count(m, ",
        RETAKEN,
    ),
    kernel(
        "residuals that pass the valid steps by",
        "pmsn_forward.py",
        "next_r = tl.where(runs, next_r, r)\n            s =",
        "s =",
        RESIDUALS,
    ),
    kernel(
        "residuals of the soma alone for valid steps alone",
        "pmsn_forward.py",
        "v * theta, 0.0).to(m_seq.dtype.element_ty), mask=inside)\n        if r_seq is not None:\n"
        "            tl.store(r_seq + at, r, mask=inside",
        "v * theta, 0.0).to(m_seq.dtype.element_ty), mask=inside)\n        if r_seq is not None:\n"
        "            tl.store(r_seq + at, r, mask=runs",
        RESIDUALS,
    ),
    bug(
        "a lane a thread of bytes, which cannot be read ahead",
        "config.py",
        "least = device.warp * max(1, COPIED // narrowest)",
        "least = device.warp",
        READ_AHEAD,
    ),
    bug(
        "the bytes that are kept do not count as read",
        "msf.py",
        "read = (kept, gs, gm, *others)",
        "read = (gs, gm, *others)",
        f"-m kernels {T}test_triton_compiled.py -k 'few_lanes and 90'",
    ),
    # The compiler's arithmetic.
    kernel("approximate quotients of float32", "arithmetic.py", "tl.div_rn(x, y)", "x / y", ROUNDED),
    kernel(
        "the device's exponential",
        "arithmetic.py",
        "if x.dtype == tl.float64:\n        power = tl.exp(x)",
        "if x.dtype != tl.int32:\n        power = tl.exp(x)",
        ROUNDED,
    ),
]
