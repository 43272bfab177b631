#include "proto/jobfile/job_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "proto/jobfile/enum_names.h"
#include "proto/jobfile/field_table.h"
#include "proto/jobfile/nearest_key.h"
#include "proto/jobfile/text_lines.h"

namespace longspan::jobfile {
namespace {

using nlohmann::json;

constexpr size_t kTextBytesMax = 1024 * 1024;
constexpr size_t kUnknownKeysMax = 20;  // after so many the file is something else altogether

std::vector<std::string> AllPaths() {
  std::vector<std::string> paths;
  std::set<std::string> sections;
  for (const FieldInfo& field : Fields()) {
    paths.push_back(field.path);
    for (size_t dot = field.path.find('.'); dot != std::string::npos; dot = field.path.find('.', dot + 1)) {
      sections.insert(field.path.substr(0, dot));
    }
  }
  paths.insert(paths.end(), sections.begin(), sections.end());
  return paths;
}

// A path for a message: keys come from the user and may be anything.
std::string ShownPath(const std::string& path) {
  const std::string quoted = Shown(path);
  return quoted.size() == path.size() + 2 ? path : quoted;
}

std::string UnknownKeyMessage(const std::string& path) {
  const std::string nearest = NearestKey(path, AllPaths());
  return nearest.empty() ? "unknown key; deploy/examples/reference.yaml lists all keys"
                         : fmt::format("unknown key; did you mean {}?", nearest);
}

// Walks a document and fills a spec.
class Reader {
 public:
  Reader(const LineOf& line_of, Purpose purpose) : line_of_(line_of), purpose_(purpose) {}

  // Keys and types; false when there are no keys at all.
  bool ReadKeys(const json& document) {
    if (!document.is_object()) {
      Add("", fmt::format("is {}; a job file is a map of keys", Shown(document)));
      return false;
    }
    ReadSection(document, "");
    SortByLine();
    return true;
  }

  Parsed Read(const json& document) {
    if (!ReadKeys(document)) return {std::nullopt, std::move(mistakes_)};
    for (Mistake& mistake : Validate(spec_, purpose_)) {
      // A key that could not be read still has its default, about which nothing is to be said.
      if (!unread_.contains(mistake.path)) Add(mistake.path, mistake.message);
    }
    if (!mistakes_.empty()) return {std::nullopt, std::move(mistakes_)};
    return {std::move(spec_), {}};
  }

  JobSpec&& TakeSpec() { return std::move(spec_); }
  std::vector<Mistake>&& TakeMistakes() { return std::move(mistakes_); }

 private:
  void ReadSection(const json& section, const std::string& prefix) {
    for (const auto& [key, value] : section.items()) {
      const std::string path = prefix + key;
      const bool plain = key.find('.') == std::string::npos;  // "training.steps" as one key is not ours
      if (const Field* field = plain ? FindField(path) : nullptr) {
        ReadField(*field, value);
      } else if (plain && IsSection(path)) {
        ReadSubsection(path, value);
      } else {
        ReadUnknown(path, plain);
      }
    }
  }

  void ReadSubsection(const std::string& path, const json& value) {
    if (value.is_null()) return;  // a section whose keys are all commented out
    if (!value.is_object()) {
      unread_.insert(path);
      MarkSectionUnread(path);
      return Add(path, fmt::format("is {}; must be a map of keys", Shown(value)));
    }
    if (path == "rope" && !spec_.rope) spec_.rope.emplace();
    ReadSection(value, path + ".");
  }

  void MarkSectionUnread(const std::string& section) {
    for (const FieldInfo& field : Fields()) {
      if (field.path.starts_with(section + ".")) unread_.insert(field.path);
    }
  }

  void ReadField(const Field& field, const json& value) {
    if (purpose_ == Purpose::kProbe && field.ignored_by_probe) return;
    if (value.is_null() && field.may_be_null) return;
    std::string wrong = field.read(value, spec_);
    if (wrong.empty()) return;
    unread_.insert(field.info.path);
    Add(field.info.path, std::move(wrong));
  }

  void ReadUnknown(const std::string& path, bool plain) {
    if (++unknown_keys_ == kUnknownKeysMax) Add("", "has more unknown keys than are listed here");
    if (unknown_keys_ >= kUnknownKeysMax) return;
    if (!plain && FindField(path) != nullptr)
      return Add(path, "unknown key; write the part after the dot inside a map");
    Add(path, UnknownKeyMessage(path));
  }

  void Add(const std::string& path, std::string message) {
    mistakes_.push_back({ShownPath(path), line_of_ ? line_of_(path) : 0, std::move(message)});
  }

