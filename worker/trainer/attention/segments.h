// Many small dense calls as a few over segments of unlike lengths, for kernels that take a list of these (flash
// attention's variable length): packed documents, each with blocks of its own, are hundreds of calls else.
//
//   documents   [ a        ][ b  ][ c            ][ d ]       calls      one for each length and place
//   segments    0    G    |     |    G    2G     |     ..     joined     one for each run of segments
//
// Segments stand in the order of their rows and cover them all, so that they are cut where blocks end and where
// documents do, with blocks counted from each document's first token. Pure but for the tensors of a list.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "worker/trainer/attention/attention.h"

namespace longspan::trainer {

struct Segment {
  int64_t first_row = 0, rows = 0;
  bool operator==(const Segment&) const = default;
};
// What calls of the same heads attend within, in the order of their rows.
std::vector<Segment> SegmentsOf(const AttentionPlan& calls);

// Rows of a joined call, each segment counted with the rows that a kernel pads it by.
inline constexpr int64_t kJoinedRowsMax = 65536, kSegmentPadding = 128;

// The same attention in fewer calls: those of the same heads become runs of segments of up to `rows_max` rows; a run of
// equal segments is a dense call, and so is a segment that is longer. Heads stay as they are where that would not be
// fewer, or where a block sees rows before it (BlockEdge::kWrap).
AttentionPlan JoinSegments(const AttentionPlan& plan, at::Device device, int64_t rows_max = kJoinedRowsMax);

}  // namespace longspan::trainer
