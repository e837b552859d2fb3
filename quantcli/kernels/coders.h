// Codes of sixteen weights of a group at a time, which stay in registers, and the errors of their values.
//
// The numbers are those of codes.h.

#pragma once

#include "codes.h"

namespace {

struct Coded {
  Whole code;
  Sixteen error;
};

// Integers, rounded to nearest; OFFSETS: on a grid that begins anywhere, zero being the value of code 0 and not the
// code of value 0.
template <bool OFFSETS>
struct Integers {
  Sixteen umin, umax;

  Integers(const Grid& grid, const Table&) : umin(all(grid.umin)), umax(all(grid.umax)) {}

  struct Group {
    const Integers& to;
    Sixteen scale, divisor, zero;

    Coded coded(Sixteen x, Counter& clipped) const {
      const Sixteen wanted = OFFSETS ? rounded((x - zero) / divisor) : rounded(x / divisor) + zero;
      const Sixteen code = lesser(larger(wanted, to.umin), to.umax);
      clipped.add_different(wanted, code);
      return {whole(code), x - (OFFSETS ? code * scale + zero : (code - zero) * scale)};
    }
  };

  Group group(float scale, float zero) const { return {*this, all(scale), all(divisor_of(scale)), all(zero)}; }
};

// Small floats.
struct SmallFloats {
  Sixteen lowest, step, top, limit;
  int shift, sign;

  SmallFloats(const Grid& grid, const Table& table) : limit(all(table.high)), sign(grid.bits - 1) {
    const Rounding to(table.small);
    lowest = all(to.lowest), step = all(to.step), top = all(to.top);
    shift = to.shift;
  }

  struct Group {
    const SmallFloats& to;
    Sixteen scale, divisor;

    Coded coded(Sixteen x, Counter& clipped) const {
      const Sixteen t = x / divisor;
      const Sixteen a = magnitude(t);
      clipped.add_below(to.limit, a);
      const Landing<Sixteen> at = Rounding::land(lesser(a, to.top), to.lowest, to.step);
      const Whole binades = bits_of(at.binade) - bits_of(to.lowest), steps = bits_of(at.sum) - bits_of(at.magic);
      const Whole size = (binades >> to.shift) + steps;
      const Whole negative = bits_of(t) & all_whole(INT32_MIN);
      const Sixteen value = floats_of(bits_of(at.value()) | negative);
      const Whole negative_code = (all_whole(0) - size) & negative;  // there is no second zero
      return {size | (negative_code >> (31 - to.sign)), x - value * scale};
    }
  };

  Group group(float scale, float) const { return {*this, all(scale), all(level_divisor_of(scale))}; }
};

// Few levels of any spacing.
struct FewLevels {
  const Table& table;
  Sixteen low, high;
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
  Sixteen half, first, third, quarters, eighths, codes, levels;

  FewLevels(const Grid&, const Table& table)
      : table(table), low(all(table.low)), high(all(table.high)), half(all(table.few.half)),
        first(all(table.few.first)), third(all(table.few.third)), quarters(of(table.few.quarters)),
        eighths(of(table.few.eighths)), codes(of(table.codes_of)), levels(of(table.levels_of)) {}

  static Sixteen of(const Few& few) {
    Sixteen found;
    std::memcpy(&found, &few, sizeof found);
    return found;
  }

  // Codes and levels of quotients, by the search of FewThresholds.
  void nearest(Sixteen t, Sixteen& code, Sixteen& level) const {
    const __mmask16 upper = _mm512_cmp_ps_mask(t.v, half.v, _CMP_GT_OQ);
    __m512i at = _mm512_maskz_mov_epi32(upper, _mm512_set1_epi32(2));
    at = after(at, t, _mm512_mask_blend_ps(upper, first.v, third.v));
    at = after(_mm512_add_epi32(at, at), t, _mm512_permutexvar_ps(at, quarters.v));
    at = after(_mm512_add_epi32(at, at), t, _mm512_permutexvar_ps(at, eighths.v));
    code = picked(codes, {at}), level = picked(levels, {at});
  }

  static __m512i after(__m512i at, Sixteen t, __m512 threshold) {
    return _mm512_mask_add_epi32(at, _mm512_cmp_ps_mask(t.v, threshold, _CMP_GT_OQ), at, _mm512_set1_epi32(1));
  }
#else
  FewLevels(const Grid&, const Table& table) : table(table), low(all(table.low)), high(all(table.high)) {}

  void nearest(Sixteen t, Sixteen& code, Sixteen& level) const {
    Eight half[2], codes[2], levels[2];
    std::memcpy(half, &t, sizeof half);
    for (int i = 0; i < 2; ++i) {
      const EightInts place = table.few.place(half[i]);
      codes[i] = table.codes_of.at(place), levels[i] = table.levels_of.at(place);
    }
    std::memcpy(&code, codes, sizeof code);
    std::memcpy(&level, levels, sizeof level);
  }
#endif

  struct Group {
    const FewLevels& to;
    Sixteen scale, divisor;

    Coded coded(Sixteen x, Counter& clipped) const {
      const Sixteen t = x / divisor;
      clipped.add_below(t, to.low);
      clipped.add_below(to.high, t);
      Sixteen code, level;
      to.nearest(t, code, level);
      return {whole(code), x - level * scale};
    }
  };

  Group group(float scale, float) const { return {*this, all(scale), all(level_divisor_of(scale))}; }
};

}  // namespace
