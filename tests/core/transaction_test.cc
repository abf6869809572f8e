// What transactions promise, on the in-memory backend and simulated time: every way of recovery,
// every moment at which the lock can be lost or the transaction cancelled.
#include "latchkey/core/transaction.h"

#include <atomic>
#include <coroutine>
#include <cstdlib>
#include <deque>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
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
#include "latchkey/core/coroutine.h"
#include "latchkey/core/executor.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/scoped_owner.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/simulated_clock.h"
#include "latchkey/tests/support/simulated_executor.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The resource: what happened, in order.
struct Log {
  std::vector<std::string> lines;
  void Add(std::string line) { lines.push_back(std::move(line)); }
};

// Adds a line when it is destroyed.
class Farewell {
 public:
  Farewell(std::vector<std::string>* lines, std::string line)
      : lines_(lines), line_(std::move(line)) {}
  Farewell(const Farewell&) = delete;
  Farewell& operator=(const Farewell&) = delete;
  ~Farewell() { lines_->push_back(line_); }

 private:
  std::vector<std::string>* lines_;
  std::string line_;
};

// A coroutine type from elsewhere: starts at once, runs on its own.
struct Background {
  struct promise_type {
    Background get_return_object() { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::abort(); }
  };
};

// Another one: lazy, awaited once, resumes its awaiter by symmetric transfer, cannot be cancelled.
class Lazy {
 public:
  struct promise_type {
    Lazy get_return_object() {
      return Lazy(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    struct Final {
      bool await_ready() noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> self) noexcept {
        return self.promise().awaiter;
      }
      void await_resume() noexcept {}
    };
    Final final_suspend() noexcept { return {}; }
    void return_value(int result) { value = result; }
    void unhandled_exception() { std::abort(); }
    std::coroutine_handle<> awaiter;
    int value = 0;
  };
  Lazy(Lazy&& other) noexcept : coroutine_(std::exchange(other.coroutine_, nullptr)) {}
  ~Lazy() {
    if (coroutine_) coroutine_.destroy();
  }
  bool await_ready() { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiter) {
    coroutine_.promise().awaiter = awaiter;
    return coroutine_;
  }
  int await_resume() { return coroutine_.promise().value; }

 private:
  explicit Lazy(std::coroutine_handle<promise_type> coroutine) : coroutine_(coroutine) {}
  std::coroutine_handle<promise_type> coroutine_;
};

class TransactionTest : public ::testing::Test {
 protected:
  TransactionTest()
      : backend_(NewMemoryBackend({.clock = &clock_})),
        locks_(NewManager()),
        logs_(*locks_, "log", log_, {.owner = "test"}) {}

  std::optional<LockManager> NewManager(LockManagerOptions options = {}) {
    options.clock = &clock_;
    return *LockManager::Create(backend_, std::move(options));
  }

  // Somebody of higher priority, who keeps the lock until told.
  struct Thief {
    std::optional<absl::StatusOr<Lock>> lock;
    bool inside() const { return lock && lock->ok(); }
    void Leave() { EXPECT_TRUE((*lock)->Release().ok()); }
  };
  std::shared_ptr<Thief> Steal(std::string_view resource = "log", AcquireOptions options = {}) {
    auto thief = std::make_shared<Thief>();
    if (options.priority == 0) options.priority = 100;
    locks_->AcquireAsync(resource, options, [this, thief](absl::StatusOr<Lock> lock) {
      log_.Add(lock.ok() ? "thief enters" : "thief gives up");
      thief->lock = std::move(lock);
    });
    return thief;
  }

  void ExpectNothingLeft() {
    EXPECT_FALSE(locks_->IsBusy());
    EXPECT_EQ(clock_.PendingTimers(), 0u);
  }

  // A body that sleeps three times and says what it sees.
  static Transaction<int> ThreeSteps(Log& log, TransactionContext& ctx) {
    const Farewell farewell(&log.lines, "gone " + std::to_string(ctx.attempt()));
    for (int step = 1; step <= 3; ++step) {
      log.Add("step " + std::to_string(step));
      co_await ctx.Sleep(absl::Seconds(1));
    }
    co_return static_cast<int>(ctx.fencing_token());
  }

