// The weights of a super-block as whole numbers, and sums over the codes that a scale and an offset give them.
//
// Weights, candidates and codes are whole numbers of 16 bits, each sub-block in a lane of its own, so that sums are
// exact and need no folding.

#pragma once

#include "iq4.h"
#include "lanes64.h"
#include "search.h"

namespace {

enum Form : int32_t { AFFINE = 0, SIGNED = 1, TABLE = 2 };

// What a type of super-block stores, and how scales are searched, field by field as records.py declares it; table.py
// says what each is.
struct BlockType {
  int32_t form, bits, sub, low, high, deepest, range_bits, refits, rounds, ratio_count, factor_count;
  const double *ratios, *factors;
};

constexpr int SUPER = 256;
constexpr int FULL = 256;  // the importance of the column of a sub-block that counts most

#if defined(__AVX2__)
// A register of pairs holds ACROSS of J sub-blocks, DEEP pairs of each.
template <int J>
struct Abreast {
  static constexpr int ACROSS = J < ABREAST ? J : ABREAST, DEEP = ABREAST / ACROSS;
};

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
inline Pairs plus16(Pairs a, Pairs b) { return _mm512_add_epi16(a, b); }
inline Pairs minus16(Pairs a, Pairs b) { return _mm512_sub_epi16(a, b); }
inline Pairs times16(Pairs a, Pairs b) { return _mm512_mullo_epi16(a, b); }
inline Pairs quotients(Pairs u, Pairs by) { return _mm512_mulhrs_epi16(u, by); }

// The whole number of every sub-block, for both of each pair.
template <int J>
inline Pairs for_pairs(const int32_t* values) {
  const Pairs v = J < ABREAST ? _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)))
                              : load_pairs(values);
  return _mm512_or_si512(_mm512_and_si512(v, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(v, 16));
}

// Sums as float64, times a power of two.
template <int J>
inline void put_sums(Pairs sums, double times, Doubles* out) {
  const __m512d by = _mm512_set1_pd(times);
  const __m256i low = _mm512_castsi512_si256(sums), high = _mm512_extracti64x4_epi64(sums, 1);
  out[0] = Doubles(_mm512_mul_pd(_mm512_cvtepi32_pd(J < ABREAST ? _mm256_add_epi32(low, high) : low), by));
  if (J >= ABREAST) out[1] = Doubles(_mm512_mul_pd(_mm512_cvtepi32_pd(high), by));
}
#else
inline Pairs plus16(Pairs a, Pairs b) { return _mm256_add_epi16(a, b); }
inline Pairs minus16(Pairs a, Pairs b) { return _mm256_sub_epi16(a, b); }
inline Pairs times16(Pairs a, Pairs b) { return _mm256_mullo_epi16(a, b); }
inline Pairs quotients(Pairs u, Pairs by) { return _mm256_mulhrs_epi16(u, by); }

template <int J>
inline Pairs for_pairs(const int32_t* values) {
  const Pairs v = load_pairs(values);
  return _mm256_or_si256(_mm256_and_si256(v, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(v, 16));
}

template <int J>
inline void put_sums(Pairs sums, double times, Doubles* out) {
  const __m256d by = _mm256_set1_pd(times);
  out[0] = Doubles(_mm256_mul_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(sums)), by));
  out[1] = Doubles(_mm256_mul_pd(_mm256_cvtepi32_pd(_mm256_extracti128_si256(sums, 1)), by));
}
#endif
#endif

template <int FORM, int N, bool WEIGHTED>
struct BlockWeights {
  static constexpr int J = SUPER / N, PAIRS = N / 2, V = J / DOUBLES;
  static constexpr double SHARE = WEIGHTED ? 1.0 / FULL : 1.0;

  using Lanes = Lanes64<J>;
  typedef int16_t ByPair[PAIRS][J][2];

  // Sums over the codes of every sub-block: of codes, of their squares, of their products with the weights.
  struct Sums64 {
    Lanes code, square, cross;
  };

  const int low, top;
  const float range;
  alignas(64) ByPair u;               // weights in units of their own
  alignas(64) ByPair w;               // importances, FULL at most
  alignas(64) ByPair uw;
  Lanes count, sum, power;            // of importances, weights, their squares
  Lanes middle, unit, per, factor;    // a weight is middle + u * per; factor: how much the sub-block counts

  explicit BlockWeights(const BlockType& t)
      : low(-(1 << (t.bits - 1))), top((1 << t.bits) - 1), range(float(1 << t.range_bits)) {}

