// Scales and float offsets with the least squared error: ends of the range from a grid, scored after a least-squares
// refit of both, then alternating codes and refits.
//
// For fixed codes c of weights u the best line s c + o has s = cov(u, c) / var(c) and passes through the means, and the
// squared error falls by cov^2 / var. A candidate only serves to find codes. The ends of the range are drawn towards
// (ratios below 1) or away from (above) the mean of the weights, not the middle of the range: where one weight lies far
// out, the middle is among no weights.
//
// Candidates are compared in the whole numbers of search.h, whose sums are exact and so have no order. The winner and
// the start that was given (min-max) are then refit in float64 to the weights themselves, sums in 8 lanes (weight i of
// a group in lane i % 8, lanes folded by halves), and the better one is kept: no group ends up worse than its start.

#pragma once

#include "common.h"
#include "search.h"

namespace {

constexpr int RATIOS = LIMITS.ends;
constexpr int STEPS = 6;   // refits of the best candidate at most, each to the codes of the one before
constexpr int FOUR = 4;    // candidates that are added up together, so that their sums are folded in one go
constexpr int PART = 256;  // weights of a block: the sum of 256 8-bit codes fits 16 bits
constexpr double MAGIC = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to a whole number

typedef double Doubles __attribute__((vector_size(32)));
constexpr int HALF = 4;  // of the W lanes

// The refit to codes: slope cross / square, and the error it takes off (times the sum of the importances); -1 for codes
// that fall, or are all the same.
struct Line {
  double cross = 0, square = 1, total = 0, gain = -1;
};

// Importances of the weights of a group, and their sum.
struct Moments {
  double count = 0, sum = 0;

  // From sums of codes, their squares and their products with the weights.
  Line line(double total, double square, double cross) const {
    const double c = count * cross - sum * total, s = count * square - total * total;
    return {c, s, total, c > 0 && s > 0 ? c * c / s : -1};
  }

  double offset(double slope, const Line& line) const { return (sum - slope * line.total) / count; }
};

template <class Word, class Sum, int SHIFT, bool WEIGHTED = false>
struct Offsets {
  const Tile& tile;
  const double* ratios;
  const int32_t* importance;
  int ratio_count, top;
  float factor;
  Word low, high;
  // A weight's code under a candidate: clip((weight - zero) * times / 2^SHIFT), signed.
  Word times[RATIOS * RATIOS + FOUR], zero[RATIOS * RATIOS + FOUR];
  // Sums over the blocks of codes, their squares and their products with the weights. Those of 16 bits fit a double.
  typename std::conditional<sizeof(Word) == 2, double, int64_t>::type sums[3][RATIOS * RATIOS + FOUR];
  alignas(32) Word u[PART];
  int32_t w[PART];
  double y[PART], much[PART];

  Offsets(const Tile& tile, const double* ratios, int count, int top, const int32_t* importance)
      : tile(tile), ratios(ratios), importance(importance), ratio_count(count), top(top) {
    double least = ratios[0];
    for (int k = 0; k < count; ++k) least = ratios[k] < least ? ratios[k] : least;
    factor = float(int64_t(1) << fraction<Word, WEIGHTED>(float(top / least)));
    low = Word(-(top + 1) / 2);
    high = Word(top + low);
  }

  void candidate(int k, double step, double place) {
    constexpr double LIMIT = sizeof(Word) > 2 ? 1 << 28 : (1 << 15) - 1;  // numpy multiplies in 53 bits
    const double wanted = double(int64_t(1) << SHIFT) / step;
    times[k] = Word(int32_t(((wanted < LIMIT ? wanted : LIMIT) + MAGIC) - MAGIC));
    zero[k] = Word(int32_t((place + MAGIC) - MAGIC));
  }

  // Candidates whose ends lie at the ratios of the way from the mean to the ends of the range.
  void candidates(double mean) {
    const double half = double(factor) / 2, per = 1.0 / top;
    double ends[RATIOS];
    for (int j = 0; j < ratio_count; ++j) ends[j] = mean + (half - mean) * ratios[j];
    for (int i = 0; i < ratio_count; ++i) {
      const double begin = mean + (-half - mean) * ratios[i];
      for (int j = 0; j < ratio_count; ++j) {
        const double step = (ends[j] - begin) * per;
        candidate(i * ratio_count + j, step, begin - low * step);
      }
    }
    const int last = ratio_count * ratio_count;
    for (int k = last; k % FOUR; ++k) times[k] = times[last - 1], zero[k] = zero[last - 1];
  }

  // Weights [first, first + n) of a group as whole numbers, padded with zeros of importance 0; their number.
  int block(int64_t at, int64_t column, int n, float middle, float unit) {
    float x[PART];
    load(tile.weights, tile.kind, at, n, x);
    for (int i = 0; i < n; ++i) x[i] -= middle;
    fixed(x, n, unit, factor, u);
    int filled = n;
    for (; filled % AT_ONCE; ++filled) u[filled] = 0;
    if constexpr (WEIGHTED)
      for (int i = 0; i < filled; ++i) w[i] = i < n ? importance[column + i] : 0;
    return filled;
  }