  SimulatedClock clock_;
  std::shared_ptr<LockingProtocol> backend_;
  std::optional<LockManager> locks_;
  Log log_;
  Locker<Log> logs_;
};

// ---- Results ----

TEST_F(TransactionTest, RunsUnderTheLockAndReturnsItsValue) {
  auto handle = logs_.Start(ThreeSteps);
  EXPECT_TRUE(locks_->IsBusy("log"));
  EXPECT_FALSE(handle.done());
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_TRUE(handle.done());
  EXPECT_GT(handle.Wait().value(), 0);
  EXPECT_THAT(log_.lines, ElementsAre("step 1", "step 2", "step 3", "gone 1"));
  ExpectNothingLeft();
}

TEST_F(TransactionTest, ReturnsWhateverKindOfResultTheBodyHas) {
  EXPECT_EQ(logs_.Start([](Log&, TransactionContext&) -> Transaction<void> { co_return; }).Wait(),
            absl::OkStatus());
  EXPECT_EQ(logs_
                .Start([](Log&, TransactionContext&) -> Transaction<absl::Status> {
                  co_return absl::NotFoundError("x");
                })
                .Wait(),
            absl::NotFoundError("x"));
  EXPECT_EQ(*logs_
                 .Start([](Log&, TransactionContext&) -> Transaction<std::unique_ptr<int>> {
                   co_return std::make_unique<int>(7);
                 })
                 .Wait()
                 .value(),
            7);
}

TEST_F(TransactionTest, TheBodysOwnErrorIsReturnedAndNeverRetried) {
  int runs = 0;
  auto handle = logs_.Start(
      [&](Log&, TransactionContext& ctx) -> Transaction<int> {
        ++runs;
        co_await ctx.CheckPoint();
        co_return absl::NotFoundError("no such order");
      },
      AlwaysRestart());
  EXPECT_EQ(handle.Wait().status(), absl::NotFoundError("no such order"));
  EXPECT_EQ(runs, 1);
  ExpectNothingLeft();
}

TEST_F(TransactionTest, AnExceptionFromTheBodyBecomesItsError) {
  auto handle = logs_.Start(
      [](Log&, TransactionContext& ctx) -> Transaction<int> {
        co_await ctx.CheckPoint();
        throw std::runtime_error("out of ink");
      },
      AlwaysRestart());
  const absl::Status status = handle.Wait().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(status.message(), HasSubstr("out of ink"));
  ExpectNothingLeft();
}

TEST_F(TransactionTest, ANullBodyOrCallbackDoesNoHarm) {
  int data = 0;
  Locker locker(*locks_, "it", data);
  const TransactionResult<int> refused = locker.Start(TransactionBody<int, int>()).Wait();
  EXPECT_EQ(ReasonOf(refused.status()), Reason::kInvalidArgument);
  EXPECT_THAT(refused.status().message(), HasSubstr("body must not be null, but is null"));
  EXPECT_THAT(refused.status().message(), HasSubstr("'it'"));

  const auto sleeps = [](int&, TransactionContext& ctx) -> Transaction<int> {
    co_await ctx.Sleep(absl::Seconds(1));
    co_return 1;
  };
  bool told = false;
  auto handle = locker.Start(sleeps);
  handle.OnDone([&](const TransactionResult<int>&) { told = true; });
  handle.OnDone(nullptr);
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(handle.done());
  EXPECT_FALSE(told) << "it was removed";
  handle.OnDone(nullptr);
  EXPECT_EQ(*handle.Wait(), 1) << "nobody has taken the result";
}

TEST_F(TransactionTest, AResultIsTakenOnce) {
  auto handle = logs_.Start(ThreeSteps);
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_EQ(handle.Wait().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(TransactionTest, AHandleCanBeAwaitedWaitedForOrGivenACallback) {
  // Awaited, by any coroutine.
  std::optional<absl::Status> awaited;
  const auto waits = [&](TransactionHandle<int> handle) -> Background {
    const absl::StatusOr<int> result = co_await handle;
    awaited = result.status();
  };
  waits(logs_.Start(ThreeSteps));
  EXPECT_FALSE(awaited);
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_EQ(awaited, absl::OkStatus());

  // Given a callback, before and after the end.
  int called = 0;
  auto handle = logs_.Start(ThreeSteps);
  handle.OnDone([&](const absl::StatusOr<int>& result) { called += result.ok(); });
  EXPECT_EQ(called, 0);
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_EQ(called, 1);
  auto done = logs_.Start([](Log&, TransactionContext&) -> Transaction<void> { co_return; });
  done.OnDone([&](const absl::Status& result) { called += result.ok(); });
  EXPECT_EQ(called, 2);

  // Waited for, on another thread.
  auto slow = logs_.Start(ThreeSteps);
  std::thread waiter([&] { EXPECT_TRUE(slow.Wait().ok()); });
  clock_.AdvanceBy(absl::Seconds(3));
  waiter.join();
  ExpectNothingLeft();
}

TEST_F(TransactionTest, WaitingInsideACallbackIsRefused) {
  absl::Status refused;
  auto outer = logs_.Start([&](Log&, TransactionContext&) -> Transaction<void> {
    auto queued = logs_.With({}).Start(ThreeSteps);  // Waits for this one.
    refused = queued.Wait().status();
    queued.Cancel();
    co_return;
  });
  EXPECT_TRUE(outer.Wait().ok());
  EXPECT_EQ(ReasonOf(refused), Reason::kWouldBlock);
  ExpectNothingLeft();
}

TEST_F(TransactionTest, ADroppedHandleLetsTheTransactionGoOn) {
  { auto handle = logs_.Start(ThreeSteps); }
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_EQ(log_.lines.size(), 4u);
  ExpectNothingLeft();
}

TEST_F(TransactionTest, FailsAsTheAcquireDoes) {
  absl::StatusOr<Lock> holder = locks_->Acquire("log", {.owner = "alice"});
  auto once = logs_.With({.max_attempts = 1}).Start(ThreeSteps, AlwaysRestart());
  EXPECT_EQ(ReasonOf(once.Wait().status()), Reason::kAttemptsExhausted);
  auto bad = logs_.With({.max_attempts = 0}).Start(ThreeSteps);
  EXPECT_EQ(ReasonOf(bad.Wait().status()), Reason::kInvalidArgument);
  EXPECT_THAT(log_.lines, ElementsAre()) << "the body never ran";
}

// ---- Recovery ----

TEST_F(TransactionTest, ByDefaultItIsRejected) {
  auto handle = logs_.Start(ThreeSteps);
  auto thief = Steal();
  EXPECT_FALSE(thief->inside()) << "the await that runs is completed first";
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->inside());
  const absl::Status status = handle.Wait().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ReasonOf(status), Reason::kYieldRequested);
  EXPECT_THAT(status.message(), HasSubstr("'log'"));
  // The frame goes after the acknowledgement.
  EXPECT_THAT(log_.lines, ElementsAre("step 1", "thief enters", "gone 1"));
  thief->Leave();
  ExpectNothingLeft();
}

TEST_F(TransactionTest, ResumeGoesOnWhereItStoppedWithANewToken) {
  std::vector<FencingToken> tokens;
  auto handle = logs_.Start(
      [&](Log& log, TransactionContext& ctx) -> Transaction<void> {
        std::string local = "kept";
        tokens.push_back(ctx.fencing_token());
        co_await ctx.Sleep(absl::Seconds(1));
        log.Add("resumed, " + local);
        tokens.push_back(ctx.fencing_token());
        EXPECT_EQ(ctx.attempt(), 1);
      },
      AlwaysResume());
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->inside());
  EXPECT_FALSE(handle.done());
  clock_.AdvanceBy(absl::Hours(1));
  EXPECT_EQ(tokens.size(), 1u) << "it never goes on without the lock";
  thief->Leave();
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_THAT(log_.lines, ElementsAre("thief enters", "resumed, kept"));
  ASSERT_EQ(tokens.size(), 2u);
  EXPECT_GT(tokens[1], tokens[0]);
  ExpectNothingLeft();
}

