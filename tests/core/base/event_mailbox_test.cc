// Order, turns, repetitions and the end of a mailbox; then many threads.

#include "latchkey/core/base/event_mailbox.h"

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace latchkey::internal {
namespace {

using ::testing::ElementsAre;

class EventMailboxTest : public ::testing::Test {
 protected:
  // Posts, and handles what there is if nobody else does.
  void Tell(int event) {
    if (mailbox_.Post(event)) Deliver();
  }
  void TellOnce(int event) {
    if (mailbox_.PostOnce(event, [event](int other) { return other == event; })) Deliver();
  }
  void Deliver() {
    mailbox_.Deliver([this](int event) {
      EXPECT_FALSE(std::exchange(handling_, true)) << event << " was handled inside another";
      handled_.push_back(event);
      if (on_event_) on_event_(event);
      handling_ = false;
    });
  }

  EventMailbox<int> mailbox_;
  std::vector<int> handled_;
  std::function<void(int)> on_event_;
  bool handling_ = false;
};

TEST_F(EventMailboxTest, WhoeverPostsFirstHandlesWhatComesUntilItIsEmpty) {
  EXPECT_TRUE(mailbox_.Post(1));
  EXPECT_FALSE(mailbox_.Post(2));
  EXPECT_FALSE(mailbox_.Enter());
  Deliver();
  EXPECT_THAT(handled_, ElementsAre(1, 2));
  EXPECT_TRUE(mailbox_.Post(3));
}

TEST_F(EventMailboxTest, WhatIsPostedWhileOneIsHandledComesBehindAllOthers) {
  on_event_ = [this](int event) {
    if (event >= 10) return;
    Tell(event * 10);
    Tell(event * 10 + 1);
  };
  EXPECT_TRUE(mailbox_.Post(1));
  EXPECT_FALSE(mailbox_.Post(2));
  Deliver();
  EXPECT_THAT(handled_, ElementsAre(1, 2, 10, 11, 20, 21));
}

TEST_F(EventMailboxTest, WhatRepeatsOneThatIsStillToBeHandledIsDropped) {
  on_event_ = [this](int event) {
    if (event > 1) return;
    TellOnce(2);
    TellOnce(3);
    TellOnce(2);
    Tell(2);      // Whoever does not ask for that gets each.
    TellOnce(1);  // That one is handled already.
    on_event_ = nullptr;
  };
  TellOnce(1);
  EXPECT_THAT(handled_, ElementsAre(1, 2, 3, 2, 1));
}

TEST_F(EventMailboxTest, TheTurnIsKeptBetweenEvents) {
  EXPECT_TRUE(mailbox_.Post(1));
  EXPECT_EQ(mailbox_.Next(), 1);
  // A step that this led to is under way, and ends later.
  EXPECT_FALSE(mailbox_.Post(2));
  EXPECT_FALSE(mailbox_.Enter());
  EXPECT_EQ(mailbox_.Next(), 2);
  EXPECT_EQ(mailbox_.Next(), std::nullopt);
  EXPECT_TRUE(mailbox_.Enter());
  EXPECT_EQ(mailbox_.Next(), std::nullopt);
}

TEST_F(EventMailboxTest, ALongQueueStaysInOrder) {
  int next = 0;
  EXPECT_TRUE(mailbox_.Post(next++));
  // Two come for each one that goes, then none.
  for (int expected = 0; expected < 1000; ++expected) {
    if (next < 1000) {
      EXPECT_FALSE(mailbox_.Post(next++));
      EXPECT_FALSE(mailbox_.PostOnce(next++, [](int other) { return other < 0; }));
    }
    ASSERT_EQ(mailbox_.Next(), expected);
  }
}

TEST_F(EventMailboxTest, RepetitionsAreSoughtOnlyAmongWhatIsStillToBeHandled) {
  EXPECT_TRUE(mailbox_.Post(0));
  for (int i = 1; i < 100; ++i) EXPECT_FALSE(mailbox_.Post(i));
  for (int i = 0; i < 50; ++i) ASSERT_EQ(mailbox_.Next(), i);
  for (int i = 0; i < 100; ++i) {
    EXPECT_FALSE(mailbox_.PostOnce(i, [i](int other) { return other == i; }));
  }
  Deliver();
  ASSERT_EQ(handled_.size(), 100u);
  EXPECT_EQ(handled_[49], 99);
  EXPECT_EQ(handled_[50], 0);
  EXPECT_EQ(handled_[99], 49);
}

TEST_F(EventMailboxTest, AfterItIsCancelledNothingBeginsAndNothingComesIn) {
  on_event_ = [this](int) { mailbox_.Cancel(); };
  EXPECT_TRUE(mailbox_.Post(1));
  EXPECT_FALSE(mailbox_.Post(2));
  Deliver();
  EXPECT_THAT(handled_, ElementsAre(1));
  EXPECT_FALSE(mailbox_.Post(3));
  ASSERT_TRUE(mailbox_.Enter());
  Deliver();
  EXPECT_THAT(handled_, ElementsAre(1));
}

// An event may own what posts when it ends.
class Talkative {
 public:
  Talkative(EventMailbox<std::unique_ptr<Talkative>>& mailbox, int& ended)
      : mailbox_(mailbox), ended_(ended) {}
  ~Talkative() {
    ++ended_;
    EXPECT_FALSE(mailbox_.Post(nullptr));
  }

 private:
  EventMailbox<std::unique_ptr<Talkative>>& mailbox_;
  int& ended_;
};

TEST(EventMailboxEndTest, EventsThatAreDroppedEndWithoutTheMutex) {
  EventMailbox<std::unique_ptr<Talkative>> mailbox;
  int ended = 0;
  EXPECT_TRUE(mailbox.Post(std::make_unique<Talkative>(mailbox, ended)));
  EXPECT_FALSE(mailbox.PostOnce(std::make_unique<Talkative>(mailbox, ended),
                                [](const auto&) { return true; }));
  EXPECT_EQ(ended, 1);
  mailbox.Cancel();
  EXPECT_EQ(ended, 2);
  EXPECT_FALSE(mailbox.Post(std::make_unique<Talkative>(mailbox, ended)));
  EXPECT_EQ(ended, 3);
}

TEST_F(EventMailboxTest, AThreadWaitsForWhatOthersPost) {
  ASSERT_TRUE(mailbox_.Enter());
  std::thread other([this] {
    for (int i = 1; i <= 3; ++i) EXPECT_FALSE(mailbox_.Post(i));
  });
  for (int i = 1; i <= 3; ++i) EXPECT_EQ(mailbox_.Await(), i);
  other.join();
  EXPECT_EQ(mailbox_.Next(), std::nullopt);
}

TEST(EventMailboxStressTest, OfManyThreadsOneHandlesAtATimeAndEachThreadsEventsInItsOrder) {
  constexpr int kThreads = 4;
  constexpr int kEvents = 5000;
  struct Event {
    int thread;
    int number;
  };
  EventMailbox<Event> mailbox;
  std::vector<int> seen(kThreads, -1);  // By whoever has the turn: it needs no mutex.
  std::atomic<bool> handling = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      for (int number = 0; number < kEvents; ++number) {
        if (!mailbox.Post({i, number})) continue;
        mailbox.Deliver([&](Event event) {
          EXPECT_FALSE(handling.exchange(true));
          EXPECT_EQ(event.number, seen[event.thread] + 1);
          seen[event.thread] = event.number;
          handling = false;
        });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(seen, ::testing::Each(kEvents - 1));
}

TEST(EventMailboxStressTest, OnceItIsCancelledOnlyWhatAThreadHasTakenOutIsStillHandled) {
  for (int round = 0; round < 200; ++round) {
    EventMailbox<int> mailbox;
    std::atomic<bool> cancelled = false;
    std::atomic<int> late = 0;
    absl::Notification started;
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([&] {
        for (int number = 0; number < 100 || !cancelled; ++number) {
          if (!mailbox.Post(number)) continue;
          mailbox.Deliver([&](int) {
            late += cancelled;
            if (!started.HasBeenNotified()) started.Notify();
          });
        }
      });
    }
    started.WaitForNotification();
    mailbox.Cancel();
    cancelled = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_LE(late, 1);
    EXPECT_FALSE(mailbox.Post(0));
    ASSERT_TRUE(mailbox.Enter());
    EXPECT_EQ(mailbox.Next(), std::nullopt);
  }
}

}  // namespace
}  // namespace latchkey::internal
