// Hot loops of quantcli, plain C ABI, no Python API: loaded by ctypes, which drops the GIL during a call.
//
// Every file is compiled once for each instruction set (QK_VARIANT names it); Python picks the variant the CPU has.
// Every result must equal numpy_kernels.py bit for bit, so: no fast-math, no contraction (-ffp-contract=off),
// one IEEE float32 division per weight, and sums in a stated order (sums.h).

#include <vector>

#include "encode.h"
#include "fields.h"
#include "ranges.h"
#include "rotation.h"
#include "shared.h"

// lo, hi and the signed value of largest magnitude (the first one wins a tie) of every group: each (rows, groups).
// Returns 0 when a weight is not finite.
QK_EXPORT int32_t QK_NAME(ranges)(const Tile* tile, float* lo, float* hi, float* extreme) {
  return tile_ranges(*tile, lo, hi, extreme);
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

// Codes of every weight as rows of whole 32-bit words, and sums[4]: squared error of the decoded values, power, largest
// error, clipped weights. codes: scratch of (cols + PADDING) codes. With scratch of cols floats the sum of every row's
// errors is preserved. Without packed only sums[0] is found.
QK_EXPORT void QK_NAME(encode)(const Tile* tile, const Params* params, const Grid* grid, void* codes,
                               float* scratch, uint8_t* packed, double* sums) {
  find_sums(sums, packed != nullptr, [&](auto wide, Totals& totals) {
    encode_tile<decltype(wide)::value>(*tile, *params, *grid, codes, scratch, packed, totals);
  });
}

extern "C" void QK_NAME(encode_adding)(const Tile& tile, const Params& params, const Grid& grid, void* codes,
                                       float* scratch, uint8_t* packed, Totals& totals) {
  encode_tile<false>(tile, params, grid, codes, scratch, packed, totals);
}

// The sums of encode for stored codes.
QK_EXPORT void QK_NAME(measure)(const Tile* tile, const Params* params, const Grid* grid, void* codes,
                                const uint8_t* packed, double* sums) {
  with_codes(codes, grid->bits, [&](auto* code) {
    find_sums(sums, true, [&](auto wide, Totals& totals) {
      for (int64_t row = 0; row < tile->rows; ++row) {
        unpack(packed + row * row_bytes(tile->cols, grid->bits), tile->cols, grid->bits, code);
        measure_row<decltype(wide)::value>(*tile, row, row_params(*params, row, *grid), *grid, code, totals);
      }
    });
  });
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

// Codes (rows, cols), bytes up to 8 bits and words of 16 above, to rows of whole 32-bit words.
QK_EXPORT void QK_NAME(pack)(int64_t rows, int64_t cols, int32_t bits, const void* codes, uint8_t* packed) {
  std::vector<uint16_t> row(size_t(cols + PADDING));
  with_codes(row.data(), bits, [&](auto* code) {
    std::memset(code + cols, 0, PADDING * sizeof *code);
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(code, static_cast<decltype(code)>(const_cast<void*>(codes)) + r * cols, size_t(cols) * sizeof *code);
      pack(code, cols, bits, packed + r * row_bytes(cols, bits));
    }
  });
}

// The reverse.
QK_EXPORT void QK_NAME(unpack)(int64_t rows, int64_t cols, int32_t bits, const uint8_t* packed, void* codes) {
  std::vector<uint16_t> row(size_t(cols + PADDING));
  with_codes(row.data(), bits, [&](auto* code) {
    for (int64_t r = 0; r < rows; ++r) {
      auto* out = static_cast<decltype(code)>(codes) + r * cols;
      auto* into = cols % PADDING ? code : out;  // whole words may hold more codes than a row has
      unpack(packed + r * row_bytes(cols, bits), cols, bits, into);
      if (into != out) std::memcpy(out, into, size_t(cols) * sizeof *code);
    }
  });
}

// The fields of blocks of `weights` codes and `size` bytes, of rows (rows, cols) of packed codes of up to 8 bits. Other
// bytes of the blocks stay as they are.
QK_EXPORT void QK_NAME(fill_blocks)(int64_t rows, int64_t cols, int32_t bits, const uint8_t* packed, int64_t weights,
                                    int64_t size, const BlockField* fields, int32_t count, uint8_t* blocks) {
  std::vector<uint8_t> codes(size_t(cols + PADDING));
  for (int64_t r = 0; r < rows; ++r) {
    unpack(packed + r * row_bytes(cols, bits), cols, bits, codes.data());
    for (int64_t from = 0; from < cols; from += weights, blocks += size)
      for (int32_t k = 0; k < count; ++k) fill(codes.data() + from, weights, fields[k], blocks);
  }
}

#ifdef QK_PROBE
#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>

namespace {

// Clang 14 does not know the name for __builtin_cpu_supports.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

}  // namespace
#endif

// Limits of the searches.
QK_EXPORT void qk_limits(Limits* limits) { *limits = LIMITS; }

QK_EXPORT int32_t qk_interface() { return INTERFACE; }

// Highest instruction set of this CPU that a variant was compiled for: 4 (AVX-512 of Ice Lake and Zen 4), 3 (AVX2, F16C,
// BMI2), 2 (SSE4.2) or 0.
QK_EXPORT int32_t qk_cpu_level() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2"))
    return 4;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && has_f16c()) return 3;
  if (__builtin_cpu_supports("sse4.2")) return 2;
#endif
  return 0;
}
#endif
