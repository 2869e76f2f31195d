// pmsn.cu - PMSN over all time steps: one thread owns one lane and keeps its modes in registers.
//
// Compiled for one setting at a time, with these macros:
//   IO        IO_FLOAT or IO_DOUBLE
//   MODES     0 to 16
//   RESET, BURST, FIXED, LENGTHS (0 or 1): see soma.cuh
//   CHUNKED   0 or 1: time is cut into chunks that are walked at once, for few lanes and many steps (see pmsn_chunk)
//   BACKWARD  0 or 1; if 1 also SURROGATE, GRAD_DRIVE (0 or 1), GROUPS and FUSED (see pmsn_gather)
//
// Sequences are [T, L, C, K]: lane (l*C + c)*K + k, so neighbouring threads read neighbouring elements whatever K is.
// Parameters belong to the channel c. Complex numbers lie as pairs of reals. x and the incoming gradients may have any
// distance between steps (x_step, ...), all other sequences are contiguous.
// Compile without fused multiply-add: where it is wanted it is written, so that every compiler gives the same bits.

#include "common.cuh"
#include "soma.cuh"

#define THREADS 128
// Steps that are read ahead of the arithmetic, which would otherwise wait for memory at each of them.
#define AHEAD (MODES <= 4 ? 8 : MODES <= 8 ? 4 : IO == IO_DOUBLE ? 1 : 2)
#define AHEAD_GATHER (IO == IO_DOUBLE && (BURST != BURST_OFF || FIXED) ? 1 : MODES <= 8 ? 4 : 2)
#define AHEAD_SOMA (BACKWARD ? 16 : 32)

// C++ has no empty arrays.
__device__ constexpr int room(int count) { return count > 0 ? count : 1; }

// a and w of COUNT modes of channel c from `first` on; modes that do not exist are 0.
template <int COUNT>
struct Modes {
  real_t ar[room(COUNT)], ai[room(COUNT)], wr[room(COUNT)], wi[room(COUNT)];

  __device__ __forceinline__ Modes(const real_t* a, const real_t* w, i64 c, int first) {
#pragma unroll
    for (int m = 0; m < COUNT; ++m) {
      const i64 at = 2 * (c * MODES + first + m);
      const bool real = first + m < MODES;
      ar[m] = real ? a[at] : real_t(0);
      ai[m] = real ? a[at + 1] : real_t(0);
      wr[m] = real ? w[at] : real_t(0);
      wi[m] = real ? w[at + 1] : real_t(0);
    }
  }
};

// The hidden state of a lane, or a gradient of it, for the same modes.
template <int COUNT>
struct State {
  real_t re[room(COUNT)], im[room(COUNT)];

  __device__ __forceinline__ State() {
#pragma unroll
    for (int m = 0; m < COUNT; ++m) re[m] = im[m] = 0;
  }

  __device__ __forceinline__ State(const real_t* z, i64 lane, int first) {
#pragma unroll
    for (int m = 0; m < COUNT; ++m) {
      const i64 at = 2 * (lane * MODES + first + m);
      const bool real = first + m < MODES;
      re[m] = real ? z[at] : real_t(0);
      im[m] = real ? z[at + 1] : real_t(0);
    }
  }

  // Only for all modes.
  __device__ __forceinline__ void save(real_t* z, i64 lane) const {
#pragma unroll
    for (int m = 0; m < COUNT; ++m) {
      z[2 * (lane * MODES + m)] = re[m];
      z[2 * (lane * MODES + m) + 1] = im[m];
    }
  }
};

// The valid steps of leading lane l. Lengths on the device are not checked by anyone: kept within 0 to T.
__device__ __forceinline__ i64 valid_steps(const i64* lengths, i64 l, i64 T) {
#if LENGTHS
  const i64 steps = lengths[l];
  return steps < 0 ? 0 : steps < T ? steps : T;
#else
  return T;
#endif
}

__device__ __forceinline__ bool is_finite(real_t e) { return e - e == 0; }

// A lane's elements of COUNT steps, and of the COUNT steps after them, which are under way meanwhile.
template <int COUNT>
struct Stream {
  real_t now[COUNT], next[COUNT];

