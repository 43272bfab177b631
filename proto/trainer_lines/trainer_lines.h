// The protocol between a worker daemon and one trainer process: JSON objects, one a line, on two pipes.
//
// The trainer gets the file descriptors as --lines-out-fd (it writes) and --lines-in-fd (it reads). Each line is at
// most kLineBytesMax long, has a "type", and may carry fields that the reader does not know: these are ignored, and so
// are unknown types. A line that is no JSON object, lacks a required field or has one of the wrong type is malformed:
// it is counted and dropped, never fatal. Non-finite numbers travel as the strings "nan", "inf", "-inf". README.md has
// a sample session.
//
// Encoding and decoding are pure and thread-safe. LineBuffer is not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace longspan::lines {

inline constexpr size_t kLineBytesMax = 64 * 1024;
inline constexpr int kProtocolVersion = 1;

// ---- trainer to daemon ----

struct Hello {  // first line of a session
  int protocol = kProtocolVersion;
  int64_t pid = 0;
  int64_t rank = 0;
  std::string version;  // of the trainer program
};
struct Rendezvous {     // rank 0: the store listens; daemon to trainer: connect to it
  std::string address;  // "host:port"
};
struct Phase {
  std::string phase;  // "prepare" | "train" | "evaluate" | "export"
};
struct Progress {  // rank 0, after every step or at most some times a second in other phases
  std::string phase;
  int64_t step = 0;   // steps whose batch was consumed; in other phases: units done
  int64_t steps = 0;  // of how many
  std::map<std::string, double>
      values;  // names as in worker/trainer/README.md: loss, grad_norm, learning_rate, tokens_total,
               // tokens_per_second, model_flops_total, nonfinite_steps, memory_peak_bytes,
               // seconds_data, seconds_forward, seconds_backward, seconds_allreduce, seconds_optimizer, ...
};
// Every rank, in training: its own part of this step is done, and it waits for the others. When no step is made any
// more, the rank that has come less far than the others is the one that hangs.
struct Reached {
  int64_t step = 0;
};
struct Checkpoint {  // rank 0, only after the manifest is durable
  std::string name;  // "step-00000200.attempt-3"
  int64_t step = 0;
  std::string manifest_sha256;
  int64_t size_bytes = 0;
  double seconds = 0;  // from the copy to the durable manifest
};
struct Evaluation {      // one row of the result table: a perplexity, or with examples > 0 the score of a task
  std::string model;     // "base" | "rescaled" | "extended" | "merged"
  int64_t length = 0;    // tokens
  std::string protocol;  // "windows" | "paper"; of a task its name, "passkey", "longbench/hotpotqa"
  double perplexity = 0;
  double loss = 0;     // nats per token
  int64_t tokens = 0;  // scored
  int64_t step = 0;    // of the extended model
  double score = 0;    // of a task, 0 to 100; perplexity, loss and tokens are 0 then
  int64_t examples = 0;
};
struct Artifact {    // something that was published in the job's folder
  std::string kind;  // "dataset" | "adapter" | "merged" | "run_card"
  std::string path;  // relative to the job's folder, or absolute for the shared dataset
  // Optional: something of it to show to people, as lines; of a dataset of records one rendered example.
  std::string excerpt;
};
struct Expect {        // no step will move for a while, and that is right
  std::string reason;  // "checkpoint", "evaluation", "loading the model"
  double seconds = 0;  // at most this long; the next Progress or Phase ends it
};
struct Warning {
  std::string message;
};
struct Failed {               // last line of a failed trainer
  std::string failure_class;  // "user" | "resource" | "infrastructure" | "internal"
  std::string message;
};
struct Done {
  bool stopped = false;
};  // last line of a good one; stopped: on request, after a checkpoint

using FromTrainer = std::variant<Hello, Rendezvous, Phase, Progress, Reached, Checkpoint, Evaluation, Artifact, Expect,
                                 Warning, Failed, Done>;

// ---- daemon to trainer ----

struct Stop {              // end at the next step border
  bool checkpoint = true;  // save first
  std::string reason;
};
struct CheckpointNow {};
struct Lease {  // exit by yourself when this passes without a newer Lease
  double remaining_seconds = 0;
  // The same as a reading of CLOCK_BOOTTIME, which both sides share, being on one machine: a line that lay unread while
  // its reader was stopped does not become longer. 0: not told.
  double until_boottime_seconds = 0;
};
// What is left of it at this moment; negative when it is over.
double RemainingSeconds(const Lease& lease);
struct CheckpointRecorded {
  std::string name;
};  // the server recorded it: older ones may be deleted

using ToTrainer = std::variant<Rendezvous, Stop, CheckpointNow, Lease, CheckpointRecorded>;

// One line with its '\n'. A text that would make the line too long is cut in its middle, and says so.
std::string Encode(const FromTrainer& line);
std::string Encode(const ToTrainer& line);

// Empty for an unknown type; `*malformed` tells a malformed line from that.
std::optional<FromTrainer> DecodeFromTrainer(std::string_view line, bool* malformed);
std::optional<ToTrainer> DecodeToTrainer(std::string_view line, bool* malformed);

// Cuts a byte stream into lines. A line longer than kLineBytesMax is dropped up to its end and counted.
class LineBuffer {
 public:
  void Append(std::string_view bytes);
  std::optional<std::string> Next();
  int64_t dropped() const { return dropped_; }

 private:
  std::string buffer_;
  size_t begin_ = 0;
  bool dropping_ = false;
  int64_t dropped_ = 0;
};

// Exit codes of the trainer.
enum ExitCode : int {
  kExitDone = 0,
  kExitBadSpec = 2,
  kExitUserData = 10,
  kExitResource = 20,
  kExitInfrastructure = 30,
  kExitStopped = 40,
  kExitInternal = 70,  // a broken invariant of ours
};

}  // namespace longspan::lines
