// common.cuh - what the kernels share: element types and packs of lanes.
//
// IO names the element type of the sequences (IO_HALF, ..); states and sums are real_t.

#define IO_FLOAT 0
#define IO_DOUBLE 1
#define IO_HALF 2
#define IO_BFLOAT16 3

#if IO == IO_DOUBLE
typedef double io_t;
typedef double real_t;
#elif IO == IO_HALF
#include <cuda_fp16.h>
typedef __half io_t;
typedef float real_t;
__device__ __forceinline__ real_t widen(io_t e) { return __half2float(e); }
__device__ __forceinline__ io_t narrow(real_t e) { return __float2half_rn(e); }
#elif IO == IO_BFLOAT16
#include <cuda_bf16.h>
typedef __nv_bfloat16 io_t;
typedef float real_t;
__device__ __forceinline__ real_t widen(io_t e) { return __bfloat162float(e); }
__device__ __forceinline__ io_t narrow(real_t e) { return __float2bfloat16_rn(e); }
#else
typedef float io_t;
typedef float real_t;
#endif

__device__ __forceinline__ real_t widen(real_t e) { return e; }
#if IO == IO_FLOAT || IO == IO_DOUBLE
__device__ __forceinline__ io_t narrow(real_t e) { return e; }
#endif

typedef long long i64;

// The functions of the structs that a macro names: charges, surrogates, resets, bursts.
#define FORMULA static __device__ __forceinline__ real_t

// N neighbouring elements, moved in accesses of up to 128 bits.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T at[N];
};

template <int N, class T>
__device__ __forceinline__ Pack<T, N> load(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

template <int N, class T>
__device__ __forceinline__ void store(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}
