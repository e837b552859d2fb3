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

// Integers, rounded to nearest.
struct Integers {
  Sixteen umin, umax;

  Integers(const Grid& grid, const Table&) : umin(all(grid.umin)), umax(all(grid.umax)) {}

  struct Group {
    const Integers& to;
    Sixteen scale, divisor, zero;

    Coded coded(Sixteen x, Counter& clipped) const {
      const Sixteen wanted = rounded(x / divisor) + zero, code = lesser(larger(wanted, to.umin), to.umax);
      clipped.add_different(wanted, code);
      return {whole(code), x - (code - zero) * scale};
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

  FewLevels(const Grid&, const Table& table) : table(table), low(all(table.low)), high(all(table.high)) {}

  struct Group {
    const FewLevels& to;
    Sixteen scale, divisor;

    Coded coded(Sixteen x, Counter& clipped) const {
      const Sixteen t = x / divisor;
      clipped.add_below(t, to.low);
      clipped.add_below(to.high, t);
      Eight half[2], code[2], level[2];
      std::memcpy(half, &t, sizeof half);
      for (int i = 0; i < 2; ++i) {
        const EightInts place = to.table.few.place(half[i]);
        code[i] = to.table.codes_of.at(place), level[i] = to.table.levels_of.at(place);
      }
      Sixteen codes, levels;
      std::memcpy(&codes, code, sizeof codes);
      std::memcpy(&levels, level, sizeof levels);
      return {whole(codes), x - levels * scale};
    }
  };

  Group group(float scale, float) const { return {*this, all(scale), all(level_divisor_of(scale))}; }
};

}  // namespace
