// Second-order rounding: the error of each column of a row is made good in the columns that are rounded after it.
//
// With second moments H of a layer's inputs the error e of a row of weights costs e H e^T in the output. H = U D U^T
// (factor.h), so that the cost is
//
//     sum over k of D_k (e_k + sum over j < k of e_j U_jk)^2.
//
// Columns are rounded in order: what is rounded in place of w_k is c_k = w_k + sum e_j U_jk, which makes the k-th term
// D_k (c_k - q_k)^2 as small as the grid allows. This is what GPTQ does with the inverse of H, which is not needed.
//
// Beside the errors of these codes there are those of other, given codes, and the weights themselves, which are errors
// where all is lost: what all three cost is found in one go, for the triangle is what takes the time to read.
//
// U, and the sums over j, are float32; terms are added one by one in the order of j, without contraction into fused
// multiply-adds, so that numpy_feedback.py gives the same bytes. A sum of n terms is off by some 2^-24 sqrt(n) of
// its size, a ten-thousandth of what rounding it to a grid changes. What is added over k is float64.
//
// References: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2023;
// Chee et al., QuIP: 2-Bit Quantization of Large Language Models With Guarantees, 2023, which shows that GPTQ is this.
// Groups do not change while columns are rounded: their scales are found before.

#pragma once

#include <vector>

#include "codes.h"
#include "factor.h"
#include "packing.h"
#include "vectors.h"

namespace {

// What the errors of columns do to those after them. Either a triangle, in the blocks of factor.h, and pivots; or for
// H = m m^T + diag(v) the vectors `mean`, `variance` and `gain`, with which one sum of a row does: c_k = w_k + gain_k *
// (sum of e_j mean_j). order: columns as they are rounded.
struct Feedback {
  const float* triangle;
  const double *pivots, *mean, *variance, *gain;
  const int32_t* order;
};

// Codes of a tile, and the parameters that they were made with.
template <class Byte>
struct Coded {
  const Params& params;
  Byte* packed;
};

// Rows that are added to at once, for each of TOGETHER columns: as many sums as there are registers, each of which an
// addition need not wait for. Vectors of more rows and fewer columns took a third longer, for AVX-512 multiplies by a
// number in memory at no cost.
#if defined(__AVX512F__)
typedef float Run __attribute__((vector_size(64)));
constexpr int TOGETHER = 16;
inline Run all_of(float x) { return Run(_mm512_set1_ps(x)); }
#elif defined(__AVX__)
typedef Eight Run;
constexpr int TOGETHER = 8;
inline Run all_of(float x) { return Run(_mm256_set1_ps(x)); }
#else
typedef Four Run;
constexpr int TOGETHER = 8;
inline Run all_of(float x) { return Run{x, x, x, x}; }
#endif
constexpr int IN_RUN = int(sizeof(Run) / sizeof(float));

inline Run load_run(const float* p) {
  Run v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store_run(const Run& v, float* p) { std::memcpy(p, &v, sizeof v); }

// Half a run, and its numbers in float64.
typedef float Half __attribute__((vector_size(sizeof(Run) / 2)));
typedef double Long __attribute__((vector_size(sizeof(Run))));

inline Long load_long(const float* p) {
  Half v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Long);
}

// Eight rows of eight bytes, as little-endian numbers, to their columns.
inline void turn_bytes(uint64_t* v) {
  const auto swap = [&](int i, int j, int by, uint64_t mask) {
    const uint64_t other = ((v[i] >> by) ^ v[j]) & mask;
    v[j] ^= other;
    v[i] ^= other << by;
  };
  for (int i = 0; i < 4; ++i) swap(i, i + 4, 32, 0x00000000ffffffffull);
  for (int i : {0, 1, 4, 5}) swap(i, i + 2, 16, 0x0000ffff0000ffffull);
  for (int i : {0, 2, 4, 6}) swap(i, i + 1, 8, 0x00ff00ff00ff00ffull);
}

constexpr int STRIP = 64;  // rows that are rounded side by side
constexpr int KINDS = 3;   // of errors: of the codes that are chosen, of those that are given, and where all is lost

// A strip of up to STRIP rows. Arrays by column in the order of rounding, then row.
template <class Code>
class Strip {
 public:
  Strip(const Tile& tile, const Grid& grid, const Feedback& feedback, Coded<uint8_t> chosen,
        Coded<const uint8_t> given)
      : tile(tile), grid(grid), feedback(feedback), chosen(chosen), given(given), cols(tile.cols),
        groups(tile.groups()),
        panels((tile.cols + PANEL - 1) / PANEL), place(size_t(cols)), codes(size_t(cols) * STRIP),
        scale(size_t(groups) * STRIP), divisor(scale.size()), zero(scale.size()) {
    for (int kind = feedback.triangle ? CHOSEN : GIVEN; kind < KINDS; ++kind)
      errors[kind].assign(size_t(panels * SQUARE), 0);
    for (int64_t k = 0; k < cols; ++k) place[size_t(feedback.order[k])] = int32_t(k);
  }

