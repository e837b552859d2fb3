// Decoded weights as they are: how far two runs of them differ, and their rounding to bfloat16.
//
// A difference is exact in float64. Its square, and that of the first run's weight, is added to lane i % LANES, i
// counted from the start of the run; the lanes are folded by halves at the end.

#include "common.h"

// Of n weights and what became of them: the sum of squared errors, that of squared weights, and the largest error.
QK_EXPORT void QK_NAME(difference)(const float* before, const float* after, int64_t n, double* found) {
  double sse[LANES] = {}, power[LANES] = {}, worst[LANES] = {};
  for (int64_t at = 0; at < n; at += LANES) {
    const int count = n - at < LANES ? int(n - at) : LANES;
    for (int i = 0; i < count; ++i) {
      const double weight = before[at + i], error = weight - double(after[at + i]);
      const double size = std::fabs(error);
      sse[i] += error * error;
      power[i] += weight * weight;
      worst[i] = size > worst[i] ? size : worst[i];
    }
  }
  for (int i = 1; i < LANES; ++i) worst[0] = worst[i] > worst[0] ? worst[i] : worst[0];
  found[0] = folded(sse);
  found[1] = folded(power);
  found[2] = worst[0];
}

// Bits of the nearest bfloat16 of n finite floats, ties to even.
QK_EXPORT void QK_NAME(bfloat16)(const float* values, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_bfloat16(values[i]);
}
