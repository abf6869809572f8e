// Eight threads add to a number in a real file: each reads it, adds one, and writes it back. Under
// the lock the count comes out right. Without the lock it does not, and it cannot by luck: the
// threads wait for each other between reading and writing.
//
// Run it with:  ./bazelw run //examples:quickstart
#include <unistd.h>

#include <barrier>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace {

constexpr int kThreads = 8;
constexpr int kRounds = 50;

int Read(const std::filesystem::path& path) {
  int number = 0;
  std::ifstream(path) >> number;
  return number;
}

void Write(const std::filesystem::path& path, int number) { std::ofstream(path) << number; }

void OnEachThread(const std::function<void()>& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(body);
  for (std::thread& thread : threads) thread.join();
}

int Main() {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("latchkey_quickstart_" + std::to_string(getpid()));

  // Without a lock. In every round all threads read before any of them writes.
  Write(path, 0);
  std::barrier all_have_read(kThreads);
  std::barrier all_have_written(kThreads);
  OnEachThread([&] {
    for (int round = 0; round < kRounds; ++round) {
      const int number = Read(path);
      all_have_read.arrive_and_wait();
      Write(path, number + 1);
      all_have_written.arrive_and_wait();
    }
  });
  const int unlocked = Read(path);
  std::cout << "without the lock: " << unlocked << " of " << kThreads * kRounds << "\n";

  // [quickstart]
  absl::StatusOr<latchkey::LockManager> locks =
      latchkey::LockManager::Create(latchkey::NewMemoryBackend());
  if (!locks.ok()) return 1;
  Write(path, 0);
  OnEachThread([&] {
    for (int round = 0; round < kRounds; ++round) {
      absl::StatusOr<latchkey::Lock> lock = locks->Acquire(path.string());
      if (!lock.ok()) return;  // Cannot happen here: it waits as long as it takes.
      const int number = Read(path);
      std::this_thread::yield();  // Let the others try.
      Write(path, number + 1);
    }  // ~Lock releases.
  });
  // [quickstart]
  const int locked = Read(path);
  std::cout << "with the lock:    " << locked << " of " << kThreads * kRounds << "\n";

  std::filesystem::remove(path);
  return locked == kThreads * kRounds && unlocked < kThreads * kRounds ? 0 : 1;
}

}  // namespace

int main() { return Main(); }
