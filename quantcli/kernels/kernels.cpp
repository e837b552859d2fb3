// Hot loops of quantcli, plain C ABI, no Python API: loaded by ctypes, which drops the GIL during a call.
//
// The file is compiled once for each instruction set (QK_VARIANT names it); Python picks the variant the CPU has.
// Every result must equal numpy_kernels.py bit for bit, so: no fast-math, no contraction (-ffp-contract=off),
// one IEEE float32 division per weight, and sums in a stated order. That order: a weight in column j of its row
// is added to lane j % LANES in float64, rows from top to bottom; the lanes are folded by halves at the end.
// With 256 lanes the additions of neighbouring columns are independent, so the loop vectorises without
// re-association, and numpy gets the same order from one reduction along axis 0.

#include "blocks.h"
#include "common.h"
#include "kmeans.h"
#include "levels.h"
#include "offsets.h"
#include "rotation.h"
#include "rounding.h"
#include "search.h"

namespace {

// Bit stream --------------------------------------------------------------------------------------------------

// Bytes of a row of codes: whole 32-bit words.
inline int64_t row_bytes(int64_t cols, int bits) { return (cols * bits + 31) / 32 * 4; }

// Eight codes of one byte each, low code first, to the low 8*b bits.
inline uint64_t squeeze(uint64_t v, int b) {
  const uint64_t pair = (uint64_t(1) << (2 * b)) - 1, quad = (uint64_t(1) << (4 * b)) - 1;
  v = (v & 0x00ff00ff00ff00ffull) | ((v & 0xff00ff00ff00ff00ull) >> (8 - b));
  v = (v & 0x0000ffff0000ffffull & (pair | pair << 32)) | ((v >> 16 & (pair | pair << 32)) << (2 * b));
  return (v & quad) | ((v >> 32 & quad) << (4 * b));
}

inline uint64_t spread(uint64_t v, int b) {
  const uint64_t one = (uint64_t(1) << b) - 1, pair = (uint64_t(1) << (2 * b)) - 1, quad = (uint64_t(1) << (4 * b)) - 1;
  v = (v & quad) | ((v >> (4 * b) & quad) << 32);
  const uint64_t pairs = pair | pair << 32;
  v = (v & pairs) | ((v >> (2 * b) & pairs) << 16);
  const uint64_t ones = one | one << 16 | one << 32 | one << 48;
  return (v & ones) | ((v >> b & ones) << 8);
}

// cols codes (bytes, b <= 8) to whole 32-bit words; codes must be readable and zero up to a multiple of 32.
void pack(const uint8_t* codes, int64_t cols, int b, uint8_t* out) {
  const int64_t bytes = row_bytes(cols, b);
  if (b == 8) {
    std::memcpy(out, codes, size_t(bytes));
    return;
  }
  if (b == 4) {
    for (int64_t i = 0; i < bytes; ++i) out[i] = uint8_t(codes[2 * i] | codes[2 * i + 1] << 4);
    return;
  }
  if (b == 2) {
    for (int64_t i = 0; i < bytes; ++i)
      out[i] = uint8_t(codes[4 * i] | codes[4 * i + 1] << 2 | codes[4 * i + 2] << 4 | codes[4 * i + 3] << 6);
    return;
  }
  int64_t done = 0;
  for (int64_t i = 0; done < bytes; i += 8, done += b) {
    uint64_t v;
    std::memcpy(&v, codes + i, 8);
    v = squeeze(v, b);
    std::memcpy(out + done, &v, size_t(bytes - done < b ? bytes - done : b));
  }
}

void unpack(const uint8_t* packed, int64_t cols, int b, uint8_t* codes) {
  const int64_t bytes = row_bytes(cols, b);
  if (b == 8) {
    std::memcpy(codes, packed, size_t(cols));
    return;
  }
  if (b == 4) {
    for (int64_t i = 0; i < bytes; ++i) {
      codes[2 * i] = packed[i] & 15;
      codes[2 * i + 1] = packed[i] >> 4;
    }
    return;
  }
  int64_t used = 0;
  for (int64_t i = 0; i < cols; i += 8, used += b) {
    uint64_t v = 0;
    std::memcpy(&v, packed + used, size_t(bytes - used < b ? bytes - used : b));
    v = spread(v, b);
    std::memcpy(codes + i, &v, 8);
  }
}

void pack(const uint16_t* codes, int64_t cols, int b, uint8_t* out) {
  const int64_t bytes = row_bytes(cols, b);
  uint64_t pending = 0;
  int held = 0;
  int64_t done = 0;
  for (int64_t i = 0; done < bytes; ++i) {
    pending |= uint64_t(codes[i]) << held;
    for (held += b; held >= 8 && done < bytes; held -= 8, pending >>= 8) out[done++] = uint8_t(pending);
  }
}

void unpack(const uint8_t* packed, int64_t cols, int b, uint16_t* codes) {
  const uint32_t mask = (1u << b) - 1;
  uint64_t pending = 0;
  int held = 0;
  for (int64_t i = 0, used = 0; i < cols; ++i) {
    while (held < b) {
      pending |= uint64_t(packed[used++]) << held;
      held += 8;
    }
    codes[i] = uint16_t(pending & mask);
    pending >>= b;
    held -= b;
  }
}

// Codes of which packing reads whole words beyond the end of a row.
constexpr int PADDING = 32;

// Calls run with the scratch for codes of b bits: bytes up to 8, words of 16 above.
template <class Run>
inline void with_codes(void* codes, int bits, Run run) {
  if (bits <= 8)
    run(static_cast<uint8_t*>(codes));
  else
    run(static_cast<uint16_t*>(codes));
}

// Sums --------------------------------------------------------------------------------------------------------

struct Lanes {
  double sse[LANES], power[LANES];
  float max_abs[LANES];
  int32_t clipped[LANES];
};

double fold(double* lane) {
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

inline void account_error(const float* e, int n, Lanes& lanes) {
  for (int i = 0; i < n; ++i) lanes.sse[i] += double(e[i]) * double(e[i]);
}

inline void account(const float* x, const float* e, int n, Lanes& lanes) {
  account_error(e, n, lanes);
  for (int i = 0; i < n; ++i) lanes.power[i] += double(x[i]) * double(x[i]);
  for (int i = 0; i < n; ++i) {
    float a = std::fabs(e[i]);
    lanes.max_abs[i] = a > lanes.max_abs[i] ? a : lanes.max_abs[i];
  }
}

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

void try_row(const Tile& tile, int64_t row, const RowParams& params, const Grid& grid, Lanes& lanes) {
  float x[LANES], c[LANES], e[LANES];
  for (int64_t from = 0; from < tile.cols; from += LANES) {
    const int n = int(tile.cols - from < LANES ? tile.cols - from : LANES);
    quantize_span(tile, row, from, n, params, grid, x, c, e, lanes.clipped);
    account_error(e, n, lanes);
  }
}

template <class Code>
void encode_row(const Tile& tile, int64_t row, const RowParams& params, const Grid& grid, Code* codes,
                Lanes& lanes) {
  float x[LANES], c[LANES], e[LANES];
  for (int64_t from = 0; from < tile.cols; from += LANES) {
    const int n = int(tile.cols - from < LANES ? tile.cols - from : LANES);
    quantize_span(tile, row, from, n, params, grid, x, c, e, lanes.clipped);
    account(x, e, n, lanes);
    for (int i = 0; i < n; ++i) codes[from + i] = Code(int32_t(c[i]));
  }
}

// A whole row, its sum of errors preserved. scratch: 3 * cols floats.
template <class Code>
void encode_row_preserving(const Tile& tile, int64_t row, const RowParams& params, const Grid& grid, float* scratch,
                           Code* codes, Lanes& lanes) {
  const int64_t cols = tile.cols;
  float *x = scratch, *c = scratch + cols, *e = scratch + 2 * cols;
  for (int64_t from = 0; from < cols; from += LANES) {
    const int n = int(cols - from < LANES ? cols - from : LANES);
    quantize_span(tile, row, from, n, params, grid, x + from, c + from, e + from, lanes.clipped);
  }
  preserve_sum(
      c, e, cols, tile.group, grid.umin, grid.umax, [&](int64_t g) { return params.scale[g]; },
      [&](int64_t j, int64_t g) {
        float value;
        reconstruct(c + j, 1, grid, params.scale[g], params.zero_at(g), params.table, &value);
        e[j] = x[j] - value;
      });
  for (int64_t from = 0; from < cols; from += LANES) {
    const int n = int(cols - from < LANES ? cols - from : LANES);
    account(x + from, e + from, n, lanes);
  }
  for (int64_t i = 0; i < cols; ++i) codes[i] = Code(int32_t(c[i]));
}

template <class Code>
void measure_row(const Tile& tile, int64_t row, const RowParams& params, const Grid& grid, const Code* codes,
                 Lanes& lanes) {
  float x[LANES], c[LANES], e[LANES], wanted[LANES];
  for (int64_t from = 0; from < tile.cols; from += LANES) {
    const int n = int(tile.cols - from < LANES ? tile.cols - from : LANES);
    quantize_span(tile, row, from, n, params, grid, x, wanted, e, lanes.clipped);
    for (int i = 0; i < n; ++i) c[i] = float(codes[from + i]);
    by_group(from, n, tile.group, params, [&](int first, int run, float scale, float zero) {
      reconstruct(c + first, run, grid, scale, zero, params.table, wanted + first);
    });
    for (int i = 0; i < n; ++i) e[i] = x[i] - wanted[i];
    account(x, e, n, lanes);
  }
}

template <class Code>
void decode_row(const Code* codes, int64_t cols, int64_t group, const RowParams& params, const Grid& grid,
                float* out) {
  float c[LANES];
  for (int64_t from = 0; from < cols; from += LANES) {
    const int n = int(cols - from < LANES ? cols - from : LANES);
    if (grid.mode == LEVELS) {
      const float* levels = params.table.levels;
      by_group(from, n, group, params, [&](int first, int run, float scale, float) {
        for (int i = first; i < first + run; ++i) out[from + i] = levels[codes[from + i]] * scale;
      });
      continue;
    }
    for (int i = 0; i < n; ++i) c[i] = float(codes[from + i]);
    by_group(from, n, group, params, [&](int first, int run, float scale, float zero) {
      reconstruct(c + first, run, grid, scale, zero, params.table, out + from + first);
    });
  }
}

void finish(Lanes& lanes, double* sums) {
  float worst = 0;
  int64_t clipped = 0;
  for (int i = 0; i < LANES; ++i) {
    worst = lanes.max_abs[i] > worst ? lanes.max_abs[i] : worst;
    clipped += lanes.clipped[i];
  }
  sums[0] = fold(lanes.sse);
  sums[1] = fold(lanes.power);
  sums[2] = worst;
  sums[3] = double(clipped);
}

// Smallest, largest and (as bits, so that NaN and infinity stand out) largest absolute value. Written with vector
// types because compilers keep min/max reductions scalar without fast-math.
struct Span {
  typedef float Floats __attribute__((vector_size(32)));
  typedef int32_t Ints __attribute__((vector_size(32)));
  static constexpr int W = 8, ROWS = 2;

  Floats lows[ROWS], highs[ROWS];
  Ints magnitudes[ROWS] = {};
  float low = INFINITY, high = -INFINITY;
  uint32_t magnitude = 0;

  Span() {
    for (int r = 0; r < ROWS; ++r)
      for (int j = 0; j < W; ++j) lows[r][j] = INFINITY, highs[r][j] = -INFINITY;
  }

  void widen(const float* x, int n) {
    int i = 0;
    for (; i + ROWS * W <= n; i += ROWS * W)
      for (int r = 0; r < ROWS; ++r) {
        Floats v;
        Ints m;
        std::memcpy(&v, x + i + r * W, sizeof v);
        std::memcpy(&m, &v, sizeof m);
        m &= 0x7fffffff;
        lows[r] = v < lows[r] ? v : lows[r];
        highs[r] = v > highs[r] ? v : highs[r];
        magnitudes[r] = m > magnitudes[r] ? m : magnitudes[r];
      }
    for (; i < n; ++i) narrow(x[i], x[i], to_bits(x[i]) & 0x7fffffffu);
  }

  void narrow(float l, float h, uint32_t m) {
    low = l < low ? l : low;
    high = h > high ? h : high;
    magnitude = m > magnitude ? m : magnitude;
  }

  void close() {
    Quad least = fold(lows, [](auto a, auto b) { return a < b ? a : b; });
    Quad most = fold(highs, [](auto a, auto b) { return a > b ? a : b; });
    IntQuad far = fold_bits();
    for (int j = 0; j < 4; ++j) narrow(least[j], most[j], uint32_t(far[j]));
  }

 private:
  typedef float Quad __attribute__((vector_size(16)));
  typedef int32_t IntQuad __attribute__((vector_size(16)));

  template <class Pick>
  static Quad fold(const Floats* rows, Pick pick) {
    Floats whole = pick(rows[0], rows[1]);
    Quad half[2];
    std::memcpy(half, &whole, sizeof half);
    return pick(half[0], half[1]);
  }

  IntQuad fold_bits() const {
    Ints whole = magnitudes[0] > magnitudes[1] ? magnitudes[0] : magnitudes[1];
    IntQuad half[2];
    std::memcpy(half, &whole, sizeof half);
    return half[0] > half[1] ? half[0] : half[1];
  }
};

inline float first_extreme(const float* x, int n, float magnitude) {
  for (int i = 0; i < n; ++i)
    if (std::fabs(x[i]) == magnitude) return x[i];
  return 0;
}

}  // namespace

// lo, hi and the signed value of largest magnitude (the first one wins a tie) of every group: each (rows, groups).
// Returns 0 when a weight is not finite.
QK_EXPORT int32_t QK_NAME(ranges)(const Tile* tile, float* lo, float* hi, float* extreme) {
  const auto [weights, rows, cols, group, kind] = *tile;
  const int64_t groups = (cols + group - 1) / group;
  uint32_t bad = 0;
  float x[LANES];
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * group, end = begin + group < cols ? begin + group : cols, at = row * cols;
      Span span;
      for (int64_t from = begin; from < end; from += LANES) {
        const int n = int(end - from < LANES ? end - from : LANES);
        load(weights, kind, at + from, n, x);
        span.widen(x, n);
      }
      span.close();
      const float low = span.low, high = span.high;
      bad |= span.magnitude >= 0x7f800000u;
      float found = high > -low ? high : high < -low ? low : 0;
      if (found == 0 && high > 0)  // both signs reach the extreme: the first one counts
        for (int64_t from = begin; from < end && found == 0; from += LANES) {
          const int n = int(end - from < LANES ? end - from : LANES);
          load(weights, kind, at + from, n, x);
          found = first_extreme(x, n, high);
        }
      lo[row * groups + g] = low;
      hi[row * groups + g] = high;
      extreme[row * groups + g] = found;
    }
  }
  return bad == 0;
}

