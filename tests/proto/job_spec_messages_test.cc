// The JobSpec message and the job file have the same keys, types and values, and nothing is lost between the two.
#include "proto/support/job_spec_messages.h"

#include <gmock/gmock.h>
#include <google/protobuf/duration.pb.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>

#include "proto/support/enum_words.h"

namespace longspan::jobfile {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::string TypeOf(const FieldDescriptor& field) {
  if (field.is_map()) {
    const std::string values = TypeOf(*field.message_type()->map_value());
    return values == "string" ? "map" : "map of " + values + "s";
  }
  const std::string list = field.is_repeated() ? "list of " : "";
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return list.empty() ? "string" : "list of strings";
    case FieldDescriptor::CPPTYPE_INT64:
      return list.empty() ? "integer" : "list of integers";
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "number";
    case FieldDescriptor::CPPTYPE_BOOL:
      return "boolean";
    case FieldDescriptor::CPPTYPE_ENUM: {
      std::string values;
      for (int i = 1; i < field.enum_type()->value_count(); ++i) {
        values += (i > 1 ? " | " : "") + LowerCaseWord(*field.enum_type()->value(i));
      }
      return values;
    }
    default:
      return "duration";
  }
}

// Path and type of every leaf of the message.
void Collect(const Descriptor& message, const std::string& prefix, std::map<std::string, std::string>* fields) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    const bool is_section = field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !field.is_map() &&
                            field.message_type() != google::protobuf::Duration::descriptor();
    if (is_section) {
      Collect(*field.message_type(), prefix + field.name() + ".", fields);
    } else {
      (*fields)[prefix + field.name()] = TypeOf(field);
    }
  }
}

TEST(JobSpecMessages, MessageAndJobFileHaveTheSameKeysAndTypes) {
  std::map<std::string, std::string> in_message, in_job_file;
  Collect(*v1::JobSpec::descriptor(), "", &in_message);
  for (const FieldInfo& field : Fields()) in_job_file[field.path] = field.type;
  EXPECT_EQ(in_message, in_job_file);
}

constexpr char kEverything[] =
    R"({"kind": "evaluate", "name": "a", "queue": "q", "priority": 7, "labels": {"k": "v"}, "model": {"path": "/m", "init": "weights"},
  "data": {"sources": ["/d", "/e"], "format": "text", "text_field": "body", "holdout_fraction": 0.1, "packing": true,
    "bucketing": true, "template": "chatml"},
  "context_length": 1024, "attention": {"kind": "s2", "group_size": 100, "edge": "wrap"},
  "method": {"kind": "qlonglora", "rank": 4, "alpha": 8.5, "dropout": 0.1, "targets": ["q_proj"], "adapter": "/a",
    "rslora": true, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.self_attn.q_proj": 1.5}, "train_norms": false,
    "train_embeddings": true, "train_head": false},
  "rope": {"kind": "llama3", "factor": 4.0, "original_length": 256, "low_freq_factor": 2.0, "high_freq_factor": 3.0},
  "training": {"steps": 5, "global_batch": 8, "micro_batch": 2, "learning_rate": 1e-4, "schedule": "cosine", "warmup_steps": 0, "beta1": 0.5,
    "beta2": 0.6, "epsilon": 1e-6, "weight_decay": 0.1, "clip_norm": 0.0, "seed": 9, "dtype": "bf16", "fp8": false},
  "memory": {"keep": "query_key_value", "checkpoint_every": 2, "host_layers": 3, "tile_tokens": 256, "loss_tile_tokens": 128, "tile_heads": 2,
    "device_bytes": 85899345920, "host_bytes": 0},
  "evaluation": {"every_steps": 2, "lengths": [256, 512], "protocol": "paper", "max_tokens": 4096, "template": "chatml",
    "passkey": {"lengths": [64], "depths": 3, "trials": 2},
    "topics": {"lengths": [65], "topics": 4, "trials": 5}, "longbench": {"path": "/l", "tasks": ["qasper"], "examples": 6},
    "conversations": {"path": "/c", "max_new_tokens": 7}, "generation": {"batch": 8, "temperature": 0.5, "top_p": 0.9}},
  "checkpoint": {"every_steps": 0, "keep_last": 3, "keep_every": 10}, "resources": {"slots": 2, "threads_per_slot": 3, "sequence_parallel": 1, "shard_weights": false},
  "output": {"adapter": false, "merged": false, "merged_base": "original"}, "limits": {"max_attempts": 2, "max_run_time": "2h30m"}})";

TEST(JobSpecMessages, EveryKeySurvivesTheWayThereAndBack) {
  const Parsed parsed = ParseText(kEverything);
  ASSERT_TRUE(parsed.spec) << ToString(parsed.mistakes.front());
  v1::JobSpec sent;
  ASSERT_TRUE(sent.ParseFromString(ToMessage(*parsed.spec).SerializeAsString()));
  EXPECT_EQ(sent.limits().max_run_time().seconds(), 9000);
  EXPECT_EQ(sent.method().kind(), v1::MethodSpec::KIND_QLONGLORA);
  EXPECT_TRUE(sent.training().has_clip_norm());
  const Converted converted = FromMessage(sent);
  EXPECT_THAT(converted.mistakes, IsEmpty());
  EXPECT_EQ(ToDocument(converted.spec).dump(), ToDocument(*parsed.spec).dump());
  EXPECT_EQ(nlohmann::json::parse(kEverything), ToDocument(converted.spec)) << "every key is in the list above";
}

TEST(JobSpecMessages, AbsenceStaysAbsence) {
  v1::JobSpec message;
  message.set_name("a");
  const JobSpec spec = FromMessage(message).spec;
  EXPECT_FALSE(spec.rope);
  EXPECT_FALSE(spec.method.rank);
  EXPECT_EQ(spec.training.steps, 1000);
  message.mutable_rope();
  EXPECT_TRUE(FromMessage(message).spec.rope);
  EXPECT_FALSE(ToMessage(spec).has_rope());
}

TEST(JobSpecMessages, ValuesThatNoJobFileHoldsAreMistakes) {
  v1::JobSpec message;
  message.mutable_method()->set_kind(static_cast<v1::MethodSpec::Kind>(77));
  message.mutable_training()->set_learning_rate(std::numeric_limits<double>::quiet_NaN());
  message.mutable_limits()->mutable_max_run_time()->set_nanos(500'000'000);
  message.mutable_data()->set_format(v1::DataSpec::FORMAT_UNSPECIFIED);
  std::vector<std::string> texts;
  for (const Mistake& mistake : FromMessage(message).mistakes) texts.push_back(ToString(mistake));
  EXPECT_THAT(
      texts,
      ElementsAre("limits.max_run_time: is \"0.500000s\"; must be a duration such as \"90s\", \"45m\" or \"2h30m\"",
                  "method.kind: is 77; must be one of full | lora | longlora | qlora | qlonglora",
                  "training.learning_rate: is null; must be a finite number"));
}

}  // namespace
}  // namespace longspan::jobfile
