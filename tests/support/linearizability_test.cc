// The checker itself: it accepts what can be explained, and nothing else.
#include "latchkey/tests/support/linearizability.h"

#include <string>
#include <utility>
#include <variant>

#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace latchkey {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Kind = Operation::Kind;

constexpr AcquisitionId kA = {1, 1};
constexpr AcquisitionId kB = {1, 2};
constexpr absl::Duration kForEver = absl::InfiniteDuration();

Operation Obtain(uint64_t invoked, uint64_t returned, AcquisitionId acquisition, ObtainReply answer,
                 Priority priority = 0) {
  Operation step{.client = static_cast<int>(acquisition.low),
                 .invoked = invoked,
                 .returned = returned,
                 .kind = Kind::kObtain,
                 .resource = "r",
                 .acquisition = acquisition,
                 .priority = priority,
                 .reserve_below = 100};
  step.answer = std::move(answer);
  return step;
}

ObtainReply Obtained(FencingToken token) {
  return {.outcome = ObtainOutcome::kObtained, .token = token, .remaining = kForEver};
}
ObtainReply Denied(Priority by = 0) {
  return {.outcome = ObtainOutcome::kDenied, .remaining = kForEver, .other_priority = by};
}
ObtainReply Reserved(Priority victim = 0) {
  return {.outcome = ObtainOutcome::kReserved, .remaining = kForEver, .other_priority = victim};
}

Operation Release(uint64_t invoked, uint64_t returned, AcquisitionId acquisition,
                  ReleaseOutcome answer) {
  Operation step{.client = static_cast<int>(acquisition.low),
                 .invoked = invoked,
                 .returned = returned,
                 .kind = Kind::kRelease,
                 .resource = "r",
                 .acquisition = acquisition};
  step.answer = answer;
  return step;
}

Operation Inspect(uint64_t invoked, uint64_t returned, ResourceState answer) {
  Operation step{.client = 9,
                 .invoked = invoked,
                 .returned = returned,
                 .kind = Kind::kInspect,
                 .resource = "r"};
  step.answer = std::move(answer);
  return step;
}

Operation Unanswered(Operation step) {
  step.returned = Operation::kNever;
  step.answer = std::monostate();
  return step;
}

// ---- What it accepts ----

TEST(LinearizabilityTest, NothingIsLinearizable) { EXPECT_EQ(CheckLinearizable({}), ""); }

TEST(LinearizabilityTest, StepsOneAfterTheOtherAreInThatOrder) {
  EXPECT_EQ(CheckLinearizable({Obtain(1, 2, kA, Obtained(1)), Obtain(3, 4, kB, Denied()),
                               Release(5, 6, kA, ReleaseOutcome::kReleased),
                               Obtain(7, 8, kB, Obtained(2))}),
            "");
}

TEST(LinearizabilityTest, StepsThatOverlapMayHaveHappenedInAnyOrder) {
  // By their calls A comes first, by their answers B does.
  EXPECT_EQ(CheckLinearizable({Obtain(1, 10, kA, Denied()), Obtain(2, 3, kB, Obtained(1))}), "");
  EXPECT_EQ(CheckLinearizable({Obtain(1, 10, kA, Obtained(1)), Obtain(2, 9, kB, Obtained(2)),
                               Release(3, 8, kA, ReleaseOutcome::kReleased)}),
            "");
}

TEST(LinearizabilityTest, TokensMayLeaveGaps) {
  EXPECT_EQ(CheckLinearizable({Obtain(1, 2, kA, Obtained(17)),
                               Release(3, 4, kA, ReleaseOutcome::kReleased),
                               Obtain(5, 6, kB, Obtained(40))}),
            "");
}

TEST(LinearizabilityTest, AThiefEntersAfterTheVictimHasLeft) {
  EXPECT_EQ(CheckLinearizable({Obtain(1, 2, kA, Obtained(1)), Obtain(3, 4, kB, Reserved(), 1),
                               Release(5, 6, kA, ReleaseOutcome::kReleased),
                               Obtain(7, 8, kB, Obtained(2), 1)}),
            "");
}

TEST(LinearizabilityTest, AStepWithoutAnAnswerMayHaveHappenedOrNot) {
  const Operation lost = Unanswered(Release(3, 4, kA, ReleaseOutcome::kReleased));
  EXPECT_EQ(CheckLinearizable({Obtain(1, 2, kA, Obtained(1)), lost, Obtain(5, 6, kB, Obtained(2))}),
            "");
  EXPECT_EQ(CheckLinearizable({Obtain(1, 2, kA, Obtained(1)), lost, Obtain(5, 6, kB, Denied()),
                               Obtain(7, 8, kB, Obtained(2))}),
            "");
}

TEST(LinearizabilityTest, ResourcesAreIndependent) {
  Operation other = Obtain(3, 4, kB, Obtained(1));
  other.resource = "s";
  EXPECT_EQ(CheckLinearizable({Obtain(1, 2, kA, Obtained(1)), other}), "");
}

