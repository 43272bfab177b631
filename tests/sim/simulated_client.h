// Users and operators: they submit the jobs of the seed, and at random times cancel, pause, resume, drain and undrain.
//
// Requests and answers are lost, doubled and late like all others. A submit is repeated under its request id until it
// is answered, each time with a fresh job id, as the server's rpc layer makes one per call; a command is repeated some
// times.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/sim/job_generator.h"
#include "tests/sim/network.h"
#include "tests/sim/simulated_server.h"
#include "tests/sim/trainers.h"

namespace longspan::sim {

class SimulatedClient {
 public:
  SimulatedClient(World* world, Network* network, SimulatedServer* server, Trainers* trainers, Invariants* invariants)
      : world_(world), network_(network), server_(server), trainers_(trainers), invariants_(invariants) {}

  void Submit(JobPlan plan);
  void Configure(const core::QueueConfigured& queue);
  // A random command to a random job or worker.
  void DoSomething(int workers);
  // What keeps jobs from ending is taken back: pauses, drains.
  void Calm(const core::Core& core);

  struct Submitted {
    JobPlan plan;
    JobId job_id;  // empty until a submit was answered
    bool cancel_sent = false;
  };
  const std::map<std::string, Submitted>& submitted() const { return submitted_; }  // by request id
  bool AllAnswered() const;

 private:
  // Sends `event` and tells `done` about the answer; again and again while `done` was not called, at most `tries`
  // times.
  void Ask(std::function<core::Event()> event, int tries, std::function<void(const core::Reply&)> done);
  // A new job, for want of room on the server's disk.
  bool IsRefused(const core::Event& event, const core::Reply& reply);
  void Command(core::Event event, int tries, std::function<void()> acknowledged, const std::string& what);
  bool IsSettled(const std::string& target, absl::Time sent) const;
  void Resume(const JobId& job_id, int tries);
  void Undrain(const WorkerId& worker_id, int tries);

  World* const world_;
  Network* const network_;
  SimulatedServer* const server_;
  Trainers* const trainers_;
  Invariants* const invariants_;
  std::map<std::string, Submitted> submitted_;
  int64_t last_job_id_ = 0;
  // By job or worker: when the newest resume or undrain was sent. One that is still under way may arrive after a pause
  // or drain that was sent later, and undo it: its answer says nothing then.
  std::map<std::string, absl::Time> contrary_;
};

}  // namespace longspan::sim
