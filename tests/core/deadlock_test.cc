// Owners that wait for each other in a cycle.
#include <memory>
#include <optional>
#include <random>
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
#include "latchkey/core/scoped_owner.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::HasSubstr;

class DeadlockTest : public LockManagerFixture {};

// The in-memory backend as one with a network would be: nothing can be inspected, and events may be
// lost (all of them, if `deaf`).
class WithoutInspect : public LockingProtocol {
 public:
  explicit WithoutInspect(std::shared_ptr<LockingProtocol> inner, bool deaf = false)
      : inner_(std::move(inner)), deaf_(deaf) {
    capabilities_ = inner_->capabilities();
    capabilities_.inspect = false;
    capabilities_.answers_at_once = false;
    capabilities_.reliable_events = false;
  }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    inner_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    inner_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    inner_->Extend(hold, lease, std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return deaf_ ? Subscription() : inner_->Watch(request, std::move(on_event));
  }
  const BackendCapabilities& capabilities() const override { return capabilities_; }

 private:
  const std::shared_ptr<LockingProtocol> inner_;
  const bool deaf_;
  BackendCapabilities capabilities_;
};

TEST_F(DeadlockTest, TheRequestThatClosesTheCircleFailsAndSaysWhoWaitsForWhom) {
  absl::StatusOr<Lock> x = locks_.Acquire("x", {.owner = "ann"});
  absl::StatusOr<Lock> y = locks_.Acquire("y", {.owner = "bob"});
  auto ann = Ask("y", {.owner = "ann"});
  EXPECT_FALSE(ann->result);
  auto bob = Ask("x", {.owner = "bob"});
  ASSERT_TRUE(bob->failed());
  EXPECT_EQ(ReasonOf(bob->status()), Reason::kDeadlock);
  EXPECT_EQ(bob->status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(bob->status().message(), HasSubstr("could not lock 'x'"));
  EXPECT_THAT(bob->status().message(),
              HasSubstr("'ann' waits for 'y', held by 'bob', who waits for 'x', held by 'ann'"));
  EXPECT_FALSE(ann->result) << "one is enough";
  ASSERT_TRUE(y->Release().ok());
  EXPECT_TRUE(ann->granted());
}

TEST_F(DeadlockTest, TheLowestPriorityOfTheCircleGivesUp) {
  absl::StatusOr<Lock> x = locks_.Acquire("x", {.owner = "ann", .priority = 9});
  absl::StatusOr<Lock> y = locks_.Acquire("y", {.owner = "bob", .priority = 9});
  auto low = Ask("y", {.owner = "ann", .priority = 2});
  auto high = Ask("x", {.owner = "bob", .priority = 3});
  EXPECT_EQ(ReasonOf(low->status()), Reason::kDeadlock);
  EXPECT_FALSE(high->result);
  ASSERT_TRUE(x->Release().ok());
  EXPECT_TRUE(high->granted());
}

TEST_F(DeadlockTest, FindsCirclesOfAnyLength) {
  constexpr int kLength = 20;
  std::vector<Lock> held;
  std::vector<std::shared_ptr<Pending>> waits;
  const auto name = [](int i) { return absl::StrCat("r", i % kLength); };
  for (int i = 0; i < kLength; ++i) {
    held.push_back(*locks_.Acquire(name(i), {.owner = absl::StrCat("o", i)}));
  }
  for (int i = 0; i < kLength; ++i) {
    waits.push_back(Ask(name(i + 1), {.owner = absl::StrCat("o", i)}));
    EXPECT_EQ(waits.back()->failed(), i == kLength - 1);
  }
  EXPECT_EQ(ReasonOf(waits.back()->status()), Reason::kDeadlock);
}

TEST_F(DeadlockTest, TheMessageOfALongCircleIsShort) {
  constexpr int kLength = 500;
  std::vector<Lock> held;
  std::vector<std::shared_ptr<Pending>> waits;
  const auto name = [](int i) { return absl::StrCat("r", i % kLength); };
  for (int i = 0; i < kLength; ++i) {
    held.push_back(*locks_.Acquire(name(i), {.owner = absl::StrCat("o", i)}));
  }
  for (int i = 0; i < kLength; ++i) {
    waits.push_back(Ask(name(i + 1), {.owner = absl::StrCat("o", i)}));
  }
  const std::string message(waits.back()->status().message());
  EXPECT_LT(message.size(), 500u) << message;
  EXPECT_THAT(message, HasSubstr(", and so on (500 owners in all), the last of whom waits for "));
}

TEST_F(DeadlockTest, FindsACircleThroughAHolderThatCameLater) {
  std::optional<Lock> first = *locks_.Acquire("x");
  absl::StatusOr<Lock> y = locks_.Acquire("y", {.owner = "bob"});
  auto ann = Ask("x", {.owner = "ann"});
  auto bob = Ask("x", {.owner = "bob"});  // Behind ann.
  first.reset();
  ASSERT_TRUE(ann->granted());
  EXPECT_FALSE(bob->result);
  auto again = Ask("y", {.owner = "ann"});
  EXPECT_EQ(ReasonOf(again->status()), Reason::kDeadlock);
}

TEST_F(DeadlockTest, FindsCirclesAcrossManagersThatShareABackend) {
  LockManager other = NewManager();
  absl::StatusOr<Lock> x = locks_.Acquire("x", {.owner = "ann"});
  absl::StatusOr<Lock> y = other.Acquire("y", {.owner = "bob"});
  auto ann = Ask("y", {.owner = "ann", .priority = -1});
  auto bob = Ask(other, "x", {.owner = "bob"});
  EXPECT_EQ(ReasonOf(ann->status()), Reason::kDeadlock) << "the lower one, of the other manager";
  EXPECT_FALSE(bob->result);
}

TEST_F(DeadlockTest, BlockedThreadsAreFreed) {
  absl::StatusOr<Lock> x = locks_.Acquire("x", {.owner = "ann"});
  absl::StatusOr<Lock> y = locks_.Acquire("y", {.owner = "bob"});
  auto ann = Ask("y", {.owner = "ann"});
  EXPECT_EQ(ReasonOf(locks_.Acquire("x", {.owner = "bob"}).status()), Reason::kDeadlock);
}

TEST_F(DeadlockTest, WhereNothingCanBeInspectedTheHoldersAreAskedForAtOnce) {
  LockManager locks = *LockManager::Create(std::make_shared<WithoutInspect>(backend_),
                                           {.clock = &clock_, .retry = NoRetry()});
  // The first link of the cycle is seen before the last owner waits, so it has to be seen again.
  constexpr int kLength = 5;
  std::vector<Lock> held;
  std::vector<std::shared_ptr<Pending>> waits;
  const auto name = [](int i) { return absl::StrCat("r", i % kLength); };
  for (int i = 0; i < kLength; ++i) {
    held.push_back(*locks.Acquire(name(i), {.owner = absl::StrCat("o", i)}));
  }
  for (int i = 0; i < kLength; ++i) {
    // Being asked about again is no attempt.
    waits.push_back(Ask(locks, name(i + 1), {.owner = absl::StrCat("o", i), .max_attempts = 3}));
    EXPECT_EQ(waits.back()->failed(), i == kLength - 1);
  }
  EXPECT_EQ(ReasonOf(waits.back()->status()), Reason::kDeadlock) << waits.back()->status();
  for (int i = 0; i + 1 < kLength; ++i) EXPECT_FALSE(waits[i]->result);
}

TEST_F(DeadlockTest, WhereNothingCanBeInspectedAHolderThatHasLeftMakesNoCircle) {
  LockManager locks =
      *LockManager::Create(std::make_shared<WithoutInspect>(backend_, /*deaf=*/true),
                           {.clock = &clock_, .retry = NoRetry()});
  absl::StatusOr<Lock> x = locks.Acquire("x", {.owner = "ann"});
  std::optional<Lock> y = *locks.Acquire("y", {.owner = "bob"});
  auto ann = Ask(locks, "y", {.owner = "ann"});
  EXPECT_FALSE(ann->result);
  // What was heard of 'y' is old by now.
  y.reset();
  absl::StatusOr<Lock> other = locks_.Acquire("y", {.owner = "cat"});
  ASSERT_TRUE(other.ok());
  auto bob = Ask(locks, "x", {.owner = "bob"});
  EXPECT_FALSE(bob->result);
  EXPECT_FALSE(ann->result);
}

TEST_F(DeadlockTest, ScopedOwnersCount) {
  std::optional<Lock> x;
  std::optional<Lock> y;
  std::shared_ptr<Pending> waits;
  std::optional<ScopedOwner> task(std::in_place, "first");
  x = *locks_.Acquire("x");
  task.emplace("second");
  y = *locks_.Acquire("y");
  waits = Ask("x");
  task.reset();
  task.emplace("first");
  EXPECT_EQ(ReasonOf(Ask("y")->status()), Reason::kDeadlock);
}

TEST_F(DeadlockTest, MembersOfASetCount) {
  absl::StatusOr<Lock> z = locks_.Acquire("z", {.owner = "bob"});
  auto ann = AskAll({"x", "z"}, {.owner = "ann"});
  EXPECT_FALSE(ann->result);
  auto bob = Ask("x", {.owner = "bob"});
  EXPECT_EQ(ReasonOf(bob->status()), Reason::kDeadlock);
}

TEST_F(DeadlockTest, SetsInTheOrderOfTheirCallersCount) {
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  absl::StatusOr<Lock> a = locks_.Acquire("a");
  auto first = std::make_shared<PendingSet>();
  auto second = std::make_shared<PendingSet>();
  const std::vector<LockRequest> ab = {{.resource = "a"}, {.resource = "c"}, {.resource = "b"}};
  const std::vector<LockRequest> ba = {{.resource = "b"}, {.resource = "d"}, {.resource = "a"}};
  locks_.AcquireAllAsync(ab, LockOrder::kAsGiven, TellTo(first));
  locks_.AcquireAllAsync(ba, LockOrder::kAsGiven, TellTo(second));
  a->Release().IgnoreError();
  EXPECT_FALSE(first->result);
  b->Release().IgnoreError();
  // Each got its first and waits for that of the other, or one came through.
  EXPECT_TRUE(first->result || second->result);
  EXPECT_EQ(first->granted() + second->granted(), 1);
}

TEST_F(DeadlockTest, ASetThatGivesWayIsNoDeadlock) {
  absl::StatusOr<Lock> y = locks_.Acquire("y", {.owner = "bob", .priority = 5});
  auto set = AskAll({"x", "y"}, {.owner = "ann"});
  EXPECT_FALSE(set->result);
  auto bob = Ask("x", {.owner = "bob", .priority = 5});
  EXPECT_TRUE(bob->granted()) << "the set gives back what it has";
  EXPECT_FALSE(set->result);
}

TEST_F(DeadlockTest, ForcedHandOverIsNoDeadlock) {
  absl::StatusOr<Lock> x = locks_.Acquire("x", {.owner = "ann"});
  absl::StatusOr<Lock> y = locks_.Acquire("y", {.owner = "bob"});
  auto ann = Ask("y", {.owner = "ann"});
  auto bob = Ask("x", {.owner = "bob", .priority = 1, .preemption_grace = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(bob->granted());
  EXPECT_FALSE(ann->result);
}

TEST_F(DeadlockTest, AnonymousOwnersFormNoCircle) {
  absl::StatusOr<Lock> x = locks_.Acquire("x");
  absl::StatusOr<Lock> y = locks_.Acquire("y");
  auto first = Ask("y");
  auto second = Ask("x");
  EXPECT_FALSE(first->result);
  EXPECT_FALSE(second->result);
}

TEST_F(DeadlockTest, CanBeSwitchedOff) {
  LockManager locks = NewManager({.detect_deadlocks = false});
  absl::StatusOr<Lock> x = locks.Acquire("x", {.owner = "ann"});
  absl::StatusOr<Lock> y = locks.Acquire("y", {.owner = "bob"});
  auto ann = Ask(locks, "y", {.owner = "ann"});
  auto bob = Ask(locks, "x", {.owner = "bob", .acquire_timeout = absl::Seconds(1)});
  EXPECT_FALSE(bob->result);
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(ReasonOf(bob->status()), Reason::kAcquireTimeout);
}

TEST_F(DeadlockTest, WhoeverGaveUpIsInNoCircle) {
  absl::StatusOr<Lock> x = locks_.Acquire("x", {.owner = "ann"});
  absl::StatusOr<Lock> y = locks_.Acquire("y", {.owner = "bob"});
  auto ann = Ask("y", {.owner = "ann", .acquire_timeout = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(ann->failed());
  auto bob = Ask("x", {.owner = "bob"});
  EXPECT_FALSE(bob->result);
}

TEST_F(DeadlockTest, WhatIsKnownOfAHolderMayBeOldAndBlamesNobody) {
  std::optional<Lock> x = *locks_.Acquire("x", {.owner = "ann"});
  absl::StatusOr<Lock> y = locks_.Acquire("y", {.owner = "bob"});
  // bob believes that ann holds x...
  auto waits = Ask("x");
  auto bob = Ask("x", {.owner = "bob"});
  // ...who has released it to an anonymous one meanwhile.
  x.reset();
  ASSERT_TRUE(waits->granted());
  auto ann = Ask("y", {.owner = "ann"});
  EXPECT_FALSE(ann->result);
  EXPECT_FALSE(bob->result);
  waits->result.reset();
  ASSERT_TRUE(bob->granted());
}

// Tasks lock two resources in random order, one after the other, and try again when they would
// deadlock. All of them come to an end, and nobody fails for any other reason.
TEST(DeadlockThreadsTest, TasksInRandomOrderAllFinish) {
  LockManager locks = *LockManager::Create(NewMemoryBackend());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&locks, t] {
      std::minstd_rand random(t + 1);
      for (int i = 0; i < 300; ++i) {
        ScopedOwner me;
        for (;;) {
          const std::string first = absl::StrCat("r", random() % 3);
          const std::string second = absl::StrCat("r", random() % 3);
          absl::StatusOr<Lock> one = locks.Acquire(first);
          ASSERT_TRUE(one.ok()) << one.status();
          absl::StatusOr<Lock> two = locks.Acquire(second);
          if (two.ok()) break;
          ASSERT_EQ(ReasonOf(two.status()), Reason::kDeadlock) << two.status();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(locks.IsBusy());
}

}  // namespace
}  // namespace latchkey
