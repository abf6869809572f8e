// Policies, observers and executors must not throw. What one throws all the same ends the request
// concerned, if anything, and nothing else: nothing is left locked, nobody is left waiting.
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/log_severity.h"
#include "absl/log/log_entry.h"
#include "absl/log/log_sink.h"
#include "absl/log/log_sink_registry.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/executor.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/observer.h"
#include "latchkey/core/policy/admission_policy.h"
#include "latchkey/core/policy/preemption_policy.h"
#include "latchkey/core/policy/queue_policy.h"
#include "latchkey/core/policy/retry_policy.h"
#include "latchkey/core/transaction.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"
#include "latchkey/tests/support/lock_matchers.h"

namespace latchkey {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class LogSink : public absl::LogSink {
 public:
  LogSink() { absl::AddLogSink(this); }
  ~LogSink() override { absl::RemoveLogSink(this); }
  void Send(const absl::LogEntry& entry) override {
    if (entry.log_severity() == absl::LogSeverity::kError) {
      messages.emplace_back(entry.text_message());
    }
  }
  std::vector<std::string> messages;
};

// Every method throws, or one of them.
class Thrower {
 public:
  explicit Thrower(std::string method = "") : method_(std::move(method)) {}
  void Enter(std::string_view method) const {
    if (enabled && (method_.empty() || method == method_)) throw std::runtime_error("boom");
  }
  bool enabled = true;

 private:
  const std::string method_;
};

class ThrowingAdmission : public AdmissionPolicy, public Thrower {
 public:
  explicit ThrowingAdmission(Admission decision = Admission::kReject, std::string method = "")
      : Thrower(std::move(method)), decision_(decision) {}
  Admission Decide(const AdmissionContext&) const override {
    Enter("Decide");
    return decision_;
  }
  std::string Explain(const AdmissionContext&) const override {
    Enter("Explain");
    return "enough";
  }

 private:
  const Admission decision_;
};

class ThrowingQueue : public QueuePolicy, public Thrower {
 public:
  using Thrower::Thrower;
  absl::int128 Rank(const WaitingRequest&) const override {
    Enter("Rank");
    return 0;
  }
  bool AllowsBarging() const override {
    Enter("AllowsBarging");
    return false;
  }
  bool RanksByPriority() const override {
    Enter("RanksByPriority");
    return false;
  }
};

class ThrowingPreemption : public PreemptionPolicy, public Thrower {
 public:
  PreemptionDecision Decide(Priority) const override {
    Enter("Decide");
    return {};
  }
};

class ThrowingRetry : public RetryPolicy, public Thrower {
 public:
  absl::Duration Delay(const RetryContext&) const override {
    Enter("Delay");
    return absl::Seconds(1);
  }
};

class ThrowingObserver : public Observer, public Thrower {
 public:
  void OnAcquired(const Subject&, absl::Duration) override { Enter("OnAcquired"); }
  void OnDenied(const Subject&, absl::Duration, const absl::Status&) override { Enter("OnDenied"); }
  void OnQueueLength(std::string_view, int64_t, int64_t) override { Enter("OnQueueLength"); }
  void OnPreempted(const Subject&, Priority) override { Enter("OnPreempted"); }
  void OnStolen(const Subject&) override { Enter("OnStolen"); }
  void OnExpired(const Subject&) override { Enter("OnExpired"); }
  void OnLost(const Subject&) override { Enter("OnLost"); }
  void OnReleased(const Subject&, absl::Duration) override { Enter("OnReleased"); }
};

enum class Place { kMemory, kNetwork, kLossyNetwork };

// The manager under test shares a backend with `locks_`.
class ThrowingTest : public LockManagerFixture, public ::testing::WithParamInterface<Place> {
 protected:
  LockManager New(LockManagerOptions options = {}) {
    options.clock = &clock_;
    options.random_seed = 1;
    if (GetParam() == Place::kMemory) return *LockManager::Create(backend_, std::move(options));
    link_ = std::make_shared<FaultInjectingProtocol>(
        backend_, FaultInjectingOptions{
                      .clock = &clock_,
                      .faults = {.min_delay = absl::Milliseconds(1),
                                 .max_delay = absl::Milliseconds(1),
                                 .drop_event = GetParam() == Place::kLossyNetwork ? 1.0 : 0.0}});
    return *LockManager::Create(link_, std::move(options));
  }
  void Pass() { clock_.AdvanceBy(absl::Milliseconds(100)); }