  // The least and the largest of N weights.
  static void ends(const float* y, float& lo, float& hi) {
    Eight low, high;
    std::memcpy(&low, y, sizeof low);
    high = low;
    for (int i = W; i < N; i += W) {
      Eight v;
      std::memcpy(&v, y + i, sizeof v);
      low = lesser(v, low), high = larger(v, high);
    }
    Four lows[2], highs[2];
    std::memcpy(lows, &low, sizeof low);
    std::memcpy(highs, &high, sizeof high);
    const Four l = lows[0] < lows[1] ? lows[0] : lows[1], h = highs[0] > highs[1] ? highs[0] : highs[1];
    lo = l[0], hi = h[0];
    for (int i = 1; i < 4; ++i) lo = lesser(l[i], lo), hi = larger(h[i], hi);
  }

  // Reads a super-block: weights, and of each column its importance and of each sub-block how much it counts.
  void read(const float* x, const int16_t* importance, const double* much) {
    int16_t whole[SUPER], product[SUPER];
    float centres[J], units[J];
    int32_t found[J];
    for (int j = 0; j < J; ++j) {
      const float* y = x + j * N;
      float lo, hi;
      ends(y, lo, hi);
      const float centre = FORM == AFFINE ? lo * 0.5f + hi * 0.5f : 0.0f;
      const float span = FORM == AFFINE ? hi - lo : 2 * (-lo > hi ? -lo : hi);
      const bool varied = span >= 0x1p-100f && span <= 0x1p100f;
      const float times = varied ? range / span : 0.0f;
      for (int i = 0; i < N; ++i) whole[j * N + i] = int16_t(to_bits((y[i] - centre) * times + ROUNDING));
      centres[j] = centre, units[j] = varied ? times : 1.0f;
    }
    by_pair(whole, u);
    if (WEIGHTED) {
      for (int i = 0; i < SUPER; ++i) product[i] = int16_t((whole[i] * importance[i] + FULL / 2) >> 8);
      by_pair(importance, w);
      by_pair(product, uw);
      dot(w, nullptr, found);
      count.set(found);
      factor.set(much);
      for (int v = 0; v < V; ++v) count.v[v] = count.v[v] * (1.0 / FULL);
    } else {
      for (int v = 0; v < V; ++v) count.v[v] = Doubles{} + double(N), factor.v[v] = Doubles{} + 1.0;
    }
    dot(WEIGHTED ? uw : u, nullptr, found);
    sum.set(found);
    dot(WEIGHTED ? uw : u, u, found);
    power.set(found);
    middle.set(centres);
    unit.set(units);
    for (int v = 0; v < V; ++v) per.v[v] = 1.0 / unit.v[v];
  }

  // The codes of every sub-block are (u - origin) * times / 2^15; origin for AFFINE only.
  struct Steps {
    int32_t times[J], origin[J];

    // Those of (u - place) / step.
    void set(const Lanes& step, const Lanes& place) {
      Lanes t;
      for (int v = 0; v < V; ++v) t.v[v] = bounded(32768.0 / step.v[v], -32767.0, 32767.0);
      t.whole(times);
      if (FORM == AFFINE) place.whole(origin);
    }
  };

#ifdef __AVX2__
  static constexpr int ACROSS = Abreast<J>::ACROSS, DEEP = Abreast<J>::DEEP;

