// A user's test: the headers that are there for tests, with what they inline into one.
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/linearizability.h"
#include "latchkey/tests/support/lock_matchers.h"
#include "latchkey/tests/support/random_steps.h"
#include "latchkey/tests/support/simulated_clock.h"
#include "latchkey/tests/support/simulated_executor.h"

namespace {

using ::latchkey::Await;
using ::latchkey::HasReason;
using ::latchkey::Mailbox;
using ::latchkey::Reason;
using ::testing::HasSubstr;

TEST(UseTestHeaders, OverALinkThatDelays) {
  latchkey::SimulatedClock clock;
  latchkey::SimulatedExecutor executor;
  const auto link = std::make_shared<latchkey::FaultInjectingProtocol>(
      latchkey::NewMemoryBackend({.clock = &clock}),
      latchkey::FaultInjectingOptions{
          .seed = 1, .clock = &clock, .faults = {.max_delay = absl::Milliseconds(20)}});
  absl::StatusOr<latchkey::LockManager> locks = latchkey::LockManager::Create(
      link, {.clock = &link->client_clock(), .executor = &executor, .random_seed = 1});
  ASSERT_TRUE(locks.ok());
  Mailbox<absl::StatusOr<latchkey::Lock>> granted;
  const auto ask = [&](const latchkey::AcquireOptions& options) {
    locks->AcquireAsync("a", options,
                        [&](absl::StatusOr<latchkey::Lock> lock) { granted.Put(std::move(lock)); });
    clock.AdvanceBy(absl::Seconds(1));
    executor.RunAll();
    return *granted.Take();
  };
  const absl::StatusOr<latchkey::Lock> lock = ask({.owner = "ann"});
  ASSERT_TRUE(lock.ok()) << lock.status();
  const absl::StatusOr<latchkey::Lock> late = ask({.acquire_timeout = absl::Milliseconds(500)});
  EXPECT_THAT(late, HasReason(Reason::kAcquireTimeout, HasSubstr("'ann'")));
  EXPECT_THAT(late.status(), HasReason(Reason::kAcquireTimeout));
}

TEST(UseTestHeaders, AgainstTheReference) {
  latchkey::SimulatedClock clock;
  const std::shared_ptr<latchkey::LockingProtocol> backend =
      latchkey::NewMemoryBackend({.clock = &clock});
  const absl::StatusOr<latchkey::ObtainReply> reply = Await<latchkey::ObtainReply>([&](auto done) {
    backend->Obtain({.resource = "a", .acquisition = latchkey::AcquisitionId::Next()},
                    std::move(done));
  });
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->outcome, latchkey::ObtainOutcome::kObtained);
  latchkey::RandomStepsOptions options{.steps = 20};
  options.advance = [&](absl::Duration duration) { clock.AdvanceBy(duration); };
  EXPECT_EQ(latchkey::RunRandomSteps(*backend, options), "");
  EXPECT_EQ(latchkey::CheckLinearizable(latchkey::RecordHistory({backend.get()}, {.steps = 3})),
            "");
}

}  // namespace