  // Steps t, t + 1, .. of `seq`, whose steps lie `step` apart; beyond the last of them the last again.
  __device__ __forceinline__ void fetch(const io_t* seq, i64 step, i64 t, i64 steps) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
      now[j] = next[j];
      next[j] = seq[(t + j < steps ? t + j : steps - 1) * step];
    }
  }
};

// z <- a z + x
__device__ __forceinline__ void advance(real_t& re, real_t& im, real_t ar, real_t ai, real_t xr, real_t xi) {
  const real_t next = fma(ar, re, fma(-ai, im, xr));
  im = fma(ar, im, fma(ai, re, xi));
  re = next;
}

template <int COUNT>
__device__ __forceinline__ void advance(State<COUNT>& z, const Modes<COUNT>& own, real_t x) {
#pragma unroll
  for (int m = 0; m < COUNT; ++m) advance(z.re[m], z.im[m], own.ar[m], own.ai[m], x, 0);
}

// y = Re(sum w z) + d x, over all modes
template <int COUNT>
__device__ __forceinline__ real_t drive(const State<COUNT>& z, const Modes<COUNT>& own, real_t d, real_t x) {
  real_t re = d * x, im = 0;
#pragma unroll
  for (int m = 0; m < COUNT; ++m) {
    re = fma(own.wr[m], z.re[m], re);
    im = fma(own.wi[m], z.im[m], im);
  }
  return re - im;
}

#if !BACKWARD && !CHUNKED

// x_seq -> spikes s_seq, with y_seq given also the drives, last r and z. lengths: one per l.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_forward(const io_t* __restrict__ x_seq, const real_t* __restrict__ r0, const real_t* __restrict__ z0,
                 const real_t* __restrict__ a, const real_t* __restrict__ w, const real_t* __restrict__ d,
                 const i64* __restrict__ lengths, io_t* __restrict__ s_seq, io_t* __restrict__ y_seq,
                 real_t* __restrict__ r_last, real_t* __restrict__ z_last, i64 T, i64 lanes, i64 channels,
                 i64 positions, i64 x_step, real_t theta) {
  const i64 lane = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (lane >= lanes) return;
  const i64 c = lane / positions % channels;
  const i64 steps = valid_steps(lengths, lane / (channels * positions), T);
  const Modes<MODES> own(a, w, c, 0);
  const real_t gain = d[c];
  State<MODES> z(z0, lane, 0);
  real_t r = r0[lane];
  Stream<AHEAD> x_ahead;
  if (steps > 0) x_ahead.fetch(x_seq + lane, x_step, 0, steps);
  for (i64 t = 0; t < steps;) {
    x_ahead.fetch(x_seq + lane, x_step, t + AHEAD, steps);
#pragma unroll
    for (int j = 0; j < AHEAD && t < steps; ++j, ++t) {
      const real_t given = x_ahead.now[j];
      // inf - inf and NaN - NaN are NaN: a lane is NaN from its first such input on.
      const real_t x = is_finite(given) ? given : given - given;
      advance(z, own, x);
      const real_t y = drive(z, own, gain, x);
      const Soma next = soma(y, r, theta);
      r = next.r;
      s_seq[t * lanes + lane] = next.s;
      if (y_seq) y_seq[t * lanes + lane] = y;
    }
  }
  for (i64 t = steps; t < T; ++t) {
    s_seq[t * lanes + lane] = 0;
    if (y_seq) y_seq[t * lanes + lane] = 0;
  }
  r_last[lane] = r;
  z.save(z_last, lane);
}

#endif

#if BACKWARD

#include "surrogate.cuh"

// Backward keeps nothing of forward. It walks forward in time again for the gradient g of each drive (pmsn_drive) and
// for the sums of the parameters (pmsn_gather), then backward for the gradient of x (pmsn_adjoint). g lies where the
// gradient of x will be.
//
// Here x and z are cleaned of NaN and inf, which would spread through the sums to all lanes: zeros stand for them, and
// poison is NaN from the first of them on, else 0.
__device__ __forceinline__ real_t cleaned(real_t e, real_t& poison) {
  poison += e - e;
  return is_finite(e) ? e : real_t(0);
}

