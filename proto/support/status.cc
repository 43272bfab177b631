#include "proto/support/status.h"

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace longspan {
namespace {

constexpr char kUrlPrefix[] = "type.googleapis.com/";

template <class Detail>
std::string UrlOf() {
  return kUrlPrefix + Detail::descriptor()->full_name();
}

template <class Detail>
void SetDetail(const Detail& detail, absl::Status* status) {
  status->SetPayload(UrlOf<Detail>(), absl::Cord(detail.SerializeAsString()));
}

template <class Detail>
bool GetDetail(const absl::Status& status, Detail* detail) {
  const auto payload = status.GetPayload(UrlOf<Detail>());
  return payload.has_value() && detail->ParseFromString(std::string(*payload));
}

}  // namespace

absl::Status ToAbslStatus(const grpc::Status& status) {
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status rich;
  if (!status.ok() && rich.ParseFromString(status.error_details())) {
    for (const auto& detail : rich.details()) result.SetPayload(detail.type_url(), absl::Cord(detail.value()));
  }
  return result;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::Status rich;
  rich.set_code(static_cast<int>(status.code()));
  rich.set_message(std::string(status.message()));
  status.ForEachPayload([&rich](absl::string_view url, const absl::Cord& value) {
    auto* detail = rich.add_details();
    detail->set_type_url(std::string(url));
    detail->set_value(std::string(value));
  });
  return {static_cast<grpc::StatusCode>(status.code()), rich.message(),
          rich.details_size() > 0 ? rich.SerializeAsString() : ""};
}

absl::Status WithDetails(absl::Status status, const StatusDetails& details) {
  if (!details.reason.empty()) {
    google::rpc::ErrorInfo info;
    info.set_reason(details.reason);
    info.set_domain("longspan");
    for (const auto& [key, value] : details.metadata) (*info.mutable_metadata())[key] = value;
    SetDetail(info, &status);
  }
  if (!details.violations.empty()) {
    google::rpc::BadRequest bad_request;
    for (const FieldViolation& violation : details.violations) {
      auto* added = bad_request.add_field_violations();
      added->set_field(violation.field);
      added->set_description(violation.description);
    }
    SetDetail(bad_request, &status);
  }
  return status;
}

StatusDetails DetailsOf(const absl::Status& status) {
  StatusDetails details;
  google::rpc::ErrorInfo info;
  if (GetDetail(status, &info)) {
    details.reason = info.reason();
    details.metadata.insert(info.metadata().begin(), info.metadata().end());
  }
  google::rpc::BadRequest bad_request;
  if (GetDetail(status, &bad_request)) {
    for (const auto& violation : bad_request.field_violations()) {
      details.violations.push_back({violation.field(), violation.description()});
    }
  }
  return details;
}

}  // namespace longspan
