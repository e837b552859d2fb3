// Second-order rounding: the error of each column of a row is made good in the columns that are rounded after it.
//
// With second moments H of a layer's inputs the error e of a row of weights costs e H e^T in the output. H = U D U^T, U
// the upper triangle with a diagonal of ones, D diagonal, so that the cost is
//
//     sum over k of D_k (e_k + sum over j < k of e_j U_jk)^2.
//
// Columns are rounded in order: what is rounded in place of w_k is c_k = w_k + sum e_j U_jk, which makes the k-th term
// D_k (c_k - q_k)^2 as small as the grid allows. This is what GPTQ does with the inverse of H, which is not needed.
//
// The triangle is stored by panels of PANEL rows, each with the columns from its first row on. Every element of it, and
// every c_k, is a float64 to which terms are added one by one, in the same order however the work is cut, without
// contraction into fused multiply-adds: numpy_feedback.py gives the same bytes.
//
// References: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2023;
// Chee et al., QuIP: 2-Bit Quantization of Large Language Models With Guarantees, 2023, which shows that GPTQ is this.
// Groups do not change while columns are rounded: their scales are found before.

#pragma once

#include <algorithm>
#include <vector>

#include "codes.h"
#include "lanes64.h"
#include "packing.h"

namespace {

constexpr int64_t PANEL = 64;

// What the errors of columns do to those after them. Either a triangle, or for H = m m^T + diag(v) the vectors `mean`
// and `gain`, with which one sum of a row does: c_k = w_k + gain_k * (sum of e_j mean_j). order: columns as they are
// rounded.
struct Feedback {
  const double *triangle, *mean, *gain, *pivots;
  const int32_t* order;
};

// Where the panel that begins with a row lies in the triangle of so many columns.
inline int64_t panel_at(int64_t first, int64_t cols) { return first * cols - first * (first - PANEL) / 2; }

// A row of the triangle, so that column k is at [k].
inline double* row_of(double* triangle, int64_t row, int64_t cols) {
  const int64_t first = row / PANEL * PANEL;
  return triangle + panel_at(first, cols) + (row - first) * (cols - first) - first;
}

inline const double* row_of(const double* triangle, int64_t row, int64_t cols) {
  return row_of(const_cast<double*>(triangle), row, cols);
}

inline Doubles load_doubles(const double* p) {
  Doubles v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store_doubles(const Doubles& v, double* p) { std::memcpy(p, &v, sizeof v); }

// ---- the factors of H, panel by panel from the last ---------------------------------------------------------------

constexpr int ACROSS = 4 * DOUBLES;  // columns that are subtracted from at once

// One panel of columns: U of it replaces what is left of H, and `raw` (PANEL, cols) is U D transposed.
struct Panel {
  double* triangle;
  int64_t cols, first, last;
  double *raw, *pivots;

  Panel(double* triangle, int64_t cols, int64_t first, double* raw, double* pivots)
      : triangle(triangle), cols(cols), first(first), last(std::min(first + PANEL, cols)), raw(raw), pivots(pivots) {}

  // The rows of the panel. Returns 0 where a pivot is not above `least`.
  int32_t diagonal(double least) const {
    for (int64_t m = last - 1; m >= first; --m) {
      const double pivot = row_of(triangle, m, cols)[m];
      pivots[m] = pivot;
      if (!(pivot > least)) return 0;
      double* const own = raw + (m - first) * cols;
      for (int64_t j = first; j < m; ++j) own[j] = row_of(triangle, j, cols)[m];
      for (int64_t j = first; j < m; ++j) {
        double* const row = row_of(triangle, j, cols);
        const double u = own[j] / pivot;
        row[m] = u;
        for (int64_t k = j; k < m; ++k) row[k] -= u * own[k];
      }
    }
    return 1;
  }

  // Rows above the panel: its columns of them.
  void above(int64_t from, int64_t to) const {
    for (int64_t j = from; j < to; ++j) {
      double* const row = row_of(triangle, j, cols);
      for (int64_t m = last - 1; m >= first; --m) {
        double* const own = raw + (m - first) * cols;
        own[j] = row[m];
        const double u = row[m] / pivots[m];
        row[m] = u;
        for (int64_t k = first; k < m; ++k) row[k] -= u * own[k];
      }
    }
  }

  // Rows above the panel: the columns before it.
  void rest(int64_t from, int64_t to) const {
    double near[PANEL * ACROSS];
    for (int64_t k = from / PANEL * PANEL; k < first; k += ACROSS) {  // `first` and k are multiples of it
      for (int64_t m = first; m < last; ++m)
        std::memcpy(near + (m - first) * ACROSS, raw + (m - first) * cols + k, sizeof(double) * ACROSS);
      const int64_t end = std::min(to, k / PANEL * PANEL + PANEL);  // rows with columns from k on
      for (int64_t j = from; j < end; j += 4) {
        double *row[4], spare[2 * PANEL + ACROSS];
        for (int i = 0; i < 4; ++i) row[i] = j + i < end ? row_of(triangle, j + i, cols) : nullptr;
        for (int i = 0; i < 4; ++i)
          if (!row[i]) std::memset(spare, 0, sizeof spare);
        tile(row, k, near, spare);
      }
    }
  }

  // Four rows, or those there are, of ACROSS columns.
  void tile(double* const* row, int64_t k, const double* near, double* spare) const {
    constexpr int V = ACROSS / DOUBLES;
    Doubles sum[4][V];
    const double* times[4];
    double* to[4];
    for (int i = 0; i < 4; ++i) {
      times[i] = row[i] ? row[i] + first : spare;
      to[i] = row[i] ? row[i] + k : spare + PANEL;
      for (int v = 0; v < V; ++v) sum[i][v] = load_doubles(to[i] + v * DOUBLES);
    }
    for (int64_t m = last - 1; m >= first; --m) {
      const double* const own = near + (m - first) * ACROSS;
      Doubles term[V];
      for (int v = 0; v < V; ++v) term[v] = load_doubles(own + v * DOUBLES);
      for (int i = 0; i < 4; ++i) {
        const Doubles u = all_of(times[i][m - first]);
        for (int v = 0; v < V; ++v) sum[i][v] = sum[i][v] - u * term[v];
      }
    }
    for (int i = 0; i < 4; ++i)
      for (int v = 0; v < V; ++v) store_doubles(sum[i][v], to[i] + v * DOUBLES);
  }
};

// ---- rows ---------------------------------------------------------------------------------------------------------

constexpr int AT_ONCE = 64;  // columns of a panel that are copied: its rows lie in the same few lines of a cache
constexpr int STRIP = 64;  // rows that are rounded side by side

// What is done with the rows of a tile: their codes are chosen, or given; or the weights stand for errors themselves.
enum Done : int32_t { CHOSEN = 0, GIVEN = 1, ALL_LOST = 2 };

// A strip of up to STRIP rows. Arrays by column, then row.
template <class Code>
class Strip {
 public:
  Strip(const Tile& tile, const Params& params, const Grid& grid, const Feedback& feedback, Done done)
      : tile(tile), params(params), grid(grid), feedback(feedback), done(done), cols(tile.cols),
        groups(done == ALL_LOST ? 0 : tile.groups()), weights(size_t(cols) * STRIP), codes(size_t(cols + 40) * STRIP),
        scale(size_t(groups) * STRIP), zero(size_t(groups) * STRIP) {
    if (feedback.triangle) sums.resize(size_t(cols) * STRIP);
  }

  // Rows [first, first + n): their packed codes are written, or read; what they cost, and the squared error.
  void run(int64_t first, int n, uint8_t* packed, double* cost, double* square) {
    rows = n;
    begin(first, packed);
    std::fill(costs, costs + STRIP, 0.0);
    std::fill(squares, squares + STRIP, 0.0);
    if (feedback.triangle)
      by_panel();
    else
      by_sum();
    std::memcpy(cost, costs, size_t(n) * 8);
    std::memcpy(square, squares, size_t(n) * 8);
    if (done == CHOSEN) finish(packed);
  }

 private:
  const Tile& tile;
  const Params& params;
  const Grid& grid;
  const Feedback& feedback;
  const Done done;
  const int64_t cols, groups;
  std::vector<float> weights;
  std::vector<Code> codes;  // by row, then column
  std::vector<float> scale, zero;
  std::vector<double> sums;
  RowParams own[STRIP];
  alignas(64) double error[PANEL * STRIP], costs[STRIP], squares[STRIP], seen[STRIP], value[STRIP];
  double near[PANEL * AT_ONCE];  // by fours of columns, then rows of the panel
  int rows = 0;

  int64_t width() const { return cols + 40; }

  void begin(int64_t first, uint8_t* packed) {
    std::vector<float> row(size_t(cols) + LANES);
    for (int r = 0; r < rows; ++r) {
      for (int64_t from = 0; from < cols; from += LANES)
        load(tile.weights, tile.kind, (first + r) * cols + from, int(std::min<int64_t>(LANES, cols - from)),
             row.data() + from);
      for (int64_t k = 0; k < cols; ++k) weights[size_t(k * STRIP + r)] = row[size_t(feedback.order[k])];
      if (done == ALL_LOST) continue;
      own[r] = row_params(params, first + r, grid);
      for (int64_t g = 0; g < groups; ++g) {
        scale[size_t(g * STRIP + r)] = own[r].scale[g];
        zero[size_t(g * STRIP + r)] = own[r].zero_at(g);
      }
      Code* const code = codes.data() + r * width();
      if (done == GIVEN)
        unpack(packed + r * row_bytes(cols, grid.bits), cols, grid.bits, code);
      else
        std::memset(code + cols, 0, 40 * sizeof *code);
    }
    for (int r = rows; r < STRIP; ++r) {
      for (int64_t k = 0; k < cols; ++k) weights[size_t(k * STRIP + r)] = 0;
      for (int64_t g = 0; g < groups; ++g) scale[size_t(g * STRIP + r)] = 1, zero[size_t(g * STRIP + r)] = 0;
    }
  }

  void finish(uint8_t* packed) {
    for (int r = 0; r < rows; ++r)
      pack(codes.data() + r * width(), cols, grid.bits, packed + r * row_bytes(cols, grid.bits));
  }

  // The values of the k-th column that is rounded, where it stands for what is in `seen`.
  void decide(int64_t k) {
    if (done == ALL_LOST) return std::fill(value, value + STRIP, 0.0);
    const int64_t column = feedback.order[k], g = column / tile.group;
    const float *s = scale.data() + g * STRIP, *z = zero.data() + g * STRIP;
    if (done == CHOSEN && grid.mode == INTEGER && !grid.midrise) return whole(column, s, z);
    for (int r = 0; r < rows; ++r) {
      Code& stored = codes[size_t(r * width() + column)];
      float code = float(stored), found, lost;
      int32_t clipped = 0;
      if (done == CHOSEN) {
        const float x = float(seen[r]);
        quantize(&x, 1, grid, s[r], z[r], own[r].table, &code, &lost, &clipped);
        stored = Code(int32_t(code));
      }
      reconstruct(&code, 1, grid, s[r], z[r], own[r].table, &found);
      value[r] = double(found);
    }
  }

  void whole(int64_t column, const float* s, const float* z) {
    float code[STRIP];
    for (int r = 0; r < STRIP; ++r) {
      const float t = float(seen[r]) / (s[r] == 0 ? INFINITY : s[r]);
      const float n = std::nearbyintf(t) + z[r];
      float c = n < grid.umin ? grid.umin : n;
      c = c > grid.umax ? grid.umax : c;
      code[r] = c;
      value[r] = double((c - z[r]) * s[r]);
    }
    for (int r = 0; r < rows; ++r) codes[size_t(r * width() + column)] = Code(int32_t(code[r]));
  }

  // Rounds the k-th column, given what was added to it in `seen`; its errors go to `lost`.
  void column(int64_t k, double* lost) {
    decide(k);
    const double pivot = feedback.pivots[k];
    const float* const w = weights.data() + k * STRIP;
    for (int r = 0; r < STRIP; ++r) {
      const double off = seen[r] - value[r], e = double(w[r]) - value[r];
      costs[r] += off * off * pivot;
      squares[r] += e * e;
      lost[r] = e;
    }
  }

  void by_sum() {
    double sum[STRIP] = {}, lost[STRIP];
    for (int64_t k = 0; k < cols; ++k) {
      const float* const w = weights.data() + k * STRIP;
      const double gain = feedback.gain[k], mean = feedback.mean[k];
      for (int r = 0; r < STRIP; ++r) seen[r] = double(w[r]) + sum[r] * gain;
      column(k, lost);
      for (int r = 0; r < STRIP; ++r) sum[r] += lost[r] * mean;
    }
  }

  void by_panel() {
    for (int64_t i = 0; i < cols * STRIP; ++i) sums[size_t(i)] = double(weights[size_t(i)]);
    for (int64_t first = 0; first < cols; first += PANEL) {
      const int64_t last = std::min(first + PANEL, cols);
      for (int64_t k = first; k < last; ++k) {
        double* const lost = error + (k - first) * STRIP;
        std::memcpy(seen, sums.data() + k * STRIP, sizeof seen);
        column(k, lost);
        const double* const u = row_of(feedback.triangle, k, cols);
        for (int64_t c = k + 1; c < last; ++c) {
          double* const sum = sums.data() + c * STRIP;
          for (int r = 0; r < STRIP; ++r) sum[r] += lost[r] * u[c];
        }
      }
      for (int64_t c = last; c < cols; c += AT_ONCE) after(first, last, c);
    }
  }

  // Adds the errors of a panel to up to AT_ONCE columns after it.
  void after(int64_t first, int64_t last, int64_t c) {
    const int n = int(std::min<int64_t>(AT_ONCE, cols - c));
    for (int64_t j = first; j < last; ++j) {
      const double* const row = row_of(feedback.triangle, j, cols) + c;
      double* const to = near + (j - first) * 4;
      if (n == AT_ONCE) {
        for (int i = 0; i < AT_ONCE; i += 4) std::memcpy(to + i * PANEL, row + i, 32);
      } else {
        for (int i = 0; i < n; ++i) to[i / 4 * 4 * PANEL + i % 4] = row[i];
      }
    }
    for (int r = 0; r < STRIP; r += RUNS * DOUBLES) {
      int i = 0;
      for (; i + 4 <= n; i += 4) spread<4>(near + i * PANEL, c + i, r, int(last - first));
      for (; i < n; ++i) spread<1>(near + i / 4 * 4 * PANEL + i % 4, c + i, r, int(last - first));
    }
  }

#if defined(__AVX512F__)
  static constexpr int RUNS = 4;
#else
  static constexpr int RUNS = 2;
#endif

  // Adds the errors of the n columns of a panel to N columns after it, for some rows. u: the first of them in the first
  // row of the panel, four before that in the next.
  template <int N>
  void spread(const double* u, int64_t c, int r, int n) {
    double* const to = sums.data() + c * STRIP + r;
    Doubles sum[N][RUNS];
    for (int i = 0; i < N; ++i)
      for (int v = 0; v < RUNS; ++v) sum[i][v] = load_doubles(to + i * STRIP + v * DOUBLES);
    for (int j = 0; j < n; ++j, u += 4) {
      const double* const lost = error + j * STRIP + r;
      Doubles term[RUNS];
      for (int v = 0; v < RUNS; ++v) term[v] = load_doubles(lost + v * DOUBLES);
      for (int i = 0; i < N; ++i) {
        const Doubles times = all_of(u[i]);
        for (int v = 0; v < RUNS; ++v) sum[i][v] = sum[i][v] + term[v] * times;
      }
    }
    for (int i = 0; i < N; ++i)
      for (int v = 0; v < RUNS; ++v) store_doubles(sum[i][v], to + i * STRIP + v * DOUBLES);
  }
};

}  // namespace
