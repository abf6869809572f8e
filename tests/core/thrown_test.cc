// What code of the user's throws: a body's exception is its result, and a callback's goes to the
// log. Neither reaches another request, another lock or a thread that is not its own.
#include <coroutine>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/status_matchers.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/clock.h"
#include "latchkey/core/coroutine.h"
#include "latchkey/core/executor.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/transaction.h"
#include "latchkey/tests/support/error_log.h"
#include "latchkey/tests/support/lock_manager_fixture.h"
#include "latchkey/tests/support/simulated_executor.h"

namespace latchkey {
namespace {

using ::absl_testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Finish = LockManager::FinishCallback;

[[noreturn]] void Throw() { throw std::runtime_error("out of ink"); }

class ThrownTest : public LockManagerFixture {
 protected:
  // A body's exception as its result.
  static void ExpectThrown(const absl::Status& status, const std::string& resource) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInternal,
                                 AllOf(HasSubstr("out of ink"), HasSubstr("'" + resource + "'"))));
    EXPECT_EQ(ReasonOf(status), Reason::kException);
  }

  ErrorLog errors_;
};

// ---- Bodies ----

TEST_F(ThrownTest, WhatABodyThrowsIsItsResultAndReachesNobodyElse) {
  absl::StatusOr<Lock> other = locks_.Acquire("other");
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  std::vector<absl::Status> results;
  locks_.RunAsync(
      "a", {}, [](LockContext, Finish) { Throw(); },
      [&](absl::Status status) { results.push_back(std::move(status)); });
  // The body runs in here.
  EXPECT_EQ(held->Release(), absl::OkStatus());
  ASSERT_THAT(results, SizeIs(1));
  ExpectThrown(results[0], "a");
  EXPECT_FALSE(locks_.IsBusy("a"));
  EXPECT_EQ(other->Release(), absl::OkStatus());
  EXPECT_THAT(errors_.lines(), IsEmpty());
  ExpectNothingLeft();
}

TEST_F(ThrownTest, TheSameInADestructorAndForSeveralLocks) {
  std::optional<Lock> held = *locks_.Acquire("b");
  std::vector<absl::Status> results;
  locks_.RunAllAsync(
      {"a", "b"}, {}, [](LockContext, Finish) { Throw(); },
      [&](absl::Status status) { results.push_back(std::move(status)); });
  held.reset();
  ASSERT_THAT(results, SizeIs(1));
  ExpectThrown(results[0], "a");
  ExpectThrown(results[0], "b");
  ExpectNothingLeft();
}

TEST_F(ThrownTest, TheSameForABodyWithAValueAndOnAnotherThread) {
  const std::unique_ptr<Executor> pool = NewThreadPool(1);
  LockManager locks = NewManager({.executor = pool.get()});
  absl::Notification told;
  absl::StatusOr<int> result = 0;
  locks.RunAsync<int>(
      "a", {}, [](LockContext, LockManager::FinishWith<int>) { Throw(); },
      [&](absl::StatusOr<int> value) {
        result = std::move(value);
        told.Notify();
      });
  told.WaitForNotification();
  ExpectThrown(result.status(), "a");
}

TEST_F(ThrownTest, TheFirstOfAnExceptionAndAFinishCounts) {
  std::vector<absl::Status> results;
  const auto note = [&](absl::Status status) { results.push_back(std::move(status)); };
  locks_.RunAsync(
      "a", {},
      [](LockContext, Finish finish) {
        finish(absl::NotFoundError("nothing there"));
        Throw();
      },
      note);
  ASSERT_THAT(results, ElementsAre(StatusIs(absl::StatusCode::kNotFound)));
  EXPECT_THAT(errors_.lines(), ElementsAre(AllOf(HasSubstr("'a'"), HasSubstr("out of ink"))));

  Finish kept;
  locks_.RunAsync(
      "a", {},
      [&](LockContext, Finish finish) {
        kept = std::move(finish);
        Throw();
      },
      note);
  ASSERT_THAT(results, SizeIs(2));
  ExpectThrown(results[1], "a");
  kept(absl::OkStatus());
  EXPECT_THAT(results, SizeIs(2));
  ExpectNothingLeft();
}

TEST_F(ThrownTest, ABlockingBodysExceptionIsItsCallers) {
  EXPECT_THROW(
      static_cast<void>(locks_.Run("a", {}, [](LockContext&) -> absl::Status { Throw(); })),
      std::runtime_error);
  ExpectNothingLeft();
}

