// Functions that one file defines and another one calls: they are compiled once.

#pragma once

#include "sums.h"

// In searches.cpp.
QK_EXPORT void QK_NAME(search)(const Tile* tile, const float* reciprocal, const float* centre,
                               const float* multipliers, int32_t count, float top, Grids grids,
                               const int32_t* importance, double* scale, int32_t* grid);
QK_EXPORT void QK_NAME(trial_floats)(const Tile* tile, const Small* small, const float* trial, const int32_t* first,
                                     int32_t count, int32_t plain, const int32_t* importance, int32_t* best);

// Encodes a tile and adds its sums, squares in float32, to those of the tiles before; in kernels.cpp.
extern "C" void QK_NAME(encode_adding)(const Tile& tile, const Params& params, const Grid& grid, void* codes,
                                       float* scratch, uint8_t* packed, Totals& totals);
