// Smallest, largest and most extreme weight of groups, from the bits of weights as whole numbers.
//
// With the bits below the sign inverted where it is set, the patterns of floats are in the order of their values as
// signed numbers: minima and maxima need no conversion, and 16 weights of 16 bits fit a register. NaN and infinity are
// at both ends of that order.

#pragma once

#include "common.h"

namespace {

template <int KIND>
struct Pattern {
  using Key = typename std::conditional<KIND == F32, int32_t, int16_t>::type;
  using Bits = typename std::conditional<KIND == F32, uint32_t, uint16_t>::type;
  typedef Key Keys __attribute__((vector_size(32)));
  static constexpr int AT_ONCE = 32 / sizeof(Key), SIGN = 8 * sizeof(Key) - 1;
  static constexpr Key MAGNITUDE = Key((uint32_t(1) << SIGN) - 1);
  static constexpr Key SPECIAL = KIND == F32 ? Key(0x7f800000) : KIND == BF16 ? Key(0x7f80) : Key(0x7c00);

  // Weight i of those that begin at an address, which may be any.
  static Bits bits_of(const void* weights, int64_t i) {
    Bits bits;
    std::memcpy(&bits, static_cast<const char*>(weights) + i * int64_t(sizeof bits), sizeof bits);
    return bits;
  }

  static Key key(Bits bits) { return Key(bits) ^ Key((Key(bits) >> SIGN) & MAGNITUDE); }

  static Keys keys(const void* weights, int64_t from) {
    const Keys v = bits_from(weights, from);
    return v ^ ((v >> SIGN) & MAGNITUDE);
  }

  // The complements of magnitudes, which are in the opposite order.
  static Keys complements(const void* weights, int64_t from) { return ~(bits_from(weights, from) & MAGNITUDE); }

  static Keys bits_from(const void* weights, int64_t from) {
    Keys v;
    std::memcpy(&v, static_cast<const char*>(weights) + from * int64_t(sizeof(Bits)), sizeof v);
    return v;
  }

  static float value(Key key) {
    const Bits bits = Bits(key ^ Key((key >> SIGN) & MAGNITUDE));
    return KIND == F32 ? from_bits(bits) : KIND == BF16 ? from_bits(uint32_t(bits) << 16) : half_to_float(uint16_t(bits));
  }

  static Keys lesser(Keys a, Keys b) {
#ifdef __AVX2__
    const __m256i x = reinterpret_cast<__m256i>(a), y = reinterpret_cast<__m256i>(b);
    return reinterpret_cast<Keys>(KIND == F32 ? _mm256_min_epi32(x, y) : _mm256_min_epi16(x, y));
#else
    return a < b ? a : b;
#endif
  }

  static Key least(Keys v) {
#ifdef __AVX2__
    if (KIND != F32) {  // the instruction is for unsigned numbers
      const __m256i all = reinterpret_cast<__m256i>(v);
      const __m128i half = _mm_min_epi16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
      const __m128i found = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(int16_t(0x8000))));
      return Key(_mm_cvtsi128_si32(found) ^ 0x8000);
    }
#endif
    Key found = v[0];
    for (int i = 1; i < AT_ONCE; ++i) found = v[i] < found ? Key(v[i]) : found;
    return found;
  }
};

struct Range {
  float low, high, extreme;
};

// The first of the weights whose magnitude is that of `high`.
template <int KIND>
inline float first_extreme(const void* weights, int64_t at, typename Pattern<KIND>::Key high) {
  using P = Pattern<KIND>;
  while ((P::bits_of(weights, at) & typename P::Bits(P::MAGNITUDE)) != typename P::Bits(high)) ++at;
  return P::value(P::key(P::bits_of(weights, at)));
}

// The range of n >= 1 weights. finite is cleared when one is not.
template <int KIND>
inline Range range_of(const void* weights, int64_t at, int64_t n, bool& finite) {
  using P = Pattern<KIND>;
  typename P::Key low = P::key(P::bits_of(weights, at)), high = low;
  int64_t i = 0;
  if (n >= P::AT_ONCE) {
    // Maxima are minima of complements. Two of each: they need not wait for each other.
    typename P::Keys least = P::keys(weights, at), most = ~least, least2 = least, most2 = most;
    for (i = P::AT_ONCE; i + 2 * P::AT_ONCE <= n; i += 2 * P::AT_ONCE) {
      const typename P::Keys a = P::keys(weights, at + i), b = P::keys(weights, at + i + P::AT_ONCE);
      least = P::lesser(least, a), most = P::lesser(most, ~a);
      least2 = P::lesser(least2, b), most2 = P::lesser(most2, ~b);
    }
    for (; i + P::AT_ONCE <= n; i += P::AT_ONCE) {
      const typename P::Keys a = P::keys(weights, at + i);
      least = P::lesser(least, a), most = P::lesser(most, ~a);
    }
    low = P::least(P::lesser(least, least2));
    high = typename P::Key(~P::least(P::lesser(most, most2)));
  }
  for (; i < n; ++i) {
    const typename P::Key k = P::key(P::bits_of(weights, at + i));
    low = k < low ? k : low;
    high = k > high ? k : high;
  }
  finite &= high < P::SPECIAL && typename P::Key(~low) < P::SPECIAL;
  Range found = {P::value(low), P::value(high), 0};
  found.extreme = found.high > -found.low ? found.high : found.high < -found.low ? found.low : 0;
  if (found.extreme == 0 && found.high > 0) found.extreme = first_extreme<KIND>(weights, at, high);  // both reach it
  return found;
}

