// A thread that waits in poll() for an answer: what wakes it, and what it says to the sources.
#include "latchkey/core/base/blocked_thread.h"

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "latchkey/core/base/blocker.h"
#include "latchkey/core/lease.h"

namespace latchkey {
namespace {

using internal::Blocker;

// One end of a connection; what comes is handed to a function, byte by byte, which says whether
// more is to be expected.
class Source : public AnswerSource {
 public:
  explicit Source(std::function<bool(char)> on_byte) : on_byte_(std::move(on_byte)) {
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends_), 0);
  }
  ~Source() override {
    close(ends_[0]);
    close(ends_[1]);
  }

  bool Fetch(uint64_t loan) override {
    loans.push_back(loan);
    char byte;
    if (read(ends_[0], &byte, 1) != 1) return false;
    return on_byte_(byte);
  }
  void EndFetching(uint64_t loan) override { ended.push_back(loan); }

  int descriptor() const { return ends_[0]; }
  void Say(char byte) const { EXPECT_EQ(write(ends_[1], &byte, 1), 1); }

  // Of the thread that waits.
  std::vector<uint64_t> loans;
  std::vector<uint64_t> ended;

 private:
  const std::function<bool(char)> on_byte_;
  int ends_[2];
};

TEST(BlockedThreadTest, ItIsFoundByItsAcquisitionOnItsThreadAlone) {
  const AcquisitionId id = AcquisitionId::Next();
  const AcquisitionId other = AcquisitionId::Next();
  EXPECT_EQ(BlockedThread::WaitingFor(id), nullptr);
  {
    BlockedThread thread(id);
    EXPECT_EQ(BlockedThread::WaitingFor(id), &thread);
    EXPECT_EQ(BlockedThread::WaitingFor(other), nullptr);
    std::thread([&] { EXPECT_EQ(BlockedThread::WaitingFor(id), nullptr); }).join();
    {
      BlockedThread inner(other);
      EXPECT_EQ(BlockedThread::WaitingFor(other), &inner);
      EXPECT_EQ(BlockedThread::WaitingFor(id), nullptr);
    }
    EXPECT_EQ(BlockedThread::WaitingFor(id), &thread);
  }
  EXPECT_EQ(BlockedThread::WaitingFor(id), nullptr);
}

TEST(BlockedThreadTest, ItWaitsAlsoForWhatIsAskedOnItsBehalf) {
  const AcquisitionId id = AcquisitionId::Next();
  const AcquisitionId part = AcquisitionId::Next();
  {
    const BlockedThread::OnBehalfOf nobody(id);
    EXPECT_EQ(BlockedThread::WaitingFor(part), nullptr);
  }
  BlockedThread thread(id);
  {
    const BlockedThread::OnBehalfOf others(part);
    EXPECT_EQ(BlockedThread::WaitingFor(part), nullptr);
  }
  {
    const BlockedThread::OnBehalfOf mine(id);
    EXPECT_EQ(BlockedThread::WaitingFor(part), &thread);
    const BlockedThread::OnBehalfOf again(part);
    EXPECT_EQ(BlockedThread::WaitingFor(part), &thread);
  }
  EXPECT_EQ(BlockedThread::WaitingFor(part), nullptr);
}

TEST(BlockedThreadTest, ItFetchesItsAnswer) {
  Blocker blocker;
  auto source = std::make_shared<Source>([&](char byte) {
    if (byte == '!') blocker.SetReady();
    return byte != '!';
  });
  {
    BlockedThread thread(AcquisitionId::Next());
    thread.Expect(source, source->descriptor(), 7);
    for (const char byte : {'a', 'b', '!'}) source->Say(byte);
    thread.Await(blocker);
    EXPECT_TRUE(blocker.IsReady());
    EXPECT_EQ(source->ended, std::vector<uint64_t>({7}));
  }
  EXPECT_EQ(source->loans, std::vector<uint64_t>({7, 7, 7}));
  EXPECT_EQ(source->ended.size(), 1);
  EXPECT_EQ(blocker.Wait(), Blocker::kReady);
}

TEST(BlockedThreadTest, AReadyBlockerIsNotWaitedFor) {
  Blocker blocker;
  auto source = std::make_shared<Source>([](char) { return true; });
  blocker.SetReady();
  {
    BlockedThread thread(AcquisitionId::Next());
    thread.Expect(source, source->descriptor(), 1);
    thread.Await(blocker);
    EXPECT_TRUE(source->ended.empty());
  }
  EXPECT_TRUE(source->loans.empty());
  EXPECT_EQ(source->ended, std::vector<uint64_t>({1}));
}

TEST(BlockedThreadTest, WithNothingToFetchItLeavesTheWaitingToTheBlocker) {
  Blocker blocker;
  BlockedThread thread(AcquisitionId::Next());
  thread.Await(blocker);
  auto source = std::make_shared<Source>([](char) { return false; });
  thread.Expect(source, source->descriptor(), 1);
  source->Say('a');
  thread.Await(blocker);  // The source has said that there is nothing more to come.
  EXPECT_FALSE(blocker.IsReady());
  EXPECT_EQ(source->ended.size(), 1);
}

