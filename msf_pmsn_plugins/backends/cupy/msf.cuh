// msf.cuh - what MSF's forward and backward share: thresholds, resets, what is kept, the lanes of a thread.
//
// RESET names one of the structs reset_*.

#define KEEP_NONE 0
#define KEEP_MEMBRANE 1
#define KEEP_CODE 2

#if KEEP == KEEP_CODE
typedef unsigned char kept_t;
#else
typedef real_t kept_t;
#endif

// Ascending. Passed by value they lie in the constant bank; the parameters of a kernel hold 4 KB in all.
struct Thresholds {
#if BY_VALUE
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

// The slope at the first threshold, the sum of the slopes at all, and whether the neuron fired.
struct Slopes {
  real_t first, total;
  bool fired;
};

// In each: after, the membrane after the reset, from m and the count s; grad, the gradient of m, from those of the count
// (gs) and of the membrane after the reset (gv), of a detached reset or not. Selects: NaN and inf must not leak out of a
// lane that was reset.
struct reset_hard {
  FORMULA after(real_t m, real_t s, real_t v_reset, const Thresholds& theta) {
    return m >= theta.at[0] ? v_reset : m;
  }
  FORMULA grad(real_t gs, real_t gv, real_t m, const Slopes& g, real_t v_reset, const Thresholds& theta, bool detach) {
    // A product as in neurons/msf: an infinite gradient must show.
    const real_t back = gv * (g.fired ? real_t(0) : real_t(1));
    if (detach) return gs * g.total + back;
    const real_t gm = (gs + gv * (v_reset - m)) * g.first + back;
    return LEVELS > 1 ? gm + gs * (g.total - g.first) : gm;
  }
};

struct reset_soft {
  FORMULA after(real_t m, real_t s, real_t v_reset, const Thresholds& theta) { return m - s * theta.at[0]; }
  FORMULA grad(real_t gs, real_t gv, real_t m, const Slopes& g, real_t v_reset, const Thresholds& theta, bool detach) {
    return (detach ? gs : gs - gv * theta.at[0]) * g.total + gv;
  }
};

struct reset_none {
  FORMULA after(real_t m, real_t s, real_t v_reset, const Thresholds& theta) { return m; }
  FORMULA grad(real_t gs, real_t gv, real_t m, const Slopes& g, real_t v_reset, const Thresholds& theta, bool detach) {
    return gs * g.total + gv;
  }
};

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
      rate[j] = rates ? CHARGE::rate(rates[(first + j) * rate_step]) : constant;
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
