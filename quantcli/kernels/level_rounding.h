// Sum-preserving rounding to levels of any spacing: how far each code moves, and to which.
//
// The cheapest flips per unit of sum are those of small steps: in the middle of a codebook, and near 0 of small floats.

#pragma once

#include "levels.h"
#include "rounding.h"

namespace {

// From every code of a table to the levels next above and below: how far they are, and their codes. There is none, and
// it is infinitely far, from the outermost levels, from codes that no weight has, and to a level that repeats.
struct Neighbours {
  std::vector<float> above, below;
  std::vector<uint16_t> upper, lower;
  float smallest = INFINITY, largest = 0;

  bool few() const { return above.size() == FEW_LEVELS; }

  Neighbours(const Table& table, int32_t size)
      : above(size_t(std::max(size, FEW_LEVELS)), INFINITY), below(above), upper(above.size()), lower(upper) {
    for (int k = 0; k + 1 < table.count; ++k) {
      const float gap = table.sorted[k + 1] - table.sorted[k];
      if (!(gap > 0)) continue;
      const uint16_t low = table.order[k], high = table.order[k + 1];
      above[low] = below[high] = gap;
      upper[low] = high, lower[high] = low;
      smallest = gap < smallest ? gap : smallest;
      largest = gap > largest ? gap : largest;
    }
  }
};

// Steps of sixteen codes at a time: of tables of few levels, looked up in a register; of small floats, whose steps are
// powers of two, from the exponent (from the outermost number there is none, which `step` knows); of others one by one.
struct FewSteps {
  Sixteen gap;

  FewSteps(const float* gap, bool, const Small&, int) : gap(load16(gap)) {}
  Sixteen sixteen(const uint8_t* code) const { return picked(gap, bytes16(code)); }
};

struct FloatSteps {
  Whole size, down, one;
  int mantissa, top;
  Whole least;

  FloatSteps(const float*, bool up, const Small& small, int bits)
      : size(all_whole((1 << (bits - 1)) - 1)), down(all_whole(up ? 0 : 1)), one(all_whole(1)),
        mantissa(small.mantissa), top(bits - 1), least(all_whole((small.lowest - small.mantissa + 127) << 23)) {}

  Sixteen sixteen(const uint8_t* code) const {
    const Whole own = bytes16(code), inwards = ((own >> top) + down) & one, from = (own & size) - inwards;
    const Whole exponent = ((from + (from >> 31)) >> mantissa) - one;
    return floats_of(least + ((exponent + (exponent >> 31)) << 23));
  }
};

template <class Code>
struct AnySteps {
  const float* gap;

  AnySteps(const float* gap, bool, const Small&, int) : gap(gap) {}
  Sixteen sixteen(const Code* code) const {
    float found[LANE_COUNT];
    for (int i = 0; i < LANE_COUNT; ++i) found[i] = gap[code[i]];
    return load16(found);
  }
};

template <class Code, class Several>
struct LevelSteps {
  // Of NF4's steps the largest is four times that of most weights; so it is of small floats with a scale per row.
  static constexpr double usual = 0.25;

  Code* code;
  const float* scale;
  const Neighbours& next;
  float sign;
  Small small;
  int bits;

  struct Group {
    const Code* code;
    Sixteen size;
    Several several;
    Sixteen sixteen(int64_t j) const { return several.sixteen(code + j) * size; }
  };

  bool up(int64_t g) const { return (scale[g] < 0) == (sign < 0); }
  const float* gap(int64_t g) const { return (up(g) ? next.above : next.below).data(); }
  Group group(int64_t g) const { return {code, all(std::fabs(scale[g])), Several(gap(g), up(g), small, bits)}; }
  float step(int64_t j, int64_t g) const { return gap(g)[code[j]] * std::fabs(scale[g]); }
  bool can(int64_t, int64_t) const { return true; }  // infinite steps cost more than any limit
  float smallest(int64_t g) const { return next.smallest * std::fabs(scale[g]); }
  float largest(int64_t g) const { return next.largest * std::fabs(scale[g]); }
  void move(int64_t j, int64_t g) const { code[j] = Code((up(g) ? next.upper : next.lower)[code[j]]); }
};

// Calls run(steps) for the codes of a row.
template <class Code, class Run>
void with_steps(Code* code, const float* scale, const Neighbours& next, float sign, const Small& small, int bits,
                Run run) {
  if constexpr (sizeof(Code) == 1) {
    if (next.few()) return run(LevelSteps<Code, FewSteps>{code, scale, next, sign, small, bits});
    if (small.mantissa >= 0) return run(LevelSteps<Code, FloatSteps>{code, scale, next, sign, small, bits});
  }
  run(LevelSteps<Code, AnySteps<Code>>{code, scale, next, sign, small, bits});
}

}  // namespace
