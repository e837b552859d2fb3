// Searches for parameters: scales, zero points and offsets, levels of codebooks.

#include "few_trials.h"
#include "kmeans.h"
#include "level_trials.h"
#include "offsets.h"
#include "search.h"
#include "shared.h"
#include "trials.h"

// For every group the scale of the best candidate, refit, in units of 1 / reciprocal, and which of its grids it was.
// TURNED, RESTRICTED and BOTH_SIGNS go without a centre, TURNED with signed reciprocals. THREE_ZEROS and FIVE_ZEROS try
// the zero points from centre - grids/2 on; those that leave out 0 are skipped. A reciprocal of 0 gives 0.
// importance: that of each of the tile's columns, 0 to 2047, or null.
QK_EXPORT void QK_NAME(search)(const Tile* tile, const float* reciprocal, const float* centre,
                               const float* multipliers, int32_t count, float top, Grids grids,
                               const int32_t* importance, double* scale, int32_t* grid) {
  search_tile(*tile, reciprocal, centre, multipliers, count, top, grids, importance, scale, grid);
}

// For every group scale and offset with the least squared error. In scale and offset: a start; the offset, the place of
// code 0, is relative to `middle`, as it is in the result. A reciprocal of the length of the range of 0: only the start
// is refined. Ends of the range are drawn to `count` ratios, at most 24, of their distance from the mean.
// importance: that of each of the tile's columns, 0 to 2047, or null.
QK_EXPORT void QK_NAME(search_offsets)(const Tile* tile, const float* middle, const float* reciprocal,
                                       const double* ratios, int32_t count, int32_t top,
                                       const int32_t* importance, double* scale, double* offset) {
  if (importance)
    Offsets<int32_t, int64_t, 28, true>(*tile, ratios, count, top, importance)
        .run(middle, reciprocal, scale, offset);
  else if (top <= 255)
    Offsets<int16_t, int32_t, 15>(*tile, ratios, count, top, importance)
        .run(middle, reciprocal, scale, offset);
  else
    Offsets<int32_t, int64_t, 32>(*tile, ratios, count, top, importance)
        .run(middle, reciprocal, scale, offset);
}

// Adds the counts of the 16-bit patterns to counts[65536]. Returns 0 when a weight is not finite.
QK_EXPORT int32_t QK_NAME(patterns)(const uint16_t* weights, int64_t n, int32_t kind, int64_t* counts) {
  // Four tables in turn: neighbours are often equal, and a count must not wait for the one before it. By a pointer, or
  // compilers look up where the thread has them for every four weights, which takes as long as counting.
  static thread_local std::vector<uint32_t> room;
  room.assign(4 * 65536, 0);
  auto* part = reinterpret_cast<uint32_t (*)[65536]>(room.data());
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    uint64_t four;
    std::memcpy(&four, weights + i, 8);
    ++part[0][four & 0xffff];
    ++part[1][four >> 16 & 0xffff];
    ++part[2][four >> 32 & 0xffff];
    ++part[3][four >> 48];
  }
  for (const Unaligned16* each = weights; i < n; ++i) ++part[0][each[i]];
  uint32_t bad = 0;
  const uint32_t special = kind == BF16 ? 0x7f80 : 0x7c00;
  for (uint32_t p = 0; p < 65536; ++p) {
    const uint32_t sum = part[0][p] + part[1][p] + part[2][p] + part[3][p];
    bad |= (p & special) == special ? sum : 0;
    counts[p] += sum;
  }
  return bad == 0;
}

// Adds to counts[2^20] how many float32 weights share their upper 20 bits, and to lows[2^20] the sum of their lower 12.
QK_EXPORT int32_t QK_NAME(bins)(const float* weights, int64_t n, int64_t* counts, int64_t* lows) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, weights + i, 4);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
    ++counts[bits >> 12];
    lows[bits >> 12] += bits & 0xfff;
  }
  return bad == 0;
}

// For every group the trial scale that leaves the least squared error with the levels of a codebook (the first of equal
// ones), and, where wanted, for every level the sums over its weights of scale * x and scale^2. `count` of them begin at
// trial + first[group], or, without first, at trial + group * count.
QK_EXPORT void QK_NAME(trial_levels)(const Tile* tile, const Codebook* book, const float* trial, const int32_t* first,
                                     int32_t count, int32_t* best, double* cross, double* square) {
  const Table table = table_of(book, 0);
  const Trials trials = {trial, first, count, 0};
  const int64_t groups = tile->groups();
  LevelTrials found(*tile, table, count);
  if (table.is_few()) FewTrials(*tile, table, trials).run(best);
  if (table.is_few() && !cross) return;
  for (int64_t row = 0; row < tile->rows; ++row)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * tile->group, here = row * groups + g, at = row * tile->cols + begin;
      const int64_t n = tile->length(begin);
      const float* own = trial + trials.begin(here);
      if (!table.is_few()) best[here] = found.best(at, n, own);
      if (cross) found.add_up(at, n, own[best[here]], cross, square);
    }
}

// For every group the trial scale that leaves the least squared error when its weights are rounded to small floats:
// the `plain` one of equal ones, else the first. `count` of them begin at trial + first[group], or, without first, at
// trial + group * count; see trials.h.
// importance: that of each of the tile's columns, or null.
QK_EXPORT void QK_NAME(trial_floats)(const Tile* tile, const Small* small, const float* trial, const int32_t* first,
                                     int32_t count, int32_t plain, const int32_t* importance, int32_t* best) {
  const Trials trials = {trial, first, count, plain};
  TrialFloats(*tile, trials, importance, *small).run(best);
}

// Starts of the last of c + 1 cells of the first j values, at [c * (n + 1) + j], for c = 1 .. k - 1. rows: two scratch
// rows of n + 1.
QK_EXPORT void QK_NAME(kmeans)(const double* weight, const double* sum, const double* square, int64_t n, int32_t k,
                               double* rows, int32_t* start) {
  const Cells cells{weight, sum, square};
  double *before = rows, *after = rows + n + 1;
  before[0] = INFINITY;
  for (int64_t j = 1; j <= n; ++j) before[j] = cells.cost(0, j);
  for (int32_t c = 1; c < k; ++c) {
    for (int64_t j = 0; j <= c; ++j) after[j] = INFINITY;
    cells.layer(before, after, start + c * (n + 1), c + 1, n, c, n - 1);
    double* swap = before;
    before = after;
    after = swap;
  }
}