template <int COUNT>
__device__ __forceinline__ void clean(State<COUNT>& z, real_t& poison) {
#pragma unroll
  for (int m = 0; m < COUNT; ++m) {
    const real_t lost = (z.re[m] - z.re[m]) + (z.im[m] - z.im[m]);
    poison += lost;
    z.re[m] = lost == 0 ? z.re[m] : real_t(0);
    z.im[m] = lost == 0 ? z.im[m] : real_t(0);
  }
}

// The threshold and the constants of the surrogate.
struct Fire {
  real_t theta, p, q;
};

// Gradient of the drive from that of the spike; r moves on.
__device__ __forceinline__ real_t drive_grad(real_t gs, real_t y, real_t& r, const Fire& fire) {
  const Soma next = soma(y, r, fire.theta);
  r = next.r;
  const real_t g = gs * slope(slope_argument(next.v, fire.theta), fire.p, fire.q);
  return RESET != RESET_FLOOR || y > 0 ? g : real_t(0);
}

// RESET_CUMULATIVE: each drive also moves all later membranes. The gradients of the membranes in g_seq become those of
// the drives; gr, that of r_last, may be null.
__device__ __forceinline__ void accumulate(io_t* g_seq, const io_t* gy_seq, const real_t* gr, real_t* gr0, i64 lane,
                                           i64 steps, i64 lanes, i64 gy_step, real_t theta) {
  real_t later = gr ? gr[lane] / theta : real_t(0);
  for (i64 t = steps - 1; t >= 0; --t) {
    later += g_seq[t * lanes + lane];
#if GRAD_DRIVE
    g_seq[t * lanes + lane] = later + gy_seq[t * gy_step + lane];
#else
    g_seq[t * lanes + lane] = later;
#endif
  }
  gr0[lane] = theta * later;
}

#endif

#if BACKWARD && !CHUNKED && !FUSED

// Gradients of s_seq, of y_seq (with GRAD_DRIVE) and of r_last (gr, may be null) -> g_seq, and with RESET_CUMULATIVE
// gr0.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_drive(const io_t* __restrict__ gs_seq, const io_t* __restrict__ gy_seq, const real_t* __restrict__ gr,
               const io_t* __restrict__ x_seq, const real_t* __restrict__ r0, const real_t* __restrict__ z0,
               const real_t* __restrict__ a, const real_t* __restrict__ w, const real_t* __restrict__ d,
               const i64* __restrict__ lengths, io_t* __restrict__ g_seq, real_t* __restrict__ gr0, i64 T, i64 lanes,
               i64 channels, i64 positions, i64 gs_step, i64 gy_step, i64 x_step, real_t theta, real_t p, real_t q) {
  const i64 lane = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (lane >= lanes) return;
  const i64 c = lane / positions % channels;
  const i64 steps = valid_steps(lengths, lane / (channels * positions), T);
  const Modes<MODES> own(a, w, c, 0);
  const Fire fire = {theta, p, q};
  const real_t gain = d[c];
  real_t poison = 0, r = r0[lane];
  State<MODES> z(z0, lane, 0);
  clean(z, poison);
  Stream<AHEAD> x_ahead, gs_ahead;
  if (steps > 0) {
    x_ahead.fetch(x_seq + lane, x_step, 0, steps);
    gs_ahead.fetch(gs_seq + lane, gs_step, 0, steps);
  }
  for (i64 t = 0; t < steps;) {
    x_ahead.fetch(x_seq + lane, x_step, t + AHEAD, steps);
    gs_ahead.fetch(gs_seq + lane, gs_step, t + AHEAD, steps);
#pragma unroll
    for (int j = 0; j < AHEAD && t < steps; ++j, ++t) {
      const real_t x = cleaned(x_ahead.now[j], poison);
      advance(z, own, x);
      real_t g = drive_grad(gs_ahead.now[j], drive(z, own, gain, x) + poison, r, fire);
#if GRAD_DRIVE && RESET != RESET_CUMULATIVE
      g += gy_seq[t * gy_step + lane];
#endif
      g_seq[t * lanes + lane] = g;
    }
  }
#if RESET == RESET_CUMULATIVE
  accumulate(g_seq, gy_seq, gr, gr0, lane, steps, lanes, gy_step, theta);
#endif
}

#endif

#if CHUNKED

