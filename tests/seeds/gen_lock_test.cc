// gen-lock's behaviour, case by case: what its users rely on, in our words. Where we differ, the
// test says so, and docs/reference/from-gen-lock.md why; that page also maps each case of its own
// test suites to one of these. Everything else about transactions: tests/core/transaction_test.cc.
#include <memory>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/status_matchers.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/transaction.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::absl_testing::IsOkAndHolds;
using ::absl_testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The resource: every value that it ever had.
struct Cell {
  std::vector<int> values;
  int last() const { return values.back(); }
};

// A body that sets one value after the other with pauses between, and returns the last.
auto Sets(std::vector<int> values, absl::Duration pause = absl::Milliseconds(4)) {
  return
      [values = std::move(values), pause](Cell& cell, TransactionContext& ctx) -> Transaction<int> {
        for (const int value : values) {
          cell.values.push_back(value);
          co_await ctx.Sleep(pause);
        }
        co_return cell.last();
      };
}

class GenLockTest : public LockManagerFixture {
 protected:
  GenLockTest()
      : low_(locks_, "a", cell_, {.owner = "low", .priority = 1}),
        high_(locks_, "a", cell_, {.owner = "high", .priority = 2}) {}

  Cell cell_;
  Locker<Cell> low_;
  Locker<Cell> high_;
};

TEST_F(GenLockTest, ALockerSaysWhatItsOptionsAre) {
  EXPECT_EQ(low_.options().priority, 1);
  EXPECT_EQ(low_.With({.priority = 5}).options().priority, 5);
}

TEST_F(GenLockTest, ATransactionReturnsItsResult) {
  auto handle = low_.Start(Sets({1, 2}));
  clock_.AdvanceBy(absl::Milliseconds(8));
  EXPECT_THAT(handle.Wait(), IsOkAndHolds(2));
  EXPECT_EQ(cell_.last(), 2);
  ExpectNothingLeft();
}

TEST_F(GenLockTest, WhatAnAwaitYieldsGoesBackIntoTheBody) {
  auto handle = low_.Start([](Cell&, TransactionContext&) -> Transaction<int> {
    const int one = co_await AwaitCallback<int>([](Completion<int> done) { done(1); });
    const int two = co_await AwaitCallback<int>([](Completion<int> done) { done(2); });
    co_return 10 * one + two;
  });
  EXPECT_THAT(handle.Wait(), IsOkAndHolds(12));
}

TEST_F(GenLockTest, ErrorsOfTheBodyAreItsResult) {
  // Before its first await, after one, and out of one.
  auto at_once = low_.Start([](Cell&, TransactionContext&) -> Transaction<int> {
    co_return absl::DataLossError("at once");
  });
  EXPECT_EQ(at_once.Wait().status(), absl::DataLossError("at once"));
  auto later = low_.Start([](Cell&, TransactionContext& ctx) -> Transaction<int> {
    co_await ctx.Sleep(absl::Milliseconds(1));
    co_return absl::DataLossError("later");
  });
  clock_.AdvanceBy(absl::Milliseconds(1));
  EXPECT_EQ(later.Wait().status(), absl::DataLossError("later"));
  auto nested = low_.Start([](Cell&, TransactionContext&) -> Transaction<int> {
    const auto answer = co_await AwaitCallback<absl::StatusOr<int>>(
        [](Completion<absl::StatusOr<int>> done) { done(absl::DataLossError("nested")); });
    co_return answer;
  });
  EXPECT_EQ(nested.Wait().status(), absl::DataLossError("nested"));
  auto thrown = low_.Start([](Cell&, TransactionContext& ctx) -> Transaction<int> {
    co_await ctx.CheckPoint();
    throw std::runtime_error("thrown");
  });
  EXPECT_THAT(thrown.Wait(), StatusIs(absl::StatusCode::kInternal, HasSubstr("thrown")));
  ExpectNothingLeft();
}