  // Asks in every style for a lock that is held; each of them ends with what `method` threw.
  void ExpectEveryStyleFails(LockManager& locks, const AcquireOptions& options,
                             std::string_view method) {
    const auto matches = HasReason(Reason::kException, AllOf(HasSubstr("'a'"), HasSubstr("boom"),
                                                             HasSubstr(std::string(method))));
    auto asked = Ask(locks, "a", options);
    Pass();
    EXPECT_THAT(asked->status(), matches);
    auto set = std::make_shared<PendingSet>();
    locks.AcquireAllAsync({"a", "b"}, options, TellTo(set));
    Pass();
    EXPECT_THAT(set->status(), matches);
    std::optional<absl::Status> run;
    locks.RunAsync(
        "a", options, [](LockContext, LockManager::FinishCallback) { FAIL() << "it ran"; },
        [&run](absl::Status status) { run = std::move(status); });
    Pass();
    ASSERT_TRUE(run);
    EXPECT_THAT(*run, matches);
    int resource = 0;
    TransactionHandle<void> transaction =
        Locker(locks, "a", resource, options)
            .Start([](int&, TransactionContext&) -> Transaction<void> { co_return; });
    Pass();
    ASSERT_TRUE(transaction.done());
    EXPECT_THAT(transaction.Wait(), matches);
    if (GetParam() == Place::kMemory) {
      EXPECT_THAT(locks.Acquire("a", options), matches);
    }
  }

