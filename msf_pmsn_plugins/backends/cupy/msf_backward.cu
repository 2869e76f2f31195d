// msf_backward.cu - the adjoint of MSF over all time steps: one thread owns VEC neighbouring lanes.
//
// Compiled for one setting at a time, with the macros of msf_forward.cu and these:
//   SURROGATE         a struct of surrogate.cuh
//   SLOPES            0 or 1: the slopes lie in memory, SURROGATE is not used
//   DETACH            0 or 1: no gradient passes through the reset
//   RATE_GRAD, THRESHOLD_GRAD, RESET_GRAD   0 or 1: whether there is one to the rates, the first thresholds, the
//                     amounts of a soft reset
//   GRAD_MEMBRANE     0 or 1: whether the membranes have gradients of their own

#include "common.cuh"
#include "charges.cuh"
#include "surrogate.cuh"
#include "msf.cuh"

#define BEFORE (RATE_GRAD || DELAY)  // the step before is looked at
// Steps whose loads are under way at once; fewer where each has most to compute, so that two blocks fit.
#define UNROLL (RATE_GRAD && !DETACH ? 2 : 4)

__device__ __forceinline__ Slopes slopes(const Lanes& own, int j, kept_t kept, const Thresholds& theta, real_t p,
                                         real_t q) {
  Slopes at;
#if KEEP == KEEP_CODE
  at.fired = kept >= 128;
  at.first = at.total = 0;
  // Added one by one: the bits of the loop below.
#pragma unroll 8
  for (int d = 0; d < LEVELS; ++d) at.total += d < (kept & 127) ? q : real_t(0);
#else
  at.fired = own.fired(j, theta, kept);
#if !SLOPES
  at.first = at.total = SURROGATE::slope(kept - own.threshold(j, theta, 0), p, q);
#pragma unroll 8
  for (int d = 1; d < LEVELS; ++d) at.total += SURROGATE::slope(kept - own.threshold(j, theta, d), p, q);
#endif
#endif
  return at;
}

// What a step reads.
struct Step {
  Pack<kept_t, VEC> kept;
  Pack<io_t, VEC> gs;
#if GRAD_MEMBRANE
  Pack<real_t, VEC> gm;
#endif
#if SLOPES
  Pack<real_t, VEC> total, first;
#endif
#if RATE_GRAD
  Pack<io_t, VEC> x;
#endif
#if BEFORE
  Pack<kept_t, VEC> before;  // kept one step before, or what v0 would have left
#endif
};

