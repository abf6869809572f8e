// What AcquireAll and LockSet promise.
#include "latchkey/core/lock_set.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class LockSetTest : public LockManagerFixture {};

TEST_F(LockSetTest, TakesAllAndReleasesAllAtTheEndOfScope) {
  {
    absl::StatusOr<LockSet> set = locks_.AcquireAll({"b", "a", "c"});
    ASSERT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(set->size(), 3u);
    EXPECT_EQ(set->state(), LockState::kHeld);
    EXPECT_GT(set->fencing_token("b"), 0u);
    EXPECT_EQ(set->fencing_token("d"), 0u);
    for (const char* name : {"a", "b", "c"}) EXPECT_TRUE(locks_.IsBusy(name));
  }
  ExpectNothingLeft();
}

// Looking may be what brings the news of a loss, and its callback may drop what is looked at.
TEST_F(LockSetTest, MayBeDestroyedByACallbackThatALookSetsOff) {
  std::optional<LockSet> set;
  std::optional<Lock> lock;
  LockState seen = LockState::kEmpty;
  absl::Duration left = absl::InfiniteDuration();
  // Before the timers of the leases, at the same moment.
  clock_.RunAt(clock_.Now() + absl::Seconds(10), [&] {
    seen = set->state();
    left = lock->remaining();
  });
  set = *locks_.AcquireAll({"a", "b", "c"}, {.lease = absl::Seconds(10)});
  lock = *locks_.Acquire("d", {.lease = absl::Seconds(10)});
  int lost = 0;
  set->OnLost([&](LockState) {
    ++lost;
    *set = LockSet();
  });
  lock->OnLost([&](LockState) {
    ++lost;
    *lock = Lock();
  });
  clock_.AdvanceBy(absl::Seconds(10));
  EXPECT_EQ(seen, LockState::kExpired);
  EXPECT_EQ(left, absl::ZeroDuration());
  EXPECT_EQ(lost, 2);
}

TEST_F(LockSetTest, SortsAndDropsDuplicates) {
  absl::StatusOr<LockSet> set = locks_.AcquireAll({"b", "a", "b", "a", "\xff", "A"});
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_THAT(set->resources(), ElementsAre("A", "a", "b", "\xff"));
}

TEST_F(LockSetTest, KeepsTheOrderOfTheCallerOnRequest) {
  absl::StatusOr<LockSet> set = locks_.AcquireAll({"b", "a", "b"}, {}, LockOrder::kAsGiven);
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_THAT(set->resources(), ElementsAre("b", "a"));
}

TEST_F(LockSetTest, KnowsTheTokenOfEachOfMany) {
  std::vector<LockRequest> requests;
  std::vector<std::string> names;
  for (int i = 0; i < 100; ++i) {
    names.push_back(absl::StrCat("name ", i * 37 % 100));
    requests.push_back({names.back(), {}});
  }
  const auto expect_tokens = [&](const auto& held) {
    int found = 0;
    for (const ResourceSnapshot& now : locks_.Snapshot()) {
      EXPECT_EQ(held.fencing_token(now.state.resource), now.state.token) << now.state.resource;
      ++found;
    }
    EXPECT_EQ(found, 100);
    for (const char* name : {"", "name", "name 100", "zzz"})
      EXPECT_EQ(held.fencing_token(name), 0u);
  };
  for (const LockOrder order : {LockOrder::kSorted, LockOrder::kAsGiven}) {
    absl::StatusOr<LockSet> set = locks_.AcquireAll(requests, order);
    ASSERT_TRUE(set.ok()) << set.status();
    const LockSet moved = *std::move(set);
    expect_tokens(moved);
  }
  EXPECT_TRUE(locks_
                  .RunAll(names, {},
                          [&](LockContext& context) {
                            expect_tokens(context);
                            return absl::OkStatus();
                          })
                  .ok());
}

TEST_F(LockSetTest, TakesAListMadeAtRunTime) {
  const std::vector<std::string> names = {"x", "y"};
  absl::StatusOr<LockSet> set = locks_.AcquireAll(names);
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_THAT(set->resources(), ElementsAre("x", "y"));
}