// ---- Callbacks ----

TEST_F(ThrownTest, CallbacksOfRequestsThatThrowAreLoggedAndTheLockGoes) {
  std::optional<Lock> held = *locks_.Acquire("b");
  locks_.AcquireAsync("a", {}, [](absl::StatusOr<Lock>) { Throw(); });
  locks_.AcquireAsync("b", {}, [](absl::StatusOr<Lock>) { Throw(); });
  locks_.AcquireAllAsync({"a", "b"}, {}, [](absl::StatusOr<LockSet>) { Throw(); });
  auto last = Ask("b");
  held.reset();
  EXPECT_TRUE(last->granted());
  last.reset();
  locks_.AcquireAllAsync({"a", ""}, {}, [](absl::StatusOr<LockSet>) { Throw(); });
  EXPECT_THAT(errors_.lines(), ElementsAre(HasSubstr("'a'"), HasSubstr("'b'"),
                                           AllOf(HasSubstr("'a', 'b'"), HasSubstr("out of ink")),
                                           AllOf(HasSubstr("'a'"), HasSubstr("out of ink"))));
  ExpectNothingLeft();
}

TEST_F(ThrownTest, CallbacksOfReleaseAndExtendThatThrowAreLogged) {
  const auto throws = [](absl::Status) { Throw(); };
  absl::StatusOr<Lock> lock = locks_.Acquire("a");
  lock->ExtendAsync(absl::Seconds(1), throws);
  lock->ReleaseAsync(throws);
  lock->ReleaseAsync(throws);  // It was released.
  absl::StatusOr<LockSet> set = locks_.AcquireAll({"b", "c"});
  set->ReleaseAsync(throws);
  set->ReleaseAsync(throws);
  Lock().ReleaseAsync(throws);
  EXPECT_THAT(errors_.lines(),
              ElementsAre(HasSubstr("'a'"), HasSubstr("'a'"), HasSubstr("'a'"),
                          HasSubstr("'b', 'c'"), HasSubstr("'b', 'c'"), HasSubstr("out of ink")));
  ExpectNothingLeft();
}

TEST_F(ThrownTest, ALockWhoseNameIsForgottenIsLoggedByItsToken) {
  const auto throws = [](absl::Status) { Throw(); };
  for (const bool listened : {false, true}) {
    absl::StatusOr<Lock> lock = locks_.Acquire("a");
    if (listened) {
      EXPECT_TRUE(lock->IsHeld());
    }
    const std::string token = absl::StrCat("fencing token ", lock->fencing_token());
    EXPECT_TRUE(lock->Release().ok());
    lock->ReleaseAsync(throws);
    lock->ExtendAsync(absl::Seconds(1), throws);
    ASSERT_THAT(errors_.lines(), SizeIs(listened ? 4 : 2));
    EXPECT_THAT(errors_.lines()[listened ? 2 : 0], HasSubstr(token));
    EXPECT_THAT(errors_.lines()[listened ? 3 : 1], HasSubstr(token));
  }
  ExpectNothingLeft();
}

TEST_F(ThrownTest, AYieldCallbackThatThrowsIsCalledAgainAndKeepsNothingFromEnding) {
  std::optional<Lock> lock = *locks_.Acquire("a");
  int calls = 0;
  lock->OnYieldRequested([&] {
    ++calls;
    Throw();
  });
  for (int i = 1; i <= 2; ++i) {
    std::stop_source stop;
    auto thief = Ask("a", {.priority = 1, .cancel = stop.get_token()});
    EXPECT_EQ(calls, i);
    stop.request_stop();
    EXPECT_EQ(lock->state(), LockState::kHeld);
  }
  EXPECT_THAT(errors_.lines(), ElementsAre(HasSubstr("'a'"), HasSubstr("'a'")));
  lock.reset();  // It would wait for a callback that runs.
  ExpectNothingLeft();
}

