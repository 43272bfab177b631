// Statuses keep their details on the wire, and channels refuse what would send secrets in plain text.
#include "proto/support/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/support/channel.h"

namespace longspan {
namespace {

using ::testing::HasSubstr;

TEST(Status, DetailsSurviveTheWire) {
  StatusDetails details{"BAD_SPEC", {{"limit", "3"}}, {{"spec.name", "is empty"}, {"spec.model.path", "is required"}}};
  const grpc::Status wire = ToGrpcStatus(WithDetails(absl::InvalidArgumentError("two mistakes"), details));
  EXPECT_EQ(wire.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(wire.error_message(), "two mistakes");
  const absl::Status back = ToAbslStatus(wire);
  EXPECT_EQ(back.code(), absl::StatusCode::kInvalidArgument);
  const StatusDetails read = DetailsOf(back);
  EXPECT_EQ(read.reason, "BAD_SPEC");
  EXPECT_EQ(read.metadata.at("limit"), "3");
  ASSERT_EQ(read.violations.size(), 2u);
  EXPECT_EQ(read.violations[1].field, "spec.model.path");
}

TEST(Status, GarbageInTheDetailsIsIgnored) {
  const absl::Status status = ToAbslStatus(grpc::Status(grpc::StatusCode::INTERNAL, "x", "\xff\xff\xff"));
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(DetailsOf(status).reason.empty());
  EXPECT_TRUE(ToAbslStatus(grpc::Status::OK).ok());
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
}

TEST(Channel, PlainTextOnlyOnLoopbackOrWhenAskedFor) {
  EXPECT_TRUE(OpenChannel({.address = "127.0.0.1:1"}).ok());
  EXPECT_TRUE(OpenChannel({.address = "localhost:1"}).ok());
  EXPECT_TRUE(OpenChannel({.address = "[::1]:1"}).ok());
  EXPECT_THAT(std::string(OpenChannel({.address = "example.com:1"}).status().message()), HasSubstr("--insecure"));
  EXPECT_TRUE(OpenChannel({.address = "example.com:1", .insecure = true}).ok());
  EXPECT_TRUE(OpenChannel({.address = "example.com:1", .tls = true}).ok());
  EXPECT_EQ(OpenChannel({.address = "example.com:1", .ca_file = "/no/such.pem"}).status().code(),
            absl::StatusCode::kNotFound);
  for (const char* bad : {"", "example.com", "host:", ":80", "host:http"}) {
    EXPECT_THAT(std::string(OpenChannel({.address = bad}).status().message()), HasSubstr("must be host:port")) << bad;
  }
}

}  // namespace
}  // namespace longspan