// ---- What it rejects ----

TEST(LinearizabilityTest, TwoGrantsThatOverlapAreRejected) {
  EXPECT_NE(CheckLinearizable({Obtain(1, 2, kA, Obtained(1)), Obtain(3, 4, kB, Obtained(2))}), "");
  EXPECT_NE(CheckLinearizable({Obtain(1, 4, kA, Obtained(1)), Obtain(2, 3, kB, Obtained(2))}), "")
      << "nor where they ask at once";
}

TEST(LinearizabilityTest, ATokenThatGoesBackIsRejected) {
  EXPECT_NE(CheckLinearizable({Obtain(1, 2, kA, Obtained(5)),
                               Release(3, 4, kA, ReleaseOutcome::kReleased),
                               Obtain(5, 6, kB, Obtained(4))}),
            "");
  EXPECT_NE(CheckLinearizable({Obtain(1, 2, kA, Obtained(5)),
                               Release(3, 4, kA, ReleaseOutcome::kReleased),
                               Obtain(5, 6, kB, Obtained(5))}),
            "")
      << "nor may one come twice";
}

TEST(LinearizabilityTest, AGrantBeforeTheReleaseHasBegunIsRejected) {
  EXPECT_NE(CheckLinearizable({Obtain(1, 2, kA, Obtained(1)), Obtain(3, 4, kB, Obtained(2)),
                               Release(5, 6, kA, ReleaseOutcome::kReleased)}),
            "");
  const Operation early = Unanswered(Release(5, 6, kA, ReleaseOutcome::kReleased));
  EXPECT_NE(
      CheckLinearizable({Obtain(1, 2, kA, Obtained(1)), Obtain(3, 4, kB, Obtained(2)), early}), "");
}

TEST(LinearizabilityTest, ARefusalByNobodyIsRejected) {
  EXPECT_NE(CheckLinearizable({Obtain(1, 2, kA, Denied())}), "");
  EXPECT_NE(
      CheckLinearizable({Obtain(1, 2, kA, Obtained(1)),
                         Release(3, 4, kA, ReleaseOutcome::kReleased), Obtain(5, 6, kB, Denied())}),
      "")
      << "a release whose answer is there has happened";
}

TEST(LinearizabilityTest, AThiefThatEntersWhileTheVictimIsInsideIsRejected) {
  EXPECT_NE(CheckLinearizable({Obtain(1, 2, kA, Obtained(1)), Obtain(3, 4, kB, Reserved(), 1),
                               Obtain(5, 6, kB, Obtained(2), 1)}),
            "");
}

TEST(LinearizabilityTest, AReleaseThatFreesTwiceIsRejected) {
  EXPECT_NE(CheckLinearizable({Obtain(1, 2, kA, Obtained(1)),
                               Release(3, 6, kA, ReleaseOutcome::kReleased),
                               Release(4, 5, kA, ReleaseOutcome::kReleased)}),
            "");
}

TEST(LinearizabilityTest, AnAnswerFromAStateLongGoneIsRejected) {
  const ResourceState held{.resource = "r", .held = true, .handles = 1, .token = 1};
  EXPECT_EQ(CheckLinearizable({Obtain(1, 2, kA, Obtained(1)), Inspect(3, 4, held)}), "");
  EXPECT_NE(CheckLinearizable({Obtain(1, 2, kA, Obtained(1)),
                               Release(3, 4, kA, ReleaseOutcome::kReleased), Inspect(5, 6, held)}),
            "");
}

TEST(LinearizabilityTest, TwoAnswersInTheWrongOrderAreRejected) {
  // Either look can be explained; not that the later one sees the older state.
  const ResourceState held{.resource = "r", .held = true, .handles = 1, .token = 1};
  EXPECT_EQ(
      CheckLinearizable({Obtain(1, 10, kA, Obtained(1)), Inspect(2, 3, {}), Inspect(4, 5, held)}),
      "");
  EXPECT_NE(
      CheckLinearizable({Obtain(1, 10, kA, Obtained(1)), Inspect(2, 3, held), Inspect(4, 5, {})}),
      "");
}

// ---- What it says ----

TEST(LinearizabilityTest, TellsTheShortestBeginningThatIsWrongInWords) {
  const std::string told = CheckLinearizable(
      {Obtain(1, 2, kA, Obtained(1)), Obtain(3, 4, kB, Obtained(2)),
       Release(5, 6, kA, ReleaseOutcome::kReleased), Release(7, 8, kB, ReleaseOutcome::kNotHeld)});
  EXPECT_THAT(told, HasSubstr("no order of these steps on 'r'"));
  EXPECT_THAT(told, HasSubstr("[3, 4] thread 2: obtain #2 of '' priority 0"));
  EXPECT_THAT(told, HasSubstr("-> obtained, token 2"));
  EXPECT_THAT(told, HasSubstr("after which it is held by ''"));
  EXPECT_THAT(told, Not(HasSubstr("not held"))) << "what came later does not matter";
}

}  // namespace
}  // namespace latchkey
