// Second-order rounding, and what errors cost in the output of a layer; see feedback.h.

#include "feedback.h"

// One step of the factors of second moments, for the panel of columns that begins with `first`. step 0: the panel
// itself, which returns 0 where a pivot is not above `least`; 1: its columns in rows [from, to) above it; 2: the columns
// before it in these rows. raw: (PANEL, cols), handed from one step to the next.
QK_EXPORT int32_t QK_NAME(factor)(double* triangle, int64_t cols, int64_t first, int32_t step, int64_t from, int64_t to,
                                  double least, double* raw, double* pivots) {
  const Panel panel(triangle, cols, first, raw, pivots);
  if (step == 0) return panel.diagonal(least);
  if (step == 1)
    panel.above(from, to);
  else
    panel.rest(from, to);
  return 1;
}

// What the errors of every row cost, and their squares. done: whether codes are chosen, and written to `packed`, or
// given in it, or the weights stand for errors themselves: then there are no codes.
QK_EXPORT void QK_NAME(feedback)(const Tile* tile, const Params* params, const Grid* grid, const Feedback* feedback,
                                 int32_t done, uint8_t* packed, double* cost, double* square) {
  with_codes(static_cast<void*>(nullptr), grid->bits, [&](auto* code) {
    Strip<std::remove_pointer_t<decltype(code)>> strip(*tile, *params, *grid, *feedback, Done(done));
    for (int64_t row = 0; row < tile->rows; row += STRIP) {
      const int n = int(std::min<int64_t>(STRIP, tile->rows - row));
      uint8_t* const own = packed ? packed + row * row_bytes(tile->cols, grid->bits) : nullptr;
      strip.run(row, n, own, cost + row, square + row);
    }
  });
}
