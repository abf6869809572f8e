// The wall clock of a server that a test starts, which the test steps forward and back while the
// server runs. Its monotonic clock stays as it is.
//
//   ServerClock clock(shim_path);   // of //tests/support:stepped_clock.so
//   RedisServer server({.environment = clock.environment()});
//   clock.Step(-absl::Hours(2));
//
// Thread safety: Step may be called from any thread.
#ifndef LATCHKEY_TESTS_SUPPORT_SERVER_CLOCK_H_
#define LATCHKEY_TESTS_SUPPORT_SERVER_CLOCK_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"

namespace latchkey {

class ServerClock {
 public:
  // Without the shared object or a folder to write to the process ends with a message.
  explicit ServerClock(std::string_view shim_path);
  ServerClock(const ServerClock&) = delete;
  ServerClock& operator=(const ServerClock&) = delete;
  ~ServerClock();

  // "NAME=value" each, for the server.
  std::vector<std::string> environment() const;

  // Takes effect at once.
  void Step(absl::Duration by);

 private:
  std::string shim_;
  std::string path_;
  std::atomic<int64_t>* offset_ = nullptr;  // In microseconds; the file in memory.
};

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SUPPORT_SERVER_CLOCK_H_
