// What codes stand for: the codes of weights, the errors of their values, and the values of codes.

#pragma once

#include "levels.h"

namespace {

// What weights are divided by: sub-blocks of super-blocks may have the scale 0, and then all codes are the same.
inline float divisor_of(float scale) { return scale == 0 ? INFINITY : scale; }

// n <= LANES weights of one group: stored code, error of its decoded value, and which codes were out of range.
template <bool MIDRISE>
inline void quantize_integer(const float* x, int n, const Grid& grid, float scale, float zero, float* code,
                             float* error, int32_t* clipped) {
  const float umin = grid.umin, umax = grid.umax, centre = zero - (MIDRISE ? 0.5f : 0.0f);
  const float divisor = divisor_of(scale);
  for (int i = 0; i < n; ++i) {
    const float t = x[i] / divisor;
    float r = (MIDRISE ? std::floor(t) : std::nearbyintf(t)) + zero;
    float c = r < umin ? umin : r;
    c = c > umax ? umax : c;
    clipped[i] += r != c;
    code[i] = c;
    error[i] = x[i] - (c - centre) * scale;
  }
}

template <bool MIDRISE>
inline void quantize_offset(const float* x, int n, const Grid& grid, float scale, float zero, float* code,
                            float* error, int32_t* clipped) {
  const float umin = grid.umin, umax = grid.umax, half = MIDRISE ? 0.5f : 0.0f;
  const float divisor = divisor_of(scale);
  for (int i = 0; i < n; ++i) {
    const float t = (x[i] - zero) / divisor;
    float r = MIDRISE ? std::floor(t) : std::nearbyintf(t);
    float c = r < umin ? umin : r;
    c = c > umax ? umax : c;
    clipped[i] += r != c;
    code[i] = c;
    float value = (c + half) * scale;
    error[i] = x[i] - (value + zero);
  }
}

inline void quantize(const float* x, int n, const Grid& grid, float scale, float zero, const Table& table,
                     float* code, float* error, int32_t* clipped) {
  if (grid.mode == INTEGER) {
    if (grid.midrise)
      quantize_integer<true>(x, n, grid, scale, zero, code, error, clipped);
    else
      quantize_integer<false>(x, n, grid, scale, zero, code, error, clipped);
  } else if (grid.mode == OFFSET) {
    if (grid.midrise)
      quantize_offset<true>(x, n, grid, scale, zero, code, error, clipped);
    else
      quantize_offset<false>(x, n, grid, scale, zero, code, error, clipped);
  } else if (grid.mode == LEVELS) {
    quantize_levels(x, n, scale, table, code, error, clipped);
  } else {
    for (int i = 0; i < n; ++i) {
      code[i] = x[i] < 0 ? 0.0f : 1.0f;
      error[i] = x[i] - (x[i] < 0 ? -scale : scale);
    }
  }
}

inline void reconstruct(const float* code, int n, const Grid& grid, float scale, float zero, const Table& table,
                        float* out) {
  const float half = grid.midrise ? 0.5f : 0.0f;
  if (grid.mode == INTEGER) {
    const float centre = zero - half;
    for (int i = 0; i < n; ++i) out[i] = (code[i] - centre) * scale;
  } else if (grid.mode == OFFSET) {
    for (int i = 0; i < n; ++i) {
      float value = (code[i] + half) * scale;
      out[i] = value + zero;
    }
  } else if (grid.mode == LEVELS) {
    reconstruct_levels(code, n, scale, table, out);
  } else {
    for (int i = 0; i < n; ++i) out[i] = code[i] == 0.0f ? -scale : scale;
  }
}

// Parameters of one row: scale and zero of group g at [g], and the levels of its codes.
struct RowParams {
  const float *scale, *zero;
  float shared_zero;
  Table table;
  float zero_at(int64_t g) const { return zero ? zero[g] : shared_zero; }
};

inline RowParams row_params(const Params& params, int64_t row, const Grid& grid) {
  const int64_t at = row * params.stride;
  return {params.scale + at, params.zero ? params.zero + at : nullptr, grid.zero, table_of(params.codebook, row)};
}

// Calls step(first, n, scale, zero) for the runs of columns [from, from + n) that share parameters.
template <class Step>
inline void by_group(int64_t from, int n, int64_t group, const RowParams& params, Step step) {
  int at = 0;
  while (at < n) {
    const int64_t g = (from + at) / group;
    const int64_t end = (g + 1) * group - from;
    const int run = int(end < n ? end - at : n - at);
    step(at, run, params.scale[g], params.zero_at(g));
    at += run;
  }
}

// Columns [from, from + n), n <= LANES, of a row whose parameters differ from column to column.
inline void quantize_columns(const float* x, int64_t from, int n, const RowParams& params, const Grid& grid,
                             float* code, float* error, int32_t* clipped) {
  for (int i = 0; i < n; ++i) {
    const float scale = params.scale[from + i], zero = params.zero_at(from + i);
    float r = std::nearbyintf(x[i] / scale) + zero;
    float k = r < grid.umin ? grid.umin : r;
    k = k > grid.umax ? grid.umax : k;
    clipped[i] += r != k;
    code[i] = k;
    error[i] = x[i] - (k - zero) * scale;
  }
}

inline void quantize_span(const Tile& tile, int64_t row, int64_t from, int n, const RowParams& params,
                          const Grid& grid, float* x, float* code, float* error, int32_t* clipped) {
  load(tile.weights, tile.kind, row * tile.cols + from, n, x);
  if (tile.group == 1 && grid.mode == INTEGER && !grid.midrise)
    quantize_columns(x, from, n, params, grid, code, error, clipped);
  else
    by_group(from, n, tile.group, params, [&](int first, int run, float scale, float zero) {
      quantize(x + first, run, grid, scale, zero, params.table, code + first, error + first, clipped + first);
    });
}

}  // namespace