// A lane is linear in its state but for the soma, so its chunks of `span` steps can be walked at once, each as a lane of
// its own, v = chunk * lanes + lane: from zero (pmsn_chunk), which says how each chunk moves the state (pmsn_carry),
// then from the state that each begins with, for the drives. Only the soma walks all steps (pmsn_soma), with next to
// nothing to do in each.
struct Chunk {
  i64 lane, channel, first, steps;

  __device__ __forceinline__ Chunk(i64 v, const i64* lengths, i64 T, i64 lanes, i64 channels, i64 positions, i64 span) {
    lane = v % lanes;
    channel = lane / positions % channels;
    first = v / lanes * span;
    const i64 left = valid_steps(lengths, lane / (channels * positions), T) - first;
    steps = left < 0 ? 0 : left < span ? left : span;
  }
};

// Without `starts`: x_seq -> ends, the state that each chunk ends with if it begins with 0. With them: -> y_seq.
//
// Backward also asks for p = dz/da (see pmsn_gather), with `starts` -> p_ends, and cleans x (see above): without them
// the step of the first loss of each chunk -> lost, or T; with them lost holds that of each lane.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_chunk(const io_t* __restrict__ x_seq, const real_t* __restrict__ starts, const real_t* __restrict__ a,
               const real_t* __restrict__ w, const real_t* __restrict__ d, const i64* __restrict__ lengths,
               real_t* __restrict__ ends, real_t* __restrict__ p_ends, i64* __restrict__ lost,
               io_t* __restrict__ y_seq, i64 T, i64 lanes, i64 channels, i64 positions, i64 span, i64 chunks,
               i64 x_step) {
  const i64 v = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (v >= lanes * chunks) return;
  const Chunk own(v, lengths, T, lanes, channels, positions, span);
  const Modes<MODES> modes(a, w, own.channel, 0);
  const real_t gain = d[own.channel];
  const io_t* const from = x_seq + own.first * x_step + own.lane;
  State<MODES> z;
  if (starts) z = State<MODES>(starts, v, 0);
#if BACKWARD
  State<MODES> p;
  const i64 gone = starts ? lost[own.lane] : T;
  i64 first_lost = T;
#endif
  Stream<AHEAD> x_ahead;
  if (own.steps > 0) x_ahead.fetch(from, x_step, 0, own.steps);
  for (i64 t = 0; t < own.steps;) {
    x_ahead.fetch(from, x_step, t + AHEAD, own.steps);
#pragma unroll
    for (int j = 0; j < AHEAD && t < own.steps; ++j, ++t) {
      const real_t given = x_ahead.now[j];
      const i64 now = own.first + t;
#if BACKWARD
      const bool good = is_finite(given);
      const real_t x = good ? given : real_t(0);
      if (!good && first_lost == T) first_lost = now;
#pragma unroll
      for (int m = 0; m < MODES; ++m)
        advance(p.re[m], p.im[m], modes.ar[m], modes.ai[m], z.re[m], z.im[m]);
#else
      const real_t x = is_finite(given) ? given : given - given;
#endif
      advance(z, modes, x);
      if (starts) {
        real_t y = drive(z, modes, gain, x);
#if BACKWARD
        y = now < gone ? y : real_t(nan(""));
#endif
        y_seq[now * lanes + own.lane] = y;
      }
    }
  }
  if (!starts) z.save(ends, v);
#if BACKWARD
  if (starts) p.save(p_ends, v);
  if (!starts) lost[v] = first_lost;
#endif
}