TEST_F(TransactionTest, RestartBeginsAnew) {
  auto handle = logs_.Start(ThreeSteps, AlwaysRestart());
  clock_.AdvanceBy(absl::Seconds(1));
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->inside());
  thief->Leave();
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_THAT(log_.lines, ElementsAre("step 1", "step 2", "thief enters", "gone 1", "step 1",
                                      "step 2", "step 3", "gone 2"));
  ExpectNothingLeft();
}

TEST_F(TransactionTest, ReplaceRunsAnotherBodyUnderANewHold) {
  FencingToken token = 0;
  auto handle = logs_.Start(
      [&](Log& log, TransactionContext& ctx) -> Transaction<int> {
        token = ctx.fencing_token();
        log.Add("half done");
        co_await ctx.Sleep(absl::Seconds(1));
        co_return 1;
      },
      [&](const Loss&) {
        return Replace(
            [&](Log& log, TransactionContext& ctx) -> Transaction<int> {
              EXPECT_GT(ctx.fencing_token(), token);
              EXPECT_EQ(ctx.attempt(), 2);
              log.Add("rolled back");
              co_await ctx.CheckPoint();
              co_return 2;
            },
            AcquireOptions{.owner = "roll-back", .priority = 1000});
      });
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(1));
  // With its new priority it asks the thief to yield.
  EXPECT_EQ((*thief->lock)->state(), LockState::kYielding);
  thief->Leave();
  EXPECT_EQ(handle.Wait().value(), 2);
  EXPECT_THAT(log_.lines, ElementsAre("half done", "thief enters", "rolled back"));
  ExpectNothingLeft();
}

TEST_F(TransactionTest, RejectEndsWithItsStatus) {
  auto handle = logs_.Start(ThreeSteps, [](const Loss& loss) {
    EXPECT_EQ(loss.reason, Reason::kYieldRequested);
    EXPECT_EQ(loss.count, 1);
    return Reject(absl::ResourceExhaustedError("enough"));
  });
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(handle.Wait().status(), absl::ResourceExhaustedError("enough"));
}

TEST_F(TransactionTest, AHandlerMayGiveDifferentAnswers) {
  auto handle = logs_.Start(ThreeSteps, [](const Loss& loss) -> RecoveryAction<int, Log> {
    switch (loss.count) {
      case 1:
        return Resume();
      case 2:
        return Restart();
      case 3:
        return Replace(ThreeSteps);
      default:
        return Reject();
    }
  });
  for (int i = 0; i < 4; ++i) {
    auto thief = Steal();
    clock_.AdvanceBy(absl::Seconds(1));
    ASSERT_TRUE(thief->inside());
    thief->Leave();
  }
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kYieldRequested);
  EXPECT_THAT(log_.lines,
              ElementsAre("step 1", "thief enters", "step 2", "thief enters", "gone 1", "step 1",
                          "thief enters", "gone 2", "step 1", "thief enters", "gone 3"));
  ExpectNothingLeft();
}

TEST_F(TransactionTest, AHandlerMayAnswerLater) {
  std::optional<Recovery<int, Log>> asked;
  auto handle = logs_.Start(
      ThreeSteps, [&](Recovery<int, Log> recovery) { asked.emplace(std::move(recovery)); });
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(1));
  ASSERT_TRUE(asked);
  EXPECT_EQ(asked->loss().reason, Reason::kYieldRequested);
  EXPECT_TRUE(thief->inside());
  thief->Leave();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_FALSE(locks_->IsBusy()) << "it does not ask for the lock before the answer";
  (*asked)(Resume(AcquireOptions{.owner = "later", .priority = 7}));
  EXPECT_EQ(locks_->Snapshot().at(0).state.holder_priority, 7);
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_TRUE(handle.Wait().ok());
  ExpectNothingLeft();
}

TEST_F(TransactionTest, AHandlerMayBeACoroutine) {
  const auto decide = [&](Recovery<int, Log> recovery) -> Background {
    co_await SleepFor(absl::Seconds(5), clock_);
    recovery(Restart());
  };
  auto handle =
      logs_.Start(ThreeSteps, [&](Recovery<int, Log> recovery) { decide(std::move(recovery)); });
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(1));
  thief->Leave();
  clock_.AdvanceBy(absl::Seconds(5));
  EXPECT_EQ(log_.lines.back(), "step 1");
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_TRUE(handle.Wait().ok());
}

TEST_F(TransactionTest, ADroppedRecoveryRejects) {
  auto handle = logs_.Start(ThreeSteps, [](Recovery<int, Log> /*recovery*/) {});
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kYieldRequested);
}

TEST_F(TransactionTest, AResumeThatCannotHaveTheLockEndsTheTransaction) {
  auto handle =
      logs_.Start(ThreeSteps, AlwaysResume(AcquireOptions{.acquire_timeout = absl::Seconds(10)}));
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(11));
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kAcquireTimeout);
  EXPECT_EQ(log_.lines.back(), "gone 1");
  thief->Leave();
  ExpectNothingLeft();
}

// ---- Checkpoints ----

TEST_F(TransactionTest, AnAwaitThatRunsIsCompletedBeforeTheThiefEnters) {
  std::optional<Completion<int>> write;
  auto handle = logs_.Start(
      [&](Log& log, TransactionContext&) -> Transaction<int> {
        log.Add("writing");
        const int written = co_await AwaitCallback<int>(
            [&](Completion<int> done) { write.emplace(std::move(done)); });
        log.Add("knows what it wrote");
        co_return written;
      },
      AlwaysResume());
  auto thief = Steal();
  clock_.AdvanceBy(absl::Hours(1));
  EXPECT_FALSE(thief->inside()) << "the write may still happen";
  (*write)(42);
  EXPECT_TRUE(thief->inside());
  EXPECT_THAT(log_.lines, ElementsAre("writing", "thief enters"));
  thief->Leave();
  EXPECT_EQ(handle.Wait().value(), 42) << "the result of the await is kept";
  EXPECT_EQ(log_.lines.back(), "knows what it wrote");
}

