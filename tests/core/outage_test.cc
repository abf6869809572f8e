// What becomes of a request whose backend fails: how long it goes on, what it ends with, and that
// "unavailable" means that nothing was done, however many attempts there were.
#include "latchkey/core/engine/outage.h"

#include <algorithm>
#include <cstddef>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/policy/retry_policy.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/stats_observer.h"
#include "latchkey/core/transaction.h"
#include "latchkey/tests/support/lock_manager_fixture.h"
#include "latchkey/tests/support/lock_matchers.h"

namespace latchkey {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

enum class Fate {
  kAnswered,
  kUnavailable,  // Not executed.
  kReplyLost,    // Executed, and nobody hears of it.
  kCallLost,     // Not executed, and nobody knows.
  kHeld,         // Executed; the reply comes when the test says so.
  kFailsLater,   // Not executed; that is said when the test says so.
  kRefused,      // As no retry would mend.
  kDenied,
};

// The in-memory backend behind a link that does to each Obtain what the test says.
class BrokenLink : public LockingProtocol {
 public:
  BrokenLink(std::shared_ptr<LockingProtocol> inner, bool at_once) : inner_(std::move(inner)) {
    capabilities_ = inner_->capabilities();
    capabilities_.answers_at_once = at_once;
    capabilities_.reliable_events = false;
    if (!at_once) {
      capabilities_.inspect = false;
      capabilities_.hint_identifies_hold = false;
    }
  }

  // The next ones, and all after them.
  void Will(std::deque<Fate> fates, Fate later) {
    absl::MutexLock lock(&mu_);
    fates_ = std::move(fates);
    later_ = later;
  }
  int obtains() const {
    absl::MutexLock lock(&mu_);
    return obtains_;
  }
  // Waits until so many replies are held.
  void AwaitHeld(size_t count) {
    const auto there = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return held_.size() >= count; };
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&there));
  }
  // All of them, or the first so many.
  void AnswerHeld(size_t most = std::numeric_limits<size_t>::max()) {
    std::vector<std::function<void()>> held;
    {
      absl::MutexLock lock(&mu_);
      const auto end = held_.begin() + std::min(most, held_.size());
      held.assign(held_.begin(), end);
      held_.erase(held_.begin(), end);
    }
    for (const auto& answer : held) answer();
  }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    switch (NextFate()) {
      case Fate::kAnswered:
        inner_->Obtain(request, std::move(done));
        return;
      case Fate::kUnavailable:
        done(BackendUnavailableError("no route"));
        return;
      case Fate::kReplyLost:
        inner_->Obtain(request, [](absl::StatusOr<ObtainReply>) {});
        done(BackendUnknownError("no reply"));
        return;
      case Fate::kCallLost:
        done(BackendUnknownError("no reply"));
        return;
      case Fate::kHeld: {
        absl::StatusOr<ObtainReply> reply = absl::InternalError("none");
        inner_->Obtain(request, [&](absl::StatusOr<ObtainReply> said) { reply = std::move(said); });
        absl::MutexLock lock(&mu_);
        held_.push_back(
            [reply, done = std::make_shared<ObtainCallback>(std::move(done))] { (*done)(reply); });
        return;
      }
      case Fate::kFailsLater: {
        absl::MutexLock lock(&mu_);
        held_.push_back([done = std::make_shared<ObtainCallback>(std::move(done))] {
          (*done)(BackendUnavailableError("no route"));
        });
        return;
      }
      case Fate::kRefused:
        done(MakeError(Reason::kNotSupported, "not on this server"));
        return;
      case Fate::kDenied:
        done(ObtainReply{.outcome = ObtainOutcome::kDenied, .other_owner = "somebody"});
        return;
    }
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    if (releases_later) {
      absl::MutexLock lock(&mu_);
      held_.push_back([this, name = std::string(hold.resource.bytes()), hold,
                       done = std::make_shared<ReleaseCallback>(std::move(done))] {
        ReleaseNow({ResourceName(name), hold.acquisition, hold.hint}, std::move(*done));
      });
      return;
    }
    ReleaseNow(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    if (absl::Status failure = FailureOf(hold); !failure.ok()) return done(std::move(failure));
    inner_->Extend(hold, lease, std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return inner_->Watch(request, std::move(on_event));
  }
  std::string ResourceOf(const HoldRef& hold) const override { return inner_->ResourceOf(hold); }
  void Inspect(std::optional<ResourceName> resource,
               absl::FunctionRef<void(const ResourceState&)> visitor) const override {
    if (capabilities_.inspect) inner_->Inspect(resource, visitor);
  }
  const BackendCapabilities& capabilities() const override { return capabilities_; }

  // Of releases and extensions, of this resource if it is named; and those of all others then. For
  // tests of one thread.
  absl::Status release_failure;
  std::string fails_for;
  absl::Status failure_of_others;
  // They are executed when the test says so.
  bool releases_later = false;

 private:
  absl::Status FailureOf(const HoldRef& hold) const {
    const bool named = fails_for.empty() || inner_->ResourceOf(hold) == fails_for ||
                       hold.resource.bytes() == fails_for;
    return named ? release_failure : failure_of_others;
  }
  void ReleaseNow(const HoldRef& hold, ReleaseCallback done) {
    if (absl::Status failure = FailureOf(hold); !failure.ok()) return done(std::move(failure));
    inner_->Release(hold, std::move(done));
  }
  Fate NextFate() {
    absl::MutexLock lock(&mu_);
    ++obtains_;
    if (fates_.empty()) return later_;
    const Fate fate = fates_.front();
    fates_.pop_front();
    return fate;
  }

  const std::shared_ptr<LockingProtocol> inner_;
  BackendCapabilities capabilities_;
  mutable absl::Mutex mu_;
  std::deque<Fate> fates_ ABSL_GUARDED_BY(mu_);
  Fate later_ ABSL_GUARDED_BY(mu_) = Fate::kAnswered;
  int obtains_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::function<void()>> held_ ABSL_GUARDED_BY(mu_);
};

// `far_` is behind the link, whose answers come at once or may take their time. `locks_` is next to
// the backend.
class OutageTest : public LockManagerFixture, public ::testing::WithParamInterface<bool> {
 protected:
  explicit OutageTest(LockManagerOptions options = {})
      : link_(std::make_shared<BrokenLink>(backend_, GetParam())), far_([&] {
          options.clock = &clock_;
          options.random_seed = 1;
          return *LockManager::Create(link_, std::move(options));
        }()) {}

