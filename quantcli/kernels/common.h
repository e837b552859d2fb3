// Shared by all native kernels: names of the variants, types of weights, and how they are loaded.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__F16C__) || defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef QK_VARIANT
#define QK_VARIANT base
#endif
#define QK_JOIN2(a, b) qk_##a##_##b
#define QK_JOIN(a, b) QK_JOIN2(a, b)
#define QK_NAME(name) QK_JOIN(QK_VARIANT, name)
#if defined(_WIN32)
#define QK_EXPORT extern "C" __declspec(dllexport)
#else
#define QK_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

// Weights that go through arrays at a time.
constexpr int LANES = 256;

enum Kind : int32_t { BF16 = 0, F16 = 1, F32 = 2 };
enum Mode : int32_t { INTEGER = 0, OFFSET = 1, BINARY = 2, LEVELS = 3 };

// The grids of signed codes that the search for scales tries, `top` the highest code; table.py names them the same.
// The value of those with zero points is how many zero points are tried around the given one.
enum Grids : int32_t {
  TURNED = 0,       // -top..top+1 alone, for weights turned so that the largest is positive
  RESTRICTED = 1,   // -top..top
  BOTH_SIGNS = 2,   // -top-1..top and -top..top+1
  THREE_ZEROS = 3,  // -z..top-z for zero points z
  FIVE_ZEROS = 5,
};

// Limits of the searches; library.py holds the same numbers, and rejects a library with others.
struct Limits {
  int32_t candidates, ends, trials, importance;
};
constexpr Limits LIMITS = {
    512,   // candidate scales of the search for scales: their scores lie on the stack, 5 grids of 16 bytes each
    24,    // places of either end of a range; their combinations are tried, 576
    64,    // trial scales for the levels of a codebook
    2047,  // importance of a column: with weights of 16 bits and codes of 16 sums stay exact in 64
};

// Stands for the functions that Python calls and the structures it passes; library.py has the same number and refuses a
// library with another one, which would crash. tests/kernels/test_interface.py says what it has to be.
constexpr int32_t INTERFACE = 0x53398c3d;

// The arguments that Python passes, field by field as records.py declares them.

// Weights of 16 bits lie at any address: a file may begin its tensors at odd ones.
typedef uint16_t Unaligned16 __attribute__((aligned(1)));

struct Tile {
  const void* weights;
  int64_t rows, cols, group;
  int32_t kind;

  // Groups of a row; the last one may be short.
  int64_t groups() const { return (cols + group - 1) / group; }

  // Weights of the group that begins with a column.
  int64_t length(int64_t begin) const { return cols - begin < group ? cols - begin : group; }

  // `count` rows from the first on.
  Tile part(int64_t first, int64_t count) const {
    const int64_t bytes = first * cols * (kind == F32 ? 4 : 2);
    return {static_cast<const uint8_t*>(weights) + bytes, count, cols, group, kind};
  }
};

struct Grid {
  int32_t mode, bits, midrise;
  float umin, umax, zero;  // limits of the unsigned code; the zero every group shares when none is given
};

// A small float: bits of its mantissa (-1: none), the exponent of its smallest normal number, its largest number.
struct Small {
  int32_t mantissa, lowest;
  float top;
};

// Levels of the codes of `tables` codebooks (1: shared by all rows), 2^bits floats each, and the lookup of codes:
// `count` codes in ascending order of their levels, the thresholds between them, and where clipping begins.
struct Codebook {
  const float *levels, *sorted, *thresholds, *limits;
  const uint16_t* order;
  int64_t tables;
  int32_t size, count;
  Small small;
};

// Floats from one row's parameters to the next: 0 where all rows share them.
struct Params {
  const float *scale, *zero;
  const Codebook* codebook;
  int64_t stride;
};

