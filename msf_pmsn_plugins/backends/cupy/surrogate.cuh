// surrogate.cuh - the surrogate derivatives of surrogate.py, in its order of operations.
//
// SURROGATE names one of the structs surrogate_*. p and q are its two constants of the width a, computed in double on
// the host (SLOPES in arguments.py) and rounded once.

struct surrogate_rectangular {  // p = a, q = 0.5 / a
  FORMULA slope(real_t u, real_t p, real_t q) { return fabs(u) < p ? q : real_t(0); }
};

struct surrogate_sigmoid {  // p = a
  FORMULA slope(real_t u, real_t p, real_t q) {
    const real_t s = 1 / (1 + exp(-(p * u)));
    return (1 - s) * s * p;
  }
};

struct surrogate_atan {  // p = pi / 2 * a, q = a / 2
  FORMULA slope(real_t u, real_t p, real_t q) {
    const real_t t = u * p;
    return q / (1 + t * t);
  }
};

struct surrogate_gaussian {  // p = a, q = a * sqrt(2 pi)
  FORMULA slope(real_t u, real_t p, real_t q) {
    const real_t t = u / p;
    return exp(real_t(-0.5) * (t * t)) / q;
  }
};

struct surrogate_triangle {  // p = a
  FORMULA slope(real_t u, real_t p, real_t q) {
    const real_t t = 1 - fabs(u) / p;
    // Not fmax, which would turn NaN into 0.
    return (t < 0 ? real_t(0) : t) / p;
  }
};
