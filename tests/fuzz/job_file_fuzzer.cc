// A job file in YAML: a spec or mistakes, never both. A spec's canonical document gives the same spec again.
#include <cstdlib>

#include "client/yaml_document.h"
#include "proto/jobfile/job_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longspan;  // NOLINT: a fuzzer is one function
  const std::string text(reinterpret_cast<const char*>(data), size);
  const client::YamlDocument yaml = client::ParseYaml(text);
  jobfile::ParseText(text);
  const jobfile::Parsed parsed = jobfile::ParseDocument(yaml.document, [&yaml](std::string_view path) {
    const auto found = yaml.line_of.find(path);
    return found == yaml.line_of.end() ? 0 : found->second;
  });
  if (parsed.spec.has_value() != parsed.mistakes.empty()) std::abort();
  for (const jobfile::Mistake& mistake : parsed.mistakes) jobfile::ToString(mistake);
  if (!parsed.spec) return 0;
  const nlohmann::json document = jobfile::ToDocument(*parsed.spec);
  const jobfile::Parsed again = jobfile::ParseDocument(document, nullptr);
  if (!again.spec || jobfile::ToDocument(*again.spec) != document) std::abort();
  return 0;
}