  // Rows [first, first + n): their codes are written; what each kind of errors costs, and its square, to [kind][row] of
  // the tile.
  void run(int64_t first, int n, double* cost, double* square) {
    rows = n;
    height = (n + LANE_COUNT - 1) / LANE_COUNT * LANE_COUNT;
    begin(first);
    std::memset(costs, 0, sizeof costs);
    std::memset(squares, 0, sizeof squares);
    if (feedback.triangle)
      by_panel();
    else
      by_sum();
    for (int kind = 0; kind < KINDS; ++kind) {
      std::memcpy(cost + kind * tile.rows + first, costs[kind], size_t(n) * 8);
      std::memcpy(square + kind * tile.rows + first, squares[kind], size_t(n) * 8);
    }
    finish(first);
  }

 private:
  enum Kind { CHOSEN = 0, GIVEN = 1, ALL_LOST = 2 };

  const Tile& tile;
  const Grid& grid;
  const Feedback& feedback;
  const Coded<uint8_t> chosen;
  const Coded<const uint8_t> given;
  const int64_t cols, groups, panels;
  std::vector<int32_t> place;
  std::vector<float> errors[KINDS];
  std::vector<Code> codes, turned;  // by column as stored, and by row
  std::vector<float> scale, divisor, zero;
  RowParams own[STRIP];
  alignas(64) float sums[KINDS][SQUARE];
  alignas(64) double costs[KINDS][STRIP], squares[KINDS][STRIP];
  alignas(64) float seen[STRIP], value[STRIP];
  int rows = 0, height = 0;

  // What errors of a kind are added to: the errors of the same column, but for what is chosen the weights.
  const float* base(int kind) const { return errors[kind == CHOSEN ? ALL_LOST : kind].data(); }

  // ---- before and after -------------------------------------------------------------------------------------------

  void begin(int64_t first) {
    for (int r = 0; r < height; r += LANE_COUNT) lay(first, r);
    for (int r = 0; r < rows; ++r) own[r] = row_params(chosen.params, first + r, grid);
    for (int64_t g = 0; g < groups; ++g)
      for (int r = 0; r < STRIP; ++r) {
        scale[size_t(g * STRIP + r)] = r < rows ? own[r].scale[g] : 1;
        divisor[size_t(g * STRIP + r)] = divisor_of(scale[size_t(g * STRIP + r)]);
        zero[size_t(g * STRIP + r)] = r < rows ? own[r].zero_at(g) : 0;
      }
  }

  // Sixteen rows of weights, and of the errors of the codes that are given, by column; zeros after the last row.
  void lay(int64_t first, int r) {
    float weights[LANE_COUNT * LANES], lost[LANE_COUNT * LANES];
    const int many = std::max(0, std::min(LANE_COUNT, rows - r));
    for (int64_t from = 0; from < cols; from += LANES) {
      const int n = int(std::min<int64_t>(LANES, cols - from));
      if (many < LANE_COUNT) std::memset(weights, 0, sizeof weights), std::memset(lost, 0, sizeof lost);
      for (int i = 0; i < many; ++i) {
        load(tile.weights, tile.kind, (first + r + i) * cols + from, n, weights + i * LANES);
        lose(first + r + i, from, n, weights + i * LANES, lost + i * LANES);
      }
      turn(weights, from, n, errors[ALL_LOST].data() + r);
      turn(lost, from, n, errors[GIVEN].data() + r);
    }
  }

  // The errors of the codes that are given, of up to LANES columns.
  void lose(int64_t at, int64_t from, int n, const float* weights, float* lost) {
    float code[LANES];
    Code stored[LANES + PADDING];
    const uint8_t* const packed = given.packed + at * row_bytes(cols, grid.bits) + from * grid.bits / 8;
    unpack(packed, n, grid.bits, stored);
    for (int i = 0; i < n; ++i) code[i] = float(stored[i]);
    const RowParams own = row_params(given.params, at, grid);
    by_group(from, n, tile.group, own, [&](int begin, int count, float s, float z) {
      reconstruct(code + begin, count, grid, s, z, own.table, lost + begin);
    });
    for (int i = 0; i < n; ++i) lost[i] = weights[i] - lost[i];
  }

