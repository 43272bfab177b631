// What flash_cpu.cc hands to a kernel unit: plain pointers and sizes. Kernel units are compiled for instructions that
// the machine may lack, so this header has no function: an inline one could be emitted there and be linked for all.
#pragma once

#include <cstdint>

namespace longspan::trainer {

inline constexpr int64_t kFlashTile = 64;          // keys, and queries of the backward pass, that are worked on at once
inline constexpr int64_t kFlashForwardRows = 256;  // queries of a forward task
inline constexpr int64_t kFlashStripRows = 6;      // rows of a register tile
inline constexpr int64_t kFlashVectorFloatsMax = 16;  // of any kernel unit

// (blocks, heads, length, D) with last stride 1, or (blocks, heads, length). Strides in floats.
struct FlashView {
  float* data = nullptr;
  int64_t block_stride = 0, head_stride = 0, row_stride = 0;
};

struct FlashSegment {
  FlashView k, v;
  FlashView dk, dv;  // backward
  int64_t length = 0;
  bool causal = false;  // query i sees keys 0 to i; else all
  bool adds = false;    // dk and dv are added to, not overwritten
};

struct FlashProblem {
  int64_t blocks = 0, query_heads = 0, key_value_heads = 0;
  int64_t length = 0;  // of the queries
  int64_t head_dim = 0;
  float scale = 0;
  FlashView q, out, logsumexp;
  FlashView dout, dq;  // backward
  bool adds_to_dq = false;
  bool joined = false;  // out and logsumexp are of more keys than these
  FlashSegment segments[2];
  int segment_count = 0;
};

// A task is a (block, query head, kFlashForwardRows queries) forward, a (block, key/value head) backward. Tasks write
// apart from each other and what they write depends on nothing but the problem. `scratch` is one thread's.
struct FlashKernels {
  const char* name;
  void (*forward)(const FlashProblem& problem, int64_t task, float* scratch);
  void (*backward)(const FlashProblem& problem, int64_t task, float* scratch);
};

extern const FlashKernels kFlashAvx2;    // needs AVX2 and FMA
extern const FlashKernels kFlashAvx512;  // needs AVX-512 F, as well

}  // namespace longspan::trainer
