// What a set does next, in every situation that its plan tells apart: without a clock, without a
// backend, without a thread.

#include "latchkey/core/engine/set_plan.h"

#include <cstddef>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace latchkey::internal {

void PrintTo(const SetStep& step, std::ostream* out) {
  constexpr const char* kNames[] = {"Ask", "Queue", "Reserve", "Complete"};
  *out << kNames[step.kind] << " " << step.member;
}

namespace {

using ::testing::ElementsAre;

constexpr SetStep Ask(size_t from) { return {SetStep::kAsk, from}; }
constexpr SetStep Queue(size_t member) { return {SetStep::kQueue, member}; }
constexpr SetStep Reserve(size_t member) { return {SetStep::kReserve, member}; }
constexpr SetStep Complete() { return {SetStep::kComplete}; }

Standing StandingOf(char letter) {
  switch (letter) {
    case 'f':
      return Standing::kFailed;
    case 'h':
      return Standing::kHard;
    case 's':
      return Standing::kSoft;
    case '+':
      return Standing::kHeld;
    default:
      return Standing::kUnknown;
  }
}

// Does a step as the driver does, with answers by letter: one for each member.
void Do(SetPlan& plan, const SetStep& step, const std::string& answers) {
  switch (step.kind) {
    case SetStep::kAsk: {
      const SetPlan::Batch batch = plan.BeginBatch(step.member);
      for (size_t i = batch.begin; i < batch.end; ++i) {
        if (!plan.IsHeld(i)) plan.Hear(i, StandingOf(answers[i]));
      }
      return;
    }
    case SetStep::kQueue:
      plan.GiveBack(step.member + 1);
      plan.Hear(step.member, Standing::kHeld);
      return;
    case SetStep::kReserve:
      plan.Hear(step.member, Standing::kHeld);
      return;
    case SetStep::kComplete:
      return;
  }
}

// The members that it asks for in a batch.
std::vector<size_t> AskedOf(SetPlan& plan, size_t from) {
  std::vector<size_t> asked;
  const SetPlan::Batch batch = plan.BeginBatch(from);
  for (size_t i = batch.begin; i < batch.end; ++i) {
    if (!plan.IsHeld(i)) asked.push_back(i);
  }
  return asked;
}

// ---- One batch ----

struct Row {
  const char* answers;  // To the first batch, which asks for all.
  SetStep next;
};

class FirstBatchTest : public ::testing::TestWithParam<Row> {};

TEST_P(FirstBatchTest, DecidesWhatIsNext) {
  const std::string answers = GetParam().answers;
  SetPlan plan(answers.size(), /*one_at_a_time=*/false);
  if (!answers.empty()) {
    ASSERT_EQ(plan.NextStep(), Ask(0));
    Do(plan, Ask(0), answers);
  }
  EXPECT_EQ(plan.NextStep(), GetParam().next);
}

INSTANTIATE_TEST_SUITE_P(
    All, FirstBatchTest,
    ::testing::Values(Row{"", Complete()}, Row{"+", Complete()}, Row{"+++", Complete()},
                      // Whoever is in the way is waited for in its queue: the first of them.
                      Row{"h", Queue(0)}, Row{"+h+", Queue(1)}, Row{"+hh", Queue(1)},
                      Row{"++h", Queue(2)},
                      // Nobody is asked to yield for a set that is not to be had anyway.
                      Row{"sh", Queue(1)}, Row{"s+h", Queue(2)},
                      // A failure is in the way as well: whoever waits asks again.
                      Row{"f", Queue(0)}, Row{"sf+", Queue(1)}, Row{"+fh", Queue(1)},
                      Row{"+hf", Queue(1)},
                      // If all that is missing may be asked to yield, one after the other is.
                      Row{"s", Reserve(0)}, Row{"+s", Reserve(1)}, Row{"s+s", Reserve(0)}));

// ---- Whole ways to the set ----

struct Way {
  const char* name;
  bool one_at_a_time;
  std::vector<std::pair<SetStep, const char*>> steps;  // Each with the answers that it finds.
};

class WayTest : public ::testing::TestWithParam<Way> {};

TEST_P(WayTest, LeadsToTheSet) {
  SetPlan plan(3, GetParam().one_at_a_time);
  for (const auto& [step, answers] : GetParam().steps) {
    ASSERT_EQ(plan.NextStep(), step);
    Do(plan, step, answers);
  }
  EXPECT_EQ(plan.NextStep(), Complete());
}

INSTANTIATE_TEST_SUITE_P(
    All, WayTest,
    ::testing::Values(
        Way{"AllFree", false, {{Ask(0), "+++"}}},
        Way{"AllFreeOneAtATime", true, {{Ask(0), "+.."}, {Ask(1), ".+."}, {Ask(2), "..+"}}},
        Way{"WhatComesBehindAWaitIsAskedForAnew",
            false,
            {{Ask(0), "+h+"}, {Queue(1), ""}, {Ask(2), "..+"}}},
        Way{"NothingComesBehindTheLast", false, {{Ask(0), "++h"}, {Queue(2), ""}}},
        Way{"AWaitForEach",
            true,
            {{Ask(0), "h.."},
             {Queue(0), ""},
             {Ask(1), ".h."},
             {Queue(1), ""},
             {Ask(2), "..h"},
             {Queue(2), ""}}},
        Way{"ReservesOneAfterTheOther",
            false,
            {{Ask(0), "s+s"}, {Reserve(0), ""}, {Reserve(2), ""}}},
        Way{"ReservesOnlyWhatOnePassFromTheBeginningHasSeen",
            false,
            {{Ask(0), "sh+"},
             {Queue(1), ""},
             {Ask(2), "..s"},
             {Ask(0), "s.s"},
             {Reserve(0), ""},
             {Reserve(2), ""}}},
        Way{"WhatBecameFreeMeanwhileNeedsNoReservation",
            false,
            {{Ask(0), "s+h"}, {Queue(2), ""}, {Ask(0), "+.."}}},
        Way{"WhatWasSoftMayBeHardNow",
            true,
            {{Ask(0), "s.."},
             {Ask(1), ".h."},
             {Queue(1), ""},
             {Ask(2), "..+"},
             {Ask(0), "h.."},
             {Queue(0), ""},
             {Ask(1), ".+."},
             {Ask(2), "..+"}}},
        Way{"AFailureIsWaitedFor", false, {{Ask(0), "+f+"}, {Queue(1), ""}, {Ask(2), "..+"}}}),
    [](const auto& way) { return way.param.name; });

// ---- What else it knows ----

TEST(SetPlanTest, GivingBackEverythingBeginsAnew) {
  SetPlan plan(3, /*one_at_a_time=*/false);
  Do(plan, Ask(0), "++s");
  EXPECT_EQ(plan.held_end(), 2u);
  plan.GiveBack(0);
  EXPECT_EQ(plan.held_end(), 0u);
  EXPECT_FALSE(plan.IsHeld(0));
  EXPECT_EQ(plan.NextStep(), Ask(0));
}

TEST(SetPlanTest, WhatIsGivenBackComesBehind) {
  SetPlan plan(4, /*one_at_a_time=*/false);
  Do(plan, Ask(0), "+h++");
  EXPECT_EQ(plan.held_end(), 4u);
  plan.GiveBack(2);
  EXPECT_EQ(plan.held_end(), 2u);
  EXPECT_TRUE(plan.IsHeld(0));
  EXPECT_EQ(plan.standing(1), Standing::kHard);
  EXPECT_FALSE(plan.IsHeld(2));
  EXPECT_FALSE(plan.IsHeld(3));
}

TEST(SetPlanTest, ABackendThatAnswersAtOnceIsAskedForOneAtATime) {
  SetPlan plan(3, /*one_at_a_time=*/true);
  EXPECT_THAT(AskedOf(plan, 0), ElementsAre(0));
  plan.Hear(0, Standing::kHeld);
  EXPECT_THAT(AskedOf(plan, 1), ElementsAre(1));
  plan.Hear(1, Standing::kHeld);
  EXPECT_THAT(AskedOf(plan, 2), ElementsAre(2));
}

// What it asks for behind a wait is in proportion to what it has gained since.
TEST(SetPlanTest, AfterAWaitItAsksForSomeThenForTwiceAsManyEachTime) {
  constexpr size_t kMembers = 60;
  SetPlan plan(kMembers, /*one_at_a_time=*/false);
  EXPECT_EQ(AskedOf(plan, 0).size(), kMembers);
  plan.Hear(0, Standing::kHard);
  Do(plan, Queue(0), "");
  std::vector<size_t> sizes;
  while (plan.NextStep().kind == SetStep::kAsk) {
    const std::vector<size_t> asked = AskedOf(plan, plan.NextStep().member);
    sizes.push_back(asked.size());
    for (const size_t member : asked) plan.Hear(member, Standing::kHeld);
  }
  EXPECT_THAT(sizes, ElementsAre(8, 16, 32, 3));
  EXPECT_EQ(plan.NextStep(), Complete());
}

TEST(SetPlanTest, ABatchLeavesOutWhatIsHeld) {
  SetPlan plan(4, /*one_at_a_time=*/false);
  Do(plan, Ask(0), "s++s");
  plan.Hear(3, Standing::kUnknown);
  EXPECT_THAT(AskedOf(plan, 0), ElementsAre(0, 3));
}

}  // namespace
}  // namespace latchkey::internal
