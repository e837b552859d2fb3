// Sum-preserving rounding: after rounding to nearest, codes of a row are moved by one so that its errors add up to 0.
//
// Inputs whose mean is not 0 turn the summed error of a row into a constant offset of its output. A flip takes a
// weight whose error has the sign of the sum to the next level on the other side: the sum falls by one step s, the
// squared error rises by s (s - 2 |e|). Flips are made in the order of that rise per unit of sum, s - 2 |e|, the
// first column on a tie, as long as each brings the sum nearer to 0 and the code stays on the grid.
//
// sums.h says in which order the errors of a row are added up. numpy_rounding.py does the same.
//
// Reference: Guo et al., SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation, 2022, whose
// flips also go kernel by kernel. That gains more on small convolutions, at up to 0.4 dB, and can go badly wrong
// elsewhere; rows alone cost hundredths of a dB.

#pragma once

#include <algorithm>
#include <vector>

#include "sums.h"

namespace {

constexpr size_t FEW_FLIPS = 96;

// A flip as a number: flips compare as their costs do, those of equal cost as their columns.
inline uint64_t flip_of(float cost, int64_t column) {
  const uint32_t bits = to_bits(cost);
  return uint64_t(bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u)) << 32 | uint64_t(column);
}

// Columns of a row some of whose flips may cost less than `limit`: for every 16 columns a mask. A flip costs the step of
// its group less twice its error, where the error has the sign of the sum.
template <class ScaleAt>
void mark_flips(const float* error, int64_t cols, int64_t group, float sign, float limit, ScaleAt scale_at,
                uint64_t* marks) {
  const Sixteen twice = all(2 * sign), bound = all(limit);
  std::memset(marks, 0, size_t(cols + 63) / 64 * 8);
  for (int64_t first = 0, g = 0; first < cols; first += group, ++g) {
    const int64_t end = first + group < cols ? first + group : cols;
    const float scale = std::fabs(scale_at(g));
    const Sixteen step = all(scale);
    int64_t j = first;
    if (first % LANE_COUNT == 0)
      for (; j + LANE_COUNT <= end; j += LANE_COUNT)
        marks[j / 64] |= uint64_t(below(step - load16(error + j) * twice, bound)) << (j % 64);
    for (; j < end; ++j) marks[j / 64] |= uint64_t(scale - error[j] * (2 * sign) < limit) << (j % 64);
  }
}

// Flips of a row whose cost lies in [from, limit), in no order. found: room for cols + 1 of them.
template <class Code, class ScaleAt>
size_t gather_flips(const Code* code, const float* error, int64_t cols, int64_t group, float sign, float from,
                    float limit, float umin, float umax, ScaleAt scale_at, uint64_t* marks, uint64_t* found) {
  mark_flips(error, cols, group, sign, limit, scale_at, marks);
  const bool one = group >= cols;
  size_t count = 0;
  for (int64_t word = 0; word * 64 < cols; ++word)
    for (uint64_t left = marks[word]; left; left &= left - 1) {
      const int64_t j = word * 64 + lowest_bit(left);
      const float scale = scale_at(one ? 0 : int64_t(uint32_t(j) / uint32_t(group)));
      const float cost = std::fabs(scale) - error[j] * (2 * sign), last = (scale < 0) == (sign < 0) ? umax : umin;
      found[count] = flip_of(cost, j);  // without branches: which flips are cheap is practically random
      count += size_t((cost >= from) & (cost < limit) & (error[j] * sign > 0) & (float(code[j]) != last));
    }
  return count;
}

// Numbers that differ, in order. Of a few, the place of each is counted, which needs no branches.
inline void sort_flips(uint64_t* flips, size_t count) {
  if (count > FEW_FLIPS) return std::sort(flips, flips + count);
  uint64_t sorted[FEW_FLIPS];
  for (size_t i = 0; i < count; ++i) {
    uint64_t place = 0;
    for (size_t j = 0; j < count; ++j) place += flips[j] < flips[i];
    sorted[place] = flips[i];
  }
  std::memcpy(flips, sorted, count * sizeof *flips);
}

// scale_at(g): the scale of a group. decode(j, g): sets error[j] from code[j].
template <class Code, class ScaleAt, class Decode>
void preserve_sum(Code* code, float* error, int64_t cols, int64_t group, float umin, float umax, ScaleAt scale_at,
                  Decode decode) {
  static thread_local std::vector<uint64_t> found, marks;
  const double sum = sum_of(error, cols);
  const float sign = sum < 0 ? -1.0f : 1.0f;
  double rest = std::fabs(sum);
  if (!(rest > 0) || !(rest < 1e300)) return;
  const int64_t groups = (cols + group - 1) / group;
  float largest = 0, smallest = INFINITY;
  for (int64_t g = 0; g < groups; ++g) {
    largest = std::max(largest, std::fabs(scale_at(g)));
    smallest = std::min(smallest, std::fabs(scale_at(g)));
  }
  if (!(rest > smallest / 2)) return;
  if (found.size() < size_t(cols) + 1) {
    found.resize(size_t(cols) + 1);
    marks.resize(size_t(cols) / 64 + 1);
  }
  // Right-signed errors are about half the columns and their costs evenly spread: so those below `limit` are expected
  // to include the flips needed and a few more.
  const double needed = rest / largest;
  float from = -INFINITY, limit = float(2 * largest / double(cols) * (needed + 3 * std::sqrt(needed) + 1));
  while (true) {
    if (!(limit > 0 && limit < largest / 2)) limit = INFINITY;
    const size_t count =
        gather_flips(code, error, cols, group, sign, from, limit, umin, umax, scale_at, marks.data(), found.data());
    sort_flips(found.data(), count);
    for (size_t at = 0; at < count; ++at) {
      const int64_t j = int64_t(found[at] & 0xffffffffu);
      const int64_t g = groups == 1 ? 0 : int64_t(uint32_t(j) / uint32_t(group));
      const float scale = scale_at(g);
      const double step = std::fabs(scale);
      if (!(rest > step / 2)) return;
      code[j] = Code(code[j] + ((scale < 0) == (sign < 0) ? 1 : -1));
      decode(j, g);
      rest -= step;
    }
    if (limit == INFINITY) return;
    from = limit;
    limit *= 4;
  }
}

}  // namespace
