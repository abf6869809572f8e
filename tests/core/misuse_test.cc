// Calls that nothing sensible can follow: on what was moved from, and a second time on what answers
// once. They fail with a status or end the process with a message, in every build.
#include <coroutine>
#include <exception>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/coroutine.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/transaction.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::HasSubstr;
using Finish = LockManager::FinishCallback;

// A coroutine that runs as far as it comes.
struct Task {
  struct promise_type {
    Task get_return_object() { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::terminate(); }
  };
};

class MisuseTest : public LockManagerFixture {
 protected:
  MisuseTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};
using MisuseDeathTest = MisuseTest;

// ---- LockManager ----

void ExpectMovedFrom(const absl::Status& status, const std::string& call) {
  EXPECT_EQ(ReasonOf(status), Reason::kMovedFrom) << status;
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr(call));
}

TEST_F(MisuseTest, CallsOfAMovedFromManagerFailByTheirStatus) {
  LockManager moved = std::move(locks_);
  const std::vector<std::string> names = {"a", "b"};
  const std::vector<LockRequest> requests = {{.resource = "a"}};
  ExpectMovedFrom(locks_.Acquire("a").status(), "Acquire()");
  ExpectMovedFrom(locks_.Acquire("a", {.priority = 1}).status(), "Acquire()");
  ExpectMovedFrom(locks_.TryAcquire("a").status(), "TryAcquire()");
  ExpectMovedFrom(locks_.AcquireAll({"a", "b"}).status(), "AcquireAll()");
  ExpectMovedFrom(locks_.AcquireAll(names).status(), "AcquireAll()");
  ExpectMovedFrom(locks_.AcquireAll(requests).status(), "AcquireAll()");
  const auto body = [](LockContext&) { return absl::OkStatus(); };
  ExpectMovedFrom(locks_.Run("a", {}, body), "Run()");
  ExpectMovedFrom(locks_.RunAll(names, {}, body), "RunAll()");
  locks_ = std::move(moved);
  EXPECT_TRUE(locks_.Acquire("a").ok());
}

TEST_F(MisuseTest, AndByTheirCallback) {
  const LockManager moved = std::move(locks_);
  const std::vector<std::string> names = {"a", "b"};
  const std::vector<LockRequest> requests = {{.resource = "a"}};
  std::vector<absl::Status> told;
  const auto note = [&](absl::Status status) { told.push_back(std::move(status)); };
  const auto note_lock = [&](const absl::StatusOr<Lock>& lock) { note(lock.status()); };
  const auto note_set = [&](const absl::StatusOr<LockSet>& set) { note(set.status()); };
  const auto body = [](LockContext, Finish) { ADD_FAILURE(); };
  locks_.AcquireAsync("a", {}, note_lock);
  locks_.AcquireAllAsync({"a", "b"}, {}, note_set);
  locks_.AcquireAllAsync(names, {}, note_set);
  locks_.AcquireAllAsync(requests, LockOrder::kSorted, note_set);
  locks_.RunAsync("a", {}, body, note);
  locks_.RunAllAsync(names, {}, body, note);
  [](LockManager& locks, std::vector<absl::Status>& told) -> Task {
    told.push_back((co_await locks.CoAcquire("a")).status());
    told.push_back((co_await locks.CoAcquireAll({"a", "b"})).status());
  }(locks_, told);
  locks_.AcquireAsync("a", {}, nullptr);
  locks_.RunAsync("a", {}, body, nullptr);
  ASSERT_EQ(told.size(), 8u);
  for (const absl::Status& status : told) ExpectMovedFrom(status, "");
}

TEST_F(MisuseDeathTest, OtherCallsOfAMovedFromManagerEndTheProcess) {
  const LockManager moved = std::move(locks_);
  constexpr char kMessage[] = "was called on a lock manager that was moved from";
  EXPECT_DEATH(locks_.IsBusy(), kMessage);
  EXPECT_DEATH(locks_.IsBusy("a"), kMessage);
  EXPECT_DEATH(static_cast<void>(locks_.Snapshot()), kMessage);
  EXPECT_DEATH(static_cast<void>(locks_.capabilities()), kMessage);
  EXPECT_DEATH(static_cast<void>(locks_.clock()), kMessage);
  EXPECT_DEATH(static_cast<void>(locks_.executor()), kMessage);
  int resource = 0;
  EXPECT_DEATH(Locker(locks_, "a", resource), "Locker was made with a lock manager that was moved");
}

