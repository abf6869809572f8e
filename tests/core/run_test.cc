// What Run, RunAsync, LockContext and NonPreemptibleScope promise.
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_context.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RunTest : public LockManagerFixture {
 protected:
  static absl::Status Ok(LockContext&) { return absl::OkStatus(); }
};

TEST_F(RunTest, RunsTheBodyUnderTheLockAndReturnsItsStatus) {
  EXPECT_TRUE(locks_
                  .Run("a", {},
                       [&](LockContext& context) {
                         EXPECT_TRUE(locks_.IsBusy("a"));
                         EXPECT_GT(context.fencing_token(), 0u);
                         EXPECT_TRUE(context.CheckPoint().ok());
                         EXPECT_FALSE(context.stop_token().stop_requested());
                         return absl::OkStatus();
                       })
                  .ok());
  const absl::Status mine = absl::DataLossError("mine");
  EXPECT_EQ(locks_.Run("a", {}, [&](LockContext&) { return mine; }), mine);
  ExpectNothingLeft();
}

TEST_F(RunTest, PassesTheValueOfTheBodyThrough) {
  absl::StatusOr<std::unique_ptr<int>> value =
      locks_.Run("a", {}, [](LockContext&) -> absl::StatusOr<std::unique_ptr<int>> {
        return std::make_unique<int>(42);
      });
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(**value, 42);
  absl::StatusOr<std::string> failed = locks_.Run(
      "a", {},
      [](LockContext&) -> absl::StatusOr<std::string> { return absl::NotFoundError("x"); });
  EXPECT_EQ(failed.status(), absl::NotFoundError("x"));
}

TEST_F(RunTest, TheBodyDoesNotRunWithoutTheLock) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  bool ran = false;
  absl::StatusOr<int> result = locks_.Run("a", {.acquire_timeout = absl::ZeroDuration()},
                                          [&](LockContext&) -> absl::StatusOr<int> {
                                            ran = true;
                                            return 1;
                                          });
  EXPECT_EQ(ReasonOf(result.status()), Reason::kAcquireTimeout);
  EXPECT_FALSE(ran);
}

TEST_F(RunTest, AnExceptionOfTheBodyGoesOnAfterTheRelease) {
  const auto throws = [&](LockContext&) -> absl::Status { throw std::runtime_error("oops"); };
  EXPECT_THROW(static_cast<void>(locks_.Run("a", {}, throws)), std::runtime_error);
  ExpectNothingLeft();
}

TEST_F(RunTest, ALongBodyIsAskedToStopAndReportedButKeepsTheLock) {
  std::stop_token stop;
  absl::Status checked;
  std::shared_ptr<Pending> next;
  const absl::Status status = locks_.Run(
      "a", {.max_execution_time = absl::Seconds(5)}, [&](LockContext& context) -> absl::Status {
        stop = context.stop_token();
        next = Ask("a");
        clock_.AdvanceBy(absl::Seconds(5) - absl::Nanoseconds(1));
        EXPECT_FALSE(stop.stop_requested());
        EXPECT_TRUE(context.CheckPoint().ok());
        clock_.AdvanceBy(absl::Nanoseconds(1));
        EXPECT_TRUE(stop.stop_requested());
        checked = context.CheckPoint();
        clock_.AdvanceBy(absl::Hours(1));
        EXPECT_FALSE(next->result) << "two inside";
        return absl::OkStatus();
      });
  EXPECT_EQ(ReasonOf(checked), Reason::kExecutionTimeout);
  EXPECT_EQ(ReasonOf(status), Reason::kExecutionTimeout);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), HasSubstr("'a'"));
  EXPECT_THAT(status.message(), HasSubstr("5s"));
  EXPECT_TRUE(next->granted());
}

