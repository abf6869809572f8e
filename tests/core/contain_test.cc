#include "latchkey/core/base/contain.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "absl/base/log_severity.h"
#include "absl/log/log_entry.h"
#include "absl/log/log_sink.h"
#include "absl/log/log_sink_registry.h"
#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_error.h"

namespace latchkey::internal {
namespace {

class Sink : public absl::LogSink {
 public:
  Sink() { absl::AddLogSink(this); }
  ~Sink() override { absl::RemoveLogSink(this); }
  void Send(const absl::LogEntry& entry) override {
    if (entry.log_severity() == absl::LogSeverity::kError) {
      messages.emplace_back(entry.text_message());
    }
  }
  std::vector<std::string> messages;
};

TEST(ContainTest, WhatIsThrownBecomesAnErrorThatSaysWhereItCameFrom) {
  const absl::Status status = StatusOfContained("QueuePolicy::Rank", "orders/42",
                                                [] { throw std::runtime_error("no rank"); });
  EXPECT_EQ(ReasonOf(status), Reason::kException);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(status.message(), "QueuePolicy::Rank threw for 'orders/42': no rank");
}

TEST(ContainTest, WhatIsNoExceptionIsContainedToo) {
  const absl::Status status = StatusOfContained("body", "", [] { throw 7; });
  EXPECT_EQ(status.message(), "body threw: something that is no std::exception");
}

TEST(ContainTest, WithoutAThrowItIsOk) {
  Sink sink;
  int calls = 0;
  EXPECT_TRUE(StatusOfContained("body", "a", [&] { ++calls; }).ok());
  RunContained("body", "a", [&] { ++calls; });
  EXPECT_EQ(calls, 2);
  EXPECT_TRUE(sink.messages.empty());
}

TEST(ContainTest, ACallWithoutAResultIsLogged) {
  Sink sink;
  RunContained("OnLost", "a", [] { throw std::runtime_error("boom"); });
  EXPECT_EQ(sink.messages, std::vector<std::string>{"OnLost threw for 'a': boom"});
}

}  // namespace
}  // namespace latchkey::internal
