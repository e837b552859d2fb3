// Codes of a row as a stream of bits, low code first, in whole 32-bit words.

#pragma once

#include "common.h"

namespace {

// Bytes of a row of codes: whole 32-bit words.
inline int64_t row_bytes(int64_t cols, int bits) { return (cols * bits + 31) / 32 * 4; }

constexpr uint64_t EACH_BYTE = 0x0101010101010101ull;

// Eight codes of one byte each, low code first, to the low 8*b bits.
inline uint64_t squeeze(uint64_t v, int b) {
#if defined(__AVX512BW__) && defined(__BMI2__)  // some older CPUs take hundreds of cycles for it
  return _pext_u64(v, EACH_BYTE * ((1u << b) - 1));
#endif
  const uint64_t pair = (uint64_t(1) << (2 * b)) - 1, quad = (uint64_t(1) << (4 * b)) - 1;
  v = (v & 0x00ff00ff00ff00ffull) | ((v & 0xff00ff00ff00ff00ull) >> (8 - b));
  v = (v & 0x0000ffff0000ffffull & (pair | pair << 32)) | ((v >> 16 & (pair | pair << 32)) << (2 * b));
  return (v & quad) | ((v >> 32 & quad) << (4 * b));
}

inline uint64_t spread(uint64_t v, int b) {
#if defined(__AVX512BW__) && defined(__BMI2__)
  return _pdep_u64(v, EACH_BYTE * ((1u << b) - 1));
#endif
  const uint64_t one = (uint64_t(1) << b) - 1, pair = (uint64_t(1) << (2 * b)) - 1, quad = (uint64_t(1) << (4 * b)) - 1;
  v = (v & quad) | ((v >> (4 * b) & quad) << 32);
  const uint64_t pairs = pair | pair << 32;
  v = (v & pairs) | ((v >> (2 * b) & pairs) << 16);
  const uint64_t ones = one | one << 16 | one << 32 | one << 48;
  return (v & ones) | ((v >> b & ones) << 8);
}

// cols codes (bytes, b <= 8) to whole 32-bit words; codes must be readable and zero up to a multiple of 32.
void pack(const uint8_t* codes, int64_t cols, int b, uint8_t* out) {
  const int64_t bytes = row_bytes(cols, b);
  if (b == 8) {
    std::memcpy(out, codes, size_t(bytes));
    return;
  }
  if (b == 4) {
    for (int64_t i = 0; i < bytes; ++i) out[i] = uint8_t(codes[2 * i] | codes[2 * i + 1] << 4);
    return;
  }
  if (b == 2) {
    for (int64_t i = 0; i < bytes; ++i)
      out[i] = uint8_t(codes[4 * i] | codes[4 * i + 1] << 2 | codes[4 * i + 2] << 4 | codes[4 * i + 3] << 6);
    return;
  }
  int64_t done = 0;
  for (int64_t i = 0; done < bytes; i += 8, done += b) {
    uint64_t v;
    std::memcpy(&v, codes + i, 8);
    v = squeeze(v, b);
    if (bytes - done >= 8)
      std::memcpy(out + done, &v, 8);  // what is too much is written over by the next eight
    else
      std::memcpy(out + done, &v, size_t(bytes - done < b ? bytes - done : b));
  }
}

void unpack(const uint8_t* packed, int64_t cols, int b, uint8_t* codes) {
  const int64_t bytes = row_bytes(cols, b);
  if (b == 8) {
    std::memcpy(codes, packed, size_t(cols));
    return;
  }
  if (b == 4) {
    for (int64_t i = 0; i < bytes; ++i) {
      codes[2 * i] = packed[i] & 15;
      codes[2 * i + 1] = packed[i] >> 4;
    }
    return;
  }
  int64_t used = 0;
  for (int64_t i = 0; i < cols; i += 8, used += b) {
    uint64_t v = 0;
    if (bytes - used >= 8)
      std::memcpy(&v, packed + used, 8);  // `spread` takes what belongs to eight codes
    else
      std::memcpy(&v, packed + used, size_t(bytes - used < b ? bytes - used : b));
    v = spread(v, b);
    std::memcpy(codes + i, &v, 8);
  }
}

void pack(const uint16_t* codes, int64_t cols, int b, uint8_t* out) {
  const int64_t bytes = row_bytes(cols, b);
  uint64_t pending = 0;
  int held = 0;
  int64_t done = 0;
  for (int64_t i = 0; done < bytes; ++i) {
    pending |= uint64_t(codes[i]) << held;
    for (held += b; held >= 8 && done < bytes; held -= 8, pending >>= 8) out[done++] = uint8_t(pending);
  }
}

void unpack(const uint8_t* packed, int64_t cols, int b, uint16_t* codes) {
  const uint32_t mask = (1u << b) - 1;
  uint64_t pending = 0;
  int held = 0;
  for (int64_t i = 0, used = 0; i < cols; ++i) {
    while (held < b) {
      pending |= uint64_t(packed[used++]) << held;
      held += 8;
    }
    codes[i] = uint16_t(pending & mask);
    pending >>= b;
    held -= b;
  }
}

// Codes of which packing reads whole words beyond the end of a row.
constexpr int PADDING = 32;

// Calls run with the scratch for codes of b bits: bytes up to 8, words of 16 above.
template <class Run>
inline void with_codes(void* codes, int bits, Run run) {
  if (bits <= 8)
    run(static_cast<uint8_t*>(codes));
  else
    run(static_cast<uint16_t*>(codes));
}

}  // namespace