TEST_F(TransactionTest, AnAwaitDoesNotStartWhenTheLockIsWantedAlready) {
  int started = 0;
  std::shared_ptr<Thief> thief;
  auto handle = logs_.Start(
      [&](Log&, TransactionContext& ctx) -> Transaction<void> {
        EXPECT_FALSE(ctx.ShouldYield());
        thief = Steal();
        EXPECT_TRUE(ctx.ShouldYield());
        co_await AwaitCallback<void>([&](Completion<void> done) {
          ++started;
          done();
        });
      },
      AlwaysResume());
  EXPECT_TRUE(thief->inside());
  EXPECT_EQ(started, 0);
  thief->Leave();
  EXPECT_EQ(started, 1);
  EXPECT_TRUE(handle.Wait().ok());
}

TEST_F(TransactionTest, ACheckPointLetsTheThiefInAndDoesNothingElse) {
  std::shared_ptr<Thief> thief;
  auto handle = logs_.Start(
      [&](Log& log, TransactionContext& ctx) -> Transaction<void> {
        co_await ctx.CheckPoint();
        log.Add("before");
        thief = Steal();
        log.Add("still inside");
        co_await ctx.CheckPoint();
        log.Add("after");
      },
      AlwaysResume());
  EXPECT_THAT(log_.lines, ElementsAre("before", "still inside", "thief enters"));
  thief->Leave();
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_EQ(log_.lines.back(), "after");
}

TEST_F(TransactionTest, AReadyAwaitIsACheckpointToo) {
  std::shared_ptr<Thief> thief;
  auto handle = logs_.Start(
      [&](Log&, TransactionContext&) -> Transaction<void> {
        thief = Steal();
        co_await std::suspend_never();
      },
      AlwaysReject());
  EXPECT_EQ(ReasonOf(handle.Wait()), Reason::kYieldRequested);
}

TEST_F(TransactionTest, ARequestThatIsWithdrawnDuringAnAwaitIsForgotten) {
  auto handle = logs_.Start(ThreeSteps);
  auto thief = Steal("log", {.acquire_timeout = absl::Milliseconds(500)});
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_FALSE(thief->inside());
}

TEST_F(TransactionTest, AWantedLockIsGivenUpBeforeTheBodyStarts) {
  // The request to yield comes between the grant and the body.
  SimulatedExecutor executor;
  LockManager locks = *NewManager({.executor = &executor});
  Locker logs(locks, "log", log_);
  auto handle = logs.Start(ThreeSteps);
  auto thief = Steal();
  executor.RunAll();
  EXPECT_TRUE(thief->inside());
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kYieldRequested);
  EXPECT_THAT(log_.lines, ::testing::Not(::testing::Contains("step 1")));
}

TEST_F(TransactionTest, AForeignCoroutineCanBeAwaited) {
  const auto add = [this](int a, int b) -> Lazy {
    co_await SleepFor(absl::Seconds(1), clock_);
    co_return a + b;
  };
  auto handle = logs_.Start(
      [&](Log&, TransactionContext&) -> Transaction<int> {
        const int three = co_await add(1, 2);
        co_return co_await add(three, 4);
      },
      AlwaysResume());
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->inside());
  thief->Leave();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(handle.Wait().value(), 7);
}

// ---- Interruptible ----

TEST_F(TransactionTest, AnInterruptibleSleepIsGivenUpAtOnce) {
  auto handle = logs_.Start(
      [&](Log& log, TransactionContext& ctx) -> Transaction<void> {
        const bool slept = co_await ctx.Interruptible(ctx.Sleep(absl::Hours(1)));
        log.Add(slept ? "slept" : "interrupted");
        const bool again = co_await ctx.Interruptible(ctx.Sleep(absl::Seconds(1)));
        log.Add(again ? "slept" : "interrupted");
      },
      AlwaysResume());
  auto thief = Steal();
  EXPECT_TRUE(thief->inside());
  EXPECT_EQ(clock_.PendingTimers(), 0u);
  thief->Leave();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_THAT(log_.lines, ElementsAre("thief enters", "interrupted", "slept"));
  ExpectNothingLeft();
}

TEST_F(TransactionTest, AnInterruptibleAwaitThatCouldNotBeginIsInterrupted) {
  std::shared_ptr<Thief> thief;
  auto handle = logs_.Start(
      [&](Log& log, TransactionContext& ctx) -> Transaction<void> {
        thief = Steal();
        const bool slept = co_await ctx.Interruptible(ctx.Sleep(absl::Hours(1)));
        log.Add(slept ? "slept" : "interrupted");
      },
      AlwaysResume());
  EXPECT_TRUE(thief->inside());
  thief->Leave();
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_EQ(log_.lines.back(), "interrupted");
}

TEST_F(TransactionTest, AnInterruptibleAcquireLeavesItsQueue) {
  absl::StatusOr<Lock> other = locks_->Acquire("other");
  std::optional<bool> got;
  auto handle = logs_.Start(
      [&](Log&, TransactionContext& ctx) -> Transaction<void> {
        std::optional<absl::StatusOr<Lock>> lock = co_await ctx.Interruptible(
            locks_->CoAcquire("other", {.owner = "nested " + std::string(40, 'x')}));
        got = lock.has_value();
      },
      AlwaysResume());
  auto thief = Steal();
  EXPECT_TRUE(thief->inside());
  EXPECT_TRUE(other->Release().ok());
  EXPECT_FALSE(locks_->IsBusy("other"));
  thief->Leave();
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_EQ(got, false);
}

TEST_F(TransactionTest, AnInterruptibleCallbackIsForgotten) {
  std::optional<Completion<int>> pending;
  std::optional<int> got = 5;
  auto handle = logs_.Start(
      [&](Log&, TransactionContext& ctx) -> Transaction<void> {
        got = co_await ctx.Interruptible(
            AwaitCallback<int>([&](Completion<int> done) { pending.emplace(std::move(done)); }));
      },
      AlwaysResume());
  auto thief = Steal();
  EXPECT_TRUE(thief->inside());
  (*pending)(1);
  thief->Leave();
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_EQ(got, std::nullopt);
}

