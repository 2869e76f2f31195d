"""Bugs for :mod:`planted_bugs` in the kernels and launcher of the Triton backend, and the tests that must notice."""

from __future__ import annotations

from mutants import Mutant

T = "tests/backends/triton/"
SAMPLE = f"{T}interpreted/test_triton_sample.py -k"
MSF, PMSN = (f"-m kernels {T}interpreted/test_triton_{neuron}_kernels.py -k" for neuron in ("msf", "pmsn"))
# The part of the crossed tests where a bug's axes lie.
CROSSED_MSF, CROSSED_PMSN = f"{MSF} test_crossed", f"{PMSN} test_crossed"
VIEWS_MSF, VIEWS_PMSN = (f"{tests} 'test_crossed and (gap or skew or apart)'" for tests in (MSF, PMSN))
LENGTHS_MSF, LENGTHS_PMSN = (f"{tests} 'test_crossed and (lengths or strided)'" for tests in (MSF, PMSN))
LAZY_MSF, LAZY_PMSN = (f"{tests} 'test_crossed and (lazy or negated)'" for tests in (MSF, PMSN))
NUMBERS = f"{MSF} 'test_crossed and (one or lanes)'"
DELAYED, LEARNING = f"{MSF} 'test_crossed and delayed'", f"{MSF} 'test_crossed and attached'"
CHUNKS, CUMULATIVE = f"{PMSN} 'test_crossed and chunks'", f"{PMSN} 'test_crossed and cumulative'"
BURSTS = f"{PMSN} 'test_crossed and (nearest or sawtooth)'"
HALVES = f"{PMSN} 'test_crossed and (f16 or bf16)'"
SIZES_MSF, SIZES_PMSN = (
    f"-m kernels {T}interpreted/test_triton_sizes.py -k '{neuron}'" for neuron in ("MSF", "PMSN")
)
LAUNCH = f"{T}test_triton_launch.py"
SHAPES = f"{T}test_triton_backend.py -k 'programs or shape or sums or cut'"
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
        "a valid step too many in the backward",
        "msf_backward.py",
        "t < own_steps",
        "t <= own_steps",
        LENGTHS_MSF,
    ),
    kernel(
        "rates of the first lane for all",
        "lanes.py",
        "values + lane * STEP",
        "values + lane * 0",
        NUMBERS,
    ),
    bug(
        "samples counted along the last axis",
        "msf.py",
        "max(1, v.shape[0]) if",
        "max(1, v.shape[-1]) if",
        LENGTHS_MSF,
    ),
    kernel(
        "lanes beyond the last are stored",
        "msf_forward.py",
        "element_ty), mask=inside)",
        "element_ty))",
        CROSSED_MSF,
    ),
    kernel(
        "modes beyond the last are read",
        "modes.py",
        "real = (mode < COUNT) & inside",
        "real = (mode < MODES) & inside",
        CROSSED_PMSN,
    ),
    kernel(
        "modes beyond the last are stored",
        "modes.py",
        "real = (mode < COUNT) & inside[None, :]\n    at = memory + 2 * (index[None, :] * COUNT + mode)\n    tl.store",
        "real = (mode < MODES) & inside[None, :]\n    at = memory + 2 * (index[None, :] * COUNT + mode)\n    tl.store",
        CROSSED_PMSN,
    ),
    kernel(
        "sums of modes beyond the last are stored",
        "pmsn_gather.py",
        "mask=(mode < COUNT) &",
        "mask=(mode < MODES) &",
        CROSSED_PMSN,
    ),
    kernel(
        "sums of columns beyond the last are stored",
        "pmsn_gather.py",
        "(column < columns)[None, :])",
        "(column >= 0)[None, :])",
        CROSSED_PMSN,
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
    bug(
        "blocks narrower than a warp", "config.py", "block = max(block, device.warp)", "block = block", SHAPES
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
        f"{MSF} 'test_crossed and given'",
    ),
    kernel(
        "slopes at the first threshold lie as the sums do",
        "msf_backward.py",
        "t * tl.cast(first_slope_step, tl.int64)",
        "t * tl.cast(total_step, tl.int64)",
        f"{MSF} 'test_crossed and given and attached'",
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
        f"{PMSN} 'test_crossed and chunks and (gap or skew or apart)'",
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
            f"{PMSN} 'test_crossed and (gap or skew or apart) and (cumulative or chunks)'",
        )
        for name in ("x", "gs", "gy", "gm")
    ),
    kernel(
        "sums over later steps read gy as contiguous",
        "pmsn_drive.py",
        "gy_seq + t * tl.cast(gy_step, tl.int64) + lane, mask=runs, other=0).to(g.dtype)",
        "gy_seq + t * tl.cast(lanes, tl.int64) + lane, mask=runs, other=0).to(g.dtype)",
        f"{PMSN} 'test_crossed and (gap or skew or apart) and cumulative'",
    ),
    # What a pointer does not show.
    bug(
        "the distance between steps is one step's size",
        "../device.py",
        "Steps(seq, seq.stride(0))",
        "Steps(seq, math.prod(seq.shape[1:]))",
        VIEWS_MSF,
    ),
    bug(
        "permuted steps count as contiguous",
        "../device.py",
        "if len(seq) < 2 or not seq[0].is_contiguous():",
        "if len(seq) < 2:",
        f"{MSF} 'test_crossed and turned'",
    ),
    bug(
        "sequences keep a lazy negation",
        "../device.py",
        "seq = seq.resolve_neg()",
        "seq = seq.view_as(seq)",
        LAZY_MSF,
    ),
    bug(
        "states keep a lazy negation",
        "../device.py",
        ".resolve_conj().resolve_neg().contiguous()",
        ".resolve_conj().contiguous()",
        LAZY_MSF,
    ),
    bug(
        "states keep a lazy conjugation",
        "../device.py",
        ".resolve_conj().resolve_neg().contiguous()",
        ".resolve_neg().contiguous()",
        LAZY_PMSN,
    ),
    bug(
        "MSF takes strided lengths as they lie",
        "msf.py",
        "x.seq, v0, plain(lengths)",
        "x.seq, v0, lengths",
        f"{MSF} 'test_crossed and strided'",
    ),
    bug(
        "MSF's backward takes strided lengths as they lie",
        "msf.py",
        "plain(kept), v, plain(lengths)",
        "plain(kept), v, lengths",
        f"{MSF} 'test_crossed and strided'",
    ),
    bug(
        "PMSN takes strided lengths as they lie",
        "pmsn.py",
        "lengths=plain(lengths)",
        "lengths=lengths",
        f"{PMSN} 'test_crossed and strided'",
    ),
    # Thresholds, resets and surrogates.
    kernel(
        "a tie with the first threshold",
        "lanes.py",
        "s = (m >= theta0)",
        "s = (m > theta0)",
        SAMPLE + " test_msf",
    ),
    kernel(
        "a tie with a later threshold", "lanes.py", "s += (m >= theta2)", "s += (m > theta2)", CROSSED_MSF
    ),
    kernel(
        "a tie with the fifth threshold",
        "lanes.py",
        "s += (m >= threshold(",
        "s += (m > threshold(",
        CROSSED_MSF,
    ),
    kernel(
        "a closed window in the kept byte",
        "lanes.py",
        "(tl.abs(m - theta0) < width)",
        "(tl.abs(m - theta0) <= width)",
        f"{MSF} 'test_crossed and code'",
    ),
    kernel(
        "the slope at another threshold",
        "msf_backward.py",
        "slope(SURROGATE, m - theta2, p, q)",
        "slope(SURROGATE, m - theta1, p, q)",
        CROSSED_MSF,
    ),
    kernel(
        "a detached reset passes a gradient",
        "msf_backward.py",
        "if DETACH or DELAY:",
        "if DELAY:",
        SAMPLE + " test_msf",
    ),
    kernel(
        "an attached soft reset at the first threshold alone",
        "resets.py",
        "(gs - gv * q) * total",
        "gs * total - gv * q * first",
        LEARNING,
    ),
    kernel(
        "an attached hard reset at all thresholds",
        "resets.py",
        "(gs + gv * (r - m)) * first",
        "gs * first + gv * (r - m) * total",
        LEARNING,
    ),
    kernel(
        "a hard reset passes a gradient",
        "resets.py",
        'if RESET == "hard":\n        g = g * tl.where',
        'if RESET == "soft":\n        g = g * tl.where',
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
        "states out before the reset", "msf_forward.py", "k = after", "k = m", SAMPLE + " states_come_out"
    ),
    kernel(
        "bursts count fractions without a reset",
        "soma.py",
        "v = divide(y, theta)\n        k = tl.floor(v)",
        "v = divide(y, theta)\n        k = v",
        BURSTS,
    ),
    kernel("a serial reset adds", "soma.py", "v - tl.where(k < 0.0, 0.0, k)", "v - k", SAMPLE + " test_pmsn"),
    kernel(
        "a fixed residual is cut off",
        "soma.py",
        "rint(steps * 16777216.0)",
        "tl.floor(steps * 16777216.0)",
        f"{PMSN} 'test_crossed and fixed'",
    ),
    kernel(
        "a drive of zero counts as clamped no more",
        "soma.py",
        "tl.where(y > 0.0, g, 0.0)",
        "tl.where(y >= 0.0, g, 0.0)",
        CROSSED_PMSN,
    ),
    kernel(
        "the surrogate of bursts below the first threshold",
        "soma.py",
        "tl.where(k < 1.0, 1.0, k)",
        "k",
        BURSTS,
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
        "padding moves a gradient",
        "msf_backward.py",
        "tl.where(runs, g_before, g)",
        "g_before",
        LENGTHS_MSF,
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
        SAMPLE + " test_msf",
    ),
    bug(
        "the gradient of the last modes is forgotten",
        "pmsn.py",
        "_Pieces(self.call.state.z, None, self.gz, None)",
        "_Pieces(self.call.state.z, None, None, None)",
        SAMPLE + " test_pmsn",
    ),
    bug(
        "no gradient of the first modes",
        "pmsn.py",
        "pieces.gz_ends, gz0 if state_grad and not chunked else None)",
        "pieces.gz_ends, None)",
        SAMPLE + " test_pmsn",
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
        f"{PMSN} 'test_crossed and f64'",
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
        f"{PMSN} 'test_crossed and chunks and (lengths or strided)'",
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
        "chunks begin with their own ends",
        "pmsn_chunks.py",
        "save_pairs(parts, v, inside, zr, zi, COUNT, MODES)\n        zr, zi = advance(zr, zi, ar, ai, part_r, part_i)",
        "zr, zi = advance(zr, zi, ar, ai, part_r, part_i)\n        save_pairs(parts, v, inside, zr, zi, COUNT, MODES)",
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
        f"{PMSN} 'test_crossed and chunks and (lengths or strided)'",
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
        f"{PMSN} 'test_crossed and chunks and (lengths or strided)'",
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
        f"{PMSN} 'test_crossed and fixed and chunks'",
    ),
    bug(
        "gradients of drives are made where chunks need them before",
        "pmsn.py",
        'return self.call.reset != "cumulative" and',
        "return",
        CUMULATIVE,
    ),
    # Half precision, and numbers.
    kernel(
        "membranes rounded to halves",
        "msf_forward.py",
        "m = charge(CHARGE, x, before, rate, r, scale)",
        "m = charge(CHARGE, x, before, rate, r, scale).to(x_seq.dtype.element_ty).to(v.dtype)",
        f"{MSF} 'test_crossed and (f16 or bf16)'",
    ),
    kernel(
        "gradients of membranes rounded to halves",
        "msf_backward.py",
        "g = g_before\n",
        "g = g_before.to(gx_seq.dtype.element_ty).to(g.dtype)\n",
        f"{MSF} 'test_crossed and (f16 or bf16)'",
    ),
    bug(
        "gradients of drives are rounded to halves",
        "pmsn.py",
        "g_seq=gx_seq if x_seq.dtype == real else empty(x_seq.shape, x_seq, real)",
        "g_seq=gx_seq",
        HALVES,
    ),
    bug(
        "products with slopes are rounded to halves",
        "pmsn.py",
        "gs=steps_of(gs_seq)",
        "gs=steps_of(gs_seq.to(x_seq.dtype))",
        f"{PMSN} 'test_crossed and (f16 or bf16) and given'",
    ),
    bug(
        "drives are kept in halves",
        "pmsn.py",
        "if settings.keep_drive else 0, x_seq, real)",
        "if settings.keep_drive else 0, x_seq)",
        HALVES,
    ),
    bug(
        "numbers of a float64 neuron are rounded to float32",
        "arguments.py",
        "torch.tensor(numbers, dtype=dtype,",
        "torch.tensor(numbers, dtype=torch.float32,",
        f"{MSF} 'test_crossed and f64'",
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
    kernel(
        "MSF multiplies time by lanes in 32 bits",
        "msf_forward.py",
        "at = t * tl.cast(lanes, tl.int64) + lane",
        "at = t * lanes + lane",
        SIZES_MSF,
    ),
    kernel(
        "MSF multiplies time by the distance in 32 bits",
        "msf_forward.py",
        "x_step = tl.cast(x_step, tl.int64)",
        "x_step = x_step + 0",
        SIZES_MSF,
    ),
    kernel(
        "MSF's backward counts steps in 32 bits",
        "msf_backward.py",
        "lanes = tl.cast(lanes, tl.int64)",
        "lanes = tl.cast(lanes, tl.int32)",
        SIZES_MSF,
    ),
    kernel(
        "PMSN multiplies time by lanes in 32 bits",
        "pmsn_forward.py",
        "at = t * tl.cast(lanes, tl.int64) + lane\n        tl.store",
        "at = t * lanes + lane\n        tl.store",
        SIZES_PMSN,
    ),
    kernel(
        "the drive's walk multiplies time by lanes in 32 bits",
        "pmsn_drive.py",
        "at = g_seq + t * tl.cast(lanes, tl.int64) + lane",
        "at = g_seq + t * lanes + lane",
        SIZES_PMSN,
    ),
    # The launcher.
    bug(
        "products and sums are fused",
        "launch.py",
        '"enable_fp_fusion": False',
        '"enable_fp_fusion": True',
        LAUNCH,
    ),
    bug("four warps whatever was asked", "launch.py", '"num_warps": warps', '"num_warps": 4', LAUNCH),
    bug(
        "kernels run on device 0",
        "launch.py",
        "torch.cuda.device(where.device)",
        "torch.cuda.device(0)",
        LAUNCH,
    ),
    bug("the processors of device 0", "launch.py", "_device(x.device.index)", "_device(0)", LAUNCH),
    bug("warps of 32 threads everywhere", "launch.py", 'getattr(found, "warp_size", 32)', "32", LAUNCH),
    kernel(
        "MSF is compiled for every number of steps",
        "msf_forward.py",
        '@triton.jit(do_not_specialize=["steps", "sample"])',
        "@triton.jit",
        LAUNCH,
    ),
    kernel(
        "PMSN is compiled for every number of steps",
        "pmsn_gather.py",
        "@triton.jit(do_not_specialize=COUNTS)",
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
    bug(
        "one number for all read once a lane",
        "msf.py",
        "tensor is not None and tensor.dim() > 0",
        "tensor is not None",
        NUMBERS,
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