TEST_F(RunTest, AStopTokenAskedForLateIsStopped) {
  static_cast<void>(
      locks_.Run("a", {.max_execution_time = absl::Seconds(5)}, [&](LockContext& context) {
        clock_.AdvanceBy(absl::Seconds(5));
        EXPECT_TRUE(context.stop_token().stop_requested());
        return absl::OkStatus();
      }));
}

TEST_F(RunTest, TheErrorOfABodyThatTookTooLongIsKeptInTheMessage) {
  const absl::Status status =
      locks_.Run("a", {.max_execution_time = absl::Seconds(5)}, [&](LockContext&) {
        clock_.AdvanceBy(absl::Seconds(6));
        return absl::DataLossError("disk is full");
      });
  EXPECT_EQ(ReasonOf(status), Reason::kExecutionTimeout);
  EXPECT_THAT(status.message(), HasSubstr("disk is full"));
}

TEST_F(RunTest, OccupationCountsTheWaitAndTheBody) {
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.lease = absl::Seconds(4)});
  std::optional<absl::Status> result;
  absl::Status checked;
  LockManager::FinishCallback finish;
  std::optional<LockContext> context;
  locks_.RunAsync(
      "a", {.max_occupation_time = absl::Seconds(6)},
      [&](LockContext with, LockManager::FinishCallback call) {
        context = with;
        finish = std::move(call);
      },
      [&](absl::Status status) { result = std::move(status); });
  clock_.AdvanceBy(absl::Seconds(5));
  ASSERT_TRUE(context);
  EXPECT_TRUE(context->CheckPoint().ok());
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(ReasonOf(context->CheckPoint()), Reason::kOccupationTimeout);
  EXPECT_FALSE(locks_.TryAcquire("a").ok());
  finish(absl::OkStatus());
  EXPECT_EQ(ReasonOf(*result), Reason::kOccupationTimeout);
}

TEST_F(RunTest, OccupationEndsTheWait) {
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.owner = "bob"});
  std::optional<absl::Status> result;
  locks_.RunAsync(
      "a", {.acquire_timeout = absl::Seconds(9), .max_occupation_time = absl::Seconds(6)},
      [&](LockContext, LockManager::FinishCallback) { FAIL(); },
      [&](absl::Status status) { result = std::move(status); });
  clock_.AdvanceBy(absl::Seconds(6));
  ASSERT_TRUE(result);
  EXPECT_EQ(ReasonOf(*result), Reason::kOccupationTimeout);
  EXPECT_THAT(result->message(), HasSubstr("'bob'"));
}

TEST_F(RunTest, ABodyThatWasPreemptedIsToldAtItsCheckPoint) {
  std::shared_ptr<Pending> thief;
  const absl::Status status = locks_.Run("a", {}, [&](LockContext& context) -> absl::Status {
    std::stop_token stop = context.stop_token();
    thief = Ask("a", {.priority = 7});
    EXPECT_TRUE(stop.stop_requested());
    return context.CheckPoint();
  });
  EXPECT_EQ(ReasonOf(status), Reason::kYieldRequested);
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(status.message(), HasSubstr("'a'"));
  EXPECT_THAT(status.message(), HasSubstr("priority 7"));
  EXPECT_TRUE(thief->granted());
}

