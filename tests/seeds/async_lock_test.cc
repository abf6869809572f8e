// async-lock's behaviour, case by case: what its users rely on, in our words. Where we differ, the
// test says so, and docs/reference/from-async-lock.md why; that page also maps each case of its own
// test suite to one of these.
#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/status_matchers.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/scoped_owner.h"
#include "latchkey/tests/support/lock_manager_fixture.h"
#include "latchkey/tests/support/simulated_executor.h"

namespace latchkey {
namespace {

using ::absl_testing::IsOkAndHolds;
using ::absl_testing::StatusIs;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Finish = LockManager::FinishCallback;

class AsyncLockTest : public LockManagerFixture {
 protected:
  // Whoever still waits is told while there is somewhere to note it.
  ~AsyncLockTest() override { locks_ = NewManager(); }

  // A body that notes its name and finishes when the test says so.
  void Enter(std::string key, std::string name, AcquireOptions options = {}) {
    locks_.RunAsync(
        key, options,
        [this, name](LockContext, Finish finish) {
          order_.push_back(name);
          running_.push_back(std::move(finish));
        },
        [this, name](absl::Status status) {
          results_.push_back({name, std::move(status)});
        });
  }
  void EnterAll(std::vector<std::string> keys, std::string name, AcquireOptions options = {}) {
    locks_.RunAllAsync(
        std::move(keys), options,
        [this, name](LockContext, Finish finish) {
          order_.push_back(name);
          running_.push_back(std::move(finish));
        },
        [this, name](absl::Status status) {
          results_.push_back({name, std::move(status)});
        });
  }
  void After(absl::Duration delay, absl::AnyInvocable<void()> then) {
    clock_.RunAt(clock_.Now() + delay, std::move(then));
  }
  void FinishFirst(absl::Status status = absl::OkStatus()) {
    Finish finish = std::move(running_.front());
    running_.erase(running_.begin());
    finish(std::move(status));
  }
  absl::Status ResultOf(std::string_view name) {
    for (const auto& [who, status] : results_) {
      if (who == name) return status;
    }
    return absl::UnknownError("no result");
  }