  // Columns of sixteen rows to where they are rounded.
  void turn(const float* from_rows, int64_t from, int n, float* to) const {
    for (int c = 0; c < n; c += LANE_COUNT) {
      Sixteen part[LANE_COUNT];
#if defined(__AVX2__)
      for (int i = 0; i < LANE_COUNT; ++i) part[i] = load16(from_rows + i * LANES + c);
      transpose(part);
#else
      for (int i = 0; i < LANE_COUNT; ++i) {
        float column[LANE_COUNT];
        for (int k = 0; k < LANE_COUNT; ++k) column[k] = from_rows[k * LANES + c + i];
        part[i] = load16(column);
      }
#endif
      for (int i = 0; i < LANE_COUNT && c + i < n; ++i)
        store(part[i], to + int64_t(place[size_t(from + c + i)]) * STRIP);
    }
  }

  // Codes to rows, a square at a time: it stays in the innermost cache.
  void finish(int64_t first) {
    const size_t width = size_t(cols) + PADDING;
    turned.resize(width * STRIP);
    for (int64_t from = 0; from < cols; from += PANEL)
      for (int r = 0; r < rows; r += 8) {
        Code* const to = turned.data() + size_t(r) * width;
        for (int64_t c = from; c < std::min(cols, from + PANEL); c += 8)
          to_rows(codes.data() + c * STRIP + r, int(std::min<int64_t>(8, cols - c)), to + c, width);
      }
    for (int r = 0; r < rows; ++r)
      pack(turned.data() + size_t(r) * width, cols, grid.bits,
           chosen.packed + (first + r) * row_bytes(cols, grid.bits));
  }

  // Codes of up to eight columns of eight rows.
  static void to_rows(const Code* of_columns, int many, Code* of_rows, size_t width) {
    if (sizeof(Code) == 1 && many == 8) {
      uint64_t v[8];
      for (int i = 0; i < 8; ++i) std::memcpy(v + i, of_columns + i * STRIP, 8);
      turn_bytes(v);
      for (int i = 0; i < 8; ++i) std::memcpy(of_rows + size_t(i) * width, v + i, 8);
    } else {
      for (int i = 0; i < 8; ++i)
        for (int c = 0; c < many; ++c) of_rows[size_t(i) * width + size_t(c)] = of_columns[c * STRIP + i];
    }
  }

  // ---- columns ----------------------------------------------------------------------------------------------------

  // The k-th column that is rounded, which stands for what is in `seen`: its codes, and their values.
  void decide(int64_t k) {
    const int64_t column = feedback.order[k], g = column / tile.group;
    const float *s = scale.data() + g * STRIP, *z = zero.data() + g * STRIP;
    Code* const code = codes.data() + column * STRIP;
    if (grid.mode == INTEGER && !grid.midrise) return whole(s, divisor.data() + g * STRIP, z, code);
    for (int r = 0; r < rows; ++r) {
      float found, lost;
      int32_t clipped = 0;
      quantize(seen + r, 1, grid, s[r], z[r], own[r].table, &found, &lost, &clipped);
      code[r] = Code(int32_t(found));
      reconstruct(&found, 1, grid, s[r], z[r], own[r].table, value + r);
    }
  }

  void whole(const float* s, const float* d, const float* z, Code* code) {
    const Sixteen least = all(grid.umin), most = all(grid.umax);
    for (int r = 0; r < height; r += LANE_COUNT) {
      float found[LANE_COUNT];
      const Sixteen zero = load16(z + r), t = load16(seen + r) / load16(d + r);
      const Sixteen c = lesser(larger(rounded(t) + zero, least), most);
      store((c - zero) * load16(s + r), value + r);
      store(c, found);
      for (int i = 0; i < LANE_COUNT; ++i) code[r + i] = Code(int32_t(found[i]));
    }
  }

  // The errors of the codes that are chosen for the k-th column, given what is in `seen`, which becomes how far the
  // codes are off that.
  void choose(int64_t k) {
    decide(k);
    const float* const w = errors[ALL_LOST].data() + k * STRIP;
    float* const lost = errors[CHOSEN].data() + k * STRIP;
    for (int r = 0; r < STRIP; ++r) {
      lost[r] = w[r] - value[r];
      seen[r] -= value[r];
    }
  }

  // With one sum e H e^T is the sum of v e^2 and the square of the sum of e m.
  void by_sum() {
    double sums[KINDS][STRIP] = {};
    for (int64_t from = 0; from < cols; from += PANEL) {  // what is read twice stays in the innermost cache
      const int64_t end = std::min(cols, from + PANEL);
      for (int64_t k = from; k < end; ++k) make_good(k, sums[CHOSEN]);
      for (int kind : {GIVEN, ALL_LOST})
        for (int r = 0; r < height; r += IN_RUN) tally(kind, r, from, end, sums[kind] + r);
    }
    for (int kind = 0; kind < KINDS; ++kind)
      for (int r = 0; r < STRIP; ++r) costs[kind][r] += sums[kind][r] * sums[kind][r];
  }