// Gradients of s_seq, of the membranes before reset (gm_seq, with GRAD_MEMBRANE) and of v_last (gv, may be null)
// -> gx_seq, gv0 and those of each lane's rate, first threshold and amount, summed over the steps. x_seq is read with
// RATE_GRAD only; total_seq and first_seq, the sum of all slopes and the one at the first threshold, with SLOPES.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    msf_backward(const io_t* __restrict__ gs_seq, const real_t* __restrict__ gm_seq, const real_t* __restrict__ gv,
                 const io_t* __restrict__ x_seq, const real_t* __restrict__ total_seq,
                 const real_t* __restrict__ first_seq, const kept_t* __restrict__ kept,
                 const real_t* __restrict__ v0, const i64* __restrict__ lengths, const real_t* __restrict__ rates,
                 const real_t* __restrict__ firsts, const real_t* __restrict__ resets, io_t* __restrict__ gx_seq,
                 real_t* __restrict__ gv0, real_t* __restrict__ grate, real_t* __restrict__ gfirst,
                 real_t* __restrict__ greset, i64 T, i64 lanes, i64 sample, i64 gs_step, i64 gm_step, i64 x_step,
                 i64 total_step, i64 first_slope_step, int rate_step, int first_step, int reset_step, real_t rate,
                 real_t amount, real_t input_scale, real_t v_reset, real_t p, real_t q, const Thresholds theta) {
  const i64 first = first_lane();
  if (first >= lanes) return;
  const Lanes own(first, {rates, rate_step, rate}, {firsts, first_step, 0}, {resets, reset_step, amount}, lengths,
                  sample);
  Pack<real_t, VEC> g = {};
  if (gv) g = load<VEC>(gv + first);
  Pack<real_t, VEC> g_rate = {}, g_first = {}, g_reset = {};
#if BEFORE
  Pack<kept_t, VEC> start;
#pragma unroll
  for (int j = 0; j < VEC; ++j) {
    const real_t v = v0[first + j];
    start.at[j] = KEEP == KEEP_CODE ? kept_t(own.fired(j, theta, v) ? 128 : 0) : kept_t(v);
  }
#endif
  // Backward in time: step i is t = T - 1 - i.
  const auto read = [&](i64 i) {
    const i64 t = T - 1 - i;
    Step at;
    at.kept = load<VEC>(kept + t * lanes + first);
    at.gs = load<VEC>(gs_seq + t * gs_step + first);
#if GRAD_MEMBRANE
    at.gm = load<VEC>(gm_seq + t * gm_step + first);
#endif
#if SLOPES
    at.total = load<VEC>(total_seq + t * total_step + first);
    at.first = load<VEC>(first_seq + t * first_slope_step + first);
#endif
#if RATE_GRAD
    at.x = load<VEC>(x_seq + t * x_step + first);
#endif
#if BEFORE
    at.before = t > 0 ? load<VEC>(kept + (t - 1) * lanes + first) : start;
#endif
    return at;
  };
  walk<UNROLL>(T, read, [&](i64 i, const Step& step) {
    const i64 t = T - 1 - i;
    Pack<io_t, VEC> gx;
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const bool runs = own.runs(j, t);
      Slopes at = slopes(own, j, step.kept.at[j], theta, p, q);
#if SLOPES
      at.total = step.total.at[j];
      at.first = step.first.at[j];
#endif
      const real_t gs_here = widen(step.gs.at[j]), m = real_t(step.kept.at[j]);
      const real_t through = DETACH || DELAY ? gs_here * at.total
                                             : RESET::spikes(gs_here, g.at[j], m, at, v_reset, own.reset[j]);
      real_t gm = through + (DELAY ? g.at[j] : RESET::kept(g.at[j], at.fired));
#if GRAD_MEMBRANE
      gm = gm + step.gm.at[j];
#endif
#if BEFORE && KEEP != KEEP_CODE
      const real_t before = step.before.at[j];
      const bool fired_before = own.fired(j, theta, before);
#if RATE_GRAD || RESET_GRAD
      const real_t s_before = own.fire(j, theta, before);
#endif
#endif
#if RATE_GRAD
      const bool reset_here = DELAY ? RESET::before_charge : t > 0;
      const real_t v = reset_here ? RESET::after(before, fired_before, s_before, v_reset, own.reset[j]) : before;
      if (runs) g_rate.at[j] += CHARGE::grad_rate(gm, widen(step.x.at[j]), v, v_reset);
#endif
#if THRESHOLD_GRAD
      if (runs) g_first.at[j] -= through;
#endif
#if RESET_GRAD && DELAY
      if (runs) g_reset.at[j] -= s_before * gm;
#elif RESET_GRAD
      if (runs) g_reset.at[j] -= own.fire(j, theta, m) * g.at[j];
#endif
      gx.at[j] = narrow(runs ? CHARGE::grad_x(gm, own.rate[j], input_scale) : real_t(0));
      real_t g_before = CHARGE::grad_v(gm, own.rate[j]);
#if DELAY && KEEP == KEEP_CODE
      g_before = RESET::kept(g_before, step.before.at[j] >= 128);
#elif DELAY
      g_before = RESET::kept(g_before, fired_before);
#endif
      g.at[j] = runs ? g_before : g.at[j];
    }
    store<VEC>(gx_seq + t * lanes + first, gx);
  });
  store<VEC>(gv0 + first, g);
  if (RATE_GRAD) store<VEC>(grate + first, g_rate);
  if (THRESHOLD_GRAD) store<VEC>(gfirst + first, g_first);
  if (RESET_GRAD) store<VEC>(greset + first, g_reset);
}
