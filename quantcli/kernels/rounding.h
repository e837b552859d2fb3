// Sum-preserving rounding: after rounding to nearest, codes of a row are moved by one so that its errors add up to 0.
//
// Inputs whose mean is not 0 turn the summed error of a row into a constant offset of its output. A flip takes a
// weight whose error has the sign of the sum to the next level on the other side: the sum falls by one step s, the
// squared error rises by s (s - 2 |e|). Flips are made in the order of that rise per unit of sum, s - 2 |e|, the
// first column on a tie, as long as each brings the sum nearer to 0 and the code stays on the grid.
//
// The sum of a row: 8 float64 lanes (column j in lane j % 8), folded by halves. numpy_rounding.py does the same.
//
// Reference: Guo et al., SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation, 2022, whose
// flips also go kernel by kernel; rows alone gain more here and cost less.

#pragma once

#include <algorithm>
#include <vector>

#include "common.h"

namespace {

struct Flip {
  float cost;
  int32_t column;
  bool operator<(const Flip& other) const {
    return cost < other.cost || (cost == other.cost && column < other.column);
  }
};

inline double sum_of(const float* error, int64_t cols) {
  double lane[W] = {};
  int64_t j = 0;
  for (; j + W <= cols; j += W)
    for (int i = 0; i < W; ++i) lane[i] += double(error[j + i]);
  for (int i = 0; j + i < cols; ++i) lane[i] += double(error[j + i]);
  for (int i = 0; i < 4; ++i) lane[i] += lane[i + 4];
  return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

// Flips of a row whose cost lies in [from, below).
template <class ScaleAt>
void gather_flips(const float* code, const float* error, int64_t cols, int64_t group, float sign, float from,
                 float below, float umin, float umax, ScaleAt scale_at,
                  std::vector<Flip>& found) {
  found.clear();
  for (int64_t first = 0; first < cols; first += group) {
    const int64_t end = first + group < cols ? first + group : cols;
    const float scale = scale_at(first / group), step = std::fabs(scale), twice = 2 * sign;
    const float limit = (scale < 0) == (sign < 0) ? umax : umin;
    const auto take = [&](int64_t j) {
      const float cost = step - twice * error[j];
      if (cost >= from && cost < below && sign * error[j] > 0 && code[j] != limit)
        found.push_back({cost, int32_t(j)});
    };
    int64_t j = first;
    for (; j + W <= end; j += W) {
      Eight e;
      std::memcpy(&e, error + j, sizeof e);
      const EightInts near = (step - e * twice) < below;
      int64_t any[4];
      std::memcpy(any, &near, sizeof any);
      if (any[0] | any[1] | any[2] | any[3])
        for (int i = 0; i < W; ++i) take(j + i);
    }
    for (; j < end; ++j) take(j);
  }
}

// scale_at(g): the scale of a group. decode(j): sets error[j] from code[j].
template <class ScaleAt, class Decode>
void preserve_sum(float* code, float* error, int64_t cols, int64_t group, float umin, float umax, ScaleAt scale_at,
                  Decode decode) {
  static thread_local std::vector<Flip> found;
  const double sum = sum_of(error, cols);
  const float sign = sum < 0 ? -1.0f : 1.0f;
  double rest = std::fabs(sum);
  if (!(rest > 0) || !(rest < 1e300)) return;
  float largest = 0;
  for (int64_t g = 0; g * group < cols; ++g) largest = std::max(largest, std::fabs(scale_at(g)));
  // Right-signed errors are about as many as half the columns, and their costs evenly spread.
  float from = -INFINITY, below = std::max(float(4 * rest / double(cols)), largest / 128);
  while (true) {
    if (!(below < 4 * largest)) below = INFINITY;
    gather_flips(code, error, cols, group, sign, from, below, umin, umax, scale_at, found);
    std::sort(found.begin(), found.end());
    for (const Flip& flip : found) {
      const int64_t j = flip.column;
      const float scale = scale_at(j / group);
      const double step = std::fabs(scale);
      if (!(rest > step / 2)) return;
      code[j] += (scale < 0) == (sign < 0) ? 1.0f : -1.0f;
      decode(j);
      rest -= step;
    }
    if (below == INFINITY) return;
    from = below;
    below *= 4;
  }
}

}  // namespace