TEST_F(ThrownTest, TheSameForASet) {
  absl::StatusOr<LockSet> set = locks_.AcquireAll({"a", "b"}, {.lease = absl::Seconds(10)});
  int calls = 0;
  set->OnYieldRequested([&] {
    ++calls;
    Throw();
  });
  set->OnLost([](LockState) { Throw(); });
  for (int i = 1; i <= 2; ++i) {
    std::stop_source stop;
    auto thief = Ask("b", {.priority = 1, .cancel = stop.get_token()});
    EXPECT_EQ(calls, i);
    stop.request_stop();
    EXPECT_EQ(set->state(), LockState::kHeld);
  }
  clock_.AdvanceBy(absl::Seconds(10));
  EXPECT_EQ(set->state(), LockState::kExpired);
  EXPECT_THAT(errors_.lines(),
              ElementsAre(HasSubstr("'b'"), HasSubstr("'b'"), HasSubstr("OnLost")));
}

TEST_F(ThrownTest, ALossCallbackThatThrowsIsLogged) {
  std::optional<Lock> lock = *locks_.Acquire("a", {.lease = absl::Seconds(1)});
  lock->OnLost([](LockState) { Throw(); });
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(errors_.lines(), ElementsAre(AllOf(HasSubstr("OnLost"), HasSubstr("'a'"))));
  lock.reset();
  ExpectNothingLeft();
}

TEST_F(ThrownTest, TheCallbackOfABodyThatThrowsIsLogged) {
  locks_.RunAsync(
      "a", {}, [](LockContext, Finish finish) { finish(absl::OkStatus()); },
      [](absl::Status) { Throw(); });
  locks_.RunAllAsync({"a", "b"}, {}, nullptr, [](absl::Status) { Throw(); });
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.preemptible = false});
  locks_.RunAsync(
      "a", {.acquire_timeout = absl::ZeroDuration()}, [](LockContext, Finish) {},
      [](absl::Status) { Throw(); });
  EXPECT_THAT(errors_.lines(),
              ElementsAre(HasSubstr("'a'"), HasSubstr("'a', 'b'"), HasSubstr("'a'")));
}

// ---- Tasks, timers, coroutines ----

TEST_F(ThrownTest, ATaskThatThrowsKeepsNoOtherFromRunning) {
  int ran = 0;
  InlineExecutor().Execute([&] {
    InlineExecutor().Execute(Throw);
    InlineExecutor().Execute([&] { ++ran; });
    Throw();
  });
  EXPECT_EQ(ran, 1);
  EXPECT_THAT(errors_.lines(), SizeIs(2));
  {
    const std::unique_ptr<Executor> pool = NewThreadPool(1);
    pool->Execute(Throw);
    pool->Execute([&] { ++ran; });
  }
  EXPECT_EQ(ran, 2);
  EXPECT_THAT(errors_.lines(), SizeIs(3));
}

TEST_F(ThrownTest, ACallOfTheRealClockThatThrowsIsLogged) {
  absl::Notification later;
  const absl::Time now = RealClock().Now();
  RealClock().RunAt(now, Throw);
  RealClock().RunAt(now + absl::Nanoseconds(1), [&] { later.Notify(); });
  later.WaitForNotification();
  EXPECT_THAT(errors_.lines(), ElementsAre(HasSubstr("out of ink")));
}

// A coroutine type whose exceptions go to whoever resumes it. Some clangs then take the coroutine
// for still suspended where it was, and destroy what its frame held there a second time; so nothing
// may.
class Rethrowing {
 public:
  struct promise_type {
    Rethrowing get_return_object() { return Rethrowing(Handle::from_promise(*this)); }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { throw; }
  };
  Rethrowing(Rethrowing&& other) noexcept : coroutine_(std::exchange(other.coroutine_, {})) {}
  ~Rethrowing() {
    if (coroutine_) coroutine_.destroy();
  }

 private:
  using Handle = std::coroutine_handle<promise_type>;
  explicit Rethrowing(Handle coroutine) : coroutine_(coroutine) {}

  Handle coroutine_;
};

TEST_F(ThrownTest, ACoroutineThatThrowsWhenItIsResumedReachesNobody) {
  std::optional<Lock> held = *locks_.Acquire("a");
  const auto await_and_throw = [](auto& awaiter) -> Rethrowing {
    static_cast<void>(co_await awaiter);
    Throw();
  };
  auto lock = locks_.CoAcquire("a");
  const Rethrowing one = await_and_throw(lock);
  auto locks = locks_.CoAcquireAll({"a", "b"});
  const Rethrowing set = await_and_throw(locks);
  auto sleep = latchkey::SleepFor(absl::Seconds(1), clock_);
  const Rethrowing sleeper = await_and_throw(sleep);
  held.reset();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(errors_.lines(),
              ElementsAre(HasSubstr("'a'"), HasSubstr("'a', 'b'"), HasSubstr("out of ink")));
  ExpectNothingLeft();
}

