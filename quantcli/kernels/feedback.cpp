// Second-order rounding, and what errors cost in the output of a layer; see feedback.h.

#include "feedback.h"

// One step of the factors of second moments, for a column of blocks. step 0: the diagonal block, which returns 0 where
// a pivot is not above `least`; 1: the blocks [from, to) above it; 2: those in the columns before it, of these rows.
// spare: room for two columns of so many blocks, handed from one step to the next. See factor.h.
QK_EXPORT int32_t QK_NAME(factor)(double* triangle, int64_t own, int32_t step, int64_t from, int64_t to, double least,
                                  double* spare, double* pivots) {
  const Panel panel = {triangle, own, spare, spare + (own + 1) * SQUARE, pivots};
  if (step == 0) return panel.diagonal(least);
  if (step == 1)
    panel.above(from, to);
  else
    panel.before(from, to);
  return 1;
}

// Chooses the codes of a tile and writes them to `packed`. What errors of every row cost, and their squares,
// [kind][row]: those of the chosen codes, those of other codes, which are given, and the weights themselves.
QK_EXPORT void QK_NAME(feedback)(const Tile* tile, const Grid* grid, const Feedback* feedback, const Params* params,
                                 uint8_t* packed, const Params* given, const uint8_t* codes, double* cost,
                                 double* square) {
  with_codes(static_cast<void*>(nullptr), grid->bits, [&](auto* code) {
    typedef std::remove_pointer_t<decltype(code)> Code;
    Strip<Code> strip(*tile, *grid, *feedback, {*params, packed}, {*given, codes});
    for (int64_t row = 0; row < tile->rows; row += STRIP)
      strip.run(row, int(std::min<int64_t>(STRIP, tile->rows - row)), cost, square);
  });
}
