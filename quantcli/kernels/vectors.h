// Sixteen float32 at a time, one column each: a register of AVX-512, two of AVX2, or four of 16 bytes.
//
// Every operation is the IEEE one on each lane, so that all three give the same numbers. Whole: as many numbers of 32
// bits without a sign, or the bits of floats.

#pragma once

#include "transpose.h"

namespace {

constexpr int LANE_COUNT = 16;

template <class Lanes>
inline int64_t sum_of_lanes(const Lanes& count) {
  int32_t lanes[sizeof count / 4];
  std::memcpy(lanes, &count, sizeof lanes);
  int64_t sum = 0;
  for (int32_t lane : lanes) sum += lane;
  return sum;
}

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)

struct Sixteen {
  __m512 v;
};

inline Sixteen all(float value) { return {_mm512_set1_ps(value)}; }
inline Sixteen operator+(Sixteen a, Sixteen b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Sixteen operator-(Sixteen a, Sixteen b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Sixteen operator*(Sixteen a, Sixteen b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Sixteen operator/(Sixteen a, Sixteen b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Sixteen rounded(Sixteen a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Sixteen lesser(Sixteen a, Sixteen b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Sixteen larger(Sixteen a, Sixteen b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Sixteen magnitude(Sixteen a) { return {_mm512_abs_ps(a.v)}; }

// Bit i: whether a is below b in lane i.
inline uint32_t below(Sixteen a, Sixteen b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }

inline Sixteen load16(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(Sixteen a, float* p) { _mm512_storeu_ps(p, a.v); }

inline Sixteen gathered(const float* values, const int32_t* at) {
  return {_mm512_i32gather_ps(_mm512_loadu_si512(at), values, 4)};
}

template <int KIND>
inline Sixteen weights16(const void* weights, int64_t at) {
  if (KIND == F32) return load16(static_cast<const float*>(weights) + at);
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(weights) + at));
  if (KIND == F16) return {_mm512_cvtph_ps(raw)};
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}

struct Whole {
  __m512i v;
};

inline Whole all_whole(int32_t value) { return {_mm512_set1_epi32(value)}; }
inline Whole bytes16(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

// Of sixteen values those at places.
inline Sixteen picked(Sixteen values, Whole at) { return {_mm512_permutexvar_ps(at.v, values.v)}; }
inline Whole whole(Sixteen a) { return {_mm512_cvtps_epi32(a.v)}; }
inline Whole bits_of(Sixteen a) { return {_mm512_castps_si512(a.v)}; }
inline Sixteen floats_of(Whole a) { return {_mm512_castsi512_ps(a.v)}; }
inline Whole operator+(Whole a, Whole b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Whole operator-(Whole a, Whole b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline Whole operator&(Whole a, Whole b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Whole operator|(Whole a, Whole b) { return {_mm512_or_si512(a.v, b.v)}; }
inline Whole operator>>(Whole a, int n) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }
inline Whole operator<<(Whole a, int n) { return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(n))}; }

// Whole numbers of 0 to 255 as bytes.
inline void store_bytes(Whole a, uint8_t* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

inline void add_to(double* lanes, Sixteen a) {
  const __m256 high = _mm512_extractf32x8_ps(a.v, 1);
  _mm512_storeu_pd(lanes, _mm512_add_pd(_mm512_loadu_pd(lanes), _mm512_cvtps_pd(_mm512_castps512_ps256(a.v))));
  _mm512_storeu_pd(lanes + 8, _mm512_add_pd(_mm512_loadu_pd(lanes + 8), _mm512_cvtps_pd(high)));
}

// Sixteen rows become the columns.
inline void transpose(Sixteen* rows) {
  __m512i own[LANE_COUNT];
  std::memcpy(own, rows, sizeof own);
  transpose(own, own);
  std::memcpy(rows, own, sizeof own);
}

// In how many lanes something was so; fewer than 2^31 in each, for a tile has fewer weights.
struct Counter {
  __m512i count = _mm512_setzero_si512();
  void add(__mmask16 lanes) { count = _mm512_mask_sub_epi32(count, lanes, count, _mm512_set1_epi32(-1)); }
  void add_different(Sixteen a, Sixteen b) { add(_mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ)); }
  void add_below(Sixteen a, Sixteen b) { add(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)); }
  int64_t total() const { return sum_of_lanes(count); }
};

#elif defined(__AVX2__)

struct Sixteen {
  __m256 a, b;
};

inline Sixteen all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Sixteen operator+(Sixteen x, Sixteen y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Sixteen operator-(Sixteen x, Sixteen y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Sixteen operator*(Sixteen x, Sixteen y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Sixteen operator/(Sixteen x, Sixteen y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Sixteen rounded(Sixteen x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
inline Sixteen lesser(Sixteen x, Sixteen y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Sixteen larger(Sixteen x, Sixteen y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Sixteen magnitude(Sixteen x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}

inline uint32_t below(Sixteen x, Sixteen y) {
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ));
  return uint32_t(low | _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)) << 8);
}

inline Sixteen load16(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(Sixteen x, float* p) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}

inline Sixteen gathered(const float* values, const int32_t* at) {
  const __m256i* p = reinterpret_cast<const __m256i*>(at);
  return {_mm256_i32gather_ps(values, _mm256_loadu_si256(p), 4),
          _mm256_i32gather_ps(values, _mm256_loadu_si256(p + 1), 4)};
}

template <int KIND>
inline __m256 weights8(const uint16_t* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  if (KIND == F16) return _mm256_cvtph_ps(raw);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}

template <int KIND>
inline Sixteen weights16(const void* weights, int64_t at) {
  if (KIND == F32) return load16(static_cast<const float*>(weights) + at);
  const uint16_t* p = static_cast<const uint16_t*>(weights) + at;
  return {weights8<KIND>(p), weights8<KIND>(p + 8)};
}

struct Whole {
  __m256i a, b;
};

inline Whole all_whole(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline Whole bytes16(const uint8_t* p) {
  const __m128i places = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(places), _mm256_cvtepu8_epi32(_mm_srli_si128(places, 8))};
}

inline __m256 picked(Sixteen values, __m256i at) {
  const __m256 low = _mm256_permutevar8x32_ps(values.a, at), high = _mm256_permutevar8x32_ps(values.b, at);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));  // by the bit of 8
}
inline Sixteen picked(Sixteen values, Whole at) { return {picked(values, at.a), picked(values, at.b)}; }
inline Whole whole(Sixteen x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline Whole bits_of(Sixteen x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline Sixteen floats_of(Whole x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline Whole operator+(Whole x, Whole y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Whole operator-(Whole x, Whole y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
inline Whole operator&(Whole x, Whole y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline Whole operator|(Whole x, Whole y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
inline Whole operator>>(Whole x, int n) {
  const __m128i by = _mm_cvtsi32_si128(n);
  return {_mm256_srl_epi32(x.a, by), _mm256_srl_epi32(x.b, by)};
}
inline Whole operator<<(Whole x, int n) {
  const __m128i by = _mm_cvtsi32_si128(n);
  return {_mm256_sll_epi32(x.a, by), _mm256_sll_epi32(x.b, by)};
}

inline void store_bytes(Whole x, uint8_t* p) {
  const __m256i both = _mm256_packs_epi32(x.a, x.b);
  const __m256i words = _mm256_permute4x64_epi64(both, 0xd8);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

inline void add_to(double* lanes, Sixteen x) {
  const __m128 quarters[4] = {_mm256_castps256_ps128(x.a), _mm256_extractf128_ps(x.a, 1), _mm256_castps256_ps128(x.b),
                              _mm256_extractf128_ps(x.b, 1)};
  for (int i = 0; i < 4; ++i)
    _mm256_storeu_pd(lanes + 4 * i, _mm256_add_pd(_mm256_loadu_pd(lanes + 4 * i), _mm256_cvtps_pd(quarters[i])));
}

inline void transpose(Sixteen* rows) {
  __m256i upper[2][8], lower[2][8];  // by the halves of rows that they come from, which become rows
  for (int i = 0; i < 8; ++i) {
    upper[0][i] = _mm256_castps_si256(rows[i].a), upper[1][i] = _mm256_castps_si256(rows[i].b);
    lower[0][i] = _mm256_castps_si256(rows[8 + i].a), lower[1][i] = _mm256_castps_si256(rows[8 + i].b);
  }
  for (int half = 0; half < 2; ++half) {
    transpose(upper[half], upper[half]);
    transpose(lower[half], lower[half]);
    for (int i = 0; i < 8; ++i)
      rows[8 * half + i] = {_mm256_castsi256_ps(upper[half][i]), _mm256_castsi256_ps(lower[half][i])};
  }
}

struct Counter {
  __m256i count = _mm256_setzero_si256();
  void add(__m256 a, __m256 b) {
    count = _mm256_sub_epi32(count, _mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
  void add_different(Sixteen x, Sixteen y) {
    add(_mm256_cmp_ps(x.a, y.a, _CMP_NEQ_UQ), _mm256_cmp_ps(x.b, y.b, _CMP_NEQ_UQ));
  }
  void add_below(Sixteen x, Sixteen y) {
    add(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ));
  }
  int64_t total() const { return sum_of_lanes(count); }
};

#else

// Four registers of 16 bytes, which every processor has: compilers make them of these types, but not of arrays.
typedef uint32_t WholeFour __attribute__((vector_size(16)));
constexpr int FOURS = LANE_COUNT / 4;

struct Sixteen {
  Four v[FOURS];
};
struct Whole {
  WholeFour v[FOURS];
};

template <class Found = Sixteen, class Each>
inline Found each_four(Each each) {
  Found found;
  for (int i = 0; i < FOURS; ++i) found.v[i] = each(i);
  return found;
}

inline Sixteen all(float value) {
  return each_four([&](int) { return Four{value, value, value, value}; });
}
inline Sixteen operator+(const Sixteen& a, const Sixteen& b) {
  return each_four([&](int i) { return a.v[i] + b.v[i]; });
}
inline Sixteen operator-(const Sixteen& a, const Sixteen& b) {
  return each_four([&](int i) { return a.v[i] - b.v[i]; });
}
inline Sixteen operator*(const Sixteen& a, const Sixteen& b) {
  return each_four([&](int i) { return a.v[i] * b.v[i]; });
}
inline Sixteen operator/(const Sixteen& a, const Sixteen& b) {
  return each_four([&](int i) { return a.v[i] / b.v[i]; });
}
inline Four magnitude(Four a) { return reinterpret_cast<Four>(reinterpret_cast<IntFour>(a) & INT32_MAX); }
// Adding 2^23 to a magnitude leaves no room for a fraction: SSE2 has no instruction that rounds to whole numbers.
inline Sixteen rounded(const Sixteen& a) {
  constexpr float WHOLE = 8388608.0f;
  return each_four([&](int i) {
    const Four size = magnitude(a.v[i]), whole = (size + WHOLE) - WHOLE;
    const IntFour sign = reinterpret_cast<IntFour>(a.v[i]) & INT32_MIN;
    return reinterpret_cast<Four>(reinterpret_cast<IntFour>(size < WHOLE ? whole : size) | sign);
  });
}
inline Sixteen lesser(const Sixteen& a, const Sixteen& b) {
  return each_four([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Sixteen larger(const Sixteen& a, const Sixteen& b) {
  return each_four([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Sixteen magnitude(const Sixteen& a) {
  return each_four([&](int i) { return magnitude(a.v[i]); });
}

inline uint32_t below(const Sixteen& a, const Sixteen& b) {
  IntFour found = {};
  for (int i = 0; i < FOURS; ++i) found |= (a.v[i] < b.v[i]) & (IntFour{1, 2, 4, 8} << (4 * i));
  return uint32_t(found[0] | found[1] | found[2] | found[3]);
}

inline Sixteen load16(const float* p) {
  Sixteen found;
  std::memcpy(&found, p, sizeof found);
  return found;
}
inline void store(const Sixteen& a, float* p) { std::memcpy(p, &a, sizeof a); }
template <int KIND>
inline Sixteen weights16(const void* weights, int64_t at) {
  float found[LANE_COUNT];
  load(weights, KIND, at, LANE_COUNT, found);
  return load16(found);
}

template <class Value, class Lanes>
struct Array {
  Value v[LANE_COUNT];
  explicit Array(const Lanes& lanes) { std::memcpy(v, &lanes, sizeof v); }
};

inline Whole all_whole(int32_t value) {
  return each_four<Whole>([&](int) { return WholeFour{} + uint32_t(value); });
}
inline Whole bytes16(const uint8_t* p) {
  return each_four<Whole>([&](int i) { return WholeFour{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]}; });
}
inline Sixteen picked(const Sixteen& values, const Whole& at) {
  const Array<float, Sixteen> from(values);
  const Array<uint32_t, Whole> places(at);
  float found[LANE_COUNT];
  for (int i = 0; i < LANE_COUNT; ++i) found[i] = from.v[places.v[i] & 15];
  return load16(found);
}
inline Whole whole(const Sixteen& a) {
  return each_four<Whole>([&](int i) { return reinterpret_cast<WholeFour>(__builtin_convertvector(a.v[i], IntFour)); });
}
inline Whole bits_of(const Sixteen& a) {
  return each_four<Whole>([&](int i) { return reinterpret_cast<WholeFour>(a.v[i]); });
}
inline Sixteen floats_of(const Whole& a) {
  return each_four([&](int i) { return reinterpret_cast<Four>(a.v[i]); });
}
inline Whole operator+(const Whole& a, const Whole& b) {
  return each_four<Whole>([&](int i) { return a.v[i] + b.v[i]; });
}
inline Whole operator-(const Whole& a, const Whole& b) {
  return each_four<Whole>([&](int i) { return a.v[i] - b.v[i]; });
}
inline Whole operator&(const Whole& a, const Whole& b) {
  return each_four<Whole>([&](int i) { return a.v[i] & b.v[i]; });
}
inline Whole operator|(const Whole& a, const Whole& b) {
  return each_four<Whole>([&](int i) { return a.v[i] | b.v[i]; });
}
inline Whole operator>>(const Whole& a, int n) {
  return each_four<Whole>([&](int i) { return a.v[i] >> uint32_t(n); });
}
inline Whole operator<<(const Whole& a, int n) {
  return each_four<Whole>([&](int i) { return a.v[i] << uint32_t(n); });
}

inline void store_bytes(const Whole& a, uint8_t* p) {
  const Array<uint32_t, Whole> from(a);
  for (int i = 0; i < LANE_COUNT; ++i) p[i] = uint8_t(from.v[i]);
}
inline void add_to(double* lanes, const Sixteen& a) {
  const Array<float, Sixteen> from(a);
  for (int i = 0; i < LANE_COUNT; ++i) lanes[i] += double(from.v[i]);
}

struct Counter {
  IntFour count[FOURS] = {};
  void add_different(const Sixteen& a, const Sixteen& b) {
    for (int i = 0; i < FOURS; ++i) count[i] -= a.v[i] != b.v[i];
  }
  void add_below(const Sixteen& a, const Sixteen& b) {
    for (int i = 0; i < FOURS; ++i) count[i] -= a.v[i] < b.v[i];
  }
  int64_t total() const { return sum_of_lanes(count); }
};

#endif

inline int lowest_bit(uint64_t bits) {
#if defined(__GNUC__)
  return __builtin_ctzll(bits);
#else
  int found = 0;
  while (!(bits >> found & 1)) ++found;
  return found;
#endif
}

// The first n < 16 values, then zeros.
inline Sixteen load_some(const float* p, int n) {
  float values[LANE_COUNT] = {};
  std::memcpy(values, p, size_t(n) * 4);
  return load16(values);
}

inline float largest_lane(Sixteen a) {
  float lanes[LANE_COUNT];
  store(a, lanes);
  float found = lanes[0];
  for (float lane : lanes) found = lane > found ? lane : found;
  return found;
}

}  // namespace
