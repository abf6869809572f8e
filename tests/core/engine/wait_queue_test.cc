// What is next for a queue, in every situation that the engine tells apart: without a clock,
// without a backend, without a thread.

#include "latchkey/core/engine/wait_queue.h"

#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/engine/request_terms.h"
#include "latchkey/core/engine/waiter.h"
#include "latchkey/core/policy/acquire_options.h"

namespace latchkey::internal {
namespace {

using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::IsEmpty;

class WaitQueueTest : public ::testing::Test {
 protected:
  explicit WaitQueueTest(bool by_priority = true) : queue_(by_priority) {}
  // A queue has a reference to each that is in it.
  ~WaitQueueTest() override {
    for (const RefPtr<Waiter>& waiter : waiters_) {
      if (waiter->in_queue()) waiter->queue->Remove(*waiter);
    }
  }

  using Phase = Waiter::Phase;
  using Question = Waiter::Question;

  // One that may preempt whoever is lower, unless the terms say otherwise.
  Waiter& Add(const RequestTerms& terms, const AcquireOptions& options = {},
              Phase phase = Phase::kWaiting) {
    RefPtr<Waiter> waiter =
        Waiter::New(nullptr, ResourceName("r"), terms, options, [](const auto&) {});
    waiter->id = {1, ++ids_};
    waiters_.push_back(waiter);
    const absl::int128 rank = queue_.ranked_by_priority ? -absl::int128(terms.priority) : ids_;
    queue_.Insert(*waiter, rank, /*in_front=*/false, phase);
    return *waiter;
  }
  Waiter& Add(Priority priority) {
    return Add({.priority = priority, .reserve_below = kReserveBelowAll});
  }
  // The next step is that one; takes it, as the driver would.
  void ExpectRegistered(Waiter& waiter) {
    const QueueStep step = Next();
    ASSERT_EQ(step.kind, QueueStep::kRegister);
    ASSERT_EQ(step.waiter, &waiter);
    queue_.Register(waiter, /*asks=*/true);
  }
  void ExpectAsked(Waiter& waiter) {
    const QueueStep step = Next();
    ASSERT_EQ(step.kind, QueueStep::kAsk);
    ASSERT_EQ(step.waiter, &waiter);
    if (step.to_look) waiter.BecomeDue(true);
    queue_.Send(waiter);
  }
  void ExpectRetired(Waiter& waiter) {
    const QueueStep step = Next();
    ASSERT_EQ(step.kind, QueueStep::kRetire);
    ASSERT_EQ(step.waiter, &waiter);
    queue_.Retire(waiter);
  }
  void ExpectIdle() { EXPECT_EQ(Next().kind, QueueStep::kIdle); }
  // It comes to the front, asks, and is denied.
  void ExpectDenied(Waiter& waiter) {
    ExpectRegistered(waiter);
    ExpectAsked(waiter);
    waiter.BecomeAnswered();
  }
  void End(Waiter& waiter, const absl::Status& outcome) {
    waiter.outcome = outcome;
    queue_.Remove(waiter);
  }

  QueueStep Next() const { return queue_.NextStep(); }
  static std::vector<Waiter*> In(const WaiterList& list) {
    std::vector<Waiter*> raw;
    for (const RefPtr<Waiter>& waiter : list) raw.push_back(waiter.get());
    return raw;
  }

