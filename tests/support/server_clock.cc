#include "latchkey/tests/support/server_clock.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "absl/strings/str_cat.h"

namespace latchkey {
namespace {

[[noreturn]] void Fail(const std::string& message) {
  fprintf(stderr, "ServerClock: %s\n", message.c_str());
  abort();
}

}  // namespace

ServerClock::ServerClock(std::string_view shim_path)
    : shim_(std::filesystem::absolute(shim_path).string()) {
  if (!std::filesystem::exists(shim_)) Fail(absl::StrCat("there is no ", shim_));
  path_ = (std::filesystem::temp_directory_path() / "latchkey-clock-XXXXXX").string();
  const int fd = mkstemp(path_.data());
  if (fd < 0 || ftruncate(fd, sizeof *offset_) != 0) Fail("cannot write a file");
  void* const file = mmap(nullptr, sizeof *offset_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (file == MAP_FAILED) Fail("cannot map the file");
  offset_ = new (file) std::atomic<int64_t>(0);
}

ServerClock::~ServerClock() {
  munmap(offset_, sizeof *offset_);
  unlink(path_.c_str());
}

std::vector<std::string> ServerClock::environment() const {
  return {absl::StrCat("LD_PRELOAD=", shim_), absl::StrCat("LATCHKEY_CLOCK_OFFSET=", path_)};
}

void ServerClock::Step(absl::Duration by) { *offset_ += absl::ToInt64Microseconds(by); }

}  // namespace latchkey
