// Re-entrancy, and who inherits an owner.
#include "latchkey/core/scoped_owner.h"

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/executor.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;

class ScopedOwnerTest : public LockManagerFixture {};

TEST_F(ScopedOwnerTest, NestedRequestsEnterTheLockThatTheTaskHolds) {
  ScopedOwner me;
  absl::StatusOr<Lock> outer = locks_.Acquire("a");
  absl::StatusOr<Lock> inner = locks_.Acquire("a");
  absl::StatusOr<Lock> tried = locks_.TryAcquire("a");
  ASSERT_TRUE(inner.ok() && tried.ok());
  EXPECT_EQ(inner->fencing_token(), outer->fencing_token());
  EXPECT_TRUE(locks_.AcquireAll({"a", "b"}).ok());
  EXPECT_TRUE(locks_.Run("a", {}, [](LockContext&) { return absl::OkStatus(); }).ok());
}

TEST_F(ScopedOwnerTest, WithoutItEachRequestIsAStranger) {
  absl::StatusOr<Lock> outer = locks_.Acquire("a");
  EXPECT_FALSE(locks_.TryAcquire("a").ok());
}

TEST_F(ScopedOwnerTest, EachScopeHasAnOwnerOfItsOwn) {
  ScopedOwner outer;
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  {
    ScopedOwner inner;
    EXPECT_NE(inner.name(), outer.name());
    EXPECT_FALSE(locks_.TryAcquire("a").ok());
  }
  EXPECT_EQ(ScopedOwner::Current(), outer.name());
  EXPECT_TRUE(locks_.TryAcquire("a").ok());
  {
    ScopedOwner nobody("");
    EXPECT_FALSE(locks_.TryAcquire("a").ok());
  }
  EXPECT_FALSE(locks_.TryAcquire("a", {.owner = "other"}).ok())
      << "an owner of its own comes first";
}

TEST_F(ScopedOwnerTest, ANamedScopeAndANamedRequestAreTheSameOwner) {
  ScopedOwner me("billing");
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  std::thread([&] { EXPECT_TRUE(locks_.TryAcquire("a", {.owner = "billing"}).ok()); }).join();
  std::thread([&] {
    EXPECT_FALSE(locks_.TryAcquire("a").ok()) << "threads do not inherit";
  }).join();
}

TEST_F(ScopedOwnerTest, CallbacksInheritTheOwnerOfTheirRequest) {
  std::optional<ScopedOwner> me(std::in_place, "me");
  absl::StatusOr<Lock> mine = locks_.Acquire("mine");
  me.reset();
  absl::StatusOr<Lock> other = locks_.Acquire("a", {.owner = "other"});
  std::string seen;
  bool entered = false;
  me.emplace("me");
  locks_.AcquireAsync("a", {}, [&](absl::StatusOr<Lock>) {
    seen = ScopedOwner::Current();
    entered = locks_.TryAcquire("mine").ok();
  });
  me.reset();
  {
    ScopedOwner stranger("stranger");
    ASSERT_TRUE(other->Release().ok());
  }
  EXPECT_EQ(seen, "me");
  EXPECT_TRUE(entered);
}

TEST_F(ScopedOwnerTest, ACallbackDoesNotInheritFromTheThreadThatHappensToRunIt) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  std::string seen = "?";
  locks_.AcquireAsync("a", {}, [&](absl::StatusOr<Lock>) { seen = ScopedOwner::Current(); });
  ScopedOwner releases;
  ASSERT_TRUE(held->Release().ok());
  EXPECT_EQ(seen, "");
}