  std::vector<RefPtr<Waiter>> waiters_;
  WaitQueue queue_;
  uint64_t ids_ = 0;
};

class FifoQueueTest : public WaitQueueTest {
 protected:
  FifoQueueTest() : WaitQueueTest(/*by_priority=*/false) {}
};

TEST_F(WaitQueueTest, NothingIsNextForNobody) { ExpectIdle(); }

TEST_F(WaitQueueTest, WhoeverComesToTheFrontRegistersThenAsks) {
  Waiter& waiter = Add(0);
  ExpectRegistered(waiter);
  EXPECT_EQ(waiter.question, Question::kDue);
  ExpectAsked(waiter);
  EXPECT_EQ(waiter.question, Question::kSent);
  ExpectIdle();
  waiter.BecomeAnswered();
  ExpectIdle();
  waiter.BecomeDue();
  ExpectAsked(waiter);
}

TEST_F(WaitQueueTest, ADueQuestionWaitsForTheAnswerToTheOneBefore) {
  Waiter& waiter = Add(0);
  ExpectRegistered(waiter);
  ExpectAsked(waiter);
  waiter.BecomeDue();
  EXPECT_EQ(waiter.question, Question::kSentAndDue);
  ExpectIdle();
  waiter.BecomeAnswered();
  ExpectAsked(waiter);
}

TEST_F(WaitQueueTest, OnlyTheFirstAsks) {
  Waiter& first = Add(0);
  Waiter& second = Add(0);
  ExpectDenied(first);
  ExpectIdle();
  EXPECT_FALSE(second.registered);
}

TEST_F(WaitQueueTest, ANewHeadRegistersBeforeTheOldOneRetires) {
  Waiter& low = Add(0);
  ExpectDenied(low);
  Waiter& high = Add(1);
  ExpectRegistered(high);
  ExpectRetired(low);
  ExpectAsked(high);
}

TEST_F(WaitQueueTest, WhoeverMayBeTheSuccessorIsNotRetired) {
  Waiter& low = Add(0);
  ExpectDenied(low);
  low.reserved = true;
  Waiter& high = Add(1);
  ExpectDenied(high);
  ExpectIdle();
  low.reserved = false;
  low.BecomeDue();
  ExpectAsked(low);
  ExpectIdle();
  low.BecomeAnswered();
  ExpectRetired(low);
  ExpectIdle();
}

TEST_F(WaitQueueTest, WhoeverWasGrantedTheLockIsToldBeforeAnythingElse) {
  Waiter& first = Add(0);
  ExpectDenied(first);
  Waiter& second = Add(0);
  End(first, absl::OkStatus());
  ASSERT_EQ(Next().kind, QueueStep::kTellGranted);
  WaiterList told;
  queue_.Take(queue_.granted, told, told);
  EXPECT_THAT(In(told), ElementsAre(&first));
  EXPECT_THAT(In(queue_.registered), IsEmpty());
  ExpectRegistered(second);
}

TEST_F(WaitQueueTest, TheNextTakesThePlaceOfOneThatEndedWithoutTheLock) {
  Waiter& first = Add(0);
  ExpectDenied(first);
  Waiter& second = Add(0);
  End(first, absl::CancelledError());
  // It is told only when the next one has its place in the backend's order.
  EXPECT_EQ(queue_.PlaceFor(second), first.id);
  ExpectRegistered(second);
  // Its own registration ends first.
  ExpectRetired(first);
  ASSERT_EQ(Next().kind, QueueStep::kTellRefused);
  WaiterList told;
  queue_.Take(queue_.refused, told, told);
  EXPECT_THAT(In(told), ElementsAre(&first));
  ExpectAsked(second);
}

TEST_F(WaitQueueTest, NobodyTakesThePlaceOfAnotherPriority) {
  Waiter& high = Add(1);
  ExpectDenied(high);
  Waiter& low = Add(0);
  End(high, absl::CancelledError());
  EXPECT_EQ(queue_.PlaceFor(low), AcquisitionId());
}

TEST_F(FifoQueueTest, TheMostUrgentThatMayPreemptAsksBesideTheHead) {
  Waiter& head = Add(0);
  ExpectDenied(head);
  Waiter& meek = Add({.priority = 9});
  Waiter& thief = Add(5);
  ExpectRegistered(thief);
  ExpectAsked(thief);
  ExpectIdle();
  EXPECT_FALSE(meek.registered);
  EXPECT_TRUE(head.registered);
}

TEST_F(FifoQueueTest, NobodyPreemptsAHolderThatIsAsUrgent) {
  Waiter& head = Add(0);
  Waiter& thief = Add(5);
  queue_.holder_priority = 5;
  ExpectDenied(head);
  ExpectIdle();
  EXPECT_FALSE(thief.registered);
  queue_.holder_priority = 4;
  ExpectRegistered(thief);
}

TEST_F(FifoQueueTest, NorOneThatItMayNotReserveBelow) {
  Waiter& head = Add(0);
  Add({.priority = 5, .reserve_below = 3});
  queue_.holder_priority = 3;
  ExpectDenied(head);
  ExpectIdle();
}

TEST_F(WaitQueueTest, ASuccessorRegistersWhereverItStands) {
  Waiter& head = Add(1);
  ExpectDenied(head);
  Waiter& woken = Add(0);
  woken.reserved = true;
  queue_.NeedsRegistration(woken);
  queue_.NeedsRegistration(woken);
  ExpectRegistered(woken);
  ExpectAsked(woken);
  ExpectIdle();
}

TEST_F(WaitQueueTest, OneThatIsNotRegisteredAsksWhereItStands) {
  Waiter& head = Add(0);
  ExpectDenied(head);
  Waiter& behind = Add({.owner = "ann"});
  queue_.AskAlone(behind);
  ExpectAsked(behind);
  behind.BecomeAnswered();
  ExpectIdle();
  EXPECT_FALSE(behind.registered);
}

TEST_F(WaitQueueTest, WhatASingleQuestionWasForGoesWithARegistration) {
  Waiter& first = Add(0);
  ExpectDenied(first);
  Waiter& behind = Add(0);
  queue_.AskAlone(behind);
  End(first, absl::OkStatus());
  WaiterList told;
  queue_.Take(queue_.granted, told, told);
  ExpectRegistered(behind);
  ExpectAsked(behind);
  behind.BecomeAnswered();
  ExpectIdle();
}

TEST_F(WaitQueueTest, SomebodyLooksWhoHoldsIfThatIsNeeded) {
  Waiter& head = Add(0);
  ExpectDenied(head);
  queue_.look_after = queue_.questions;
  EXPECT_TRUE(Next().to_look);
  ExpectAsked(head);
  ExpectIdle();
  // The answer to what was asked since will do.
  head.BecomeAnswered();
  queue_.look_after = queue_.questions - 1;
  head.BecomeDue();
  EXPECT_FALSE(Next().to_look);
}

TEST_F(WaitQueueTest, AfterAFailureItLooksInDueTime) {
  Waiter& head = Add(0);
  ExpectDenied(head);
  head.outage = std::make_unique<Outage>();
  head.outage->Note(absl::UnavailableError("no route"), absl::UnixEpoch());
  queue_.look_after = queue_.questions;
  ExpectIdle();
}

TEST_F(WaitQueueTest, WhoeverWouldBeDeniedForCertainOnlyRegisters) {
  Waiter& holder = Add({.owner = "bob", .priority = 3});
  ExpectDenied(holder);
  End(holder, absl::OkStatus());
  WaiterList told;
  queue_.Take(queue_.granted, told, told);
  Waiter& next = Add(3);
  EXPECT_FALSE(WaitQueue::NeedsToAsk(next, &holder));
  EXPECT_TRUE(WaitQueue::NeedsToAsk(next, nullptr));
  EXPECT_EQ(Next().waiter, &next);
  queue_.Register(next, /*asks=*/false);
  EXPECT_EQ(next.question, Question::kIdle);
  ExpectIdle();
}

// Each of these makes the answer worth a question.
TEST_F(WaitQueueTest, ButNotIfMoreThanADenialMayComeOfIt) {
  struct Case {
    std::string name;
    RequestTerms terms = {};
    AcquireOptions options = {};
    Phase phase = Phase::kWaiting;
    absl::Duration remaining = absl::InfiniteDuration();
    absl::Status outcome = {};
  };
  const Case kCases[] = {
      {.name = "it may preempt", .terms = {.priority = 4}},
      {.name = "it may enter again", .terms = {.owner = "ann"}},
      {.name = "attempts are counted", .options = {.max_attempts = 2}},
      {.name = "it does not wait", .options = {.acquire_timeout = absl::ZeroDuration()}},
      {.name = "it is joining", .phase = Phase::kJoining},
      {.name = "the hold ends by itself", .remaining = absl::Seconds(1)},
      {.name = "there is no hold", .outcome = absl::CancelledError()},
  };
  Waiter& holder = Add({.owner = "bob", .priority = 3});
  End(holder, absl::OkStatus());
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    holder.grant.remaining = c.remaining;
    holder.outcome = c.outcome;
    EXPECT_TRUE(WaitQueue::NeedsToAsk(Add(c.terms, c.options, c.phase), &holder));
  }
}

TEST_F(WaitQueueTest, CountsThoseWhoWaitAndNotThoseWhoAreJoining) {
  Add(2);
  Waiter& joining = Add({.priority = 1}, {}, Phase::kJoining);
  EXPECT_EQ(queue_.pending(), 1);
  EXPECT_EQ(queue_.least_urgent()->terms.priority, 2);
  const AdmissionContext context = queue_.AdmissionOf(joining, queue_.least_urgent(), 7);
  EXPECT_EQ(context.pending_on_resource, 1);
  EXPECT_EQ(context.pending_in_total, 7);
  EXPECT_EQ(context.lowest_pending_priority, 2);
  queue_.Admit(joining);
  EXPECT_EQ(queue_.pending(), 2);
  EXPECT_EQ(queue_.least_urgent(), &joining);
  EXPECT_THAT(queue_.Describe(absl::UnixEpoch()),
              ElementsAre(Field(&ResourceSnapshot::Waiter::priority, 2),
                          Field(&ResourceSnapshot::Waiter::priority, 1)));
}

TEST_F(FifoQueueTest, SkippingTheQueueIsToComeBeforeThoseOfTheSamePriority) {
  Waiter& other = Add(1);
  Waiter& equal = Add(0);
  EXPECT_EQ(queue_.RankToSkip(equal, 99), equal.in_order.rank);
  EXPECT_EQ(queue_.RankToSkip(other, 0), 0);
}

TEST_F(WaitQueueTest, OneThatLeavesIsForgottenWhereverItWas) {
  Waiter& waiter = Add(0);
  queue_.AskAlone(waiter);
  queue_.NeedsRegistration(waiter);
  End(waiter, absl::CancelledError());
  EXPECT_TRUE(queue_.empty());
  EXPECT_EQ(queue_.may_preempt, 0);
  EXPECT_THAT(In(queue_.alone), IsEmpty());
  EXPECT_THAT(In(queue_.successors), IsEmpty());
  EXPECT_EQ(Next().kind, QueueStep::kTellRefused);
}

using WaiterDeathTest = WaitQueueTest;

TEST_F(WaiterDeathTest, APhaseOnlyGoesForward) {
  Waiter& waiter = Add(0);
  EXPECT_DEBUG_DEATH(waiter.MoveTo(Phase::kJoining), "forward");
}

TEST_F(WaiterDeathTest, OneQuestionAtATime) {
  Waiter& waiter = Add(0);
  waiter.BecomeSent();
  EXPECT_DEBUG_DEATH(waiter.BecomeSent(), "one question at a time");
}

TEST_F(WaiterDeathTest, AnAnswerIsToAQuestion) {
  Waiter& waiter = Add(0);
  EXPECT_DEBUG_DEATH(waiter.BecomeAnswered(), "to a question");
}

}  // namespace
}  // namespace latchkey::internal