  std::shared_ptr<Pending> AskFar(std::string_view resource, const AcquireOptions& options = {}) {
    return Ask(far_, resource, options);
  }
  std::shared_ptr<PendingSet> AskAllFar(std::initializer_list<std::string_view> resources,
                                        const AcquireOptions& options = {}) {
    auto pending = std::make_shared<PendingSet>();
    far_.AcquireAllAsync(resources, options, TellTo(pending));
    return pending;
  }

  // Of a set of two of which the first fails. Where answers come at once, they are asked one by
  // one.
  static int AskedOfTwo() { return GetParam() ? 1 : 2; }

  std::shared_ptr<BrokenLink> link_;
  LockManager far_;
};

INSTANTIATE_TEST_SUITE_P(Answers, OutageTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "AtOnce" : "InTheirTime"; });

// ---- Unknown stays unknown ----

TEST_P(OutageTest, ALostReplyBeforeAnOutageIsAnUnknownOutcomeAndIsUndone) {
  for (const absl::Duration patience : {absl::InfiniteDuration(), absl::Seconds(2)}) {
    link_->Will({Fate::kReplyLost}, Fate::kUnavailable);
    auto pending = AskFar("a", {.lease = absl::Seconds(9),
                                .acquire_timeout = absl::Seconds(3),
                                .outage_patience = patience});
    EXPECT_TRUE(locks_.IsBusy("a"));
    clock_.AdvanceBy(absl::Seconds(3));
    EXPECT_THAT(pending->status(),
                HasReason(Reason::kBackendUnknown,
                          AllOf(HasSubstr("'a'"), HasSubstr("no route"), HasSubstr("no reply"),
                                HasSubstr("times in "), HasSubstr("may have been executed"))));
    EXPECT_FALSE(locks_.IsBusy("a")) << "it is undone";
  }
}

TEST_P(OutageTest, AnOutageInWhichNothingWasDoneIsUnavailable) {
  link_->Will({}, Fate::kUnavailable);
  auto pending = AskFar("a", {.acquire_timeout = absl::Seconds(3)});
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_THAT(pending->status(),
              HasReason(Reason::kBackendUnavailable,
                        AllOf(HasSubstr("'a'"), HasSubstr("no route"), HasSubstr("times in 3s"),
                              Not(HasSubstr("may have been executed")))));
}

TEST_P(OutageTest, ALaterAnswerSettlesWhatWasUnknown) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  link_->Will({Fate::kReplyLost, Fate::kAnswered, Fate::kAnswered}, Fate::kUnavailable);
  auto pending = AskFar("a", {.outage_patience = absl::Seconds(2)});
  clock_.AdvanceBy(absl::Seconds(1));
  link_->Will({}, Fate::kUnavailable);
  EXPECT_TRUE(held->Release().ok());
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_FALSE(pending->result) << pending->status();
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_THAT(pending->status(),
              HasReason(Reason::kBackendUnavailable, Not(HasSubstr("may have been executed"))));
}

TEST_P(OutageTest, AfterAnUnknownOutcomeARefusalIsNoProofThatNothingWasDone) {
  link_->Will({Fate::kReplyLost}, Fate::kRefused);
  auto pending = AskFar("a");
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_THAT(pending->status(), HasReason(Reason::kBackendUnknown, HasSubstr("not on this")));
  EXPECT_FALSE(locks_.IsBusy("a"));
}

TEST_P(OutageTest, WhatIsOpenIsSaidAndMakesTheEndOfTheTimeUnknown) {
  for (const Reason reason : {Reason::kAcquireTimeout, Reason::kCancelled, Reason::kShutdown}) {
    std::optional<LockManager> far = *LockManager::Create(link_, {.clock = &clock_});
    link_->Will({}, Fate::kAnswered);
    absl::StatusOr<Lock> held = locks_.Acquire("a");
    std::stop_source cancel;
    AcquireOptions options = {.cancel = cancel.get_token()};
    if (reason == Reason::kAcquireTimeout) options.acquire_timeout = absl::Seconds(3);
    auto pending = Ask(*far, "a", options);
    clock_.AdvanceBy(absl::Seconds(1));
    link_->Will({Fate::kReplyLost}, Fate::kUnavailable);
    EXPECT_TRUE(held->Release().ok());
    clock_.AdvanceBy(absl::Seconds(1));
    EXPECT_TRUE(locks_.IsBusy("a")) << "it has the lock and has not heard of it";
    ASSERT_FALSE(pending->result) << pending->status();
    if (reason == Reason::kCancelled) cancel.request_stop();
    if (reason == Reason::kShutdown) far.reset();
    clock_.AdvanceBy(absl::Seconds(1));
    const bool timeout = reason == Reason::kAcquireTimeout;
    EXPECT_THAT(pending->status(),
                HasReason(timeout ? Reason::kBackendUnknown : reason,
                          AllOf(HasSubstr(timeout ? "acquire_timeout is over (3s)" : "'a'"),
                                HasSubstr("no route"), HasSubstr("no reply"),
                                HasSubstr("may have been executed"))));
    EXPECT_FALSE(locks_.IsBusy("a"));
  }
}

TEST_P(OutageTest, ALimitThatIsSetUnderAnotherNameIsToldByThat) {
  std::optional<Lock> held = *locks_.Acquire("a");
  absl::Status done;
  far_.RunAsync(
      "a", {.max_occupation_time = absl::Seconds(3)},
      [](LockContext, LockManager::FinishCallback) {},
      [&](absl::Status status) { done = std::move(status); });
  clock_.AdvanceBy(absl::Seconds(1));
  link_->Will({Fate::kReplyLost}, Fate::kUnavailable);
  held.reset();
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_THAT(
      done, HasReason(Reason::kBackendUnknown, AllOf(HasSubstr("max_occupation_time is over (3s)"),
                                                     Not(HasSubstr("acquire_timeout")))));
  EXPECT_FALSE(locks_.IsBusy("a"));
}

TEST_P(OutageTest, AnAttemptThatIsOnlyUnderWayChangesNoReason) {
  if (GetParam()) return;  // There, everything is answered.
  std::optional<Lock> held = *locks_.Acquire("a");
  auto pending = AskFar("a", {.acquire_timeout = absl::Seconds(3)});
  clock_.AdvanceBy(absl::Seconds(1));
  link_->Will({}, Fate::kHeld);
  held.reset();
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_THAT(pending->status(), HasReason(Reason::kAcquireTimeout, HasSubstr("not answered yet")));
  link_->AnswerHeld();
  EXPECT_FALSE(locks_.IsBusy("a"));
}

