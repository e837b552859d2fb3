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

// For every group the trial scale that leaves the least squared error when its weights are rounded to small floats:
// the `plain` one of equal ones, else the first. `count` of them begin at trial + first[group], or, without first, at
// trial + group * count. Errors are summed in steps of the scale, in vectors of 8 by blocks of 1024.
// reciprocal: those of all trial scales. importance: that of each of the tile's columns, or null.
QK_EXPORT void QK_NAME(trial_floats)(const Tile* tile, const Small* small, const float* trial, const float* reciprocal,
                                     const int32_t* first, int32_t count, int32_t plain, const int32_t* importance,
                                     int32_t* best) {
  const Rounding to(*small);
  const int64_t groups = (tile->cols + tile->group - 1) / tile->group;
  float x[BLOCK], counts[BLOCK];
  for (int64_t row = 0; row < tile->rows; ++row)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * tile->group, here = row * groups + g;
      const int64_t n = (begin + tile->group < tile->cols ? begin + tile->group : tile->cols) - begin;
      const int64_t begins = first ? first[here] : here * count;
      const float *own = trial + begins, *times = reciprocal + begins;
      double sums[LIMITS.trials] = {};
      for (int64_t from = 0; from < n; from += BLOCK) {
        const int m = int(n - from < BLOCK ? n - from : BLOCK), whole = m / W;
        for (int at = 0; at < m; at += LANES)
          load(tile->weights, tile->kind, row * tile->cols + begin + from + at, m - at < LANES ? m - at : LANES, x + at);
        for (int i = 0; i < m; ++i) x[i] = std::fabs(x[i]);
        if (importance)
          for (int i = 0; i < m; ++i) counts[i] = float(importance[begin + from + i]);
        for (int k = 0; k < count; k += 2) {  // two at a time: their operations need not wait for each other
          const int l = k + 1 < count ? k + 1 : k;
          Eight sum = {}, other = {};
          for (int i = 0; i < whole; ++i) {
            Eight v;
            std::memcpy(&v, x + i * W, sizeof v);
            const Eight e = rounding_errors(v, times[k], to), f = rounding_errors(v, times[l], to);
            if (importance) {
              std::memcpy(&v, counts + i * W, sizeof v);
              sum += e * e * v;
              other += f * f * v;
            } else {
              sum += e * e;
              other += f * f;
            }
          }
          const Pair found = fold(sum, other);
          sums[k] += double(found.first);
          if (l > k) sums[l] += double(found.second);
        }
        for (int k = 0; k < count; ++k)
          for (int i = whole * W; i < m; ++i) {  // the rest, which does not fill a vector
            const float e = rounding_error(x[i], times[k], to);
            sums[k] += double(importance ? e * e * counts[i] : e * e);
          }
      }
      int at = plain;
      double least = double(own[plain]) * double(own[plain]) * sums[plain];
      for (int k = 0; k < count; ++k) {
        const double error = double(own[k]) * double(own[k]) * sums[k];
        if (error < least) least = error, at = k;
      }
      best[here] = at;
    }
}
