// Tensors of one shape that lie one after another, each by itself: a call for many small ones.

#include "common.h"
#include "settle.h"

QK_EXPORT int32_t QK_NAME(quantize)(const Tile* tile, const Rule* rule, const Rule* rival, float* scale, float* zero,
                                    uint8_t* packed, double* sums);

// `quantize` of each of `count` parts, which have tile->rows / count rows: sums[5] of each. Returns 0, and nothing of it
// counts, where any of them does.
QK_EXPORT int32_t QK_NAME(quantize_each)(const Tile* tile, int64_t count, const Rule* rule, const Rule* rival,
                                         float* scale, float* zero, uint8_t* packed, double* sums) {
  const int64_t rows = tile->rows / count, across = (tile->cols + tile->group - 1) / tile->group;
  const int64_t size = tile->kind == F32 ? 4 : 2, bytes = (tile->cols * rule->grid.bits + 31) / 32 * 4;
  for (int64_t part = 0; part < count; ++part) {
    const auto* weights = static_cast<const uint8_t*>(tile->weights) + part * rows * tile->cols * size;
    const Tile own = {weights, rows, tile->cols, tile->group, tile->kind};
    const int64_t groups = part * rows * across;
    if (!QK_NAME(quantize)(&own, rule, rival, scale + groups, zero ? zero + groups : nullptr, packed + part * rows * bytes,
                           sums + 5 * part))
      return 0;
  }
  return 1;
}
