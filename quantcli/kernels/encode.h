// Rows of weights to rows of codes, and the sums of their errors.
//
// Plain integers, small floats and few levels in whole vectors, which is nearly all there is, stay in registers from
// the weight to its code (coders.h); whatever is left goes through arrays, a span of LANES weights at a time.

#pragma once

#include <optional>

#include "coders.h"
#include "codes.h"
#include "level_rounding.h"
#include "packing.h"
#include "sums.h"

namespace {

// Scratch for a span of weights.
struct Span {
  float x[LANES], code[LANES], error[LANES];
  int32_t clipped[LANES] = {};

  int64_t outside() const {
    int64_t sum = 0;
    for (int32_t lane : clipped) sum += lane;
    return sum;
  }
};

// Calls step(from, n) for the spans of a row.
template <class Step>
inline void by_span(int64_t cols, Step step) {
  for (int64_t from = 0; from < cols; from += LANES) step(from, int(cols - from < LANES ? cols - from : LANES));
}

// What is made of a tile. codes: scratch for the codes of one row; errors: for its errors where sums are preserved.
template <class Code>
struct Encoder {
  const Tile& tile;
  const Params& params;
  const Grid& grid;
  Code* codes;
  float* errors;
  const Neighbours* next = nullptr;  // of levels that all rows share, where sums are preserved

  // Calls step(from, n) for the spans of a row, whose codes and errors `span` then holds.
  template <class Step>
  void by_quantized(int64_t row, const RowParams& own, Span& span, Step step) const {
    by_span(tile.cols, [&](int64_t from, int n) {
      quantize_span(tile, row, from, n, own, grid, span.x, span.code, span.error, span.clipped);
      step(from, n);
    });
  }

  // The squared error alone.
  template <bool WIDE>
  void attempt(int64_t row, Totals& totals) const {
    Span span;
    by_quantized(row, row_params(params, row, grid), span,
                 [&](int64_t, int n) { add_squares<WIDE>(span.error, n, totals.sse); });
  }

  template <bool WIDE>
  void encode(int64_t row, Totals& totals) const {
    const RowParams own = row_params(params, row, grid);
    Span span;
    by_quantized(row, own, span, [&](int64_t from, int n) {
      if (errors) {
        std::memcpy(errors + from, span.error, size_t(n) * 4);
        add_squares<WIDE>(span.x, n, totals.power);
      } else {
        account<WIDE>(span.x, span.error, n, totals);
      }
      for (int i = 0; i < n; ++i) codes[from + i] = Code(int32_t(span.code[i]));
    });
    totals.clipped += span.outside();
    if (errors) preserve<WIDE>(row, own, sum_of(errors, tile.cols), totals);
  }

  // Moves codes so that the errors of a row, whose sum is given, add up to about 0, and accounts for what is left of them.
  template <bool WIDE>
  void preserve(int64_t row, const RowParams& own, double found, Totals& totals) const {
    const Rest sum = rest_of(found);
    const auto decode = [&](int64_t j, int64_t g) {
      float x, value;
      const float code = float(codes[j]);
      load(tile.weights, tile.kind, row * tile.cols + j, 1, &x);
      reconstruct(&code, 1, grid, own.scale[g], own.zero_at(g), own.table, &value);
      errors[j] = x - value;
    };
    const auto flip = [&](const auto& steps) { preserve_sum(errors, tile.cols, tile.group, sum, steps, decode); };
    const auto flip_levels = [&](const Neighbours& near) {
      with_steps(codes, own.scale, near, sum.sign, own.table.small, grid.bits, flip);
    };
    if (next)
      flip_levels(*next);
    else if (grid.mode == LEVELS)
      flip_levels(Neighbours(own.table, params.codebook->size));
    else {
      const auto scale_at = [&](int64_t g) { return own.scale[g]; };
      flip(EvenSteps<Code, decltype(scale_at)>{codes, scale_at, sum.sign, grid.umin, grid.umax});
    }
    by_span(tile.cols, [&](int64_t from, int n) { add_errors<WIDE>(errors + from, n, totals); });
  }