TEST_F(TransactionTest, AnInterruptibleForeignAwaitGoesOnBehindTheScenes) {
  bool finished = false;
  const auto slow = [&]() -> Lazy {
    co_await SleepFor(absl::Hours(1), clock_);
    finished = true;
    co_return 3;
  };
  std::optional<int> got = 5;
  std::optional<int> in_time;
  auto handle = logs_.Start(
      [&](Log&, TransactionContext& ctx) -> Transaction<void> {
        got = co_await ctx.Interruptible(slow());
        in_time = co_await ctx.Interruptible(slow());
      },
      AlwaysResume());
  auto thief = Steal();
  EXPECT_TRUE(thief->inside());
  EXPECT_FALSE(finished);
  thief->Leave();
  EXPECT_EQ(got, std::nullopt);
  clock_.AdvanceBy(absl::Hours(1));
  EXPECT_TRUE(finished);
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_EQ(in_time, 3);
}

// ---- Losses that come too late ----

TEST_F(TransactionTest, AHandlerHearsThatTheLeaseRanOut) {
  std::vector<Reason> reasons;
  auto handle =
      logs_.With({.lease = absl::Milliseconds(1500)}).Start(ThreeSteps, [&](const Loss& loss) {
        reasons.push_back(loss.reason);
        return Restart(AcquireOptions{.lease = absl::Hours(1)});
      });
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_THAT(reasons, ElementsAre(Reason::kExpired));
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_FALSE(locks_->IsBusy());
}

TEST_F(TransactionTest, AHandlerHearsThatTheLockWasTakenByForce) {
  std::vector<Reason> reasons;
  auto handle = logs_.Start(ThreeSteps, [&](const Loss& loss) {
    reasons.push_back(loss.reason);
    EXPECT_EQ(loss.status.code(), absl::StatusCode::kAborted);
    return Reject();
  });
  auto thief = Steal("log", {.preemption_grace = absl::Milliseconds(100)});
  clock_.AdvanceBy(absl::Milliseconds(100));
  EXPECT_TRUE(thief->inside());
  EXPECT_THAT(reasons, ElementsAre()) << "the await that runs is completed first";
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(reasons, ElementsAre(Reason::kStolen));
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kStolen);
  EXPECT_TRUE((*thief->lock)->IsHeld()) << "the successor was not touched";
}

TEST_F(TransactionTest, AnInterruptibleAwaitIsGivenUpWhenTheLockIsLost) {
  bool interrupted = false;
  auto handle = logs_.With({.lease = absl::Seconds(1)})
                    .Start(
                        [&](Log&, TransactionContext& ctx) -> Transaction<void> {
                          interrupted = !co_await ctx.Interruptible(ctx.Sleep(absl::Hours(1)));
                        },
                        AlwaysResume());
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_TRUE(interrupted);
}

TEST_F(TransactionTest, AValueIsDroppedIfTheLockWasLostUnnoticed) {
  auto handle = logs_.With({.lease = absl::Seconds(1)})
                    .Start(
                        [&](Log&, TransactionContext& ctx) -> Transaction<int> {
                          co_await ctx.CheckPoint();
                          clock_.AdvanceBy(absl::Seconds(2));  // It computes for too long.
                          co_return 1;
                        },
                        AlwaysRestart());
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kExpired);
}

TEST_F(TransactionTest, AValueStandsIfTheLockWasOnlyWanted) {
  std::shared_ptr<Thief> thief;
  auto handle = logs_.Start([&](Log&, TransactionContext& ctx) -> Transaction<int> {
    co_await ctx.CheckPoint();
    thief = Steal();
    co_return 1;
  });
  EXPECT_EQ(handle.Wait().value(), 1);
  EXPECT_TRUE(thief->inside());
}

// ---- Several locks ----

TEST_F(TransactionTest, ALockerOverTwoHoldsBothAndYieldsBothForOne) {
  Log kitchen;
  Log bedroom;
  Locker kitchens(*locks_, "kitchen", kitchen);
  Locker bedrooms(*locks_, "bedroom", bedroom);
  Locker both = Join(kitchens, bedrooms, {.owner = "both"});
  std::vector<FencingToken> tokens;
  auto handle = both.Start(
      [&](Log& k, Log& b, TransactionContext& ctx) -> Transaction<void> {
        for (int i = 1; i <= 2; ++i) {
          k.Add("on " + std::to_string(i));
          b.Add("off " + std::to_string(i));
          tokens.push_back(ctx.fencing_token("kitchen"));
          tokens.push_back(ctx.fencing_token("bedroom"));
          EXPECT_EQ(ctx.fencing_token(), ctx.fencing_token("kitchen"));
          EXPECT_EQ(ctx.fencing_token("attic"), 0u);
          co_await ctx.Sleep(absl::Seconds(1));
        }
      },
      AlwaysResume());
  EXPECT_TRUE(locks_->IsBusy("kitchen"));
  EXPECT_TRUE(locks_->IsBusy("bedroom"));
  auto thief = Steal("bedroom");
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->inside());
  EXPECT_TRUE(locks_->TryAcquire("kitchen").ok()) << "the other one is given up as well";
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(kitchen.lines.size(), 1u);
  thief->Leave();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_THAT(kitchen.lines, ElementsAre("on 1", "on 2"));
  EXPECT_THAT(bedroom.lines, ElementsAre("off 1", "off 2"));
  ASSERT_EQ(tokens.size(), 4u);
  EXPECT_GT(tokens[2], tokens[0]);
  EXPECT_GT(tokens[3], tokens[1]);
  ExpectNothingLeft();
}

TEST_F(TransactionTest, LosingTheLeaseOfOneOfTwoIsALossOfBoth) {
  // Somebody takes one of them by force.
  Log a;
  Log b;
  Locker both = Join(Locker(*locks_, "a", a), Locker(*locks_, "b", b));
  std::vector<Reason> reasons;
  auto handle = both.Start(
      [](Log&, Log&, TransactionContext& ctx) -> Transaction<void> {
        co_await ctx.Sleep(absl::Seconds(1));
      },
      [&](const Loss& loss) {
        reasons.push_back(loss.reason);
        return Reject();
      });
  auto thief = Steal("a", {.preemption_grace = absl::Milliseconds(10)});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->inside());
  EXPECT_THAT(reasons, ElementsAre(Reason::kStolen));
  EXPECT_EQ(ReasonOf(handle.Wait()), Reason::kStolen);
  EXPECT_FALSE(locks_->IsBusy("b"));
}

