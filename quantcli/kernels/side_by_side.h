// The search for scales of search.h with groups side by side: each has a lane of its own, so that sums need no folding.
//
// A lane holds two weights of 16 bits. Sums are exact, so the order of weights in a group is free, and the results are
// those of search.h.

#pragma once

#include "vectors.h"

#if defined(__AVX2__)
namespace {

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)

typedef __m512i Pairs;
constexpr int ABREAST = 16;  // groups in a register

inline Pairs all_pairs(int16_t v) { return _mm512_set1_epi16(v); }
inline Pairs load_pairs(const void* p) { return _mm512_loadu_si512(p); }
inline void store_pairs(Pairs v, void* p) { _mm512_storeu_si512(p, v); }
inline Pairs codes_of(Pairs u, Pairs candidate, Pairs low, Pairs high) {
  return _mm512_min_epi16(_mm512_max_epi16(_mm512_mulhrs_epi16(u, candidate), low), high);
}
inline Pairs products(Pairs sum, Pairs a, Pairs b) { return _mm512_dpwssd_epi32(sum, a, b); }

// 32 floats times a unit and a factor as whole numbers, in any order.
inline Pairs whole_numbers(Sixteen a, Sixteen b, Sixteen unit, Sixteen factor) {
  return _mm512_packs_epi32(_mm512_cvtps_epi32((a * unit * factor).v), _mm512_cvtps_epi32((b * unit * factor).v));
}

#else

typedef __m256i Pairs;
constexpr int ABREAST = 8;

