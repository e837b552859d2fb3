// A run of weights to stored parameters, codes and sums in one call.
//
// Ranges, search and encoding are those of the separate calls, band by band: each reads its weights from the cache.

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "packing.h"
#include "ranges.h"
#include "settle.h"
#include "shared.h"

namespace {

constexpr int64_t BAND = 1 << 16;  // weights of a band, unless a row has more

// What is found of the groups of a band.
struct Groups {
  std::vector<float> low, high, extreme, reciprocal, centre;
  std::vector<double> scale, zero;
  std::vector<int32_t> grid;    // of the search, or which of the trials
  std::vector<float> trial;     // scales to try, of every group
  std::vector<int32_t> first;   // or where they begin in a list

  void room(size_t count) {
    if (low.size() >= count) return;
    for (auto* values : {&low, &high, &extreme, &reciprocal, &centre}) values->resize(count);
    for (auto* values : {&scale, &zero}) values->resize(count);
    for (auto* values : {&grid, &first}) values->resize(count);
  }
};

// Scratch for the row of codes, its errors, the parameters of the rival, and weights in the order of blocks.
struct Scratch {
  std::vector<uint8_t> laid;
  std::vector<uint16_t> codes;
  std::vector<float> errors, scale, zero;

  void room(size_t cols, size_t groups) {
    if (codes.size() < cols + PADDING) codes.resize(cols + PADDING), errors.resize(cols);
    if (scale.size() < groups) scale.resize(groups), zero.resize(groups);
  }
};

// A row of blocks as a tile of one row, every block a group.
Tile laid_out(const Tile& band, std::vector<uint8_t>& room) {
  const size_t size = band.kind == F32 ? 4 : 2, stride = size_t(band.cols) * size;
  const auto* from = static_cast<const uint8_t*>(band.weights);
  room.resize(std::max(room.size(), size_t(band.rows) * stride));
  uint8_t* out = room.data();
  for (int64_t begin = 0; begin < band.cols; begin += band.group) {
    const size_t width = size_t(band.length(begin)) * size;
    for (int64_t row = 0; row < band.rows; ++row, out += width)
      std::memcpy(out, from + size_t(row) * stride + size_t(begin) * size, width);
  }
  return {room.data(), 1, band.rows * band.cols, band.rows * band.group, band.kind};
}

// The ranges of groups, or by_size those that their largest magnitudes span around 0; whether all weights are finite.
bool look(const Tile& band, bool by_size, int64_t count, Groups& groups) {
  if (!by_size) return tile_ranges(band, groups.low.data(), groups.high.data(), groups.extreme.data());
  const bool finite = tile_largest(band, groups.high.data());
  for (int64_t i = 0; i < count; ++i) groups.low[size_t(i)] = -groups.high[size_t(i)];
  return finite;
}

// The best of the scales that are tried for each group, around the plain ones that `scale` holds.
template <int KIND>
void choose(const Rule& rule, const Tile& band, int64_t count, Groups& groups) {
  double* scale = groups.scale.data();
  int32_t *best = groups.grid.data(), *first = groups.first.data();
  const auto among = [&](const float* trial, const int32_t* begin, int32_t plain) {
    QK_NAME(trial_floats)(&band, &rule.codebook->small, trial, begin, rule.trials, plain, nullptr, best);
  };
  if constexpr (KIND >= E8M0) {
    for (int64_t i = 0; i < count; ++i) first[i] = place_of<KIND>(rule, scale[i]);
    among(rule.values, first, rule.below);
    for (int64_t i = 0; i < count; ++i) scale[i] = double(rule.values[first[i] + best[i]]);
  } else {
    groups.trial.resize(std::max(groups.trial.size(), size_t(count * rule.trials)));
    float* trial = groups.trial.data();
    for (int64_t i = 0; i < count; ++i) stored_trials<KIND>(rule, scale[i], trial + i * rule.trials);
    among(trial, nullptr, 0);
    for (int64_t i = 0; i < count; ++i) scale[i] = double(trial[i * rule.trials + best[i]]);
  }
}

// Whether all weights of a band are 0.
bool all_zero(int64_t count, const Groups& groups) {
  for (int64_t i = 0; i < count; ++i)
    if (groups.low[size_t(i)] != 0 || groups.high[size_t(i)] != 0) return false;
  return true;
}

// The parameters of all groups of a band as a rule finds them.
template <bool AFFINE>
void find(const Rule rule, const Tile& band, int64_t count, Groups& groups) {
  const float *low = groups.low.data(), *high = groups.high.data(), *extreme = groups.extreme.data();
  float *reciprocal = groups.reciprocal.data(), *centre = groups.centre.data();
  double *scale = groups.scale.data(), *zero = groups.zero.data();
  int32_t* grid = groups.grid.data();
  const auto each = [&](auto found) {
    for (int64_t i = 0; i < count; ++i) {
      const Found own = found(i);
      scale[i] = own.scale, zero[i] = own.zero;
    }
  };
  if (rule.method == SPANNING || rule.method == TRIALS) {
    each([=](int64_t i) { return spanning<AFFINE>(rule, low[i], high[i]); });
    if (rule.method == TRIALS) with_kind(rule, [&](auto kind) { choose<kind>(rule, band, count, groups); });
    return;
  }
  if (rule.method == EXTREME) return each([=](int64_t i) { return extreme_on_lowest(rule, extreme[i]); });
  for (int64_t i = 0; i < count; ++i) {
    const Start start = start_of<AFFINE>(rule, low[i], high[i], extreme[i]);
    reciprocal[i] = start.reciprocal, centre[i] = start.centre;
  }
  QK_NAME(search)(&band, reciprocal, AFFINE ? centre : nullptr, rule.multipliers, rule.count, float(rule.top),
                  Grids(rule.grids), nullptr, scale, grid);
  each([=](int64_t i) {
    return searched<AFFINE>(rule, {reciprocal[i], centre[i]}, scale[i], grid[i], low[i], high[i], extreme[i]);
  });
}

// They as stored; whether all are ordinary. zeros: null for symmetric rules.
template <int KIND>
bool store(const Rule rule, int64_t count, const Groups& groups, float* scales, float* zeros) {
  const double *scale = groups.scale.data(), *zero = groups.zero.data();
  const bool tried = rule.method == TRIALS;  // among stored ones
  int32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    bad |= !ordinary(rule, {scale[i], zero[i]});
    scales[i] = tried ? float(scale[i]) : stored<KIND>(rule, scale[i]);
  }
  for (int64_t i = 0; zeros && i < count; ++i) zeros[i] = settled_zero(rule, zero[i]);
  return !bad;
}

