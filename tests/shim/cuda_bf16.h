// cuda_bf16.h - the part of CUDA's header that the kernels use, for g++.
#pragma once

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 b) {
  const uint32_t word = (uint32_t)b.bits << 16;
  float f;
  memcpy(&f, &word, 4);
  return f;
}

// To the nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  uint32_t word;
  memcpy(&word, &f, 4);
  if (f != f) return {0x7fff};
  return {(uint16_t)((word + 0x7fff + ((word >> 16) & 1)) >> 16)};
}