// ---- What can be had from it ----

TEST_F(MisuseTest, AMovedFromLockOrSetIsEmpty) {
  Lock lock = *locks_.Acquire("a");
  LockSet set = *locks_.AcquireAll({"b", "c"});
  const Lock lock_now = std::move(lock);
  const LockSet set_now = std::move(set);
  const auto check = [](auto& empty) {
    EXPECT_EQ(empty.state(), LockState::kEmpty);
    EXPECT_FALSE(empty.IsHeld());
    EXPECT_EQ(empty.remaining(), absl::ZeroDuration());
    EXPECT_FALSE(empty.stop_token().stop_possible());
    empty.OnYieldRequested([] {});
    empty.OnLost([](LockState) {});
    EXPECT_EQ(ReasonOf(empty.Extend(absl::Seconds(1))), Reason::kNotHeld);
    EXPECT_EQ(ReasonOf(empty.Release()), Reason::kNotHeld);
    absl::Status told;
    empty.ReleaseAsync([&](absl::Status status) { told = std::move(status); });
    EXPECT_EQ(ReasonOf(told), Reason::kNotHeld);
    const NonPreemptibleScope scope(empty);
  };
  check(lock);
  check(set);
  EXPECT_EQ(lock.fencing_token(), 0u);
  EXPECT_TRUE(lock.acquisition().IsNone());
  EXPECT_EQ(set.fencing_token("b"), 0u);
  EXPECT_TRUE(set.resources().empty());
}

TEST_F(MisuseTest, AContextThatIsMovedFromIsTheSameContext) {
  EXPECT_TRUE(locks_
                  .Run("a", {},
                       [](LockContext& context) {
                         const LockContext kept = std::move(context);
                         EXPECT_EQ(context.fencing_token(), kept.fencing_token());
                         EXPECT_TRUE(context.stop_token().stop_possible());
                         const NonPreemptibleScope scope(context);
                         return context.CheckPoint();
                       })
                  .ok());
}

TEST_F(MisuseTest, AHandleOrALockerThatIsMovedFromIsAnotherOfTheSame) {
  int number = 7;
  Locker numbers(locks_, "number", number);
  const Locker moved_locker = std::move(numbers);
  const auto read = [](int& value, TransactionContext& ctx) -> Transaction<int> {
    EXPECT_NE(ctx.fencing_token(), 0u);
    co_return value;
  };
  auto run = numbers.Start(read);
  auto moved = std::move(run);
  EXPECT_TRUE(run.done());
  run.Cancel();
  int told = 0;
  run.OnDone([&](const absl::StatusOr<int>& value) { told = *value; });
  EXPECT_EQ(told, 7);
  EXPECT_EQ(ReasonOf(moved.Wait().status()), Reason::kNotHeld) << "taken once";
}

TEST_F(MisuseTest, AnAwaiterThatWasMovedFromLocksNothing) {
  std::vector<absl::Status> told;
  [](LockManager& locks, std::vector<absl::Status>& told) -> Task {
    const std::string named = "b" + std::string(100, 'x');
    auto temporary = locks.CoAcquire("a" + std::string(100, 'x'));
    auto moved_temporary = std::move(temporary);
    told.push_back((co_await std::move(temporary)).status());
    told.push_back((co_await std::move(moved_temporary)).status());
    auto one = locks.CoAcquire(named);
    auto moved = std::move(one);
    told.push_back((co_await std::move(one)).status());
    told.push_back((co_await std::move(moved)).status());
    auto all = locks.CoAcquireAll({"a", "b"});
    auto moved_all = std::move(all);
    told.push_back((co_await std::move(all)).status());
    told.push_back((co_await std::move(moved_all)).status());
  }(locks_, told);
  ASSERT_EQ(told.size(), 6u);
  for (size_t i = 0; i < told.size(); i += 2) {
    ExpectMovedFrom(told[i], "an awaiter was awaited after it was moved from");
    EXPECT_TRUE(told[i + 1].ok()) << told[i + 1];
  }
  ExpectNothingLeft();
}

