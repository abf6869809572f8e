// Many threads at once: exclusion, tokens, no lost wake-up, nothing left behind. And many random
// steps, compared with the reference, those of one thread and those of several.
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/locking_protocol.h"
#include "latchkey/tests/conformance/conformance.h"
#include "latchkey/tests/support/linearizability.h"
#include "latchkey/tests/support/random_steps.h"

namespace latchkey {
namespace {

constexpr int kThreads = 4;

// What the lock protects. Not atomic but for the sake of noticing that two are inside.
struct Protected {
  std::atomic<int> inside{0};
  std::atomic<bool> violated{false};
  int64_t counter = 0;  // Data that a thread sanitizer watches.
  FencingToken last_token = 0;
  bool token_went_back = false;

  void Visit(FencingToken token) {
    if (inside.fetch_add(1) != 0) violated = true;
    if (token <= last_token) token_went_back = true;
    last_token = token;
    ++counter;
    inside.fetch_sub(1);
  }
};

TEST_P(ConformanceTest, ThreadsThatKeepAskingExcludeEachOther) {
  const int rounds = GetParam().stress_rounds;
  Protected guarded;
  std::vector<Attempt> templates;
  for (int t = 0; t < kThreads; ++t) templates.push_back(Party(absl::StrCat("thread ", t)));
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < rounds; ++i) {
        Attempt attempt = templates[t];
        attempt.request.acquisition = AcquisitionId::Next();
        while (!Obtains(attempt)) std::this_thread::yield();
        guarded.Visit(attempt.token);
        EXPECT_EQ(Release(attempt), ReleaseOutcome::kReleased);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(guarded.violated) << "two were inside at once";
  EXPECT_FALSE(guarded.token_went_back);
  EXPECT_EQ(guarded.counter, kThreads * rounds);
  Attempt last = Party("last");
  EXPECT_TRUE(Obtains(last)) << "nothing is left behind";
}

TEST_P(ConformanceTest, ThreadsThatWaitForEventsMissNoWakeUp) {
  if (!GetParam().events) GTEST_SKIP() << "events are not expected on this backend";
  const int rounds = GetParam().stress_rounds;
  Protected guarded;
  std::vector<Attempt> templates;
  for (int t = 0; t < kThreads; ++t) {
    templates.push_back(Party(absl::StrCat("thread ", t), t % 2));
  }
  std::atomic<bool> stuck{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < rounds && !stuck; ++i) {
        Attempt attempt = templates[t];
        attempt.request.acquisition = AcquisitionId::Next();
        bool granted = Obtains(attempt);
        // Without reliable events a waiter polls as well; here it would only hide a lost one.
        if (!granted) {
          const auto events = std::make_shared<int>(0);  // Guarded by the suite's mutex.
          const Watched watched =
              WatchAsWaiter(attempt, [shared = shared_, events](const WatchEvent& event) {
                absl::MutexLock lock(&shared->mu);
                if (event.kind == WatchEventKind::kHoldEnded) ++*events;
              });
          while (!granted && !stuck) {
            if (!WaitUntil([&] { return *events > 0; })) stuck = true;
            {
              absl::MutexLock lock(&shared_->mu);
              *events = 0;
            }
            granted = Obtains(attempt);
          }
        }
        if (stuck) return;
        guarded.Visit(attempt.token);
        Release(attempt);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(stuck) << "a wake-up was lost";
  EXPECT_FALSE(guarded.violated) << "two were inside at once";
  EXPECT_FALSE(guarded.token_went_back);
}

TEST_P(ConformanceTest, ThreadsThatPreemptAndYieldExcludeEachOther) {
  const int rounds = GetParam().stress_rounds;
  Protected guarded;
  std::vector<Attempt> templates;
  for (int t = 0; t < kThreads; ++t) templates.push_back(Thief(absl::StrCat("thread ", t), t));
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < rounds; ++i) {
        Attempt attempt = templates[t];
        attempt.request.acquisition = AcquisitionId::Next();
        int asked = 0;
        bool gave_up = false;
        for (;;) {
          const ObtainOutcome outcome = Obtain(attempt).outcome;
          if (outcome == ObtainOutcome::kObtained) break;
          EXPECT_NE(outcome, ObtainOutcome::kReentered);
          // Now and then a waiting thief gives up.
          if (++asked > 20 && i % 5 == 0) {
            gave_up = true;
            break;
          }
          std::this_thread::yield();
        }
        if (!gave_up) guarded.Visit(attempt.token);
        Release(attempt);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(guarded.violated) << "two were inside at once";
  EXPECT_FALSE(guarded.token_went_back);
  Attempt last = Party("last");
  EXPECT_TRUE(Obtains(last)) << "no reservation is left behind";
}

TEST_P(ConformanceTest, RandomStepsAgreeWithTheReference) {
  if (!exact()) GTEST_SKIP() << "needs exact time";
  const uint64_t seed = SeedFromEnvironment();
  for (int i = 0; i < 300; ++i) {
    RandomStepsOptions options;
    options.seed = seed + i;
    options.name_prefix = Resource("");
    options.unit = GetParam().unit;
    options.advance = setup_.advance;
    options.settle = [this] { Settle(); };
    options.events = GetParam().events;
    ASSERT_EQ(RunRandomSteps(first(), options), "") << "LATCHKEY_SEED=" << options.seed;
  }
}

TEST_P(ConformanceTest, StepsOfThreadsThatMeetAreAtomic) {
  // Answers are known exactly only where no time passes meanwhile.
  if (!exact() || !capabilities().answers_at_once) GTEST_SKIP() << "needs answers at a known time";
  std::vector<LockingProtocol*> clients;
  for (const auto& client : setup_.clients) clients.push_back(client.get());
  const uint64_t seed = SeedFromEnvironment();
  for (int i = 0; i < 200; ++i) {
    HistoryOptions options;
    options.seed = seed + i;
    options.name_prefix = Resource("");
    options.unit = GetParam().unit;
    ASSERT_EQ(CheckLinearizable(RecordHistory(clients, options)), "")
        << "LATCHKEY_SEED=" << options.seed << " makes the threads ask the same again";
  }
}

TEST_P(ConformanceTest, ThreadsOnDifferentResourcesDoNotDisturbEachOther) {
  const int rounds = GetParam().stress_rounds;
  std::vector<Attempt> templates;
  for (int t = 0; t < kThreads; ++t) {
    templates.push_back(Party("the same owner"));
    templates.back().resource = Resource(absl::StrCat("resource of thread ", t));
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      FencingToken last = 0;
      for (int i = 0; i < rounds; ++i) {
        Attempt attempt = templates[t];
        attempt.request.acquisition = AcquisitionId::Next();
        EXPECT_TRUE(Obtains(attempt));
        EXPECT_GT(attempt.token, last);
        last = attempt.token;
        EXPECT_EQ(Extend(attempt, Long()).outcome, ExtendOutcome::kExtended);
        EXPECT_EQ(Release(attempt), ReleaseOutcome::kReleased);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(ConformanceTest, ThreadsMaySubscribeAndEndSubscriptionsWhileEventsCome) {
  const int rounds = GetParam().stress_rounds;
  std::atomic<bool> done{false};
  Attempt holder = Party("holder", 0);
  ASSERT_TRUE(Obtains(holder));
  const Attempt thief_template = Thief("thief", 1);
  std::thread thief_thread([&] {
    while (!done) {
      Attempt thief = thief_template;
      thief.request.acquisition = AcquisitionId::Next();
      Obtain(thief);
      Release(thief);
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads - 1; ++t) {
    const Attempt waiter_template = Party(absl::StrCat("waiter ", t), -1);
    threads.emplace_back([&, waiter_template] {
      for (int i = 0; i < rounds; ++i) {
        const auto owned = std::make_shared<std::atomic<int>>(0);
        const Watched as_holder =
            WatchAsHolder(holder, [owned](const WatchEvent&) { owned->fetch_add(1); });
        Attempt waiter = waiter_template;
        waiter.request.acquisition = AcquisitionId::Next();
        const Watched as_waiter =
            WatchAsWaiter(waiter, [owned](const WatchEvent&) { owned->fetch_add(1); });
        std::this_thread::yield();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  done = true;
  thief_thread.join();
  EXPECT_TRUE(Holds(holder));
}

}  // namespace
}  // namespace latchkey
