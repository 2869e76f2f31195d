// soma.cuh - the soma of PMSN: one step of charge, fire and reset, and the argument of its surrogate.
//
// RESET names one of the structs reset_*, BURST one of burst_*: what a spike counts. v and r are in units of the
// threshold theta.

// s: spike or count; v: membrane before reset; r: residual after it. NaN never fires and stays NaN.
struct Soma {
  real_t s, v, r;
};

// count: what the membrane's k whole thresholds emit. slope_argument: where the surrogate is read, in volts.
struct burst_off {
  static constexpr bool counts = false;
  FORMULA count(real_t k) { return 1; }
  FORMULA slope_argument(real_t v, real_t theta) { return v * theta - theta; }
};

struct burst_nearest {
  static constexpr bool counts = true;
  FORMULA count(real_t k) { return k; }
  FORMULA slope_argument(real_t v, real_t theta) {
    const real_t k = rint(v);
    return v * theta - theta * (k < 1 ? real_t(1) : k);
  }
};

struct burst_sawtooth {
  static constexpr bool counts = true;
  FORMULA count(real_t k) { return k; }
  FORMULA slope_argument(real_t v, real_t theta) { return fmod(fabs(v * theta - theta), theta); }
};

__device__ __forceinline__ real_t spikes(real_t k) { return k >= 1 ? BURST::count(k) : real_t(0); }

// Not fmax, which would turn NaN into 0.
__device__ __forceinline__ real_t relu(real_t y) { return y < 0 ? real_t(0) : y; }

// In each: step, from the drive y and the residual r; clamps, whether negative drives count as none; cumulative,
// whether a drive moves all later membranes; on_grid, whether the residual has a grid.
struct Reset {
  static constexpr bool clamps = false, cumulative = false, on_grid = false;
};

struct reset_floor : Reset {
  static constexpr bool clamps = true;
  static __device__ __forceinline__ Soma step(real_t y, real_t r, real_t theta) {
    Soma next;
    next.v = r + relu(y) / theta;
    const real_t k = floor(next.v);
    next.s = spikes(k);
    next.r = next.v - k;
    return next;
  }
};

// The same with the residual on a grid of 2^-24 thresholds, where sums are exact in any order.
struct reset_fixed : reset_floor {
  static constexpr bool on_grid = true;
  static __device__ __forceinline__ Soma step(real_t y, real_t r, real_t theta) {
    constexpr double grid = 16777216.0;  // 2^24
    Soma next;
    const double drive = double(relu(y) / theta);
    const double rest = double(r);
    if (drive != drive || rest != rest) {
      next.s = 0;
      next.v = next.r = real_t(drive + rest);
      return next;
    }
    const i64 c = i64(rint(rest * grid)) + i64(rint((drive < grid * 16384 ? drive : grid * 16384) * grid));
    next.s = spikes(real_t(c >> 24));
    next.v = real_t(double(c) / grid);
    next.r = real_t(double(c & 16777215) / grid);
    return next;
  }
};

struct reset_serial : Reset {
  static __device__ __forceinline__ Soma step(real_t y, real_t r, real_t theta) {
    Soma next;
    next.v = r + y / theta;
    const real_t k = floor(next.v);
    next.s = spikes(k);
    next.r = next.v - (k < 0 ? real_t(0) : k);
    return next;
  }
};

struct reset_none : Reset {
  static __device__ __forceinline__ Soma step(real_t y, real_t r, real_t theta) {
    Soma next;
    next.v = y / theta;
    next.s = spikes(floor(next.v));
    next.r = r;
    return next;
  }
};

struct reset_cumulative : Reset {
  static constexpr bool cumulative = true;
  static __device__ __forceinline__ Soma step(real_t y, real_t r, real_t theta) {
    Soma next;
    next.v = r + y / theta;
    next.s = spikes(floor(next.v));
    next.r = next.v;
    return next;
  }
};
