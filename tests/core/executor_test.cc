#include "latchkey/core/executor.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/barrier.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

namespace latchkey {
namespace {

// Runs `body` on a thread with so small a stack that recursion would not go far.
void OnSmallStack(std::function<void()> body) {
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, 256 * 1024), 0);
  pthread_t thread;
  const auto run = [](void* argument) -> void* {
    (*static_cast<std::function<void()>*>(argument))();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, &attributes, run, &body), 0);
  ASSERT_EQ(pthread_join(thread, nullptr), 0);
  pthread_attr_destroy(&attributes);
}

TEST(InlineExecutorTest, RunsATaskAtOnceOnTheCallingThread) {
  std::thread::id ran_on;
  InlineExecutor().Execute([&] { ran_on = std::this_thread::get_id(); });
  EXPECT_EQ(ran_on, std::this_thread::get_id());
}

TEST(InlineExecutorTest, ATaskFromWithinATaskRunsAfterIt) {
  std::vector<int> order;
  InlineExecutor().Execute([&] {
    InlineExecutor().Execute([&] {
      InlineExecutor().Execute([&] { order.push_back(4); });
      order.push_back(2);
    });
    InlineExecutor().Execute([&] { order.push_back(3); });
    order.push_back(1);
  });
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3, 4}));
}

TEST(InlineExecutorTest, AChainOf100000TasksNeedsNoStack) {
  constexpr int kTasks = 100'000;
  int ran = 0;
  int depth = 0;
  int deepest = 0;
  std::function<void()> next = [&] {
    deepest = std::max(deepest, ++depth);
    if (++ran < kTasks) InlineExecutor().Execute([&] { next(); });
    --depth;
  };
  OnSmallStack([&] { InlineExecutor().Execute([&] { next(); }); });
  EXPECT_EQ(ran, kTasks);
  EXPECT_EQ(deepest, 1);
}

TEST(InlineExecutorTest, AHundredThousandTasksFromOneTaskNeedNoStack) {
  constexpr int kTasks = 100'000;
  int ran = 0;
  OnSmallStack([&] {
    InlineExecutor().Execute([&] {
      for (int i = 0; i < kTasks; ++i) InlineExecutor().Execute([&] { ++ran; });
      EXPECT_EQ(ran, 0);
    });
  });
  EXPECT_EQ(ran, kTasks);
}

TEST(InlineExecutorTest, WhatATaskOwnsGoesBeforeTheNextOneRuns) {
  const auto owned = std::make_shared<int>(1);
  std::vector<long> uses;
  InlineExecutor().Execute([&] {
    for (int i = 0; i < 3; ++i) {
      InlineExecutor().Execute([&uses, mine = owned] { uses.push_back(mine.use_count()); });
    }
  });
  EXPECT_EQ(uses, (std::vector<long>{4, 3, 2}));
  EXPECT_EQ(owned.use_count(), 1);
}

TEST(InlineExecutorTest, ATaskDestroyedByATaskMayExecuteAnother) {
  bool ran = false;
  struct ExecutesAtTheEnd {
    explicit ExecutesAtTheEnd(bool* flag) : ran(flag) {}
    ~ExecutesAtTheEnd() {
      InlineExecutor().Execute([ran = ran] { *ran = true; });
    }
    bool* ran;
  };
  InlineExecutor().Execute([owned = std::make_unique<ExecutesAtTheEnd>(&ran)] {});
  EXPECT_TRUE(ran);
}

TEST(InlineExecutorTest, ThreadsDoNotWaitForEachOther) {
  // A task of one thread waits for a task of another: they must not share one queue.
  absl::Notification other_ran;
  std::thread other;
  InlineExecutor().Execute([&] {
    other = std::thread([&] { InlineExecutor().Execute([&] { other_ran.Notify(); }); });
    other_ran.WaitForNotification();
  });
  other.join();
}

TEST(ThreadPoolTest, RunsEveryTaskOnItsOwnThreads) {
  constexpr int kTasks = 2000;
  std::atomic<int> ran{0};
  std::atomic<int> on_this_thread{0};
  {
    const std::unique_ptr<Executor> pool = NewThreadPool(4);
    for (int i = 0; i < kTasks; ++i) {
      pool->Execute([&, caller = std::this_thread::get_id()] {
        ++ran;
        if (std::this_thread::get_id() == caller) ++on_this_thread;
      });
    }
  }  // Runs what is queued, then joins.
  EXPECT_EQ(ran, kTasks);
  EXPECT_EQ(on_this_thread, 0);
}

TEST(ThreadPoolTest, OneThreadKeepsTheOrder) {
  std::vector<int> order;
  {
    const std::unique_ptr<Executor> pool = NewThreadPool(1);
    for (int i = 0; i < 1000; ++i) {
      pool->Execute([&order, i] { order.push_back(i); });
    }
  }
  ASSERT_EQ(order.size(), 1000u);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

TEST(ThreadPoolTest, ThreadsRunAtTheSameTime) {
  constexpr int kThreads = 3;
  // Opens only when all three tasks are inside. The last one to leave deletes it.
  auto* const barrier = new absl::Barrier(kThreads);
  const std::unique_ptr<Executor> pool = NewThreadPool(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    pool->Execute([barrier] {
      if (barrier->Block()) delete barrier;
    });
  }
}

TEST(ThreadPoolTest, TasksMayExecuteMoreAlsoWhileThePoolEnds) {
  std::atomic<int> ran{0};
  {
    const std::unique_ptr<Executor> pool = NewThreadPool(2);
    Executor& executor = *pool;
    for (int i = 0; i < 100; ++i) {
      executor.Execute([&] {
        ++ran;
        executor.Execute([&] { ++ran; });
      });
    }
  }
  EXPECT_EQ(ran, 200);
}

TEST(ThreadPoolTest, HasAtLeastOneThread) {
  for (const int threads : {1, 0, -5}) {
    absl::Notification ran;
    const std::unique_ptr<Executor> pool = NewThreadPool(threads);
    pool->Execute([&] { ran.Notify(); });
    ran.WaitForNotification();
  }
}

TEST(ThreadPoolTest, InlineTasksInsideAPoolTaskRunThere) {
  std::thread::id pool_thread;
  std::thread::id inline_thread;
  {
    const std::unique_ptr<Executor> pool = NewThreadPool(1);
    pool->Execute([&] {
      pool_thread = std::this_thread::get_id();
      InlineExecutor().Execute([&] { inline_thread = std::this_thread::get_id(); });
    });
  }
  EXPECT_EQ(inline_thread, pool_thread);
}

}  // namespace
}  // namespace latchkey
