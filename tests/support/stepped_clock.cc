// Loaded into a server by LD_PRELOAD: its wall clock is off by what a file says. See
// server_clock.h.
//
// Thread safety: the file is one aligned number, written by the test and read here.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

namespace {

const volatile int64_t* offset = nullptr;  // In microseconds; null: no file.

__attribute__((constructor)) void Open() {
  const char* const path = getenv("LATCHKEY_CLOCK_OFFSET");
  if (path == nullptr) return;
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  void* const file = mmap(nullptr, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (file != MAP_FAILED) offset = static_cast<const volatile int64_t*>(file);
}

timespec SteppedTime() {
  timespec now{};
  syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
  if (offset == nullptr) return now;
  constexpr int64_t kNanos = 1'000'000'000;
  const int64_t nanos = now.tv_nsec + *offset % 1'000'000 * 1000;
  now.tv_sec += *offset / 1'000'000 + (nanos < 0 ? -1 : nanos / kNanos);
  now.tv_nsec = nanos < 0 ? nanos + kNanos : nanos % kNanos;
  return now;
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* now) noexcept {
  if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) {
    return static_cast<int>(syscall(SYS_clock_gettime, clock, now));
  }
  *now = SteppedTime();
  return 0;
}

int gettimeofday(timeval* now, void*) noexcept {
  const timespec time = SteppedTime();
  now->tv_sec = time.tv_sec;
  now->tv_usec = time.tv_nsec / 1000;
  return 0;
}

time_t time(time_t* now) noexcept {
  const time_t seconds = SteppedTime().tv_sec;
  if (now != nullptr) *now = seconds;
  return seconds;
}

}  // extern "C"
