// The best of several scales for groups of small floats, by the squared error of their weights in steps of the scale.
//
// Squares are added up in vectors of 8 by blocks of BLOCK weights, whatever the instructions are. Small groups lie side
// by side where there are some for it: each has a lane of its own.

#pragma once

#include "floats.h"

namespace {

// Scales to try: `count` of every group, which begin at trial + first[group], or, without first, at trial + group *
// count; of equal ones the `plain` one counts.
struct Trials {
  const float* trial;
  const int32_t* first;
  int count, plain;

  int64_t begin(int64_t group) const { return first ? first[group] : group * count; }
};

#if defined(__AVX2__)
typedef double EightDoubles __attribute__((vector_size(64)));
typedef int64_t EightPlaces __attribute__((vector_size(64)));

// The best trials so far of sixteen groups; of equal ones the first.
struct Judge {
  EightDoubles least[2] = {INFINITY + EightDoubles{}, INFINITY + EightDoubles{}};
  EightPlaces best[2];

  explicit Judge(int plain) : best{plain + EightPlaces{}, plain + EightPlaces{}} {}

  void add(int place, Sixteen scales, Sixteen sums) {
    Eight scale[2], sum[2];
    std::memcpy(scale, &scales, sizeof scale);
    std::memcpy(sum, &sums, sizeof sum);
    for (int half = 0; half < 2; ++half) {
      const EightDoubles s = __builtin_convertvector(scale[half], EightDoubles);
      const EightDoubles error = s * s * __builtin_convertvector(sum[half], EightDoubles);
      const EightPlaces better = error < least[half];
      least[half] = better ? error : least[half];
      best[half] = better ? place + EightPlaces{} : best[half];
    }
  }

  void store(int32_t* places) const {
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < W; ++i) places[half * W + i] = int32_t(best[half][i]);
  }
};
#endif

struct TrialFloats {
  const Tile& tile;
  const Trials& trials;
  const int32_t* importance;  // of every column of the tile, or null
  const Rounding to;

  TrialFloats(const Tile& tile, const Trials& trials, const int32_t* importance, const Small& small)
      : tile(tile), trials(trials), importance(importance), to(small) {}

  // Errors of magnitudes under N scales, added to the sums of a block; counts: how much each of them counts, or null.
  template <int N>
  void add(const float* x, const float* counts, int n, const float* times, double* sums) const {
    const int whole = n / W;
    const Eight lowest = to.lowest + Eight{}, step = to.step + Eight{}, top = to.top + Eight{};
    Eight sum[N] = {};
    for (int i = 0; i < whole; ++i) {
      Eight v, often;
      std::memcpy(&v, x + i * W, sizeof v);
      if (counts) std::memcpy(&often, counts + i * W, sizeof often);
      for (int k = 0; k < N; ++k) {
        const Eight a = v * times[k], e = a - Rounding::land(lesser(a, top), lowest, step).value();
        sum[k] += counts ? e * e * often : e * e;
      }
    }
    for (int k = 0; k < N; ++k) {
      sums[k] += double(fold(sum[k]));
      for (int i = whole * W; i < n; ++i) {  // the rest, which does not fill a vector
        const float a = x[i] * times[k];
        const float e = a - Rounding::land(lesser(a, to.top), to.lowest, to.step).value();
        sums[k] += double(counts ? e * e * counts[i] : e * e);
      }
    }
  }

