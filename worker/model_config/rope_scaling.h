// How a model's rotary positions are scaled: as config.json says it, and as we write it there.
//
// Values; pure functions, thread-safe. The meaning of every kind and key is transformers 5's (modeling_rope_utils), and
// the angles are computed in rotary_positions.h. What a job changes stands in rope_extension.h.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace longspan::trainer {

enum class RopeScalingKind { kDefault, kLinear, kDynamic, kYarn, kLlama3 };

// "yarn": as config.json calls it.
std::string_view NameOf(RopeScalingKind kind);

struct RopeParameters {
  RopeScalingKind kind = RopeScalingKind::kDefault;
  double theta = 10000;
  double factor = 1;  // of every kind but the default
  // Tokens the model was trained for before this scaling. dynamic, yarn and llama3 compute with it and always have it;
  // linear: 0 when nobody said.
  int64_t original_length = 0;
  // yarn
  double beta_fast = 32, beta_slow = 1;
  std::optional<double> attention_factor;        // absent: from the factor, or from both of these
  std::optional<double> mscale, mscale_all_dim;  // without effect alone
  bool truncate = true;                          // the ramp begins and ends at whole dimensions
  // llama3
  double low_freq_factor = 1, high_freq_factor = 4;
  double partial_rotary_factor = 1;  // share of a head that turns at all
};

// The same angles at every position and length.
bool SamePositions(const RopeParameters& a, const RopeParameters& b);

// Dimensions of a head that turn.
int64_t RotaryDims(const RopeParameters& rope, int64_t head_dim);

// What a family calls its keys, and what it takes for granted.
struct RopeKeys {
  const char* theta = "rope_theta";
  const char* partial_rotary_factor = "partial_rotary_factor";
  double theta_default = 10000;
  double partial_rotary_factor_default = 1;
};

// From rope_parameters (transformers 5), or rope_scaling and rope_theta (before), with `type` or `rope_type`; the older
// section counts where both are there. `document` is a whole config.json, `where` its path. UserError names file and
// key: a kind that is not known (longrope, ...), positions that differ by layer, a value that makes no sense.
RopeParameters ReadRopeParameters(const nlohmann::json& document, const std::string& where,
                                  int64_t max_position_embeddings, int64_t head_dim, const RopeKeys& keys = {});

// How long a text these positions are made for. dynamic and yarn count from the original length, which is what their
// configs have as max_position_embeddings.
int64_t ReachOf(const RopeParameters& rope, int64_t max_position_embeddings);

// Puts the positions into a config.json in the form that every transformers 4.4x and 5 reads as the same angles (yarn
// and llama3 exist from 4.43 on):
//
//   rope_theta beside a legacy rope_scaling, no rope_parameters
//   linear, dynamic   exactly {type, factor}: up to 4.42 a third key is an error
//   dynamic, yarn     max_position_embeddings stays at the original length. It is where dynamic starts to scale, and
//                     where yarn's ramp is taken from up to 4.49; from 4.50 to 4.56 yarn with a key
//                     original_max_position_embeddings takes max_position_embeddings over that key for its factor,
//                     whatever `factor` says. So yarn goes without the key
//   linear            original_max_position_embeddings beside the section, where it is known: transformers does not
//   look
//                     at it, we read it back
void WriteRopeParameters(const RopeParameters& rope, int64_t max_position_embeddings, nlohmann::json* document,
                         const RopeKeys& keys = {});

// For the run card: the kind and what it computes with.
nlohmann::json RopeDocument(const RopeParameters& rope);

}  // namespace longspan::trainer