TEST_F(LockSetTest, EmptyListSucceedsWithASetOfNothing) {
  absl::StatusOr<LockSet> set = locks_.AcquireAll({});
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->size(), 0u);
  EXPECT_EQ(set->state(), LockState::kHeld);
  EXPECT_EQ(set->remaining(), absl::InfiniteDuration());
  EXPECT_FALSE(set->stop_token().stop_requested());
  EXPECT_TRUE(set->Extend(absl::Seconds(1)).ok());
  EXPECT_TRUE(set->Release().ok());
  EXPECT_EQ(set->state(), LockState::kReleased);
  auto pending = AskAll({});
  EXPECT_TRUE(pending->granted());
}

TEST_F(LockSetTest, EmptyListSucceedsWhateverItsOptions) {
  std::stop_source stopped;
  stopped.request_stop();
  const AcquireOptions options = {.max_attempts = 0, .cancel = stopped.get_token()};
  EXPECT_TRUE(locks_.AcquireAll({}, options).ok());
  EXPECT_TRUE(AskAll({}, options)->granted());
}

TEST_F(LockSetTest, EmptySetHoldsNothing) {
  LockSet set;
  EXPECT_EQ(set.state(), LockState::kEmpty);
  EXPECT_EQ(ReasonOf(set.Release()), Reason::kNotHeld);
  EXPECT_EQ(ReasonOf(set.Extend(absl::Seconds(1))), Reason::kNotHeld);
}

TEST_F(LockSetTest, BadMemberMeansThatNothingIsAcquired) {
  EXPECT_EQ(ReasonOf(locks_.AcquireAll({"a", ""}).status()), Reason::kInvalidArgument);
  EXPECT_EQ(ReasonOf(AskAll({"a", ""})->status()), Reason::kInvalidArgument);
  EXPECT_EQ(ReasonOf(locks_.AcquireAll({"a"}, {.max_attempts = 0}).status()),
            Reason::kInvalidArgument);
  ExpectNothingLeft();
}

TEST_F(LockSetTest, HoldsNothingBehindTheMemberThatItWaitsFor) {
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  auto set = AskAll({"a", "b", "c"});
  EXPECT_FALSE(set->result);
  EXPECT_FALSE(locks_.TryAcquire("a").ok());
  EXPECT_TRUE(locks_.TryAcquire("c").ok()) << "c comes after b";
  ASSERT_TRUE(b->Release().ok());
  ASSERT_TRUE(set->granted());
  EXPECT_FALSE(locks_.TryAcquire("c").ok());
  set->result.reset();
  ExpectNothingLeft();
}

// Its owner's other handle keeps what the set gives back, and lets it enter again.
TEST_F(LockSetTest, YieldsInVainNoMoreThanOnceInAMoment) {
  for (const auto& retry : {std::shared_ptr<const RetryPolicy>(), NoRetry()}) {
    std::optional<Lock> mine = *locks_.Acquire("a", {.owner = "me"});
    std::optional<Lock> other = *locks_.Acquire("b", {.owner = "other"});
    auto set = AskAll({"a", "b"}, {.owner = "me", .retry = retry});
    auto thief = Ask("a", {.priority = 5});
    EXPECT_FALSE(thief->result);
    clock_.AdvanceBy(absl::Seconds(5));
    EXPECT_FALSE(set->result);
    mine.reset();
    ASSERT_TRUE(thief->granted());
    clock_.AdvanceBy(absl::Seconds(5));
    thief->lock() = Lock();
    other.reset();
    clock_.AdvanceBy(absl::Seconds(5));
    EXPECT_TRUE(set->granted());
    set->result.reset();
    ExpectNothingLeft();
  }
}

TEST_F(LockSetTest, AfterATimeoutNothingIsHeldAndTheMessageSaysWhoIsInTheWay) {
  absl::StatusOr<Lock> b = locks_.Acquire("b", {.owner = "bob", .priority = 4});
  auto set = AskAll({"c", "a", "b"}, {.acquire_timeout = absl::Seconds(3)});
  clock_.AdvanceBy(absl::Seconds(3) - absl::Nanoseconds(1));
  EXPECT_FALSE(set->result);
  clock_.AdvanceBy(absl::Nanoseconds(1));
  ASSERT_TRUE(set->failed());
  EXPECT_EQ(ReasonOf(set->status()), Reason::kAcquireTimeout);
  EXPECT_THAT(set->status().message(), HasSubstr("'a', 'b', 'c'"));
  EXPECT_THAT(set->status().message(), HasSubstr("'b' is held by 'bob' with priority 4"));
  EXPECT_THAT(set->status().message(), HasSubstr("3s"));
  ASSERT_TRUE(b->Release().ok());
  ExpectNothingLeft();
}