  // Whether the functions below do, whose codes are bytes.
  bool in_registers() const {
    const bool whole = tile.group % LANE_COUNT == 0 || tile.group >= tile.cols;
    const bool integers = (grid.mode == INTEGER || grid.mode == OFFSET) && !grid.midrise;
    const Codebook* book = grid.mode == LEVELS ? params.codebook : nullptr;
    const bool levels = book && (book->small.mantissa >= 0 || book->count <= FEW_LEVELS);
    return (integers || levels) && whole && tile.cols % PADDING == 0;
  }

  // Calls step(first, n, scale, zero) for the columns of a row that are in the same run and the same group.
  template <class Step, class Close>
  void by_run(const RowParams& own, Step step, Close close) const {
    int64_t g = 0, group_end = tile.group < tile.cols ? tile.group : tile.cols;
    for (int64_t from = 0; from < tile.cols;) {
      const int64_t run_end = from + RUN < tile.cols ? from + RUN : tile.cols;
      while (from < run_end) {
        const int64_t end = group_end < run_end ? group_end : run_end;
        step(from, end, own.scale[g], own.zero_at(g));
        from = end;
        if (end == group_end) {
          ++g;
          group_end = group_end + tile.group < tile.cols ? group_end + tile.group : tile.cols;
        }
      }
      close();
    }
  }

  template <int KIND, class Coder>
  void attempt_fast(int64_t row, Totals& totals) const {
    const RowParams own = row_params(params, row, grid);
    const Coder coder(grid, own.table);
    Counter nobody;
    Sixteen sse = all(0);
    by_run(
        own,
        [&](int64_t from, int64_t end, float scale, float zero) {
          const auto group = coder.group(scale, zero);
          for (int64_t j = from; j < end; j += LANE_COUNT) {
            const Sixteen error = group.coded(weights16<KIND>(tile.weights, row * tile.cols + j), nobody).error;
            sse = sse + error * error;
          }
        },
        [&] {
          add_to(totals.sse, sse);
          sse = all(0);
        });
  }

  // KEEP: whether errors are kept for preserve(), which accounts for them.
  template <int KIND, class Coder, bool KEEP>
  void encode_fast(int64_t row, Totals& totals) const {
    const RowParams own = row_params(params, row, grid);
    const Coder coder(grid, own.table);
    Sixteen sse = all(0), power = all(0), worst = all(0);  // KEEP: `sse` is the sum of errors
    double sum[LANE_COUNT] = {};
    Counter clipped;
    by_run(
        own,
        [&](int64_t from, int64_t end, float scale, float zero) {
          const auto group = coder.group(scale, zero);
          for (int64_t j = from; j < end; j += LANE_COUNT) {
            const Sixteen x = weights16<KIND>(tile.weights, row * tile.cols + j);
            const Coded found = group.coded(x, clipped);
            store_bytes(found.code, reinterpret_cast<uint8_t*>(codes) + j);
            power = power + x * x;
            if (KEEP) {
              store(found.error, errors + j);
              sse = sse + found.error;
            } else {
              sse = sse + found.error * found.error;
              worst = larger(worst, magnitude(found.error));
            }
          }
        },
        [&] {
          add_to(KEEP ? sum : totals.sse, sse);
          add_to(totals.power, power);
          sse = power = all(0);
        });
    totals.clipped += clipped.total();
    if (KEEP) return preserve<false>(row, own, folded(sum), totals);
    const float most = largest_lane(worst);
    totals.worst = most > totals.worst ? most : totals.worst;
  }

