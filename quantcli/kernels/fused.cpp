// A run of weights to stored parameters, codes and sums in one call.
//
// Ranges, search and encoding are those of the separate calls, band by band: each reads its weights from the cache.

#include <algorithm>
#include <vector>

#include "encode.h"
#include "ranges.h"
#include "search.h"
#include "settle.h"

namespace {

constexpr int64_t BAND = 1 << 16;  // weights of a band, unless a row has more

// What is found of the groups of a band.
struct Groups {
  std::vector<float> low, high, extreme, reciprocal, centre;
  std::vector<double> scale;
  std::vector<int32_t> grid;

  void room(size_t count) {
    if (low.size() >= count) return;
    for (auto* values : {&low, &high, &extreme, &reciprocal, &centre}) values->resize(count);
    scale.resize(count);
    grid.resize(count);
  }
};

// Scratch for the row of codes, its errors, and the parameters of the rival.
struct Scratch {
  std::vector<uint16_t> codes;
  std::vector<float> errors, scale, zero;
};

// Tells step(group, parameters as stored) for the groups of a band; whether all are ordinary.
template <class Step>
bool settle(const Rule& rule, const Tile& band, int64_t count, Groups& groups, Step step) {
  if (rule.method == SEARCH) {
    for (int64_t i = 0; i < count; ++i) {
      const Start start = start_of(rule, groups.low[i], groups.high[i], groups.extreme[i]);
      groups.reciprocal[i] = start.reciprocal;
      groups.centre[i] = start.centre;
    }
    search_tile(band, groups.reciprocal.data(), rule.affine ? groups.centre.data() : nullptr, rule.multipliers, rule.count,
                rule.top, Grids(rule.grids), nullptr, groups.scale.data(), groups.grid.data());
  }
  bool good = true;
  for (int64_t i = 0; i < count; ++i) {
    const float low = groups.low[i], high = groups.high[i], extreme = groups.extreme[i];
    const Start start = {groups.reciprocal[i], groups.centre[i]};
    const Found found = rule.method == SPANNING  ? spanning(rule, low, high)
                        : rule.method == EXTREME ? extreme_on_lowest(rule, extreme)
                                                 : searched(rule, start, groups.scale[i], groups.grid[i], low, high, extreme);
    good &= ordinary(rule, found);
    step(i, rounded_to(found.scale, rule.scale_kind), settled_zero(rule, found.zero));
  }
  return good;
}

}  // namespace

// Parameters of every group, (rows, groups), codes as encode makes them, and sums[5]: those of encode, and the squared
// error of the rival, another rule that is only measured. zero, packed and rival may be null: zero points of symmetric
// rules are those of the grid. Returns 0, and nothing of it counts, where something is out of the ordinary: then the
// separate calls and their callers decide.
QK_EXPORT int32_t QK_NAME(quantize)(const Tile* tile, const Rule* rule, const Rule* rival, float* scale, float* zero,
                                    uint8_t* packed, double* sums) {
  static thread_local Groups groups;
  static thread_local Scratch scratch;
  const int64_t across = (tile->cols + tile->group - 1) / tile->group, size = tile->kind == F32 ? 4 : 2;
  const int64_t height = std::max<int64_t>(1, BAND / std::max<int64_t>(tile->cols, 1));
  groups.room(size_t(height * across));
  if (scratch.codes.size() < size_t(tile->cols + 40)) scratch.codes.resize(size_t(tile->cols + 40));
  if (scratch.errors.size() < size_t(tile->cols)) scratch.errors.resize(size_t(tile->cols));
  if (scratch.scale.size() < size_t(height * across)) {
    scratch.scale.resize(size_t(height * across));
    scratch.zero.resize(size_t(height * across));
  }
  Totals totals, other;
  for (int64_t row = 0; row < tile->rows; row += height) {
    const auto* weights = static_cast<const uint8_t*>(tile->weights) + row * tile->cols * size;
    const Tile band = {weights, std::min(height, tile->rows - row), tile->cols, tile->group, tile->kind};
    const int64_t count = band.rows * across;
    if (!tile_ranges(band, groups.low.data(), groups.high.data(), groups.extreme.data())) return 0;
    const auto encode = [&](const Rule& own, float* scales, float* zeros, uint8_t* out, Totals& into) {
      const bool good = settle(own, band, count, groups, [&](int64_t i, float s, float z) {
        scales[i] = s;
        if (zeros) zeros[i] = z;
      });
      const Params params = {scales, own.affine ? zeros : nullptr, nullptr, across};
      float* errors = own.preserve ? scratch.errors.data() : nullptr;
      if (good) encode_tile<false>(band, params, own.grid, scratch.codes.data(), errors, out, into);
      return good;
    };
    uint8_t* out = packed ? packed + row * row_bytes(tile->cols, rule->grid.bits) : nullptr;
    if (!encode(*rule, scale + row * across, zero ? zero + row * across : nullptr, out, totals)) return 0;
    if (rival && !encode(*rival, scratch.scale.data(), scratch.zero.data(), nullptr, other)) return 0;
  }
  const bool measured = packed != nullptr;
  sums[0] = folded(totals.sse);
  sums[1] = measured ? folded(totals.power) : 0;
  sums[2] = measured ? totals.worst : 0;
  sums[3] = measured ? double(totals.clipped) : 0;
  sums[4] = rival ? folded(other.sse) : 0;
  return trusted(sums[0]) && (!measured || trusted(sums[1])) && (!rival || trusted(sums[4]));
}
