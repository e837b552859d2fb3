// Codes of a codebook: nearest level by thresholds.

#pragma once

#include "floats.h"

namespace {

constexpr int FEW_LEVELS = 16;  // they fit two vectors

// A table of up to FEW_LEVELS values.
struct Few {
  Eight low, high;

  template <class Value>
  static Few of(const Value* values, int count) {
    float padded[FEW_LEVELS];
    for (int i = 0; i < FEW_LEVELS; ++i) padded[i] = float(values[i < count ? i : count - 1]);
    Few found;
    std::memcpy(&found, padded, sizeof found);
    return found;
  }

  // The values at places.
  Eight at(EightInts place) const {
#if defined(__AVX512VL__)
    return reinterpret_cast<Eight>(_mm256_permutex2var_ps(reinterpret_cast<__m256>(low), reinterpret_cast<__m256i>(place),
                                                          reinterpret_cast<__m256>(high)));
#elif defined(__clang__)
    Eight found;
    for (int i = 0; i < W; ++i) found[i] = place[i] > 7 ? high[place[i] & 7] : low[place[i] & 7];
    return found;
#else
    return pick(place > 7, __builtin_shuffle(high, place & 7), __builtin_shuffle(low, place & 7));
#endif
  }
};

// The thresholds between up to FEW_LEVELS levels, for a binary search whose every step looks up eight of them.
struct FewThresholds {
  float half, first, third;
  Few quarters, eighths;

  static FewThresholds of(const float* thresholds, int count) {
    float all[FEW_LEVELS];
    for (int i = 0; i < FEW_LEVELS; ++i) all[i] = i + 1 < count ? thresholds[i] : INFINITY;
    const float quarters[4] = {all[1], all[5], all[9], all[13]};
    const float eighths[8] = {all[0], all[2], all[4], all[6], all[8], all[10], all[12], all[14]};
    return {all[7], all[3], all[11], Few::of(quarters, 4), Few::of(eighths, 8)};
  }

  // How many thresholds are smaller.
  EightInts place(Eight t) const {
    const EightInts upper = t > half;  // -1 where it is
    EightInts found = -2 * upper - (t > pick(upper, third + Eight{}, first + Eight{}));
    found = 2 * found - (t > shuffled(quarters.low, found));
    return 2 * found - (t > shuffled(eighths.low, found));
  }

  static Eight shuffled(Eight table, EightInts place) {
#ifdef __clang__
    Eight found;
    for (int i = 0; i < W; ++i) found[i] = table[place[i]];
    return found;
#else
    return __builtin_shuffle(table, place);
#endif
  }
};

// One codebook: levels by code; levels, codes and thresholds in ascending order; where clipping begins.
struct Table {
  const float *levels, *sorted, *thresholds;
  const uint16_t* order;
  float low, high;
  int count;
  Small small;
  FewThresholds few;  // and the levels and codes of up to FEW_LEVELS
  Few levels_of, codes_of;

  bool is_few() const { return count <= FEW_LEVELS && small.mantissa < 0; }
};

inline Table table_of(const Codebook* book, int64_t row) {
  Table found = {};
  found.small.mantissa = -1;
  if (!book) return found;
  const int64_t at = book->tables > 1 ? row : 0;
  int64_t width = 1;  // thresholds are filled up to 2^m - 1 by infinity, for the binary search
  while (width < book->count) width *= 2;
  found.levels = book->levels + at * book->size;
  found.sorted = book->sorted + at * book->count;
  found.thresholds = book->thresholds + at * (width - 1);
  found.order = book->order + at * book->count;
  found.low = book->limits[2 * at];
  found.high = book->limits[2 * at + 1];
  found.count = book->count;
  found.small = book->small;
  if (found.is_few()) {
    found.few = FewThresholds::of(found.thresholds, found.count);
    found.levels_of = Few::of(found.sorted, found.count);
    found.codes_of = Few::of(found.order, found.count);
  }
  return found;
}

// Places of n <= LANES values among the thresholds: how many are smaller.
inline void place(const float* t, int n, const float* thresholds, int count, int32_t* at) {
  for (int i = 0; i < n; ++i) at[i] = 0;
  if (count <= FEW_LEVELS) {
    for (int k = 0; k + 1 < count; ++k) {
      const float threshold = thresholds[k];
      for (int i = 0; i < n; ++i) at[i] += t[i] > threshold;
    }
    return;
  }
  int step = 1;
  while (2 * step < count) step *= 2;
  for (; step; step /= 2)
    for (int i = 0; i < n; ++i) at[i] += t[i] > thresholds[at[i] + step - 1] ? step : 0;
}

// Eight weights of a table of few levels.
inline void quantize_few(const float* x, float scale, float divisor, const Table& table, float* code, float* error,
                         int32_t* clipped) {
  Eight v;
  EightInts outside;
  std::memcpy(&v, x, sizeof v);
  std::memcpy(&outside, clipped, sizeof outside);
  const Eight t = v / divisor;
  const EightInts place = table.few.place(t);
  const Eight found = table.codes_of.at(place), left = v - table.levels_of.at(place) * scale;
  outside -= (t < table.low) | (t > table.high);
  std::memcpy(clipped, &outside, sizeof outside);
  std::memcpy(code, &found, sizeof found);
  std::memcpy(error, &left, sizeof left);
}

inline void quantize_levels(const float* x, int n, float scale, const Table& table, float* code, float* error,
                            int32_t* clipped) {
  if (table.small.mantissa >= 0) {
    quantize_floats(x, n, scale, table.small, table.low, table.high, code, error, clipped);
    return;
  }
  const float divisor = level_divisor_of(scale);
  int done = 0;
  if (table.is_few())
    for (; done + W <= n; done += W)
      quantize_few(x + done, scale, divisor, table, code + done, error + done, clipped + done);
  float t[LANES];
  int32_t at[LANES];
  const int rest = n - done;
  for (int i = 0; i < rest; ++i) t[i] = x[done + i] / divisor;
  place(t, rest, table.thresholds, table.count, at);
  for (int i = 0; i < rest; ++i) {
    clipped[done + i] += (t[i] < table.low) | (t[i] > table.high);
    code[done + i] = float(table.order[at[i]]);
    error[done + i] = x[done + i] - table.sorted[at[i]] * scale;
  }
}

inline void reconstruct_levels(const float* code, int n, float scale, const Table& table, float* out) {
  for (int i = 0; i < n; ++i) out[i] = table.levels[int32_t(code[i])] * scale;
}

}  // namespace