TEST_F(TransactionTest, JoinedLockersCanBeJoinedAgain) {
  Log a;
  Log b;
  Log c;
  Locker all = Join(Join(Locker(*locks_, "a", a), Locker(*locks_, "b", b)),
                    Join(Locker(*locks_, "c", c), logs_), {.priority = 3});
  auto handle = all.Start(
      [&](Log& one, Log& two, Log& three, Log& four, TransactionContext&) -> Transaction<void> {
        EXPECT_EQ(&one, &a);
        EXPECT_EQ(&two, &b);
        EXPECT_EQ(&three, &c);
        EXPECT_EQ(&four, &log_);
        EXPECT_EQ(locks_->Snapshot().size(), 4u);
        co_return;
      });
  EXPECT_TRUE(handle.Wait().ok());
  ExpectNothingLeft();
}

TEST_F(TransactionTest, LockersOfDifferentManagersDoNotJoin) {
  std::optional<LockManager> other = NewManager();
  Locker both = Join(logs_, Locker(*other, "other", log_));
  auto handle =
      both.Start([](Log&, Log&, TransactionContext&) -> Transaction<int> { co_return 1; });
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kInvalidArgument);
}

// ---- Nested transactions ----

TEST_F(TransactionTest, AnInnerTransactionEndsBeforeTheOuterYields) {
  Log inner_log;
  Locker inners(*locks_, "inner", inner_log);
  auto handle = logs_.Start(
      [&](Log& log, TransactionContext&) -> Transaction<int> {
        auto inner = inners.Start(ThreeSteps);
        const absl::StatusOr<int> result = co_await inner;
        log.Add("inner is done");
        co_return result.ok() ? 1 : 0;
      },
      AlwaysResume());
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_FALSE(thief->inside());
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->inside());
  EXPECT_EQ(inner_log.lines.size(), 4u);
  thief->Leave();
  EXPECT_EQ(handle.Wait().value(), 1);
  ExpectNothingLeft();
}

TEST_F(TransactionTest, AnInnerTransactionThatWasStartedCountsAsAnAwaitThatRuns) {
  Log inner_log;
  Locker inners(*locks_, "inner", inner_log);
  std::shared_ptr<Thief> thief;
  auto handle = logs_.Start(
      [&](Log&, TransactionContext&) -> Transaction<void> {
        auto inner = inners.Start(ThreeSteps);
        thief = Steal();  // Before the await, but the inner one is under way.
        EXPECT_TRUE((co_await inner).ok());
      },
      AlwaysResume());
  EXPECT_FALSE(thief->inside());
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_TRUE(thief->inside());
  thief->Leave();
  EXPECT_TRUE(handle.Wait().ok());
  ExpectNothingLeft();
}

TEST_F(TransactionTest, AnInnerTransactionLosesItsOwnLockOnItsOwn) {
  Log inner_log;
  Locker inners(*locks_, "inner", inner_log);
  auto handle = logs_.Start([&](Log&, TransactionContext&) -> Transaction<void> {
    auto inner = inners.Start(ThreeSteps, AlwaysRestart());
    EXPECT_TRUE((co_await inner).ok());
  });
  auto thief = Steal("inner");
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->inside());
  EXPECT_TRUE(locks_->IsBusy("log")) << "the outer one keeps its lock";
  thief->Leave();
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_TRUE(handle.Wait().ok());
  ExpectNothingLeft();
}

TEST_F(TransactionTest, AnInterruptibleInnerTransactionIsCancelledAtItsNextCheckpoint) {
  Log inner_log;
  Locker inners(*locks_, "inner", inner_log);
  std::optional<absl::Status> inner_status;
  auto handle = logs_.Start(
      [&](Log&, TransactionContext& ctx) -> Transaction<void> {
        auto inner = inners.Start(ThreeSteps, AlwaysRestart());
        std::optional<absl::StatusOr<int>> result = co_await ctx.Interruptible(inner);
        if (result) inner_status = result->status();
      },
      AlwaysResume());
  auto thief = Steal();
  EXPECT_FALSE(thief->inside());
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->inside());
  EXPECT_THAT(inner_log.lines, ElementsAre("step 1", "gone 1"));
  thief->Leave();
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_EQ(ReasonOf(*inner_status), Reason::kCancelled);
}

TEST_F(TransactionTest, ALockTakenInsideIsReleasedWithTheFrame) {
  auto handle = logs_.Start([&](Log&, TransactionContext& ctx) -> Transaction<void> {
    absl::StatusOr<Lock> second = co_await locks_->CoAcquire("second", {.owner = "nested"});
    co_await ctx.Sleep(absl::Seconds(1));
  });
  EXPECT_TRUE(locks_->IsBusy("second"));
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(ReasonOf(handle.Wait()), Reason::kYieldRequested);
  EXPECT_FALSE(locks_->IsBusy("second"));
}

TEST_F(TransactionTest, ABodyInheritsTheOwnerThatWasInForceAtItsStart) {
  std::vector<std::string> owners;
  const auto body = [&](Log&, TransactionContext& ctx) -> Transaction<void> {
    owners.emplace_back(ScopedOwner::Current());
    co_await ctx.Sleep(absl::Seconds(1));
    owners.emplace_back(ScopedOwner::Current());
    // Enters again what it holds.
    absl::StatusOr<Lock> again = co_await locks_->CoAcquire("log");
    EXPECT_TRUE(again.ok());
  };
  std::optional<TransactionHandle<void>> handle;
  {
    const ScopedOwner me("billing");
    handle.emplace(logs_.With({}).Start(body, AlwaysResume()));
  }
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->inside());
  thief->Leave();
  EXPECT_TRUE(handle->Wait().ok());
  EXPECT_THAT(owners, ElementsAre("billing", "billing"));
  EXPECT_EQ(ScopedOwner::Current(), "");
  ExpectNothingLeft();
}