TEST_F(GenLockTest, AHigherPriorityEndsALowerOne) {
  auto low = low_.Start(Sets({-1, 0, 1, 2}));
  clock_.AdvanceBy(absl::Milliseconds(1));
  auto high = high_.Start(Sets({3, 4}));
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_EQ(ReasonOf(low.Wait().status()), Reason::kYieldRequested);
  EXPECT_THAT(high.Wait(), IsOkAndHolds(4));
  EXPECT_THAT(cell_.values, ElementsAre(-1, 3, 4));
}

TEST_F(GenLockTest, ALowerPriorityWaitsForAHigherOne) {
  auto high = high_.Start(Sets({-1, 0, 1, 2}));
  clock_.AdvanceBy(absl::Milliseconds(1));
  auto low = low_.Start(Sets({3, 4}));
  clock_.AdvanceBy(absl::Milliseconds(30));
  EXPECT_THAT(high.Wait(), IsOkAndHolds(2));
  EXPECT_THAT(low.Wait(), IsOkAndHolds(4));
  EXPECT_THAT(cell_.values, ElementsAre(-1, 0, 1, 2, 3, 4));
}

TEST_F(GenLockTest, TransactionsOfOneOwnerRunSideBySide) {
  auto one = low_.Start(Sets({1, 2}));
  auto two = low_.With({.owner = "low", .priority = 2}).Start(Sets({3, 4}));
  EXPECT_THAT(cell_.values, ElementsAre(1, 3));
  clock_.AdvanceBy(absl::Milliseconds(8));
  EXPECT_TRUE(one.Wait().ok() && two.Wait().ok());
}

// Differs: there a handler that answers nothing is an error at run time.
TEST_F(GenLockTest, AHandlerThatAnswersNothingDoesNotCompile) {
  const auto silent = [](const Loss&) {};
  static_assert(!std::is_constructible_v<RecoveryHandler<int, Cell>, decltype(silent)>);
  // One that may answer later, and drops its chance, rejects.
  auto low = low_.Start(Sets({1, 2}), [](Recovery<int, Cell> /*recovery*/) {});
  auto high = high_.Start(Sets({3}));
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_EQ(ReasonOf(low.Wait().status()), Reason::kYieldRequested);
}

TEST_F(GenLockTest, Resumes) {
  auto low = low_.Start(Sets({-1, 0, 1, 2}), AlwaysResume());
  clock_.AdvanceBy(absl::Milliseconds(6));
  auto high = high_.Start(Sets({3, 4}));
  clock_.AdvanceBy(absl::Milliseconds(40));
  EXPECT_THAT(high.Wait(), IsOkAndHolds(4));
  EXPECT_THAT(low.Wait(), IsOkAndHolds(2));
  EXPECT_THAT(cell_.values, ElementsAre(-1, 0, 3, 4, 1, 2));
}

TEST_F(GenLockTest, Restarts) {
  auto low = low_.Start(Sets({-1, 0, 1, 2}), AlwaysRestart());
  clock_.AdvanceBy(absl::Milliseconds(6));
  auto high = high_.Start(Sets({3, 4}));
  clock_.AdvanceBy(absl::Milliseconds(60));
  EXPECT_THAT(high.Wait(), IsOkAndHolds(4));
  EXPECT_THAT(low.Wait(), IsOkAndHolds(2));
  EXPECT_THAT(cell_.values, ElementsAre(-1, 0, 3, 4, -1, 0, 1, 2));
}

TEST_F(GenLockTest, IsReplaced) {
  auto low = low_.Start(Sets({-1, 0, 1, 2}), [](const Loss&) { return Replace(Sets({-2, -2})); });
  clock_.AdvanceBy(absl::Milliseconds(6));
  auto high = high_.Start(Sets({3, 4}));
  clock_.AdvanceBy(absl::Milliseconds(40));
  EXPECT_THAT(high.Wait(), IsOkAndHolds(4));
  EXPECT_THAT(low.Wait(), IsOkAndHolds(-2));
  EXPECT_THAT(cell_.values, ElementsAre(-1, 0, 3, 4, -2, -2));
}

