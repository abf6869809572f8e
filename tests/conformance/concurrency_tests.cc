// Many threads at once: exclusion, tokens, no lost wake-up, nothing left behind. And many random
// steps, compared with the reference, those of one thread and those of several.
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/conformance/conformance.h"
#include "latchkey/tests/support/linearizability.h"
#include "latchkey/tests/support/random_steps.h"

namespace latchkey {
namespace {

constexpr int kThreads = 4;

void OnThreads(int count, absl::FunctionRef<void(int)> body) {
  std::vector<std::thread> threads;
  for (int t = 0; t < count; ++t) threads.emplace_back([body, t] { body(t); });
  for (std::thread& thread : threads) thread.join();
}

// What the lock protects. Not atomic but for the sake of noticing that two are inside.
struct Protected {
  std::atomic<int> inside{0};
  std::atomic<int64_t> entered{0};
  int64_t counter = 0;  // Data that a thread sanitizer watches.
  FencingToken last_token = 0;

  // What was wrong about it, or "".
  std::string Visit(FencingToken token) {
    std::string wrong;
    if (inside.fetch_add(1) != 0) wrong = "two were inside at once";
    if (token <= last_token && wrong.empty()) {
      wrong = absl::StrCat("token ", token, " came after ", last_token);
    }
    last_token = token;
    ++counter;
    std::this_thread::yield();  // Let the others try.
    entered.fetch_add(1);
    inside.fetch_sub(1);
    return wrong;
  }
};

// A thread's wait for its turn is hopeless when nobody has entered for so long.
class Turn {
 public:
  Turn(const Protected& guarded, absl::Duration patience)
      : guarded_(guarded), patience_(patience), entered_(guarded.entered) {}

  bool Hopeless() {
    const int64_t entered = guarded_.entered;
    if (std::exchange(entered_, entered) != entered) since_ = absl::Now();
    return absl::Now() - since_ > patience_;
  }

