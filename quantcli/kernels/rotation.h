// Rotation of runs of columns by a regular Hadamard matrix: H of 4 is [1 1 1 -1; 1 1 -1 1; 1 -1 1 1; -1 1 1 1] / 2, and
// that of 4^k the Kronecker product of k of these. It is its own inverse and its transpose.
//
// One factor after another is applied, the one of neighbouring columns first, to four numbers a, b, c, d at a time:
//
//     half = ((a + b) + (c + d)) / 2;   half - d, half - c, half - b, half - a
//
// in float32. numpy_kernels.py makes the same additions. Of whole numbers up to 2^15 every one is exact up to 4^5
// columns, so that codes are rotated back without an error.

#pragma once

#include <cstdint>

#include "common.h"

namespace {

// The factor whose numbers are `step` columns apart, on a run of `size`.
template <int STEP>
inline void rotate_step(float* x, int64_t size, int64_t wide) {
  const int64_t step = STEP ? STEP : wide;
  for (int64_t at = 0; at < size; at += 4 * step) {
    float *a = x + at, *b = a + step, *c = b + step, *d = c + step;
    for (int64_t i = 0; i < step; ++i) {
      const float p = a[i], q = b[i], r = c[i], s = d[i];
      const float half = ((p + q) + (r + s)) * 0.5f;
      a[i] = half - s;
      b[i] = half - r;
      c[i] = half - q;
      d[i] = half - p;
    }
  }
}

}  // namespace
