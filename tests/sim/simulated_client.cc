#include "tests/sim/simulated_client.h"

#include <algorithm>
#include <memory>

namespace longspan::sim {
namespace {

// A message is not under way for longer.
constexpr absl::Duration kUnderWayMax = absl::Seconds(10);

}  // namespace

void SimulatedClient::Ask(std::function<core::Event()> event, int tries, std::function<void(const core::Reply&)> done) {
  struct Conversation {
    bool answered = false;
    int left;
    std::function<void()> send;
  };
  auto conversation = std::make_shared<Conversation>();
  conversation->left = tries;
  conversation->send = [this, weak = std::weak_ptr(conversation), event = std::move(event), done = std::move(done)] {
    const auto mine = weak.lock();
    if (mine == nullptr || mine->answered || mine->left-- == 0) return;
    network_->Send(Network::kClient, Network::kServer, [this, mine, event, done] {
      const core::Event sent = event();
      server_->Command(sent, [this, mine, done, sent](const absl::StatusOr<core::Reply>& reply) {
        if (reply.ok() && IsRefused(sent, *reply)) return;  // and asked again
        network_->Send(Network::kServer, Network::kClient, [mine, done, reply] {
          if (!reply.ok() || mine->answered) return;
          mine->answered = true;
          done(*reply);
        });
      });
    });
    world_->timeline.After(world_->random.Between(absl::Seconds(0.5), absl::Seconds(3)), [mine] { mine->send(); });
  };
  conversation->send();
}

// At the time of the answer, so that the invariant sees the disk as the server saw it.
bool SimulatedClient::IsRefused(const core::Event& event, const core::Reply& reply) {
  const auto* answer = std::get_if<core::SubmitReply>(&reply);
  if (answer == nullptr || !absl::IsResourceExhausted(answer->status)) return false;
  const std::string& request_id = std::get<core::JobSubmitted>(event).job.request_id;
  world_->Say("server: refuses {}: {}", request_id, answer->status.ToString());
  invariants_->OnSubmitRefused(request_id, server_->disk_full());
  return true;
}

void SimulatedClient::Submit(JobPlan plan) {
  const std::string request_id = plan.job.request_id;
  world_->Say("client: submits {} with {} slots, priority {}, {} steps", request_id,
              fmt::join(plan.job.gang_sizes, "/"), plan.job.priority, plan.steps);
  submitted_[request_id].plan = plan;
  const auto event = [this, plan] {
    core::JobSubmitted submit{plan.job};
    submit.job.id = JobId(fmt::format("job-{}-{}", plan.job.name, ++last_job_id_));
    trainers_->AddJob(submit.job.id, plan);
    return core::Event(submit);
  };
  Ask(event, 1'000'000, [this, request_id](const core::Reply& reply) {
    const auto& answer = std::get<core::SubmitReply>(reply);
    if (!answer.status.ok()) return invariants_->Fail("a retried submit is accepted", answer.status.ToString());
    invariants_->OnSubmitAcknowledged(request_id, answer.job_id);
    submitted_[request_id].job_id = answer.job_id;
    world_->Say("client: {} is {}", request_id, answer.job_id);
  });
}

void SimulatedClient::Configure(const core::QueueConfigured& queue) {
  Command(queue, 1'000'000, [] {}, "queue " + queue.name);
}

void SimulatedClient::Command(core::Event event, int tries, std::function<void()> acknowledged,
                              const std::string& what) {
  world_->Say("client: {}", what);
  Ask([event = std::move(event)] { return event; }, tries,
      [this, acknowledged = std::move(acknowledged), what](const core::Reply& reply) {
        const auto& answer = std::get<core::CommandReply>(reply);
        world_->Say("client: {}: {}", what, answer.status.ok() ? "done" : answer.status.ToString());
        if (answer.status.ok()) acknowledged();
      });
}

void SimulatedClient::Resume(const JobId& job_id, int tries) {
  contrary_[job_id.value()] = world_->timeline.now();
  invariants_->OnResumeSent(job_id);
  Command(core::ResumeRequested{job_id}, tries, [] {}, "resume " + job_id.value());
}

void SimulatedClient::Undrain(const WorkerId& worker_id, int tries) {
  contrary_[worker_id.value()] = world_->timeline.now();
  invariants_->OnUndrainSent(worker_id);
  Command(core::UndrainRequested{worker_id}, tries, [] {}, "undrain " + worker_id.value());
}

void SimulatedClient::DoSomething(int workers) {
  Random& random = world_->random;
  const WorkerId worker(fmt::format("w{}", random.Integer(1, workers)));
  if (random.Chance(0.2)) {
    return Command(
        core::DrainRequested{worker, random.Chance(0.5)}, 1,
        [this, worker, now = world_->timeline.now()] {
          if (IsSettled(worker.value(), now)) invariants_->OnDrainAcknowledged(worker);
        },
        "drain " + worker.value());
  }
  if (random.Chance(0.3)) return Undrain(worker, 1);
  std::vector<Submitted*> known;
  for (auto& [request_id, job] : submitted_) {
    if (!job.job_id.empty()) known.push_back(&job);
  }
  if (known.empty()) return;
  Submitted& job = *known[static_cast<size_t>(random.Integer(0, static_cast<int64_t>(known.size()) - 1))];
  const JobId job_id = job.job_id;
  if (random.Chance(0.1)) {
    job.cancel_sent = true;
    return Command(
        core::CancelRequested{job_id}, 3, [this, job_id] { invariants_->OnCancelAcknowledged(job_id); },
        "cancel " + job_id.value());
  }
  if (random.Chance(0.5)) return Resume(job_id, 1);
  Command(
      core::PauseRequested{job_id}, 1,
      [this, job_id, now = world_->timeline.now()] {
        if (IsSettled(job_id.value(), now)) invariants_->OnPauseAcknowledged(job_id);
      },
      "pause " + job_id.value());
}

bool SimulatedClient::IsSettled(const std::string& target, absl::Time sent) const {
  const auto found = contrary_.find(target);
  return found == contrary_.end() || found->second + kUnderWayMax < sent;
}

void SimulatedClient::Calm(const core::Core& core) {
  for (const auto& [job_id, job] : invariants_->jobs()) {
    if (job.state == core::JobState::kPaused) Resume(job_id, 1);
  }
  for (const core::WorkerView& view : core.ListWorkers()) {
    if (view.worker.draining) Undrain(view.worker.id, 1);
  }
}

bool SimulatedClient::AllAnswered() const {
  return std::all_of(submitted_.begin(), submitted_.end(),
                     [](const auto& entry) { return !entry.second.job_id.empty(); });
}

}  // namespace longspan::sim
