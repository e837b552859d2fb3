// Sums of errors and squares over a tile, in an order that every set of kernels follows.
//
// Squares are float32, added up over runs of RUN columns from the start of a row on: column j in lane j % 16. The lanes
// of a run are added to 16 of float64, run by run and row by row; these are folded by halves at the end. Where float32
// does not hold squares well, because weights or errors are far from 1, the sums of the tile are made again with
// squares of float64, in the same lanes. numpy_sums.py does the same.

#pragma once

#include "vectors.h"

namespace {

constexpr int RUN = 128;

// Sums of squares up to which all that float32 loses is less than 2^-40 of them, and which have not overflowed.
constexpr double LEAST_TRUSTED = 8.271806125530277e-25, MOST_TRUSTED = 1.329227995784916e36;  // 2^-80, 2^120

struct Totals {
  double sse[LANE_COUNT] = {}, power[LANE_COUNT] = {};
  float worst = 0;
  int64_t clipped = 0;
};

inline bool trusted(double sum) { return sum >= LEAST_TRUSTED && sum <= MOST_TRUSTED; }

// Adds the squares of n <= LANES values, the first of which begins a run.
template <bool WIDE>
inline void add_squares(const float* values, int n, double* lanes) {
  for (int from = 0; from < n; from += RUN) {
    const int end = n < from + RUN ? n : from + RUN;
    if (WIDE) {
      for (int i = from; i < end; ++i) lanes[i % LANE_COUNT] += double(values[i]) * double(values[i]);
      continue;
    }
    Sixteen sum = all(0);
    int i = from;
    for (; i + LANE_COUNT <= end; i += LANE_COUNT) {
      const Sixteen v = load16(values + i);
      sum = sum + v * v;
    }
    if (i < end) {
      const Sixteen v = load_some(values + i, int(end - i));
      sum = sum + v * v;
    }
    add_to(lanes, sum);
  }
}

// Adds up n <= LANES errors, the first of which begins a run.
template <bool WIDE>
inline void add_errors(const float* error, int n, Totals& totals) {
  Sixteen most = all(0);
  for (int from = 0; from < n; from += RUN) {
    const int end = n < from + RUN ? n : from + RUN;
    Sixteen sum = all(0);
    for (int i = from; i < end; i += LANE_COUNT) {
      const Sixteen v = i + LANE_COUNT <= end ? load16(error + i) : load_some(error + i, int(end - i));
      most = larger(most, magnitude(v));
      if (!WIDE) sum = sum + v * v;
    }
    if (!WIDE) add_to(totals.sse, sum);
  }
  if (WIDE) add_squares<true>(error, n, totals.sse);
  const float worst = largest_lane(most);
  totals.worst = worst > totals.worst ? worst : totals.worst;
}

template <bool WIDE>
inline void account(const float* x, const float* error, int n, Totals& totals) {
  add_errors<WIDE>(error, n, totals);
  add_squares<WIDE>(x, n, totals.power);
}

// The sum of n values, 16 lanes as above.
inline double sum_of(const float* values, int64_t n) {
  double lanes[LANE_COUNT] = {};
  for (int64_t from = 0; from < n; from += RUN) {
    const int64_t end = n < from + RUN ? n : from + RUN;
    Sixteen sum = all(0);
    int64_t i = from;
    for (; i + LANE_COUNT <= end; i += LANE_COUNT) sum = sum + load16(values + i);
    if (i < end) sum = sum + load_some(values + i, int(end - i));
    add_to(lanes, sum);
  }
  return folded(lanes);
}

// Calls run(wide), which finds the totals, and calls it again where float32 did not do. measured: whether it finds more
// than the squared error.
template <class Run>
inline void find_sums(double* sums, bool measured, Run run) {
  const auto attempt = [&](auto wide) {
    Totals totals;
    run(wide, totals);
    sums[0] = folded(totals.sse);
    sums[1] = measured ? folded(totals.power) : 0;
    sums[2] = measured ? totals.worst : 0;
    sums[3] = measured ? double(totals.clipped) : 0;
  };
  attempt(std::false_type());
  const bool exact = measured && sums[2] == 0;
  if ((!exact && !trusted(sums[0])) || (measured && !trusted(sums[1]))) attempt(std::true_type());
}

}  // namespace