  std::shared_ptr<FaultInjectingProtocol> link_;
};

INSTANTIATE_TEST_SUITE_P(Places, ThrowingTest,
                         ::testing::Values(Place::kMemory, Place::kNetwork, Place::kLossyNetwork),
                         [](const auto& info) {
                           return info.param == Place::kMemory    ? "Memory"
                                  : info.param == Place::kNetwork ? "Network"
                                                                  : "LossyNetwork";
                         });

// ---- Policies ----

TEST_P(ThrowingTest, AnAdmissionPolicyEndsTheRequestThatItWasAskedAbout) {
  for (const std::string method : {"Decide", "Explain"}) {
    auto policy = std::make_shared<ThrowingAdmission>(Admission::kReject, method);
    LockManager locks = New();
    absl::StatusOr<Lock> held = locks_.Acquire("a");
    ExpectEveryStyleFails(locks, {.admission = policy}, absl::StrCat("AdmissionPolicy::", method));
    EXPECT_TRUE(held->Release().ok());
    Pass();
    ExpectNothingLeft();
    auto next = Ask(locks, "a", {.admission = policy});
    Pass();
    EXPECT_TRUE(next->granted()) << "a free lock needs no admission";
    next->result.reset();
    Pass();
  }
}

TEST_P(ThrowingTest, WhoeverReservedBeforeItWasRefusedSoDoesNotStay) {
  LockManager locks = New();
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto thief = Ask(locks, "a", {.priority = 1, .admission = std::make_shared<ThrowingAdmission>()});
  Pass();
  EXPECT_THAT(thief->status(), HasReason(Reason::kException));
  Pass();
  EXPECT_EQ(held->state(), LockState::kHeld) << "the reservation is withdrawn";
}

TEST_P(ThrowingTest, NobodyIsShedForOneWhoseAdmissionCannotBeExplained) {
  LockManager locks = New();
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto waits = Ask(locks, "a");
  Pass();
  auto policy = std::make_shared<ThrowingAdmission>(Admission::kShedLowest, "Explain");
  auto urgent = Ask(locks, "a", {.priority = 5, .admission = policy, .preemption = NeverPreempt()});
  Pass();
  EXPECT_TRUE(urgent->failed());
  EXPECT_FALSE(waits->result) << waits->status();
  EXPECT_TRUE(held->Release().ok());
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_TRUE(waits->granted());
}

TEST_P(ThrowingTest, AQueuePolicyEndsTheRequestThatItWasToRank) {
  const auto policy = std::make_shared<ThrowingQueue>("Rank");
  LockManager locks = New({.queue = policy});
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  ExpectEveryStyleFails(locks, {}, "QueuePolicy::Rank");
  policy->enabled = false;
  auto waits = Ask(locks, "a");
  Pass();
  EXPECT_TRUE(held->Release().ok());
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_TRUE(waits->granted()) << waits->status();
  waits->result.reset();
  Pass();
  ExpectNothingLeft();
}

TEST_P(ThrowingTest, AQueuePolicyThatCannotSayWhatItIsMakesNoManager) {
  for (const std::string method : {"AllowsBarging", "RanksByPriority"}) {
    EXPECT_THAT(
        LockManager::Create(backend_, {.queue = std::make_shared<ThrowingQueue>(method)}).status(),
        HasReason(Reason::kException, AllOf(HasSubstr(method), HasSubstr("boom"))));
  }
}

TEST_P(ThrowingTest, APreemptionPolicyEndsItsRequest) {
  const auto policy = std::make_shared<ThrowingPreemption>();
  LockManager locks = New({.preemption = policy});
  ExpectEveryStyleFails(locks, {}, "PreemptionPolicy::Decide");
  EXPECT_THAT(locks.TryAcquire("a"),
              HasReason(Reason::kException, HasSubstr("PreemptionPolicy::Decide")));
  ExpectNothingLeft();
  policy->enabled = false;
  auto asked = Ask(locks, "a");
  Pass();
  EXPECT_TRUE(asked->granted());
}

TEST_P(ThrowingTest, ARetryPolicyEndsTheRequestThatItWasToDelay) {
  if (GetParam() != Place::kLossyNetwork) return;  // Elsewhere nobody polls.
  LockManager locks = New({.retry = std::make_shared<ThrowingRetry>()});
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  ExpectEveryStyleFails(locks, {}, "RetryPolicy::Delay");
  EXPECT_TRUE(held->Release().ok());
  Pass();
  ExpectNothingLeft();
}

TEST_P(ThrowingTest, ARetryPolicyThatThrowsAfterAFailureLeavesNothing) {
  if (GetParam() == Place::kMemory) return;
  LockManager locks = New({.retry = std::make_shared<ThrowingRetry>()});
  link_->SetFaults({.drop_reply = 1});
  auto asked = Ask(locks, "a");
  auto set = std::make_shared<PendingSet>();
  locks.AcquireAllAsync({"b", "c"}, {}, TellTo(set));
  clock_.AdvanceBy(absl::ZeroDuration());  // The calls arrive.
  EXPECT_TRUE(locks_.IsBusy("a"));
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(asked->status(), HasReason(Reason::kException, HasSubstr("may have been executed")));
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(set->status(), HasReason(Reason::kException, HasSubstr("RetryPolicy::Delay")));
  Pass();
  ExpectNothingLeft();
}

TEST_P(ThrowingTest, ARetryPolicyThatThrowsWhenASetPausesEndsTheSet) {
  if (GetParam() != Place::kMemory) return;
  LockManager locks = New();
  // It loses "a" while it waits for "b", and has to pause.
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  auto set = std::make_shared<PendingSet>();
  locks.AcquireAllAsync({"a", "b"}, {.owner = "me", .retry = std::make_shared<ThrowingRetry>()},
                        TellTo(set));
  for (int i = 0; i < 5 && !set->result; ++i) {
    absl::StatusOr<Lock> other = locks_.Acquire("a", {.priority = 1});
    ASSERT_TRUE(other.ok());
  }
  EXPECT_THAT(set->status(), HasReason(Reason::kException, HasSubstr("RetryPolicy::Delay")));
  b = absl::CancelledError();
  ExpectNothingLeft();
}

// ---- Observers ----

TEST_P(ThrowingTest, AnObserverChangesNothing) {
  if (GetParam() == Place::kLossyNetwork) return;  // There, holders hear of nothing.
  LogSink log;
  LockManager locks = New({.observer = std::make_shared<ThrowingObserver>()});
  // Granted at once, denied, waited for, asked to yield, released.
  auto first = Ask(locks, "a", {.priority = 1});
  Pass();
  ASSERT_TRUE(first->granted()) << first->status();
  auto denied = Ask(locks, "a", {.acquire_timeout = absl::ZeroDuration()});
  Pass();
  EXPECT_EQ(ReasonOf(denied->status()), Reason::kAcquireTimeout);
  auto thief = Ask(locks, "a", {.priority = 2});
  Pass();
  EXPECT_EQ(first->lock().state(), LockState::kYielding);
  auto behind = Ask(locks, "a");
  Pass();
  first->result.reset();
  clock_.AdvanceBy(absl::Minutes(1));
  ASSERT_TRUE(thief->granted()) << thief->status();
  thief->result.reset();
  clock_.AdvanceBy(absl::Minutes(1));
  ASSERT_TRUE(behind->granted()) << behind->status();
  // Stolen, expired.
  auto by_force = Ask(locks, "a", {.priority = 9, .preemption_grace = absl::ZeroDuration()});
  Pass();
  ASSERT_TRUE(by_force->granted()) << by_force->status();
  EXPECT_NE(behind->lock().state(), LockState::kHeld);
  by_force->result.reset();
  behind->result.reset();
  Pass();
  auto leased = Ask(locks, "a", {.lease = absl::Seconds(1), .auto_renew = false});
  Pass();
  ASSERT_TRUE(leased->granted());
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(leased->lock().state(), LockState::kExpired);
  leased->result.reset();
  // A set.
  auto set = std::make_shared<PendingSet>();
  locks.AcquireAllAsync({"a", "b"}, {}, TellTo(set));
  Pass();
  ASSERT_TRUE(set->granted()) << set->status();
  set->result.reset();
  clock_.AdvanceBy(absl::Minutes(1));
  ExpectNothingLeft();
  EXPECT_FALSE(locks.IsBusy());

  for (const std::string method :
       {"OnAcquired", "OnDenied", "OnQueueLength", "OnPreempted", "OnExpired", "OnReleased"}) {
    EXPECT_THAT(log.messages, Contains(absl::StrCat("Observer::", method, " threw for 'a': boom")));
  }
}

TEST_P(ThrowingTest, AnObserverChangesNothingForBlockingCalls) {
  if (GetParam() != Place::kMemory) return;
  LogSink log;
  LockManager locks = New({.observer = std::make_shared<ThrowingObserver>()});
  absl::StatusOr<Lock> lock = locks.Acquire("a");
  ASSERT_TRUE(lock.ok());
  EXPECT_EQ(ReasonOf(locks.TryAcquire("a").status()), Reason::kHeldByOther);
  EXPECT_TRUE(lock->Release().ok());
  lock = locks.TryAcquire("a");
  ASSERT_TRUE(lock.ok());
  absl::StatusOr<Lock> thief =
      locks_.Acquire("a", {.priority = 1, .preemption_grace = absl::ZeroDuration()});
  ASSERT_TRUE(thief.ok());
  EXPECT_EQ(ReasonOf(lock->Release()), Reason::kStolen);
  EXPECT_TRUE(thief->Release().ok());
  EXPECT_TRUE(locks.Run("a", {}, [](LockContext&) { return absl::OkStatus(); }).ok());
  EXPECT_TRUE(locks.AcquireAll({"a", "b"}).ok());
  ExpectNothingLeft();
  EXPECT_THAT(log.messages, Contains("Observer::OnStolen threw for 'a': boom"));
}

// ---- Executors ----

class ThrowingExecutor : public Executor, public Thrower {
 public:
  void Execute(Task task) override {
    Enter("Execute");
    task();
  }
};

TEST_P(ThrowingTest, WhatAnExecutorDoesNotTakeIsDropped) {
  LogSink log;
  ThrowingExecutor executor;
  LockManager locks = New({.executor = &executor});
  auto asked = Ask(locks, "a");
  Pass();
  Pass();
  EXPECT_FALSE(asked->result);
  ExpectNothingLeft();
  EXPECT_THAT(log.messages, Contains("Executor::Execute threw: boom"));
  executor.enabled = false;
  auto next = Ask(locks, "a");
  Pass();
  EXPECT_TRUE(next->granted());
  next->result.reset();
  Pass();
}

}  // namespace
}  // namespace latchkey