// ---- Transactions ----

struct Cell {};

// Throws where it is told to.
struct Faulty {
  enum Where { kReady, kSuspend, kResume };
  Where where;
  bool await_ready() const {
    if (where == kReady) Throw();
    return false;
  }
  bool await_suspend(std::coroutine_handle<>) const {
    if (where == kSuspend) Throw();
    return false;
  }
  void await_resume() const { Throw(); }
};

class ThrownTransactionTest : public ThrownTest {
 protected:
  Cell cell_;
  Locker<Cell> cells_{locks_, "cell", cell_};
};

TEST_F(ThrownTransactionTest, WhatAnAwaitThrowsIsTheBodys) {
  for (const Faulty::Where where : {Faulty::kReady, Faulty::kSuspend, Faulty::kResume}) {
    for (const bool interruptible : {false, true}) {
      std::string caught;
      auto run = cells_.Start([&](Cell&, TransactionContext& ctx) -> Transaction<void> {
        try {
          if (interruptible) {
            co_await ctx.Interruptible(Faulty{where});
          } else {
            co_await Faulty{where};
          }
        } catch (const std::runtime_error& thrown) {
          caught = thrown.what();
        }
        co_await Faulty{where};
      });
      EXPECT_THAT(run.Wait(), StatusIs(absl::StatusCode::kInternal, HasSubstr("out of ink")));
      EXPECT_EQ(caught, "out of ink") << where << interruptible;
    }
  }
  EXPECT_THAT(errors_.lines(), IsEmpty());
  ExpectNothingLeft();
}

TEST_F(ThrownTransactionTest, WhatMakesABodyMayThrow) {
  auto run = cells_.Start([](Cell&, TransactionContext&) -> Transaction<int> { Throw(); });
  const absl::StatusOr<int> result = run.Wait();
  EXPECT_THAT(result, StatusIs(absl::StatusCode::kInternal, HasSubstr("out of ink")));
  EXPECT_EQ(ReasonOf(result.status()), Reason::kException);
  ExpectNothingLeft();
}

TEST_F(ThrownTransactionTest, AHandlerThatThrowsEndsItsTransaction) {
  const auto body = [](Cell&, TransactionContext& ctx) -> Transaction<void> {
    co_await ctx.Sleep(absl::Hours(1));
  };
  auto asked = cells_.Start(body, [](const Loss&) -> RecoveryAction<void, Cell> { Throw(); });
  auto thief = Ask("cell", {.priority = 1});
  clock_.AdvanceBy(absl::Hours(1));
  ASSERT_TRUE(thief->granted());
  EXPECT_THAT(asked.Wait(), StatusIs(absl::StatusCode::kInternal,
                                     AllOf(HasSubstr("out of ink"), HasSubstr("'cell'"))));
  thief.reset();

  // One that throws although somebody may still answer.
  std::optional<Recovery<void, Cell>> kept;
  auto handed = cells_.Start(body, [&](Recovery<void, Cell> recovery) {
    kept.emplace(std::move(recovery));
    Throw();
  });
  thief = Ask("cell", {.priority = 1});
  clock_.AdvanceBy(absl::Hours(1));
  ASSERT_TRUE(thief->granted());
  EXPECT_THAT(handed.Wait(), StatusIs(absl::StatusCode::kInternal, HasSubstr("out of ink")));
  (*kept)(Resume());
  thief.reset();
  ExpectNothingLeft();
}

TEST_F(ThrownTransactionTest, CallbacksOfItsEndThatThrowAreLogged) {
  std::optional<Completion<int>> answer;
  auto run = cells_.Start([&](Cell&, TransactionContext&) -> Transaction<int> {
    co_return co_await AwaitCallback<int>(
        [&](Completion<int> done) { answer.emplace(std::move(done)); });
  });
  run.OnDone([](absl::StatusOr<int>) { Throw(); });
  (*answer)(1);
  EXPECT_TRUE(run.done());
  run.OnDone([](absl::StatusOr<int>) { Throw(); });
  EXPECT_THAT(errors_.lines(), ElementsAre(HasSubstr("'cell'"), HasSubstr("'cell'")));
  ExpectNothingLeft();
}

}  // namespace
}  // namespace latchkey