bool settle(const Rule& rule, const Tile& band, int64_t count, Groups& groups, float* scales, float* zeros) {
  rule.affine ? find<true>(rule, band, count, groups) : find<false>(rule, band, count, groups);
  return with_kind(rule, [&](auto kind) { return store<kind>(rule, count, groups, scales, zeros); });
}

// One tensor; see below.
int32_t quantize_one(const Tile& tile, const Rule& rule, const Rule* rival, float* scale, float* zero, uint8_t* packed,
                     double* sums) {
  static thread_local Groups groups;
  static thread_local Scratch scratch;
  const bool blocks = rule.height > 1;
  const int64_t across = tile.groups(), wide = std::max<int64_t>(1, BAND / std::max<int64_t>(tile.cols, 1));
  const int64_t height = blocks ? rule.height : wide;
  groups.room(size_t(height * across));
  scratch.room(size_t(tile.cols), size_t(height * across));
  Totals totals, other;
  const bool by_size = rule.by_size() && (!rival || rival->by_size());
  bool zeros = true;
  for (int64_t row = 0; row < tile.rows; row += height) {
    const Tile band = tile.part(row, std::min(height, tile.rows - row));
    const Tile looked = blocks ? laid_out(band, scratch.laid) : band;
    const int64_t count = looked.rows * across, first = row / (blocks ? height : 1) * across;
    if (!look(looked, by_size, count, groups)) return 0;
    zeros = zeros && all_zero(count, groups);
    const auto encode = [&](const Rule& own, float* scales, float* zeros, uint8_t* out, Totals& into) {
      const bool good = settle(own, looked, count, groups, scales, own.affine ? zeros : nullptr);
      const Params params = {scales, own.affine ? zeros : nullptr, own.codebook, blocks ? 0 : across};
      float* errors = own.preserve ? scratch.errors.data() : nullptr;
      if (good) QK_NAME(encode_adding)(band, params, own.grid, scratch.codes.data(), errors, out, into);
      return good;
    };
    uint8_t* out = packed ? packed + row * row_bytes(tile.cols, rule.grid.bits) : nullptr;
    if (!encode(rule, scale + first, zero ? zero + first : nullptr, out, totals)) return 0;
    if (rival && !encode(*rival, scratch.scale.data(), scratch.zero.data(), nullptr, other)) return 0;
  }
  const bool measured = packed != nullptr;
  sums[0] = folded(totals.sse);
  sums[1] = measured ? folded(totals.power) : 0;
  sums[2] = measured ? totals.worst : 0;
  sums[3] = measured ? double(totals.clipped) : 0;
  sums[4] = rival ? folded(other.sse) : 0;
  // A sum of 0 may be one of numbers too small for float32, but not where all weights are 0 or no error is other than 0.
  const bool exact = sums[0] == 0 && (zeros || (measured && sums[2] == 0));
  return (trusted(sums[0]) || exact) && (!measured || trusted(sums[1]) || (zeros && exact)) &&
         (!rival || trusted(sums[4]) || (zeros && sums[4] == 0));
}

}  // namespace

// Of each of `count` tensors of one shape, which lie one after another and have tile->rows / count rows: parameters of
// every group, (rows, groups), codes as encode makes them, and sums[5]: those of encode, and the squared error of the
// rival, another rule that is only measured. zero, packed and rival may be null: zero points of symmetric rules are those
// of the grid. Blocks of rule->height rows have one row of parameters, and come one tensor at a time. Returns 0, and
// nothing of it counts, where something is out of the ordinary: then the separate calls and their callers decide.
QK_EXPORT int32_t QK_NAME(quantize)(const Tile* tile, int64_t count, const Rule* rule, const Rule* rival, float* scale,
                                    float* zero, uint8_t* packed, double* sums) {
  const int64_t rows = tile->rows / count;
  for (int64_t place = 0; place < count; ++place, sums += 5) {
    const int64_t first = place * rows, groups = first * tile->groups();
    uint8_t* out = packed ? packed + first * row_bytes(tile->cols, rule->grid.bits) : nullptr;
    if (!quantize_one(tile->part(first, rows), *rule, rival, scale + groups, zero ? zero + groups : nullptr, out,
                      sums))
      return 0;
  }
  return 1;
}