TEST_F(GenLockTest, IsRejectedWithTheLossOrAnErrorOfOnesOwn) {
  for (const bool own : {false, true}) {
    auto low = low_.Start(Sets({-1, 0, 1, 2}), [own](const Loss&) {
      return own ? Reject(absl::UnavailableError("rejected")) : Reject();
    });
    clock_.AdvanceBy(absl::Milliseconds(6));
    auto high = high_.Start(Sets({3, 4}));
    clock_.AdvanceBy(absl::Milliseconds(20));
    EXPECT_THAT(high.Wait(), IsOkAndHolds(4));
    const absl::Status status = low.Wait().status();
    if (own) {
      EXPECT_EQ(status, absl::UnavailableError("rejected"));
    } else {
      EXPECT_EQ(ReasonOf(status), Reason::kYieldRequested);
    }
  }
}

TEST_F(GenLockTest, AHandlerMayAnswerLater) {
  std::optional<Recovery<int, Cell>> asked;
  auto low = low_.Start(Sets({-1, 0, 1, 2}),
                        [&](Recovery<int, Cell> recovery) { asked.emplace(std::move(recovery)); });
  clock_.AdvanceBy(absl::Milliseconds(6));
  auto high = high_.Start(Sets({3, 4}));
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_THAT(high.Wait(), IsOkAndHolds(4));
  ASSERT_TRUE(asked);
  (*asked)(Replace(Sets({-2, -2})));
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_THAT(low.Wait(), IsOkAndHolds(-2));
}

TEST_F(GenLockTest, TwoLockersAreJoinedAndJoinedAgain) {
  Cell b;
  Cell c;
  Locker both = Join(low_, Locker(locks_, "b", b));
  Locker all = Join(both, Locker(locks_, "c", c));
  auto two = both.Start([&](Cell& first, Cell& second, TransactionContext&) -> Transaction<bool> {
    co_return &first == &cell_&&& second == &b;
  });
  EXPECT_THAT(two.Wait(), IsOkAndHolds(true));
  auto three = all.Start(
      [&](Cell& first, Cell& second, Cell& third, TransactionContext&) -> Transaction<bool> {
        co_return &first == &cell_&&& second == &b&&& third == &c&& locks_.IsBusy("a") &&
            locks_.IsBusy("b") && locks_.IsBusy("c");
      });
  EXPECT_THAT(three.Wait(), IsOkAndHolds(true));
  // Differs: there the options of the joined ones are inherited.
  EXPECT_EQ(both.options().priority, 0);
  ExpectNothingLeft();
}

// Differs: there the order of the caller counts, and these two wait for each other for ever.
TEST_F(GenLockTest, JoinedTheOtherWayRoundTheyDoNotDeadlock) {
  Cell b;
  Locker b_locker(locks_, "b", b, {.owner = "b"});
  const auto sleeps = [](Cell&, Cell&, TransactionContext& ctx) -> Transaction<void> {
    co_await ctx.Sleep(absl::Milliseconds(1));
  };
  auto one = Join(low_, b_locker).Start(sleeps);
  auto two = Join(b_locker, low_).Start(sleeps);
  clock_.AdvanceBy(absl::Milliseconds(2));
  EXPECT_TRUE(one.Wait().ok());
  EXPECT_TRUE(two.Wait().ok());
}

// The second example of its README: workers share out work by a priority that falls with what each
// has done, and try once.
TEST_F(GenLockTest, WhoTriesOnceLeavesTheWorkToWhoeverHasIt) {
  auto first = low_.With({.priority = 0, .max_attempts = 1}).Start(Sets({1}));
  auto second = high_.With({.priority = 0, .max_attempts = 1}).Start(Sets({2}));
  EXPECT_EQ(ReasonOf(second.Wait().status()), Reason::kAttemptsExhausted);
  clock_.AdvanceBy(absl::Milliseconds(4));
  EXPECT_THAT(first.Wait(), IsOkAndHolds(1));
}

}  // namespace
}  // namespace latchkey
