// pmsn_backward.cu - the adjoint of PMSN over all time steps: one thread owns one lane.
//
// Compiled for one setting at a time, with the macros of pmsn_forward.cu and these:
//   SURROGATE      a struct of surrogate.cuh
//   SLOPES         0 or 1: the gradients of the spikes come multiplied by the slopes, SURROGATE is not used
//   GRAD_DRIVE, GRAD_MEMBRANE   0 or 1: whether the drives, the membranes have gradients of their own
//   GROUPS, FUSED  see gather.cuh
//
// Backward keeps nothing of forward. It walks forward in time again for the gradient g of each drive (pmsn_drive) and
// for the sums of the parameters (pmsn_gather), then backward for the gradient of x (pmsn_adjoint). g lies where the
// gradient of x will be, but for a half x, of which the gradient is rounded at the end alone.

#define BACKWARD 1

#include "common.cuh"
#include "soma.cuh"
#include "surrogate.cuh"
#include "modes.cuh"

// Products with slopes are not rounded to halves.
#if SLOPES
typedef real_t gs_t;
#else
typedef io_t gs_t;
#endif

// The threshold and the constants of the surrogate.
struct Fire {
  real_t theta, p, q;
};

// Gradient of the drive from those of the spike and of the membrane; r moves on.
__device__ __forceinline__ real_t drive_grad(real_t gs, const real_t* gm, real_t y, real_t& r, const Fire& fire) {
  const Soma next = RESET::step(y, r, fire.theta);
  r = next.r;
  real_t g = SLOPES ? gs : gs * SURROGATE::slope(BURST::slope_argument(next.v, fire.theta), fire.p, fire.q);
  if (GRAD_MEMBRANE) g += *gm;
  return !RESET::clamps || y > 0 ? g : real_t(0);
}

// With RESET::cumulative each drive also moves all later membranes. The gradients of the membranes in g_seq become
// those of the drives; gr, that of r_last, may be null.
__device__ __forceinline__ void accumulate(real_t* g_seq, const real_t* gy_seq, const real_t* gr, real_t* gr0, i64 lane,
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

#if !CHUNKED && !FUSED

// Gradients of s_seq, y_seq (with GRAD_DRIVE), m_seq (with GRAD_MEMBRANE) and r_last (gr, may be null) -> g_seq, and
// with RESET::cumulative gr0.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_drive(const gs_t* __restrict__ gs_seq, const real_t* __restrict__ gy_seq, const real_t* __restrict__ gm_seq,
               const real_t* __restrict__ gr, const io_t* __restrict__ x_seq, const real_t* __restrict__ r0,
               const real_t* __restrict__ z0, const real_t* __restrict__ e, const real_t* __restrict__ w,
               const real_t* __restrict__ d, const i64* __restrict__ lengths, real_t* __restrict__ g_seq,
               real_t* __restrict__ gr0, i64 T, i64 lanes, i64 channels, i64 positions, i64 gs_step, i64 gy_step,
               i64 gm_step, i64 x_step, real_t theta, real_t p, real_t q) {
  const i64 lane = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (lane >= lanes) return;
  const i64 c = lane / positions % channels;
  const i64 steps = valid_steps(lengths, lane / (channels * positions), T);
  const Modes<MODES> own(e, w, c, 0);
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
      real_t g = drive_grad(gs_ahead.now[j], gm_seq + t * gm_step + lane, drive(z, own, gain, x) + poison, r, fire);
      if (GRAD_DRIVE && !RESET::cumulative) g += gy_seq[t * gy_step + lane];
      g_seq[t * lanes + lane] = g;
    }
  }
  if (RESET::cumulative) accumulate(g_seq, gy_seq, gr, gr0, lane, steps, lanes, gy_step, theta);
}

#endif

#if CHUNKED

#include "chunks.cuh"

#define AHEAD_SOMA 16

// The soma alone. Gradients as in pmsn_drive; g_seq holds the drives at first.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_soma(const gs_t* __restrict__ gs_seq, const real_t* __restrict__ gy_seq, const real_t* __restrict__ gm_seq,
              const real_t* __restrict__ gr, const real_t* __restrict__ r0, const i64* __restrict__ lengths,
              real_t* __restrict__ g_seq, real_t* __restrict__ gr0, i64 T, i64 lanes, i64 columns, i64 gs_step,
              i64 gy_step, i64 gm_step, real_t theta, real_t p, real_t q) {
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
      real_t g = drive_grad(gs_ahead.now[j], gm_seq + t * gm_step + lane, y_ahead.now[j], r, fire);
      if (GRAD_DRIVE && !RESET::cumulative) g += gy_seq[t * gy_step + lane];
      g_seq[t * lanes + lane] = g;
    }
  }
  if (RESET::cumulative) accumulate(g_seq, gy_seq, gr, gr0, lane, steps, lanes, gy_step, theta);
}

#endif

#include "gather.cuh"

// g_seq -> gx_seq, which may be the same memory; gz, the gradient of z_last -> gz0, that of z0. Both may be null. With CHUNKED
// each chunk is a lane: without gz, which is then that of the state each ends with, gx_seq is not written.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_adjoint(const real_t* g_seq, io_t* gx_seq, const real_t* __restrict__ gz, const real_t* __restrict__ e,
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
  const Modes<MODES> own(e, w, c, 0);
  const real_t gain = d[c];
  State<MODES> after;
  if (gz) after = State<MODES>(gz, v, 0);
  // Backward in time: step i is t = begin + steps - 1 - i.
  const i64 last = (begin + steps - 1) * lanes + lane;
  Stream<AHEAD> g_ahead;
  if (steps > 0) g_ahead.fetch(g_seq + last, -lanes, 0, steps);
  for (i64 i = 0; i < steps;) {
    g_ahead.fetch(g_seq + last, -lanes, i + AHEAD, steps);
#pragma unroll
    for (int j = 0; j < AHEAD && i < steps; ++j, ++i) {
      const real_t g = g_ahead.now[j];
      real_t gx = gain * g;
#pragma unroll
      for (int m = 0; m < MODES; ++m) {
        const real_t re = fma(own.wr[m], g, after.re[m]), im = fma(-own.wi[m], g, after.im[m]);
        gx += re;
        // times 1 + conj(e)
        after.re[m] = re + fma(own.er[m], re, own.ei[m] * im);
        after.im[m] = im + fma(own.er[m], im, -(own.ei[m] * re));
      }
      if (writes) gx_seq[last - i * lanes] = narrow(gx);
    }
  }
  if (writes)
    for (i64 t = begin + steps; t < end; ++t) gx_seq[t * lanes + lane] = narrow(0);
  if (gz0) after.save(gz0, v);
}
