// soma.cuh - the soma of PMSN: one step of charge, fire and reset, and the argument of its surrogate.
//
// RESET is one of the modes below; BURST makes a spike a count; FIXED keeps the residual on a grid of 2^-24 thresholds,
// where sums are exact in any order (RESET_FLOOR only). v and r are in units of the threshold theta.

#define RESET_FLOOR 0
#define RESET_SERIAL 1
#define RESET_NONE 2
#define RESET_CUMULATIVE 3

#define BURST_OFF 0
#define BURST_NEAREST 1
#define BURST_SAWTOOTH 2

#define GRID 16777216.0 /* 2^24 */

// s: spike or count; v: membrane before reset; r: residual after it. NaN never fires and stays NaN.
struct Soma {
  real_t s, v, r;
};

__device__ __forceinline__ real_t spikes(real_t k) {
  return k >= 1 ? (BURST == BURST_OFF ? real_t(1) : k) : real_t(0);
}

// Not fmax, which would turn NaN into 0.
__device__ __forceinline__ real_t relu(real_t y) { return y < 0 ? real_t(0) : y; }

__device__ __forceinline__ Soma soma(real_t y, real_t r, real_t theta) {
  Soma next;
#if FIXED
  const double drive = double(relu(y) / theta);
  const double rest = double(r);
  if (drive != drive || rest != rest) {
    next.s = 0;
    next.v = next.r = real_t(drive + rest);
    return next;
  }
  const i64 c = i64(rint(rest * GRID)) + i64(rint((drive < GRID * 16384 ? drive : GRID * 16384) * GRID));
  next.s = spikes(real_t(c >> 24));
  next.v = real_t(double(c) / GRID);
  next.r = real_t(double(c & 16777215) / GRID);
#elif RESET == RESET_FLOOR
  next.v = r + relu(y) / theta;
  const real_t k = floor(next.v);
  next.s = spikes(k);
  next.r = next.v - k;
#elif RESET == RESET_SERIAL
  next.v = r + y / theta;
  const real_t k = floor(next.v);
  next.s = spikes(k);
  next.r = next.v - (k < 0 ? real_t(0) : k);
#elif RESET == RESET_NONE
  next.v = y / theta;
  next.s = spikes(next.v);
  next.r = r;
#else
  next.v = r + y / theta;
  next.s = spikes(next.v);
  next.r = next.v;
#endif
  return next;
}

// Where the surrogate is read, in volts.
__device__ __forceinline__ real_t slope_argument(real_t v, real_t theta) {
  const real_t volts = v * theta;
#if BURST == BURST_NEAREST
  const real_t k = rint(v);
  return volts - theta * (k < 1 ? real_t(1) : k);
#elif BURST == BURST_SAWTOOTH
  return fmod(fabs(volts - theta), theta);
#else
  return volts - theta;
#endif
}