 private:
  const Protected& guarded_;
  const absl::Duration patience_;
  int64_t entered_;
  absl::Time since_ = absl::Now();
};

TEST_P(ConformanceTest, ThreadsThatKeepAskingExcludeEachOther) {
  const int rounds = GetParam().stress_rounds;
  Protected guarded;
  std::vector<Attempt> templates;
  for (int t = 0; t < kThreads; ++t) templates.push_back(Party(absl::StrCat("thread ", t)));
  OnThreads(kThreads, [&](int t) {
    for (int i = 0; i < rounds && !failed(); ++i) {
      Attempt attempt = templates[t];
      attempt.request.acquisition = AcquisitionId::Next();
      Turn turn(guarded, PatienceLeft());
      for (;;) {
        const ObtainReply reply = Obtain(attempt);
        if (reply.outcome == ObtainOutcome::kObtained) break;
        if (reply.outcome != ObtainOutcome::kDenied) Fail(Describe(attempt, reply));
        if (turn.Hopeless()) {
          Fail(absl::StrCat("nobody entered any more; ", Describe(attempt, reply)));
        }
        if (failed()) return;
        std::this_thread::yield();
      }
      if (const std::string wrong = guarded.Visit(attempt.token); !wrong.empty()) Fail(wrong);
      const ReleaseOutcome released = Release(attempt);
      if (released != ReleaseOutcome::kReleased) {
        Fail(absl::StrCat("the release by the holder ", attempt.owner, " was answered ",
                          ReleaseOutcomeName(released)));
      }
    }
  });
  if (failed()) return;
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
  OnThreads(kThreads, [&](int t) {
    for (int i = 0; i < rounds && !failed(); ++i) {
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
        Turn turn(guarded, PatienceLeft());
        while (!granted && !failed()) {
          WaitUntil([&] { return *events > 0; },
                    absl::StrCat(WatchEventKindName(WatchEventKind::kHoldEnded), " to the waiter '",
                                 attempt.owner, "'"));
          {
            absl::MutexLock lock(&shared_->mu);
            *events = 0;
          }
          const ObtainReply reply = Obtain(attempt);
          granted = reply.outcome == ObtainOutcome::kObtained;
          // It may be woken and overtaken, but not for ever.
          if (!granted && turn.Hopeless()) {
            Fail(absl::StrCat("nobody entered any more; ", Describe(attempt, reply)));
          }
        }
      }
      if (failed()) return;
      if (const std::string wrong = guarded.Visit(attempt.token); !wrong.empty()) Fail(wrong);
      Release(attempt);
    }
  });
}

TEST_P(ConformanceTest, ThreadsThatPreemptAndYieldExcludeEachOther) {
  const int rounds = GetParam().stress_rounds;
  Protected guarded;
  std::vector<Attempt> templates;
  for (int t = 0; t < kThreads; ++t) templates.push_back(Thief(absl::StrCat("thread ", t), t));
  OnThreads(kThreads, [&](int t) {
    for (int i = 0; i < rounds && !failed(); ++i) {
      Attempt attempt = templates[t];
      attempt.request.acquisition = AcquisitionId::Next();
      int asked = 0;
      bool gave_up = false;
      Turn turn(guarded, PatienceLeft());
      for (;;) {
        const ObtainReply reply = Obtain(attempt);
        if (reply.outcome == ObtainOutcome::kObtained) break;
        if (reply.outcome == ObtainOutcome::kReentered) Fail(Describe(attempt, reply));
        if (turn.Hopeless()) {
          Fail(absl::StrCat("nobody entered any more; ", Describe(attempt, reply)));
        }
        if (failed()) return;
        // Now and then a waiting thief gives up.
        if (++asked > 20 && i % 5 == 0) {
          gave_up = true;
          break;
        }
        std::this_thread::yield();
      }
      if (!gave_up) {
        if (const std::string wrong = guarded.Visit(attempt.token); !wrong.empty()) Fail(wrong);
      }
      Release(attempt);
    }
  });
  if (failed()) return;
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
  OnThreads(kThreads, [&](int t) {
    FencingToken last = 0;
    for (int i = 0; i < rounds && !failed(); ++i) {
      Attempt attempt = templates[t];
      attempt.request.acquisition = AcquisitionId::Next();
      const ObtainReply obtained = Obtain(attempt);
      if (obtained.outcome != ObtainOutcome::kObtained) Fail(Describe(attempt, obtained));
      if (attempt.token <= last) {
        Fail(absl::StrCat("token ", attempt.token, " came after ", last));
      }
      last = attempt.token;
      const ExtendOutcome extended = Extend(attempt, Long()).outcome;
      if (extended != ExtendOutcome::kExtended) {
        Fail(absl::StrCat("an extension was answered ", ExtendOutcomeName(extended)));
      }
      const ReleaseOutcome released = Release(attempt);
      if (released != ReleaseOutcome::kReleased) {
        Fail(absl::StrCat("a release was answered ", ReleaseOutcomeName(released)));
      }
    }
  });
}

TEST_P(ConformanceTest, ThreadsMaySubscribeAndEndSubscriptionsWhileEventsCome) {
  const int rounds = GetParam().stress_rounds;
  std::atomic<int> waiting{kThreads - 1};
  Attempt holder = Party("holder", 0);
  ASSERT_TRUE(Obtains(holder));
  const Attempt thief_template = Thief("thief", 1);
  std::vector<Attempt> waiters;
  for (int t = 0; t < kThreads - 1; ++t) waiters.push_back(Party(absl::StrCat("waiter ", t), -1));
  OnThreads(kThreads, [&](int t) {
    if (t == kThreads - 1) {
      while (waiting > 0 && !failed()) {
        Attempt thief = thief_template;
        thief.request.acquisition = AcquisitionId::Next();
        Obtain(thief);
        Release(thief);
      }
      return;
    }
    for (int i = 0; i < rounds && !failed(); ++i) {
      const auto owned = std::make_shared<std::atomic<int>>(0);
      const Watched as_holder =
          WatchAsHolder(holder, [owned](const WatchEvent&) { owned->fetch_add(1); });
      Attempt waiter = waiters[t];
      waiter.request.acquisition = AcquisitionId::Next();
      const Watched as_waiter =
          WatchAsWaiter(waiter, [owned](const WatchEvent&) { owned->fetch_add(1); });
      std::this_thread::yield();
    }
    --waiting;
  });
  EXPECT_TRUE(Holds(holder));
}

}  // namespace
}  // namespace latchkey
