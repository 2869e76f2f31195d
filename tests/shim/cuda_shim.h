// cuda_shim.h - the CUDA words that the kernels use, for g++. Put before the kernel text with -include.
//
// A kernel becomes an ordinary function; threadIdx and its kin are globals that the scheduler (scheduler.cpp) sets
// before it runs a thread. Threads are fibers on one operating-system thread, so a barrier is a switch to the
// scheduler. Blocks run one after another, in an order that the launch chooses.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline, unused))
#define __launch_bounds__(...)
#define __restrict__ __restrict

// Shared memory is static: one block is alive at a time. SHIM_POISON collects it in one section, which the scheduler
// fills with NaN before each block; without it the sanitizers can put red zones around it.
#ifdef SHIM_POISON
#define __shared__ __attribute__((section("shim_shared"))) static
#else
#define __shared__ static
#endif

struct dim3 {
  unsigned x, y, z;
};

namespace shim {
extern "C" {
extern dim3 shim_thread, shim_block, shim_block_size, shim_grid;
void shim_barrier(int line);
}
}  // namespace shim

#define threadIdx shim::shim_thread
#define blockIdx shim::shim_block
#define blockDim shim::shim_block_size
#define gridDim shim::shim_grid
#define __syncthreads() shim::shim_barrier(__LINE__)
