// msf.cu - MSF over all time steps: one thread owns VEC neighbouring lanes and keeps their membranes in registers.
//
// Compiled for one setting at a time, with these macros:
//   IO            element type of x, s and their gradients; membranes are float (double for IO_DOUBLE)
//   VEC           lanes per thread: 128 bits of IO, or 1 where rows or pointers are not aligned to them
//   CHARGE, RESET, LEVELS (number of thresholds), KEEP, LENGTHS (0 or 1)
//   BACKWARD      0 or 1; if 1 also SURROGATE, DETACH, RATE_GRAD and GRAD_MEMBRANE (0 or 1)
//
// Lanes are the elements of one step [N, *], numbered in memory order; x and the gradients of s and of the membranes
// may have any distance between steps (x_step, ...), all other sequences are contiguous.
// Compile without fused multiply-add: the bits are those of neurons/msf.py.

#include "common.cuh"
#include "charges.cuh"

#define RESET_HARD 0
#define RESET_SOFT 1
#define RESET_NONE 2

#define KEEP_NONE 0
#define KEEP_MEMBRANE 1
#define KEEP_CODE 2

#define THREADS 256

#if KEEP == KEEP_CODE
typedef unsigned char kept_t;
#else
typedef real_t kept_t;
#endif

// Ascending. Passed by value they lie in the constant bank; the parameters of a kernel hold 4 KB in all.
struct Thresholds {
#if LEVELS <= 256
  real_t at[LEVELS];
#else
  const real_t* at;
#endif
};

__device__ __forceinline__ real_t fire(real_t m, const Thresholds& theta) {
  real_t s = 0;
#pragma unroll 8
  for (int d = 0; d < LEVELS; ++d) s += m >= theta.at[d] ? real_t(1) : real_t(0);
  return s;
}

// Selects: NaN and inf must not leak out of a lane that was reset.
__device__ __forceinline__ real_t reset(real_t m, real_t s, real_t v_reset, const Thresholds& theta) {
#if RESET == RESET_HARD
  return m >= theta.at[0] ? v_reset : m;
#elif RESET == RESET_SOFT
  return m - s * theta.at[0];
#else
  return m;
#endif
}

// What backward needs of m: m itself, or for the rectangular surrogate how many windows it lies in, and did it fire.
__device__ __forceinline__ kept_t keep(real_t m, const Thresholds& theta, real_t width) {
#if KEEP == KEEP_CODE
  int code = m >= theta.at[0] ? 128 : 0;
#pragma unroll 8
  for (int d = 0; d < LEVELS; ++d) code += fabs(m - theta.at[d]) < width ? 1 : 0;
  return kept_t(code);
#else
  return m;
#endif
}

// The rates and numbers of steps of a thread's lanes.
struct Lanes {
  real_t rate[VEC];
  i64 steps[VEC];

  __device__ __forceinline__ Lanes(i64 first, const real_t* rates, int rate_step, real_t constant, const i64* lengths,
                                   i64 sample) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      rate[j] = rates ? rate_from_tensor(rates[(first + j) * rate_step]) : constant;
#if LENGTHS
      steps[j] = lengths[(first + j) / sample];
#endif
    }
  }

  __device__ __forceinline__ bool runs(int j, i64 t) const {
#if LENGTHS
    return t < steps[j];
#else
    return true;
#endif
  }
};

__device__ __forceinline__ i64 first_lane() { return ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC; }

#if !BACKWARD

// x_seq -> counts s_seq, kept, v_last. rates: null, or one value (rate_step 0), or one per lane (rate_step 1).
// lengths: one per sample of `sample` lanes.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    msf_forward(const io_t* __restrict__ x_seq, const real_t* __restrict__ v0, const i64* __restrict__ lengths,
                const real_t* __restrict__ rates, io_t* __restrict__ s_seq, kept_t* __restrict__ kept,
                real_t* __restrict__ v_last, i64 T, i64 lanes, i64 sample, i64 x_step, int rate_step, real_t rate,
                real_t input_scale, real_t v_reset, real_t width, const Thresholds theta) {
  const i64 first = first_lane();
  if (first >= lanes) return;
  const Lanes own(first, rates, rate_step, rate, lengths, sample);
  Pack<real_t, VEC> v = load<VEC>(v0 + first);
#pragma unroll 4
  for (i64 t = 0; t < T; ++t) {
    const Pack<io_t, VEC> x = load<VEC>(x_seq + t * x_step + first);
    Pack<io_t, VEC> s;
#if KEEP != KEEP_NONE
    Pack<kept_t, VEC> k;
#endif
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const bool runs = own.runs(j, t);
      const real_t m = charge(widen(x.at[j]), v.at[j], own.rate[j], v_reset, input_scale);
      const real_t count = fire(m, theta);
      s.at[j] = narrow(runs ? count : real_t(0));
#if KEEP != KEEP_NONE
      k.at[j] = runs ? keep(m, theta, width) : kept_t(0);
#endif
      v.at[j] = runs ? reset(m, count, v_reset, theta) : v.at[j];
    }
    store<VEC>(s_seq + t * lanes + first, s);
#if KEEP != KEEP_NONE
    store<VEC>(kept + t * lanes + first, k);
#endif
  }
  store<VEC>(v_last + first, v);
}

