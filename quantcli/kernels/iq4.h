// The levels of ggml's IQ4: the nearest to whole numbers of 8 bits.

#pragma once

#include "common.h"

namespace {

constexpr int8_t TABLE_LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// The level nearest to a whole number of 8 bits, the lower one of two.
constexpr int8_t level_of(int quotient) {
  int k = 0;
  while (k < 15 && 2 * quotient > TABLE_LEVELS[k] + TABLE_LEVELS[k + 1]) ++k;
  return TABLE_LEVELS[k];
}

// For runs of 8 such numbers the first one's level, how much more the last one's is, and the last of the first level:
// levels lie 11 apart or more. In the order of their bits: those of 0 and above first.
struct Runs {
  int8_t first[32] = {}, more[32] = {}, until[32] = {};
  constexpr Runs() {
    for (int k = 0; k < 32; ++k) {
      const int begin = k < 16 ? 8 * k : 8 * k - 256;
      first[k] = level_of(begin);
      more[k] = int8_t(level_of(begin + 7) - first[k]);
      int last = begin;
      while (last < begin + 7 && level_of(last + 1) == first[k]) ++last;
      until[k] = int8_t(last);
    }
  }
};
constexpr Runs RUNS;

#if defined(__AVX2__)
// Of the run of 8 that each byte lies in.
inline __m256i of_run(const int8_t* table, __m256i run, __m256i bytes) {
  const auto half = [](const int8_t* t) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t)));
  };
  return _mm256_blendv_epi8(_mm256_shuffle_epi8(half(table), run), _mm256_shuffle_epi8(half(table + 16), run), bytes);
}

// Two vectors of quotients to their levels.
inline void to_levels(__m256i* two) {
  const __m256i bytes = _mm256_packs_epi16(two[0], two[1]);
  const __m256i run = _mm256_and_si256(_mm256_srli_epi16(bytes, 3), _mm256_set1_epi8(15));
  const __m256i above = _mm256_cmpgt_epi8(bytes, of_run(RUNS.until, run, bytes));
  const __m256i more = _mm256_and_si256(above, of_run(RUNS.more, run, bytes));
  const __m256i level = _mm256_add_epi8(of_run(RUNS.first, run, bytes), more);
  two[0] = _mm256_srai_epi16(_mm256_unpacklo_epi8(level, level), 8);
  two[1] = _mm256_srai_epi16(_mm256_unpackhi_epi8(level, level), 8);
}
#endif

#if defined(__AVX512BW__)
inline __m512i of_run(const int8_t* table, __m512i run, __m512i bytes) {
  const auto half = [](const int8_t* t) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t)));
  };
  const __m512i low = _mm512_shuffle_epi8(half(table), run);
  return _mm512_mask_shuffle_epi8(low, _mm512_movepi8_mask(bytes), half(table + 16), run);
}

inline void to_levels(__m512i* two) {
  const __m512i bytes = _mm512_packs_epi16(two[0], two[1]);
  const __m512i run = _mm512_and_si512(_mm512_srli_epi16(bytes, 3), _mm512_set1_epi8(15));
  const __mmask64 above = _mm512_cmpgt_epi8_mask(bytes, of_run(RUNS.until, run, bytes));
  const __m512i first = of_run(RUNS.first, run, bytes);
  const __m512i level = _mm512_mask_add_epi8(first, above, first, of_run(RUNS.more, run, bytes));
  two[0] = _mm512_srai_epi16(_mm512_unpacklo_epi8(level, level), 8);
  two[1] = _mm512_srai_epi16(_mm512_unpackhi_epi8(level, level), 8);
}
#endif

}  // namespace