// Each round meets another moment: before poll(), in it, after it.
TEST(BlockedThreadTest, AnotherThreadCanEndTheWaitAtAnyTime) {
  auto source = std::make_shared<Source>([](char) { return true; });
  std::atomic<Blocker*> waiting = nullptr;
  std::atomic<bool> stop = false;
  size_t said = 0;
  std::thread other([&] {
    while (!stop) {
      if (Blocker* const blocker = waiting.exchange(nullptr)) blocker->SetReady();
    }
  });
  for (int round = 0; round < 2000; ++round) {
    Blocker blocker;
    BlockedThread thread(AcquisitionId::Next());
    thread.Expect(source, source->descriptor(), 1);
    waiting = &blocker;
    // Now and then something comes at the same time.
    if (round % 3 == 0 && said - source->loans.size() < 10) {
      source->Say('a');
      ++said;
    }
    thread.Await(blocker);
    ASSERT_EQ(blocker.Wait(), Blocker::kReady);
  }
  stop = true;
  other.join();
  EXPECT_EQ(source->ended.size(), 2000);
}

TEST(BlockedThreadTest, ANudgeEndsTheWaitAndIsTold) {
  auto source = std::make_shared<Source>([](char) { return true; });
  Blocker blocker;
  BlockedThread thread(AcquisitionId::Next());
  thread.Expect(source, source->descriptor(), 1);
  std::thread other([&] { blocker.Nudge(); });
  thread.Await(blocker);
  EXPECT_EQ(blocker.Wait(), Blocker::kNudged);
  other.join();
  std::thread another([&] { blocker.SetReady(); });
  thread.Await(blocker);
  EXPECT_EQ(blocker.Wait(), Blocker::kReady);
  another.join();
}

TEST(BlockedThreadTest, WhatIsExpectedMayGrowWhileItFetches) {
  Blocker blocker;
  BlockedThread thread(AcquisitionId::Next());
  auto second = std::make_shared<Source>([&](char) {
    blocker.SetReady();
    return false;
  });
  second->Say('a');
  auto first = std::make_shared<Source>([&](char) {
    thread.Expect(second, second->descriptor(), 1);
    return false;
  });
  first->Say('a');
  thread.Expect(first, first->descriptor(), 1);
  thread.Await(blocker);
  EXPECT_TRUE(blocker.IsReady());
  EXPECT_EQ(first->ended.size(), 1);
}

TEST(BlockedThreadTest, ASourceMayBeLentAnewWhileTheOldLoanEnds) {
  Blocker blocker;
  BlockedThread thread(AcquisitionId::Next());
  std::shared_ptr<Source> source;
  source = std::make_shared<Source>([&](char byte) {
    if (byte == 'a') {
      thread.Expect(source, source->descriptor(), 2);
    } else {
      blocker.SetReady();
    }
    return false;
  });
  source->Say('a');
  source->Say('b');
  thread.Expect(source, source->descriptor(), 1);
  thread.Await(blocker);
  EXPECT_TRUE(blocker.IsReady());
  EXPECT_EQ(source->loans, std::vector<uint64_t>({1, 2}));
  EXPECT_EQ(source->ended, std::vector<uint64_t>({2}));
  source->ended.clear();
}

TEST(BlockedThreadTest, WhatIsOverForTheMomentMayBeExpectedAnewUnderTheSameLoan) {
  Blocker blocker;
  BlockedThread thread(AcquisitionId::Next());
  auto first = std::make_shared<Source>([&](char byte) {
    if (byte == '!') blocker.SetReady();
    return false;
  });
  auto second = std::make_shared<Source>([&](char) {
    thread.Expect(first, first->descriptor(), 1);
    first->Say('!');
    return false;
  });
  first->Say('a');
  second->Say('a');
  thread.Expect(first, first->descriptor(), 1);
  thread.Expect(second, second->descriptor(), 1);
  thread.Await(blocker);
  EXPECT_TRUE(blocker.IsReady());
  EXPECT_EQ(first->loans.size(), 2);
  EXPECT_EQ(first->ended.size(), 1);
}

// Nothing could wake it, so it must leave the reading to others.
TEST(BlockedThreadTest, WithoutDescriptorsLeftItEndsItsLoans) {
  auto source = std::make_shared<Source>([](char) { return true; });
  std::thread([&] {  // One that has none of its own yet.
    rlimit before;
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    const int lowest = dup(0);
    close(lowest);
    rlimit none = before;
    none.rlim_cur = static_cast<rlim_t>(lowest);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    Blocker blocker;
    BlockedThread thread(AcquisitionId::Next());
    thread.Expect(source, source->descriptor(), 1);
    thread.Await(blocker);
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    EXPECT_FALSE(blocker.IsReady());
    EXPECT_EQ(source->ended.size(), 1);
  })
      .join();
}

TEST(BlockedThreadTest, AChildMadeByForkWakesByItself) {
  const auto wait = [] {
    Blocker blocker;
    auto source = std::make_shared<Source>([&](char) { return true; });
    BlockedThread thread(AcquisitionId::Next());
    thread.Expect(source, source->descriptor(), 1);
    std::thread other([&] { blocker.SetReady(); });
    thread.Await(blocker);
    other.join();
    return blocker.Wait() == Blocker::kReady;
  };
  EXPECT_TRUE(wait());
  const pid_t child = fork();
  if (child == 0) _exit(wait() ? 0 : 1);
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(wait());
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace latchkey
