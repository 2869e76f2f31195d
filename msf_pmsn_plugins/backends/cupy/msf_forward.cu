// msf_forward.cu - MSF over all time steps: one thread owns VEC neighbouring lanes and keeps their membranes in registers.
//
// Compiled for one setting at a time, with these macros:
//   IO              element type of x, s and their gradients; membranes are float (double for IO_DOUBLE)
//   VEC             lanes per thread: 128 bits of IO, or 1 where rows or pointers are not aligned to them
//   CHARGE, RESET   structs of charges.cuh and msf.cuh
//   LEVELS          number of thresholds; BY_VALUE, 0 or 1: whether they are passed by value
//   KEEP            KEEP_NONE, KEEP_MEMBRANE or KEEP_CODE, what backward needs
//   LENGTHS         0 or 1: whether each sample has its own number of steps
//   THREADS         in a block
//
// Lanes are the elements of one step [N, *], numbered in memory order; x and the gradients of s and of the membranes
// may have any distance between steps (x_step, ...), all other sequences are contiguous.
// Compile without fused multiply-add: the bits are those of neurons/msf.

#include "common.cuh"
#include "charges.cuh"
#include "msf.cuh"

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
      const real_t m = CHARGE::forward(widen(x.at[j]), v.at[j], own.rate[j], v_reset, input_scale);
      const real_t count = fire(m, theta);
      s.at[j] = narrow(runs ? count : real_t(0));
#if KEEP != KEEP_NONE
      k.at[j] = runs ? keep(m, theta, width) : kept_t(0);
#endif
      v.at[j] = runs ? RESET::after(m, count, v_reset, theta) : v.at[j];
    }
    store<VEC>(s_seq + t * lanes + first, s);
#if KEEP != KEEP_NONE
    store<VEC>(kept + t * lanes + first, k);
#endif
  }
  store<VEC>(v_last + first, v);
}