TEST_P(OutageTest, WhatIsNotAnsweredYetIsSaidAndGivenBack) {
  if (GetParam()) return;  // There, everything is answered.
  for (const auto& fates : {std::deque<Fate>{}, std::deque<Fate>{Fate::kUnavailable}}) {
    for (const bool cancels : {false, true}) {
      link_->Will(fates, Fate::kHeld);
      std::stop_source cancel;
      auto pending =
          AskFar("a", {.acquire_timeout = absl::Seconds(9), .cancel = cancel.get_token()});
      clock_.AdvanceBy(absl::Seconds(8));
      if (cancels) cancel.request_stop();
      clock_.AdvanceBy(absl::Seconds(1));
      const Reason reason = cancels         ? Reason::kCancelled
                            : fates.empty() ? Reason::kAcquireTimeout
                                            : Reason::kBackendUnknown;
      EXPECT_THAT(pending->status(), HasReason(reason, HasSubstr("not answered yet")));
      link_->AnswerHeld();
      EXPECT_FALSE(locks_.IsBusy("a"));
    }
  }
}

TEST_P(OutageTest, OneAttemptThatIsUnknownIsUndone) {
  for (const Fate fate : {Fate::kReplyLost, Fate::kCallLost}) {
    link_->Will({}, fate);
    EXPECT_THAT(far_.TryAcquire("a"), HasReason(Reason::kBackendUnknown));
    EXPECT_FALSE(locks_.IsBusy("a"));
    EXPECT_THAT(far_.Acquire("a", {.acquire_timeout = absl::ZeroDuration()}),
                HasReason(Reason::kBackendUnknown));
    EXPECT_FALSE(locks_.IsBusy("a"));
  }
}

// ---- How long it goes on ----

TEST_P(OutageTest, AnOutageThatIsShorterThanTheWaitIsNoError) {
  for (const Fate fate : {Fate::kUnavailable, Fate::kCallLost, Fate::kReplyLost}) {
    for (const absl::Duration outage :
         {absl::Milliseconds(1), absl::Seconds(2), absl::Seconds(10), absl::Seconds(29)}) {
      link_->Will({}, fate);
      auto pending = AskFar("a", {.acquire_timeout = absl::Seconds(30)});
      auto endless = AskFar("b");
      clock_.AdvanceBy(outage);
      EXPECT_FALSE(pending->result) << pending->status();
      link_->Will({}, Fate::kAnswered);
      clock_.AdvanceBy(absl::Seconds(30) - outage);
      EXPECT_TRUE(pending->granted()) << pending->status();
      clock_.AdvanceBy(absl::Seconds(2));  // The longest pause.
      EXPECT_TRUE(endless->granted()) << endless->status();
    }
  }
}

TEST_P(OutageTest, AnOutageInTheMiddleOfAWaitIsNoError) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto pending = AskFar("a", {.acquire_timeout = absl::Seconds(30)});
  clock_.AdvanceBy(absl::Seconds(10));
  link_->Will({}, Fate::kUnavailable);
  EXPECT_TRUE(held->Release().ok());
  clock_.AdvanceBy(absl::Seconds(15));
  link_->Will({}, Fate::kAnswered);
  clock_.AdvanceBy(absl::Seconds(5));
  EXPECT_TRUE(pending->granted()) << pending->status();
}

TEST_P(OutageTest, PatienceEndsBeforeTheWaitIfItIsSaidSo) {
  link_->Will({}, Fate::kUnavailable);
  auto pending = AskFar("a", {.outage_patience = absl::Seconds(2)});
  clock_.AdvanceBy(absl::Milliseconds(1990));
  EXPECT_FALSE(pending->result) << pending->status();
  clock_.AdvanceBy(absl::Milliseconds(11));
  EXPECT_THAT(pending->status(), HasReason(Reason::kBackendUnavailable, HasSubstr("times in 2")));
}

TEST_P(OutageTest, AnAnswerEndsTheOutage) {
  link_->Will({}, Fate::kUnavailable);
  auto pending = AskFar(
      "a", {.outage_patience = absl::Seconds(2), .retry = FixedDelay(absl::Milliseconds(100))});
  for (int i = 0; i < 5; ++i) {
    clock_.AdvanceBy(absl::Milliseconds(1500));
    link_->Will({Fate::kDenied}, Fate::kUnavailable);
    clock_.AdvanceBy(absl::Milliseconds(250));
    ASSERT_FALSE(pending->result) << pending->status();
  }
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_THAT(pending->status(), HasReason(Reason::kBackendUnavailable));
}

TEST_P(OutageTest, WhoeverDoesNotWaitIsToldAtOnce) {
  link_->Will({}, Fate::kUnavailable);
  EXPECT_THAT(far_.TryAcquire("a"), HasReason(Reason::kBackendUnavailable));
  for (const AcquireOptions& options : {AcquireOptions{.acquire_timeout = absl::ZeroDuration()},
                                        AcquireOptions{.outage_patience = absl::ZeroDuration()}}) {
    EXPECT_THAT(far_.Acquire("a", options), HasReason(Reason::kBackendUnavailable));
    EXPECT_THAT(far_.AcquireAll({"a", "b"}, options), HasReason(Reason::kBackendUnavailable));
  }
  EXPECT_EQ(link_->obtains(), 1 + 2 + 2 * AskedOfTwo());
}

TEST_P(OutageTest, WhatNoRetryWouldMendIsToldAtOnce) {
  link_->Will({}, Fate::kRefused);
  EXPECT_THAT(far_.Acquire("a"), HasReason(Reason::kNotSupported, HasSubstr("'a'")));
  EXPECT_THAT(far_.AcquireAll({"a", "b"}), HasReason(Reason::kNotSupported, HasSubstr("'b'")));
  EXPECT_EQ(link_->obtains(), 1 + AskedOfTwo());
}

TEST_P(OutageTest, ARetryPolicyThatNeverAsksAgainEndsIt) {
  link_->Will({}, Fate::kUnavailable);
  auto pending = AskFar("a", {.retry = NoRetry()});
  EXPECT_THAT(pending->status(), HasReason(Reason::kBackendUnavailable));
}

TEST_P(OutageTest, AnswersThatTakeLongerThanTheLeaseAreAnOutage) {
  if (GetParam()) return;
  link_->Will({}, Fate::kHeld);
  auto pending = AskFar("a", {.lease = absl::Seconds(1), .outage_patience = absl::Seconds(5)});
  for (int i = 0; i < 3; ++i) {
    clock_.AdvanceBy(absl::Seconds(2));
    link_->AnswerHeld();
    EXPECT_EQ(pending->failed(), i == 2) << pending->status();
  }
  EXPECT_THAT(pending->status(), HasReason(Reason::kBackendUnknown, HasSubstr("took longer")));
}

