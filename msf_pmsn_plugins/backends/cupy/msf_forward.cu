// msf_forward.cu - MSF over all time steps: one thread owns VEC neighbouring lanes, their membranes in registers.
//
// Compiled for one setting at a time, with these macros:
//   IO                element type of x, s and their gradients; membranes are float (double for IO_DOUBLE)
//   VEC               lanes per thread: 128 bits of IO, or 1 where rows or pointers are not aligned to them
//   CHARGE, RESET     structs of charges.cuh and msf.cuh
//   DELAY             0 or 1: the reset acts at the next step
//   RETAKE            defined: what a state still fires is subtracted first, undecayed
//   LEVELS            number of thresholds; BY_VALUE, 0 or 1: whether they are passed by value
//   THRESHOLD_TENSOR  0 or 1: whether the first threshold lies in memory
//   KEEP              KEEP_NONE, KEEP_MEMBRANE or KEEP_CODE: what backward needs; KEEP_STATE: the state of each step
//   LENGTHS           0 or 1: whether each sample has its own number of steps
//   THREADS           in a block
//   AHEAD             steps that are read ahead of the arithmetic; 0: as far as the unrolled loop does
//
// Lanes are the elements of one step [N, *], numbered in memory order; x and the gradients of s and of the membranes
// may have any distance between steps (x_step, ...), all other sequences are contiguous.
// Compile without fused multiply-add: the bits are those of the oracle.

#include "common.cuh"
#include "charges.cuh"
#include "msf.cuh"

// x_seq -> counts s_seq, kept, v_last. rates, firsts, resets: the rate of the charge, the first threshold, the amount
// of a soft reset; null, or one value (step 0), or one per lane (step 1). lengths: one per sample of `sample` lanes.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    msf_forward(const io_t* __restrict__ x_seq, const real_t* __restrict__ v0, const i64* __restrict__ lengths,
                const real_t* __restrict__ rates, const real_t* __restrict__ firsts,
                const real_t* __restrict__ resets, io_t* __restrict__ s_seq, kept_t* __restrict__ kept,
                real_t* __restrict__ v_last, i64 T, i64 lanes, i64 sample, i64 x_step, int rate_step, int first_step,
                int reset_step, real_t rate, real_t amount, real_t input_scale, real_t v_reset, real_t width,
                const Thresholds theta) {
  const i64 first = first_lane();
  if (first >= lanes) return;
  const Lanes own(first, {rates, rate_step, rate}, {firsts, first_step, 0}, {resets, reset_step, amount}, lengths,
                  sample);
  Pack<real_t, VEC> v = load<VEC>(v0 + first);
#if DELAY
  Pack<real_t, VEC> last;  // counts of the step before
#pragma unroll
  for (int j = 0; j < VEC; ++j) last.at[j] = own.fire(j, theta, v.at[j]);
#endif
  const auto read = [=](i64 t) { return load<VEC>(x_seq + t * x_step + first); };
  walk<4>(T, read, [&](i64 t, const Pack<io_t, VEC>& x) {
    Pack<io_t, VEC> s;
#if KEEP != KEEP_NONE
    Pack<kept_t, VEC> k;
#endif
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const bool runs = own.runs(j, t);
      real_t before = v.at[j];
#if DELAY
      const bool fired = last.at[j] > 0;
      if (RESET::before_charge) before = RESET::after(before, fired, last.at[j], v_reset, own.reset[j]);
#endif
      real_t m = CHARGE::forward(widen(x.at[j]), before, own.rate[j], v_reset, input_scale);
#if DELAY
      if (!RESET::before_charge) m = RESET::after(m, fired, last.at[j], v_reset, own.reset[j]);
#endif
#ifdef RETAKE
      const real_t taken = own.fire(j, theta, before);
      m = RESET::after(m, taken > 0, taken, v_reset, own.reset[j]);
#endif
      const real_t count = own.fire(j, theta, m);
      s.at[j] = narrow(runs ? count : real_t(0));
#if KEEP != KEEP_NONE
      k.at[j] = runs ? keep(own, j, m, theta, width) : kept_t(0);
#endif
#if DELAY
      last.at[j] = runs ? count : last.at[j];
      v.at[j] = runs ? m : v.at[j];
#elif defined(RETAKE)
      v.at[j] = runs ? RESET::after(m, count != taken, count - taken, v_reset, own.reset[j]) : v.at[j];
#else
      v.at[j] = runs ? RESET::after(m, own.fired(j, theta, m), count, v_reset, own.reset[j]) : v.at[j];
#endif
#if KEEP == KEEP_STATE
      k.at[j] = v.at[j];
#endif
    }
    store<VEC>(s_seq + t * lanes + first, s);
#if KEEP != KEEP_NONE
    store<VEC>(kept + t * lanes + first, k);
#endif
  });
  store<VEC>(v_last + first, v);
}
