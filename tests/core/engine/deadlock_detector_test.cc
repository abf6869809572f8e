// Cycles of owners that wait for each other, as the detector finds them. What the engine makes of
// them is in deadlock_test.

#include "latchkey/core/engine/deadlock_detector.h"

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/ref_counted.h"

namespace latchkey::internal {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

struct Wait final : CycleWait {
  using CycleWait::CycleWait;
};

class DeadlockDetectorTest : public ::testing::Test {
 protected:
  ~DeadlockDetectorTest() override {
    for (const RefPtr<Wait>& wait : waits_) detector_.Remove(*wait);
    EXPECT_FALSE(detector_.active());
  }

  // `owner` waits for `resource`. Both are literals.
  Wait& Waits(const char* owner, const char* resource, Priority priority = 0,
              bool gives_way = false, bool by_force = false) {
    auto wait = RefPtr<Wait>::Adopt(new Wait(ResourceName(resource), owner));
    wait->priority = priority;
    wait->gives_way = gives_way;
    wait->takes_by_force = by_force;
    waits_.push_back(wait);
    detector_.Add(*wait);
    return *wait;
  }
  void HeldBy(const Wait& wait, const char* holder) {
    detector_.SetHolder(wait, holder, detector_.Now());
  }
  // Of one suspicion, if there is one.
  std::string Suspicion() {
    const auto cycles = detector_.TakeSuspects();
    return cycles.empty() ? "" : cycles[0].ToString();
  }

  DeadlockDetector detector_;
  std::vector<RefPtr<Wait>> waits_;
};

TEST_F(DeadlockDetectorTest, TwoThatWaitForEachOther) {
  HeldBy(Waits("ann", "x"), "bob");
  EXPECT_FALSE(detector_.HasSuspects());
  HeldBy(Waits("bob", "y"), "ann");
  ASSERT_TRUE(detector_.HasSuspects());
  const auto cycles = detector_.TakeSuspects();
  ASSERT_THAT(cycles, SizeIs(1));
  EXPECT_THAT(cycles[0].links, SizeIs(2));
  EXPECT_TRUE(detector_.Stands(cycles[0]));
  EXPECT_FALSE(detector_.HasSuspects());
}

TEST_F(DeadlockDetectorTest, NobodyWaitsInAChainWithAnEnd) {
  HeldBy(Waits("ann", "x"), "bob");
  HeldBy(Waits("bob", "y"), "eve");
  EXPECT_EQ(Suspicion(), "");
}

TEST_F(DeadlockDetectorTest, ALongOneNamesTheFirstFewAndTheLast) {
  HeldBy(Waits("a", "1"), "b");
  HeldBy(Waits("b", "2"), "c");
  HeldBy(Waits("c", "3"), "d");
  HeldBy(Waits("d", "4"), "e");
  HeldBy(Waits("e", "5"), "a");
  EXPECT_THAT(Suspicion(), ::testing::AllOf(::testing::HasSubstr("5 owners in all"),
                                            ::testing::HasSubstr("the last of whom")));
}

TEST_F(DeadlockDetectorTest, WhatWasSeenBeforeTheHolderWaitedIsNotCertain) {
  Wait& ann = Waits("ann", "x");
  HeldBy(ann, "bob");
  Wait& bob = Waits("bob", "y");
  HeldBy(bob, "ann");
  auto cycles = detector_.TakeSuspects();
  ASSERT_THAT(cycles, SizeIs(1));
  int certain = 0;
  for (const auto& link : cycles[0].links) certain += link.certain ? 1 : 0;
  EXPECT_EQ(certain, 1) << "that bob holds x was heard before he waited";
  HeldBy(ann, "bob");
  cycles = detector_.TakeSuspects();
  ASSERT_THAT(cycles, SizeIs(1));
  for (const auto& link : cycles[0].links) EXPECT_TRUE(link.certain) << link.holder;
}

TEST_F(DeadlockDetectorTest, AnOlderWordDoesNotCount) {
  Wait& ann = Waits("ann", "x");
  const uint64_t before = detector_.Now();
  Wait& bob = Waits("bob", "y");
  detector_.SetHolder(ann, "eve", detector_.Now());
  detector_.SetHolder(ann, "bob", before);
  HeldBy(bob, "ann");
  EXPECT_THAT(detector_.TakeSuspects(), IsEmpty());
}

TEST_F(DeadlockDetectorTest, OneThatHasLeftOrWaitsForAnotherBreaksIt) {
  Wait& ann = Waits("ann", "x");
  HeldBy(ann, "bob");
  HeldBy(Waits("bob", "y"), "ann");
  const auto cycles = detector_.TakeSuspects();
  ASSERT_THAT(cycles, SizeIs(1));
  HeldBy(ann, "eve");
  EXPECT_FALSE(detector_.Stands(cycles[0]));
  HeldBy(ann, "bob");
  EXPECT_TRUE(detector_.Stands(cycles[0]));
  detector_.Remove(ann);
  EXPECT_FALSE(detector_.Stands(cycles[0]));
  detector_.Remove(ann);  // Nothing happens.
}

TEST_F(DeadlockDetectorTest, WhoTakesByForceDoesNotWaitForEver) {
  HeldBy(Waits("ann", "x"), "bob");
  HeldBy(Waits("bob", "y", 0, /*gives_way=*/false, /*by_force=*/true), "ann");
  EXPECT_EQ(Suspicion(), "");
}

TEST_F(DeadlockDetectorTest, WhoGivesWayToTheMoreUrgentIsInNobodysWay) {
  HeldBy(Waits("ann", "x", 5), "bob");
  HeldBy(Waits("bob", "y", 1, /*gives_way=*/true), "ann");
  EXPECT_EQ(Suspicion(), "");
}

TEST_F(DeadlockDetectorTest, TheLeastUrgentGivesUpAndAmongEqualsTheLast) {
  HeldBy(Waits("ann", "x", 2), "bob");
  Wait& bob = Waits("bob", "y", 1);
  HeldBy(bob, "ann");
  auto cycles = detector_.TakeSuspects();
  ASSERT_THAT(cycles, SizeIs(1));
  EXPECT_EQ(&cycles[0].Victim(), &bob);

  HeldBy(Waits("eve", "z", 7), "joe");
  Wait& joe = Waits("joe", "w", 7);
  HeldBy(joe, "eve");
  cycles = detector_.TakeSuspects();
  ASSERT_THAT(cycles, SizeIs(1));
  EXPECT_EQ(&cycles[0].Victim(), &joe);
}

TEST_F(DeadlockDetectorTest, AnOwnersManyWaitsComeAndGoInAnyOrder) {
  Wait& first = Waits("ann", "1");
  Wait& second = Waits("ann", "2");
  Wait& third = Waits("ann", "3");
  detector_.Remove(first);
  HeldBy(third, "bob");
  HeldBy(Waits("bob", "y"), "ann");
  EXPECT_THAT(detector_.TakeSuspects(), SizeIs(1));
  detector_.Remove(third);
  HeldBy(second, "bob");
  EXPECT_THAT(detector_.TakeSuspects(), SizeIs(1));
}

TEST(DeadlockDetectorOfABackendTest, IsOneAsLongAsAnybodyUsesIt) {
  const auto* const backend = reinterpret_cast<const LockingProtocol*>(0x1000);
  const auto one = DeadlockDetector::Of(backend);
  EXPECT_EQ(DeadlockDetector::Of(backend), one);
  EXPECT_NE(DeadlockDetector::Of(reinterpret_cast<const LockingProtocol*>(0x2000)), one);
}

}  // namespace
}  // namespace latchkey::internal