// The same for every column, over the rows.
QK_EXPORT int32_t QK_NAME(column_ranges)(const Tile* tile, float* lo, float* hi, float* extreme) {
  const auto [weights, rows, cols, group, kind] = *tile;
  (void)group;
  uint32_t bad[LANES] = {};
  float x[LANES];
  for (int64_t j = 0; j < cols; ++j) {
    lo[j] = INFINITY;
    hi[j] = -INFINITY;
    extreme[j] = 0;
  }
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t from = 0; from < cols; from += LANES) {
      const int n = int(cols - from < LANES ? cols - from : LANES);
      load(weights, kind, row * cols + from, n, x);
      float *low = lo + from, *high = hi + from, *most = extreme + from;
      for (int i = 0; i < n; ++i) {
        low[i] = x[i] < low[i] ? x[i] : low[i];
        high[i] = x[i] > high[i] ? x[i] : high[i];
        most[i] = std::fabs(x[i]) > std::fabs(most[i]) ? x[i] : most[i];
        bad[i] |= (to_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
      }
    }
  uint32_t any = 0;
  for (int i = 0; i < LANES; ++i) any |= bad[i];
  return any == 0;
}

// Codes of every weight as rows of whole 32-bit words, and sums[4]: squared
// error of the decoded values, power, largest error, clipped weights. codes: scratch of (cols + 40) codes. With
// scratch of 3 * cols floats the sum of every row's errors is preserved. Without packed only sums[0] is found.
QK_EXPORT void QK_NAME(encode)(const Tile* tile, const Params* params, const Grid* grid, void* codes,
                               float* scratch, uint8_t* packed, double* sums) {
  Lanes lanes;
  std::memset(&lanes, 0, sizeof lanes);
  with_codes(codes, grid->bits, [&](auto* code) {
    std::memset(code + tile->cols, 0, PADDING * sizeof *code);
    for (int64_t row = 0; row < tile->rows; ++row) {
      const RowParams own = row_params(*params, row, *grid);
      if (scratch)
        encode_row_preserving(*tile, row, own, *grid, scratch, code, lanes);
      else if (packed)
        encode_row(*tile, row, own, *grid, code, lanes);
      else
        try_row(*tile, row, own, *grid, lanes);
      if (packed) pack(code, tile->cols, grid->bits, packed + row * row_bytes(tile->cols, grid->bits));
    }
  });
  finish(lanes, sums);
  if (!packed) sums[1] = sums[2] = sums[3] = 0;
}

