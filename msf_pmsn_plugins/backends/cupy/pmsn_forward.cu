// pmsn_forward.cu - PMSN over all time steps: one thread owns one lane and keeps its modes in registers.
//
// Compiled for one setting at a time, with these macros:
//   IO             element type of x and s; all else is float (double for IO_DOUBLE)
//   MODES          any number; from 33 on (17 in double) a thread's do not fit its registers, and spill
//   RESET, BURST   structs of soma.cuh
//   LENGTHS        0 or 1: whether each leading index l has its own number of steps
//   CHUNKED        0 or 1: time is cut into chunks that are walked at once
//   THREADS        in a block
//
// Compile without fused multiply-add: where it is wanted it is written, so that every compiler gives the same bits.

#define BACKWARD 0

#include "common.cuh"
#include "soma.cuh"
#include "modes.cuh"

#if !CHUNKED

// x_seq -> spikes s_seq, where they are given also drives y_seq, membranes m_seq and residuals r_seq, last r and z.
// lengths: one per l.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_forward(const io_t* __restrict__ x_seq, const real_t* __restrict__ r0, const real_t* __restrict__ z0,
                 const real_t* __restrict__ e, const real_t* __restrict__ w, const real_t* __restrict__ d,
                 const i64* __restrict__ lengths, io_t* __restrict__ s_seq, real_t* __restrict__ y_seq,
                 real_t* __restrict__ m_seq, real_t* __restrict__ r_seq, real_t* __restrict__ r_last,
                 real_t* __restrict__ z_last, i64 T, i64 lanes, i64 channels, i64 positions, i64 x_step,
                 real_t theta) {
  const i64 lane = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (lane >= lanes) return;
  const i64 c = lane / positions % channels;
  const i64 steps = valid_steps(lengths, lane / (channels * positions), T);
  const Modes<MODES> own(e, w, c, 0);
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
      const Soma next = RESET::step(y, r, theta);
      r = next.r;
      s_seq[t * lanes + lane] = narrow(next.s);
      if (y_seq) y_seq[t * lanes + lane] = y;
      if (m_seq) m_seq[t * lanes + lane] = next.v * theta;
      if (r_seq) r_seq[t * lanes + lane] = r;
    }
  }
  for (i64 t = steps; t < T; ++t) {
    s_seq[t * lanes + lane] = narrow(0);
    if (y_seq) y_seq[t * lanes + lane] = 0;
    if (m_seq) m_seq[t * lanes + lane] = 0;
    if (r_seq) r_seq[t * lanes + lane] = r;
  }
  r_last[lane] = r;
  z.save(z_last, lane);
}

#else

#include "chunks.cuh"

#define AHEAD_SOMA 32

// The soma alone. y_seq (where s is no half, it may be s_seq) -> s_seq, m_seq and r_seq (may be null), last r.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_soma(real_t* y_seq, const real_t* __restrict__ r0, const i64* __restrict__ lengths, io_t* s_seq,
              real_t* __restrict__ m_seq, real_t* __restrict__ r_seq, real_t* __restrict__ r_last, i64 T, i64 lanes,
              i64 columns, real_t theta) {
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
      const Soma next = RESET::step(y_ahead.now[j], r, theta);
      r = next.r;
      s_seq[t * lanes + lane] = narrow(next.s);
      if (m_seq) m_seq[t * lanes + lane] = next.v * theta;
      if (r_seq) r_seq[t * lanes + lane] = r;
    }
  }
  for (i64 t = steps; t < T; ++t) {
    y_seq[t * lanes + lane] = 0;
    s_seq[t * lanes + lane] = narrow(0);
    if (m_seq) m_seq[t * lanes + lane] = 0;
    if (r_seq) r_seq[t * lanes + lane] = r;
  }
  r_last[lane] = r;
}

#endif
