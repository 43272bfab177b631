// longspan-rope-tables REQUESTS.json OUT.safetensors: the angles that the trainer would use, for comparison with
// transformers (tests/parity/test_rope.py).
//
// REQUESTS.json is a list of {"config": config.json, "job": a job file or null, "lengths": [tokens, ...], "positions":
// [...]}. For the i-th length of request r OUT gets "r.i.cosine" and "r.i.sine": the rows of those positions that are
// below it, from one RotaryPositions that is asked for all the lengths in their order; and "r.inverse", the frequencies
// at the first length. Prints a list with one entry for each request: the config that would be exported, or {"error":
// ...}.
#include <fmt/format.h>

#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "proto/jobfile/job_file.h"
#include "worker/model_config/model_config.h"
#include "worker/trainer/model/rotary_positions.h"
#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {
namespace {

ModelConfig ConfigOf(const nlohmann::json& request) {
  const ModelConfig config = ParseModelConfig(request.at("config"), "config.json");
  if (request.at("job").is_null()) return config;
  const jobfile::Parsed job = jobfile::ParseDocument(request.at("job"), nullptr, jobfile::Purpose::kProbe);
  if (!job.spec) throw SpecError(jobfile::ToString(job.mistakes.front()));
  return WithJobRope(config, *job.spec);
}

void AddTables(const nlohmann::json& request, const ModelConfig& config, const std::string& name,
               std::vector<NamedTensor>* out) {
  RotaryPositions positions(config.rope, config.head_dim);
  const auto lengths = request.at("lengths").get<std::vector<int64_t>>();
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int64_t tokens = lengths[i];
    std::vector<int64_t> rows;
    for (const auto& position : request.at("positions")) {
      if (position.get<int64_t>() < tokens) rows.push_back(position.get<int64_t>());
    }
    const Rotation rotation = positions.For(tokens);
    const at::Tensor index = at::tensor(rows, at::kLong);
    const std::string prefix = fmt::format("{}.{}.", name, i);
    out->emplace_back(prefix + "cosine", rotation.cosine.index_select(0, index));
    out->emplace_back(prefix + "sine", rotation.sine.index_select(0, index));
  }
  out->emplace_back(
      name + ".inverse",
      ComputeRotaryFrequencies(config.rope, RotaryDims(config.rope, config.head_dim), lengths.at(0)).inverse);
}

int Run(const char* requests_path, const char* out_path) {
  std::ifstream file(requests_path);
  const nlohmann::json requests = nlohmann::json::parse(file);
  std::vector<NamedTensor> out;
  nlohmann::json answers = nlohmann::json::array();
  for (size_t index = 0; index < requests.size(); ++index) {
    try {
      const ModelConfig config = ConfigOf(requests[index]);
      AddTables(requests[index], config, std::to_string(index), &out);
      answers.push_back(ExportedConfigDocument(config));
    } catch (const std::exception& error) {
      answers.push_back({{"error", error.what()}});
    }
  }
  WriteSafetensors(out_path, out);
  std::cout << answers.dump() << '\n';
  return 0;
}

}  // namespace
}  // namespace longspan::trainer

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: longspan-rope-tables REQUESTS.json OUT.safetensors\n";
    return 2;
  }
  try {
    return longspan::trainer::Run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 10;
  }
}