  std::vector<std::string> order_;
  std::vector<std::pair<std::string, absl::Status>> results_;
  std::vector<Finish> running_;  // Goes first: bodies that are dropped finish, too.
};

TEST_F(AsyncLockTest, BodiesOfOneKeyRunOneAfterTheOtherInOrder) {
  Enter("key", "1");
  Enter("key", "2");
  Enter("key", "3");
  EXPECT_THAT(order_, ElementsAre("1"));
  FinishFirst();
  FinishFirst();
  FinishFirst();
  EXPECT_THAT(order_, ElementsAre("1", "2", "3"));
  ExpectNothingLeft();
}

TEST_F(AsyncLockTest, ManyTasksOnTwoKeysTakeTurns) {
  std::vector<std::string> inside;
  int done = 0;
  for (int i = 0; i < 8; ++i) {
    const std::string key = i % 2 == 0 ? "even" : "odd";
    locks_.RunAsync<int>(
        key, {},
        [&, key, i](LockContext, LockManager::FinishWith<int> finish) {
          EXPECT_THAT(inside, Not(Contains(key)));
          EXPECT_TRUE(locks_.IsBusy() && locks_.IsBusy(key));
          inside.push_back(key);
          After(absl::Milliseconds(1 + i * 7 % 5),
                [&, key, i, finish = std::move(finish)]() mutable {
                  inside.erase(std::find(inside.begin(), inside.end(), key));
                  finish(i);
                });
        },
        [&, i](absl::StatusOr<int> number) {
          EXPECT_THAT(number, IsOkAndHolds(i));
          ++done;
        });
  }
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(done, 8);
  ExpectNothingLeft();
}

TEST_F(AsyncLockTest, AReadAndAWriteWithAPauseBetweenAreOne) {
  int value = 0;
  for (int i = 0; i < 8; ++i) {
    locks_.RunAsync(
        "key", {},
        [&](LockContext, Finish finish) {
          const int read = value;
          After(absl::Milliseconds(3), [&, read, finish = std::move(finish)]() mutable {
            value = read + 1;
            finish(absl::OkStatus());
          });
        },
        nullptr);
  }
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(value, 8);
}

TEST_F(AsyncLockTest, BodiesOfDifferentKeysRunAtOnce) {
  Enter("key 1", "1");
  Enter("key 2", "2");
  EXPECT_THAT(order_, ElementsAre("1", "2"));
}

TEST_F(AsyncLockTest, ResultsAndErrorsOfTheBodyArePassedThrough) {
  EXPECT_EQ(*locks_.Run("key", {}, [](LockContext&) -> absl::StatusOr<int> { return 7; }), 7);
  EXPECT_EQ(locks_.Run("key", {}, [](LockContext&) { return absl::DataLossError("x"); }),
            absl::DataLossError("x"));
  EXPECT_THROW(static_cast<void>(locks_.Run(
                   "key", {}, [](LockContext&) -> absl::Status { throw std::runtime_error("x"); })),
               std::runtime_error);
  EXPECT_FALSE(locks_.IsBusy());
  Enter("key", "1");
  FinishFirst(absl::DataLossError("x"));
  EXPECT_EQ(ResultOf("1"), absl::DataLossError("x"));
  EXPECT_FALSE(locks_.IsBusy());
}

// async-lock's `done(error, value)`.
TEST_F(AsyncLockTest, ValuesOfBodiesThatFinishLaterArePassedThrough) {
  std::vector<absl::StatusOr<std::string>> results;
  for (const bool fails : {false, true}) {
    locks_.RunAsync<std::string>(
        "key", {},
        [&](LockContext, LockManager::FinishWith<std::string> done) {
          if (fails) {
            done(absl::DataLossError("x"));
          } else {
            done("result");
          }
        },
        [&](absl::StatusOr<std::string> result) { results.push_back(std::move(result)); });
  }
  EXPECT_THAT(results, ElementsAre(IsOkAndHolds("result"), StatusIs(absl::StatusCode::kDataLoss)));
}

TEST_F(AsyncLockTest, WhatABodyThatFinishesLaterThrowsIsItsResult) {
  std::vector<absl::Status> results;
  const auto note = [&](absl::Status status) { results.push_back(std::move(status)); };
  const auto throws = [](LockContext, Finish) { throw std::runtime_error("error"); };
  absl::StatusOr<Lock> held = locks_.Acquire("key");
  locks_.RunAsync("key", {}, throws, note);
  locks_.RunAllAsync({"key", "other"}, {}, throws, note);
  Enter("key", "next");
  EXPECT_EQ(held->Release(), absl::OkStatus()) << "it is nobody else's";
  const auto error = StatusIs(absl::StatusCode::kInternal, HasSubstr("error"));
  EXPECT_THAT(results, ElementsAre(error, error));
  EXPECT_THAT(order_, ElementsAre("next")) << "it does not hold up others";
  FinishFirst();
  ExpectNothingLeft();
}

TEST_F(AsyncLockTest, ABodyThatIsNoFunctionIsRefused) {
  std::optional<absl::Status> result;
  locks_.RunAsync("key", {}, nullptr, [&](absl::Status status) { result = std::move(status); });
  ASSERT_TRUE(result);
  EXPECT_EQ(ReasonOf(*result), Reason::kInvalidArgument);
  EXPECT_FALSE(locks_.IsBusy());
}

TEST_F(AsyncLockTest, AFailedBodyDoesNotHoldUpTheNext) {
  Enter("key", "1");
  Enter("key", "2");
  FinishFirst(absl::DataLossError("x"));
  EXPECT_THAT(order_, ElementsAre("1", "2"));
}

TEST_F(AsyncLockTest, ACallbackThatIsCalledTwiceCountsOnce) {
  std::vector<absl::Status> results;
  locks_.RunAsync(
      "key", {},
      [](LockContext, Finish finish) {
        finish(absl::OkStatus());
        finish(absl::DataLossError("x"));
      },
      [&](absl::Status status) { results.push_back(std::move(status)); });
  EXPECT_THAT(results, ElementsAre(absl::OkStatus()));
}

TEST_F(AsyncLockTest, TimeoutInTheQueue) {
  Enter("key", "1");
  Enter("key", "2", {.acquire_timeout = absl::Milliseconds(20)});
  Enter("key", "3");
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_EQ(ReasonOf(ResultOf("2")), Reason::kAcquireTimeout);
  FinishFirst();
  EXPECT_THAT(order_, ElementsAre("1", "3")) << "who timed out never runs";
  EXPECT_TRUE(ResultOf("1").ok());
}

TEST_F(AsyncLockTest, ATimeoutDoesNotBoundTheBody) {
  Enter("key", "1", {.acquire_timeout = absl::Milliseconds(20)});
  clock_.AdvanceBy(absl::Seconds(1));
  FinishFirst();
  EXPECT_TRUE(ResultOf("1").ok());
}

TEST_F(AsyncLockTest, MaxOccupationTimeCountsQueueAndBody) {
  Enter("key", "1");
  Enter("key", "2", {.max_occupation_time = absl::Milliseconds(100)});
  Enter("key", "3", {.max_occupation_time = absl::Milliseconds(30)});
  clock_.AdvanceBy(absl::Milliseconds(50));
  EXPECT_EQ(ReasonOf(ResultOf("3")), Reason::kOccupationTimeout) << "it never ran";
  FinishFirst();
  clock_.AdvanceBy(absl::Milliseconds(50));
  FinishFirst();
  EXPECT_EQ(ReasonOf(ResultOf("2")), Reason::kOccupationTimeout);
}

// Differs: there the caller hears at once that the time is over, and the body not at all. Here the
// body is asked to stop, and the caller hears when it has.
TEST_F(AsyncLockTest, WhenItsOccupationIsOverABodyIsAskedToStopAndTheNextFollowsIt) {
  std::optional<std::stop_callback<std::function<void()>>> on_stop;
  Finish finish;
  locks_.RunAsync(
      "key", {.max_occupation_time = absl::Milliseconds(10)},
      [&](LockContext context, Finish call) {
        finish = std::move(call);
        on_stop.emplace(context.stop_token(), [&] {
          order_.push_back("asked to stop");
          After(absl::Milliseconds(5), [&] { finish(absl::CancelledError("stopped")); });
        });
      },
      [&](absl::Status status) {
        results_.push_back({"1", std::move(status)});
      });
  Enter("key", "2");
  clock_.AdvanceBy(absl::Milliseconds(10));
  EXPECT_THAT(order_, ElementsAre("asked to stop"));
  clock_.AdvanceBy(absl::Milliseconds(5));
  EXPECT_THAT(order_, ElementsAre("asked to stop", "2"));
  EXPECT_EQ(ReasonOf(ResultOf("1")), Reason::kOccupationTimeout);
}

TEST_F(AsyncLockTest, OfShortAndLongBodiesTheLongOnesExceedTheirExecutionTime) {
  std::vector<Reason> reasons;
  for (int i = 0; i < 6; ++i) {
    const absl::Duration runs = absl::Milliseconds(i % 2 == 0 ? 1 : 20);
    locks_.RunAsync(
        "key", {.max_execution_time = absl::Milliseconds(10)},
        [&, runs](LockContext, Finish finish) {
          After(runs, [finish = std::move(finish)]() mutable { finish(absl::OkStatus()); });
        },
        [&](absl::Status status) { reasons.push_back(ReasonOf(status)); });
  }
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(reasons,
              ElementsAre(Reason::kNone, Reason::kExecutionTimeout, Reason::kNone,
                          Reason::kExecutionTimeout, Reason::kNone, Reason::kExecutionTimeout));
}

// Differs: there the next one enters while the body still runs.
TEST_F(AsyncLockTest, MaxExecutionTimeNeverLetsASecondOneIn) {
  Enter("key", "1", {.max_execution_time = absl::Milliseconds(100)});
  Enter("key", "2");
  clock_.AdvanceBy(absl::Seconds(10));
  EXPECT_THAT(order_, ElementsAre("1"));
  FinishFirst();
  EXPECT_EQ(ReasonOf(ResultOf("1")), Reason::kExecutionTimeout);
  EXPECT_THAT(order_, ElementsAre("1", "2"));
}

TEST_F(AsyncLockTest, ExecutionTimeBeginsWithTheBody) {
  Enter("key", "1");
  Enter("key", "2", {.max_execution_time = absl::Milliseconds(100)});
  clock_.AdvanceBy(absl::Seconds(10));
  FinishFirst();
  clock_.AdvanceBy(absl::Milliseconds(99));
  FinishFirst();
  EXPECT_TRUE(ResultOf("2").ok());
}

TEST_F(AsyncLockTest, PendingLimit) {
  const auto limit = LimitPending({.per_resource = 2});
  Enter("key", "1", {.admission = limit});
  Enter("key", "2", {.admission = limit});
  Enter("key", "3", {.admission = limit});
  Enter("key", "4", {.admission = limit});
  EXPECT_EQ(ReasonOf(ResultOf("4")), Reason::kTooManyPending);
  FinishFirst();
  Enter("key", "5", {.admission = limit});
  EXPECT_FALSE(ResultOf("5").code() == absl::StatusCode::kResourceExhausted);
}

TEST_F(AsyncLockTest, PendingLimitOfNothing) {
  const auto nobody = LimitPending({.per_resource = 0});
  Enter("key", "1", {.admission = nobody});
  Enter("key", "2", {.admission = nobody});
  EXPECT_THAT(order_, ElementsAre("1"));
  EXPECT_EQ(ReasonOf(ResultOf("2")), Reason::kTooManyPending);
}

TEST_F(AsyncLockTest, NoPendingLimit) {
  Enter("key", "1");
  for (int i = 0; i < 5000; ++i) Enter("key", "more", {.admission = AdmitAll()});
  EXPECT_TRUE(results_.empty());
}

// Differs: there one that timed out still counts.
TEST_F(AsyncLockTest, WhoTimedOutNoLongerCountsAsPending) {
  const auto one = LimitPending({.per_resource = 1});
  Enter("key", "1");
  Enter("key", "2", {.acquire_timeout = absl::Milliseconds(20), .admission = one});
  clock_.AdvanceBy(absl::Milliseconds(20));
  Enter("key", "3", {.admission = one});
  EXPECT_EQ(results_.size(), 1u) << "only 2 has failed";
}

// Differs: there keys are taken one by one, and what was taken stays so while the next is waited
// for in the order of the caller.
TEST_F(AsyncLockTest, SeveralKeysAreTakenAsOne) {
  auto both = AskAll({"key 1", "key 2"});
  ASSERT_TRUE(both->granted());
  Enter("key 1", "1");
  Enter("key 2", "2");
  EXPECT_TRUE(order_.empty());
  both->result.reset();
  EXPECT_THAT(order_, ElementsAre("1", "2"));
}

TEST_F(AsyncLockTest, SeveralKeysWaitForBodiesThatRunOnOneOfThemEach) {
  Enter("key 1", "1");
  Enter("key 2", "2");
  EnterAll({"key 1", "key 2"}, "both");
  FinishFirst();
  EXPECT_THAT(order_, ElementsAre("1", "2"));
  FinishFirst();
  EXPECT_THAT(order_, ElementsAre("1", "2", "both"));
  FinishFirst();
  EXPECT_TRUE(ResultOf("both").ok());
}

TEST_F(AsyncLockTest, TheSameSeveralKeysTwiceTakeTurns) {
  EnterAll({"a", "b", "c"}, "1");
  EnterAll({"a", "b", "c"}, "2");
  EXPECT_THAT(order_, ElementsAre("1"));
  FinishFirst();
  EXPECT_THAT(order_, ElementsAre("1", "2"));
  FinishFirst();
  EXPECT_TRUE(ResultOf("1").ok() && ResultOf("2").ok());
  ExpectNothingLeft();
}

TEST_F(AsyncLockTest, TheLimitsOfSeveralKeys) {
  Enter("key 2", "2");
  EnterAll({"key 1", "key 2"}, "late", {.acquire_timeout = absl::Milliseconds(20)});
  EnterAll({"key 1", "key 2"}, "occupied", {.max_occupation_time = absl::Milliseconds(30)});
  EnterAll({"key 1", "key 2"}, "long", {.max_execution_time = absl::Milliseconds(40)});
  clock_.AdvanceBy(absl::Milliseconds(30));
  EXPECT_EQ(ReasonOf(ResultOf("late")), Reason::kAcquireTimeout);
  EXPECT_EQ(ReasonOf(ResultOf("occupied")), Reason::kOccupationTimeout);
  FinishFirst();
  clock_.AdvanceBy(absl::Milliseconds(40));
  FinishFirst();
  EXPECT_EQ(ReasonOf(ResultOf("long")), Reason::kExecutionTimeout);
  EXPECT_THAT(order_, ElementsAre("2", "long"));
}

// In async-lock since 1.5.0; before, the same key twice waited for itself.
TEST_F(AsyncLockTest, TheSameKeyTwiceIsOneKey) {
  auto once = AskAll({"key", "other", "key"});
  ASSERT_TRUE(once->granted());
  EXPECT_EQ(once->lock().size(), 2u);
}

TEST_F(AsyncLockTest, TheListOfKeysIsLeftAsItWas) {
  const std::vector<std::string> before = {"3", "1", "2", "1"};
  std::vector<std::string> keys = before;
  EXPECT_TRUE(locks_.AcquireAll(keys).ok());
  EXPECT_TRUE(locks_.RunAll(keys, {}, [](LockContext&) { return absl::OkStatus(); }).ok());
  EXPECT_EQ(keys, before);
}

TEST_F(AsyncLockTest, ATimeoutAmongSeveralKeysLeavesNoneHeld) {
  absl::StatusOr<Lock> held = locks_.Acquire("key 2");
  auto both = AskAll({"key 1", "key 2"}, {.acquire_timeout = absl::Milliseconds(20)});
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_EQ(ReasonOf(both->status()), Reason::kAcquireTimeout);
  EXPECT_FALSE(locks_.IsBusy("key 1"));
}

TEST_F(AsyncLockTest, ABodyOverNoKeysRunsAndItsResultIsPassedThrough) {
  EXPECT_TRUE(AskAll({})->granted());
  for (const std::vector<std::string>& keys :
       {std::vector<std::string>(), std::vector<std::string>({"key"})}) {
    const auto body = [](LockContext&) -> absl::StatusOr<std::string> { return "result"; };
    EXPECT_THAT(locks_.RunAll(keys, {}, body), IsOkAndHolds("result"));
    std::optional<absl::StatusOr<std::string>> result;
    locks_.RunAllAsync<std::string>(
        keys, {},
        [](LockContext, LockManager::FinishWith<std::string> finish) { finish("result"); },
        [&](absl::StatusOr<std::string> value) { result = std::move(value); });
    ASSERT_TRUE(result);
    EXPECT_THAT(*result, IsOkAndHolds("result"));
  }
}

TEST_F(AsyncLockTest, ReentrantWithinATask) {
  ScopedOwner domain;
  const absl::Status status = locks_.Run("key", {}, [&](LockContext&) {
    return locks_.Run("key", {}, [](LockContext&) { return absl::OkStatus(); });
  });
  EXPECT_TRUE(status.ok()) << status;
  ExpectNothingLeft();
}

TEST_F(AsyncLockTest, ReentrantAcrossCallbacksOfTheTask) {
  bool entered = false;
  {
    ScopedOwner domain;
    locks_.RunAsync(
        "key", {},
        [&](LockContext, Finish finish) {
          locks_.AcquireAsync("key", {}, [&](absl::StatusOr<Lock> lock) { entered = lock.ok(); });
          finish(absl::OkStatus());
        },
        nullptr);
  }
  EXPECT_TRUE(entered);
}

TEST_F(AsyncLockTest, TwoTasksThatEnterTwiceTakeTurns) {
  for (const char* const task : {"1", "2"}) {
    ScopedOwner domain;
    locks_.RunAsync(
        "key", {},
        [&, task](LockContext, Finish finish) {
          order_.push_back(absl::StrCat(task, " outer"));
          // Timers hand nothing down by themselves.
          After(absl::Milliseconds(20), BindOwner([&, task, finish = std::move(finish)]() mutable {
                  locks_.RunAsync(
                      "key", {},
                      [&, task](LockContext, Finish inner) {
                        order_.push_back(absl::StrCat(task, " inner"));
                        inner(absl::OkStatus());
                      },
                      std::move(finish));
                }));
        },
        [&, task](absl::Status status) {
          results_.push_back({task, std::move(status)});
        });
  }
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(order_, ElementsAre("1 outer", "1 inner", "2 outer", "2 inner"));
  EXPECT_TRUE(ResultOf("1").ok() && ResultOf("2").ok());
  ExpectNothingLeft();
}

TEST_F(AsyncLockTest, NotReentrantForOthers) {
  ScopedOwner domain;
  absl::StatusOr<Lock> held = locks_.Acquire("key");
  ScopedOwner other;
  EXPECT_FALSE(locks_.TryAcquire("key").ok());
}

TEST_F(AsyncLockTest, SkipQueue) {
  Enter("key", "1");
  Enter("key", "2");
  Enter("key", "3", {.skip_queue = true});
  FinishFirst();
  FinishFirst();
  EXPECT_THAT(order_, ElementsAre("1", "3", "2"));
}

TEST_F(AsyncLockTest, Busy) {
  EXPECT_FALSE(locks_.IsBusy());
  Enter("key", "1");
  EXPECT_TRUE(locks_.IsBusy());
  EXPECT_TRUE(locks_.IsBusy("key"));
  EXPECT_FALSE(locks_.IsBusy("other"));
  FinishFirst();
  EXPECT_FALSE(locks_.IsBusy());
  EXPECT_FALSE(locks_.IsBusy("key"));
}

TEST_F(AsyncLockTest, AnyBytesAreAKey) {
  std::vector<Lock> held;
  for (std::string_view key :
       {std::string_view("__proto__"), std::string_view("constructor"),
        std::string_view("toString"), std::string_view("\0", 1), std::string_view("\0\0", 2),
        std::string_view("\xff\xfe"), std::string_view(" ")}) {
    absl::StatusOr<Lock> lock = locks_.Acquire(key);
    ASSERT_TRUE(lock.ok()) << lock.status();
    EXPECT_FALSE(locks_.TryAcquire(key).ok());
    held.push_back(*std::move(lock));
  }
  const std::string long_key(100000, 'x');
  EXPECT_TRUE(locks_.Acquire(long_key).ok());
}

// Differs: there an empty key is one like any other.
TEST_F(AsyncLockTest, AnEmptyKeyIsRefused) {
  EXPECT_EQ(ReasonOf(locks_.Acquire("").status()), Reason::kInvalidArgument);
}

// Instead of one's own promises.
TEST_F(AsyncLockTest, BodiesAndResultsComeOnTheExecutorOfTheUser) {
  SimulatedExecutor executor;
  LockManager locks = NewManager({.executor = &executor});
  std::optional<absl::Status> result;
  locks.RunAsync(
      "key", {},
      [&](LockContext, Finish finish) {
        order_.push_back("runs");
        finish(absl::OkStatus());
      },
      [&](absl::Status status) { result = std::move(status); });
  EXPECT_THAT(order_, ElementsAre());
  EXPECT_TRUE(executor.RunOne());
  EXPECT_THAT(order_, ElementsAre("runs"));
  EXPECT_FALSE(result);
  EXPECT_EQ(executor.RunAll(), 1u);
  EXPECT_EQ(result, absl::OkStatus());
}

TEST_F(AsyncLockTest, ManyBodiesInARowDoNotGrowTheStack) {
  int done = 0;
  absl::StatusOr<Lock> held = locks_.Acquire("key");
  for (int i = 0; i < 30000; ++i) {
    locks_.RunAsync(
        "key", {.admission = AdmitAll()},
        [](LockContext, Finish finish) { finish(absl::OkStatus()); },
        [&](absl::Status) { ++done; });
  }
  ASSERT_TRUE(held->Release().ok());
  EXPECT_EQ(done, 30000);
}

}  // namespace
}  // namespace latchkey
