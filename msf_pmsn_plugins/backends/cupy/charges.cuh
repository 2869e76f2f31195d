// charges.cuh - the charges of charges.py: one step m = charge(x, v), its adjoint, and the gradient of a learned rate.
//
// CHARGE names one of the structs charge_*. k is the rate of a lane, r the reset potential, b the input scale; g is the
// gradient of m. The order of operations is that of charges.py to the last bit.

struct Charge {
  // What the formulas take for k, from a rate in memory. A constant comes from the host as that, computed in double.
  FORMULA rate(real_t k) { return k; }
  // v is the membrane before the charge.
  FORMULA grad_rate(real_t g, real_t x, real_t v, real_t r) { return 0; }
};

struct charge_decay : Charge {
  FORMULA forward(real_t x, real_t v, real_t k, real_t r, real_t b) {
    return r == 0 ? k * v + b * x : r + k * (v - r) + b * x;
  }
  FORMULA grad_x(real_t g, real_t k, real_t b) { return b * g; }
  FORMULA grad_v(real_t g, real_t k) { return k * g; }
  FORMULA grad_rate(real_t g, real_t x, real_t v, real_t r) { return g * (v - r); }
};

struct charge_if : Charge {
  FORMULA forward(real_t x, real_t v, real_t k, real_t r, real_t b) { return v + x; }
  FORMULA grad_x(real_t g, real_t k, real_t b) { return g; }
  FORMULA grad_v(real_t g, real_t k) { return g; }
};

struct charge_lif : Charge {
  FORMULA forward(real_t x, real_t v, real_t k, real_t r, real_t b) { return v - (v - r) / k + x; }
  FORMULA grad_x(real_t g, real_t k, real_t b) { return g; }
  FORMULA grad_v(real_t g, real_t k) { return g - g / k; }
};

struct charge_lif_decay_input : Charge {
  FORMULA forward(real_t x, real_t v, real_t k, real_t r, real_t b) { return v + (x - (v - r)) / k; }
  FORMULA grad_x(real_t g, real_t k, real_t b) { return g / k; }
  FORMULA grad_v(real_t g, real_t k) { return g - g / k; }
};

struct charge_simple_lif : Charge {
  FORMULA forward(real_t x, real_t v, real_t k, real_t r, real_t b) { return v + (r - v) / k + x; }
  FORMULA grad_x(real_t g, real_t k, real_t b) { return g; }
  FORMULA grad_v(real_t g, real_t k) { return g - g / k; }
};

struct charge_simple_lif_decay_input : Charge {
  FORMULA forward(real_t x, real_t v, real_t k, real_t r, real_t b) { return v + (r - v + x) / k; }
  FORMULA grad_x(real_t g, real_t k, real_t b) { return g / k; }
  FORMULA grad_v(real_t g, real_t k) { return g - g / k; }
};

// The products multiply by one factor: k is 1 - 1 / tau.
struct charge_lif_product : Charge {
  FORMULA rate(real_t tau) { return 1 - 1 / tau; }
  FORMULA forward(real_t x, real_t v, real_t k, real_t r, real_t b) { return v * k + x; }
  FORMULA grad_x(real_t g, real_t k, real_t b) { return g; }
  FORMULA grad_v(real_t g, real_t k) { return k * g; }
};

struct charge_lif_rest_zero_decay_input : Charge {
  FORMULA forward(real_t x, real_t v, real_t k, real_t r, real_t b) { return v + (x - v) / k; }
  FORMULA grad_x(real_t g, real_t k, real_t b) { return g / k; }
  FORMULA grad_v(real_t g, real_t k) { return g - g / k; }
};

struct charge_plif : Charge {
  FORMULA forward(real_t x, real_t v, real_t k, real_t r, real_t b) { return v - (v - r) * k + x; }
  FORMULA grad_x(real_t g, real_t k, real_t b) { return g; }
  FORMULA grad_v(real_t g, real_t k) { return g - g * k; }
  FORMULA grad_rate(real_t g, real_t x, real_t v, real_t r) { return -g * (v - r); }
};

struct charge_plif_decay_input : Charge {
  FORMULA forward(real_t x, real_t v, real_t k, real_t r, real_t b) { return v + (x - (v - r)) * k; }
  FORMULA grad_x(real_t g, real_t k, real_t b) { return g * k; }
  FORMULA grad_v(real_t g, real_t k) { return g - g * k; }
  FORMULA grad_rate(real_t g, real_t x, real_t v, real_t r) { return g * (x - (v - r)); }
};

// k is 1 - q; the rate that is learned is q.
struct charge_plif_product : Charge {
  FORMULA rate(real_t q) { return 1 - q; }
  FORMULA forward(real_t x, real_t v, real_t k, real_t r, real_t b) { return v * k + x; }
  FORMULA grad_x(real_t g, real_t k, real_t b) { return g; }
  FORMULA grad_v(real_t g, real_t k) { return k * g; }
  FORMULA grad_rate(real_t g, real_t x, real_t v, real_t r) { return -(g * v); }
};