// ---- Cancellation ----

TEST_F(TransactionTest, CancelledWhileItWaitsForTheLock) {
  absl::StatusOr<Lock> holder = locks_->Acquire("log");
  auto handle = logs_.Start(ThreeSteps, AlwaysRestart());
  handle.Cancel();
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kCancelled);
  EXPECT_TRUE(holder->Release().ok());
  EXPECT_THAT(log_.lines, ElementsAre());
  ExpectNothingLeft();
}

TEST_F(TransactionTest, CancelledInAnAwaitItStopsWhenThatIsOver) {
  bool asked = false;
  auto handle = logs_.Start(ThreeSteps, [&](const Loss&) {
    asked = true;
    return Restart();
  });
  handle.Cancel();
  EXPECT_FALSE(handle.done());
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kCancelled);
  EXPECT_THAT(log_.lines, ElementsAre("step 1", "gone 1"));
  EXPECT_FALSE(asked);
  ExpectNothingLeft();
}

TEST_F(TransactionTest, CancelledInAnInterruptibleAwaitItStopsAtOnce) {
  auto handle = logs_.Start([](Log&, TransactionContext& ctx) -> Transaction<void> {
    co_await ctx.Interruptible(ctx.Sleep(absl::Hours(1)));
    ADD_FAILURE() << "resumed";
  });
  handle.Cancel();
  EXPECT_EQ(ReasonOf(handle.Wait()), Reason::kCancelled);
  ExpectNothingLeft();
}

TEST_F(TransactionTest, CancelledWhileItsHandlerThinks) {
  std::optional<Recovery<int, Log>> asked;
  auto handle = logs_.Start(
      ThreeSteps, [&](Recovery<int, Log> recovery) { asked.emplace(std::move(recovery)); });
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(1));
  handle.Cancel();
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kCancelled);
  (*asked)(Resume());  // Too late, and no harm.
  thief->Leave();
  ExpectNothingLeft();
}

TEST_F(TransactionTest, CancelledWhileItWaitsToResume) {
  auto handle = logs_.Start(ThreeSteps, AlwaysResume());
  auto thief = Steal();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->inside());
  handle.Cancel();
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kCancelled);
  EXPECT_EQ(log_.lines.back(), "gone 1");
  thief->Leave();
  ExpectNothingLeft();
}

TEST_F(TransactionTest, CancelledByItsBody) {
  std::optional<TransactionHandle<void>> handle;
  handle.emplace(logs_.Start([&](Log&, TransactionContext& ctx) -> Transaction<void> {
    co_await ctx.Sleep(absl::Seconds(1));
    handle->Cancel();
    co_await ctx.CheckPoint();
    ADD_FAILURE() << "resumed";
  }));
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(ReasonOf(handle->Wait()), Reason::kCancelled);
}

TEST_F(TransactionTest, CancelledThroughItsOptions) {
  std::stop_source stop;
  auto handle = logs_.With({.cancel = stop.get_token()}).Start(ThreeSteps, AlwaysRestart());
  stop.request_stop();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kCancelled);
  auto late = logs_.With({.cancel = stop.get_token()}).Start(ThreeSteps);
  EXPECT_EQ(ReasonOf(late.Wait().status()), Reason::kCancelled);
  ExpectNothingLeft();
}

TEST_F(TransactionTest, CancellingAfterTheEndChangesNothing) {
  auto handle = logs_.Start([](Log&, TransactionContext&) -> Transaction<int> { co_return 1; });
  handle.Cancel();
  EXPECT_EQ(handle.Wait().value(), 1);
}

TEST_F(TransactionTest, CancelledAtAnyStepItEndsOnceAndLeavesNothing) {
  // The executor's queue is what can be between two things that happen. Cancel at each of its
  // steps.
  bool cancelled = true;
  for (int at = 0; cancelled; ++at) {
    SCOPED_TRACE(at);
    SimulatedExecutor executor;
    LockManager locks = *NewManager({.executor = &executor});
    Log log;
    Locker logs(locks, "log", log);
    int ended = 0;
    absl::Status result;
    int step = 0;
    auto handle = logs.Start(
        [&](Log& written, TransactionContext& ctx) -> Transaction<void> {
          const Farewell farewell(&written.lines, "gone");
          co_await ctx.CheckPoint();
          {
            absl::StatusOr<Lock> second = co_await locks.CoAcquire("second");
            co_await ctx.Sleep(absl::Seconds(1));
          }
          co_await ctx.Interruptible(ctx.Sleep(absl::Seconds(1)));
        },
        AlwaysResume());
    handle.OnDone([&](const absl::Status& status) {
      ++ended;
      result = status;
    });
    cancelled = false;
    const auto run = [&] {
      for (;;) {
        if (step++ == at) {
          handle.Cancel();
          cancelled = true;
        }
        if (!executor.RunOne()) break;
      }
    };
    run();
    absl::StatusOr<Lock> thief_lock = absl::CancelledError();
    locks.AcquireAsync("log", {.priority = 1},
                       [&](absl::StatusOr<Lock> lock) { thief_lock = std::move(lock); });
    run();
    clock_.AdvanceBy(absl::Seconds(1));
    run();
    if (thief_lock.ok()) thief_lock->ReleaseAsync();
    run();
    clock_.AdvanceBy(absl::Seconds(1));
    run();
    if (thief_lock.ok()) thief_lock->ReleaseAsync();
    run();
    EXPECT_EQ(ended, 1);
    EXPECT_TRUE(result.ok() || ReasonOf(result) == Reason::kCancelled) << result;
    if (!cancelled) {
      EXPECT_TRUE(result.ok()) << result;
      EXPECT_GT(at, 8) << "there is less to cancel than expected";
    }
    thief_lock = absl::CancelledError();
    executor.RunAll();
    EXPECT_FALSE(locks.IsBusy());
    EXPECT_EQ(clock_.PendingTimers(), 0u);
  }
}

// ---- Limits ----

