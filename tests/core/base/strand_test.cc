// Who may act when several threads bring news: each state and call as a table, and many threads.

#include "latchkey/core/base/strand.h"

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/base/ref_counted.h"

namespace latchkey::internal {
namespace {

using ::testing::ElementsAre;

enum class Call { kEnter, kAgain, kAbandon };

struct Row {
  const char* name;
  std::vector<Call> before;
  Call call;
  bool result;
  bool free_afterwards;
};

class StrandTableTest : public ::testing::TestWithParam<Row> {
 protected:
  static bool Make(Strand& strand, Call call) {
    switch (call) {
      case Call::kEnter:
        return strand.Enter();
      case Call::kAgain:
        return strand.Again();
      case Call::kAbandon:
        return strand.Abandon();
    }
    return false;
  }
};

TEST_P(StrandTableTest, SaysWhoActs) {
  Strand strand;
  for (const Call call : GetParam().before) Make(strand, call);
  EXPECT_EQ(Make(strand, GetParam().call), GetParam().result);
  EXPECT_EQ(strand.Enter(), GetParam().free_afterwards);
}

INSTANTIATE_TEST_SUITE_P(
    All, StrandTableTest,
    ::testing::Values(
        Row{"TheFirstActs", {}, Call::kEnter, true, false},
        Row{"TheSecondDoesNot", {Call::kEnter}, Call::kEnter, false, false},
        Row{"TheThirdDoesNot", {Call::kEnter, Call::kEnter}, Call::kEnter, false, false},
        Row{"WhoeverHasHeardNothingLeaves", {Call::kEnter}, Call::kAgain, false, true},
        Row{"NewsKeepsIt", {Call::kEnter, Call::kEnter}, Call::kAgain, true, false},
        Row{"AnyNumberOfNewsCountsOnce",
            {Call::kEnter, Call::kEnter, Call::kEnter, Call::kAgain},
            Call::kAgain,
            false,
            true},
        Row{"NewsWhileItActsAgainKeepsItOnceMore",
            {Call::kEnter, Call::kEnter, Call::kAgain, Call::kEnter},
            Call::kAgain,
            true,
            false},
        Row{"WhoeverHasLeftMayComeAgain", {Call::kEnter, Call::kAgain}, Call::kEnter, true, false},
        Row{"NobodyNeedsToFollowOneWhoHeardNothing", {Call::kEnter}, Call::kAbandon, false, true},
        Row{"SomebodyHasToFollowOneWhoLeavesNewsBehind",
            {Call::kEnter, Call::kEnter},
            Call::kAbandon,
            true,
            true}),
    [](const auto& row) { return row.param.name; });

TEST(StrandTest, WhatHappensInsideIsActedOnAfterwardsAndNotWithin) {
  Strand strand;
  std::vector<int> depths;
  int depth = 0;
  absl::AnyInvocable<void()> act;
  act = [&] {
    ++depth;
    depths.push_back(depth);
    if (depths.size() < 4) strand.Run([&] { act(); });
    --depth;
  };
  strand.Run([&] { act(); });
  EXPECT_THAT(depths, ElementsAre(1, 1, 1, 1));
}

TEST(StrandTest, AmongManyThreadsOneActsAtATimeAndNoNewsIsLeftBehind) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 5000;
  struct Counter {
    void Count() {
      {
        absl::MutexLock lock(&mu);
        ++news;
      }
      strand.Run([this] { Act(); });
    }
    void Act() {
      EXPECT_FALSE(acting.exchange(true));
      int taken;
      {
        absl::MutexLock lock(&mu);
        taken = std::exchange(news, 0);
      }
      counted += taken;  // By whoever has the strand: it needs no mutex.
      acting = false;
    }

    Strand strand;
    absl::Mutex mu;
    int news ABSL_GUARDED_BY(mu) = 0;
    int counted = 0;
    std::atomic<bool> acting = false;
  } counter;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&counter] {
      for (int round = 0; round < kRounds; ++round) counter.Count();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter.counted, kThreads * kRounds);
}

// ---- Tickets ----

struct Traveller : RefCounted<Traveller> {
  explicit Traveller(std::vector<const char*>& log) : log(log) {}
  ~Traveller() { log.push_back("gone"); }
  void OnDropped() { log.push_back("dropped"); }

  std::vector<const char*>& log;
};

TEST(TicketTest, WhoeverTakesItHasTheObject) {
  std::vector<const char*> log;
  auto traveller = RefPtr<Traveller>::Adopt(new Traveller(log));
  absl::AnyInvocable<void()> task = [ticket = Ticket(traveller.get()), &log]() mutable {
    const RefPtr<Traveller> taken = ticket.Take();
    log.push_back("run");
  };
  traveller = {};
  EXPECT_THAT(log, ElementsAre());
  task();
  EXPECT_THAT(log, ElementsAre("run", "gone"));
  task = nullptr;
  EXPECT_THAT(log, ElementsAre("run", "gone"));
}

TEST(TicketTest, ATaskThatIsDroppedTellsTheObjectOnce) {
  std::vector<const char*> log;
  auto traveller = RefPtr<Traveller>::Adopt(new Traveller(log));
  absl::AnyInvocable<void()> task = [ticket = Ticket(traveller.get())]() mutable { ticket.Take(); };
  absl::AnyInvocable<void()> moved = std::move(task);
  traveller = {};
  task = nullptr;
  EXPECT_THAT(log, ElementsAre());
  moved = nullptr;
  EXPECT_THAT(log, ElementsAre("dropped", "gone"));
}

}  // namespace
}  // namespace latchkey::internal
