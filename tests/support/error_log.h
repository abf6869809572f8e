// ErrorLog keeps what the library logs as an error, or with another severity, while it lives.
//
//   ErrorLog errors;
//   ... something throws ...
//   EXPECT_THAT(errors.lines(), ElementsAre(HasSubstr("'orders/42'")));
//   ErrorLog warnings(absl::LogSeverity::kWarning);
//
// Thread safety: all methods may be called from any thread.
#ifndef LATCHKEY_TESTS_SUPPORT_ERROR_LOG_H_
#define LATCHKEY_TESTS_SUPPORT_ERROR_LOG_H_

#include <string>
#include <vector>

#include "absl/base/log_severity.h"
#include "absl/base/thread_annotations.h"
#include "absl/log/log_entry.h"
#include "absl/log/log_sink.h"
#include "absl/log/log_sink_registry.h"
#include "absl/synchronization/mutex.h"

namespace latchkey {

class ErrorLog : private absl::LogSink {
 public:
  explicit ErrorLog(absl::LogSeverity severity = absl::LogSeverity::kError) : severity_(severity) {
    absl::AddLogSink(this);
  }
  ~ErrorLog() override { absl::RemoveLogSink(this); }
  ErrorLog(const ErrorLog&) = delete;
  ErrorLog& operator=(const ErrorLog&) = delete;

  std::vector<std::string> lines() const {
    absl::MutexLock lock(&mu_);
    return lines_;
  }

 private:
  void Send(const absl::LogEntry& entry) override {
    if (entry.log_severity() != severity_) return;
    absl::MutexLock lock(&mu_);
    lines_.emplace_back(entry.text_message());
  }

  const absl::LogSeverity severity_;
  mutable absl::Mutex mu_;
  std::vector<std::string> lines_ ABSL_GUARDED_BY(mu_);
};

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SUPPORT_ERROR_LOG_H_