// ---- Behind others ----

TEST_P(OutageTest, WhoeverWaitsBehindAnotherHearsWhyNobodyGetsIn) {
  std::optional<Lock> held = *locks_.Acquire("a");
  auto front = AskFar("a");
  auto before = AskFar("a", {.acquire_timeout = absl::Seconds(2)});
  clock_.AdvanceBy(absl::Seconds(1));
  link_->Will({}, Fate::kUnavailable);
  held.reset();
  auto behind = AskFar("a", {.acquire_timeout = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(before->status(), HasReason(Reason::kAcquireTimeout, HasSubstr("no route")));
  EXPECT_THAT(behind->status(), HasReason(Reason::kBackendUnavailable, HasSubstr("no route")))
      << "it failed all the time";
  EXPECT_FALSE(front->result) << front->status();
}

TEST_P(OutageTest, ThoseBehindAPatientOneAreAsImpatientAsTheySay) {
  for (const Fate fate : {Fate::kUnavailable, Fate::kCallLost, Fate::kReplyLost}) {
    link_->Will({}, Fate::kAnswered);
    std::optional<Lock> held = *locks_.Acquire("a");
    auto front = AskFar("a", {.retry = FixedDelay(absl::Hours(1))});
    std::vector<std::shared_ptr<Pending>> behind;
    for (int i = 0; i < 3; ++i) {
      behind.push_back(AskFar("a", {.outage_patience = absl::Seconds(2)}));
    }
    auto at_once = AskFar("a", {.outage_patience = absl::ZeroDuration()});
    clock_.AdvanceBy(absl::Seconds(1));
    link_->Will({}, fate);
    held.reset();
    // Of them nothing was done, whatever became of what the first asked.
    const auto is_told = HasReason(
        Reason::kBackendUnavailable,
        AllOf(HasSubstr("'a'"), HasSubstr("no r"), Not(HasSubstr("may have been executed"))));
    EXPECT_THAT(at_once->status(), is_told);
    clock_.AdvanceBy(absl::Seconds(1));
    auto late = AskFar("a", {.outage_patience = absl::Milliseconds(500)});
    auto late_at_once = AskFar("a", {.outage_patience = absl::ZeroDuration()});
    clock_.AdvanceBy(absl::Milliseconds(490));
    EXPECT_THAT(late_at_once->status(), is_told);
    EXPECT_FALSE(late->result) << late->status();
    clock_.AdvanceBy(absl::Milliseconds(20));
    EXPECT_THAT(late->status(), is_told);
    for (const auto& pending : behind) EXPECT_FALSE(pending->result) << pending->status();
    clock_.AdvanceBy(absl::Milliseconds(500));
    for (const auto& pending : behind) EXPECT_THAT(pending->status(), is_told);
    EXPECT_FALSE(front->result) << front->status();
    link_->Will({}, Fate::kAnswered);
    clock_.AdvanceBy(absl::Hours(1));
    EXPECT_TRUE(front->granted()) << front->status();
  }
}

TEST_P(OutageTest, PatiencesRunSideBySide) {
  std::optional<Lock> held = *locks_.Acquire("a");
  std::vector<std::shared_ptr<Pending>> all;
  for (int i = 0; i < 4; ++i) all.push_back(AskFar("a", {.outage_patience = absl::Seconds(2 + i)}));
  clock_.AdvanceBy(absl::Minutes(1));
  link_->Will({}, Fate::kUnavailable);
  held.reset();
  const absl::Time began = clock_.Now();
  for (size_t i = 0; i < all.size(); ++i) {
    const absl::Time end = began + absl::Seconds(2 + i);
    clock_.AdvanceTo(end - absl::Milliseconds(10));
    EXPECT_FALSE(all[i]->result) << all[i]->status();
    clock_.AdvanceTo(end + absl::Milliseconds(10));
    EXPECT_THAT(all[i]->status(), HasReason(Reason::kBackendUnavailable));
  }
}

TEST_P(OutageTest, AnAnswerToOneEndsTheOutageOfThoseBehind) {
  std::optional<Lock> held = *locks_.Acquire("a");
  auto front = AskFar("a", {.retry = FixedDelay(absl::Milliseconds(100))});
  auto behind = AskFar("a", {.outage_patience = absl::Seconds(2)});
  for (int i = 0; i < 5; ++i) {
    link_->Will({}, Fate::kUnavailable);
    clock_.AdvanceBy(absl::Milliseconds(1500));
    link_->Will({Fate::kDenied}, Fate::kUnavailable);
    clock_.AdvanceBy(absl::Milliseconds(250));
    ASSERT_FALSE(behind->result) << behind->status();
  }
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_THAT(behind->status(), HasReason(Reason::kBackendUnavailable));
  EXPECT_FALSE(front->result) << front->status();
}

TEST_P(OutageTest, AnOutageThatAnotherHasMetIsFollowedByTheFirst) {
  for (const bool passes : {false, true}) {
    std::optional<Lock> held = *locks_.Acquire("a");
    link_->Will({}, Fate::kDenied);
    auto front = AskFar("a", {.max_attempts = 2, .retry = FixedDelay(absl::Hours(1))});
    auto behind = AskFar("a", {.outage_patience = absl::Seconds(2)});
    clock_.AdvanceBy(absl::Seconds(1));
    link_->Will({}, Fate::kUnavailable);
    auto passer_by = AskFar("a", {.acquire_timeout = absl::ZeroDuration()});
    EXPECT_THAT(passer_by->status(), HasReason(Reason::kBackendUnavailable));
    if (passes) link_->Will({}, Fate::kDenied);
    clock_.AdvanceBy(absl::Milliseconds(2010));
    EXPECT_EQ(behind->failed(), !passes) << behind->status();
    clock_.AdvanceBy(absl::Minutes(30));
    EXPECT_FALSE(front->result) << "to look is no attempt: " << front->status();
    link_->Will({}, Fate::kAnswered);
    held.reset();
    clock_.AdvanceBy(absl::Hours(1));
    EXPECT_TRUE(front->granted()) << front->status();
  }
}

TEST_P(OutageTest, AnOlderQuestionThatFailsBeginsNoOutageBeforeTheLastAnswer) {
  if (GetParam()) return;
  std::optional<Lock> held = *locks_.Acquire("a");
  auto front = AskFar("a", {.retry = FixedDelay(absl::Milliseconds(100))});
  auto behind = AskFar("a", {.outage_patience = absl::Seconds(5)});
  link_->Will({Fate::kFailsLater, Fate::kDenied}, Fate::kUnavailable);
  clock_.AdvanceBy(absl::Seconds(7));
  EXPECT_THAT(AskFar("a", {.acquire_timeout = absl::ZeroDuration()})->status(),
              HasReason(Reason::kAcquireTimeout));
  clock_.AdvanceBy(absl::Seconds(1));
  link_->AnswerHeld();
  clock_.AdvanceBy(absl::Seconds(4));
  EXPECT_FALSE(behind->result) << behind->status();
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_THAT(behind->status(), HasReason(Reason::kBackendUnavailable));
}

TEST_P(OutageTest, WhatFailsForOneThatHasGivenUpCountsForThoseBehind) {
  if (GetParam()) return;
  std::optional<Lock> held = *locks_.Acquire("a");
  auto behind = AskFar("a", {.outage_patience = absl::Seconds(2)});
  link_->Will({}, Fate::kFailsLater);
  // Each comes first, and has given up by the time that the backend's failure to answer it is
  // known. Then there is another one.
  std::vector<std::shared_ptr<Pending>> urgent;
  for (int i = 0; i < 10; ++i) {
    EXPECT_FALSE(behind->result) << behind->status();
    urgent.push_back(AskFar("a", {.priority = i + 1, .acquire_timeout = absl::Milliseconds(500)}));
    clock_.AdvanceBy(absl::Milliseconds(250));
    if (i == 0) continue;
    EXPECT_TRUE(urgent[i - 1]->failed());
    link_->AnswerHeld(1);
  }
  EXPECT_THAT(behind->status(), HasReason(Reason::kBackendUnavailable, HasSubstr("no route")));
}

TEST_P(OutageTest, AnAnswerThatIsTooLateForOneIsNoOutageOfThoseBehind) {
  if (GetParam()) return;
  link_->Will({}, Fate::kHeld);
  auto front = AskFar("a", {.lease = absl::Seconds(1), .acquire_timeout = absl::Seconds(9)});
  auto joins = AskFar("a", {.outage_patience = absl::ZeroDuration()});
  clock_.AdvanceBy(absl::Seconds(2));
  link_->AnswerHeld();
  EXPECT_FALSE(joins->result) << joins->status();
  auto behind = AskFar("a", {.outage_patience = absl::ZeroDuration()});
  for (int i = 0; i < 3; ++i) {
    clock_.AdvanceBy(absl::Seconds(2));
    link_->AnswerHeld();
    EXPECT_FALSE(behind->result) << behind->status();
  }
}

TEST_P(OutageTest, TheObserverIsToldOnce) {
  const auto stats = std::make_shared<StatsObserver>();
  LockManager far = *LockManager::Create(link_, {.clock = &clock_, .observer = stats});
  link_->Will({}, Fate::kUnavailable);
  auto pending = Ask(far, "a", {.acquire_timeout = absl::Seconds(3)});
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_TRUE(pending->failed());
  EXPECT_THAT(stats->PrometheusText(), HasSubstr("reason=\"BackendUnavailable\"} 1"));
}

TEST_P(OutageTest, TransactionsAreAsPatient) {
  int resource = 0;
  Locker locker(far_, "a", resource, {.acquire_timeout = absl::Seconds(30)});
  const auto body = [](int& number, TransactionContext&) -> Transaction<void> {
    ++number;
    co_return;
  };
  link_->Will({}, Fate::kUnavailable);
  TransactionHandle<void> transaction = locker.Start(body);
  clock_.AdvanceBy(absl::Seconds(20));
  EXPECT_FALSE(transaction.done());
  link_->Will({}, Fate::kAnswered);
  clock_.AdvanceBy(absl::Seconds(10));
  ASSERT_TRUE(transaction.done());
  EXPECT_TRUE(transaction.Wait().ok());
  EXPECT_EQ(resource, 1);
}

// ---- Sets ----

TEST_P(OutageTest, ASetIsAsPatient) {
  for (const Fate fate : {Fate::kUnavailable, Fate::kReplyLost}) {
    link_->Will({Fate::kAnswered, fate, Fate::kAnswered}, fate);
    auto set = AskAllFar({"a", "b", "c"}, {.acquire_timeout = absl::Seconds(30)});
    clock_.AdvanceBy(absl::Seconds(20));
    ASSERT_FALSE(set->result) << set->status();
    link_->Will({}, Fate::kAnswered);
    clock_.AdvanceBy(absl::Seconds(10));
    ASSERT_TRUE(set->granted()) << set->status();
    set->result.reset();
    EXPECT_FALSE(locks_.IsBusy());
  }
}

TEST_P(OutageTest, APatientSetEndsInTime) {
  link_->Will({Fate::kAnswered}, Fate::kUnavailable);
  auto set = AskAllFar({"a", "b"}, {.outage_patience = absl::Seconds(2)});
  clock_.AdvanceBy(absl::Milliseconds(1990));
  EXPECT_FALSE(set->result) << set->status();
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_THAT(set->status(), HasReason(Reason::kBackendUnavailable,
                                       AllOf(HasSubstr("'a', 'b'"), HasSubstr("no route"),
                                             HasSubstr("times in "))));
  EXPECT_FALSE(locks_.IsBusy());
}

TEST_P(OutageTest, ASetsPatienceIsOneThoughItBeginsAnew) {
  // What it holds is lost again and again while it waits for the rest.
  link_->Will({Fate::kAnswered}, Fate::kUnavailable);
  auto set = AskAllFar(
      {"a", "b"},
      {.lease = absl::Seconds(1), .auto_renew = false, .outage_patience = absl::Seconds(5)});
  clock_.AdvanceBy(absl::Milliseconds(4900));
  EXPECT_FALSE(set->result) << set->status();
  clock_.AdvanceBy(absl::Milliseconds(200));
  EXPECT_THAT(set->status(), HasReason(Reason::kBackendUnavailable));
}

TEST_P(OutageTest, AMemberWhoseOutcomeIsUnknownMakesTheSetsUnknown) {
  for (const auto& fates : {std::deque<Fate>{Fate::kUnavailable, Fate::kReplyLost},
                            std::deque<Fate>{Fate::kReplyLost, Fate::kUnavailable},
                            std::deque<Fate>{Fate::kReplyLost, Fate::kRefused},
                            std::deque<Fate>{Fate::kRefused, Fate::kReplyLost}}) {
    if (AskedOfTwo() == 1 && fates.front() != Fate::kReplyLost) continue;  // The first decides.
    for (const AcquireOptions& options : {AcquireOptions{.acquire_timeout = absl::ZeroDuration()},
                                          AcquireOptions{.acquire_timeout = absl::Seconds(3)},
                                          AcquireOptions{.outage_patience = absl::Seconds(1)}}) {
      link_->Will(fates, Fate::kUnavailable);
      auto set = AskAllFar({"a", "b"}, options);
      clock_.AdvanceBy(absl::Seconds(3));
      EXPECT_THAT(set->status(), HasReason(Reason::kBackendUnknown, HasSubstr("no reply")));
      EXPECT_FALSE(locks_.IsBusy());
    }
  }
}

TEST_P(OutageTest, ASetThatWaitsBehindAnotherIsAsImpatient) {
  std::optional<Lock> held = *locks_.Acquire("b");
  auto front = AskFar("b");
  auto set = AskAllFar({"a", "b"}, {.outage_patience = absl::Seconds(2)});
  clock_.AdvanceBy(absl::Seconds(1));
  link_->Will({}, Fate::kUnavailable);
  held.reset();
  clock_.AdvanceBy(absl::Milliseconds(1990));
  EXPECT_FALSE(set->result) << set->status();
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_THAT(set->status(), HasReason(Reason::kBackendUnavailable,
                                       AllOf(HasSubstr("'a', 'b'"), HasSubstr("no route"))));
  EXPECT_FALSE(locks_.IsBusy("a"));
  EXPECT_FALSE(front->result) << front->status();
}

TEST_P(OutageTest, ASetThatMayStillHoldAPartIsNeitherUnavailableNorRefused) {
  for (const Fate fate : {Fate::kUnavailable, Fate::kRefused}) {
    for (const absl::Status& failure :
         {BackendUnavailableError("cut off"), BackendUnknownError("cut off"),
          BackendRefusedError("cut off"), absl::InternalError("cut off")}) {
      link_->Will({Fate::kAnswered}, fate);
      link_->release_failure = failure;
      auto set = AskAllFar(
          {"a", "b"},
          {.lease = absl::Seconds(9), .auto_renew = false, .outage_patience = absl::Seconds(2)});
      clock_.AdvanceBy(absl::Milliseconds(2010));
      EXPECT_THAT(set->status(),
                  HasReason(Reason::kBackendUnknown,
                            AllOf(HasSubstr("'a', 'b'"), HasSubstr("cut off"), HasSubstr("on 'a'"),
                                  HasSubstr(fate == Fate::kRefused ? "not on this" : "no route"))));
      EXPECT_TRUE(locks_.IsBusy("a"));
      link_->release_failure = absl::OkStatus();
      clock_.AdvanceBy(absl::Seconds(9));
    }
  }
}

TEST_P(OutageTest, ASetThatMayStillHoldWhatItGaveBackBeforeSaysSo) {
  if (GetParam()) return;  // There, it takes nothing behind the first that is missing.
  for (const bool timeout : {false, true}) {
    link_->Will({}, Fate::kAnswered);
    std::optional<Lock> held = *locks_.Acquire("b");
    link_->release_failure = BackendUnavailableError("cut off");
    link_->fails_for = "c";
    auto set =
        AskAllFar({"a", "b", "c"},
                  {.lease = absl::Seconds(9),
                   .auto_renew = false,
                   .acquire_timeout = timeout ? absl::Seconds(5) : absl::InfiniteDuration(),
                   .outage_patience = timeout ? absl::InfiniteDuration() : absl::Seconds(2)});
    link_->release_failure = absl::OkStatus();
    if (!timeout) link_->Will({}, Fate::kUnavailable);
    clock_.AdvanceBy(absl::Seconds(5));
    EXPECT_THAT(set->status(),
                HasReason(Reason::kBackendUnknown,
                          AllOf(HasSubstr("cut off"), HasSubstr("on 'c'"),
                                HasSubstr(timeout ? "acquire_timeout" : "no route"))));
    EXPECT_TRUE(locks_.IsBusy("c"));
    EXPECT_FALSE(locks_.IsBusy("a"));
    held.reset();
    clock_.AdvanceBy(absl::Seconds(9));
  }
}

TEST_P(OutageTest, ASetWaitsToHearThatNothingWasDone) {
  if (GetParam()) return;  // There, everything is answered.
  for (const bool fails : {false, true}) {
    link_->Will({Fate::kAnswered}, Fate::kUnavailable);
    link_->releases_later = true;
    auto set = AskAllFar({"a", "b"}, {.outage_patience = absl::ZeroDuration()});
    EXPECT_FALSE(set->result) << set->status();
    if (fails) link_->release_failure = BackendUnavailableError("cut off");
    link_->AnswerHeld();
    EXPECT_EQ(ReasonOf(set->status()),
              fails ? Reason::kBackendUnknown : Reason::kBackendUnavailable);
    EXPECT_THAT(set->status().message(), HasSubstr(fails ? "cut off" : "no route"));
    EXPECT_EQ(locks_.IsBusy("a"), fails);
    link_->release_failure = absl::OkStatus();
    link_->releases_later = false;
  }
}

TEST_P(OutageTest, ASetWaitsForThatNoLongerThanItMay) {
  if (GetParam()) return;
  for (const Reason reason : {Reason::kAcquireTimeout, Reason::kCancelled, Reason::kShutdown}) {
    std::optional<LockManager> far = *LockManager::Create(link_, {.clock = &clock_});
    link_->Will({Fate::kAnswered}, Fate::kUnavailable);
    link_->releases_later = true;
    std::stop_source cancel;
    auto set = std::make_shared<PendingSet>();
    far->AcquireAllAsync({"a", "b"},
                         {.acquire_timeout = absl::Seconds(9),
                          .outage_patience = absl::ZeroDuration(),
                          .cancel = cancel.get_token()},
                         TellTo(set));
    clock_.AdvanceBy(absl::Seconds(8));
    EXPECT_FALSE(set->result) << set->status();
    if (reason == Reason::kCancelled) cancel.request_stop();
    if (reason == Reason::kShutdown) far.reset();
    if (reason == Reason::kAcquireTimeout) clock_.AdvanceBy(absl::Seconds(1));
    EXPECT_THAT(set->status(),
                HasReason(Reason::kBackendUnknown,
                          AllOf(HasSubstr("no route"), HasSubstr("not answered yet"))));
    link_->AnswerHeld();
    EXPECT_FALSE(locks_.IsBusy("a"));
    link_->releases_later = false;
  }
}

TEST_P(OutageTest, ABlockingSetWaitsToHearThatNothingWasDone) {
  if (GetParam()) return;
  link_->Will({Fate::kAnswered}, Fate::kUnavailable);
  link_->releases_later = true;
  std::thread other([&] {
    link_->AwaitHeld(1);
    link_->AnswerHeld();
  });
  EXPECT_THAT(far_.AcquireAll({"a", "b"}, {.outage_patience = absl::ZeroDuration()}),
              HasReason(Reason::kBackendUnavailable));
  other.join();
  EXPECT_FALSE(locks_.IsBusy());
}

TEST_P(OutageTest, ASetWithoutAttemptsLeftSaysWhatIsOpen) {
  std::deque<Fate> fates = {Fate::kReplyLost};
  if (!GetParam()) fates.push_back(Fate::kDenied);  // Of the other one.
  fates.push_back(Fate::kAnswered);
  link_->Will(std::move(fates), Fate::kDenied);
  auto set = AskAllFar({"a", "b"}, {.max_attempts = 1});
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_THAT(set->status(),
              HasReason(Reason::kBackendUnknown,
                        AllOf(HasSubstr("max_attempts are used up"), HasSubstr("no reply"))));
  EXPECT_FALSE(locks_.IsBusy());
}

TEST_P(OutageTest, WhatIsOpenOfASetIsSaidAndMakesTheEndOfTheTimeUnknown) {
  for (const Reason reason : {Reason::kAcquireTimeout, Reason::kCancelled, Reason::kShutdown}) {
    std::optional<LockManager> far = *LockManager::Create(link_, {.clock = &clock_});
    std::stop_source cancel;
    AcquireOptions options = {.cancel = cancel.get_token()};
    if (reason == Reason::kAcquireTimeout) options.acquire_timeout = absl::Seconds(3);
    link_->Will({Fate::kAnswered, Fate::kReplyLost}, Fate::kUnavailable);
    auto set = std::make_shared<PendingSet>();
    far->AcquireAllAsync({"a", "b"}, options, TellTo(set));
    clock_.AdvanceBy(absl::Seconds(2));
    ASSERT_FALSE(set->result) << set->status();
    if (reason == Reason::kCancelled) cancel.request_stop();
    if (reason == Reason::kShutdown) far.reset();
    clock_.AdvanceBy(absl::Seconds(1));
    const bool timeout = reason == Reason::kAcquireTimeout;
    EXPECT_THAT(set->status(),
                HasReason(timeout ? Reason::kBackendUnknown : reason,
                          AllOf(HasSubstr(timeout ? "acquire_timeout is over (3s)" : "'a', 'b'"),
                                HasSubstr("no route"), HasSubstr("no reply"),
                                HasSubstr("may have been executed"))));
    EXPECT_FALSE(locks_.IsBusy());
  }
}

TEST_P(OutageTest, ASetThatIsGivenUpWhileItAsksSaysSo) {
  if (GetParam()) return;
  link_->Will({Fate::kAnswered}, Fate::kHeld);
  auto set = AskAllFar({"a", "b"}, {.acquire_timeout = absl::Seconds(3)});
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_THAT(set->status(), HasReason(Reason::kAcquireTimeout, HasSubstr("not answered yet")));
  link_->AnswerHeld();
  EXPECT_FALSE(locks_.IsBusy());
}

TEST_P(OutageTest, ASetOfWhichAPartWasReleasedIsNeitherUnavailableNorRefused) {
  const absl::Status kDone;
  const absl::Status kOpen = BackendUnknownError("no reply");
  for (const absl::Status& failure :
       {BackendUnavailableError("no route"), BackendRefusedError("not of this type"),
        MakeError(Reason::kNotSupported, "not on this server"),
        absl::InternalError("out of ink")}) {
    // Of the others in the set.
    for (const absl::Status& others : {kDone, kOpen, failure}) {
      for (const std::string_view fails : {"a", "b"}) {
        for (const bool extends : {false, true}) {
          link_->Will({}, Fate::kAnswered);
          absl::StatusOr<LockSet> set = far_.AcquireAll({"a", "b"}, {.lease = absl::Seconds(9)});
          ASSERT_TRUE(set.ok()) << set.status();
          link_->fails_for = std::string(fails);
          link_->release_failure = failure;
          link_->failure_of_others = others;
          const absl::Status status = extends ? set->Extend(absl::Seconds(9)) : set->Release();
          const bool all = others == failure;
          EXPECT_EQ(ReasonOf(status), all ? ReasonOf(failure) : Reason::kBackendUnknown) << status;
          if (others != kOpen || failure.code() != absl::StatusCode::kUnavailable) {
            EXPECT_THAT(status.message(), HasSubstr(failure.message()));
          }
          if (others == kOpen) {
            EXPECT_THAT(status.message(), HasSubstr("no reply"));
          }
          link_->release_failure = link_->failure_of_others = absl::OkStatus();
          clock_.AdvanceBy(absl::Seconds(9));
        }
      }
    }
  }
}

// ---- Entering again where answers come at once ----

// A holder of this name has a lease that ends; whoever enters without one asks twice, the second
// time to learn when.
class ReentryTest : public OutageTest {
 protected:
  int Handles() {
    int handles = 0;
    backend_->Inspect(ResourceName("a"), [&](const ResourceState& now) { handles = now.handles; });
    return handles;
  }

  const AcquireOptions mine_ = {.owner = "me", .outage_patience = absl::ZeroDuration()};
};

INSTANTIATE_TEST_SUITE_P(Answers, ReentryTest, ::testing::Values(true),
                         [](const auto&) { return "AtOnce"; });

TEST_P(ReentryTest, WhatWasEnteredAndMayEndAtAnyMomentIsUnknownAndUndone) {
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.owner = "me", .lease = absl::Seconds(9)});
  ASSERT_TRUE(held.ok());
  const auto stats = std::make_shared<StatsObserver>();
  LockManager observed = *LockManager::Create(link_, {.clock = &clock_, .observer = stats});
  for (LockManager* const far : {&far_, &observed}) {
    const std::vector<std::function<absl::Status()>> calls = {
        [&] { return far->Acquire("a", mine_).status(); },
        [&] { return far->TryAcquire("a", mine_).status(); },
        [&] { return Ask(*far, "a", mine_)->status(); },
        [&] { return far->AcquireAll({"a"}, mine_).status(); },
    };
    for (const auto& call : calls) {
      for (const Fate fate : {Fate::kUnavailable, Fate::kCallLost, Fate::kReplyLost}) {
        link_->Will({Fate::kAnswered}, fate);
        EXPECT_THAT(call(), HasReason(Reason::kBackendUnknown, AllOf(HasSubstr("'a'"))));
        EXPECT_EQ(Handles(), 1) << "it is undone";
      }
    }
  }
  EXPECT_EQ(stats->acquired(), 0);
}

