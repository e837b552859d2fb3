// Codes of small floats, rounded as a cast does, and the search for the scales of their groups.

#pragma once

#include "common.h"

namespace {

// Adding 1.5 * 2^23 times the distance of the small floats around a number leaves it rounded to one of them, ties to
// the even one; the low bits of the sum count that distance. Below the smallest normal number it no longer shrinks.
struct Rounding {
  uint32_t lowest;  // bits of the smallest normal number
  float step, top;  // distance of neighbours around 1, times 1.5 * 2^23
  int mantissa;

  explicit Rounding(const Small& small)
      : lowest(uint32_t(small.lowest + 127) << 23),
        step(1.5f * float(1 << (23 - small.mantissa))),
        top(small.top),
        mantissa(small.mantissa) {}
};

inline void quantize_floats(const float* x, int n, float scale, const Small& small, float low, float high, float* code,
                            float* error, int32_t* clipped) {
  const Rounding to(small);
  const float divisor = scale == 0 ? 1.0f : scale;
  const int shift = 23 - to.mantissa, sign = small.top > 6 ? 7 : 3;  // of E2M1 a code has 4 bits
  for (int i = 0; i < n; ++i) {
    const float t = x[i] / divisor;
    clipped[i] += (t < low) | (t > high);
    const float a = std::fabs(t), m = a < to.top ? a : to.top;
    const uint32_t own = to_bits(m) & 0x7f800000u, binade = own < to.lowest ? to.lowest : own;
    const float magic = from_bits(binade) * to.step, sum = m + magic;
    const uint32_t magnitude = ((binade - to.lowest) >> shift) + (to_bits(sum) - to_bits(magic));
    const float value = sum - magic;
    const uint32_t negative = magnitude ? to_bits(t) >> 31 : 0;
    code[i] = float(int32_t(magnitude | negative << sign));
    error[i] = x[i] - (t < 0 ? -value : value) * scale;
  }
}

typedef uint32_t EightBits __attribute__((vector_size(32)));

// Errors of magnitudes, in steps, when they are rounded.
inline Eight rounding_errors(Eight magnitude, float reciprocal, const Rounding& to) {
  const Eight a = magnitude * reciprocal, top = to.top + Eight{};
  const Eight m = least(a, top);
  EightBits own;
  std::memcpy(&own, &m, sizeof own);
  own &= 0x7f800000u;
  EightInts binade = EightInts(own), lowest = int32_t(to.lowest) + EightInts{};
  binade = binade > lowest ? binade : lowest;
  Eight magic;
  std::memcpy(&magic, &binade, sizeof magic);
  magic *= to.step;
  return a - ((m + magic) - magic);
}

inline float rounding_error(float magnitude, float reciprocal, const Rounding& to) {
  const float a = magnitude * reciprocal, m = a < to.top ? a : to.top;
  const uint32_t own = to_bits(m) & 0x7f800000u, binade = own < to.lowest ? to.lowest : own;
  const float magic = from_bits(binade) * to.step;
  return a - ((m + magic) - magic);
}

}  // namespace