TEST_F(RunTest, ABodyThatFinishesInSpiteOfAYieldKeepsItsResult) {
  const absl::Status status = locks_.Run("a", {}, [&](LockContext&) {
    Ask("a", {.priority = 7});
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(RunTest, AFiniteLeaseIsRenewedUntilTheBodyReturns) {
  std::shared_ptr<Pending> next;
  const absl::Status status =
      locks_.Run("a", {.lease = absl::Seconds(3)}, [&](LockContext& context) {
        next = Ask("a");
        clock_.AdvanceBy(absl::Minutes(10));
        EXPECT_FALSE(next->result);
        return context.CheckPoint();
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(next->granted());
}

TEST_F(RunTest, ALostLockMeansAbortedWhateverTheBodySays) {
  std::shared_ptr<Pending> thief;
  std::stop_token stop;
  const absl::Status status =
      locks_.Run("a", {.lease = absl::Seconds(3)}, [&](LockContext& context) {
        stop = context.stop_token();
        thief = Ask("a", {.priority = 1});
        EXPECT_TRUE(stop.stop_requested()) << "renewal is refused from now on";
        clock_.AdvanceBy(absl::Seconds(4));
        EXPECT_TRUE(thief->granted());
        EXPECT_EQ(ReasonOf(context.CheckPoint()), Reason::kExpired);
        return absl::OkStatus();
      });
  EXPECT_EQ(ReasonOf(status), Reason::kExpired);
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(status.message(), HasSubstr("'a'"));
  EXPECT_TRUE(thief->lock().IsHeld());

  absl::StatusOr<int> stolen = locks_.Run("b", {}, [&](LockContext&) -> absl::StatusOr<int> {
    thief = Ask("b", {.priority = 1, .preemption_grace = absl::Seconds(1)});
    clock_.AdvanceBy(absl::Seconds(1));
    return 1;
  });
  EXPECT_EQ(stolen.status().code(), absl::StatusCode::kAborted);
}

TEST_F(RunTest, ABodyWhoseLeaseCannotBeRenewedIsAskedToStopWhenItEnds) {
  auto link = std::make_shared<FaultInjectingProtocol>(
      backend_, FaultInjectingOptions{.clock = &clock_, .lease_margin = absl::Milliseconds(10)});
  LockManager far = *LockManager::Create(link, {.clock = &clock_});
  std::optional<LockContext> context;
  LockManager::FinishCallback finish;
  std::stop_token stop;
  std::optional<absl::Status> result;
  far.RunAsync(
      "a", {.lease = absl::Seconds(3)},
      [&](LockContext with, LockManager::FinishCallback call) {
        context = with;
        stop = with.stop_token();
        finish = std::move(call);
      },
      [&](absl::Status status) { result = std::move(status); });
  clock_.AdvanceBy(absl::Minutes(1));
  ASSERT_TRUE(context && context->CheckPoint().ok()) << "it is renewed";
  link->SetFaults({.unavailable = 1});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_FALSE(stop.stop_requested()) << "one failure is not a loss";
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_TRUE(stop.stop_requested());
  EXPECT_EQ(ReasonOf(context->CheckPoint()), Reason::kLost);
  auto next = Ask("a");
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_TRUE(next->granted()) << "past the lease only the fence protects";
  EXPECT_GT(next->lock().fencing_token(), context->fencing_token());
  finish(absl::OkStatus());
  clock_.AdvanceBy(absl::Seconds(1));
  ASSERT_TRUE(result);
  EXPECT_EQ(ReasonOf(*result), Reason::kLost);
  EXPECT_EQ(result->code(), absl::StatusCode::kAborted);
}

TEST_F(RunTest, MaxHoldBoundsABody) {
  const absl::Status status = locks_.Run(
      "a", {.lease = absl::Seconds(3), .max_hold = absl::Seconds(20)}, [&](LockContext& context) {
        clock_.AdvanceBy(absl::Seconds(19));
        EXPECT_TRUE(context.CheckPoint().ok());
        clock_.AdvanceBy(absl::Seconds(1));
        return context.CheckPoint();
      });
  EXPECT_EQ(ReasonOf(status), Reason::kExpired);
}

TEST_F(RunTest, AContextKeptTooLongSaysThatTheLockWasReleased) {
  std::optional<LockContext> kept;
  EXPECT_TRUE(locks_
                  .Run("a", {},
                       [&](LockContext& context) {
                         kept = context;
                         return absl::OkStatus();
                       })
                  .ok());
  EXPECT_EQ(ReasonOf(kept->CheckPoint()), Reason::kNotHeld);
  EXPECT_FALSE(kept->stop_token().stop_possible());
  ExpectNothingLeft();
}

TEST_F(RunTest, BlockingRunInsideACallbackIsRefused) {
  absl::Status status;
  locks_.AcquireAsync("a", {}, [&](absl::StatusOr<Lock>) { status = locks_.Run("b", {}, Ok); });
  EXPECT_EQ(ReasonOf(status), Reason::kWouldBlock);
}

// ---- RunAsync ----

TEST_F(RunTest, AnAsynchronousBodyHoldsTheLockUntilItFinishes) {
  LockManager::FinishCallback finish;
  std::optional<absl::Status> result;
  locks_.RunAsync(
      "a", {},
      [&](LockContext context, LockManager::FinishCallback call) {
        EXPECT_TRUE(context.CheckPoint().ok());
        finish = std::move(call);
      },
      [&](absl::Status status) { result = std::move(status); });
  EXPECT_FALSE(result);
  EXPECT_FALSE(locks_.TryAcquire("a").ok());
  finish(absl::DataLossError("mine"));
  EXPECT_EQ(*result, absl::DataLossError("mine"));
  finish(absl::OkStatus());
  EXPECT_EQ(*result, absl::DataLossError("mine")) << "only the first call counts";
  ExpectNothingLeft();
}

TEST_F(RunTest, AnAsynchronousBodyThatDropsItsCallbackReleases) {
  std::optional<absl::Status> result;
  locks_.RunAsync(
      "a", {}, [](LockContext, LockManager::FinishCallback) {},
      [&](absl::Status status) { result = std::move(status); });
  ASSERT_TRUE(result);
  EXPECT_EQ(ReasonOf(*result), Reason::kCancelled);
  ExpectNothingLeft();
}

TEST_F(RunTest, AsynchronousBodiesQueue) {
  std::vector<int> order;
  std::vector<LockManager::FinishCallback> finish;
  for (int i = 0; i < 3; ++i) {
    locks_.RunAsync(
        "a", {},
        [&, i](LockContext, LockManager::FinishCallback call) {
          order.push_back(i);
          finish.push_back(std::move(call));
        },
        nullptr);
  }
  EXPECT_THAT(order, ElementsAre(0));
  finish[0](absl::OkStatus());
  EXPECT_THAT(order, ElementsAre(0, 1));
  finish[1](absl::OkStatus());
  finish[2](absl::OkStatus());
  EXPECT_THAT(order, ElementsAre(0, 1, 2));
  ExpectNothingLeft();
}

TEST_F(RunTest, AnAsynchronousBodyMayHaveAValue) {
  LockManager::FinishWith<std::unique_ptr<int>> finish;
  std::optional<absl::StatusOr<std::unique_ptr<int>>> result;
  locks_.RunAsync<std::unique_ptr<int>>(
      "a", {},
      [&](LockContext, LockManager::FinishWith<std::unique_ptr<int>> call) {
        finish = std::move(call);
      },
      [&](absl::StatusOr<std::unique_ptr<int>> value) { result = std::move(value); });
  EXPECT_FALSE(result);
  EXPECT_FALSE(locks_.TryAcquire("a").ok());
  finish(std::make_unique<int>(42));
  ASSERT_TRUE(result && result->ok());
  EXPECT_EQ(***result, 42);
  finish(std::make_unique<int>(43));
  EXPECT_EQ(***result, 42) << "only the first call counts";
  ExpectNothingLeft();
}

TEST_F(RunTest, TheErrorOfAnAsynchronousBodyComesInPlaceOfItsValue) {
  std::vector<absl::Status> results;
  const auto note = [&](absl::StatusOr<int> value) { results.push_back(value.status()); };
  using Finish = LockManager::FinishWith<int>;
  const absl::Status mine = absl::DataLossError("mine");
  locks_.RunAsync<int>(
      "a", {}, [&](LockContext, Finish finish) { finish(mine); }, note);
  locks_.RunAsync<int>(
      "a", {}, [](LockContext, Finish) {}, note);
  locks_.RunAsync<int>(
      "a", {.max_execution_time = absl::Seconds(5)},
      [&](LockContext, Finish finish) {
        clock_.AdvanceBy(absl::Seconds(5));
        finish(7);
      },
      note);
  locks_.RunAsync<int>(
      "a", {.lease = absl::Seconds(3), .auto_renew = false},
      [&](LockContext, Finish finish) {
        clock_.AdvanceBy(absl::Seconds(3));
        finish(7);
      },
      note);
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  locks_.RunAsync<int>(
      "a", {.max_attempts = 1}, [](LockContext, Finish) { FAIL(); }, note);
  locks_.RunAsync<int>(
      "b", {}, [](LockContext, Finish finish) { finish(1); }, nullptr);
  ASSERT_EQ(results.size(), 5u);
  EXPECT_EQ(results[0], mine);
  EXPECT_EQ(ReasonOf(results[1]), Reason::kCancelled);
  EXPECT_EQ(ReasonOf(results[2]), Reason::kExecutionTimeout) << "its value came too late";
  EXPECT_EQ(ReasonOf(results[3]), Reason::kExpired);
  EXPECT_EQ(ReasonOf(results[4]), Reason::kAttemptsExhausted);
}

// ---- Under several locks ----

TEST_F(RunTest, RunsABodyUnderSeveralLocksAsOne) {
  absl::StatusOr<int> value =
      locks_.RunAll({"b", "a", "b"}, {}, [&](LockContext& context) -> absl::StatusOr<int> {
        EXPECT_TRUE(locks_.IsBusy("a") && locks_.IsBusy("b"));
        EXPECT_GT(context.fencing_token("a"), 0u);
        EXPECT_GT(context.fencing_token("b"), 0u);
        EXPECT_EQ(context.fencing_token("c"), 0u);
        EXPECT_EQ(context.fencing_token(), context.fencing_token("a"));
        EXPECT_TRUE(context.CheckPoint().ok());
        return 7;
      });
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ(*value, 7);
  ExpectNothingLeft();
  EXPECT_THROW(
      static_cast<void>(locks_.RunAll(
          {"a", "b"}, {}, [](LockContext&) -> absl::Status { throw std::runtime_error(""); })),
      std::runtime_error);
  ExpectNothingLeft();
}

TEST_F(RunTest, RunsABodyUnderNothing) {
  const auto body = [](LockContext& context) -> absl::StatusOr<int> {
    EXPECT_TRUE(context.CheckPoint().ok());
    EXPECT_EQ(context.fencing_token(), 0u);
    EXPECT_FALSE(context.stop_token().stop_requested());
    NonPreemptibleScope scope(context);
    return 7;
  };
  absl::StatusOr<int> value = locks_.RunAll({}, {}, body);
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ(*value, 7);
  const absl::Status late =
      locks_.RunAll({}, {.max_execution_time = absl::Seconds(1)}, [&](LockContext& context) {
        clock_.AdvanceBy(absl::Seconds(1));
        return context.CheckPoint();
      });
  EXPECT_EQ(ReasonOf(late), Reason::kExecutionTimeout) << "the limits of a body hold all the same";
}

TEST_F(RunTest, MembersMayHaveOptionsOfTheirOwnButTheLimitsOfTheBodyAreTheCalls) {
  const std::vector<LockRequest> requests = {{.resource = "a", .options = {.owner = "a's"}},
                                             {.resource = "b",
                                              .options = {.priority = 3,
                                                          .acquire_timeout = absl::Seconds(1),
                                                          .max_execution_time = absl::Hours(1)}}};
  const absl::Status late =
      locks_.RunAll(requests, {.max_execution_time = absl::Seconds(1)}, [&](LockContext& context) {
        for (const ResourceSnapshot& held : locks_.Snapshot()) {
          EXPECT_EQ(held.state.holder_owner, held.state.resource == "a" ? "a's" : "");
          EXPECT_EQ(held.state.holder_priority, held.state.resource == "a" ? 0 : 3);
        }
        clock_.AdvanceBy(absl::Seconds(1));
        return context.CheckPoint();
      });
  EXPECT_EQ(ReasonOf(late), Reason::kExecutionTimeout) << late;
  ExpectNothingLeft();

  const absl::StatusOr<Lock> in_the_way = locks_.Acquire("b", {.priority = 9});
  ASSERT_TRUE(in_the_way.ok());
  absl::Status end;
  locks_.RunAllAsync(
      requests, {.max_occupation_time = absl::Seconds(2)},
      [](LockContext, LockManager::FinishCallback finish) { finish(absl::OkStatus()); },
      [&](absl::Status status) { end = std::move(status); });
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(ReasonOf(end), Reason::kAcquireTimeout)
      << end << ": a member's own time was over first";
}

TEST_F(RunTest, AYieldOrALossOfOneOfSeveralLocksIsOneOfAll) {
  std::shared_ptr<Pending> thief;
  const absl::Status yielded = locks_.RunAll({"a", "b"}, {}, [&](LockContext& context) {
    std::stop_token stop = context.stop_token();
    {
      NonPreemptibleScope commit(context);
      thief = Ask("b", {.priority = 7});
      EXPECT_TRUE(context.CheckPoint().ok());
    }
    EXPECT_TRUE(stop.stop_requested());
    return context.CheckPoint();
  });
  EXPECT_EQ(ReasonOf(yielded), Reason::kYieldRequested);
  EXPECT_THAT(yielded.message(), HasSubstr("'a', 'b'"));
  EXPECT_TRUE(thief->granted());
  thief.reset();

  const absl::Status stolen = locks_.RunAll({"a", "b"}, {}, [&](LockContext&) {
    thief = Ask("b", {.priority = 7, .preemption_grace = absl::ZeroDuration()});
    return absl::OkStatus();
  });
  EXPECT_EQ(ReasonOf(stolen), Reason::kStolen);
  EXPECT_FALSE(locks_.IsBusy("a"));
}

TEST_F(RunTest, TheLimitsOfABodyUnderSeveralLocks) {
  const absl::Status late = locks_.RunAll({"a", "b"}, {.max_execution_time = absl::Seconds(1)},
                                          [&](LockContext& context) {
                                            std::stop_token stop = context.stop_token();
                                            auto next = Ask("b");
                                            clock_.AdvanceBy(absl::Seconds(1));
                                            EXPECT_TRUE(stop.stop_requested());
                                            clock_.AdvanceBy(absl::Hours(1));
                                            EXPECT_FALSE(next->result) << "two inside";
                                            return absl::OkStatus();
                                          });
  EXPECT_EQ(ReasonOf(late), Reason::kExecutionTimeout);
  absl::StatusOr<Lock> held = locks_.Acquire("b");
  std::optional<absl::Status> result;
  locks_.RunAllAsync(
      {"a", "b"}, {.max_occupation_time = absl::Seconds(1)},
      [](LockContext, LockManager::FinishCallback) { FAIL(); },
      [&](absl::Status status) { result = std::move(status); });
  clock_.AdvanceBy(absl::Seconds(1));
  ASSERT_TRUE(result);
  EXPECT_EQ(ReasonOf(*result), Reason::kOccupationTimeout);
}

TEST_F(RunTest, AnAsynchronousBodyUnderSeveralLocks) {
  absl::StatusOr<Lock> held = locks_.Acquire("b");
  std::optional<LockContext> context;
  LockManager::FinishWith<int> finish;
  std::optional<absl::StatusOr<int>> result;
  locks_.RunAllAsync<int>(
      {"a", "b"}, {.lease = absl::Seconds(5)},
      [&](LockContext with, LockManager::FinishWith<int> call) {
        context = with;
        finish = std::move(call);
      },
      [&](absl::StatusOr<int> value) { result = std::move(value); });
  EXPECT_FALSE(context);
  ASSERT_TRUE(held->Release().ok());
  ASSERT_TRUE(context);
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_TRUE(context->CheckPoint().ok()) << "both are renewed";
  EXPECT_FALSE(result);
  finish(7);
  ASSERT_TRUE(result && result->ok());
  EXPECT_EQ(**result, 7);
  EXPECT_EQ(ReasonOf(context->CheckPoint()), Reason::kNotHeld);
  ExpectNothingLeft();
  locks_.RunAllAsync<int>({"a"}, {}, nullptr,
                          [&](absl::StatusOr<int> value) { result = std::move(value); });
  EXPECT_EQ(ReasonOf(result->status()), Reason::kInvalidArgument);
}

// ---- NonPreemptibleScope ----

TEST_F(RunTest, ANonPreemptibleScopeDefersTheYield) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a");
  int asked = 0;
  holder->OnYieldRequested([&] { ++asked; });
  std::stop_token stop = holder->stop_token();
  std::shared_ptr<Pending> thief;
  {
    NonPreemptibleScope outer(*holder);
    {
      NonPreemptibleScope inner(*holder);
      thief = Ask("a", {.priority = 1});
    }
    EXPECT_EQ(asked, 0);
    EXPECT_FALSE(stop.stop_requested());
    EXPECT_EQ(holder->state(), LockState::kYielding);
  }
  EXPECT_EQ(asked, 1);
  EXPECT_TRUE(stop.stop_requested());
  EXPECT_TRUE(holder->Release().ok());
  EXPECT_TRUE(thief->granted());
}

TEST_F(RunTest, AYieldThatIsWithdrawnWithinTheScopeIsNeverTold) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a");
  int asked = 0;
  {
    NonPreemptibleScope scope(*holder);
    holder->OnYieldRequested([&] { ++asked; });
    Ask("a", {.priority = 1, .acquire_timeout = absl::Seconds(1)});
    clock_.AdvanceBy(absl::Seconds(1));
  }
  EXPECT_EQ(asked, 0);
  EXPECT_FALSE(holder->stop_token().stop_requested());
}

TEST_F(RunTest, ANonPreemptibleScopeIsBoundedByTheLease) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a", {.lease = absl::Seconds(5)});
  std::vector<LockState> lost;
  holder->OnLost([&](LockState state) { lost.push_back(state); });
  NonPreemptibleScope scope(*holder);
  auto thief = Ask("a", {.priority = 1});
  clock_.AdvanceBy(absl::Seconds(5));
  EXPECT_THAT(lost, ElementsAre(LockState::kExpired));
  EXPECT_TRUE(thief->granted());
}

TEST_F(RunTest, CheckPointsInsideANonPreemptibleScopePass) {
  const absl::Status status = locks_.Run("a", {}, [&](LockContext& context) -> absl::Status {
    std::stop_token stop = context.stop_token();
    {
      NonPreemptibleScope commit(context);
      Ask("a", {.priority = 1});
      EXPECT_TRUE(context.CheckPoint().ok());
      EXPECT_FALSE(stop.stop_requested());
    }
    EXPECT_TRUE(stop.stop_requested());
    return context.CheckPoint();
  });
  EXPECT_EQ(ReasonOf(status), Reason::kYieldRequested);
}

TEST_F(RunTest, ANonPreemptibleScopeCoversASet) {
  absl::StatusOr<LockSet> set = locks_.AcquireAll({"a", "b"});
  int asked = 0;
  set->OnYieldRequested([&] { ++asked; });
  {
    NonPreemptibleScope scope(*set);
    Ask("b", {.priority = 1, .acquire_timeout = absl::Seconds(9)});
    EXPECT_EQ(asked, 0);
  }
  EXPECT_EQ(asked, 1);
}

}  // namespace
}  // namespace latchkey
