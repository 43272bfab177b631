#include "server/rpc/download_stream.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>

#include "proto/support/check.h"
#include "server/rpc/job_folder.h"

namespace longspan::rpc {
namespace {

constexpr int64_t kChunkBytes = 256 * 1024;

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    CHECK(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }
  void Add(const std::string& data) { CHECK(EVP_DigestUpdate(context_.get(), data.data(), data.size()) == 1); }
  std::string Hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    CHECK(EVP_DigestFinal_ex(context_.get(), digest, &size) == 1);
    std::string hex;
    for (unsigned int i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
    return hex;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

class DownloadStream final : public PullStream<v1::DownloadFileResponse> {
 public:
  DownloadStream(const ServerParts& parts, grpc::CallbackServerContext* context, const v1::DownloadFileRequest& request,
                 StreamLimits limits)
      : PullStream(parts, context, limits), request_(request), offset_(request.offset()), written_(request.offset()) {}

 private:
  void Produce() override {
    if (opened_.file.valid()) return InBackground([self = Self<DownloadStream>()] { self->Read(); });
    parts_.coordinator->Query(
        [self = Self<DownloadStream>()](absl::StatusOr<const core::Core*> core) { self->Look(std::move(core)); });
  }

  void Look(absl::StatusOr<const core::Core*> core) {
    if (!core.ok()) return ProducedError(Error(core.status()));
    const absl::StatusOr<JobId> job_id = (*core)->ResolveJob(request_.job_id());
    if (!job_id.ok()) return ProducedError(Error(job_id.status()));
    const absl::StatusOr<core::JobView> view = (*core)->ViewJob(*job_id);
    if (!view.ok()) return ProducedError(Error(view.status()));
    InBackground([self = Self<DownloadStream>(), folder = view->job.folder] { self->Open(folder); });
  }

  void Open(const std::string& folder) {
    absl::StatusOr<OpenedFile> opened = OpenFile(folder, request_.path());
    if (!opened.ok()) return ProducedError(Error(opened.status()));
    if (offset_ < 0 || offset_ > opened->size_bytes) {
      return ProducedError(Error(
          grpc::StatusCode::OUT_OF_RANGE, "OFFSET_OUT_OF_RANGE",
          fmt::format("offset {} is outside '{}', which has {} bytes", offset_, request_.path(), opened->size_bytes)));
    }
    opened_ = *std::move(opened);
    Read();
  }

  void Read() {
    std::string data(static_cast<size_t>(std::min(kChunkBytes, opened_.size_bytes - offset_)), '\0');
    const ssize_t got = pread(opened_.file.get(), data.data(), data.size(), offset_);
    if (got < 0 || static_cast<size_t>(got) < data.size()) {
      const char* cause = got < 0 ? std::strerror(errno) : "it has become shorter";
      return ProducedError(Ended(grpc::StatusCode::ABORTED, "FILE_CHANGED",
                                 fmt::format("cannot read '{}' to its end: {}", request_.path(), cause)));
    }
    hash_.Add(data);
    offset_ += got;
    Batch batch;
    v1::DownloadFileResponse& message = batch.messages.emplace_back();
    message.set_data(std::move(data));
    if (!std::exchange(began_, true)) message.set_size_bytes(opened_.size_bytes);
    const bool last = offset_ == opened_.size_bytes;
    if (last) message.set_sha256(hash_.Hex());
    batch.next = last ? Next::kEnd : Next::kMore;
    Produced(std::move(batch));
  }

  void Written(const v1::DownloadFileResponse& message) override {
    written_ += static_cast<int64_t>(message.data().size());
  }
  std::map<std::string, std::string> Cursor() override { return {{"offset", std::to_string(written_)}}; }

  const v1::DownloadFileRequest request_;
  // Touched by one Produce at a time.
  OpenedFile opened_;
  Sha256 hash_;
  bool began_ = false;
  int64_t offset_;
  std::atomic<int64_t> written_;  // read by whoever ends the stream
};

}  // namespace

grpc::ServerWriteReactor<v1::DownloadFileResponse>* StartDownload(const ServerParts& parts,
                                                                  grpc::CallbackServerContext* context,
                                                                  const v1::DownloadFileRequest& request,
                                                                  StreamLimits limits) {
  return DownloadStream::Begin(std::make_shared<DownloadStream>(parts, context, request, limits));
}

}  // namespace longspan::rpc
