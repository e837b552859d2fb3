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
inline Pairs low_products(Pairs a, Pairs b) { return _mm512_mullo_epi16(a, b); }

// STRIDE floats as whole numbers, in any order.
inline Pairs whole_numbers(const Sixteen* x) {
  return _mm512_packs_epi32(_mm512_cvtps_epi32(x[0].v), _mm512_cvtps_epi32(x[1].v));
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
inline Pairs low_products(Pairs a, Pairs b) { return _mm256_mullo_epi16(a, b); }

inline Pairs whole_numbers(const Sixteen* x) {
#if defined(__AVX512BW__)
  const __m512i v = _mm512_cvtps_epi32(x->v);
  return _mm256_packs_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
#else
  return _mm256_packs_epi32(_mm256_cvtps_epi32(x->a), _mm256_cvtps_epi32(x->b));
#endif
}

#endif

constexpr int STRIDE = 2 * ABREAST;  // weights of a group that are transposed at a time

// Where ABREAST groups begin in a tile, and in a row, and how many weights they have; 0 for lanes without a group.
struct SomeGroups {
  int64_t at[ABREAST], column[ABREAST], length[ABREAST];

  // The groups from one on; how many there are.
  int set(const Tile& tile, int64_t first) {
    const int64_t groups = tile.groups(), left = tile.rows * groups - first;
    const int own = int(left < ABREAST ? left : ABREAST);
    for (int i = 0; i < ABREAST; ++i) {
      const int64_t begin = (first + i) % groups * tile.group;
      at[i] = (first + i) / groups * tile.cols + begin;
      column[i] = begin;
      length[i] = i < own ? tile.length(begin) : 0;
    }
    return own;
  }

  int64_t longest() const {
    int64_t n = 0;
    for (int64_t own : length) n = own > n ? own : n;
    return n;
  }

  // scaled(lane, place, weights) of places [first, first + n), filled up with those of zeros, as pairs; how many pairs.
  template <int KIND, class Scaled>
  int read(const void* weights, int64_t first, int64_t n, Scaled scaled, Pairs* u) const {
    int filled = 0;
    for (int64_t from = 0; from < n; from += STRIDE, filled += ABREAST) {
      Pairs rows[ABREAST];
      for (int i = 0; i < ABREAST; ++i) {
        const int64_t left = length[i] - first - from;
        float x[STRIDE] = {};
        const bool whole = left >= STRIDE;
        if (!whole && left > 0) load(weights, KIND, at[i] + first + from, int(left), x);
        Sixteen found[STRIDE / LANE_COUNT];
        for (int j = 0; j < STRIDE / LANE_COUNT; ++j) {
          const int place = j * LANE_COUNT;
          found[j] = scaled(i, first + from + place, whole ? weights16<KIND>(weights, at[i] + first + from + place) : load16(x + place));
        }
        rows[i] = whole_numbers(found);
      }
      transpose(rows, u + filled);
      if (STRIDE > LANE_COUNT && n - from <= LANE_COUNT) return filled + without_zeros(u + filled);
    }
    return filled;
  }

  // Of groups of up to LANE_COUNT weights, two pairs of four are zeros, as whole_numbers packs them.
  static int without_zeros(Pairs* u) {
    for (int i = 2; i < ABREAST / 2; ++i) u[i] = u[i / 2 * 4 + i % 2];
    return ABREAST / 2;
  }
};

// The weights of ABREAST groups as pairs, place by place, and the best candidate of each so far. WEIGHTED: whether
// columns count differently.
template <bool WEIGHTED>
struct SideBySide {
  const Tile& tile;
  const int16_t* candidate;
  int count;
  float factor;
  const std::vector<float>& importance;  // of columns, and zeros for STRIDE more
  float drop;                            // see search.h
  alignas(64) Pairs u[REACH / 2];
  alignas(64) Pairs much[WEIGHTED ? REACH / 2 : 1], counts[WEIGHTED ? REACH / 2 : 1];
  alignas(64) Pairs low[MOST_GRIDS], high[MOST_GRIDS];
  SomeGroups where;
  float unit[ABREAST];
  double most[ABREAST], per[ABREAST], cross[ABREAST], grid[ABREAST];
  std::vector<double>& sums;  // of groups that have more than REACH weights: cross and square of candidates and grids

  SideBySide(const Tile& tile, const int16_t* candidate, int count, float factor,
             const std::vector<float>& importance, float drop, std::vector<double>& sums)
      : tile(tile), candidate(candidate), count(count), factor(factor), importance(importance), drop(drop),
        sums(sums) {}

  // Places [first, first + n) of the groups, filled up with zeros; the number of pairs.
  int read(int64_t first, int64_t n) {
    const Sixteen times = all(factor);
    const auto scaled = [&](int i, int64_t, Sixteen x) { return x * all(unit[i]) * times; };
    if constexpr (WEIGHTED) {
      const auto often = [&](int i, int64_t place) { return load16(importance.data() + where.column[i] + place); };
      const auto counted = [&](int i, int64_t place, Sixteen) { return often(i, place); };
      const auto product = [&](int i, int64_t place, Sixteen x) {
        return rounded(scaled(i, place, x)) * often(i, place) * all(drop);
      };
      with_kind(tile.kind, [&](auto kind) { return where.read<kind>(tile.weights, first, n, counted, counts); });
      with_kind(tile.kind, [&](auto kind) { return where.read<kind>(tile.weights, first, n, product, much); });
    }
    return with_kind(tile.kind, [&](auto kind) { return where.read<kind>(tile.weights, first, n, scaled, u); });
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
          sum[j][g][0] = products(sum[j][g][0], WEIGHTED ? much[p] : u[p], c);
          sum[j][g][1] = products(sum[j][g][1], WEIGHTED ? low_products(c, counts[p]) : c, c);
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
    const int64_t n = where.longest();
    for (int i = 0; i < ABREAST; ++i) most[i] = -1, per[i] = 1, cross[i] = 0, grid[i] = 0;
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
    const int64_t total = tile.rows * tile.groups();
    for (int64_t batch = 0; batch < total; batch += ABREAST) {
      const int own = where.set(tile, batch);
      for (int i = 0; i < ABREAST; ++i) unit[i] = i < own ? reciprocal[batch + i] : 0;
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
        scale[batch + i] = cross[i] / per[i] / double(factor) / double(drop);
        which[batch + i] = int32_t(grid[i]);
      }
    }
  }
};

}  // namespace
#endif
