// surrogate.cuh - the surrogate derivatives of surrogate.py, in its order of operations.
//
// SURROGATE chooses one. Its two constants are computed in double on the host and rounded once:
//
//                 p             q
//   rectangular   a             0.5 / a
//   sigmoid       a             -
//   atan          pi / 2 * a    a / 2
//   gaussian      a             a * sqrt(2 pi)
//   triangle      a             -

#define SURROGATE_RECTANGULAR 0
#define SURROGATE_SIGMOID 1
#define SURROGATE_ATAN 2
#define SURROGATE_GAUSSIAN 3
#define SURROGATE_TRIANGLE 4

__device__ __forceinline__ real_t slope(real_t u, real_t p, real_t q) {
#if SURROGATE == SURROGATE_RECTANGULAR
  return fabs(u) < p ? q : real_t(0);
#elif SURROGATE == SURROGATE_SIGMOID
  const real_t s = 1 / (1 + exp(-(p * u)));
  return (1 - s) * s * p;
#elif SURROGATE == SURROGATE_ATAN
  const real_t t = u * p;
  return q / (1 + t * t);
#elif SURROGATE == SURROGATE_GAUSSIAN
  const real_t t = u / p;
  return exp(real_t(-0.5) * (t * t)) / q;
#elif SURROGATE == SURROGATE_TRIANGLE
  const real_t t = 1 - fabs(u) / p;
  // Not fmax, which would turn NaN into 0.
  return (t < 0 ? real_t(0) : t) / p;
#else
#error "unknown SURROGATE"
#endif
}