  Word code(Word weight, int k) const {
    const Word q = Word(((Sum(Word(weight - zero[k])) * times[k] >> (SHIFT - 1)) + 1) >> 1);
    const Word c = q < low ? low : q;
    return c > high ? high : c;
  }

  // Adds up the k-th candidate over the block.
  void add_one(int filled, int k) {
    typename std::conditional<sizeof(Word) == 2, Word, Sum>::type total = 0;
    Sum square = 0, cross = 0;
    const int n = filled & -AT_ONCE;
    for (int i = 0; i < n; ++i) {
      const Word c = code(u[i], k);
      if constexpr (WEIGHTED) {
        total += Sum(c) * w[i];
        square += Sum(c) * c * w[i];
        cross += Sum(u[i] * w[i]) * c;
      } else {
        total = decltype(total)(total + c);
        square += Sum(c) * c;
        cross += Sum(c) * u[i];
      }
    }
    sums[0][k] += total;
    sums[1][k] += square;
    sums[2][k] += cross;
  }

#ifdef __AVX2__
  static __m128i folded(const __m256i* v) {
    const __m256i both = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  }

  // Four candidates: in groups of 32, folding the sums of one by itself takes longer than adding them up.
  void add_four(int filled, int k) {
    const __m256i least = _mm256_set1_epi16(int16_t(low)), most = _mm256_set1_epi16(int16_t(high));
    __m256i total[FOUR], square[FOUR], cross[FOUR];
    for (int j = 0; j < FOUR; ++j) {
      const __m256i origin = _mm256_set1_epi16(int16_t(zero[k + j])), by = _mm256_set1_epi16(int16_t(times[k + j]));
      __m256i t = _mm256_setzero_si256(), s = t, x = t;
      for (int i = 0; i < filled; i += AT_ONCE) {
        const __m256i v = _mm256_load_si256(reinterpret_cast<const __m256i*>(u + i));
        __m256i c = _mm256_mulhrs_epi16(_mm256_sub_epi16(v, origin), by);
        c = _mm256_min_epi16(_mm256_max_epi16(c, least), most);
        t = _mm256_add_epi16(t, c);
        s = _mm256_add_epi32(s, _mm256_madd_epi16(c, c));
        x = _mm256_add_epi32(x, _mm256_madd_epi16(c, v));
      }
      total[j] = _mm256_madd_epi16(t, _mm256_set1_epi16(1));
      square[j] = s;
      cross[j] = x;
    }
    const __m128i found[3] = {folded(total), folded(square), folded(cross)};
    for (int m = 0; m < 3; ++m) {
      double* sum = reinterpret_cast<double*>(sums[m] + k);
      _mm256_storeu_pd(sum, _mm256_add_pd(_mm256_loadu_pd(sum), _mm256_cvtepi32_pd(found[m])));
    }
  }
#endif

  // Adds up the first candidates over the block, whose last `pads` weights are padding.
  void add(int filled, int pads, int count) {
    for (int k = 0; k < count; ++k) {
#ifdef __AVX2__
      if constexpr (sizeof(Word) == 2)
        if (count > 1) {
          add_four(filled, k);
          k += FOUR - 1;
          continue;
        }
#endif
      add_one(filled, k);
    }
    if constexpr (!WEIGHTED)
      for (int k = 0; pads && k < count; ++k) {
        const int64_t pad = code(0, k);
        sums[0][k] -= pads * pad;
        sums[1][k] -= pads * pad * pad;
      }
  }

  // Adds up the first candidates over a group whose blocks were read before.
  void add_all(int64_t at, int64_t begin, int64_t n, float middle, float unit, int count) {
    for (auto& sum : sums) std::memset(sum, 0, sizeof(sum[0]) * size_t((count + FOUR - 1) / FOUR * FOUR));
    each(at, begin, n, middle, unit, true, [&](int filled, int pads) { add(filled, pads, count); });
  }

  Line line(const Moments& moments, int k) const {
    return moments.line(double(sums[0][k]), double(sums[1][k]), double(sums[2][k]));
  }

