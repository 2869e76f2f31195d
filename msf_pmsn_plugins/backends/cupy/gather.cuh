// gather.cuh - the gradients of PMSN's parameters: a walk forward that gathers sums, and a kernel that adds them up.

#define AHEAD_GATHER (IO == IO_DOUBLE && (BURST::counts || RESET::on_grid) ? 1 : MODES <= 8 ? 4 : 2)

// Modes that one thread of pmsn_gather takes, and its sums: gradients of their e (re, im), their w (re, im), and of d.
#define TAKEN ((MODES + GROUPS - 1) / GROUPS)
#define SUMS (4 * TAKEN + 1)

// Sensitivities p = dz/de and what they gather over time: sum g p, sum g z.
struct Gathered {
  real_t pr[room(TAKEN)], pi[room(TAKEN)], gpr[room(TAKEN)], gpi[room(TAKEN)], gzr[room(TAKEN)], gzi[room(TAKEN)];

  __device__ __forceinline__ explicit Gathered(const State<TAKEN>& p) {
#pragma unroll
    for (int m = 0; m < TAKEN; ++m) {
      pr[m] = p.re[m];
      pi[m] = p.im[m];
      gpr[m] = gpi[m] = gzr[m] = gzi[m] = 0;
    }
  }

  // p <- p + (e p + z), with z before its own step
  __device__ __forceinline__ void step(const State<TAKEN>& z, const Modes<TAKEN>& own) {
#pragma unroll
    for (int m = 0; m < TAKEN; ++m) advance(pr[m], pi[m], own.er[m], own.ei[m], z.re[m], z.im[m]);
  }

  __device__ __forceinline__ void add(const State<TAKEN>& z, real_t g) {
#pragma unroll
    for (int m = 0; m < TAKEN; ++m) {
      gpr[m] = fma(g, pr[m], gpr[m]);
      gpi[m] = fma(g, pi[m], gpi[m]);
      gzr[m] = fma(g, z.re[m], gzr[m]);
      gzi[m] = fma(g, z.im[m], gzi[m]);
    }
  }

  // The last state, whose gradient is gz, depends on e through p of the last step.
  __device__ __forceinline__ void finish(const Modes<TAKEN>& own, const State<TAKEN>& gz, real_t* sums) const {
#pragma unroll
    for (int m = 0; m < TAKEN; ++m) {
      sums[m] = own.wr[m] * gpr[m] - own.wi[m] * gpi[m] + (gz.re[m] * pr[m] + gz.im[m] * pi[m]);
      sums[TAKEN + m] = gz.im[m] * pr[m] - gz.re[m] * pi[m] - (own.wr[m] * gpi[m] + own.wi[m] * gpr[m]);
      sums[2 * TAKEN + m] = gzr[m];
      sums[3 * TAKEN + m] = -gzi[m];
    }
  }
};