TEST_P(ReentryTest, APatientOneGoesOnUntilItKnows) {
  for (const bool first_fails : {false, true}) {
    absl::StatusOr<Lock> held = locks_.Acquire("a", {.owner = "me", .lease = absl::Seconds(9)});
    std::deque<Fate> fates;
    if (first_fails) fates.push_back(Fate::kUnavailable);
    fates.push_back(Fate::kAnswered);
    link_->Will(fates, Fate::kUnavailable);
    auto pending = AskFar("a", {.owner = "me"});
    clock_.AdvanceBy(absl::Seconds(1));
    EXPECT_FALSE(pending->result) << pending->status();
    link_->Will({}, Fate::kAnswered);
    clock_.AdvanceBy(absl::Seconds(1));
    ASSERT_TRUE(pending->granted()) << pending->status();
    EXPECT_EQ(pending->lock().remaining(), absl::Seconds(7));
    EXPECT_EQ(Handles(), 2);
    pending->result.reset();

    link_->Will(fates, Fate::kUnavailable);
    auto ends = AskFar("a", {.owner = "me", .outage_patience = absl::Seconds(1)});
    clock_.AdvanceBy(absl::Milliseconds(1010));
    EXPECT_THAT(ends->status(),
                HasReason(Reason::kBackendUnknown, HasSubstr("entered a hold that ends")));
    EXPECT_EQ(Handles(), 1);
  }
}