TEST_F(MisuseDeathTest, AnAwaiterThatIsMovedWhileItIsAwaitedEndsTheProcess) {
  constexpr char kMessage[] = "an awaiter was awaited after it was moved from, or moved while";
  const auto move_while_awaited = [](auto ask, auto end_it) {
    using Awaiter = decltype(ask());
    Awaiter* awaited = nullptr;
    [&]() -> Task {
      Awaiter awaiter = ask();
      awaited = &awaiter;
      static_cast<void>(co_await awaiter);
    }();
    const Awaiter moved = std::move(*awaited);
    end_it();
  };
  absl::StatusOr<Lock> holder = locks_.Acquire("a");
  const auto release = [&] { holder->Release().IgnoreError(); };
  const auto one = [&] { return locks_.CoAcquire("a"); };
  EXPECT_DEATH(move_while_awaited(one, release), kMessage);
  const auto both = [&] { return locks_.CoAcquireAll({"a", "b"}); };
  EXPECT_DEATH(move_while_awaited(both, release), kMessage);
  std::optional<Completion<int>> done;
  const auto start = [&](Completion<int> call) { done.emplace(std::move(call)); };
  const auto answer = [&] { return AwaitCallback<int>(start); };
  EXPECT_DEATH(move_while_awaited(answer, [&] { (*done)(1); }), kMessage);
}

TEST_F(MisuseDeathTest, AnAwaiterOfACallbackThatWasMovedFromEndsTheProcess) {
  const auto await_it = []() -> Task {
    auto awaiter = AwaitCallback<int>([](Completion<int>) {});
    auto moved = std::move(awaiter);
    co_await std::move(awaiter);
  };
  EXPECT_DEATH(await_it(), "moved from");
}

// ---- What answers once ----

TEST_F(MisuseDeathTest, ASecondCallOfACompletionEndsTheProcess) {
  std::optional<Completion<int>> done;
  [](std::optional<Completion<int>>& done) -> Task {
    co_await AwaitCallback<int>([&](Completion<int> call) { done.emplace(std::move(call)); });
  }(done);
  (*done)(1);
  EXPECT_DEATH((*done)(2), "a Completion was called twice, or after it was moved from");
}

TEST_F(MisuseDeathTest, ASecondCallOfARecoveryEndsTheProcess) {
  int number = 7;
  Locker numbers(locks_, "number", number);
  std::optional<Recovery<void, int>> recovery;
  auto run = numbers.Start(
      [](int&, TransactionContext& ctx) -> Transaction<void> {
        co_await ctx.Interruptible(ctx.Sleep(absl::Hours(1)));
      },
      [&](Recovery<void, int> asked) { recovery.emplace(std::move(asked)); });
  { auto thief = Ask("number", {.priority = 1}); }
  ASSERT_TRUE(recovery);
  (*recovery)(Reject(absl::NotFoundError("x")));
  EXPECT_EQ(run.Wait().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(recovery->loss().reason, Reason::kYieldRequested);
  EXPECT_DEATH((*recovery)(Resume()), "a Recovery was called twice, or after it was moved from");
}

// ---- Functions that are none ----

TEST_F(MisuseTest, ATransactionWithoutABodyIsRefused) {
  int number = 7;
  Locker numbers(locks_, "number", number);
  const auto empty = [](int&, TransactionContext&) { return Transaction<int>(); };
  const absl::Status none = numbers.Start(empty).Wait().status();
  EXPECT_EQ(ReasonOf(none), Reason::kInvalidArgument);
  EXPECT_THAT(none.message(), HasSubstr("'number'"));

  const auto sleeps = [](int&, TransactionContext& ctx) -> Transaction<void> {
    co_await ctx.Interruptible(ctx.Sleep(absl::Hours(1)));
  };
  auto replaced =
      numbers.Start(sleeps, [](const Loss&) { return Replace(TransactionBody<void, int>()); });
  { auto thief = Ask("number", {.priority = 1}); }
  EXPECT_EQ(ReasonOf(replaced.Wait()), Reason::kInvalidArgument);

  auto rejected =
      numbers.Start(sleeps, absl::AnyInvocable<void(Recovery<void, int>)>());  // No handler.
  { auto thief = Ask("number", {.priority = 1}); }
  EXPECT_EQ(ReasonOf(rejected.Wait()), Reason::kYieldRequested);
  ExpectNothingLeft();
}

}  // namespace
}  // namespace latchkey
