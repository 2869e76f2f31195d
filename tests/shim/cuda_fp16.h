// cuda_fp16.h - the part of CUDA's header that the kernels use, for g++.
#pragma once

struct __half {
  _Float16 value;
};
inline float __half2float(__half h) { return (float)h.value; }
inline __half __float2half_rn(float f) { return {(_Float16)f}; }