TEST_F(LockSetTest, TheTimeoutIsOneOverAllMembers) {
  auto a = Ask("a", {.lease = absl::Seconds(3)});
  auto b = Ask("b", {.lease = absl::Seconds(6)});
  auto c = Ask("c", {.lease = absl::Seconds(9)});
  auto set = AskAll({"a", "b", "c"}, {.acquire_timeout = absl::Seconds(7)});
  clock_.AdvanceBy(absl::Seconds(7));
  EXPECT_EQ(ReasonOf(set->status()), Reason::kAcquireTimeout);
  EXPECT_TRUE(locks_.TryAcquire("a").ok());
  EXPECT_TRUE(locks_.TryAcquire("b").ok());
}

TEST_F(LockSetTest, WithoutTimeToWaitTheFirstAnswersDecide) {
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  EXPECT_EQ(ReasonOf(AskAll({"a", "b"}, {.acquire_timeout = absl::ZeroDuration()})->status()),
            Reason::kAcquireTimeout);
  EXPECT_EQ(
      ReasonOf(
          AskAll({"a", "b"}, {.priority = 1, .acquire_timeout = absl::ZeroDuration()})->status()),
      Reason::kAcquireTimeout);
  EXPECT_EQ(ReasonOf(AskAll({"a", "b"}, {.max_attempts = 1})->status()),
            Reason::kAttemptsExhausted);
  EXPECT_EQ(b->state(), LockState::kHeld);
  EXPECT_TRUE(AskAll({"a", "c"}, {.acquire_timeout = absl::ZeroDuration()})->granted());
}

TEST_F(LockSetTest, CancelledByStopToken) {
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  std::stop_source source;
  auto set = AskAll({"a", "b"}, {.cancel = source.get_token()});
  EXPECT_FALSE(set->result);
  source.request_stop();
  EXPECT_EQ(ReasonOf(set->status()), Reason::kCancelled);
  EXPECT_FALSE(locks_.IsBusy("a"));
  EXPECT_EQ(ReasonOf(locks_.AcquireAll({"x"}, {.cancel = source.get_token()}).status()),
            Reason::kCancelled);
}

TEST_F(LockSetTest, DestroyingTheManagerEndsTheWait) {
  std::optional<LockManager> other = NewManager();
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  auto set = std::make_shared<PendingSet>();
  other->AcquireAllAsync({"a", "b"}, {}, TellTo(set));
  EXPECT_FALSE(set->result);
  other.reset();
  EXPECT_EQ(ReasonOf(set->status()), Reason::kShutdown);
  EXPECT_FALSE(locks_.IsBusy("a"));
}

// ---- On the thief's side ----

TEST_F(LockSetTest, AnExecutorThatDropsItsTasksEndsTheWait) {
  // Runs what it is given at once, until it is closed.
  class Closing : public Executor {
   public:
    void Execute(Task task) override {
      if (!closed_) task();
    }
    void Close() { closed_ = true; }

   private:
    bool closed_ = false;
  };
  Closing executor;
  LockManager locks = NewManager({.executor = &executor});
  absl::StatusOr<Lock> held = locks_.Acquire("b");
  auto alive = std::make_shared<int>();
  int told = 0;
  locks.AcquireAllAsync({"a", "b"}, {}, [&told, alive](absl::StatusOr<LockSet>) { ++told; });
  EXPECT_TRUE(locks_.IsBusy("a"));
  executor.Close();
  ASSERT_TRUE(held->Release().ok());
  EXPECT_EQ(told, 0);
  EXPECT_EQ(alive.use_count(), 1) << "the request is kept";
  ExpectNothingLeft();
  EXPECT_EQ(clock_.PendingTimers(), 0u);
}

TEST_F(LockSetTest, NobodyIsAskedToYieldForASetThatCannotBeHad) {
  absl::StatusOr<Lock> low = locks_.Acquire("a");
  absl::StatusOr<Lock> equal = locks_.Acquire("b", {.priority = 5});
  auto set = AskAll({"a", "b"}, {.priority = 5});
  EXPECT_EQ(low->state(), LockState::kHeld);
  ASSERT_TRUE(equal->Release().ok());
  EXPECT_FALSE(set->result);
  EXPECT_EQ(low->state(), LockState::kYielding) << "now only 'a' is missing";
  ASSERT_TRUE(low->Release().ok());
  EXPECT_TRUE(set->granted());
}

