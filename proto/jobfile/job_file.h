// Reads, checks and writes job files. Strict: an unknown key, a wrong type or a value out of range is a mistake with
// its path, its line where the text has lines, and what would be right; all mistakes come back in one answer.
//
// Pure and thread-safe. YAML is turned into JSON by the client (yaml-cpp), which passes the lines it saw as LineOf.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "proto/jobfile/job_spec.h"

namespace longspan::jobfile {

struct Mistake {
  std::string path;     // "training.learning_rate"; empty for the file as a whole
  int line = 0;         // 1-based; 0 when unknown
  std::string message;  // what is wrong and what would be right
};

// "line 12: training.learning_rate: ..." — one line of text, for terminals and logs.
std::string ToString(const Mistake& mistake);

// Line of a key path in the text the user wrote; 0 when unknown.
using LineOf = std::function<int(std::string_view path)>;

struct Parsed {
  std::optional<JobSpec> spec;    // set when there is no mistake
  std::vector<Mistake> mistakes;  // in the order of the file, then of the checks
};

// Who reads the file: the probe needs no data and ignores batch keys, everyone else needs all of it.
enum class Purpose { kTrain, kProbe };

// Text of a JSON job file. Never throws.
Parsed ParseText(std::string_view json_text, Purpose purpose = Purpose::kTrain);

// An already parsed document, with the lines of its keys.
Parsed ParseDocument(const nlohmann::json& document, const LineOf& line_of, Purpose purpose = Purpose::kTrain);

// Keys and types only: fills `spec` and returns what could not be read. For documents whose rules are checked apart.
std::vector<Mistake> ReadDocument(const nlohmann::json& document, const LineOf& line_of, JobSpec* spec,
                                  Purpose purpose = Purpose::kTrain);

// Every rule that needs more than one field or a range; ParseText and ParseDocument have applied it already.
std::vector<Mistake> Validate(const JobSpec& spec, Purpose purpose = Purpose::kTrain);

// What is wrong with the value of one key by itself, such as "queue"; empty when nothing. For a change of a job or
// queue that is there.
std::string CheckKey(std::string_view path, const JobSpec& spec);

// The canonical document: every key whose value is known, defaults written out, absent optionals left out. Parsing it
// gives an equal spec. Equal specs give equal text through dump().
nlohmann::json ToDocument(const JobSpec& spec);

// One key of the job file, for documentation, for `unknown key` suggestions and for the test against reference.yaml and
// JobSpec.
struct FieldInfo {
  std::string path;  // "training.steps"
  std::string type;  // "integer", "number", "string", "boolean", "list of strings", "list of integers", "map",
                     // "map of integers", "map of numbers", "duration", or the values of an enumeration: "s2 | full"
  std::string unit;  // "tokens", "sequences", ""; what the number counts
  std::string default_value;  // as text in a job file; "required" or "absent: ..." where there is none
  std::string range;          // "0 to 100"; empty when every value of the type is right
  std::string summary;        // one sentence
};
const std::vector<FieldInfo>& Fields();

// deploy/examples/reference.yaml: every key with its type, unit, range, default and meaning; itself a valid job file
// that says what a file with only the required keys says.
std::string ReferenceYaml();

// "90s", "45m", "2h30m", "1d": a positive whole number per unit, units d h m s in falling order. Empty on a syntax
// error.
std::optional<int64_t> ParseDurationSeconds(std::string_view text);
std::string FormatDurationSeconds(int64_t seconds);

// "12GiB", "1536MiB", "4096B": a whole number and a unit of B KiB MiB GiB TiB. Empty on a syntax error or above 2^63.
std::optional<int64_t> ParseBytes(std::string_view text);

}  // namespace longspan::jobfile
