// The search for scales in super-blocks.

#include "blocks.h"

// Of every super-block of a tile of whole ones d and, for AFFINE, dm in float16; of every sub-block its scale and, for
// AFFINE, its minimum. importance: of every column, 0 to 256, 256 for the highest of its sub-block; much: how much each
// sub-block counts; both null where all count the same.
QK_EXPORT void QK_NAME(search_blocks)(const Tile* tile, const BlockType* type, const int16_t* importance,
                                      const double* much, uint16_t* d, uint16_t* dm, int8_t* scales,
                                      uint8_t* minima) {
  if (type->form == AFFINE && type->sub == 32)
    search_blocks<AFFINE, 32>(*tile, *type, importance, much, d, dm, scales, minima);
  else if (type->form == AFFINE)
    search_blocks<AFFINE, 16>(*tile, *type, importance, much, d, dm, scales, minima);
  else if (type->form == SIGNED)
    search_blocks<SIGNED, 16>(*tile, *type, importance, much, d, dm, scales, minima);
  else
    search_blocks<TABLE, 32>(*tile, *type, importance, much, d, dm, scales, minima);
}
