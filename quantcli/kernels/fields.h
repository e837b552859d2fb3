// Codes in blocks: runs of bytes that hold some bits of each of them.

#pragma once

#include "packing.h"

namespace {

// A run of bytes of a block, from byte `at` on: of every code the `bits` bits above `shift`. Those of the first `run`
// codes are the low bits of `run` bytes, those of the next lie above them, until the bytes are full. All bits are
// flipped that `flip` has. Field by field as records.py declares it.
struct BlockField {
  int32_t at, bits, shift, run, flip;
};

inline uint64_t eight_bytes(const uint8_t* p) {
  uint64_t found;
  std::memcpy(&found, p, 8);
  return found;
}

// The field of a block of `count` codes, a multiple of 8 as its run is, unless that is 1.
template <int BITS>
inline void fill(const uint8_t* codes, int64_t count, const BlockField& field, uint8_t* out) {
  constexpr int DEEP = 8 / BITS;
  const uint64_t mask = EACH_BYTE * ((1u << BITS) - 1), flip = EACH_BYTE * uint32_t(field.flip);
  if (field.run == 1) {
    for (int64_t i = 0; i < count; i += 8, out += BITS) {
      const uint64_t found = squeeze(eight_bytes(codes + i) >> field.shift & mask, BITS) ^ flip;
      std::memcpy(out, &found, BITS);
    }
    return;
  }
  for (int64_t from = 0; from < count; from += DEEP * field.run)
    for (int64_t i = from; i < from + field.run; i += 8, out += 8) {
      uint64_t found = flip;
      for (int k = 0; k < DEEP; ++k)
        found ^= (eight_bytes(codes + i + k * field.run) >> field.shift & mask) << (k * BITS);
      std::memcpy(out, &found, 8);
    }
}

inline void fill(const uint8_t* codes, int64_t count, const BlockField& field, uint8_t* block) {
  uint8_t* out = block + field.at;
  if (field.bits == 1) return fill<1>(codes, count, field, out);
  if (field.bits == 2) return fill<2>(codes, count, field, out);
  if (field.bits == 4) return fill<4>(codes, count, field, out);
  fill<8>(codes, count, field, out);
}

}  // namespace
