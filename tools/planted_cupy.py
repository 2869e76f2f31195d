"""Bugs for :mod:`planted_bugs` in the kernels and the launcher of the CuPy backend, and the tests that must notice."""

from __future__ import annotations

import planted_device
from mutants import Mutant

C = "tests/backends/cupy/test_cupy_"
CROSSED = f"-m kernels {C}crossed.py -k"
# The part of the crossed tests where a bug's axes lie.
CROSSED_MSF, CROSSED_PMSN = f"{CROSSED} test_msf", f"{CROSSED} test_pmsn"
VIEWS_MSF, VIEWS_PMSN = (
    f"{CROSSED} 'test_{neuron} and (gap or skew or apart)'" for neuron in ("msf", "pmsn")
)
LENGTHS_MSF, LENGTHS_PMSN = (
    f"{CROSSED} 'test_{neuron} and (lengths or strided)'" for neuron in ("msf", "pmsn")
)
LAZY_MSF, LAZY_PMSN = (f"{CROSSED} 'test_{neuron} and (lazy or negated)'" for neuron in ("msf", "pmsn"))
AHEAD, CHUNKS = f"{CROSSED} 'test_msf and ahead'", f"{CROSSED} 'test_pmsn and chunks'"
NUMBERS = f"{CROSSED} 'test_msf and (one or lanes)'"
HALVES = f"{CROSSED} 'test_pmsn and f16'"
SIZES = f"-m kernels {C}sizes.py"
SUMS = f"-m kernels {C}pmsn_kernels.py -k sums_for_the_parameters"
BEYOND = f"-m kernels {C}sanitizers.py -k 'nothing_to_report and address'"
LOST = f"-m kernels {C}pmsn_kernels.py -k lost_lane"
LAUNCH = f"{C}launch.py {C}geometry.py"


def bug(what: str, file: str, old: str, new: str, tests: str) -> Mutant:
    return Mutant(f"CuPy: {what}", f"backends/cupy/{file}", old, new, tests)