// The sums for the parameters, from g_seq; with FUSED (one group, not RESET::cumulative, not CHUNKED) this kernel makes
// g_seq too, and pmsn_drive is not needed. With CHUNKED a chunk of l is an l of its own: z0 and p0 are what the chunks
// begin with.
//
// The modes are split into GROUPS, so that their sensitivities fit the registers. A block takes one group of
// blockDim.x columns (c, k) by blockDim.y values of l; blocks count through the groups, then through the columns, then
// through `rows`, which share the values of l. Each block adds what its lanes give into its own places of
// partial [rows, GROUPS, SUMS, C*K].
// Four blocks to a multiprocessor, two in double; where bursts or the fixed point need registers of their own, one.
extern "C" __global__ void __launch_bounds__(THREADS, BURST::counts || RESET::on_grid ? 1 : IO == IO_DOUBLE ? 2 : 4)
    pmsn_gather(const gs_t* __restrict__ gs_seq, const real_t* __restrict__ gy_seq, const real_t* __restrict__ gm_seq,
                const real_t* __restrict__ gz, const io_t* __restrict__ x_seq, const real_t* __restrict__ r0,
                const real_t* __restrict__ z0, const real_t* __restrict__ e, const real_t* __restrict__ w,
                const real_t* __restrict__ d, const i64* __restrict__ lengths, const real_t* __restrict__ p0,
                const i64* __restrict__ lost, real_t* __restrict__ g_seq, real_t* __restrict__ partial, i64 T, i64 leads,
                i64 channels, i64 positions, i64 span, i64 chunks, i64 rows, i64 gs_step, i64 gy_step, i64 gm_step,
                i64 x_step, real_t theta, real_t p, real_t q) {
  __shared__ real_t given[SUMS][THREADS];
  const i64 columns = channels * positions, lanes = leads * columns;
  const i64 column_blocks = (columns + blockDim.x - 1) / blockDim.x;
  const i64 group = blockIdx.x % GROUPS;
  const i64 column = blockIdx.x / GROUPS % column_blocks * blockDim.x + threadIdx.x;
  const i64 row = blockIdx.x / GROUPS / column_blocks, all = CHUNKED ? leads * chunks : leads;
  const i64 c = column < columns ? column / positions : 0;
  const int first = int(group) * TAKEN;
  const Modes<TAKEN> own(e, w, c, first);

  for (i64 top = row * blockDim.y; top < all; top += rows * blockDim.y) {
    const i64 l = top + threadIdx.y;
    real_t sums[SUMS] = {};
    if (column < columns && l < all) {
      const i64 v = l * columns + column;
#if CHUNKED
      const Chunk chunk(v, lengths, T, lanes, channels, positions, span);
      const i64 lane = chunk.lane, begin = chunk.first, steps = chunk.steps, live = lost[lane] - begin;
      const bool last = begin == (chunks - 1) * span;
      State<TAKEN> z(z0, v, first);
      Gathered gathered{State<TAKEN>(p0, v, first)};
#else
      const i64 lane = v, begin = 0, steps = valid_steps(lengths, l, T);
      const bool last = true;
      State<TAKEN> z(z0, lane, first);
      Gathered gathered{State<TAKEN>()};
#endif
      real_t poison = 0;
      clean(z, poison);
#if FUSED
      const Fire fire = {theta, p, q};
      const real_t gain = d[c];
      real_t r = r0[lane];
#endif
      // What the gradient of the drive is made of, or that gradient itself.
#if FUSED
      const i64 g_step = gs_step;
      const gs_t* const g_from = gs_seq + lane;
#else
      const i64 g_step = lanes;
      const real_t* const g_from = g_seq + begin * lanes + lane;
#endif
      const io_t* const x_from = x_seq + begin * x_step + lane;
      Stream<AHEAD_GATHER> x_ahead, g_ahead;
      if (steps > 0) {
        x_ahead.fetch(x_from, x_step, 0, steps);
        g_ahead.fetch(g_from, g_step, 0, steps);
      }
      for (i64 t = 0; t < steps;) {
        x_ahead.fetch(x_from, x_step, t + AHEAD_GATHER, steps);
        g_ahead.fetch(g_from, g_step, t + AHEAD_GATHER, steps);
#pragma unroll
        for (int j = 0; j < AHEAD_GATHER && t < steps; ++j, ++t) {
          const real_t x = cleaned(x_ahead.now[j], poison);
          gathered.step(z, own);
          advance(z, own, x);
          real_t g = g_ahead.now[j];
#if FUSED
          g = drive_grad(g, gm_seq + t * gm_step + lane, drive(z, own, gain, x) + poison, r, fire);
          if (GRAD_DRIVE) g += gy_seq[t * gy_step + lane];
          g_seq[t * lanes + lane] = g;
#endif
#if CHUNKED
          g = t < live ? g : real_t(0);
#else
          g = poison == 0 ? g : real_t(0);
#endif
          gathered.add(z, g);
          sums[SUMS - 1] = fma(g, x, sums[SUMS - 1]);
        }
      }
      gathered.finish(own, gz && last ? State<TAKEN>(gz, lane, first) : State<TAKEN>(), sums);
    }
    // All threads come here equally often. Those of a column share out its sums and add each in ascending order of l.
#pragma unroll
    for (int n = 0; n < SUMS; ++n) given[n][threadIdx.y * blockDim.x + threadIdx.x] = sums[n];
    __syncthreads();
    for (int n = threadIdx.y; n < SUMS && column < columns; n += blockDim.y) {
      real_t* const place = partial + ((row * GROUPS + group) * SUMS + n) * columns + column;
      real_t sum = top == row * blockDim.y ? real_t(0) : *place;
      for (unsigned y = 0; y < blockDim.y; ++y) sum += given[n][y * blockDim.x + threadIdx.x];
      *place = sum;
    }
    __syncthreads();
  }
}
// partial [rows, GROUPS, SUMS, C, K] -> ge, gw [C, MODES] complex, gd [C]; a block for each channel. In double, and in
// an order that depends on the shape alone.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pmsn_parameters(const real_t* __restrict__ partial, real_t* __restrict__ ge, real_t* __restrict__ gw,
                    real_t* __restrict__ gd, i64 rows, i64 channels, i64 positions) {
  __shared__ double given[THREADS];
  const i64 c = blockIdx.x;
  for (int n = 0; n <= 4 * MODES; ++n) {
    // Sum n is part (0 to 3) of mode m, which is among those of one group.
    const int part = n / room(MODES), m = n % room(MODES);
    const i64 group = n < 4 * MODES ? m / room(TAKEN) : 0;
    const i64 place = n < 4 * MODES ? part * TAKEN + m % room(TAKEN) : SUMS - 1;
    double sum = 0;
    for (i64 i = threadIdx.x; i < rows * positions; i += THREADS) {
      const i64 row = i / positions, k = i % positions;
      sum += partial[(((row * GROUPS + group) * SUMS + place) * channels + c) * positions + k];
    }
    given[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) given[threadIdx.x] += given[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      const real_t total = given[0];
      if (n == 4 * MODES)
        gd[c] = total;
      else
        (part < 2 ? ge : gw)[2 * (c * MODES + m) + part % 2] = total;
    }
    // No barrier: only thread 0 still reads, and only where it writes next.
  }
}
