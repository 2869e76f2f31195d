// msf.cuh - what MSF's forward and backward share: thresholds, resets, what is kept, the lanes of a thread.
//
// RESET names one of the structs reset_*.

#define KEEP_NONE 0
#define KEEP_MEMBRANE 1
#define KEEP_CODE 2
#define KEEP_STATE 3

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

// The slope at the first threshold, the sum of the slopes at all, and whether the neuron fired.
struct Slopes {
  real_t first, total;
  bool fired;
};

// The resets of resets.py. In each: after, the membrane after the reset of m, which fired at the first threshold or not
// and counts s; kept, what of the gradient g to that reaches m where the firing is held fixed; spikes, what reaches m
// through its spikes, from the gradients of the count (gs) and of the membrane after the reset (gv). r is the reset
// potential, q the amount of a soft reset per spike.
struct reset_hard {
  static constexpr bool before_charge = true;  // a delayed reset acts on the membrane left by the last step
  // A select: NaN and inf must not leak out of a lane that was reset.
  FORMULA after(real_t m, bool fired, real_t s, real_t r, real_t q) { return fired ? r : m; }
  FORMULA kept(real_t g, bool fired) { return fired ? real_t(0) : g; }
  FORMULA spikes(real_t gs, real_t gv, real_t m, const Slopes& at, real_t r, real_t q) {
    const real_t g = (gs + gv * (r - m)) * at.first;
    return LEVELS > 1 ? g + gs * (at.total - at.first) : g;
  }
};

struct reset_soft {
  static constexpr bool before_charge = false;
  FORMULA after(real_t m, bool fired, real_t s, real_t r, real_t q) { return m - s * q; }
  FORMULA kept(real_t g, bool fired) { return g; }
  FORMULA spikes(real_t gs, real_t gv, real_t m, const Slopes& at, real_t r, real_t q) {
    return (gs - gv * q) * at.total;
  }
};

struct reset_none {
  static constexpr bool before_charge = true;
  FORMULA after(real_t m, bool fired, real_t s, real_t r, real_t q) { return m; }
  FORMULA kept(real_t g, bool fired) { return g; }
  FORMULA spikes(real_t gs, real_t gv, real_t m, const Slopes& at, real_t r, real_t q) { return gs * at.total; }
};

// A number of the neuron: a constant, or one value (step 0) or one for each lane (step 1) in memory.
struct Number {
  const real_t* at;
  int step;  // 0 or 1; not i64, with which the compiler for sm_120 reads twice
  real_t constant;

  __device__ __forceinline__ real_t of(i64 lane) const { return at ? at[lane * step] : constant; }
};

// What a thread's lanes have of their own.
struct Lanes {
  real_t rate[VEC], reset[VEC];
#if THRESHOLD_TENSOR
  real_t first[VEC];
#endif
#if LENGTHS
  i64 steps[VEC];
#endif

  __device__ __forceinline__ Lanes(i64 lane, const Number& rates, const Number& firsts, const Number& resets,
                                   const i64* lengths, i64 sample) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      rate[j] = rates.at ? CHARGE::rate(rates.of(lane + j)) : rates.constant;
      reset[j] = resets.of(lane + j);
#if THRESHOLD_TENSOR
      first[j] = firsts.of(lane + j);
#endif
#if LENGTHS
      steps[j] = lengths[(lane + j) / sample];
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

  // Threshold d of lane j: with THRESHOLD_TENSOR the given ones are distances from the first.
  __device__ __forceinline__ real_t threshold(int j, const Thresholds& theta, int d) const {
#if THRESHOLD_TENSOR
    return first[j] + theta.at[d];
#else
    return theta.at[d];
#endif
  }

  __device__ __forceinline__ bool fired(int j, const Thresholds& theta, real_t m) const {
    return m >= threshold(j, theta, 0);
  }

  __device__ __forceinline__ real_t fire(int j, const Thresholds& theta, real_t m) const {
    real_t s = 0;
#pragma unroll 8
    for (int d = 0; d < LEVELS; ++d) s += m >= threshold(j, theta, d) ? real_t(1) : real_t(0);
    return s;
  }
};

// What backward needs of m: m itself, or for the rectangular surrogate how many windows it lies in, and did it fire.
__device__ __forceinline__ kept_t keep(const Lanes& own, int j, real_t m, const Thresholds& theta, real_t width) {
#if KEEP == KEEP_CODE
  int code = own.fired(j, theta, m) ? 128 : 0;
#pragma unroll 8
  for (int d = 0; d < LEVELS; ++d) code += fabs(m - own.threshold(j, theta, d)) < width ? 1 : 0;
  return kept_t(code);
#else
  return m;
#endif
}

// All T steps, what each needs (read) and what is done with it (step). With few lanes a step waits for memory: with AHEAD
// the reads of as many steps are under way beside those of the steps at work; past the last it is read again.
template <int UNROLLED, class Read, class Do>
__device__ __forceinline__ void walk(i64 T, const Read& read, const Do& step) {
#if AHEAD
  decltype(read(i64(0))) now[AHEAD], next[AHEAD];
#pragma unroll
  for (int j = 0; j < AHEAD; ++j) next[j] = read(j < T ? j : T - 1);
  for (i64 t = 0; t < T;) {
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) {
      const i64 later = t + AHEAD + j;
      now[j] = next[j];
      next[j] = read(later < T ? later : T - 1);
    }
#pragma unroll
    for (int j = 0; j < AHEAD && t < T; ++j, ++t) step(t, now[j]);
  }
#else
#pragma unroll UNROLLED
  for (i64 t = 0; t < T; ++t) step(t, read(t));
#endif
}

__device__ __forceinline__ i64 first_lane() { return ((i64)blockIdx.x * blockDim.x + threadIdx.x) * VEC; }
