#include "server/http/pages.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace longspan::http {
namespace {

constexpr char kHead[] = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Longspan</title>
<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="10">
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; width: 100%; margin-bottom: 2rem; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number, th.number { text-align: right; }
.SUCCEEDED { color: #0a6b2d; } .FAILED, .down { color: #b00020; } .RUNNING { color: #0b57d0; }
code { font-size: .9em; }
</style></head><body>
)";

std::string Age(absl::Duration duration) {
  const int64_t seconds = std::max<int64_t>(0, absl::ToInt64Seconds(duration));
  if (seconds < 60) return fmt::format("{} s", seconds);
  if (seconds < 3600) return fmt::format("{} min", seconds / 60);
  if (seconds < 48 * 3600) return fmt::format("{} h {} min", seconds / 3600, seconds / 60 % 60);
  return fmt::format("{} d", seconds / (24 * 3600));
}

std::string ProgressText(const core::JobView& view) {
  if (!view.progress) return "";
  std::string text = core::Name(view.progress->phase);
  if (view.progress->steps > 0) text += fmt::format(" {} / {}", view.progress->step, view.progress->steps);
  const auto loss = view.progress->values.find("loss");
  if (loss != view.progress->values.end()) text += fmt::format(", loss {:.4g}", loss->second);
  return text;
}

std::string JobRow(const core::JobView& view, absl::Time now) {
  const core::Job& job = view.job;
  return fmt::format(
      "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td class=\"{}\">{}</td><td "
      "class=\"number\">{}</td><td>{}</td>"
      "<td>{}</td><td>{}</td></tr>\n",
      EscapeHtml(job.id.value()), EscapeHtml(job.name), EscapeHtml(job.queue), core::Name(job.state),
      core::Name(job.state), job.gang_sizes.back(), EscapeHtml(ProgressText(view)), Age(now - job.submit_time),
      EscapeHtml(job.message));
}

std::string WorkerRow(const core::WorkerView& view, absl::Time now) {
  const core::Worker& worker = view.worker;
  const auto used =
      std::count_if(view.slot_jobs.begin(), view.slot_jobs.end(), [](const JobId& job) { return !job.empty(); });
  const char* state = !worker.up ? "down" : worker.draining || worker.leaving ? "draining" : "up";
  return fmt::format(
      "<tr><td>{}</td><td>{}:{}</td><td class=\"{}\">{}</td><td class=\"number\">{} of {}</td><td>{}</td><td>{} "
      "ago</td></tr>\n",
      EscapeHtml(worker.id.value()), EscapeHtml(worker.advertise_address), worker.http_port, state, state, used,
      worker.slots.size(), worker.slots.empty() ? "" : EscapeHtml(worker.slots.front().device),
      Age(now - worker.last_seen));
}

}  // namespace

std::string EscapeHtml(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (const char letter : text) {
    switch (letter) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += letter;
    }
  }
  return out;
}

std::string TargetsJson(const ClusterSnapshot& snapshot) {
  nlohmann::json targets = nlohmann::json::array();
  for (const core::WorkerView& view : snapshot.workers) {
    const core::Worker& worker = view.worker;
    if (worker.http_port == 0 || worker.advertise_address.empty()) continue;
    const bool is_v6 =
        worker.advertise_address.find(':') != std::string::npos && worker.advertise_address.front() != '[';
    const std::string host = is_v6 ? "[" + worker.advertise_address + "]" : worker.advertise_address;
    nlohmann::json labels = {{"worker", worker.id.value()}};
    for (const auto& [key, value] : worker.labels) {
      std::string name = "__meta_longspan_label_" + key;
      std::replace_if(
          name.begin(), name.end(), [](unsigned char letter) { return std::isalnum(letter) == 0 && letter != '_'; },
          '_');
      labels[name] = value;
    }
    targets.push_back({{"targets", {fmt::format("{}:{}", host, worker.http_port)}}, {"labels", labels}});
  }
  return targets.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string StatusPage(const ClusterSnapshot& snapshot, const std::string& version) {
  std::string page = kHead;
  page += fmt::format("<h1>Longspan</h1><p>Version {}. {} jobs live or ended within a day, {} workers.</p>\n",
                      EscapeHtml(version), snapshot.jobs.size(), snapshot.workers.size());
  page +=
      "<h2>Jobs</h2>\n<table><tr><th>Job</th><th>Name</th><th>Queue</th><th>State</th><th class=\"number\">Slots</th>"
      "<th>Progress</th><th>Age</th><th>Message</th></tr>\n";
  for (const core::JobView& view : snapshot.jobs) page += JobRow(view, snapshot.now);
  page +=
      "</table>\n<h2>Workers</h2>\n<table><tr><th>Worker</th><th>Address</th><th>State</th><th class=\"number\">Slots "
      "used</th>"
      "<th>Device</th><th>Heard of</th></tr>\n";
  for (const core::WorkerView& view : snapshot.workers) page += WorkerRow(view, snapshot.now);
  return page + "</table></body></html>\n";
}

}  // namespace longspan::http
