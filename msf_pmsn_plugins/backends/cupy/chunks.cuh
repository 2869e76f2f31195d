// chunks.cuh - PMSN with time in chunks, for few lanes and many steps.
//
// A lane is linear in its state but for the soma, so its chunks of `span` steps can be walked at once, each as a lane
// of its own, v = chunk * lanes + lane: from zero (pmsn_chunk), which says how each chunk moves the state (pmsn_carry),
// then from the state that each begins with, for the drives. Only the soma walks all steps (pmsn_soma), with next to
// nothing to do in each.

#define AHEAD_CARRY (MODES <= 8 ? 4 : 2)  // chunks whose ends are read at once

struct Chunk {
  i64 lane, channel, first, steps;

  __device__ __forceinline__ Chunk(i64 v, const i64* lengths, i64 T, i64 lanes, i64 channels, i64 positions, i64 span) {
    lane = v % lanes;
    channel = lane / positions % channels;
    first = v / lanes * span;
    const i64 left = valid_steps(lengths, lane / (channels * positions), T) - first;
    steps = left < 0 ? 0 : left < span ? left : span;
  }
};

// Without `starts`: x_seq -> ends, the state that each chunk ends with if it begins with 0. With them: -> y_seq.
//
// Backward also asks for p = dz/de (see gather.cuh), with `starts` -> p_ends, and cleans x (see modes.cuh): without
// them the step of the first loss of each chunk -> lost, or T; with them lost holds that of each lane.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_chunk(const io_t* __restrict__ x_seq, const real_t* __restrict__ starts, const real_t* __restrict__ e,
               const real_t* __restrict__ w, const real_t* __restrict__ d, const i64* __restrict__ lengths,
               real_t* __restrict__ ends, real_t* __restrict__ p_ends, i64* __restrict__ lost,
               real_t* __restrict__ y_seq, i64 T, i64 lanes, i64 channels, i64 positions, i64 span, i64 chunks,
               i64 x_step) {
  const i64 v = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (v >= lanes * chunks) return;
  const Chunk own(v, lengths, T, lanes, channels, positions, span);
  const Modes<MODES> modes(e, w, own.channel, 0);
  const real_t gain = d[own.channel];
  const io_t* const from = x_seq + own.first * x_step + own.lane;
  State<MODES> z;
  if (starts) z = State<MODES>(starts, v, 0);
#if BACKWARD
  State<MODES> p;
  const i64 gone = starts ? lost[own.lane] : T;
  i64 first_lost = T;
#endif
  Stream<AHEAD> x_ahead;
  if (own.steps > 0) x_ahead.fetch(from, x_step, 0, own.steps);
  for (i64 t = 0; t < own.steps;) {
    x_ahead.fetch(from, x_step, t + AHEAD, own.steps);
#pragma unroll
    for (int j = 0; j < AHEAD && t < own.steps; ++j, ++t) {
      const real_t given = x_ahead.now[j];
      const i64 now = own.first + t;
#if BACKWARD
      const bool good = is_finite(given);
      const real_t x = good ? given : real_t(0);
      if (!good && first_lost == T) first_lost = now;
#pragma unroll
      for (int m = 0; m < MODES; ++m)
        advance(p.re[m], p.im[m], modes.er[m], modes.ei[m], z.re[m], z.im[m]);
#else
      const real_t x = is_finite(given) ? given : given - given;
#endif
      advance(z, modes, x);
      if (starts) {
        real_t y = drive(z, modes, gain, x);
#if BACKWARD
        y = now < gone ? y : real_t(nan(""));
#endif
        y_seq[now * lanes + own.lane] = y;
      }
    }
  }
  if (!starts) z.save(ends, v);
#if BACKWARD
  if (starts) p.save(p_ends, v);
  if (!starts) lost[v] = first_lost;
#endif
}

// a to the power of n, less 1 (back: conj(a)), of each mode. In double: it stands for n roundings.
__device__ __noinline__ State<MODES> powers(const real_t* e, i64 channel, i64 n, bool back) {
  State<MODES> power;
#pragma unroll
  for (int m = 0; m < MODES; ++m) {
    const i64 at = 2 * (channel * MODES + m);
    double sr = 1 + double(e[at]), si = e[at + 1], pr = 1, pi = 0;
    for (i64 left = n; left > 0; left >>= 1) {
      if (left & 1) {
        const double re = pr * sr - pi * si;
        pi = pr * si + pi * sr;
        pr = re;
      }
      const double re = sr * sr - si * si;
      si = 2 * sr * si;
      sr = re;
    }
    power.re[m] = real_t(pr - 1);
    power.im[m] = real_t(back ? -pi : pi);
  }
  return power;
}

// parts: what each chunk ends with if it begins with 0 -> what it begins with. The first begins with `given` (null: 0),
// the last ends with `end` (may be null). back: against time and with conj(a), as gradients go. lost (may be null) of
// each chunk -> of each lane, at the places of the first chunk; a state `given` that is lost loses the lane at once.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_carry(real_t* __restrict__ parts, const real_t* __restrict__ given, const real_t* __restrict__ e,
               const i64* __restrict__ lengths, real_t* __restrict__ end, i64* __restrict__ lost, i64 T, i64 lanes,
               i64 channels, i64 positions, i64 span, i64 chunks, int back) {
  const i64 lane = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (lane >= lanes) return;
  State<MODES> z, power;
  if (given) z = State<MODES>(given, lane, 0);
#if BACKWARD
  if (lost) {
    real_t poison = 0;
    clean(z, poison);
    i64 first_lost = poison == 0 ? T : 0;
    for (i64 g = 0; g < chunks; ++g) {
      const i64 other = lost[g * lanes + lane];
      first_lost = other < first_lost ? other : first_lost;
    }
    lost[lane] = first_lost;
  }
#endif
  const auto place = [=](i64 i) { return (back ? chunks - 1 - i : i) * lanes + lane; };
  i64 known = -1;
  for (i64 i = 0; i < chunks;) {
    State<MODES> part[AHEAD_CARRY];
#pragma unroll
    for (int j = 0; j < AHEAD_CARRY; ++j)
      if (i + j < chunks) part[j] = State<MODES>(parts, place(i + j), 0);
#pragma unroll
    for (int j = 0; j < AHEAD_CARRY && i < chunks; ++j, ++i) {
      const i64 v = place(i);
      const Chunk own(v, lengths, T, lanes, channels, positions, span);
      if (own.steps != known) power = powers(e, own.channel, known = own.steps, back);
      z.save(parts, v);
#pragma unroll
      for (int m = 0; m < MODES; ++m)
        advance(z.re[m], z.im[m], power.re[m], power.im[m], part[j].re[m], part[j].im[m]);
    }
  }
  if (end) z.save(end, lane);
}
