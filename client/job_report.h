// What came of a job, and why it does not run: texts for people. Pure.
#pragma once

#include <chrono>
#include <ostream>
#include <string>
#include <vector>

#include "client/loss_curve.h"
#include "longspan/v1/job.pb.h"

namespace longspan::client {

// The table of perplexity by length for the base, the rescaled and the extended model; nothing when there is none.
void PrintPerplexity(std::ostream& out, const v1::Job& job);
// The scores of tasks (passkey, LongBench) likewise.
void PrintScores(std::ostream& out, const v1::Job& job);

// Perplexity, paths of adapter and merged model, loss curve: the end of a job that succeeded. Of any other: how it
// ended.
void PrintResult(std::ostream& out, const v1::Job& job, const std::vector<CurvePoint>& losses, const CurveShape& shape);

// One rendered record of the job's instructions or chats, prompt and answer marked; nothing for plain text. Lines are
// folded to `width` columns; 0: they are not.
void PrintExample(std::ostream& out, const v1::Job& job, int width);

// "QUEUED: GANG_DOES_NOT_FIT: needs 4 slots, 3 free; position 2 of all that wait": one sentence about where a job
// stands.
std::string WhereItStands(const v1::Job& job);

// "Merged model" for the artifact kind "merged".
std::string ArtifactName(const std::string& kind);

bool IsTerminal(v1::JobState state);
// Exit code of `--wait`.
int ExitCodeOf(v1::JobState state);

// Ranks of the gang: "4", or "2-4" of an elastic job.
std::string SlotsText(const v1::ResourcesSpec& resources);

// "in 25m", "in 3h05m"; "soon" for what is past.
std::string UntilText(const google::protobuf::Timestamp& time, std::chrono::system_clock::time_point now);
// "3m ago" in whole units.
std::string AgeText(const google::protobuf::Timestamp& since, std::chrono::system_clock::time_point now);

}  // namespace longspan::client