inline Pairs all_pairs(int16_t v) { return _mm256_set1_epi16(v); }
inline Pairs load_pairs(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_pairs(Pairs v, void* p) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline Pairs codes_of(Pairs u, Pairs candidate, Pairs low, Pairs high) {
  return _mm256_min_epi16(_mm256_max_epi16(_mm256_mulhrs_epi16(u, candidate), low), high);
}
inline Pairs products(Pairs sum, Pairs a, Pairs b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }

inline Pairs whole_numbers(Sixteen x, Sixteen unit, Sixteen factor) {
#if defined(__AVX512BW__)
  const __m512i v = _mm512_cvtps_epi32((x * unit * factor).v);
  return _mm256_packs_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
#else
  const Sixteen y = x * unit * factor;
  return _mm256_packs_epi32(_mm256_cvtps_epi32(y.a), _mm256_cvtps_epi32(y.b));
#endif
}

#endif

constexpr int STRIDE = 2 * ABREAST;  // weights of a group that are transposed at a time

// The weights of ABREAST groups as pairs, place by place, and the best candidate of each so far.
struct SideBySide {
  const Tile& tile;
  const int16_t* candidate;
  int count;
  float factor;
  alignas(64) Pairs u[REACH / 2];
  alignas(64) Pairs low[MOST_GRIDS], high[MOST_GRIDS];
  int64_t at[ABREAST], length[ABREAST];
  float unit[ABREAST];
  double most[ABREAST], per[ABREAST], cross[ABREAST], grid[ABREAST];
  std::vector<double>& sums;  // of groups that have more than REACH weights: cross and square of candidates and grids

  SideBySide(const Tile& tile, const int16_t* candidate, int count, float factor, std::vector<double>& sums)
      : tile(tile), candidate(candidate), count(count), factor(factor), sums(sums) {}

  // Places [first, first + n) of the groups, filled up with zeros; the number of pairs.
  int read(int64_t first, int64_t n) {
    return with_kind(tile.kind, [&](auto kind) { return this->read<kind>(first, n); });
  }

  template <int KIND>
  int read(int64_t first, int64_t n) {
    int filled = 0;
    for (int64_t from = 0; from < n; from += STRIDE, filled += ABREAST) {
      Pairs rows[ABREAST];
      for (int i = 0; i < ABREAST; ++i) {
        const int64_t left = length[i] - first - from;
        const Sixteen own = all(unit[i]), times = all(factor);
        float x[STRIDE] = {};
        const bool whole = left >= STRIDE;
        if (!whole && left > 0) load(tile.weights, KIND, at[i] + first + from, int(left), x);
        const auto weights = [&](int j) {
          return whole ? weights16<KIND>(tile.weights, at[i] + first + from + j) : load16(x + j);
        };
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
        rows[i] = whole_numbers(weights(0), weights(16), own, times);
#else
        rows[i] = whole_numbers(weights(0), own, times);
#endif
      }
      transpose(rows, u + filled);
    }
    return filled;
  }

  // Sums of COUNT candidates from the k-th on with every grid: [candidate][grid][cross, square][lane].
  template <int GRIDS, int COUNT>
  void add(int filled, int k, int32_t (*found)[GRIDS][2][ABREAST]) const {
    Pairs sum[COUNT][GRIDS][2], by[COUNT];
    for (int j = 0; j < COUNT; ++j) {
      by[j] = all_pairs(candidate[k + j]);
      for (int g = 0; g < GRIDS; ++g) sum[j][g][0] = sum[j][g][1] = all_pairs(0);
    }
    for (int p = 0; p < filled; ++p)
      for (int j = 0; j < COUNT; ++j)
        for (int g = 0; g < GRIDS; ++g) {
          const Pairs c = codes_of(u[p], by[j], low[g], high[g]);
          sum[j][g][0] = products(sum[j][g][0], u[p], c);
          sum[j][g][1] = products(sum[j][g][1], c, c);
        }
    for (int j = 0; j < COUNT; ++j)
      for (int g = 0; g < GRIDS; ++g)
        for (int s = 0; s < 2; ++s) store_pairs(sum[j][g][s], found[j][g][s]);
  }

  // gain / square against most / per, without dividing.
  template <class Number>
  void judge(const Number* crosses, const Number* squares, int g) {
    for (int i = 0; i < ABREAST; ++i) {
      const double c = double(crosses[i]), square = double(squares[i]), gain = c * c;
      const bool better = gain * per[i] > most[i] * square;
      most[i] = better ? gain : most[i];
      per[i] = better ? square : per[i];
      cross[i] = better ? c : cross[i];
      grid[i] = better ? double(g) : grid[i];
    }
  }

  template <int GRIDS>
  void best() {
    constexpr int COUNT = GRIDS == 1 ? PAIRED : 1;
    int64_t n = 0;
    for (int i = 0; i < ABREAST; ++i) {
      n = length[i] > n ? length[i] : n;
      most[i] = -1, per[i] = 1, cross[i] = 0, grid[i] = 0;
    }
    const bool several = n > REACH;
    const size_t each = size_t(GRIDS) * 2 * ABREAST;
    if (several) sums.assign(size_t(count) * each, 0);
    int32_t found[COUNT][GRIDS][2][ABREAST];
    for (int64_t first = 0; first < n; first += REACH) {
      const int filled = read(first, n - first < REACH ? n - first : REACH);
      for (int k = 0; k < count; k += COUNT) {
        add<GRIDS, COUNT>(filled, k, found);
        for (int j = 0; j < COUNT && k + j < count; ++j) {
          if (several)
            for (size_t s = 0; s < each; ++s) sums[size_t(k + j) * each + s] += double((&found[j][0][0][0])[s]);
          else
            for (int g = 0; g < GRIDS; ++g) judge(found[j][g][0], found[j][g][1], g);
        }
      }
    }
    for (int k = 0; several && k < count; ++k)
      for (int g = 0; g < GRIDS; ++g) {
        const double* own = &sums[size_t(k) * each + size_t(g) * 2 * ABREAST];
        judge(own, own + ABREAST, g);
      }
  }

  // The grids of a batch; one that lies beyond 0 is a point, which no candidate wins with.
  void limit(Grids grids, const float* centre, int16_t top, int64_t batch, int own) {
    if (!centre) {
      const int16_t lowest = grids == BOTH_SIGNS ? int16_t(-top - 1) : int16_t(-top);
      low[0] = all_pairs(lowest), high[0] = all_pairs(grids == TURNED ? int16_t(top + 1) : top);
      low[1] = all_pairs(int16_t(-top)), high[1] = all_pairs(int16_t(top + 1));
      return;
    }
    for (int g = 0; g < grids; ++g) {
      int16_t lows[2 * ABREAST] = {}, highs[2 * ABREAST] = {};
      for (int i = 0; i < own; ++i) {
        const int lowest = grids / 2 - g - int(centre[batch + i]), highest = top + lowest;
        const bool good = lowest <= 0 && highest >= 0;
        lows[2 * i] = lows[2 * i + 1] = int16_t(good ? lowest : 0);
        highs[2 * i] = highs[2 * i + 1] = int16_t(good ? highest : 0);
      }
      low[g] = load_pairs(lows), high[g] = load_pairs(highs);
    }
  }

  void run(const float* reciprocal, const float* centre, int16_t top, Grids grids, double* scale, int32_t* which) {
    const int64_t groups = tile.groups(), total = tile.rows * groups;
    for (int64_t batch = 0; batch < total; batch += ABREAST) {
      const int own = int(total - batch < ABREAST ? total - batch : ABREAST);
      for (int i = 0; i < ABREAST; ++i) {
        const int64_t begin = (batch + i) % groups * tile.group;
        at[i] = (batch + i) / groups * tile.cols + begin;
        length[i] = i < own ? tile.length(begin) : 0;
        unit[i] = i < own ? reciprocal[batch + i] : 0;
      }
      limit(grids, centre, top, batch, own);
      if (grids == FIVE_ZEROS)
        best<5>();
      else if (grids == THREE_ZEROS)
        best<3>();
      else if (grids == BOTH_SIGNS)
        best<2>();
      else
        best<1>();
      for (int i = 0; i < own; ++i) {
        scale[batch + i] = cross[i] / per[i] / double(factor);
        which[batch + i] = int32_t(grid[i]);
      }
    }
  }
};

}  // namespace
#endif
