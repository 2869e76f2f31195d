// modes.cuh - a lane of PMSN: its modes, their state, and the steps it reads ahead.
//
// Sequences are [T, L, C, K]: lane (l*C + c)*K + k, so neighbouring threads read neighbouring elements whatever K is.
// Parameters belong to the channel c. Complex numbers lie as pairs of reals. x and the incoming gradients may have any
// distance between steps (x_step, ...), all other sequences are contiguous.

// Steps that are read ahead of the arithmetic, which would otherwise wait for memory at each of them.
#define AHEAD (MODES <= 4 ? 8 : MODES <= 8 ? 4 : IO == IO_DOUBLE ? 1 : 2)

// C++ has no empty arrays.
__device__ constexpr int room(int count) { return count > 0 ? count : 1; }

// e = a - 1 and w of COUNT modes of channel c from `first` on; modes that do not exist are 0.
template <int COUNT>
struct Modes {
  real_t er[room(COUNT)], ei[room(COUNT)], wr[room(COUNT)], wi[room(COUNT)];

  __device__ __forceinline__ Modes(const real_t* e, const real_t* w, i64 c, int first) {
#pragma unroll
    for (int m = 0; m < COUNT; ++m) {
      const i64 at = 2 * (c * MODES + first + m);
      const bool real = first + m < MODES;
      er[m] = real ? e[at] : real_t(0);
      ei[m] = real ? e[at + 1] : real_t(0);
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
  template <class T>
  __device__ __forceinline__ void fetch(const T* seq, i64 step, i64 t, i64 steps) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
      now[j] = next[j];
      next[j] = widen(seq[(t + j < steps ? t + j : steps - 1) * step]);
    }
  }
};

// z <- z + (e z + x): beside 1 a rounded factor a = 1 + e would have few digits.
__device__ __forceinline__ void advance(real_t& re, real_t& im, real_t er, real_t ei, real_t xr, real_t xi) {
  const real_t change = fma(er, re, fma(-ei, im, xr));
  im = im + fma(er, im, fma(ei, re, xi));
  re = re + change;
}

template <int COUNT>
__device__ __forceinline__ void advance(State<COUNT>& z, const Modes<COUNT>& own, real_t x) {
#pragma unroll
  for (int m = 0; m < COUNT; ++m) advance(z.re[m], z.im[m], own.er[m], own.ei[m], x, 0);
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

// x and z cleaned of NaN and inf, which would spread through sums to all lanes: zeros stand for them, and poison is NaN
// from the first of them on, else 0.
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