TEST_F(LockSetTest, AHolderThatIsNotPreemptibleKeepsOthersFromBeingAsked) {
  absl::StatusOr<Lock> low = locks_.Acquire("a");
  absl::StatusOr<Lock> firm = locks_.Acquire("b", {.preemptible = false});
  auto set = AskAll({"a", "b"}, {.priority = 5});
  EXPECT_EQ(low->state(), LockState::kHeld);
  ASSERT_TRUE(firm->Release().ok());
  EXPECT_EQ(low->state(), LockState::kYielding);
}

TEST_F(LockSetTest, AnEqualThatWaitsAlreadyKeepsOthersFromBeingAsked) {
  absl::StatusOr<Lock> a = locks_.Acquire("a");
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  auto first = Ask("b", {.priority = 5});
  auto set = AskAll({"a", "b"}, {.priority = 5});
  EXPECT_EQ(a->state(), LockState::kHeld);
  ASSERT_TRUE(b->Release().ok());
  ASSERT_TRUE(first->granted());
  first->result.reset();
  EXPECT_EQ(a->state(), LockState::kYielding);
}

TEST_F(LockSetTest, ReservesOneAfterTheOtherInOrder) {
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  absl::StatusOr<Lock> a = locks_.Acquire("a");
  auto set = AskAll({"b", "a", "c"}, {.priority = 1});
  EXPECT_EQ(a->state(), LockState::kYielding);
  EXPECT_EQ(b->state(), LockState::kHeld);
  ASSERT_TRUE(a->Release().ok());
  EXPECT_EQ(b->state(), LockState::kYielding);
  ASSERT_TRUE(b->Release().ok());
  EXPECT_TRUE(set->granted());
}

TEST_F(LockSetTest, AThiefThatGivesUpLeavesEverythingAsItWas) {
  absl::StatusOr<Lock> a = locks_.Acquire("a");
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  auto set = AskAll({"a", "b", "c"}, {.priority = 1, .acquire_timeout = absl::Seconds(1)});
  EXPECT_EQ(a->state(), LockState::kYielding);
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(ReasonOf(set->status()), Reason::kAcquireTimeout);
  EXPECT_EQ(a->state(), LockState::kHeld);
  EXPECT_EQ(b->state(), LockState::kHeld);
  EXPECT_FALSE(locks_.IsBusy("c"));
}

TEST_F(LockSetTest, AfterALostReservationItGivesEverythingBackAndBacksOff) {
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  auto set = AskAll({"a", "b"}, {.priority = 1, .retry = FixedDelay(absl::Seconds(2))});
  EXPECT_EQ(b->state(), LockState::kYielding);
  EXPECT_FALSE(locks_.TryAcquire("a").ok());
  auto higher = Ask("b", {.priority = 2});
  EXPECT_TRUE(locks_.TryAcquire("a").ok());
  ASSERT_TRUE(b->Release().ok());
  ASSERT_TRUE(higher->granted());
  higher->result.reset();
  EXPECT_FALSE(set->result) << "it backs off";
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_TRUE(set->granted());
}

// ---- On the victim's side ----

TEST_F(LockSetTest, AYieldOfOneIsAYieldOfTheSet) {
  absl::StatusOr<LockSet> set = locks_.AcquireAll({"a", "b", "c"});
  int asked = 0;
  set->OnYieldRequested([&] { ++asked; });
  std::stop_token stop = set->stop_token();
  EXPECT_FALSE(stop.stop_requested());
  auto thief = Ask("b", {.priority = 1});
  EXPECT_EQ(asked, 1);
  EXPECT_TRUE(stop.stop_requested());
  EXPECT_EQ(set->state(), LockState::kYielding);
  auto second = Ask("c", {.priority = 1});
  EXPECT_EQ(asked, 1) << "the set yields already";
  EXPECT_FALSE(thief->result);
  ASSERT_TRUE(set->Release().ok());
  EXPECT_TRUE(thief->granted());
  EXPECT_TRUE(second->granted());
  EXPECT_FALSE(locks_.IsBusy("a"));
}

