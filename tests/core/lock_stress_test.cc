// Real threads against one manager, and against several on one backend: mixed priorities, timeouts
// and cancellations. With infinite leases an unprotected counter proves exclusion. With short
// leases, where a paused thread may legally overrun its lease, the resource checks the fencing
// token and no stale write is accepted. Afterwards nothing is left behind.
//
// Each run draws a seed and prints it; LATCHKEY_SEED=n repeats one (as far as threads allow).
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace latchkey {
namespace {

uint64_t Seed() {
  static const uint64_t seed = [] {
    const char* const given = std::getenv("LATCHKEY_SEED");
    const uint64_t drawn =
        given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
    std::cerr << "seed: LATCHKEY_SEED=" << drawn << "\n";
    return drawn;
  }();
  return seed;
}

void ExpectNothingLeft(LockManager& locks) {
  EXPECT_FALSE(locks.IsBusy());
  for (const ResourceSnapshot& left : locks.Snapshot()) {
    ADD_FAILURE() << "left behind: " << left.state.resource << " held " << left.state.held
                  << " waiters " << left.waiters.size();
  }
}

// What only one thread at a time may touch, with nothing to protect it but the lock under test.
struct Unprotected {
  std::atomic<int> inside{0};  // Only to notice; never to protect.
  int64_t counter = 0;
  FencingToken last_token = 0;
};

enum class Mode { kPriorityFifo, kFifo, kBarging, kAgeing };

class LockStressTest : public ::testing::TestWithParam<Mode> {
 protected:
  static LockManagerOptions Options() {
    switch (GetParam()) {
      case Mode::kPriorityFifo:
        return {};
      case Mode::kFifo:
        return {.queue = FifoQueue()};
      case Mode::kBarging:
        return {.queue = PriorityQueue({.barging = true})};
      case Mode::kAgeing:
        return {.queue = AgeingQueue({.step = absl::Milliseconds(1)})};
    }
    return {};
  }
};

INSTANTIATE_TEST_SUITE_P(Policies, LockStressTest,
                         ::testing::Values(Mode::kPriorityFifo, Mode::kFifo, Mode::kBarging,
                                           Mode::kAgeing),
                         [](const auto& info) -> std::string {
                           switch (info.param) {
                             case Mode::kPriorityFifo:
                               return "PriorityFifo";
                             case Mode::kFifo:
                               return "Fifo";
                             case Mode::kBarging:
                               return "Barging";
                             case Mode::kAgeing:
                               return "Ageing";
                           }
                           return "Unknown";
                         });

TEST_P(LockStressTest, NeverTwoInsideWithInfiniteLeases) {
  constexpr int kThreads = 8;
  constexpr int kRounds = 2000;
  constexpr int kResources = 3;
  const std::shared_ptr<LockingProtocol> backend = NewMemoryBackend({.shards = 2});
  LockManager first = *LockManager::Create(backend, Options());
  LockManager second = *LockManager::Create(backend, Options());
  std::vector<Unprotected> resources(kResources);
  std::atomic<int64_t> granted = 0;
  std::vector<std::thread> threads;
  const uint64_t seed = Seed();
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      const auto draw = [&](int64_t below) {
        return static_cast<int64_t>(random() % static_cast<uint64_t>(below));
      };
      for (int round = 0; round < kRounds; ++round) {
        const int r = static_cast<int>(draw(kResources));
        Unprotected& resource = resources[r];
        LockManager& locks = draw(2) == 0 ? first : second;
        std::stop_source cancel;
        AcquireOptions options{.priority = draw(4), .skip_queue = draw(8) == 0};
        if (draw(3) == 0) options.owner = absl::StrCat("owner ", t);
        if (draw(4) == 0) options.acquire_timeout = absl::Microseconds(draw(300));
        if (draw(8) == 0) options.preemptible = false;
        std::optional<std::jthread> canceller;
        if (draw(50) == 0) {
          options.cancel = cancel.get_token();
          canceller.emplace([&cancel] { cancel.request_stop(); });
        }
        absl::StatusOr<Lock> lock = draw(10) == 0
                                        ? locks.TryAcquire(absl::StrCat("resource ", r), options)
                                        : locks.Acquire(absl::StrCat("resource ", r), options);
        if (!lock.ok()) continue;
        ASSERT_EQ(resource.inside.fetch_add(1), 0) << "two inside resource " << r;
        ASSERT_GT(lock->fencing_token(), resource.last_token);
        resource.last_token = lock->fencing_token();
        ++resource.counter;
        if (draw(20) == 0) std::this_thread::yield();
        if (draw(20) == 0) static_cast<void>(lock->state());
        resource.inside.fetch_sub(1);
        granted.fetch_add(1);
        if (draw(2) == 0) {
          ASSERT_TRUE(lock->Release().ok());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  int64_t counted = 0;
  for (const Unprotected& resource : resources) counted += resource.counter;
  EXPECT_EQ(counted, granted.load());
  EXPECT_GT(granted.load(), kThreads * kRounds / 2);
  ExpectNothingLeft(first);
  ExpectNothingLeft(second);
}

// The in-memory backend as one behind a network: another thread asks it, and tells the answers.
class AnswersLater : public LockingProtocol {
 public:
  explicit AnswersLater(std::shared_ptr<LockingProtocol> inner)
      : inner_(std::move(inner)), postman_([this] { Deliver(); }) {
    capabilities_ = inner_->capabilities();
    capabilities_.answers_at_once = false;
    capabilities_.inspect = false;
  }
  ~AnswersLater() override {
    {
      absl::MutexLock lock(&mu_);
      closed_ = true;
    }
    postman_.join();
  }

  // Returns when everything that was asked has been answered. Before that it must not be destroyed,
  // for the last answer may bring the end of whoever shares it.
  void Drain() {
    absl::MutexLock lock(&mu_);
    const auto idle = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      return letters_.empty() && !delivering_;
    };
    mu_.Await(absl::Condition(&idle));
  }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    Post([this, request = request, resource = std::string(request.resource.bytes()),
          owner = std::string(request.owner), done = std::move(done)]() mutable {
      request.resource = ResourceName(resource);
      request.owner = owner;
      inner_->Obtain(request, std::move(done));
    });
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    Post([this, hold = hold, resource = std::string(hold.resource.bytes()),
          done = std::move(done)]() mutable {
      hold.resource = ResourceName(resource);
      inner_->Release(hold, std::move(done));
    });
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    inner_->Extend(hold, lease, std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return inner_->Watch(request, std::move(on_event));
  }
  const BackendCapabilities& capabilities() const override { return capabilities_; }

 private:
  using Letter = absl::AnyInvocable<void()>;

  void Post(Letter letter) {
    absl::MutexLock lock(&mu_);
    letters_.push_back(std::move(letter));
  }
  void Deliver() {
    const auto due = [this]()
                         ABSL_SHARED_LOCKS_REQUIRED(mu_) { return closed_ || !letters_.empty(); };
    for (;;) {
      Letter letter;
      {
        absl::MutexLock lock(&mu_);
        delivering_ = false;
        mu_.Await(absl::Condition(&due));
        if (letters_.empty()) return;
        delivering_ = true;
        letter = std::move(letters_.front());
        letters_.pop_front();
      }
      letter();
    }
  }

  const std::shared_ptr<LockingProtocol> inner_;
  BackendCapabilities capabilities_;
  absl::Mutex mu_;
  std::deque<Letter> letters_ ABSL_GUARDED_BY(mu_);
  bool delivering_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  std::thread postman_;  // Uses all of the above.
};

TEST_P(LockStressTest, WhereAnswersTakeTheirTimeNeverTwoInsideAndWhoHoldsEntersAgain) {
  constexpr int kThreads = 8;
  constexpr int kRounds = 300;
  constexpr int kResources = 2;
  const auto memory = NewMemoryBackend();
  const auto backend = std::make_shared<AnswersLater>(memory);
  {
    LockManager first = *LockManager::Create(backend, Options());
    LockManager second = *LockManager::Create(backend, Options());
    std::vector<Unprotected> resources(kResources);
    std::atomic<int64_t> granted = 0;
    std::vector<std::thread> threads;
    const uint64_t seed = Seed();
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(seed * 17 + t);
        const auto draw = [&](int64_t below) {
          return static_cast<int64_t>(random() % static_cast<uint64_t>(below));
        };
        for (int round = 0; round < kRounds; ++round) {
          const int r = static_cast<int>(draw(kResources));
          const std::string name = absl::StrCat("resource ", r);
          Unprotected& resource = resources[r];
          std::stop_source cancel;
          AcquireOptions options{.priority = draw(4), .skip_queue = draw(8) == 0};
          if (draw(3) != 0) options.owner = absl::StrCat("owner ", t);
          if (draw(4) == 0) options.acquire_timeout = absl::Microseconds(draw(3) * 100);
          if (draw(8) == 0) options.max_attempts = 1;
          if (draw(8) == 0) options.admission = LimitPending({.per_resource = draw(3)});
          std::optional<std::jthread> canceller;
          if (draw(20) == 0) {
            options.cancel = cancel.get_token();
            canceller.emplace([&cancel] { cancel.request_stop(); });
          }
          absl::StatusOr<Lock> lock = (draw(2) == 0 ? first : second).Acquire(name, options);
          if (!lock.ok()) continue;
          ASSERT_EQ(resource.inside.fetch_add(1), 0) << "two inside " << name;
          ASSERT_GT(lock->fencing_token(), resource.last_token);
          resource.last_token = lock->fencing_token();
          if (!options.owner.empty()) {
            AcquireOptions again{.owner = options.owner};
            if (draw(3) == 0) again.acquire_timeout = absl::ZeroDuration();
            if (draw(3) == 0) again.max_attempts = 1;
            LockManager& locks = draw(2) == 0 ? first : second;
            absl::StatusOr<Lock> inner = locks.Acquire(name, again);
            ASSERT_TRUE(inner.ok()) << inner.status();
            ASSERT_EQ(inner->fencing_token(), lock->fencing_token());
          }
          if (draw(20) == 0) std::this_thread::yield();
          resource.inside.fetch_sub(1);
          granted.fetch_add(1);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_GT(granted.load(), kThreads * kRounds / 4);
    backend->Drain();
    EXPECT_FALSE(first.IsBusy());
    EXPECT_FALSE(second.IsBusy());
  }
  backend->Drain();
  LockManager next_to_it = *LockManager::Create(memory);
  ExpectNothingLeft(next_to_it);
}

// A store that does as docs/explanation says a resource should: it refuses a token that is smaller
// than one it has seen.
class FencedStore {
 public:
  bool Write(FencingToken token) {
    absl::MutexLock lock(&mu_);
    if (token < highest_) return false;
    highest_ = token;
    accepted_.push_back(token);
    return true;
  }
  std::vector<FencingToken> accepted() {
    absl::MutexLock lock(&mu_);
    return accepted_;
  }

 private:
  absl::Mutex mu_;
  FencingToken highest_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<FencingToken> accepted_ ABSL_GUARDED_BY(mu_);
};

TEST_P(LockStressTest, NoStaleWriteWithShortLeasesAndForce) {
  constexpr int kThreads = 6;
  constexpr int kRounds = 300;
  const std::shared_ptr<LockingProtocol> backend = NewMemoryBackend();
  LockManager locks = *LockManager::Create(backend, Options());
  FencedStore store;
  const uint64_t seed = Seed();
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed * 31 + t);
      for (int round = 0; round < kRounds; ++round) {
        AcquireOptions options{.priority = static_cast<Priority>(random() % 4),
                               .lease = absl::Microseconds(200 + random() % 2000),
                               .auto_renew = random() % 2 == 0};
        if (random() % 3 == 0) options.preemption_grace = absl::Microseconds(random() % 200);
        if (random() % 3 == 0) options.acquire_timeout = absl::Microseconds(random() % 2000);
        absl::StatusOr<Lock> lock = locks.Acquire("resource", options);
        if (!lock.ok()) continue;
        std::stop_token stop = lock->stop_token();
        for (int write = 0; write < 20 && !stop.stop_requested(); ++write) {
          store.Write(lock->fencing_token());
          if (random() % 8 == 0) std::this_thread::yield();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<FencingToken> accepted = store.accepted();
  EXPECT_TRUE(std::is_sorted(accepted.begin(), accepted.end()));
  EXPECT_FALSE(accepted.empty());
  ExpectNothingLeft(locks);
}

TEST_P(LockStressTest, CancellationRacesWithTheGrantAndLeavesOneOutcome) {
  constexpr int kRounds = 500;
  LockManager locks = *LockManager::Create(NewMemoryBackend(), Options());
  int granted = 0;
  int cancelled = 0;
  for (int round = 0; round < kRounds; ++round) {
    absl::StatusOr<Lock> held = locks.Acquire("a");
    std::stop_source source;
    std::atomic<int> outcomes = 0;
    std::atomic<bool> got_it = false;
    absl::Notification done;
    locks.AcquireAsync("a", {.cancel = source.get_token()}, [&](absl::StatusOr<Lock> lock) {
      outcomes.fetch_add(1);
      got_it = lock.ok();
      lock = absl::CancelledError();
      done.Notify();
    });
    std::atomic<int> ready = 0;
    std::thread canceller([&] {
      ready.fetch_add(1);
      while (ready.load() < 2) std::this_thread::yield();
      source.request_stop();
    });
    ready.fetch_add(1);
    while (ready.load() < 2) std::this_thread::yield();
    ASSERT_TRUE(held->Release().ok());
    canceller.join();
    done.WaitForNotification();
    ASSERT_EQ(outcomes.load(), 1);
    (got_it ? granted : cancelled) += 1;
    ASSERT_FALSE(locks.IsBusy());
  }
  std::cerr << "granted " << granted << ", cancelled " << cancelled << "\n";
  ExpectNothingLeft(locks);
}

TEST(LockManagerLifetimeStressTest, DestroyingTheManagerWhileThreadsWaitAndHold) {
  const uint64_t seed = Seed();
  for (int round = 0; round < 200; ++round) {
    const std::shared_ptr<LockingProtocol> backend = NewMemoryBackend();
    std::optional<LockManager> locks = *LockManager::Create(backend);
    std::atomic<int> asking = 0;
    std::vector<std::thread> threads;
    std::vector<absl::StatusOr<Lock>> results(4);
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        asking.fetch_add(1);
        results[t] = locks->Acquire("a", {.priority = static_cast<Priority>((seed + t) % 3)});
      });
    }
    // The waiting ones end with the manager; whoever has the lock keeps it.
    while (asking.load() < 4) std::this_thread::yield();
    const auto all_settled = [&] {
      size_t waiting = 0;
      bool held = false;
      for (const ResourceSnapshot& snapshot : locks->Snapshot()) {
        waiting += snapshot.waiters.size();
        held |= snapshot.state.held;
      }
      return held && waiting == 3;
    };
    while (!all_settled()) std::this_thread::yield();
    locks.reset();
    for (std::thread& thread : threads) thread.join();
    int holders = 0;
    for (absl::StatusOr<Lock>& result : results) {
      if (result.ok()) {
        ++holders;
        EXPECT_TRUE(result->IsHeld());
      } else {
        EXPECT_EQ(ReasonOf(result.status()), Reason::kShutdown) << result.status();
      }
    }
    EXPECT_EQ(holders, 1);
  }
}

// Runs `body` on a thread with a stack of 256 KiB, on which anything that recurses with the length
// of a chain crashes.
void RunOnASmallStack(absl::AnyInvocable<void()> body) {
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, 256 * 1024), 0);
  pthread_t thread;
  ASSERT_EQ(pthread_create(
                &thread, &attributes,
                [](void* argument) -> void* {
                  (*static_cast<absl::AnyInvocable<void()>*>(argument))();
                  return nullptr;
                },
                &body),
            0);
  ASSERT_EQ(pthread_join(thread, nullptr), 0);
  pthread_attr_destroy(&attributes);
}

TEST(LockChainTest, A100000WaitersReleasedInAChainDoNotRecurse) {
  RunOnASmallStack([] {
    constexpr int kWaiters = 100'000;
    LockManager locks = *LockManager::Create(NewMemoryBackend(), {.admission = AdmitAll()});
    int granted = 0;
    absl::StatusOr<Lock> first = locks.Acquire("a");
    for (int i = 0; i < kWaiters; ++i) {
      // Each callback releases its lock, which grants the next.
      locks.AcquireAsync("a", {}, [&granted, i](absl::StatusOr<Lock> lock) {
        ASSERT_TRUE(lock.ok()) << lock.status();
        ASSERT_EQ(granted, i);
        ++granted;
        ASSERT_TRUE(lock->Release().ok());
      });
    }
    ASSERT_TRUE(first->Release().ok());
    EXPECT_EQ(granted, kWaiters);
    ExpectNothingLeft(locks);
  });
}

}  // namespace
}  // namespace latchkey
