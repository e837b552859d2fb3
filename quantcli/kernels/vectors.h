// Sixteen float32 at a time, one column each: a register of AVX-512, two of AVX2, or an array that compilers vectorise.
//
// Every operation is the IEEE one on each lane, so that all three give the same numbers.

#pragma once

#include "common.h"

namespace {

constexpr int LANE_COUNT = 16;

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

template <int KIND>
inline Sixteen weights16(const void* weights, int64_t at) {
  if (KIND == F32) return load16(static_cast<const float*>(weights) + at);
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(weights) + at));
  if (KIND == F16) return {_mm512_cvtph_ps(raw)};
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}

// Whole numbers of 0 to 255 as bytes.
inline void store_bytes(Sixteen a, uint8_t* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

inline void add_to(double* lanes, Sixteen a) {
  const __m256 high = _mm512_extractf32x8_ps(a.v, 1);
  _mm512_storeu_pd(lanes, _mm512_add_pd(_mm512_loadu_pd(lanes), _mm512_cvtps_pd(_mm512_castps512_ps256(a.v))));
  _mm512_storeu_pd(lanes + 8, _mm512_add_pd(_mm512_loadu_pd(lanes + 8), _mm512_cvtps_pd(high)));
}

// How often lanes differed.
struct Differences {
  int64_t count = 0;
  void add(Sixteen a, Sixteen b) { count += __builtin_popcount(_mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ)); }
  int64_t total() const { return count; }
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

inline void store_bytes(Sixteen x, uint8_t* p) {
  const __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
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

struct Differences {
  __m256i count = _mm256_setzero_si256();  // below 2^31 of them in a lane: a tile has fewer weights
  void add(Sixteen x, Sixteen y) {
    const __m256 a = _mm256_cmp_ps(x.a, y.a, _CMP_NEQ_UQ), b = _mm256_cmp_ps(x.b, y.b, _CMP_NEQ_UQ);
    count = _mm256_sub_epi32(count, _mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
  int64_t total() const {
    int32_t lanes[8];
    std::memcpy(lanes, &count, sizeof lanes);
    int64_t sum = 0;
    for (int32_t lane : lanes) sum += lane;
    return sum;
  }
};

#else

struct Sixteen {
  float v[LANE_COUNT];
};

template <class Each>
inline Sixteen each_lane(Each each) {
  Sixteen found;
  for (int i = 0; i < LANE_COUNT; ++i) found.v[i] = each(i);
  return found;
}

inline Sixteen all(float value) {
  return each_lane([&](int) { return value; });
}
inline Sixteen operator+(const Sixteen& a, const Sixteen& b) {
  return each_lane([&](int i) { return a.v[i] + b.v[i]; });
}
inline Sixteen operator-(const Sixteen& a, const Sixteen& b) {
  return each_lane([&](int i) { return a.v[i] - b.v[i]; });
}
inline Sixteen operator*(const Sixteen& a, const Sixteen& b) {
  return each_lane([&](int i) { return a.v[i] * b.v[i]; });
}
inline Sixteen operator/(const Sixteen& a, const Sixteen& b) {
  return each_lane([&](int i) { return a.v[i] / b.v[i]; });
}
inline Sixteen rounded(const Sixteen& a) {
  return each_lane([&](int i) { return std::nearbyintf(a.v[i]); });
}
inline Sixteen lesser(const Sixteen& a, const Sixteen& b) {
  return each_lane([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Sixteen larger(const Sixteen& a, const Sixteen& b) {
  return each_lane([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Sixteen magnitude(const Sixteen& a) {
  return each_lane([&](int i) { return std::fabs(a.v[i]); });
}

inline uint32_t below(const Sixteen& a, const Sixteen& b) {
  uint32_t found = 0;
  for (int i = 0; i < LANE_COUNT; ++i) found |= uint32_t(a.v[i] < b.v[i]) << i;
  return found;
}

inline Sixteen load16(const float* p) {
  Sixteen found;
  std::memcpy(&found, p, sizeof found);
  return found;
}
inline void store(const Sixteen& a, float* p) { std::memcpy(p, &a, sizeof a); }

template <int KIND>
inline Sixteen weights16(const void* weights, int64_t at) {
  Sixteen found;
  load(weights, KIND, at, LANE_COUNT, found.v);
  return found;
}

inline void store_bytes(const Sixteen& a, uint8_t* p) {
  for (int i = 0; i < LANE_COUNT; ++i) p[i] = uint8_t(int32_t(a.v[i]));
}

inline void add_to(double* lanes, const Sixteen& a) {
  for (int i = 0; i < LANE_COUNT; ++i) lanes[i] += double(a.v[i]);
}

struct Differences {
  int64_t count = 0;
  void add(const Sixteen& a, const Sixteen& b) {
    for (int i = 0; i < LANE_COUNT; ++i) count += a.v[i] != b.v[i];
  }
  int64_t total() const { return count; }
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
