// Sum-preserving rounding: after rounding to nearest, codes of a row are moved by one so that its errors add up to 0.
//
// Inputs whose mean is not 0 turn the summed error of a row into a constant offset of its output. A flip takes a
// weight whose error has the sign of the sum to the next level on the other side: the sum falls by one step s, the
// squared error rises by s (s - 2 |e|). Flips are made in the order of that rise per unit of sum, s - 2 |e|, the
// first column on a tie, as long as each brings the sum nearer to 0 and the code stays on the grid.
//
// Levels of other spacings are moved in the same way, s being the distance to the next one (level_rounding.h): each flip
// is made for the least rise per unit of sum.
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

// Steps of integers, the same in a whole group: step(j, g), of a column in a group, sixteen(j) of a group(g), of as many,
// and can(j, g), whether there is a code there. usual: how large most of them are, beside the largest.
template <class Code, class ScaleAt>
struct EvenSteps {
  static constexpr double usual = 1;

  Code* code;
  ScaleAt scale_at;
  float sign, umin, umax;

  struct Group {
    Sixteen step;
    Sixteen sixteen(int64_t) const { return step; }
  };

  Group group(int64_t g) const { return {all(std::fabs(scale_at(g)))}; }
  float step(int64_t, int64_t g) const { return std::fabs(scale_at(g)); }
  bool can(int64_t j, int64_t g) const {
    return float(code[j]) != ((scale_at(g) < 0) == (sign < 0) ? umax : umin);
  }

  float smallest(int64_t g) const { return std::fabs(scale_at(g)); }
  float largest(int64_t g) const { return std::fabs(scale_at(g)); }
  void move(int64_t j, int64_t g) const { code[j] = Code(code[j] + ((scale_at(g) < 0) == (sign < 0) ? 1 : -1)); }
};

// Columns of a row some of whose flips may cost less than `limit`: for every 16 columns a mask. A flip costs the step of
// its column less twice its error, where the error has the sign of the sum.
template <class Steps>
void mark_flips(const float* error, int64_t cols, int64_t group, float sign, float limit, const Steps& steps,
                uint64_t* marks) {
  const Sixteen twice = all(2 * sign), bound = all(limit);
  std::memset(marks, 0, size_t(cols + 63) / 64 * 8);
  for (int64_t first = 0, g = 0; first < cols; first += group, ++g) {
    const int64_t end = first + group < cols ? first + group : cols;
    const auto own = steps.group(g);
    int64_t j = first;
    if (first % LANE_COUNT == 0)
      for (; j + LANE_COUNT <= end; j += LANE_COUNT)
        marks[j / 64] |= uint64_t(below(own.sixteen(j) - load16(error + j) * twice, bound)) << (j % 64);
    for (; j < end; ++j) marks[j / 64] |= uint64_t(steps.step(j, g) - error[j] * (2 * sign) < limit) << (j % 64);
  }
}

// Flips of a row whose cost lies in [from, limit), in no order. found: room for cols + 1 of them.
template <class Steps>
size_t gather_flips(const float* error, int64_t cols, int64_t group, float sign, float from, float limit,
                    const Steps& steps, uint64_t* marks, uint64_t* found) {
  mark_flips(error, cols, group, sign, limit, steps, marks);
  const bool one = group >= cols;
  size_t count = 0;
  for (int64_t word = 0; word * 64 < cols; ++word)
    for (uint64_t left = marks[word]; left; left &= left - 1) {
      const int64_t j = word * 64 + lowest_bit(left);
      const int64_t g = one ? 0 : int64_t(uint32_t(j) / uint32_t(group));
      const float cost = steps.step(j, g) - error[j] * (2 * sign);
      found[count] = flip_of(cost, j);  // without branches: which flips are cheap is practically random
      count += size_t((cost >= from) & (cost < limit) & (error[j] * sign > 0) & steps.can(j, g));
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

// The sum that is to be made good, and its sign; 0 where there is nothing to do.
struct Rest {
  double left;
  float sign;
};

inline Rest rest_of(double sum) {
  const double size = std::fabs(sum);
  return {size < 1e300 ? size : 0, sum < 0 ? -1.0f : 1.0f};  // 0 too for one that is no number
}

// decode(j, g): sets error[j] from the code of a column.
template <class Steps, class Decode>
void preserve_sum(float* error, int64_t cols, int64_t group, Rest sum, const Steps& steps, Decode decode) {
  static thread_local std::vector<uint64_t> found, marks;
  double rest = sum.left;
  if (!(rest > 0)) return;
  const int64_t groups = (cols + group - 1) / group;
  float largest = 0, smallest = INFINITY;
  for (int64_t g = 0; g < groups; ++g) {
    largest = std::max(largest, steps.largest(g));
    smallest = std::min(smallest, steps.smallest(g));
  }
  if (!(rest > smallest / 2)) return;
  if (found.size() < size_t(cols) + 1) {
    found.resize(size_t(cols) + 1);
    marks.resize(size_t(cols) / 64 + 1);
  }
  // Right-signed errors are about half the columns and their costs evenly spread: so those below `limit` are expected
  // to include the flips needed and a few more.
  const double usual = largest * Steps::usual, needed = rest / usual;
  float from = -INFINITY, limit = float(2 * usual / double(cols) * (needed + 3 * std::sqrt(needed) + 1));
  while (true) {
    if (!(limit > 0 && limit < largest / 2)) limit = INFINITY;
    const size_t count =
        gather_flips(error, cols, group, sum.sign, from, limit, steps, marks.data(), found.data());
    sort_flips(found.data(), count);
    for (size_t at = 0; at < count; ++at) {
      const int64_t j = int64_t(found[at] & 0xffffffffu);
      const int64_t g = groups == 1 ? 0 : int64_t(uint32_t(j) / uint32_t(group));
      const double step = steps.step(j, g);
      if (!(rest > step / 2)) return;
      steps.move(j, g);
      decode(j, g);
      rest -= step;
    }
    if (limit == INFINITY) return;
    from = limit;
    limit *= 4;
  }
}

}  // namespace