// Calls run(kind), a constant, for a kind of weights.
template <class Run>
inline auto with_kind(int32_t kind, Run run) {
  switch (kind) {
    case BF16: return run(std::integral_constant<int, BF16>());
    case F16: return run(std::integral_constant<int, F16>());
    default: return run(std::integral_constant<int, F32>());
  }
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float half_to_float(uint16_t h) {
  // The multiplication by 2^112 rebiases the exponent and makes subnormals exact in one go.
  uint32_t magnitude = uint32_t(h & 0x7fffu) << 13;
  float scaled = from_bits(magnitude) * from_bits(0x77800000u);
  uint32_t special = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return from_bits(to_bits(scaled) | special | (uint32_t(h & 0x8000u) << 16));
}

// The float16 nearest to a float32, to even between two.
inline uint16_t to_half(float value) {
  const uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000u, b = bits & 0x7fffffffu;
  if (b >= 0x47800000u) return uint16_t(sign | 0x7c00u);
  if (b < 0x38800000u) return uint16_t(sign | (to_bits(from_bits(b) + 0.5f) - 0x3f000000u));  // 2^-24 is an ulp of 0.5
  return uint16_t(sign | (((b + 0xfffu + (b >> 13 & 1)) >> 13) - (112u << 10)));
}

// The bfloat16 nearest to a finite float32, to even between two.
inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = to_bits(value);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// The sum of N float64 lanes, by halves.
template <int N>
inline double folded(double (&lane)[N]) {
  for (int half = N / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

// Up to LANES weights as float32.
inline void load(const void* weights, int kind, int64_t at, int n, float* out) {
  if (kind == BF16) {
    const Unaligned16* p = static_cast<const Unaligned16*>(weights) + at;
    for (int i = 0; i < n; ++i) out[i] = from_bits(uint32_t(p[i]) << 16);
  } else if (kind == F16) {
    const Unaligned16* p = static_cast<const Unaligned16*>(weights) + at;
    int i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i))));
#endif
    for (; i < n; ++i) out[i] = half_to_float(p[i]);
  } else {
    std::memcpy(out, static_cast<const float*>(weights) + at, size_t(n) * 4);
  }
}

// Vectors of 8 float32, and the sum of one by halves.

constexpr int W = 8;         // float32 in a vector of 32 bytes
constexpr int BLOCK = 1024;  // weights whose float32 sums are carried on in float64

typedef float Eight __attribute__((vector_size(32)));
typedef int32_t EightInts __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t IntFour __attribute__((vector_size(16)));

inline float fold(Eight v) {
  Four half[2];
  std::memcpy(half, &v, sizeof half);
  const Four s = half[0] + half[1];
  return (s[0] + s[2]) + (s[1] + s[3]);
}

struct Pair {
  float first, second;
};

// The sums of two vectors, each as above.
inline Pair fold(Eight a, Eight b) {
#ifdef __clang__
  return {fold(a), fold(b)};
#else
  Four x[2], y[2];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  const Four s = x[0] + x[1], t = y[0] + y[1];
  const Four even = __builtin_shuffle(s, t, IntFour{0, 4, 1, 5}) + __builtin_shuffle(s, t, IntFour{2, 6, 3, 7});
  return {even[0] + even[2], even[1] + even[3]};
#endif
}

inline Eight pick(EightInts which, Eight yes, Eight no) { return which ? yes : no; }

// The lesser and the larger one, b where they are equal.
inline float lesser(float a, float b) { return a < b ? a : b; }
inline float larger(float a, float b) { return a > b ? a : b; }
#ifdef __AVX__
inline Eight lesser(Eight a, Eight b) {
  return reinterpret_cast<Eight>(_mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
inline Eight larger(Eight a, Eight b) {
  return reinterpret_cast<Eight>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
#else
inline Eight lesser(Eight a, Eight b) { return pick(a < b, a, b); }
inline Eight larger(Eight a, Eight b) { return pick(a > b, a, b); }
#endif

}  // namespace