// parts: what each chunk ends with if it begins with 0 -> what it begins with. The first begins with `given` (null: 0),
// the last ends with `end` (may be null). back: against time and with conj(a), as gradients go.
// lost (may be null) of each chunk -> of each lane, at the places of the first chunk; a state `given` that is lost loses
// the lane at once.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_carry(real_t* __restrict__ parts, const real_t* __restrict__ given, const real_t* __restrict__ a,
               const i64* __restrict__ lengths, real_t* __restrict__ end, i64* __restrict__ lost, i64 T, i64 lanes,
               i64 channels, i64 positions, i64 span, i64 chunks, int back) {
  const i64 lane = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (lane >= lanes) return;
  State<MODES> z, power;
  if (given) z = State<MODES>(given, lane, 0);
#if BACKWARD
  if (lost) {
    real_t poison = 0;
    clean(z, poison);
    i64 first_lost = poison == 0 ? T : 0;
    for (i64 g = 0; g < chunks; ++g) {
      const i64 other = lost[g * lanes + lane];
      first_lost = other < first_lost ? other : first_lost;
    }
    lost[lane] = first_lost;
  }
#endif
  i64 known = -1;
  for (i64 i = 0; i < chunks; ++i) {
    const i64 v = (back ? chunks - 1 - i : i) * lanes + lane;
    const Chunk own(v, lengths, T, lanes, channels, positions, span);
    if (own.steps != known) {  // a to the number of steps, in double: it stands for as many roundings
      known = own.steps;
#pragma unroll
      for (int m = 0; m < MODES; ++m) {
        double sr = a[2 * (own.channel * MODES + m)], si = a[2 * (own.channel * MODES + m) + 1], pr = 1, pi = 0;
        for (i64 n = known; n > 0; n >>= 1) {
          if (n & 1) {
            const double re = pr * sr - pi * si;
            pi = pr * si + pi * sr;
            pr = re;
          }
          const double re = sr * sr - si * si;
          si = 2 * sr * si;
          sr = re;
        }
        power.re[m] = real_t(pr);
        power.im[m] = real_t(back ? -pi : pi);
      }
    }
    const State<MODES> part(parts, v, 0);
    z.save(parts, v);
#pragma unroll
    for (int m = 0; m < MODES; ++m) advance(z.re[m], z.im[m], power.re[m], power.im[m], part.re[m], part.im[m]);
  }
  if (end) z.save(end, lane);
}

#if !BACKWARD

// The soma alone. y_seq (which may be s_seq) -> s_seq, last r.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_soma(io_t* y_seq, const real_t* __restrict__ r0, const i64* __restrict__ lengths, io_t* s_seq,
              real_t* __restrict__ r_last, i64 T, i64 lanes, i64 columns, real_t theta) {
  const i64 lane = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (lane >= lanes) return;
  const i64 steps = valid_steps(lengths, lane / columns, T);
  real_t r = r0[lane];
  Stream<AHEAD_SOMA> y_ahead;
  if (steps > 0) y_ahead.fetch(y_seq + lane, lanes, 0, steps);
  for (i64 t = 0; t < steps;) {
    y_ahead.fetch(y_seq + lane, lanes, t + AHEAD_SOMA, steps);
#pragma unroll
    for (int j = 0; j < AHEAD_SOMA && t < steps; ++j, ++t) {
      const Soma next = soma(y_ahead.now[j], r, theta);
      r = next.r;
      s_seq[t * lanes + lane] = next.s;
    }
  }
  for (i64 t = steps; t < T; ++t) y_seq[t * lanes + lane] = s_seq[t * lanes + lane] = 0;
  r_last[lane] = r;
}

#else

// The soma alone. Gradients as in pmsn_drive; g_seq holds the drives at first.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_soma(const io_t* __restrict__ gs_seq, const io_t* __restrict__ gy_seq, const real_t* __restrict__ gr,
              const real_t* __restrict__ r0, const i64* __restrict__ lengths, io_t* __restrict__ g_seq,
              real_t* __restrict__ gr0, i64 T, i64 lanes, i64 columns, i64 gs_step, i64 gy_step, real_t theta, real_t p,
              real_t q) {
  const i64 lane = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (lane >= lanes) return;
  const i64 steps = valid_steps(lengths, lane / columns, T);
  const Fire fire = {theta, p, q};
  real_t r = r0[lane];
  Stream<AHEAD_SOMA> y_ahead, gs_ahead;
  if (steps > 0) {
    y_ahead.fetch(g_seq + lane, lanes, 0, steps);
    gs_ahead.fetch(gs_seq + lane, gs_step, 0, steps);
  }
  for (i64 t = 0; t < steps;) {
    y_ahead.fetch(g_seq + lane, lanes, t + AHEAD_SOMA, steps);
    gs_ahead.fetch(gs_seq + lane, gs_step, t + AHEAD_SOMA, steps);
#pragma unroll
    for (int j = 0; j < AHEAD_SOMA && t < steps; ++j, ++t) {
      real_t g = drive_grad(gs_ahead.now[j], y_ahead.now[j], r, fire);
#if GRAD_DRIVE && RESET != RESET_CUMULATIVE
      g += gy_seq[t * gy_step + lane];
#endif
      g_seq[t * lanes + lane] = g;
    }
  }
#if RESET == RESET_CUMULATIVE
  accumulate(g_seq, gy_seq, gr, gr0, lane, steps, lanes, gy_step, theta);
#endif
}

