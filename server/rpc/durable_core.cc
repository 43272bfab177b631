#include "server/rpc/durable_core.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

namespace longspan::rpc {
namespace {

// Between ticks for deadlines: one that lies in the past must not spin.
constexpr absl::Duration kTickDistanceMin = absl::Milliseconds(10);
// After a pass of the scheduler there is none for so many times as long as it took: while a large cluster changes all
// the time, passes take a fifth of this thread, and reports and submits have the rest.
constexpr int64_t kPassRest = 4;

std::string Text(const absl::Status& status) { return {status.message().data(), status.message().size()}; }

absl::Status Unavailable(const absl::Status& cause) {
  return absl::UnavailableError(fmt::format("the server cannot store anything now, try again: {}", Text(cause)));
}

// What the callers of a group get whose commit failed: they may try again, and a full disk is named as such.
absl::Status CommitError(const absl::Status& cause) {
  const std::string message = fmt::format("nothing was changed, the server could not store it: {}", Text(cause));
  if (absl::IsResourceExhausted(cause)) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

template <typename Id>
void EachOnce(std::vector<Id>* ids) {
  std::sort(ids->begin(), ids->end());
  ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
}

}  // namespace

DurableCore::DurableCore(Options options, Hooks hooks, store::Store* store, Observer* observer)
    : options_(std::move(options)), hooks_(std::move(hooks)), store_(store), observer_(observer) {}

// ---- the core comes and goes ----

absl::Status DurableCore::Load() {
  absl::StatusOr<core::StoredState> stored = store_->Load();
  if (!stored.ok()) return stored.status();
  auto core = std::make_unique<core::Core>(options_.core);
  const core::Effects effects = core->Step(core::Restarted{*std::move(stored)}, hooks_.now());
  if (absl::Status committed = Commit(effects.transaction); !committed.ok()) return committed;
  core_ = std::move(core);
  lost_ = absl::OkStatus();
  tick_soon_ = true;
  next_tick_ = hooks_.now();
  return absl::OkStatus();
}

void DurableCore::LoadAgain() {
  if (absl::Status loaded = Load(); !loaded.ok()) {
    LoseCore(loaded);
  } else if (hooks_.on_back) {
    hooks_.on_back();
  }
}

void DurableCore::LoseCore(const absl::Status& cause) {
  core_.reset();
  lost_ = cause;
  tick_soon_ = false;
  next_tick_ = absl::IsInternal(cause) ? absl::InfiniteFuture() : hooks_.now() + options_.reload_after;
  if (hooks_.on_lost) hooks_.on_lost(cause);
}

// ---- a turn ----

DurableCore::Changed DurableCore::Turn(std::vector<Item> group, bool idle) {
  if (core_ == nullptr && hooks_.now() >= next_tick_) LoadAgain();
  Decided decided = StepAll(std::move(group));
  absl::Status failed;
  if (core_ == nullptr) {
    failed = Unavailable(lost_);
  } else {
    if (TickIsDue(idle)) Tick(&decided);
    if (const absl::Status committed = Commit(decided.transaction); !committed.ok()) {
      LoseCore(committed);
      failed = CommitError(committed);
    }
  }
  for (Answer& answer : decided.answers) {
    if (failed.ok()) {
      answer.callback(std::move(answer.reply), core_.get());
    } else {
      answer.callback(failed, nullptr);
    }
  }
  for (const QueryCallback& query : decided.queries) {
    query(failed.ok() ? absl::StatusOr<const core::Core*>(core_.get()) : failed);
  }
  if (!failed.ok()) return {};
  EachOnce(&decided.changed.jobs);
  EachOnce(&decided.changed.workers);
  return std::move(decided.changed);
}

DurableCore::Decided DurableCore::StepAll(std::vector<Item> group) {
  Decided decided;
  for (Item& item : group) {
    if (QueryCallback* query = std::get_if<QueryCallback>(&item)) {
      decided.queries.push_back(std::move(*query));
      continue;
    }
    Sending& sending = std::get<Sending>(item);
    core::Reply reply;
    if (core_ != nullptr) {
      const absl::Status refused = RefusalOf(sending.event);
      reply = refused.ok() ? Step(sending.event, &decided) : core::SubmitReply{refused, {}, false};
    }
    decided.answers.push_back({std::move(sending.callback), std::move(reply)});
  }
  return decided;
}

core::Reply DurableCore::Step(const core::Event& event, Decided* decided) {
  core::Effects effects = StepTimed(event);
  decided->transaction.Append(std::move(effects.transaction));
  Changed& changed = decided->changed;
  changed.workers.insert(changed.workers.end(), effects.changed_workers.begin(), effects.changed_workers.end());
  changed.jobs.insert(changed.jobs.end(), effects.changed_jobs.begin(), effects.changed_jobs.end());
  tick_soon_ = tick_soon_ || effects.tick_soon;
  return std::move(effects.reply);
}

core::Effects DurableCore::StepTimed(const core::Event& event) {
  const int64_t passes = core_->counters().scheduler_passes;
  const absl::Time start = hooks_.now();
  core::Effects effects = core_->Step(event, start);
  if (core_->counters().scheduler_passes != passes) observer_->SchedulerPassed(hooks_.now() - start);
  return effects;
}

absl::Status DurableCore::RefusalOf(const core::Event& event) const {
  const auto* submitted = std::get_if<core::JobSubmitted>(&event);
  if (submitted == nullptr || core_->FindRequest(submitted->job.request_id)) return absl::OkStatus();
  const absl::StatusOr<int64_t> free_bytes = store_->FreeBytes();
  if (!free_bytes.ok()) return free_bytes.status();
  if (*free_bytes >= options_.free_bytes_min) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      fmt::format("no new jobs: the disk of the server's database has {} MiB left, less than {}; what runs goes on",
                  *free_bytes >> 20, options_.free_bytes_min >> 20));
}

// ---- ticks ----

bool DurableCore::TickIsDue(bool idle) const {
  const absl::Time now = hooks_.now();
  if (now >= next_tick_) return true;
  if (!idle || now < rest_until_) return false;
  return tick_soon_ || (now >= core_->NextDeadline() && now >= last_tick_ + kTickDistanceMin);
}

void DurableCore::Tick(Decided* decided) {
  tick_soon_ = false;
  const int64_t passes = core_->counters().scheduler_passes;
  const absl::Time start = hooks_.now();
  Step(core::Tick{}, decided);
  last_tick_ = hooks_.now();
  const bool passed = core_->counters().scheduler_passes != passes && last_tick_ > start;
  if (passed) rest_until_ = last_tick_ + kPassRest * (last_tick_ - start);
  next_tick_ = last_tick_ + options_.tick;
}

absl::Time DurableCore::NextTurn() const {
  if (core_ == nullptr) return next_tick_;
  const absl::Time wanted =
      tick_soon_ ? absl::InfinitePast() : std::max(last_tick_ + kTickDistanceMin, core_->NextDeadline());
  return std::min(next_tick_, std::max(rest_until_, wanted));
}

absl::Status DurableCore::Commit(const core::Transaction& transaction) {
  if (transaction.empty()) return absl::OkStatus();
  const absl::Time start = hooks_.now();
  absl::Status committed = store_->Commit(transaction);
  if (committed.ok()) observer_->Committed(transaction, hooks_.now() - start);
  return committed;
}

}  // namespace longspan::rpc
