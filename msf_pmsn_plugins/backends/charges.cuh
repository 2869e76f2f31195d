// charges.cuh - the charges of charges.py: one step m = charge(x, v), its adjoint, and the gradient of a learned rate.
//
// CHARGE chooses one. k is the rate of a lane, r the reset potential, b the input scale. The order of operations is
// that of charges.py to the last bit.

#define CHARGE_DECAY 0
#define CHARGE_IF 1
#define CHARGE_LIF 2
#define CHARGE_LIF_DECAY_INPUT 3
#define CHARGE_SIMPLE_LIF 4
#define CHARGE_SIMPLE_LIF_DECAY_INPUT 5
#define CHARGE_LIF_PRODUCT 6
#define CHARGE_LIF_REST_ZERO_DECAY_INPUT 7
#define CHARGE_PLIF 8
#define CHARGE_PLIF_DECAY_INPUT 9
#define CHARGE_PLIF_PRODUCT 10

// The products multiply by one factor. A constant rate arrives as that factor, computed in double on the host.
__device__ __forceinline__ real_t rate_from_tensor(real_t k) {
#if CHARGE == CHARGE_LIF_PRODUCT
  return 1 - 1 / k;
#elif CHARGE == CHARGE_PLIF_PRODUCT
  return 1 - k;
#else
  return k;
#endif
}

__device__ __forceinline__ real_t charge(real_t x, real_t v, real_t k, real_t r, real_t b) {
#if CHARGE == CHARGE_DECAY
  return r == 0 ? k * v + b * x : r + k * (v - r) + b * x;
#elif CHARGE == CHARGE_IF
  return v + x;
#elif CHARGE == CHARGE_LIF
  return v - (v - r) / k + x;
#elif CHARGE == CHARGE_LIF_DECAY_INPUT
  return v + (x - (v - r)) / k;
#elif CHARGE == CHARGE_SIMPLE_LIF
  return v + (r - v) / k + x;
#elif CHARGE == CHARGE_SIMPLE_LIF_DECAY_INPUT
  return v + (r - v + x) / k;
#elif CHARGE == CHARGE_LIF_PRODUCT || CHARGE == CHARGE_PLIF_PRODUCT
  return v * k + x;
#elif CHARGE == CHARGE_LIF_REST_ZERO_DECAY_INPUT
  return v + (x - v) / k;
#elif CHARGE == CHARGE_PLIF
  return v - (v - r) * k + x;
#elif CHARGE == CHARGE_PLIF_DECAY_INPUT
  return v + (x - (v - r)) * k;
#else
#error "unknown CHARGE"
#endif
}

// Gradient of x, from the gradient g of m.
__device__ __forceinline__ real_t charge_grad_x(real_t g, real_t k, real_t b) {
#if CHARGE == CHARGE_DECAY
  return b * g;
#elif CHARGE == CHARGE_LIF_DECAY_INPUT || CHARGE == CHARGE_SIMPLE_LIF_DECAY_INPUT || \
    CHARGE == CHARGE_LIF_REST_ZERO_DECAY_INPUT
  return g / k;
#elif CHARGE == CHARGE_PLIF_DECAY_INPUT
  return g * k;
#else
  return g;
#endif
}

// Gradient of v, from the gradient g of m.
__device__ __forceinline__ real_t charge_grad_v(real_t g, real_t k) {
#if CHARGE == CHARGE_DECAY || CHARGE == CHARGE_LIF_PRODUCT || CHARGE == CHARGE_PLIF_PRODUCT
  return k * g;
#elif CHARGE == CHARGE_IF
  return g;
#elif CHARGE == CHARGE_PLIF || CHARGE == CHARGE_PLIF_DECAY_INPUT
  return g - g * k;
#else
  return g - g / k;
#endif
}

// Gradient of k where it can be learned, from the gradient g of m; v is the membrane before the charge.
__device__ __forceinline__ real_t charge_grad_rate(real_t g, real_t x, real_t v, real_t r) {
#if CHARGE == CHARGE_DECAY
  return g * (v - r);
#elif CHARGE == CHARGE_PLIF
  return -g * (v - r);
#elif CHARGE == CHARGE_PLIF_DECAY_INPUT
  return g * (x - (v - r));
#elif CHARGE == CHARGE_PLIF_PRODUCT
  return -(g * v);
#else
  return 0;
#endif
}
