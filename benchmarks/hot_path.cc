// Runs one workload a given number of times and does nothing else, so that instructions can be
// counted: benchmarks/check_instructions.sh does that and compares with the checked-in baseline.
//
//   hot_path WORKLOAD COUNT
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/log/check.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "benchmarks/peers.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/stats_observer.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace latchkey::benchmarks {
namespace {

constexpr char kKey[] = "orders/0000012345";

LockManager NewManager(LockManagerOptions options = {}) {
  absl::StatusOr<LockManager> manager = LockManager::Create(NewMemoryBackend(), std::move(options));
  CHECK_OK(manager);
  return *std::move(manager);
}

template <typename Table>
void Peer(int64_t count) {
  const auto table = std::make_unique<Table>();
  const std::string key = kKey;
  for (int64_t i = 0; i < count; ++i) auto guard = table->Acquire(key);
}

void Blocking(int64_t count, const AcquireOptions& options,
              LockManagerOptions manager_options = {}) {
  LockManager manager = NewManager(std::move(manager_options));
  const std::string key = kKey;
  for (int64_t i = 0; i < count; ++i) CHECK_OK(manager.Acquire(key, options));
}

void Uncontended(int64_t count) {
  LockManager manager = NewManager();
  const std::string key = kKey;
  for (int64_t i = 0; i < count; ++i) CHECK_OK(manager.Acquire(key));
}

void Run(int64_t count) {
  LockManager manager = NewManager();
  const std::string key = kKey;
  for (int64_t i = 0; i < count; ++i) {
    CHECK_OK(manager.Run(key, {}, [](LockContext&) { return absl::OkStatus(); }));
  }
}

void Async(int64_t count) {
  LockManager manager = NewManager();
  const std::string key = kKey;
  for (int64_t i = 0; i < count; ++i) {
    manager.AcquireAsync(key, {}, [](absl::StatusOr<Lock> lock) { CHECK_OK(lock); });
  }
}

void Preempt(int64_t count) {
  LockManager manager = NewManager();
  const std::string key = kKey;
  for (int64_t i = 0; i < count; ++i) {
    absl::StatusOr<Lock> holder = manager.Acquire(key);
    CHECK_OK(holder);
    holder->OnYieldRequested([&holder] { holder->ReleaseAsync(); });
    manager.AcquireAsync(key, {.priority = 1}, [](absl::StatusOr<Lock> lock) { CHECK_OK(lock); });
  }
}

// Two callbacks that take turns.
void Enter(LockManager& manager, const std::string& key, int64_t& left) {
  manager.AcquireAsync(key, {}, [&manager, &key, &left](absl::StatusOr<Lock> lock) {
    CHECK_OK(lock);
    if (--left > 0) Enter(manager, key, left);
  });
}

void HandOver(int64_t count) {
  LockManager manager = NewManager();
  const std::string key = kKey;
  int64_t left = count;
  absl::StatusOr<Lock> first = manager.Acquire(key);
  Enter(manager, key, left);
  Enter(manager, key, left);
  CHECK_OK(first->Release());
}

const std::map<std::string, std::function<void(int64_t)>>& Workloads() {
  static const auto& workloads = *new std::map<std::string, std::function<void(int64_t)>>{
      {"floor", Peer<Floor>},
      {"hand_written", Peer<HandWritten>},
      {"tbb", Peer<Tbb>},
      {"uncontended", Uncontended},
      {"owner", [](int64_t count) { Blocking(count, {.owner = "worker 17"}); }},
      {"lease", [](int64_t count) { Blocking(count, {.lease = absl::Seconds(30)}); }},
      {"observer",
       [](int64_t count) { Blocking(count, {}, {.observer = std::make_shared<StatsObserver>()}); }},
      {"run", Run},
      {"async", Async},
      {"preempt", Preempt},
      {"hand_over", HandOver},
  };
  return workloads;
}

}  // namespace
}  // namespace latchkey::benchmarks

int main(int argc, char** argv) {
  const auto& workloads = latchkey::benchmarks::Workloads();
  const auto found = argc == 3 ? workloads.find(argv[1]) : workloads.end();
  if (found == workloads.end()) {
    std::cerr << "usage: hot_path WORKLOAD COUNT, where WORKLOAD is one of";
    for (const auto& [name, run] : workloads) std::cerr << " " << name;
    std::cerr << "\n";
    return 2;
  }
  found->second(std::atoll(argv[2]));
  return 0;
}
