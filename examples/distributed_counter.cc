// Four processes add to a number in a file: each reads it, adds one, and writes it back. They share
// nothing but the file and a Redis server, and under the lock no addition is lost.
//
// Run it on a Redis server that nobody else uses:
//   ./bazelw run //examples:distributed_counter -- redis://localhost
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/lock_manager.h"

namespace {

constexpr int kProcesses = 4;
constexpr int kRounds = 50;

int Read(const std::filesystem::path& path) {
  int number = 0;
  std::ifstream(path) >> number;
  return number;
}

// What each process does.
int AddRounds(const std::string& url, const std::filesystem::path& path) {
  // [distributed_counter]
  auto backend = latchkey::ConnectRedisBackend({.url = url, .new_server = true});
  if (!backend.ok()) {
    std::cerr << backend.status() << "\n";
    return EXIT_FAILURE;
  }
  absl::StatusOr<latchkey::LockManager> locks = latchkey::LockManager::Create(*std::move(backend));
  if (!locks.ok()) return EXIT_FAILURE;
  for (int round = 0; round < kRounds; ++round) {
    absl::StatusOr<latchkey::Lock> lock = locks->Acquire("counter");
    if (!lock.ok()) {
      std::cerr << lock.status() << "\n";
      return EXIT_FAILURE;
    }
    const int number = Read(path);
    std::ofstream(path) << number + 1;
    // ~Lock would do, but this process ends by _exit(), which waits for nothing: wait until the
    // server knows, or the others wait for the end of the lease.
    if (absl::Status released = lock->Release(); !released.ok()) {
      std::cerr << released << "\n";
      return EXIT_FAILURE;
    }
  }
  // [distributed_counter]
  return EXIT_SUCCESS;
}

int Main(const std::string& url) {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("latchkey_counter_" + std::to_string(getpid()));
  std::ofstream(path) << 0;
  std::vector<pid_t> processes;
  for (int i = 0; i < kProcesses; ++i) {
    const pid_t pid = fork();
    // Each connects on its own: a connection must not be carried over a fork.
    if (pid == 0) _exit(AddRounds(url, path));
    processes.push_back(pid);
  }
  bool all_well = true;
  for (const pid_t pid : processes) {
    int status = 0;
    waitpid(pid, &status, 0);
    all_well = all_well && WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS;
  }
  const int counted = Read(path);
  std::filesystem::remove(path);
  std::cout << counted << " of " << kProcesses * kRounds << " additions\n";
  return all_well && counted == kProcesses * kRounds ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: distributed_counter redis://HOST[:PORT]\n";
    return EXIT_FAILURE;
  }
  return Main(argv[1]);
}