TEST_F(LockSetTest, AYieldIsToldAgainAfterItWasWithdrawn) {
  absl::StatusOr<LockSet> set = locks_.AcquireAll({"a", "b"});
  int asked = 0;
  set->OnYieldRequested([&] { ++asked; });
  auto thief = Ask("a", {.priority = 1, .acquire_timeout = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(set->state(), LockState::kHeld);
  auto next = Ask("b", {.priority = 1});
  EXPECT_EQ(asked, 2);
}

TEST_F(LockSetTest, LateListenersHearOfAYieldAndOfALoss) {
  absl::StatusOr<LockSet> set = locks_.AcquireAll({"a", "b"});
  auto first = Ask("a", {.priority = 1});
  auto second = Ask("b", {.priority = 1, .preemption_grace = absl::Seconds(1)});
  int asked = 0;
  set->OnYieldRequested([&] { ++asked; });
  EXPECT_EQ(asked, 1);
  clock_.AdvanceBy(absl::Seconds(1));
  std::vector<LockState> lost;
  set->OnLost([&](LockState state) { lost.push_back(state); });
  EXPECT_THAT(lost, ElementsAre(LockState::kStolen));
  EXPECT_EQ(set->state(), LockState::kStolen);
  EXPECT_EQ(set->remaining(), absl::ZeroDuration());
  EXPECT_EQ(ReasonOf(set->Release()), Reason::kStolen);
  EXPECT_TRUE(first->granted()) << "the other member is released all the same";
}

TEST_F(LockSetTest, ReleasesInsideItsOwnCallbacks) {
  absl::StatusOr<LockSet> set = locks_.AcquireAll({"a", "b"});
  set->OnYieldRequested([&] { EXPECT_TRUE(set->Release().ok()); });
  auto thief = AskAll({"a", "b"}, {.priority = 1});
  EXPECT_TRUE(thief->granted());

  auto last = std::make_unique<LockSet>(std::move(thief->lock()));
  std::stop_callback drop(last->stop_token(), [&] { last.reset(); });
  auto next = AskAll({"a", "b"}, {.priority = 2});
  EXPECT_TRUE(next->granted());
}

TEST_F(LockSetTest, ASetThatIsNotCompleteYieldsAtOnceAndAsksAgain) {
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  auto set = AskAll({"a", "b"});
  EXPECT_FALSE(locks_.TryAcquire("a").ok());
  auto higher = Ask("a", {.priority = 1});
  ASSERT_TRUE(higher->granted()) << "the set gives up what it had";
  ASSERT_TRUE(b->Release().ok());
  EXPECT_FALSE(set->result);
  higher->result.reset();
  EXPECT_TRUE(set->granted());
}

TEST_F(LockSetTest, LeasesBeginWhenTheSetIsComplete) {
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  auto set = AskAll({"a", "b"}, {.lease = absl::Seconds(10)});
  clock_.AdvanceBy(absl::Seconds(7));
  ASSERT_TRUE(b->Release().ok());
  ASSERT_TRUE(set->granted());
  EXPECT_EQ(set->lock().remaining(), absl::Seconds(10));
  clock_.AdvanceBy(absl::Seconds(9));
  EXPECT_TRUE(set->lock().Extend(absl::Seconds(5)).ok());
  EXPECT_EQ(set->lock().remaining(), absl::Seconds(5));
  clock_.AdvanceBy(absl::Seconds(5));
  EXPECT_EQ(set->lock().state(), LockState::kExpired);
}

TEST_F(LockSetTest, AMemberWhoseLeaseEndsDuringTheWaitIsAskedForAgain) {
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  auto set = AskAll({"a", "b"}, {.lease = absl::Seconds(10)});
  clock_.AdvanceBy(absl::Seconds(35));
  ASSERT_TRUE(b->Release().ok());
  ASSERT_TRUE(set->granted());
  EXPECT_EQ(set->lock().remaining(), absl::Seconds(10));
}

// The in-memory backend, but each grant takes two seconds.
class SlowBackend : public LockingProtocol {
 public:
  SlowBackend(std::shared_ptr<LockingProtocol> backend, SimulatedClock& clock)
      : backend_(std::move(backend)), clock_(clock) {}
  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    backend_->Obtain(request, [&](absl::StatusOr<ObtainReply> reply) {
      if (reply.ok() && reply->outcome == ObtainOutcome::kObtained) {
        ASSERT_LT(++grants_, 1000) << "it goes on for ever";
        clock_.AdvanceBy(absl::Seconds(2));
      }
      done(std::move(reply));
    });
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    backend_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    backend_->Extend(hold, lease, std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return backend_->Watch(request, std::move(on_event));
  }
  const BackendCapabilities& capabilities() const override { return backend_->capabilities(); }

 private:
  const std::shared_ptr<LockingProtocol> backend_;
  SimulatedClock& clock_;
  int grants_ = 0;
};

TEST_F(LockSetTest, LeasesThatAreOverAtOnceDoNotKeepAThreadBusy) {
  LockManager locks =
      *LockManager::Create(std::make_shared<SlowBackend>(backend_, clock_), {.clock = &clock_});
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  auto set = std::make_shared<PendingSet>();
  locks.AcquireAllAsync(
      {"a", "b"}, {.lease = absl::Seconds(1), .acquire_timeout = absl::Minutes(1)}, TellTo(set));
  EXPECT_FALSE(set->result);
  ASSERT_TRUE(b->Release().ok());
  EXPECT_FALSE(set->granted());
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_TRUE(set->failed()) << "it was not granted what is over";
  ExpectNothingLeft();
}

// ---- Members with options of their own ----

TEST_F(LockSetTest, MembersMayHaveOwnersPrioritiesAndOptionsOfTheirOwn) {
  absl::StatusOr<Lock> mine = locks_.Acquire("a", {.owner = "me"});
  absl::StatusOr<Lock> low = locks_.Acquire("b", {.priority = 1});
  auto set = std::make_shared<PendingSet>();
  locks_.AcquireAllAsync({{.resource = "a", .options = {.owner = "me"}},
                          {.resource = "b", .options = {.owner = "you", .priority = 2}},
                          {.resource = "c", .options = {.preemptible = false}}},
                         LockOrder::kSorted, TellTo(set));
  EXPECT_EQ(low->state(), LockState::kYielding);
  ASSERT_TRUE(low->Release().ok());
  ASSERT_TRUE(set->granted());
  EXPECT_EQ(set->lock().fencing_token("a"), mine->fencing_token());
  auto thief = Ask("c", {.priority = 9});
  EXPECT_EQ(set->lock().state(), LockState::kHeld);
}

TEST_F(LockSetTest, TheShortestTimeoutOfTheMembersCounts) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto set = std::make_shared<PendingSet>();
  locks_.AcquireAllAsync({{.resource = "a", .options = {.acquire_timeout = absl::Seconds(9)}},
                          {.resource = "b", .options = {.acquire_timeout = absl::Seconds(2)}}},
                         LockOrder::kSorted, TellTo(set));
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_EQ(ReasonOf(set->status()), Reason::kAcquireTimeout);
}

// ---- Many at once ----

TEST_F(LockSetTest, SetsThatOverlapInACircleAllGetTheirTurn) {
  std::vector<std::shared_ptr<PendingSet>> sets;
  for (int round = 0; round < 10; ++round) {
    sets.push_back(AskAll({"a", "b"}));
    sets.push_back(AskAll({"b", "c"}));
    sets.push_back(AskAll({"c", "a"}));
  }
  size_t granted = 0;
  for (size_t done = 0; done < sets.size(); ++done) {
    const auto next =
        std::find_if(sets.begin(), sets.end(), [](const auto& set) { return set->granted(); });
    ASSERT_NE(next, sets.end()) << "they wait for each other after " << granted;
    ++granted;
    const std::shared_ptr<PendingSet> one = *next;
    sets.erase(next);
    sets.push_back(std::make_shared<PendingSet>());
    one->result.reset();
  }
  ExpectNothingLeft();
}

// Threads move between accounts; what they add up to would change if two were ever inside.
TEST(LockSetThreadsTest, ThreadsNeverMeetInside) {
  LockManager locks = *LockManager::Create(NewMemoryBackend());
  constexpr int kAccounts = 5;
  constexpr int kThreads = 4;
  int64_t balance[kAccounts] = {};
  std::atomic<int> failures = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 400; ++i) {
        const int from = (t + i) % kAccounts;
        const int to = (t * 3 + i * 7) % kAccounts;
        const std::vector<std::string> names = {absl::StrCat("account ", from),
                                                absl::StrCat("account ", to)};
        absl::StatusOr<LockSet> set = locks.AcquireAll(names, {.priority = i % 3});
        if (!set.ok()) {
          ++failures;
          continue;
        }
        balance[from] -= 1;
        balance[to] += 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  int64_t sum = 0;
  for (const int64_t one : balance) sum += one;
  EXPECT_EQ(sum, 0);
  EXPECT_FALSE(locks.IsBusy());
}

}  // namespace
}  // namespace latchkey
