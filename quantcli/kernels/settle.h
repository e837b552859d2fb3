// Scales and zero points of groups as they are stored, from what a search or the range of the weights gives.
//
// The arithmetic is that of calibrators/ and tensors/settle.py, in float64. Whatever is out of the ordinary (weights that
// are not finite, scales that their dtype holds badly) is left to these: `ordinary` says no.

#pragma once

#include "floats.h"

namespace {

enum Method : int32_t { SPANNING = 0, EXTREME = 1, SEARCH = 2, TRIALS = 3 };

// How scales are stored: the kinds of floats, and two whose values are listed.
enum Stored : int32_t { E8M0 = 3, E4M3 = 4 };
constexpr Small FLOAT8 = {3, -6, 448};  // E4M3

// How the parameters of groups are found, field by field as records.py declares it; table.py says what each is.
struct Rule {
  int32_t method, scale_kind, affine, preserve, grids, count;
  double top, smallest;
  const float* multipliers;
  const Codebook* codebook;
  const float* values;
  const double* ratios;
  double unit;
  int32_t last, below, trials, height;
  Grid grid;

  bool listed() const { return scale_kind >= E8M0; }

  // Whether it looks at nothing but the largest magnitude of a group.
  bool by_size() const { return !affine && (method == SPANNING || method == TRIALS); }
};

// What is found of a group on the way: `plain` parameters span its range, and those of a search begin there.
struct Found {
  double scale, zero;
};

inline uint16_t nearest_half(double value) {
  // A float32 that is odd where it is not exact rounds to the same float16 as the number itself.
  float single = float(value);
  if (double(single) != value && !(to_bits(single) & 1)) {
    const bool above = std::fabs(double(single)) > std::fabs(value);
    single = from_bits(to_bits(single) + (above ? -1 : 1));
  }
  return to_half(single);
}

// A scale rounded to its dtype.
template <int KIND>
inline float rounded_to(double value) {
  if (KIND == F16) return half_to_float(nearest_half(value));
  return KIND == F32 ? float(value) : from_bits(uint32_t(to_bfloat16(float(value))) << 16);
}

// The place of a scale among the values of its kind: of E8M0 from 2^-126 on, of E4M3 from code 1 on.
template <int KIND>
inline int32_t place_of(const Rule& rule, double scale) {
  const double scaled = scale * rule.unit;
  int32_t place;
  if (KIND == E8M0) {
    uint64_t bits;
    std::memcpy(&bits, &scaled, 8);
    place = int32_t(bits >> 52) - 1023 + 126;
  } else {
    const Rounding to(FLOAT8);
    const float most = to.top;
    place = int32_t(to.code(Rounding::land(scaled < double(most) ? float(scaled) : most, to.lowest, to.step))) - 1;
  }
  return place < 0 ? 0 : place > rule.last ? rule.last : place;
}

// A scale as it is stored.
template <int KIND>
inline float stored(const Rule& rule, double scale) {
  if constexpr (KIND < E8M0)
    return rounded_to<KIND>(scale);
  else
    return rule.values[rule.below + place_of<KIND>(rule, scale)];
}

// Calls run(kind), a constant, for the kind of scales.
template <class Run>
inline auto with_kind(const Rule& rule, Run run) {
  switch (rule.scale_kind) {
    case BF16: return run(std::integral_constant<int, BF16>());
    case F16: return run(std::integral_constant<int, F16>());
    case F32: return run(std::integral_constant<int, F32>());
    case E8M0: return run(std::integral_constant<int, E8M0>());
    default: return run(std::integral_constant<int, E4M3>());
  }
}

// Whether a scale is one that rounding changes by little, and whose codes all decode to numbers of its dtype.
inline bool ordinary(const Rule& rule, const Found& found) {
  constexpr double LARGEST[] = {3.3895313892515355e38, 65504.0, 3.4028234663852886e38};  // by kind
  if (rule.listed()) return true;
  const double size = std::fabs(found.scale), most = rule.codebook ? rule.top : double(rule.grid.umax);
  return size >= rule.smallest && size * most * 1.01 + found.zero < LARGEST[rule.scale_kind];
}

// The parameters that span a range.
template <bool AFFINE>
inline Found spanning(const Rule& rule, float low, float high) {
  const double lo = double(low), hi = double(high), top = rule.top;
  if (!AFFINE) {
    const double most = -lo > hi ? -lo : hi;
    return {most > 0 ? most / top : 1.0, 0};
  }
  const double least = lo < 0 ? lo : 0, most = hi > 0 ? hi : 0;
  const double scale = most > least ? (most - least) / top : 1.0;
  return {scale, 0.0 - least / scale};
}

inline Found extreme_on_lowest(const Rule& rule, float extreme) {
  return {extreme != 0 ? -double(extreme) / (rule.top + 1) : 1.0, 0};
}

// Where a search begins: the reciprocal of what candidates are relative to, 0 for no search, and the zero point.
struct Start {
  float reciprocal, centre;
};

template <bool AFFINE>
inline Start start_of(const Rule& rule, float low, float high, float extreme) {
  constexpr float LEAST_NORMAL = 1.17549435e-38f;  // 2^-126
  if (AFFINE) {
    const double span = (high > 0 ? double(high) : 0.0) - (low < 0 ? double(low) : 0.0);
    const bool normal = span >= double(LEAST_NORMAL) && span < 1.7014118346046923e38;  // 2^127
    return {normal ? 1.0f / float(span) : 0.0f, float(std::nearbyint(spanning<true>(rule, low, high).zero))};
  }
  const float size = std::fabs(extreme), reciprocal = size >= LEAST_NORMAL ? 1.0f / size : 0.0f;
  return {rule.grids == TURNED && extreme < 0 ? -reciprocal : reciprocal, 0};
}

// The parameters of a group, given the scale and the grid that a search found.
template <bool AFFINE>
inline Found searched(const Rule& rule, const Start& start, double scale, int32_t grid, float low, float high,
                      float extreme) {
  const double found = scale / (start.reciprocal != 0 ? double(start.reciprocal) : 1.0);
  if (AFFINE) {
    const Found plain = spanning<true>(rule, low, high);
    const bool good = start.reciprocal != 0 && found > 0;
    return {good ? found : plain.scale, good ? double(start.centre) + (grid - rule.grids / 2) : plain.zero};
  }
  const bool negative = grid == 1 || rule.grids == TURNED;
  const double size = std::fabs(double(extreme)), plain = size > 0 ? size / rule.top : 1.0;
  return {start.reciprocal != 0 && found != 0 ? (negative ? -found : found) : plain, 0};
}

// The scales to try for a group whose plain one is given, as they are stored.
template <int KIND>
inline void stored_trials(const Rule& rule, double plain, float* trial) {
  const float least = KIND == F16 ? 5.9604645e-8f : 1.17549435e-38f;  // 2^-24, 2^-126
  const float first = rounded_to<KIND>(plain * rule.ratios[0]), instead = first > least ? first : least;
  for (int k = 0; k < rule.trials; ++k) {
    const float value = rounded_to<KIND>(plain * rule.ratios[k]);
    trial[k] = value >= least && value < INFINITY ? value : instead;
  }
}

// The zero point as a code.
inline float settled_zero(const Rule& rule, double zero) {
  const double code = std::nearbyint(zero);
  return float(code < 0 ? 0 : code > double(rule.grid.umax) ? double(rule.grid.umax) : code);
}

}  // namespace