#endif
#endif

#if BACKWARD

// Modes that one thread of pmsn_gather takes, and its sums: gradients of their a (re, im), their w (re, im), and of d.
#define TAKEN ((MODES + GROUPS - 1) / GROUPS)
#define SUMS (4 * TAKEN + 1)

// Sensitivities p = dz/da and what they gather over time: sum g p, sum g z.
struct Gathered {
  real_t pr[room(TAKEN)], pi[room(TAKEN)], gpr[room(TAKEN)], gpi[room(TAKEN)], gzr[room(TAKEN)], gzi[room(TAKEN)];

  __device__ __forceinline__ explicit Gathered(const State<TAKEN>& p) {
#pragma unroll
    for (int m = 0; m < TAKEN; ++m) {
      pr[m] = p.re[m];
      pi[m] = p.im[m];
      gpr[m] = gpi[m] = gzr[m] = gzi[m] = 0;
    }
  }

  // p <- a p + z, with z before its own step
  __device__ __forceinline__ void step(const State<TAKEN>& z, const Modes<TAKEN>& own) {
#pragma unroll
    for (int m = 0; m < TAKEN; ++m) advance(pr[m], pi[m], own.ar[m], own.ai[m], z.re[m], z.im[m]);
  }

  __device__ __forceinline__ void add(const State<TAKEN>& z, real_t g) {
#pragma unroll
    for (int m = 0; m < TAKEN; ++m) {
      gpr[m] = fma(g, pr[m], gpr[m]);
      gpi[m] = fma(g, pi[m], gpi[m]);
      gzr[m] = fma(g, z.re[m], gzr[m]);
      gzi[m] = fma(g, z.im[m], gzi[m]);
    }
  }

  // The last state, whose gradient is gz, depends on a through p of the last step.
  __device__ __forceinline__ void finish(const Modes<TAKEN>& own, const State<TAKEN>& gz, real_t* sums) const {
#pragma unroll
    for (int m = 0; m < TAKEN; ++m) {
      sums[m] = own.wr[m] * gpr[m] - own.wi[m] * gpi[m] + (gz.re[m] * pr[m] + gz.im[m] * pi[m]);
      sums[TAKEN + m] = gz.im[m] * pr[m] - gz.re[m] * pi[m] - (own.wr[m] * gpi[m] + own.wi[m] * gpr[m]);
      sums[2 * TAKEN + m] = gzr[m];
      sums[3 * TAKEN + m] = -gzi[m];
    }
  }
};