  // The codes of the k-th column, what their errors cost, and the sum of e m with them.
  void make_good(int64_t k, double* sum) {
    const double mean = feedback.mean[k], variance = feedback.variance[k], gain = feedback.gain[k];
    const float* const w = errors[ALL_LOST].data() + k * STRIP;
    for (int r = 0; r < STRIP; ++r) seen[r] = float(double(w[r]) + sum[r] * gain);
    decide(k);
    for (int r = 0; r < STRIP; ++r) {
      const double e = double(w[r] - value[r]), own = e * e;
      sum[r] += e * mean;
      costs[CHOSEN][r] += own * variance;
      squares[CHOSEN][r] += own;
    }
  }

  // The same sums of errors that are known, of columns [from, end) and a run of rows: they stay in registers.
  void tally(int kind, int row, int64_t from, int64_t end, double* sum) {
    constexpr int PARTS = 2, EACH = IN_RUN / PARTS;
    double* const to[] = {sum, costs[kind] + row, squares[kind] + row};
    Long found[3][PARTS];
    for (int i = 0; i < 3; ++i) std::memcpy(found[i], to[i], sizeof found[i]);
    for (int64_t k = from; k < end; ++k)
      for (int part = 0; part < PARTS; ++part) {
        const Long e = load_long(errors[kind].data() + k * STRIP + row + part * EACH), own = e * e;
        found[0][part] = found[0][part] + e * feedback.mean[k];
        found[1][part] = found[1][part] + own * feedback.variance[k];
        found[2][part] = found[2][part] + own;
      }
    for (int i = 0; i < 3; ++i) std::memcpy(to[i], found[i], sizeof found[i]);
  }

  // Adds what the errors of the k-th column cost, given how far off they are in `seen`.
  void account(int64_t k, int kind) {
    const float* const lost = errors[kind].data() + k * STRIP;
    const double pivot = feedback.pivots[k];
    for (int r = 0; r < STRIP; ++r) {
      const double off = double(seen[r]), e = double(lost[r]);
      costs[kind][r] += off * off * pivot;
      squares[kind][r] += e * e;
    }
  }

  void by_panel() {
    for (int64_t p = 0; p < panels; ++p) {
      for (int kind = 0; kind < KINDS; ++kind) std::memcpy(sums[kind], base(kind) + p * SQUARE, sizeof sums[kind]);
      for (int64_t q = 0; q < p; ++q)
        for (int kind = 0; kind < KINDS; ++kind)
          add(feedback.triangle + block_at(q, p), errors[kind].data() + q * SQUARE, sums[kind]);
      const float* const u = feedback.triangle + block_at(p, p);
      for (int kind = 0; kind < KINDS; ++kind)
        for (int64_t k = p * PANEL; k < std::min(cols, (p + 1) * PANEL); ++k) {
          within(u, errors[kind].data() + p * SQUARE, sums[kind], int(k - p * PANEL));
          if (kind == CHOSEN) choose(k);
          account(k, kind);
        }
    }
  }

  // Adds to a column of a panel the errors of those before it in the panel.
  void within(const float* u, const float* lost, const float* from, int column) {
    constexpr int CHAINS = 2;  // sums that need not wait for each other
    for (int r = 0; r < height; r += CHAINS * IN_RUN) {
      Run sum[CHAINS];
      for (int v = 0; v < CHAINS; ++v) sum[v] = load_run(from + column * STRIP + r + v * IN_RUN);
      for (int j = 0; j < column; ++j) {
        const Run times = all_of(u[j * PANEL + column]);
        for (int v = 0; v < CHAINS; ++v) sum[v] = sum[v] + load_run(lost + j * STRIP + r + v * IN_RUN) * times;
      }
      for (int v = 0; v < CHAINS; ++v) store_run(sum[v], seen + r + v * IN_RUN);
    }
  }

  // Adds to the columns of a panel the errors of one before it. The errors and the block of the triangle that come next
  // are asked for in time: without that it took a tenth longer.
  void add(const float* u, const float* lost, float* to) const {
    for (int r = 0; r < height; r += IN_RUN)
      for (int c = 0; c < PANEL; c += TOGETHER)
        spread(u + c, lost + r, to + c * STRIP + r, (c == 0 ? lost : u) + SQUARE + r);
  }

  static void spread(const float* u, const float* lost, float* to, const float* next) {
    static_assert(STRIP == PANEL, "what comes next lies in rows of the same length");
    Run sum[TOGETHER];
    for (int i = 0; i < TOGETHER; ++i) sum[i] = load_run(to + i * STRIP);
    for (int j = 0; j < PANEL; ++j) {
      const Run term = load_run(lost + j * STRIP);
      __builtin_prefetch(next + j * PANEL, 0, 2);
      for (int i = 0; i < TOGETHER; ++i) sum[i] = sum[i] + term * all_of(u[j * PANEL + i]);
    }
    for (int i = 0; i < TOGETHER; ++i) store_run(sum[i], to + i * STRIP);
  }
};

}  // namespace