BUGS = [
    # The lanes of a pack.
    bug(
        "lengths of the first lane for a whole pack",
        "msf.cuh",
        "lengths[(lane + j) / sample]",
        "lengths[lane / sample]",
        LENGTHS_MSF,
    ),
    bug("a valid step too many", "msf.cuh", "return t < steps[j];", "return t <= steps[j];", LENGTHS_MSF),
    bug(
        "rates of the first lane for a whole pack",
        "msf.cuh",
        "CHARGE::rate(rates.of(lane + j))",
        "CHARGE::rate(rates.of(lane))",
        NUMBERS,
    ),
    bug(
        "samples counted along the last axis",
        "msf.py",
        "max(1, v.shape[0]) if",
        "max(1, v.shape[-1]) if",
        LENGTHS_MSF,
    ),
    # Sequences read as contiguous.
    bug(
        "MSF reads x as contiguous",
        "msf_forward.cu",
        "x_seq + t * x_step + first",
        "x_seq + t * lanes + first",
        VIEWS_MSF,
    ),
    bug(
        "MSF's backward reads gs as contiguous",
        "msf_backward.cu",
        "gs_seq + t * gs_step + first",
        "gs_seq + t * lanes + first",
        VIEWS_MSF,
    ),
    bug(
        "MSF's backward reads gm as contiguous",
        "msf_backward.cu",
        "gm_seq + t * gm_step + first",
        "gm_seq + t * lanes + first",
        VIEWS_MSF,
    ),
    bug(
        "MSF's backward reads x as contiguous",
        "msf_backward.cu",
        "x_seq + t * x_step + first",
        "x_seq + t * lanes + first",
        VIEWS_MSF,
    ),
    bug(
        "chunks read x as contiguous",
        "chunks.cuh",
        "x_seq + own.first * x_step",
        "x_seq + own.first * lanes",
        VIEWS_PMSN,
    ),
    bug(
        "the gather reads x as contiguous",
        "gather.cuh",
        "x_seq + begin * x_step + lane",
        "x_seq + begin * lanes + lane",
        VIEWS_PMSN,
    ),
    bug(
        "the gather reads gs as contiguous",
        "gather.cuh",
        "const i64 g_step = gs_step;",
        "const i64 g_step = lanes;",
        VIEWS_PMSN,
    ),
    bug(
        "the gather reads gy as contiguous",
        "gather.cuh",
        "gy_seq[t * gy_step + lane]",
        "gy_seq[t * lanes + lane]",
        VIEWS_PMSN,
    ),
    bug(
        "the gather reads gm as contiguous",
        "gather.cuh",
        "gm_seq + t * gm_step + lane",
        "gm_seq + t * lanes + lane",
        VIEWS_PMSN,
    ),
    bug(
        "the drive's walk reads gm as contiguous",
        "pmsn_backward.cu",
        "gm_seq + t * gm_step + lane, drive",
        "gm_seq + t * lanes + lane, drive",
        VIEWS_PMSN,
    ),
    bug(
        "the soma reads gm as contiguous",
        "pmsn_backward.cu",
        "gm_seq + t * gm_step + lane, y_ahead",
        "gm_seq + t * lanes + lane, y_ahead",
        VIEWS_PMSN,
    ),
    bug(
        "sums over later steps read gy as contiguous",
        "pmsn_backward.cu",
        "later + gy_seq[t * gy_step + lane]",
        "later + gy_seq[t * lanes + lane]",
        VIEWS_PMSN,
    ),
    *planted_device.bugs(
        bug,
        distance=VIEWS_MSF,
        permuted=CROSSED_PMSN,
        sequences=LAZY_PMSN,
        states=LAZY_MSF,
        complex_states=LAZY_PMSN,
    ),
    # What a pointer does not show.
    bug(
        "MSF takes strided lengths as they lie",
        "msf.py",
        "plain(v), plain(lengths)",
        "plain(v), lengths",
        LENGTHS_MSF,
    ),
    bug(
        "MSF's backward takes strided lengths as they lie",
        "msf.py",
        "plain(grads.v), plain(lengths)",
        "plain(grads.v), lengths",
        LENGTHS_MSF,
    ),
    bug(
        "PMSN takes strided lengths as they lie",
        "pmsn.py",
        "macros, x, plain(lengths)",
        "macros, x, lengths",
        LENGTHS_PMSN,
    ),
    # Alignment.
    bug(
        "packs whatever the distance between steps",
        "msf.py",
        "for n in (lanes, *steps))",
        "for n in (lanes,))",
        VIEWS_MSF,
    ),
    bug(
        "packs whatever the number of lanes",
        "msf.py",
        "for n in (lanes, *steps))",
        "for n in steps)",
        CROSSED_MSF,
    ),
    bug(
        "packs whatever the place of gv",
        "msf.py",
        "[*given, *out])",
        "[t for t in (*given, *out) if t is not gv])",
        CROSSED_MSF,
    ),
    bug(
        "packs wherever a tensor lies",
        "msf.py",
        "return count if aligned and all",
        "return count if all",
        CROSSED_MSF,
    ),
    # Steps ahead.
    bug(
        "MSF reads ahead one step too few",
        "msf.cuh",
        "later = t + AHEAD + j;",
        "later = t + AHEAD + j - 1;",
        AHEAD,
    ),
    bug(
        "MSF reads ahead past the last step",
        "msf.cuh",
        "read(later < T ? later : T - 1)",
        "read(later)",
        BEYOND,
    ),
    bug(
        "PMSN reads ahead past the last step",
        "modes.cuh",
        "(t + j < steps ? t + j : steps - 1) * step",
        "(t + j) * step",
        BEYOND,
    ),
    bug(
        "the step before is the step itself",
        "msf_backward.cu",
        "kept + (t - 1) * lanes + first",
        "kept + t * lanes + first",
        CROSSED_MSF,
    ),
    # Settings that meet lengths, or one another.
    bug(
        "padding moves a delayed state",
        "msf_forward.cu",
        "v.at[j] = runs ? m : v.at[j];",
        "v.at[j] = m;",
        LENGTHS_MSF,
    ),
    bug(
        "padding moves a gradient",
        "msf_backward.cu",
        "g.at[j] = runs ? g_before : g.at[j];",
        "g.at[j] = g_before;",
        LENGTHS_MSF,
    ),
    bug(
        "padding counts for a learned rate",
        "msf_backward.cu",
        "if (runs) g_rate.at[j] +=",
        "g_rate.at[j] +=",
        LENGTHS_MSF,
    ),
    bug(
        "a soft reset's amount counts spikes once",
        "msf_backward.cu",
        "-= own.fire(j, theta, m) * g.at[j];",
        "-= own.fired(j, theta, m) * g.at[j];",
        NUMBERS,
    ),
    bug("a closed window in the kept byte", "msf.cuh", "< width ? 1 : 0", "<= width ? 1 : 0", CROSSED_MSF),
    bug(
        "bursts count fractions without a reset",
        "soma.cuh",
        "spikes(floor(next.v))",
        "spikes(next.v)",
        CROSSED_PMSN,
    ),
    bug(
        "products with slopes are read as halves",
        "pmsn_backward.cu",
        "typedef real_t gs_t;",
        "typedef io_t gs_t;",
        HALVES,
    ),
    bug(
        "gradients of drives are rounded to halves",
        "pmsn.py",
        "g_seq=_in_place(gx_seq, state.r.dtype)",
        "g_seq=gx_seq",
        HALVES,
    ),
    bug(
        "numbers of a float64 neuron are rounded to float32",
        "arguments.py",
        "float: real(dtype)}",
        "float: np.float32}",
        CROSSED_MSF,
    ),
    # Chunks.
    bug(
        "all chunks as long as the first",
        "chunks.cuh",
        "if (own.steps != known) power",
        "if (known < 0) power",
        CHUNKS,
    ),
    bug("gradients carried forward in time", "chunks.cuh", "(back ? chunks - 1 - i : i)", "i", CHUNKS),
    bug("gradients carried without a conjugate", "chunks.cuh", "back ? -pi : pi", "pi", CHUNKS),
    bug(
        "every chunk ends with the last gradient",
        "gather.cuh",
        "gz && last ?",
        "gz && (last || true) ?",
        CHUNKS,
    ),
    bug(
        "lengths of chunks by channel",
        "chunks.cuh",
        "lane / (channels * positions), T) - first",
        "lane / positions % channels, T) - first",
        CHUNKS,
    ),
    # 32 bits.
    bug(
        "MSF counts lanes in 32 bits",
        "msf.cuh",
        "return ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC;",
        "return (blockIdx.x * blockDim.x + threadIdx.x) * VEC;",
        SIZES,
    ),
    bug(
        "MSF multiplies time by lanes in 32 bits",
        "msf_forward.cu",
        "s_seq + t * lanes + first",
        "s_seq + int(t * lanes) + first",
        SIZES,
    ),
    bug(
        "MSF's backward multiplies time by lanes in 32 bits",
        "msf_backward.cu",
        "gx_seq + t * lanes + first",
        "gx_seq + int(t * lanes) + first",
        SIZES,
    ),
    bug(
        "PMSN counts lanes in 32 bits",
        "pmsn_forward.cu",
        "lane = (i64)blockIdx.x * blockDim.x",
        "lane = blockIdx.x * blockDim.x",
        SIZES,
    ),
    bug(
        "PMSN multiplies time by lanes in 32 bits",
        "pmsn_forward.cu",
        "s_seq[t * lanes + lane]",
        "s_seq[int(t * lanes) + lane]",
        SIZES,
    ),
    bug(
        "chunks are counted in 32 bits",
        "chunks.cuh",
        "v = (i64)blockIdx.x * blockDim.x",
        "v = blockIdx.x * blockDim.x",
        SIZES,
    ),
    bug(
        "the gather counts lanes in 32 bits",
        "gather.cuh",
        "v = l * columns + column;",
        "v = int(l * columns + column);",
        SIZES,
    ),
    bug(
        "the adjoint counts steps in 32 bits",
        "pmsn_backward.cu",
        "last = (begin + steps - 1) * lanes + lane;",
        "last = int((begin + steps - 1) * lanes) + lane;",
        SIZES,
    ),
    # What blocks share.
    bug("sums for the parameters in float32", "gather.cuh", "double sum = 0;", "real_t sum = 0;", SUMS),
    bug(
        "shared memory beyond what a block has",
        "gather.cuh",
        "given[SUMS][THREADS];",
        "given[SUMS][16 * THREADS];",
        CROSSED_PMSN,
    ),
    bug(
        "an in-place adjoint is said to be apart",
        "pmsn_backward.cu",
        "const real_t* g_seq, io_t* gx_seq,",
        "const real_t* __restrict__ g_seq, io_t* __restrict__ gx_seq,",
        CROSSED_PMSN,
    ),
    bug(
        "an in-place soma is said to be apart",
        "pmsn_forward.cu",
        "pmsn_soma(real_t* y_seq,",
        "pmsn_soma(real_t* __restrict__ y_seq,",
        CHUNKS,
    ),
    bug(
        "a lost lane adds to the parameters", "gather.cuh", "g = poison == 0 ? g : real_t(0);", "g = g;", LOST
    ),
    # The launcher.
    bug(
        "blocks of other threads than the kernel is compiled for",
        "msf.py",
        'threads = int(macros["VEC"]), int(macros["THREADS"])',
        'threads = int(macros["VEC"]), 2 * int(macros["THREADS"])',
        CROSSED_MSF,
    ),
    bug(
        "lanes of a last part of a block",
        "pmsn.py",
        "parts(count, THREADS), (THREADS, 1)",
        "max(1, count // THREADS), (THREADS, 1)",
        CROSSED_PMSN,
    ),
    bug(
        "handles without their settings",
        "launch.py",
        "self._functions.get((index, kernel))",
        "next((f for (i, k), f in self._functions.items() if (i, k.name) == (index, kernel.name)), None)",
        LAUNCH,
    ),
    bug(
        "handles of another device",
        "launch.py",
        "self._functions.get((index, kernel))",
        "next((f for (i, k), f in self._functions.items() if k == kernel), None)",
        LAUNCH,
    ),
    bug("handles that are not kept", "launch.py", "self._functions.get((index, kernel))", "None", LAUNCH),
    bug(
        "the multiprocessors of device 0",
        "launch.py",
        "get_device_properties(x.device)",
        "get_device_properties(0)",
        LAUNCH,
    ),
    bug(
        "the stream of the current device",
        "launch.py",
        "current_stream(where.device)",
        "current_stream(torch.device('cuda', 0))",
        LAUNCH,
    ),
    bug("modules without their options", "launch.py", "options=OPTIONS)", "options=())", LAUNCH),
]
