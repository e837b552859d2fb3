// Vectors of float64, and one for every sub-block of a super-block.

#pragma once

#include "common.h"

namespace {

#if defined(__AVX512F__) && defined(__AVX512DQ__)
constexpr int DOUBLES = 8;
#else
constexpr int DOUBLES = 4;
#endif

typedef double Doubles __attribute__((vector_size(8 * DOUBLES)));
typedef int64_t DoubleBits __attribute__((vector_size(8 * DOUBLES)));
typedef int32_t Ints __attribute__((vector_size(4 * DOUBLES)));

inline Doubles of(DoubleBits which, Doubles yes, Doubles no) { return which ? yes : no; }

// The lesser and the larger one, b where they are equal.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
inline Doubles lesser(Doubles a, Doubles b) { return Doubles(_mm512_min_pd(__m512d(a), __m512d(b))); }
inline Doubles larger(Doubles a, Doubles b) { return Doubles(_mm512_max_pd(__m512d(a), __m512d(b))); }
#elif defined(__AVX2__)
inline Doubles lesser(Doubles a, Doubles b) { return Doubles(_mm256_min_pd(__m256d(a), __m256d(b))); }
inline Doubles larger(Doubles a, Doubles b) { return Doubles(_mm256_max_pd(__m256d(a), __m256d(b))); }
#else
inline Doubles lesser(Doubles a, Doubles b) { return of(a < b, a, b); }
inline Doubles larger(Doubles a, Doubles b) { return of(a > b, a, b); }
#endif

// The same number in all. `Doubles{} + x` adds a zero to it at run time: a sum of -0 and 0 is not -0.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
inline Doubles all_of(double x) { return Doubles(_mm512_set1_pd(x)); }
#elif defined(__AVX2__)
inline Doubles all_of(double x) { return Doubles(_mm256_set1_pd(x)); }
#else
inline Doubles all_of(double x) { return Doubles{x, x, x, x}; }
#endif

inline Doubles bounded(Doubles value, double least, double most) {
  return larger(lesser(value, Doubles{} + most), Doubles{} + least);
}
inline Doubles nearest(Doubles v) { return (v + 6755399441055744.0) - 6755399441055744.0; }  // 1.5 * 2^52
inline Doubles below(Doubles v) {
  const Doubles r = nearest(v);
  return r - of(r > v, Doubles{} + 1.0, Doubles{});
}

// A number for each of J sub-blocks.
template <int J>
struct Lanes64 {
  static constexpr int V = J / DOUBLES;

  Doubles v[V];

  double operator[](int j) const { return v[j / DOUBLES][j % DOUBLES]; }

  template <class Number>
  void set(const Number* values) {
    double all[J];
    for (int j = 0; j < J; ++j) all[j] = double(values[j]);
    std::memcpy(v, all, sizeof v);
  }

  // The nearest whole numbers, which must fit.
  void whole(int32_t* out) const {
    for (int i = 0; i < V; ++i) {
      const Ints found = __builtin_convertvector(nearest(v[i]), Ints);
      std::memcpy(out + i * DOUBLES, &found, sizeof found);
    }
  }

  double total() const {
    double all = 0;
    for (int j = 0; j < J; ++j) all += (*this)[j];
    return all;
  }
};

// The totals of `count` of them, CHAINS at a time: each is added up in order, so that an addition waits for the one
// before it.
constexpr int CHAINS = 4;

template <int J>
inline void totals(const Lanes64<J>* lanes, int count, double* out) {
  for (int k = 0; k < count; k += CHAINS) {
    double all[CHAINS] = {};
    for (int j = 0; j < J; ++j)
      for (int i = 0; i < CHAINS; ++i) all[i] += lanes[k + i][j];
    std::memcpy(out + k, all, sizeof all);
  }
}

}  // namespace
