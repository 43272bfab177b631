// The names of enumeration values in job files, run cards and log lines. Pure, thread-safe.
#pragma once

#include <optional>
#include <string_view>
#include <utility>

#include "proto/jobfile/job_spec.h"

namespace longspan::jobfile {

// Every value of E with its name, in the order in which documentation lists them.
template <class E>
struct EnumNames;

template <>
struct EnumNames<JobKind> {
  static constexpr std::pair<JobKind, std::string_view> kValues[] = {{JobKind::kExtend, "extend"},
                                                                     {JobKind::kEvaluate, "evaluate"}};
};
template <>
struct EnumNames<ModelInit> {
  static constexpr std::pair<ModelInit, std::string_view> kValues[] = {{ModelInit::kWeights, "weights"},
                                                                       {ModelInit::kRandom, "random"}};
};
template <>
struct EnumNames<DataFormat> {
  static constexpr std::pair<DataFormat, std::string_view> kValues[] = {
      {DataFormat::kText, "text"}, {DataFormat::kInstruction, "instruction"}, {DataFormat::kChat, "chat"}};
};
template <>
struct EnumNames<AttentionKind> {
  static constexpr std::pair<AttentionKind, std::string_view> kValues[] = {
      {AttentionKind::kS2, "s2"}, {AttentionKind::kFull, "full"}, {AttentionKind::kShort, "short"}};
};
template <>
struct EnumNames<AttentionEdge> {
  static constexpr std::pair<AttentionEdge, std::string_view> kValues[] = {{AttentionEdge::kSplit, "split"},
                                                                           {AttentionEdge::kWrap, "wrap"}};
};
template <>
struct EnumNames<ChatTemplate> {
  static constexpr std::pair<ChatTemplate, std::string_view> kValues[] = {{ChatTemplate::kLlama2, "llama2"},
                                                                          {ChatTemplate::kAlpaca, "alpaca"},
                                                                          {ChatTemplate::kChatml, "chatml"},
                                                                          {ChatTemplate::kLlama3, "llama3"},
                                                                          {ChatTemplate::kMistral, "mistral"}};
};
template <>
struct EnumNames<PromptTemplate> {
  static constexpr std::pair<PromptTemplate, std::string_view> kValues[] = {
      {PromptTemplate::kNone, "none"},      {PromptTemplate::kModel, "model"},   {PromptTemplate::kLlama2, "llama2"},
      {PromptTemplate::kAlpaca, "alpaca"},  {PromptTemplate::kChatml, "chatml"}, {PromptTemplate::kLlama3, "llama3"},
      {PromptTemplate::kMistral, "mistral"}};
};
template <>
struct EnumNames<MethodKind> {
  static constexpr std::pair<MethodKind, std::string_view> kValues[] = {{MethodKind::kFull, "full"},
                                                                        {MethodKind::kLora, "lora"},
                                                                        {MethodKind::kLongLora, "longlora"},
                                                                        {MethodKind::kQlora, "qlora"},
                                                                        {MethodKind::kQlongLora, "qlonglora"}};
};
template <>
struct EnumNames<RopeKind> {
  static constexpr std::pair<RopeKind, std::string_view> kValues[] = {
      {RopeKind::kLinear, "linear"}, {RopeKind::kNtk, "ntk"},       {RopeKind::kDynamic, "dynamic"},
      {RopeKind::kYarn, "yarn"},     {RopeKind::kLlama3, "llama3"}, {RopeKind::kTheta, "theta"}};
};
template <>
struct EnumNames<Schedule> {
  static constexpr std::pair<Schedule, std::string_view> kValues[] = {
      {Schedule::kConstant, "constant"}, {Schedule::kCosine, "cosine"}, {Schedule::kLinear, "linear"}};
};
template <>
struct EnumNames<TrainingDtype> {
  static constexpr std::pair<TrainingDtype, std::string_view> kValues[] = {{TrainingDtype::kFp32, "fp32"},
                                                                           {TrainingDtype::kBf16, "bf16"}};
};
template <>
struct EnumNames<EvaluationProtocol> {
  static constexpr std::pair<EvaluationProtocol, std::string_view> kValues[] = {
      {EvaluationProtocol::kWindows, "windows"}, {EvaluationProtocol::kPaper, "paper"}};
};
template <>
struct EnumNames<MergedBase> {
  static constexpr std::pair<MergedBase, std::string_view> kValues[] = {{MergedBase::kQuantized, "quantized"},
                                                                        {MergedBase::kOriginal, "original"}};
};
template <>
struct EnumNames<KeepPolicy> {
  static constexpr std::pair<KeepPolicy, std::string_view> kValues[] = {
      {KeepPolicy::kInput, "input"},
      {KeepPolicy::kAttentionOutput, "attention_output"},
      {KeepPolicy::kQueryKeyValue, "query_key_value"},
      {KeepPolicy::kResidual, "residual"},
      {KeepPolicy::kGateUp, "gate_up"}};
};

// "longlora" for MethodKind::kLongLora. Every enumerator has a name.
template <class E>
constexpr std::string_view NameOf(E value) {
  for (const auto& [candidate, name] : EnumNames<E>::kValues) {
    if (candidate == value) return name;
  }
  return "?";
}

// Empty for a text that names no value.
template <class E>
constexpr std::optional<E> ValueOf(std::string_view name) {
  for (const auto& [value, candidate] : EnumNames<E>::kValues) {
    if (candidate == name) return value;
  }
  return std::nullopt;
}

}  // namespace longspan::jobfile