  static void by_pair(const int16_t* values, ByPair& out) {
    for (int j = 0; j < J; j += 8)
      for (int p = 0; p < PAIRS; p += 8) {
        __m256i rows[8], turned[8];
        for (int i = 0; i < 8; ++i)
          rows[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + (j + i) * N + 2 * p));
        transpose(rows, turned);
        for (int i = 0; i < 8; ++i) _mm256_store_si256(reinterpret_cast<__m256i*>(out[p + i][j]), turned[i]);
      }
  }

  // Sums of products, of the first with 1 where there is no second.
  static void dot(const ByPair& a, const int16_t (*b)[J][2], int32_t* out) {
    for (int g = 0; g < J; g += 8) {
      __m256i sum = _mm256_setzero_si256();
      for (int p = 0; p < PAIRS; ++p) {
        const __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(a[p][g]));
        const __m256i y = b ? _mm256_load_si256(reinterpret_cast<const __m256i*>(b[p][g])) : _mm256_set1_epi16(1);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, y));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + g), sum);
    }
  }

  // Sums for COUNT steps.
  template <int COUNT>
  void sums(const Steps* steps, Sums64* found) const {
    const Pairs least = all_pairs(int16_t(low)), most = all_pairs(int16_t(top + low)), none = all_pairs(0);
    for (int g = 0; g < J; g += ACROSS) {
      Pairs by[COUNT], from[COUNT], code[COUNT], square[COUNT], cross[COUNT];
      for (int i = 0; i < COUNT; ++i) {
        by[i] = for_pairs<J>(steps[i].times + g), from[i] = FORM == AFFINE ? for_pairs<J>(steps[i].origin + g) : none;
        code[i] = square[i] = cross[i] = none;
      }
      for (int p = 0; p < PAIRS; p += 2 * DEEP) {
        const Pairs x[2] = {load_pairs(u[p][g]), load_pairs(u[p + DEEP][g])};
        for (int i = 0; i < COUNT; ++i) {
          Pairs c[2];
          for (int k = 0; k < 2; ++k)
            c[k] = FORM == TABLE ? quotients(x[k], by[i])
                                 : codes_of(FORM == AFFINE ? minus16(x[k], from[i]) : x[k], by[i], least, most);
          if (FORM == TABLE) to_levels(c);
          for (int k = 0; k < 2; ++k) {
            const Pairs much = WEIGHTED ? load_pairs(w[p + k * DEEP][g]) : c[k];
            if (FORM == AFFINE) code[i] = WEIGHTED ? products(code[i], much, c[k]) : plus16(code[i], c[k]);
            square[i] = products(square[i], WEIGHTED ? times16(much, c[k]) : c[k], c[k]);
            cross[i] = products(cross[i], WEIGHTED ? load_pairs(uw[p + k * DEEP][g]) : x[k], c[k]);
          }
        }
      }
      const int at = g / DOUBLES;
      for (int i = 0; i < COUNT; ++i) {
        if (FORM == AFFINE)
          put_sums<J>(WEIGHTED ? code[i] : products(none, code[i], all_pairs(1)), SHARE, found[i].code.v + at);
        put_sums<J>(square[i], SHARE, found[i].square.v + at);
        put_sums<J>(cross[i], 1.0, found[i].cross.v + at);
      }
    }
  }
#else
  static void by_pair(const int16_t* values, ByPair& out) {
    for (int p = 0; p < PAIRS; ++p)
      for (int j = 0; j < J; ++j) std::memcpy(out[p][j], values + j * N + 2 * p, 4);
  }

  static void dot(const ByPair& a, const int16_t (*b)[J][2], int32_t* out) {
    for (int j = 0; j < J; ++j) out[j] = 0;
    for (int p = 0; p < PAIRS; ++p)
      for (int j = 0; j < J; ++j)
        for (int k = 0; k < 2; ++k) out[j] += a[p][j][k] * (b ? b[p][j][k] : 1);
  }

  static int32_t code_of(int32_t quotient, int low, int high) {
    if (FORM != TABLE) return quotient < low ? low : quotient > high ? high : quotient;
    return level_of(quotient < -128 ? -128 : quotient > 127 ? 127 : quotient);
  }

  // By itself: compilers take twice as long where it is part of each of its callers, and its code is no faster.
  __attribute__((noinline)) void sums_of(const Steps& steps, Sums64& found) const {
    double codes[J], squares[J], crosses[J];
    for (int j = 0; j < J; ++j) {
      int32_t code = 0, square = 0, cross = 0;
      for (int p = 0; p < PAIRS; ++p)
        for (int k = 0; k < 2; ++k) {
          const int32_t x = u[p][j][k], from = FORM == AFFINE ? steps.origin[j] : 0;
          const int32_t c = code_of((((x - from) * steps.times[j] >> 14) + 1) >> 1, low, top + low);
          code += WEIGHTED ? w[p][j][k] * c : c;
          square += WEIGHTED ? w[p][j][k] * c * c : c * c;
          cross += (WEIGHTED ? uw[p][j][k] : x) * c;
        }
      codes[j] = code * SHARE, squares[j] = square * SHARE, crosses[j] = double(cross);
    }
    found.code.set(codes);
    found.square.set(squares);
    found.cross.set(crosses);
  }

  template <int COUNT>
  void sums(const Steps* steps, Sums64* found) const {
    for (int i = 0; i < COUNT; ++i) sums_of(steps[i], found[i]);
  }
#endif
};

}  // namespace