#else

#include "surrogate.cuh"

// The slope at the first threshold, the sum of the slopes at all, and whether the neuron fired.
struct Slopes {
  real_t first, total;
  bool fired;
};

__device__ __forceinline__ Slopes slopes(kept_t kept, const Thresholds& theta, real_t p, real_t q) {
  Slopes g;
#if KEEP == KEEP_CODE
  g.fired = kept >= 128;
  g.first = g.total = 0;
  // Added one by one: the bits of the loop below.
#pragma unroll 8
  for (int d = 0; d < LEVELS; ++d) g.total += d < (kept & 127) ? q : real_t(0);
#else
  g.fired = kept >= theta.at[0];
  g.first = g.total = slope(kept - theta.at[0], p, q);
#pragma unroll 8
  for (int d = 1; d < LEVELS; ++d) g.total += slope(kept - theta.at[d], p, q);
#endif
  return g;
}

// Gradient of the membrane before reset, from those of the count (gs) and of the membrane after reset (gv).
__device__ __forceinline__ real_t fire_and_reset_grad(real_t gs, real_t gv, kept_t kept, const Slopes& g,
                                                      real_t v_reset, const Thresholds& theta) {
#if RESET == RESET_HARD
  // A product as in neurons/msf.py: an infinite gradient must show.
  const real_t back = gv * (g.fired ? real_t(0) : real_t(1));
#else
  const real_t back = gv;
#endif
#if DETACH || RESET == RESET_NONE
  return gs * g.total + back;
#elif RESET == RESET_SOFT
  return (gs - gv * theta.at[0]) * g.total + back;
#else
  const real_t gm = (gs + gv * (v_reset - kept)) * g.first + back;
  return LEVELS > 1 ? gm + gs * (g.total - g.first) : gm;
#endif
}

// Gradients of s_seq, of the membranes before reset (gm_seq, with GRAD_MEMBRANE) and of v_last (gv, may be null)
// -> gx_seq, gv0 and, with RATE_GRAD, that of each lane's rate, summed over the steps. x_seq is read with RATE_GRAD only.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    msf_backward(const io_t* __restrict__ gs_seq, const real_t* __restrict__ gm_seq, const real_t* __restrict__ gv,
                 const io_t* __restrict__ x_seq, const kept_t* __restrict__ kept, const real_t* __restrict__ v0,
                 const i64* __restrict__ lengths, const real_t* __restrict__ rates, io_t* __restrict__ gx_seq,
                 real_t* __restrict__ gv0, real_t* __restrict__ grate, i64 T, i64 lanes, i64 sample, i64 gs_step,
                 i64 gm_step, i64 x_step, int rate_step, real_t rate, real_t input_scale, real_t v_reset, real_t p,
                 real_t q, const Thresholds theta) {
  const i64 first = first_lane();
  if (first >= lanes) return;
  const Lanes own(first, rates, rate_step, rate, lengths, sample);
  Pack<real_t, VEC> g = {};
  if (gv) g = load<VEC>(gv + first);
#if RATE_GRAD
  Pack<real_t, VEC> g_rate = {};
#endif
#pragma unroll 4
  for (i64 t = T - 1; t >= 0; --t) {
    const Pack<kept_t, VEC> k = load<VEC>(kept + t * lanes + first);
    const Pack<io_t, VEC> gs = load<VEC>(gs_seq + t * gs_step + first);
#if GRAD_MEMBRANE
    const Pack<real_t, VEC> gm_more = load<VEC>(gm_seq + t * gm_step + first);
#endif
#if RATE_GRAD
    const Pack<io_t, VEC> x = load<VEC>(x_seq + t * x_step + first);
    const Pack<real_t, VEC> before = load<VEC>(t > 0 ? kept + (t - 1) * lanes + first : v0 + first);
#endif
    Pack<io_t, VEC> gx;
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const bool runs = own.runs(j, t);
      const Slopes at = slopes(k.at[j], theta, p, q);
      real_t gm = fire_and_reset_grad(widen(gs.at[j]), g.at[j], k.at[j], at, v_reset, theta);
#if GRAD_MEMBRANE
      gm = gm + gm_more.at[j];
#endif
#if RATE_GRAD
      const real_t m = before.at[j];
      const real_t v = t > 0 ? reset(m, fire(m, theta), v_reset, theta) : m;
      if (runs) g_rate.at[j] += charge_grad_rate(gm, widen(x.at[j]), v, v_reset);
#endif
      gx.at[j] = narrow(runs ? charge_grad_x(gm, own.rate[j], input_scale) : real_t(0));
      g.at[j] = runs ? charge_grad_v(gm, own.rate[j]) : g.at[j];
    }
    store<VEC>(gx_seq + t * lanes + first, gx);
  }
  store<VEC>(gv0 + first, g);
#if RATE_GRAD
  store<VEC>(grate + first, g_rate);
#endif
}

#endif
