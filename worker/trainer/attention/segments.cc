#include "worker/trainer/attention/segments.h"

#include <algorithm>
#include <tuple>

namespace longspan::trainer {
namespace {

auto HeadsOf(const AttentionCall& call) {
  return std::tuple(call.query_head, call.query_heads, call.key_value_head, call.key_value_heads);
}

bool AreEqual(const std::vector<Segment>& run) {
  return std::all_of(run.begin(), run.end(), [&](const Segment& segment) { return segment.rows == run[0].rows; });
}

SegmentList ListOf(const std::vector<Segment>& run, at::Device device) {
  SegmentList list;
  std::vector<int64_t> first_rows;
  for (const Segment& segment : run) {
    first_rows.push_back(segment.first_row - run[0].first_row);
    list.starts.push_back(static_cast<int32_t>(first_rows.back()));
    list.longest = std::max(list.longest, segment.rows);
  }
  list.starts.push_back(static_cast<int32_t>(first_rows.back() + run.back().rows));
  list.starts_on_device = at::tensor(list.starts, at::kInt).to(device);
  list.first_rows_on_device = at::tensor(first_rows, at::kLong).to(device);
  return list;
}

// `like`: a call of the same heads.
AttentionCall CallOf(const std::vector<Segment>& run, AttentionCall like, at::Device device) {
  like.first_row = run[0].first_row;
  if (AreEqual(run)) {
    like.blocks = static_cast<int64_t>(run.size());
    like.length = like.stride_rows = run[0].rows;
    return like;
  }
  like.blocks = 1;
  like.length = like.stride_rows = run.back().first_row + run.back().rows - run[0].first_row;
  like.segments = ListOf(run, device);
  return like;
}

AttentionPlan Joined(const AttentionPlan& calls, at::Device device, int64_t rows_max) {
  AttentionPlan joined;
  std::vector<Segment> run;
  int64_t rows = 0;
  const auto close = [&] {
    if (!run.empty()) joined.push_back(CallOf(run, calls[0], device));
    run.clear();
    rows = 0;
  };
  for (const Segment& segment : SegmentsOf(calls)) {
    const int64_t padded = segment.rows + kSegmentPadding;
    if (rows + padded > rows_max) close();
    run.push_back(segment);
    rows += padded;
  }
  close();
  return joined;
}

}  // namespace

std::vector<Segment> SegmentsOf(const AttentionPlan& calls) {
  std::vector<Segment> segments;
  for (const AttentionCall& call : calls) {
    for (int64_t block = 0; block < call.blocks; ++block) {
      segments.push_back({call.first_row + block * call.stride_rows, call.length});
    }
  }
  std::sort(segments.begin(), segments.end(),
            [](const Segment& a, const Segment& b) { return a.first_row < b.first_row; });
  for (size_t i = 1; i < segments.size(); ++i) {
    TORCH_CHECK(segments[i].first_row == segments[i - 1].first_row + segments[i - 1].rows, "attention to row ",
                segments[i].first_row, " after ", segments[i - 1].rows, " rows from ", segments[i - 1].first_row);
  }
  return segments;
}

AttentionPlan JoinSegments(const AttentionPlan& plan, at::Device device, int64_t rows_max) {
  AttentionPlan result;
  for (size_t begin = 0, end = 0; begin < plan.size(); begin = end) {
    bool joins = true;
    for (; end < plan.size() && HeadsOf(plan[end]) == HeadsOf(plan[begin]); ++end) {
      joins = joins && plan[end].prefix_length == 0;
    }
    AttentionPlan calls(plan.begin() + static_cast<std::ptrdiff_t>(begin),
                        plan.begin() + static_cast<std::ptrdiff_t>(end));
    if (joins) {
      AttentionPlan joined = Joined(calls, device, rows_max);
      if (joined.size() < calls.size()) calls = std::move(joined);
    }
    std::move(calls.begin(), calls.end(), std::back_inserter(result));
  }
  return result;
}

}  // namespace longspan::trainer