// The largest magnitude of n >= 1 weights.
template <int KIND>
inline float largest_of(const void* weights, int64_t at, int64_t n, bool& finite) {
  using P = Pattern<KIND>;
  typename P::Key least = -1;  // of complements
  int64_t i = 0;
  if (n >= P::AT_ONCE) {
    typename P::Keys v = typename P::Keys{} - 1;
    for (; i + P::AT_ONCE <= n; i += P::AT_ONCE) v = P::lesser(v, P::complements(weights, at + i));
    least = P::least(v);
  }
  for (; i < n; ++i) {
    const typename P::Key own = typename P::Key(~(P::bits_of(weights, at + i) & P::MAGNITUDE));
    least = own < least ? own : least;
  }
  finite &= typename P::Key(~least) < P::SPECIAL;
  return P::value(typename P::Key(~least));
}

constexpr int EIGHT = 8, AT_MOST = 256;

#ifdef __AVX2__
// The lesser ones of a vector's halves.
template <int KIND>
inline __m128i halves(typename Pattern<KIND>::Keys keys) {
  const __m256i v = reinterpret_cast<__m256i>(keys);
  return _mm_min_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

// Eight vectors of 8 numbers to the least of each.
inline __m128i least_of_each(__m128i* v) {
  for (int i = 0; i < 4; ++i)
    v[i] = _mm_min_epi16(_mm_unpacklo_epi16(v[2 * i], v[2 * i + 1]), _mm_unpackhi_epi16(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 2; ++i)
    v[i] = _mm_min_epi16(_mm_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  return _mm_min_epi16(_mm_unpacklo_epi64(v[0], v[1]), _mm_unpackhi_epi64(v[0], v[1]));
}

// Values of keys of 16 bits.
template <int KIND>
inline __m256 values_of(__m128i keys) {
  const __m128i magnitude = _mm_set1_epi16(0x7fff);
  const __m128i bits = _mm_xor_si128(keys, _mm_and_si128(_mm_srai_epi16(keys, 15), magnitude));
  if (KIND == F16) return _mm256_cvtph_ps(bits);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// The ranges of eight groups of n weights of 16 bits, a multiple of 16, that lie one after another.
template <int KIND>
inline void eight_ranges(const void* weights, int64_t at, int64_t n, float* lo, float* hi, float* extreme,
                         bool& finite) {
  using P = Pattern<KIND>;
  __m128i lows[EIGHT], highs[EIGHT];
  for (int g = 0; g < EIGHT; ++g) {
    typename P::Keys least = P::keys(weights, at + g * n), most = ~least;
    for (int64_t i = P::AT_ONCE; i < n; i += P::AT_ONCE) {
      const typename P::Keys a = P::keys(weights, at + g * n + i);
      least = P::lesser(least, a), most = P::lesser(most, ~a);
    }
    lows[g] = halves<KIND>(least), highs[g] = halves<KIND>(most);
  }
  const __m128i low = least_of_each(lows), complement = least_of_each(highs), ones = _mm_set1_epi16(-1);
  const __m128i high = _mm_xor_si128(complement, ones), below = _mm_set1_epi16(int16_t(P::SPECIAL - 1));
  const __m128i beyond = _mm_or_si128(_mm_cmpgt_epi16(high, below), _mm_cmpgt_epi16(_mm_xor_si128(low, ones), below));
  finite &= _mm_testz_si128(beyond, beyond) != 0;
  const __m256 l = values_of<KIND>(low), h = values_of<KIND>(high);
  const __m256 fall = _mm256_xor_ps(l, _mm256_set1_ps(-0.0f));
  const __m256 above = _mm256_cmp_ps(h, fall, _CMP_GT_OQ), under = _mm256_cmp_ps(h, fall, _CMP_LT_OQ);
  _mm256_storeu_ps(lo, l);
  _mm256_storeu_ps(hi, h);
  _mm256_storeu_ps(extreme, _mm256_or_ps(_mm256_and_ps(above, h), _mm256_and_ps(under, l)));
  const __m256 same = _mm256_andnot_ps(_mm256_or_ps(above, under), _mm256_cmp_ps(h, _mm256_setzero_ps(), _CMP_GT_OQ));
  alignas(16) int16_t keys[EIGHT];
  _mm_store_si128(reinterpret_cast<__m128i*>(keys), high);
  for (int ties = _mm256_movemask_ps(same), g = 0; ties; ties >>= 1, ++g)
    if (ties & 1 && finite) extreme[g] = first_extreme<KIND>(weights, at + g * n, keys[g]);
}

// Their largest magnitudes.
template <int KIND>
inline void eight_largest(const void* weights, int64_t at, int64_t n, float* largest, bool& finite) {
  using P = Pattern<KIND>;
  __m128i complements[EIGHT];
  for (int g = 0; g < EIGHT; ++g) {
    typename P::Keys least = typename P::Keys{} - 1;
    for (int64_t i = 0; i < n; i += P::AT_ONCE) least = P::lesser(least, P::complements(weights, at + g * n + i));
    complements[g] = halves<KIND>(least);
  }
  const __m128i found = _mm_xor_si128(least_of_each(complements), _mm_set1_epi16(-1));
  const __m128i beyond = _mm_cmpgt_epi16(found, _mm_set1_epi16(int16_t(P::SPECIAL - 1)));
  finite &= _mm_testz_si128(beyond, beyond) != 0;
  _mm256_storeu_ps(largest, values_of<KIND>(found));
}
#else
template <int KIND>
inline void eight_ranges(const void* weights, int64_t at, int64_t n, float* lo, float* hi, float* extreme,
                         bool& finite) {
  for (int g = 0; g < EIGHT; ++g) {
    const Range found = range_of<KIND>(weights, at + g * n, n, finite);
    lo[g] = found.low, hi[g] = found.high, extreme[g] = found.extreme;
  }
}

template <int KIND>
inline void eight_largest(const void* weights, int64_t at, int64_t n, float* largest, bool& finite) {
  for (int g = 0; g < EIGHT; ++g) largest[g] = largest_of<KIND>(weights, at + g * n, n, finite);
}
#endif

// Calls found(group, at, n, finite) for the groups of a tile, by number; whether all weights are finite.
template <class Found>
inline bool by_groups(const Tile& tile, Found found) {
  bool finite = true;
  int64_t group = 0;
  for (int64_t row = 0; row < tile.rows; ++row)
    for (int64_t begin = 0; begin < tile.cols; begin += tile.group, ++group)
      found(group, row * tile.cols + begin, tile.length(begin), finite);
  return finite;
}

// The same, but calls eight(group, at, n, finite) for eight small groups of whole vectors that lie one after another.
template <int KIND, class Found, class Eights>
inline bool by_groups(const Tile& tile, Found found, Eights eight) {
  if constexpr (KIND != F32)
    if (tile.group % Pattern<KIND>::AT_ONCE == 0 && tile.group <= AT_MOST && tile.cols % tile.group == 0) {
      const int64_t n = tile.group, count = tile.rows * tile.cols / n;
      bool finite = true;
      int64_t group = 0;
      for (; group + EIGHT <= count; group += EIGHT) eight(group, group * n, n, finite);
      for (; group < count; ++group) found(group, group * n, n, finite);
      return finite;
    }
  return by_groups(tile, found);
}

// The ranges of every group of a tile, each (rows, groups); whether all weights are finite.
template <int KIND>
inline bool tile_ranges(const Tile& tile, float* lo, float* hi, float* extreme) {
  const auto each = [=, &tile](int64_t group, int64_t at, int64_t n, bool& finite) {
    const Range found = range_of<KIND>(tile.weights, at, n, finite);
    lo[group] = found.low, hi[group] = found.high, extreme[group] = found.extreme;
  };
  return by_groups<KIND>(tile, each, [=, &tile](int64_t group, int64_t at, int64_t n, bool& finite) {
    eight_ranges<KIND>(tile.weights, at, n, lo + group, hi + group, extreme + group, finite);
  });
}

inline bool tile_ranges(const Tile& tile, float* lo, float* hi, float* extreme) {
  return with_kind(tile.kind, [&](auto kind) { return tile_ranges<kind>(tile, lo, hi, extreme); });
}

// The largest magnitudes alone.
template <int KIND>
inline bool tile_largest(const Tile& tile, float* largest) {
  const auto each = [=, &tile](int64_t group, int64_t at, int64_t n, bool& finite) {
    largest[group] = largest_of<KIND>(tile.weights, at, n, finite);
  };
  return by_groups<KIND>(tile, each, [=, &tile](int64_t group, int64_t at, int64_t n, bool& finite) {
    eight_largest<KIND>(tile.weights, at, n, largest + group, finite);
  });
}

inline bool tile_largest(const Tile& tile, float* largest) {
  return with_kind(tile.kind, [&](auto kind) { return tile_largest<kind>(tile, largest); });
}

}  // namespace
