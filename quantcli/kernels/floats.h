// Small floats: codes of weights, rounded as a cast does.

#pragma once

#include "vectors.h"

namespace {

inline float power_of_two(float a) { return from_bits(to_bits(a) & 0x7f800000u); }
inline Sixteen power_of_two(Sixteen a) { return floats_of(bits_of(a) & all_whole(0x7f800000)); }
inline Eight power_of_two(Eight a) {
  EightInts bits;
  std::memcpy(&bits, &a, sizeof bits);
  bits &= 0x7f800000;
  std::memcpy(&a, &bits, sizeof bits);
  return a;
}

// What weights are divided by for codes of levels: only groups of zeros have the scale 0.
inline float level_divisor_of(float scale) { return scale == 0 ? 1.0f : scale; }

// A magnitude on its way to one of the small floats. `magic` is so large that a sum with it has no room for the bits
// that small floats do not have.
template <class Number>
struct Landing {
  Number binade, magic, sum;
  Number value() const { return sum - magic; }
};

// Adding 1.5 * 2^23 times the distance of the small floats around a number leaves it rounded to one of them, ties to
// the even one; the low bits of the sum count that distance. Below the smallest normal number it no longer shrinks.
struct Rounding {
  float lowest;     // smallest normal number
  float step, top;  // distance of neighbours around 1, times 1.5 * 2^23
  int shift;        // bits of the mantissa that are lost

  explicit Rounding(const Small& small)
      : lowest(from_bits(uint32_t(small.lowest + 127) << 23)),
        step(1.5f * float(1 << (23 - small.mantissa))),
        top(small.top),
        shift(23 - small.mantissa) {}

  // Where a number from 0 to the largest one lands.
  template <class Number>
  static Landing<Number> land(Number m, Number lowest, Number step) {
    const Number binade = larger(power_of_two(m), lowest), magic = binade * step;
    return {binade, magic, m + magic};
  }

  // Its code without a sign.
  uint32_t code(const Landing<float>& at) const {
    return ((to_bits(at.binade) - to_bits(lowest)) >> shift) + (to_bits(at.sum) - to_bits(at.magic));
  }
};

inline void quantize_floats(const float* x, int n, float scale, const Small& small, float low, float high, float* code,
                            float* error, int32_t* clipped) {
  const Rounding to(small);
  const float divisor = level_divisor_of(scale);
  const int sign = small.top > 6 ? 7 : 3;  // of E2M1 a code has 4 bits
  for (int i = 0; i < n; ++i) {
    const float t = x[i] / divisor;
    clipped[i] += (t < low) | (t > high);
    const float a = std::fabs(t);
    const Landing<float> at = Rounding::land(lesser(a, to.top), to.lowest, to.step);
    const uint32_t magnitude = to.code(at), negative = magnitude ? to_bits(t) >> 31 : 0;
    code[i] = float(int32_t(magnitude | negative << sign));
    error[i] = x[i] - (t < 0 ? -at.value() : at.value()) * scale;
  }
}

}  // namespace
