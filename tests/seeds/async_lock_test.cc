// async-lock's behaviour, case by case: what its users rely on, in our words. Where we differ, the
// test says so, and docs/reference/from-async-lock.md why.
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
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
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;
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
  Enter("key", "1");
  FinishFirst(absl::DataLossError("x"));
  EXPECT_EQ(ResultOf("1"), absl::DataLossError("x"));
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

// Differs: there the same key twice waits for itself.
TEST_F(AsyncLockTest, TheSameKeyTwiceIsOneKey) { EXPECT_TRUE(AskAll({"key", "key"})->granted()); }

TEST_F(AsyncLockTest, ATimeoutAmongSeveralKeysLeavesNoneHeld) {
  absl::StatusOr<Lock> held = locks_.Acquire("key 2");
  auto both = AskAll({"key 1", "key 2"}, {.acquire_timeout = absl::Milliseconds(20)});
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_EQ(ReasonOf(both->status()), Reason::kAcquireTimeout);
  EXPECT_FALSE(locks_.IsBusy("key 1"));
}

TEST_F(AsyncLockTest, NoKeysAtAll) { EXPECT_TRUE(AskAll({})->granted()); }

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
       {std::string_view("__proto__"), std::string_view("toString"), std::string_view("\0", 1),
        std::string_view("\0\0", 2), std::string_view("\xff\xfe"), std::string_view(" ")}) {
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