  template <int KIND>
  void encode_fast(int64_t row, bool stored, Totals& totals) const {
    if (grid.mode == LEVELS && params.codebook->small.mantissa >= 0)
      encode_fast<KIND, SmallFloats>(row, stored, totals);
    else if (grid.mode == LEVELS)
      encode_fast<KIND, FewLevels>(row, stored, totals);
    else if (grid.mode == OFFSET)
      encode_fast<KIND, Integers<true>>(row, stored, totals);
    else
      encode_fast<KIND, Integers<false>>(row, stored, totals);
  }

  template <int KIND, class Coder>
  void encode_fast(int64_t row, bool stored, Totals& totals) const {
    if (!stored)
      attempt_fast<KIND, Coder>(row, totals);
    else if (errors)
      encode_fast<KIND, Coder, true>(row, totals);
    else
      encode_fast<KIND, Coder, false>(row, totals);
  }

  void encode_fast(int64_t row, bool stored, Totals& totals) const {
    with_kind(tile.kind, [&](auto kind) { this->template encode_fast<kind>(row, stored, totals); });
  }

  // Encodes a row, or without `stored` finds the squared error only.
  template <bool WIDE>
  void row(int64_t row, bool stored, Totals& totals) const {
    if constexpr (!WIDE && sizeof(Code) == 1)
      if (in_registers()) return encode_fast(row, stored, totals);
    if (stored)
      encode<WIDE>(row, totals);
    else
      attempt<WIDE>(row, totals);
  }
};

// Encodes a tile; see `encode` in kernels.cpp.
template <bool WIDE>
inline void encode_tile(const Tile& tile, const Params& params, const Grid& grid, void* codes, float* scratch,
                        uint8_t* packed, Totals& totals) {
  with_codes(codes, grid.bits, [&](auto* code) {
    std::memset(code + tile.cols, 0, PADDING * sizeof *code);
    using Code = std::remove_pointer_t<decltype(code)>;
    std::optional<Neighbours> next;
    if (scratch && grid.mode == LEVELS && params.codebook->tables == 1)
      next.emplace(table_of(params.codebook, 0), params.codebook->size);
    const Encoder<Code> encoder{tile, params, grid, code, scratch, next ? &*next : nullptr};
    for (int64_t row = 0; row < tile.rows; ++row) {
      encoder.template row<WIDE>(row, packed || scratch, totals);
      if (packed) pack(code, tile.cols, grid.bits, packed + row * row_bytes(tile.cols, grid.bits));
    }
  });
}

template <bool WIDE, class Code>
void measure_row(const Tile& tile, int64_t row, const RowParams& params, const Grid& grid, const Code* codes,
                 Totals& totals) {
  Span span;
  float value[LANES];
  by_span(tile.cols, [&](int64_t from, int n) {
    quantize_span(tile, row, from, n, params, grid, span.x, value, span.error, span.clipped);
    for (int i = 0; i < n; ++i) span.code[i] = float(codes[from + i]);
    by_group(from, n, tile.group, params, [&](int first, int run, float scale, float zero) {
      reconstruct(span.code + first, run, grid, scale, zero, params.table, value + first);
    });
    for (int i = 0; i < n; ++i) span.error[i] = span.x[i] - value[i];
    account<WIDE>(span.x, span.error, n, totals);
  });
  totals.clipped += span.outside();
}

template <class Code>
void decode_row(const Code* codes, int64_t cols, int64_t group, const RowParams& params, const Grid& grid,
                float* out) {
  float c[LANES];
  by_span(cols, [&](int64_t from, int n) {
    by_group(from, n, group, params, [&](int first, int run, float scale, float zero) {
      if (grid.mode == LEVELS) {
        const float* levels = params.table.levels;
        for (int i = first; i < first + run; ++i) out[from + i] = levels[codes[from + i]] * scale;
        return;
      }
      for (int i = first; i < first + run; ++i) c[i] = float(codes[from + i]);
      reconstruct(c + first, run, grid, scale, zero, params.table, out + from + first);
    });
  });
}

}  // namespace
