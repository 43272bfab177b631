#include "server/rpc/job_list_page.h"

#include <fmt/format.h>
#include <openssl/sha.h>

#include <algorithm>

namespace longspan::rpc {
namespace {

constexpr int kSizeDefault = 100;
constexpr int kSizeMax = 1000;
constexpr size_t kDigestLetters = 16;

// Tells pages of other filters apart: going on in one with the token of another would skip jobs silently.
std::string DigestOf(const JobListPage& page) {
  std::string text = page.queue + '\n';
  for (const core::JobState state : page.states) text += fmt::format("{},", static_cast<int>(state));
  for (const auto& [key, value] : page.labels) text += fmt::format("\n{}:{}={}", key.size(), key, value);
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  std::string hex;
  for (size_t i = 0; i < kDigestLetters / 2; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

}  // namespace

absl::StatusOr<JobListPage> JobListPage::Of(const v1::ListJobsRequest& request) {
  JobListPage page;
  if (request.page_size() < 0) return absl::InvalidArgumentError("page_size: must be 0 to 1000");
  page.size = static_cast<size_t>(request.page_size() == 0 ? kSizeDefault : std::min(request.page_size(), kSizeMax));
  for (const int state : request.states()) {
    if (!v1::JobState_IsValid(state) || state == v1::JOB_STATE_UNSPECIFIED) {
      return absl::InvalidArgumentError(fmt::format("states: {} is no state of a job", state));
    }
    page.states.insert(static_cast<core::JobState>(state));
  }
  page.queue = request.queue();
  page.labels = {request.labels().begin(), request.labels().end()};
  if (!request.page_token().empty()) {
    const std::string& token = request.page_token();
    if (token.size() <= kDigestLetters || token.substr(0, kDigestLetters) != DigestOf(page)) {
      return absl::InvalidArgumentError(
          "page_token: is not from an answer to the same filters; start again without one");
    }
    page.before = JobId(token.substr(kDigestLetters));
  }
  return page;
}

bool JobListPage::Matches(const core::Job& job) const {
  if (!states.empty() && states.count(job.state) == 0) return false;
  if (!queue.empty() && job.queue != queue) return false;
  return std::all_of(labels.begin(), labels.end(), [&](const auto& wanted) {
    const auto found = job.labels.find(wanted.first);
    return found != job.labels.end() && found->second == wanted.second;
  });
}

std::string JobListPage::TokenAfter(const JobId& last) const { return DigestOf(*this) + last.value(); }

}  // namespace longspan::rpc