// The sums of encode for stored codes.
QK_EXPORT void QK_NAME(measure)(const Tile* tile, const Params* params, const Grid* grid, void* codes,
                                const uint8_t* packed, double* sums) {
  Lanes lanes;
  std::memset(&lanes, 0, sizeof lanes);
  with_codes(codes, grid->bits, [&](auto* code) {
    for (int64_t row = 0; row < tile->rows; ++row) {
      unpack(packed + row * row_bytes(tile->cols, grid->bits), tile->cols, grid->bits, code);
      measure_row(*tile, row, row_params(*params, row, *grid), *grid, code, lanes);
    }
  });
  finish(lanes, sums);
}

// Weights (rows, cols) as float32 from stored codes.
QK_EXPORT void QK_NAME(decode)(int64_t rows, int64_t cols, int64_t group, const Params* params, const Grid* grid,
                               void* codes, const uint8_t* packed, float* out) {
  with_codes(codes, grid->bits, [&](auto* code) {
    for (int64_t row = 0; row < rows; ++row) {
      unpack(packed + row * row_bytes(cols, grid->bits), cols, grid->bits, code);
      decode_row(code, cols, group, row_params(*params, row, *grid), *grid, out + row * cols);
    }
  });
}

// Runs of `size` floats rotated in place; see rotation.h.
QK_EXPORT void QK_NAME(rotate)(float* x, int64_t count, int64_t size) {
  for (int64_t at = 0; at + size <= count; at += size) {
    rotate_step<1>(x + at, size, 1);
    if (size >= 16) rotate_step<4>(x + at, size, 4);
    if (size >= 64) rotate_step<16>(x + at, size, 16);
    for (int64_t step = 64; step < size; step *= 4) rotate_step<0>(x + at, size, step);
  }
}

#ifdef QK_PROBE
// Limits of the searches.
QK_EXPORT void qk_limits(Limits* limits) { *limits = LIMITS; }

// Highest instruction set of this CPU that a variant was compiled for: 3 (AVX2, F16C, BMI2), 2 (SSE4.2) or 0.
QK_EXPORT int32_t qk_cpu_level() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2")) return 3;
  if (__builtin_cpu_supports("sse4.2")) return 2;
#endif
  return 0;
}
#endif