  // Calls step(filled, pads) for the blocks of a group.
  template <class Step>
  void each(int64_t at, int64_t begin, int64_t n, float middle, float unit, bool again, Step step) {
    for (int64_t first = 0; first < n; first += PART) {
      const int own = int(n - first < PART ? n - first : PART);
      int filled = (own + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
      if (!again || n > PART) filled = block(at + begin + first, begin + first, own, middle, unit);
      step(filled, filled - own);
    }
  }

  // The best candidate after its refinement: its step and the place of code 0, in weights; a step of 0 for none.
  void best(int64_t at, int64_t begin, int64_t n, float middle, float unit, double* step, double* zero) {
    int64_t weight = 0, mean = 0;
    each(at, begin, n, middle, unit, false, [&](int filled, int pads) {
      for (int i = 0; i < filled; ++i) {
        mean += WEIGHTED ? int64_t(u[i]) * w[i] : int64_t(u[i]);
        if constexpr (WEIGHTED) weight += w[i];
      }
      if constexpr (!WEIGHTED) weight += filled - pads;
    });
    const Moments moments = {double(weight), double(mean)};
    const int count = ratio_count * ratio_count;
    candidates(moments.sum / moments.count);
    add_all(at, begin, n, middle, unit, count);
    double gains[RATIOS * RATIOS];
    for (int k = 0; k < count; ++k) gains[k] = line(moments, k).gain;
    int first = 0;
    for (int k = 1; k < count; ++k) first = gains[k] > gains[first] ? k : first;
    Line found = line(moments, first);
    *step = 0;
    if (found.gain < 0) return;
    for (int k = 0;; ++k) {
      const double slope = found.cross / found.square, place = moments.offset(slope, found);
      *step = slope / double(factor);
      *zero = place / double(factor);
      if (k == STEPS || std::fabs(place) > double(factor)) return;
      candidate(0, slope, place);
      add_all(at, begin, n, middle, unit, 1);
      const Line other = line(moments, 0);
      if (!(other.gain > found.gain)) return;
      found = other;
    }
  }

  // Calls step(weights less the middle of the range, their importance) for a group, W at a time.
  template <class Step>
  void exactly(int64_t at, int64_t begin, int64_t n, float middle, bool again, Step step) {
    for (int64_t first = 0; first < n; first += PART) {
      const int own = int(n - first < PART ? n - first : PART), filled = (own + W - 1) / W * W;
      if (!again || n > PART) {
        float x[PART];
        load(tile.weights, tile.kind, at + begin + first, own, x);
        for (int i = 0; i < own; ++i) y[i] = double(x[i]) - double(middle);
        for (int i = 0; i < own; ++i) much[i] = WEIGHTED ? double(importance[begin + first + i]) : 1;
        for (int i = own; i < filled; ++i) y[i] = much[i] = 0;
      }
      for (int i = 0; i < filled; i += W)
        for (int h = 0; h < 2; ++h) {
          Doubles v, m;
          std::memcpy(&v, y + i + h * HALF, sizeof v);
          std::memcpy(&m, much + i + h * HALF, sizeof m);
          step(v, m, h);
        }
    }
  }

  Moments weigh(int64_t at, int64_t begin, int64_t n, float middle) {
    Doubles count[2] = {}, mean[2] = {};
    exactly(at, begin, n, middle, false, [&](Doubles v, Doubles m, int h) {
      count[h] += m;
      mean[h] += v * m;
    });
    return {halves(count), halves(mean)};
  }

  // The refit to the codes that a line of unsigned codes gives the weights themselves.
  Line refit(int64_t at, int64_t begin, int64_t n, float middle, const Moments& moments, double step, double offset) {
    Doubles total[2] = {}, square[2] = {}, cross[2] = {};
    const double inverse = 1 / step;
    const Doubles none = {}, most = none + double(top);
    exactly(at, begin, n, middle, true, [&](Doubles v, Doubles m, int h) {
      Doubles q = (v - offset) * inverse;
      q = q > none ? q : none;
      q = q < most ? q : most;
      q = (q + MAGIC) - MAGIC;
      total[h] += q * m;
      square[h] += q * q * m;
      cross[h] += v * m * q;
    });
    return moments.line(halves(total), halves(square), halves(cross));
  }

  static double halves(const Doubles* lanes) {
    const Doubles sum = lanes[0] + lanes[1];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
  }

  void run(const float* middles, const float* reciprocal, double* scale, double* offset) {
    const int64_t groups = tile.groups();
    for (int64_t i = 0; i < tile.rows * groups; ++i) {
      const int64_t begin = i % groups * tile.group, at = i / groups * tile.cols;
      const int64_t n = tile.length(begin);
      const float middle = middles[i], unit = reciprocal[i];
      const Moments moments = weigh(at, begin, n, middle);
      Line found = refit(at, begin, n, middle, moments, scale[i], offset[i]);
      double step = 0, zero = 0;
      if (unit != 0) best(at, begin, n, middle, unit, &step, &zero);
      if (step > 0) {
        step /= double(unit);
        const Line line = refit(at, begin, n, middle, moments, step, zero / double(unit) + low * step);
        if (line.gain > found.gain) found = line;
      }
      if (found.gain > 0) {
        scale[i] = found.cross / found.square;
        offset[i] = moments.offset(scale[i], found);
      }
    }
  }
};

}  // namespace