TEST_P(ReentryTest, OneThatStandsBehindOthersLearnsItAtOnce) {
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.owner = "me", .lease = absl::Seconds(9)});
  auto front = AskFar("a");
  link_->Will({Fate::kUnavailable}, Fate::kAnswered);
  auto pending = AskFar("a", {.owner = "me"});
  clock_.AdvanceBy(absl::Seconds(1));
  ASSERT_TRUE(pending->granted()) << pending->status();
  EXPECT_EQ(pending->lock().remaining(), absl::Seconds(8));
  EXPECT_FALSE(front->result);
}

TEST_P(OutageTest, ALossOfAMemberIsToldBeforeFailuresOfOthers) {
  absl::StatusOr<LockSet> set =
      far_.AcquireAll({"a", "b"}, {.lease = absl::Seconds(9), .auto_renew = false});
  ASSERT_TRUE(set.ok());
  absl::StatusOr<Lock> thief =
      locks_.Acquire("b", {.priority = 1, .preemption_grace = absl::ZeroDuration()});
  ASSERT_TRUE(thief.ok()) << thief.status();
  link_->release_failure = BackendUnavailableError("no route");
  link_->fails_for = "a";
  const Reason reason = ReasonOf(set->Release());
  EXPECT_TRUE(reason == Reason::kStolen || reason == Reason::kLost) << ReasonName(reason);
}

