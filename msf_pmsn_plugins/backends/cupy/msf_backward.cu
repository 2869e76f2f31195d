// msf_backward.cu - the adjoint of MSF over all time steps: one thread owns VEC neighbouring lanes.
//
// Compiled for one setting at a time, with the macros of msf_forward.cu and these:
//   SURROGATE       a struct of surrogate.cuh
//   DETACH          0 or 1: no gradient passes through the reset
//   RATE_GRAD       0 or 1: whether rates are learned
//   GRAD_MEMBRANE   0 or 1: whether the membranes have gradients of their own

#include "common.cuh"
#include "charges.cuh"
#include "surrogate.cuh"
#include "msf.cuh"

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
  g.first = g.total = SURROGATE::slope(kept - theta.at[0], p, q);
#pragma unroll 8
  for (int d = 1; d < LEVELS; ++d) g.total += SURROGATE::slope(kept - theta.at[d], p, q);
#endif
  return g;
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
      real_t gm = RESET::grad(widen(gs.at[j]), g.at[j], k.at[j], at, v_reset, theta, DETACH);
#if GRAD_MEMBRANE
      gm = gm + gm_more.at[j];
#endif
#if RATE_GRAD
      const real_t m = before.at[j];
      const real_t v = t > 0 ? RESET::after(m, fire(m, theta), v_reset, theta) : m;
      if (runs) g_rate.at[j] += CHARGE::grad_rate(gm, widen(x.at[j]), v, v_reset);
#endif
      gx.at[j] = narrow(runs ? CHARGE::grad_x(gm, own.rate[j], input_scale) : real_t(0));
      g.at[j] = runs ? CHARGE::grad_v(gm, own.rate[j]) : g.at[j];
    }
    store<VEC>(gx_seq + t * lanes + first, gx);
  }
  store<VEC>(gv0 + first, g);
#if RATE_GRAD
  store<VEC>(grate + first, g_rate);
#endif
}