TEST_F(TransactionTest, ABodyThatRunsTooLongStopsAtItsNextCheckpoint) {
  auto handle = logs_.With({.max_execution_time = absl::Milliseconds(1500)})
                    .Start(ThreeSteps, AlwaysRestart());
  clock_.AdvanceBy(absl::Milliseconds(1600));
  EXPECT_TRUE(locks_->IsBusy("log")) << "the lock is never freed under the body";
  clock_.AdvanceBy(absl::Milliseconds(400));
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kExecutionTimeout);
  EXPECT_THAT(log_.lines, ElementsAre("step 1", "step 2", "gone 1"));
  ExpectNothingLeft();
}

TEST_F(TransactionTest, WaitingAndRunningTogetherHaveALimit) {
  absl::StatusOr<Lock> holder = locks_->Acquire("log");
  auto waits = logs_.With({.max_occupation_time = absl::Seconds(2)}).Start(ThreeSteps);
  auto runs = logs_.With({.max_occupation_time = absl::Seconds(4)}).Start(ThreeSteps);
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_EQ(ReasonOf(waits.Wait().status()), Reason::kOccupationTimeout);
  EXPECT_TRUE(holder->Release().ok());
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_EQ(ReasonOf(runs.Wait().status()), Reason::kOccupationTimeout);
  ExpectNothingLeft();
}

// ---- Ends of others ----

TEST_F(TransactionTest, ARunningTransactionOutlivesItsManager) {
  auto handle = logs_.Start(ThreeSteps);
  auto queued = logs_.With({}).Start(ThreeSteps, AlwaysRestart());
  locks_.reset();
  EXPECT_EQ(ReasonOf(queued.Wait().status()), Reason::kShutdown);
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_TRUE(handle.Wait().ok());
  EXPECT_EQ(ReasonOf(logs_.Start(ThreeSteps).Wait().status()), Reason::kShutdown);
}

TEST_F(TransactionTest, ATransactionCannotResumeWithoutItsManager) {
  std::optional<LockManager> other = NewManager();
  auto handle = logs_.Start(ThreeSteps, AlwaysResume());
  locks_.reset();
  absl::StatusOr<Lock> thief = absl::CancelledError();
  other->AcquireAsync("log", {.priority = 1},
                      [&](absl::StatusOr<Lock> lock) { thief = std::move(lock); });
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief.ok());
  EXPECT_EQ(ReasonOf(handle.Wait().status()), Reason::kShutdown);
}

TEST_F(TransactionTest, AnExecutorThatDropsItsTasksEndsTheTransaction) {
  // Wherever it is then: asking for the lock, in an await, giving the lock up.
  for (int steps = 0; steps < 12; ++steps) {
    SCOPED_TRACE(steps);
    class Closing : public Executor {
     public:
      void Execute(Task task) override {
        if (!closed_) tasks_.push_back(std::move(task));
      }
      bool RunOne() {
        if (tasks_.empty()) return false;
        Task task = std::move(tasks_.front());
        tasks_.pop_front();
        task();
        return true;
      }
      // Drops what it has, and whatever comes.
      void Close() {
        closed_ = true;
        std::deque<Task> dropped = std::move(tasks_);
      }

     private:
      std::deque<Task> tasks_;
      bool closed_ = false;
    };
    auto executor = std::make_unique<Closing>();
    std::optional<LockManager> locks = NewManager({.executor = executor.get()});
    Log log;
    Locker logs(*locks, "log", log);
    auto handle = logs.Start([](Log&, TransactionContext& ctx) -> Transaction<void> {
      for (int i = 0; i < 4; ++i) co_await ctx.Sleep(absl::Seconds(1));
    });
    for (int i = 0; i < steps; ++i) {
      if (!executor->RunOne()) clock_.AdvanceBy(absl::Seconds(1));
    }
    executor->Close();
    handle.Cancel();
    clock_.AdvanceBy(absl::Seconds(1));
    ASSERT_TRUE(handle.done());
    const absl::Status status = handle.Wait();
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kCancelled) << status;
    EXPECT_FALSE(locks->IsBusy());
  }
}

// ---- Threads ----

TEST(TransactionThreads, ManyTransactionsOnAPoolAreExclusiveAndAllEnd) {
  constexpr int kTransactions = 200;
  constexpr int kSteps = 20;
  const std::unique_ptr<Executor> pool = NewThreadPool(3);
  absl::StatusOr<LockManager> locks =
      LockManager::Create(NewMemoryBackend(), {.executor = pool.get(), .admission = AdmitAll()});
  struct Resource {
    std::atomic<int> inside = 0;
    int written = 0;  // Not atomic: the lock protects it.
    FencingToken last = 0;
  } resource;
  Locker resources(*locks, "resource", resource);
  std::vector<TransactionHandle<int>> handles;
  std::atomic<int> cancelled = 0;
  for (int i = 0; i < kTransactions; ++i) {
    handles.push_back(resources.With({.priority = i % 7})
                          .Start(
                              [](Resource& r, TransactionContext& ctx) -> Transaction<int> {
                                int steps = 0;
                                while (steps < kSteps) {
                                  EXPECT_EQ(r.inside.fetch_add(1), 0) << "two are inside";
                                  EXPECT_GE(ctx.fencing_token(), r.last);
                                  r.last = ctx.fencing_token();
                                  ++r.written;
                                  ++steps;
                                  r.inside.fetch_sub(1);
                                  if (steps % 3 == 0) {
                                    co_await ctx.Interruptible(ctx.Sleep(absl::Microseconds(20)));
                                  } else {
                                    co_await ctx.CheckPoint();
                                  }
                                }
                                co_return steps;
                              },
                              AlwaysResume()));
    if (i % 11 == 0) {
      handles.back().Cancel();
      ++cancelled;
    }
  }
  int sum = 0;
  for (auto& handle : handles) {
    const absl::StatusOr<int> steps = handle.Wait();
    if (steps.ok()) {
      sum += *steps;
    } else {
      EXPECT_EQ(ReasonOf(steps.status()), Reason::kCancelled);
    }
  }
  EXPECT_GE(resource.written, sum);
  EXPECT_GE(sum, (kTransactions - cancelled) * kSteps);
}

}  // namespace
}  // namespace latchkey