// The sums for the parameters, from g_seq; with FUSED (one group, not RESET_CUMULATIVE, not CHUNKED) this kernel makes
// g_seq too, and pmsn_drive is not needed. With CHUNKED a chunk of l is an l of its own: z0 and p0 are what the chunks
// begin with.
//
// The modes are split into GROUPS, so that their sensitivities fit the registers. A block takes one group of
// blockDim.x columns (c, k) by blockDim.y values of l; blocks count through the groups, then through the columns, then
// through `rows`, which share the values of l. Each block adds what its lanes give into its own places of
// partial [rows, GROUPS, SUMS, C*K].
// Four blocks to a multiprocessor, two in double; where bursts or the fixed point need registers of their own, one.
extern "C" __global__ void __launch_bounds__(THREADS, BURST != BURST_OFF || FIXED ? 1 : IO == IO_DOUBLE ? 2 : 4)
    pmsn_gather(const io_t* __restrict__ gs_seq, const io_t* __restrict__ gy_seq, const real_t* __restrict__ gz,
                const io_t* __restrict__ x_seq, const real_t* __restrict__ r0, const real_t* __restrict__ z0,
                const real_t* __restrict__ a, const real_t* __restrict__ w, const real_t* __restrict__ d,
                const i64* __restrict__ lengths, const real_t* __restrict__ p0, const i64* __restrict__ lost,
                io_t* __restrict__ g_seq, real_t* __restrict__ partial, i64 T, i64 leads, i64 channels, i64 positions,
                i64 span, i64 chunks, i64 rows, i64 gs_step, i64 gy_step, i64 x_step, real_t theta, real_t p,
                real_t q) {
  __shared__ real_t given[SUMS][THREADS];
  const i64 columns = channels * positions, lanes = leads * columns;
  const i64 column_blocks = (columns + blockDim.x - 1) / blockDim.x;
  const i64 group = blockIdx.x % GROUPS;
  const i64 column = blockIdx.x / GROUPS % column_blocks * blockDim.x + threadIdx.x;
  const i64 row = blockIdx.x / GROUPS / column_blocks, all = CHUNKED ? leads * chunks : leads;
  const i64 c = column < columns ? column / positions : 0;
  const int first = int(group) * TAKEN;
  const Modes<TAKEN> own(a, w, c, first);

  for (i64 top = row * blockDim.y; top < all; top += rows * blockDim.y) {
    const i64 l = top + threadIdx.y;
    real_t sums[SUMS] = {};
    if (column < columns && l < all) {
      const i64 v = l * columns + column;
#if CHUNKED
      const Chunk chunk(v, lengths, T, lanes, channels, positions, span);
      const i64 lane = chunk.lane, begin = chunk.first, steps = chunk.steps, live = lost[lane] - begin;
      const bool last = begin == (chunks - 1) * span;
      State<TAKEN> z(z0, v, first);
      Gathered gathered{State<TAKEN>(p0, v, first)};
#else
      const i64 lane = v, begin = 0, steps = valid_steps(lengths, l, T);
      const bool last = true;
      State<TAKEN> z(z0, lane, first);
      Gathered gathered{State<TAKEN>()};
#endif
      real_t poison = 0;
      clean(z, poison);
#if FUSED
      const Fire fire = {theta, p, q};
      const real_t gain = d[c];
      real_t r = r0[lane];
#endif
      // What the gradient of the drive is made of, or that gradient itself.
      const i64 g_step = FUSED ? gs_step : lanes;
      const io_t* const g_from = (FUSED ? gs_seq : g_seq) + begin * g_step + lane;
      const io_t* const x_from = x_seq + begin * x_step + lane;
      Stream<AHEAD_GATHER> x_ahead, g_ahead;
      if (steps > 0) {
        x_ahead.fetch(x_from, x_step, 0, steps);
        g_ahead.fetch(g_from, g_step, 0, steps);
      }
      for (i64 t = 0; t < steps;) {
        x_ahead.fetch(x_from, x_step, t + AHEAD_GATHER, steps);
        g_ahead.fetch(g_from, g_step, t + AHEAD_GATHER, steps);
#pragma unroll
        for (int j = 0; j < AHEAD_GATHER && t < steps; ++j, ++t) {
          const real_t x = cleaned(x_ahead.now[j], poison);
          gathered.step(z, own);
          advance(z, own, x);
          real_t g = g_ahead.now[j];
#if FUSED
          g = drive_grad(g, drive(z, own, gain, x) + poison, r, fire);
#if GRAD_DRIVE
          g += gy_seq[t * gy_step + lane];
#endif
          g_seq[t * lanes + lane] = g;
#endif
#if CHUNKED
          g = t < live ? g : real_t(0);
#else
          g = poison == 0 ? g : real_t(0);
#endif
          gathered.add(z, g);
          sums[SUMS - 1] = fma(g, x, sums[SUMS - 1]);
        }
      }
      gathered.finish(own, gz && last ? State<TAKEN>(gz, lane, first) : State<TAKEN>(), sums);
    }
    // All threads come here equally often. Those of a column share out its sums and add each in ascending order of l.
#pragma unroll
    for (int n = 0; n < SUMS; ++n) given[n][threadIdx.y * blockDim.x + threadIdx.x] = sums[n];
    __syncthreads();
    for (int n = threadIdx.y; n < SUMS && column < columns; n += blockDim.y) {
      real_t* const place = partial + ((row * GROUPS + group) * SUMS + n) * columns + column;
      real_t sum = top == row * blockDim.y ? real_t(0) : *place;
      for (unsigned y = 0; y < blockDim.y; ++y) sum += given[n][y * blockDim.x + threadIdx.x];
      *place = sum;
    }
    __syncthreads();
  }
}