TEST_F(ScopedOwnerTest, YieldAndLossCallbacksInherit) {
  std::string on_yield;
  std::string on_lost;
  std::optional<Lock> lock;
  {
    ScopedOwner me("me");
    lock = *locks_.Acquire("a");
    lock->OnYieldRequested([&] { on_yield = ScopedOwner::Current(); });
    lock->OnLost([&](LockState) { on_lost = ScopedOwner::Current(); });
  }
  Ask("a", {.priority = 1, .preemption_grace = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(on_yield, "me");
  EXPECT_EQ(on_lost, "me");
}

TEST_F(ScopedOwnerTest, BodiesThatFinishLaterAndSetsInherit) {
  absl::StatusOr<LockSet> held = locks_.AcquireAll({"a", "b"});
  std::string body;
  std::string done;
  std::string set;
  {
    ScopedOwner me("me");
    locks_.RunAsync(
        "a", {},
        [&](LockContext, LockManager::FinishCallback finish) {
          body = ScopedOwner::Current();
          finish(absl::OkStatus());
        },
        [&](absl::Status) { done = ScopedOwner::Current(); });
    locks_.AcquireAllAsync({"b", "c"}, {}, [&](absl::StatusOr<LockSet> locks) {
      ASSERT_TRUE(locks.ok());
      set = ScopedOwner::Current();
      EXPECT_TRUE(locks_.TryAcquire("c").ok());
    });
  }
  ASSERT_TRUE(held->Release().ok());
  EXPECT_EQ(body, "me");
  EXPECT_EQ(done, "me");
  EXPECT_EQ(set, "me");
}

TEST(ScopedOwnerThreadsTest, InheritedAcrossTheThreadsOfAPool) {
  const std::unique_ptr<Executor> pool = NewThreadPool(2);
  LockManager locks = *LockManager::Create(NewMemoryBackend(), {.executor = pool.get()});
  absl::Notification done;
  absl::Status nested = absl::UnknownError("did not run");
  {
    ScopedOwner me;
    locks.AcquireAsync("a", {}, [&](absl::StatusOr<Lock> outer) {
      auto held = std::make_shared<Lock>(*std::move(outer));
      locks.AcquireAsync("a", {}, [&, held](absl::StatusOr<Lock> inner) {
        nested = inner.status();
        pool->Execute(BindOwner([&, held] {
          if (!locks.TryAcquire("a").ok()) nested = absl::UnknownError("a task of its own");
          done.Notify();
        }));
      });
    });
  }
  done.WaitForNotification();
  EXPECT_TRUE(nested.ok()) << nested;
}

#ifndef NDEBUG
TEST(ScopedOwnerDeathTest, ADebugBuildStopsAtAnOwnerThatEndsOutOfTurn) {
  EXPECT_DEATH(
      {
        std::optional<ScopedOwner> first(std::in_place, "first");
        std::optional<ScopedOwner> second(std::in_place, "second");
        first.reset();
      },
      "out of turn");
}
#endif

// ---- Bodies with an owner of their own ----

TEST_F(ScopedOwnerTest, TheOwnerOfABodyIsInForceInIt) {
  const ScopedOwner around("around");
  const absl::Status outer = locks_.Run("a", {.owner = "me"}, [&](LockContext&) {
    EXPECT_EQ(ScopedOwner::Current(), "me");
    return locks_.Run("a", {}, [&](LockContext&) {
      EXPECT_EQ(ScopedOwner::Current(), "me");
      EXPECT_EQ(locks_.Snapshot()[0].state.handles, 2);
      return locks_.TryAcquire("a", {.owner = "around"}).status();
    });
  });
  EXPECT_EQ(ReasonOf(outer), Reason::kHeldByOther) << outer;
  EXPECT_EQ(ScopedOwner::Current(), "around");
  EXPECT_EQ(locks_.RunAll({"a", "b"}, {.owner = "me"},
                          [&](LockContext&) { return locks_.TryAcquire("b").status(); }),
            absl::OkStatus());
  ExpectNothingLeft();
}

TEST_F(ScopedOwnerTest, ABodyWithoutAnOwnerOfItsOwnRunsWithTheOneInForce) {
  const ScopedOwner around("around");
  EXPECT_EQ(locks_.Run("a", {},
                       [&](LockContext&) {
                         EXPECT_EQ(ScopedOwner::Current(), "around");
                         return locks_.TryAcquire("a").status();
                       }),
            absl::OkStatus());
}

TEST_F(ScopedOwnerTest, AnOwnerEndsWithABodyThatThrows) {
  EXPECT_THROW(static_cast<void>(locks_.Run(
                   "a", {.owner = "me"},
                   [](LockContext&) -> absl::Status { throw std::runtime_error("thrown"); })),
               std::runtime_error);
  EXPECT_EQ(ScopedOwner::Current(), "");
  ExpectNothingLeft();
}

TEST_F(ScopedOwnerTest, TheOwnerOfABodyThatFinishesLaterIsInForceInIt) {
  std::vector<LockManager::FinishCallback> bodies;
  std::vector<std::string> owners;
  const auto begin = [&](LockContext, LockManager::FinishCallback finish) {
    owners.emplace_back(ScopedOwner::Current());
    // What it hands over inherits the owner, too.
    locks_.AcquireAsync("a", {}, [&](absl::StatusOr<Lock> lock) {
      EXPECT_TRUE(lock.ok()) << lock.status();
      owners.emplace_back(ScopedOwner::Current());
    });
    bodies.push_back(std::move(finish));
  };
  const auto done = [&](const absl::Status& status) {
    EXPECT_TRUE(status.ok()) << status;
    owners.push_back("done: " + std::string(ScopedOwner::Current()));
  };
  {
    const ScopedOwner around("around");
    locks_.RunAsync("a", {.owner = "me"}, begin, done);
  }
  ASSERT_EQ(bodies.size(), 1u);
  bodies[0](absl::OkStatus());
  EXPECT_THAT(owners, ElementsAre("me", "me", "done: around"));
  owners.clear();
  locks_.RunAllAsync({"a", "b"}, {.owner = "me"}, begin, done);
  ASSERT_EQ(bodies.size(), 2u);
  bodies[1](absl::OkStatus());
  EXPECT_THAT(owners, ElementsAre("me", "me", "done: "));
  ExpectNothingLeft();
}

// ---- Re-entrancy ----

TEST_F(ScopedOwnerTest, ReentryRaisesThePriorityAndNeverLowersIt) {
  absl::StatusOr<Lock> outer = locks_.Acquire("a", {.owner = "me", .priority = 1});
  absl::StatusOr<Lock> inner = locks_.Acquire("a", {.owner = "me", .priority = 5});
  EXPECT_EQ(locks_.Snapshot()[0].state.holder_priority, 5);
  absl::StatusOr<Lock> low = locks_.Acquire("a", {.owner = "me", .priority = -3});
  EXPECT_EQ(locks_.Snapshot()[0].state.holder_priority, 5);
  auto thief = Ask("a", {.priority = 4});
  EXPECT_EQ(outer->state(), LockState::kHeld);
}

TEST_F(ScopedOwnerTest, ReentryAbandonsAYieldThatItOutranks) {
  absl::StatusOr<Lock> outer = locks_.Acquire("a", {.owner = "me"});
  auto thief = Ask("a", {.priority = 3});
  EXPECT_EQ(outer->state(), LockState::kYielding);
  absl::StatusOr<Lock> inner = locks_.Acquire("a", {.owner = "me", .priority = 9});
  EXPECT_EQ(outer->state(), LockState::kHeld);
}

TEST_F(ScopedOwnerTest, HandlesAreReleasedInAnyOrder) {
  absl::StatusOr<Lock> first = locks_.Acquire("a", {.owner = "me"});
  absl::StatusOr<Lock> second = locks_.Acquire("a", {.owner = "me"});
  absl::StatusOr<Lock> third = locks_.Acquire("a", {.owner = "me"});
  auto next = Ask("a");
  EXPECT_TRUE(second->Release().ok());
  EXPECT_TRUE(first->Release().ok());
  EXPECT_FALSE(next->result);
  EXPECT_TRUE(third->IsHeld());
  EXPECT_TRUE(third->Release().ok());
  EXPECT_TRUE(next->granted());
}

TEST_F(ScopedOwnerTest, ReentryWorksPastAFullQueueAndManyManagers) {
  LockManager other = NewManager({.admission = LimitPending({.per_resource = 0})});
  absl::StatusOr<Lock> outer = locks_.Acquire("a", {.owner = "me"});
  auto waits = Ask("a");
  EXPECT_TRUE(other.Acquire("a", {.owner = "me"}).ok());
}

}  // namespace
}  // namespace latchkey