  // The place of the best trial of a group.
  int32_t of_group(int64_t here, int64_t at, int64_t begin, int64_t n) const {
    const float* own = trials.trial + trials.begin(here);
    float x[BLOCK], counts[BLOCK], times[LIMITS.trials];
    for (int k = 0; k < trials.count; ++k) times[k] = 1.0f / own[k];
    double sums[LIMITS.trials] = {};
    for (int64_t from = 0; from < n; from += BLOCK) {
      const int m = int(n - from < BLOCK ? n - from : BLOCK);
      for (int i = 0; i < m; i += LANES)
        load(tile.weights, tile.kind, at + begin + from + i, m - i < LANES ? m - i : LANES, x + i);
      for (int i = 0; i < m; ++i) x[i] = std::fabs(x[i]);
      if (importance)
        for (int i = 0; i < m; ++i) counts[i] = float(importance[begin + from + i]);
      const float* often = importance ? counts : nullptr;
      int k = 0;  // several at a time: their operations need not wait for each other
      for (; k + 3 <= trials.count; k += 3) add<3>(x, often, m, times + k, sums + k);
      if (trials.count - k == 2) add<2>(x, often, m, times + k, sums + k);
      if (trials.count - k == 1) add<1>(x, often, m, times + k, sums + k);
    }
    const auto error = [&](int k) { return double(own[k]) * double(own[k]) * sums[k]; };
    int32_t found = trials.plain;
    double least = error(found);
    for (int k = 0; k < trials.count; ++k)
      if (error(k) < least) least = error(k), found = k;
    return found;
  }

#if defined(__AVX2__)
  static constexpr int MOST_ABREAST = 256;  // weights of a group that lie side by side with those of others

  bool side_by_side() const {
    const bool whole = tile.cols % tile.group == 0 && tile.group % LANE_COUNT == 0;
    return whole && tile.group <= MOST_ABREAST && !importance;
  }

  // The squared errors of the groups in lanes under a scale each, in steps.
  static Sixteen errors(const Sixteen* x, int n, Sixteen times, Sixteen lowest, Sixteen step, Sixteen top) {
    Sixteen sum[W];
    for (int j = 0; j < W; ++j) sum[j] = all(0);
    for (int i = 0; i < n; i += W)
      for (int j = 0; j < W; ++j) {
        const Sixteen a = x[i + j] * times, e = a - Rounding::land(lesser(a, top), lowest, step).value();
        sum[j] = sum[j] + e * e;
      }
    for (int j = 0; j < W / 2; ++j) sum[j] = sum[j] + sum[j + W / 2];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
  }

  // The places of the best trials of groups, sixteen at a time; how many groups were done.
  template <int KIND>
  int64_t abreast(int64_t groups, int32_t* best) const {
    const int n = int(tile.group);
    const Sixteen lowest = all(to.lowest), step = all(to.step), top = all(to.top);
    Sixteen x[MOST_ABREAST];
    int64_t done = 0;
    for (; done + LANE_COUNT <= groups; done += LANE_COUNT) {
      int32_t begin[LANE_COUNT];
      for (int i = 0; i < LANE_COUNT; ++i) begin[i] = int32_t(trials.begin(done + i));
      for (int from = 0; from < n; from += LANE_COUNT) {
        for (int i = 0; i < LANE_COUNT; ++i)
          x[from + i] = magnitude(weights16<KIND>(tile.weights, (done + i) * n + from));
        transpose(x + from);
      }
      Judge judge(trials.plain);
      const auto attempt = [&](int k) {
        const Sixteen scale = gathered(trials.trial + k, begin);
        judge.add(k, scale, errors(x, n, all(1) / scale, lowest, step, top));
      };
      attempt(trials.plain);
      for (int k = 0; k < trials.count; ++k)
        if (k != trials.plain) attempt(k);
      judge.store(best + done);
    }
    return done;
  }
#endif

  // The place of the best trial of every group.
  void run(int32_t* best) const {
    const int64_t across = tile.groups(), groups = tile.rows * across;
    int64_t here = 0;
#if defined(__AVX2__)
    if (side_by_side())
      here = with_kind(tile.kind, [&](auto kind) { return this->abreast<kind>(groups, best); });
#endif
    for (; here < groups; ++here) {
      const int64_t begin = here % across * tile.group;
      best[here] = of_group(here, here / across * tile.cols, begin, tile.length(begin));
    }
  }
};

}  // namespace