// g_seq -> gx_seq in the same memory; gz, the gradient of z_last -> gz0, that of z0. Both may be null. With CHUNKED each
// chunk is a lane: without gz, which is then that of the state each ends with, gx_seq is not written.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_adjoint(io_t* __restrict__ gx_seq, const real_t* __restrict__ gz, const real_t* __restrict__ a,
                 const real_t* __restrict__ w, const real_t* __restrict__ d, const i64* __restrict__ lengths,
                 real_t* __restrict__ gz0, i64 T, i64 lanes, i64 channels, i64 positions, i64 span, i64 chunks) {
  const i64 v = (i64)blockIdx.x * blockDim.x + threadIdx.x;
#if CHUNKED
  if (v >= lanes * chunks) return;
  const Chunk chunk(v, lengths, T, lanes, channels, positions, span);
  const i64 lane = chunk.lane, c = chunk.channel, begin = chunk.first, steps = chunk.steps;
  const i64 end = begin + span < T ? begin + span : T;
  const bool writes = gz != nullptr;
#else
  if (v >= lanes) return;
  const i64 lane = v, c = lane / positions % channels, begin = 0, end = T;
  const i64 steps = valid_steps(lengths, lane / (channels * positions), T);
  const bool writes = true;
#endif
  const Modes<MODES> own(a, w, c, 0);
  const real_t gain = d[c];
  State<MODES> after;
  if (gz) after = State<MODES>(gz, v, 0);
  // Backward in time: step i is t = begin + steps - 1 - i.
  io_t* const last = gx_seq + (begin + steps - 1) * lanes + lane;
  Stream<AHEAD> g_ahead;
  if (steps > 0) g_ahead.fetch(last, -lanes, 0, steps);
  for (i64 i = 0; i < steps;) {
    g_ahead.fetch(last, -lanes, i + AHEAD, steps);
#pragma unroll
    for (int j = 0; j < AHEAD && i < steps; ++j, ++i) {
      const real_t g = g_ahead.now[j];
      real_t gx = gain * g;
#pragma unroll
      for (int m = 0; m < MODES; ++m) {
        const real_t re = fma(own.wr[m], g, after.re[m]), im = fma(-own.wi[m], g, after.im[m]);
        gx += re;
        // times conj(a)
        after.re[m] = fma(own.ar[m], re, own.ai[m] * im);
        after.im[m] = fma(own.ar[m], im, -(own.ai[m] * re));
      }
      if (writes) last[-i * lanes] = gx;
    }
  }
  if (writes)
    for (i64 t = begin + steps; t < end; ++t) gx_seq[t * lanes + lane] = 0;
  if (gz0) after.save(gz0, v);
}

// partial [rows, GROUPS, SUMS, C, K] -> ga, gw [C, MODES] complex, gd [C]; a block for each channel. In double, and in
// an order that depends on the shape alone.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_parameters(const real_t* __restrict__ partial, real_t* __restrict__ ga, real_t* __restrict__ gw,
                    real_t* __restrict__ gd, i64 rows, i64 channels, i64 positions) {
  __shared__ double given[THREADS];
  const i64 c = blockIdx.x;
  for (int n = 0; n <= 4 * MODES; ++n) {
    // Sum n is part (0 to 3) of mode m, which is among those of one group.
    const int part = n / room(MODES), m = n % room(MODES);
    const i64 group = n < 4 * MODES ? m / room(TAKEN) : 0;
    const i64 place = n < 4 * MODES ? part * TAKEN + m % room(TAKEN) : SUMS - 1;
    double sum = 0;
    for (i64 i = threadIdx.x; i < rows * positions; i += THREADS) {
      const i64 row = i / positions, k = i % positions;
      sum += partial[(((row * GROUPS + group) * SUMS + place) * channels + c) * positions + k];
    }
    given[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) given[threadIdx.x] += given[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      const real_t total = given[0];
      if (n == 4 * MODES)
        gd[c] = total;
      else
        (part < 2 ? ga : gw)[2 * (c * MODES + m) + part % 2] = total;
    }
    // No barrier: only thread 0 still reads, and only where it writes next.
  }
}

#endif