  void SortByLine() {
    std::stable_sort(mistakes_.begin(), mistakes_.end(),
                     [](const Mistake& a, const Mistake& b) { return a.line < b.line; });
  }

  const LineOf& line_of_;
  Purpose purpose_;
  JobSpec spec_;
  std::vector<Mistake> mistakes_;
  std::set<std::string> unread_;
  size_t unknown_keys_ = 0;
};

// Line of a byte of the text.
int LineAt(std::string_view text, size_t byte) {
  return 1 + static_cast<int>(std::count(text.begin(), text.begin() + std::min(byte, text.size()), '\n'));
}

// nlohmann's message without its own prefix and position.
std::string Cause(const json::parse_error& error) {
  const std::string text = error.what();
  const size_t colon = text.rfind(": ", text.find(';'));
  return colon == std::string::npos ? text : text.substr(colon + 2);
}

void CheckFields(const JobSpec& spec, Purpose purpose, std::vector<Mistake>& mistakes) {
  for (const Field& field : FieldTable()) {
    const bool probe = purpose == Purpose::kProbe;
    if (probe && field.ignored_by_probe) continue;
    if (field.required && field.missing(spec)) {
      const bool evaluation = !probe && spec.kind == JobKind::kEvaluate;
      if ((!probe || field.needed_by_probe) && (!evaluation || field.needed_by_evaluation)) {
        mistakes.push_back({field.info.path, 0, fmt::format("is required: {}", field.info.summary)});
      }
      continue;
    }
    if (std::string wrong = field.check(spec); !wrong.empty())
      mistakes.push_back({field.info.path, 0, std::move(wrong)});
  }
}

// Keys of one kind of scaling beside another kind would say nothing.
void CheckRope(const JobSpec& spec, std::vector<Mistake>& mistakes) {
  if (!spec.rope) return;
  const RopeSection& rope = *spec.rope;
  const auto only_for = [&](const char* path, bool given, RopeKind kind) {
    if (given && rope.kind != kind) {
      mistakes.push_back({path, 0, fmt::format("belongs to kind {}; kind is {}", NameOf(kind), NameOf(rope.kind))});
    }
  };
  only_for("rope.theta", rope.theta.has_value(), RopeKind::kTheta);
  only_for("rope.beta_fast", rope.beta_fast.has_value(), RopeKind::kYarn);
  only_for("rope.beta_slow", rope.beta_slow.has_value(), RopeKind::kYarn);
  only_for("rope.attention_factor", rope.attention_factor.has_value(), RopeKind::kYarn);
  only_for("rope.low_freq_factor", rope.low_freq_factor.has_value(), RopeKind::kLlama3);
  only_for("rope.high_freq_factor", rope.high_freq_factor.has_value(), RopeKind::kLlama3);
  if (rope.kind == RopeKind::kTheta && !rope.theta) mistakes.push_back({"rope.theta", 0, "is required by kind theta"});
  if (rope.kind == RopeKind::kTheta && rope.factor) {
    mistakes.push_back({"rope.factor", 0, "does not go with kind theta, whose theta says it all"});
  }
  if (rope.kind == RopeKind::kTheta && rope.original_length) {
    mistakes.push_back({"rope.original_length", 0, "does not go with kind theta, which needs no length"});
  }
  if (rope.beta_fast.value_or(32) <= rope.beta_slow.value_or(1)) {
    mistakes.push_back({"rope.beta_fast", 0, "must be above beta_slow"});
  }
  if (rope.high_freq_factor.value_or(4) <= rope.low_freq_factor.value_or(1)) {
    mistakes.push_back({"rope.high_freq_factor", 0, "must be above low_freq_factor"});
  }
}

// A limit below a window would leave nothing to measure at that length.
void CheckMaxTokens(const JobSpec& spec, std::vector<Mistake>& mistakes) {
  const std::vector<int64_t>& lengths = spec.evaluation.lengths;
  const int64_t longest = lengths.empty() ? spec.context_length : *std::max_element(lengths.begin(), lengths.end());
  if (spec.evaluation.max_tokens <= 0 || spec.evaluation.max_tokens >= longest) return;
  mistakes.push_back({"evaluation.max_tokens", 0,
                      fmt::format("is {}; must be 0 or at least {}, the longest text to measure",
                                  spec.evaluation.max_tokens, longest)});
}

void CheckGlobalBatch(const JobSpec& spec, std::vector<Mistake>& mistakes) {
  if (spec.resources.slots <= 0 || spec.training.global_batch <= 0) return;
  const bool shared = RanksPerSequence(spec) > 1;
  const int64_t least = shared ? DataGroups(spec) : spec.resources.slots;
  if (spec.training.global_batch >= least) return;
  mistakes.push_back({"training.global_batch", 0,
                      shared ? fmt::format("is {}; must be at least resources.slots / resources.sequence_parallel, {}, "
                                           "so that every rank has a part of a sequence",
                                           spec.training.global_batch, least)
                             : fmt::format("is {}; must be at least resources.slots, {}, so that every rank has a "
                                           "sequence",
                                           spec.training.global_batch, least)});
}

// What ranks that share a sequence can do, said where a job asks for more.
void CheckSequenceParallel(const JobSpec& spec, std::vector<Mistake>& mistakes) {
  const int64_t ranks = RanksPerSequence(spec);
  const auto add = [&](const char* path, std::string text) { mistakes.push_back({path, 0, std::move(text)}); };
  if (ranks <= 1) return;
  if (spec.resources.slots > 0 && spec.resources.slots % ranks != 0) {
    add("resources.sequence_parallel",
        fmt::format("is {}; must divide resources.slots, {}", ranks, spec.resources.slots));
  }
  if (spec.data.packing) {
    add("data.packing", "does not go with resources.sequence_parallel: ranks share whole contexts; set it to false");
  }
  if (spec.data.format && *spec.data.format != DataFormat::kText) {
    add("data.format", fmt::format("is {}, whose rows differ in length; resources.sequence_parallel goes with text",
                                   NameOf(*spec.data.format)));
  }
  if (spec.kind != JobKind::kExtend) return;
  if (spec.attention.edge == AttentionEdge::kWrap) {
    add("attention.edge",
        "is wrap, which joins the first rank to the last; with resources.sequence_parallel use split");
  }
  if (spec.memory.tile_heads.value_or(0) > 0) {
    add("memory.tile_heads", fmt::format("is {}; with resources.sequence_parallel gradients travel for all heads at "
                                         "once: set it to 0 or leave it out",
                                         *spec.memory.tile_heads));
  }
  if (spec.context_length <= 0 || ContextDivides(spec)) return;
  if (spec.context_length % ranks != 0) {
    add("context_length",
        fmt::format("is {}; must be a multiple of resources.sequence_parallel, {}", spec.context_length, ranks));
    return;
  }
  add(spec.attention.group_size ? "attention.group_size" : "attention.group_ratio",
      fmt::format("makes groups of {} tokens; they must divide the {} that each of {} ranks has of a sequence",
                  ResolvedGroupSize(spec), spec.context_length / ranks, ranks));
}

// Fewer ranks than `slots` keep every other rule: more sequences for each, and the same parts of a sequence.
void CheckElastic(const JobSpec& spec, std::vector<Mistake>& mistakes) {
  if (!spec.resources.slots_min) return;
  const int64_t least = *spec.resources.slots_min, slots = spec.resources.slots, ranks = RanksPerSequence(spec);
  const auto add = [&](std::string text) { mistakes.push_back({"resources.slots_min", 0, std::move(text)}); };
  if (spec.kind != JobKind::kExtend) {
    add("does not go with kind evaluate, which has no checkpoint to go on from with other ranks; leave it out");
  } else if (least < 1 || slots < 1) {
    return;  // out of its range, which is said already
  } else if (least > slots) {
    add(fmt::format("is {}; must be at most resources.slots, {}", least, slots));
  } else if (least % ranks != 0) {
    add(fmt::format("is {}; must be a multiple of resources.sequence_parallel, {}", least, ranks));
  } else if ((slots - least) / ranks >= kGangSizesMax) {
    add(fmt::format("is {}, which leaves {} sizes of the gang; at most {} are allowed: give at least {}", least,
                    (slots - least) / ranks + 1, kGangSizesMax, slots - (kGangSizesMax - 1) * ranks));
  }
}

void CheckPromptTemplate(const EvaluationSection& evaluation, std::vector<Mistake>& mistakes) {
  const bool has_prompts = !evaluation.longbench.path.empty() || !evaluation.conversations.path.empty();
  if (evaluation.prompt_template == PromptTemplate::kNone || has_prompts) return;
  mistakes.push_back({"evaluation.template", 0,
                      fmt::format("is {}, but there are no prompts to write so; give longbench.path or "
                                  "conversations.path too",
                                  NameOf(evaluation.prompt_template))});
}

bool WritesTexts(const EvaluationSection& evaluation) {
  return !evaluation.passkey.lengths.empty() || !evaluation.topics.lengths.empty() ||
         !evaluation.longbench.path.empty() || !evaluation.conversations.path.empty();
}

void CheckEvaluation(const JobSpec& spec, std::vector<Mistake>& mistakes) {
  if (spec.data.sources.empty() && !WritesTexts(spec.evaluation)) {
    mistakes.push_back({"evaluation", 0,
                        "has nothing to measure; give data.sources for perplexity, or passkey.lengths, topics.lengths, "
                        "longbench.path or conversations.path"});
  }
  if (spec.model.init == ModelInit::kRandom) {
    mistakes.push_back({"model.init", 0, "is random, which is nothing to measure; leave it out"});
  }
}

// What trains, and what each rank does by itself, needs weights that are whole.
void CheckShardedWeights(const JobSpec& spec, std::vector<Mistake>& mistakes) {
  if (!spec.resources.shard_weights) return;
  const auto refuse = [&mistakes](const std::string& why) { mistakes.push_back({"resources.shard_weights", 0, why}); };
  switch (spec.method.kind) {
    case MethodKind::kFull:
      refuse("does not go with method full, which trains what the ranks would share; choose longlora or lora");
      break;
    case MethodKind::kQlora:
    case MethodKind::kQlongLora:
      refuse(
          fmt::format("does not go with method {}, whose 4-bit weights are whole on every rank; choose {}, or leave "
                      "it out",
                      NameOf(spec.method.kind), spec.method.kind == MethodKind::kQlora ? "lora" : "longlora"));
      break;
    case MethodKind::kLora:
    case MethodKind::kLongLora:
      break;
  }
  if (WritesTexts(spec.evaluation)) {
    refuse(
        "does not go with evaluation.passkey, topics, longbench or conversations, whose texts each rank writes by "
        "itself; measure them in a job of kind evaluate that does without it");
  }
}

// Products in 8 bits are with weights that are frozen, whole and not in 4 bits already, and give bf16.
void CheckFp8(const JobSpec& spec, std::vector<Mistake>& mistakes) {
  if (!spec.training.fp8) return;
  const auto refuse = [&mistakes](const std::string& why) { mistakes.push_back({"training.fp8", 0, why}); };
  switch (spec.method.kind) {
    case MethodKind::kFull:
      refuse("does not go with method full, which trains the weights; choose longlora or lora");
      break;
    case MethodKind::kQlora:
    case MethodKind::kQlongLora:
      refuse(fmt::format("does not go with method {}, whose weights are in 4 bits; choose {}, or leave it out",
                         NameOf(spec.method.kind), spec.method.kind == MethodKind::kQlora ? "lora" : "longlora"));
      break;
    case MethodKind::kLora:
    case MethodKind::kLongLora:
      break;
  }
  if (spec.training.dtype == TrainingDtype::kFp32) {
    refuse("does not go with training.dtype fp32: what such products give is bf16; leave dtype out");
  }
  if (spec.resources.shard_weights) {
    refuse("does not go with resources.shard_weights, whose weights travel between the ranks in bf16; leave one out");
  }
}

}  // namespace

std::string ToString(const Mistake& mistake) {
  std::string text = mistake.line > 0 ? fmt::format("line {}: ", mistake.line) : "";
  return text + (mistake.path.empty() ? "the job file" : mistake.path) + (mistake.path.empty() ? " " : ": ") +
         mistake.message;
}

Parsed ParseText(std::string_view json_text, Purpose purpose) {
  if (json_text.size() > kTextBytesMax) {
    return {std::nullopt,
            {{"", 0, fmt::format("has {} bytes; at most {} are allowed", json_text.size(), kTextBytesMax)}}};
  }
  json document;
  try {
    document = json::parse(json_text);
  } catch (const json::parse_error& error) {
    return {std::nullopt, {{"", LineAt(json_text, error.byte), fmt::format("is not JSON: {}", Cause(error))}}};
  } catch (const json::exception& error) {  // a number beyond what a double holds
    return {std::nullopt, {{"", 0, fmt::format("is not JSON: {}", error.what())}}};
  }
  const TextLines lines = ScanLines(json_text);
  const LineOf line_of = [&lines](std::string_view path) {
    const auto found = lines.line_of.find(path);
    return found == lines.line_of.end() ? 0 : found->second;
  };
  Parsed parsed = Reader(line_of, purpose).Read(document);
  for (const auto& [path, line] : lines.repeated_keys) {
    parsed.mistakes.push_back(
        {ShownPath(path), line, fmt::format("is written twice, first in line {}", line_of(path))});
    parsed.spec.reset();
  }
  return parsed;
}

Parsed ParseDocument(const json& document, const LineOf& line_of, Purpose purpose) {
  return Reader(line_of, purpose).Read(document);
}

std::vector<Mistake> ReadDocument(const json& document, const LineOf& line_of, JobSpec* spec, Purpose purpose) {
  Reader reader(line_of, purpose);
  reader.ReadKeys(document);
  *spec = reader.TakeSpec();
  return reader.TakeMistakes();
}

std::vector<Mistake> Validate(const JobSpec& spec, Purpose purpose) {
  std::vector<Mistake> mistakes;
  CheckFields(spec, purpose, mistakes);
  if (spec.attention.group_size && spec.attention.group_ratio) {
    mistakes.push_back({"attention.group_ratio", 0, "excludes attention.group_size; keep one of the two"});
  }
  if (spec.data.bucketing && !spec.data.packing && spec.data.format == DataFormat::kText) {
    mistakes.push_back(
        {"data.bucketing", 0, "does not go with joined documents, all equally long; set data.packing: true"});
  }
  if (spec.attention.edge == AttentionEdge::kWrap && spec.attention.kind != AttentionKind::kS2) {
    mistakes.push_back({"attention.edge", 0,
                        fmt::format("is wrap, which belongs to kind s2; kind is {}", NameOf(spec.attention.kind))});
  }
  if (spec.method.kind == MethodKind::kFull && !spec.method.adapter.empty()) {
    mistakes.push_back(
        {"method.adapter", 0, "cannot start method full, which has no adapter; choose longlora or lora"});
  }
  if (purpose == Purpose::kTrain && spec.kind == JobKind::kExtend) CheckGlobalBatch(spec, mistakes);
  if (purpose == Purpose::kTrain) CheckSequenceParallel(spec, mistakes);
  if (purpose == Purpose::kTrain) CheckElastic(spec, mistakes);
  if (purpose == Purpose::kTrain) CheckShardedWeights(spec, mistakes);
  CheckFp8(spec, mistakes);
  CheckRope(spec, mistakes);
  if (purpose == Purpose::kTrain) CheckMaxTokens(spec, mistakes);
  if (purpose == Purpose::kTrain) CheckPromptTemplate(spec.evaluation, mistakes);
  if (purpose == Purpose::kTrain && spec.kind == JobKind::kEvaluate) CheckEvaluation(spec, mistakes);
  return mistakes;
}

std::string CheckKey(std::string_view path, const JobSpec& spec) {
  const Field* field = FindField(path);
  return field == nullptr ? fmt::format("{} is no key", path) : field->check(spec);
}

json ToDocument(const JobSpec& spec) {
  json document = json::object();
  for (const Field& field : FieldTable()) {
    const std::string& path = field.info.path;
    if (!spec.rope && path.starts_with("rope.")) continue;
    json value = field.write(spec);
    // An empty text or list says the same as no key, and not every key may be written empty.
    if (value.is_null() || value == "" || ((value.is_array() || value.is_object()) && value.empty())) continue;
    std::string pointer = "/" + path;
    std::replace(pointer.begin(), pointer.end(), '.', '/');
    document[json::json_pointer(pointer)] = std::move(value);
  }
  return document;
}

int64_t ResolvedGroupSize(const JobSpec& spec) {
  if (spec.attention.group_size) return *spec.attention.group_size;
  const double ratio = spec.attention.group_ratio.value_or(0.25);
  return std::max<int64_t>(1, static_cast<int64_t>(std::floor(static_cast<double>(spec.context_length) * ratio)));
}

std::vector<int64_t> GangSizes(const JobSpec& spec) {
  std::vector<int64_t> sizes;
  const int64_t least = spec.resources.slots_min.value_or(spec.resources.slots);
  for (int64_t size = least; size <= spec.resources.slots; size += RanksPerSequence(spec)) sizes.push_back(size);
  return sizes;
}

int64_t RanksPerSequence(const JobSpec& spec) {
  return std::max<int64_t>(1, spec.resources.sequence_parallel.value_or(1));
}

int64_t DataGroups(const JobSpec& spec) { return std::max<int64_t>(1, spec.resources.slots / RanksPerSequence(spec)); }

int64_t TokensPerRank(const JobSpec& spec) {
  const int64_t ranks = RanksPerSequence(spec);
  return spec.context_length / ranks + (spec.context_length % ranks != 0 ? 1 : 0);
}

bool ContextDivides(const JobSpec& spec) {
  const int64_t ranks = RanksPerSequence(spec);
  if (ranks == 1) return true;
  if (spec.context_length % ranks != 0) return false;
  return spec.attention.kind == AttentionKind::kFull ||
         spec.context_length / ranks % std::max<int64_t>(1, ResolvedGroupSize(spec)) == 0;
}

}  // namespace longspan::jobfile