// ---- Cancel ----

TEST_P(OutageTest, CancelEndsACallThatDoesNotWaitForOthers) {
  if (GetParam()) return;
  const std::vector<std::function<absl::Status(std::stop_token)>> calls = {
      [&](std::stop_token cancel) { return far_.TryAcquire("a", {.cancel = cancel}).status(); },
      [&](std::stop_token cancel) {
        return far_.Acquire("a", {.acquire_timeout = absl::ZeroDuration(), .cancel = cancel})
            .status();
      },
      [&](std::stop_token cancel) {
        return far_.AcquireAll({"a"}, {.acquire_timeout = absl::ZeroDuration(), .cancel = cancel})
            .status();
      }};
  for (const auto& call : calls) {
    link_->Will({}, Fate::kHeld);
    std::stop_source cancel;
    std::thread other([&] {
      link_->AwaitHeld(1);
      cancel.request_stop();
    });
    EXPECT_THAT(call(cancel.get_token()),
                HasReason(Reason::kCancelled, HasSubstr("not answered yet")));
    other.join();
    link_->AnswerHeld();
    EXPECT_FALSE(locks_.IsBusy("a")) << "what it obtained is given back";
  }
}

// ---- The words ----

TEST(OutageWordsTest, TheLastFailureSpeaksUnlessSomethingIsOpen) {
  const absl::Time start = absl::UnixEpoch();
  internal::Outage outage;
  EXPECT_EQ(outage.ForMessage(start), "");
  outage.Note(BackendUnavailableError("no route"), start);
  EXPECT_THAT(outage.Error(start + absl::Seconds(1)),
              HasReason(Reason::kBackendUnavailable, "no route"));
  outage.Note(BackendUnavailableError("no host"), start + absl::Seconds(1));
  EXPECT_THAT(outage.Error(start + absl::Seconds(2)),
              HasReason(Reason::kBackendUnavailable, "no host (tried 2 times in 2s)"));
  EXPECT_EQ(outage.ForMessage(start + absl::Seconds(2)),
            "; the backend failed 2 times in 2s: no host");
  outage.Note(BackendUnknownError("no reply"), start);
  EXPECT_THAT(outage.Error(start + absl::Seconds(2)),
              HasReason(Reason::kBackendUnknown, "no reply (tried 3 times in 2s)"));
  outage.EndRow();
  EXPECT_EQ(outage.ForMessage(start),
            "; an attempt may have been executed, and is undone: no reply");
}

TEST(OutageWordsTest, WhatOthersHeardIsNoWordOnWhatBecameOfOnesOwn) {
  const absl::Time start = absl::UnixEpoch();
  internal::Outage others;
  others.Note(BackendUnavailableError("no route"), start);
  others.Note(BackendUnknownError("no reply"), start);
  internal::Outage outage;
  outage.NoteOfOthers(others);
  EXPECT_FALSE(outage.unsettled());
  EXPECT_THAT(outage.Error(start + absl::Seconds(2)),
              HasReason(Reason::kBackendUnavailable, "no reply (tried 2 times in 2s)"));
  outage.NoteUnanswered();
  EXPECT_TRUE(outage.unsettled());
  EXPECT_FALSE(outage.ended_unknown());
  outage.Note(others);
  EXPECT_TRUE(outage.ended_unknown());

  internal::Outage own;
  own.Note(BackendUnavailableError("no host"), start);
  own.NoteOfOthers(others);
  EXPECT_EQ(own.failures(), 1);
}

}  // namespace
}  // namespace latchkey
