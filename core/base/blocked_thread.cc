#include "latchkey/core/base/blocked_thread.h"

#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <utility>

#include "latchkey/core/base/blocker.h"

namespace latchkey {
namespace {

// What wakes a thread out of poll(). Each thread has one of its own; Blocker sees to it that nobody
// rings when it is gone.
class Bell {
 public:
  Bell() = default;
  Bell(const Bell&) = delete;
  Bell& operator=(const Bell&) = delete;
  ~Bell() { Close(); }

  // -1: the process has no descriptors left.
  int descriptor() {
    // A child made by fork() shares its parent's, which must not ring for both.
    static const bool watched = pthread_atfork(nullptr, nullptr, [] { ++forks_; }) == 0;
    const int forks = forks_.load(std::memory_order_relaxed);
    if (descriptor_ < 0 || born_after_ != forks) {
      Close();
      if (!watched) return -1;
      descriptor_ = eventfd(0, EFD_CLOEXEC);
      born_after_ = forks;
    }
    return descriptor_;
  }

 private:
  void Close() {
    if (descriptor_ >= 0) close(descriptor_);
    descriptor_ = -1;
  }

  static inline std::atomic<int> forks_ = 0;

  int descriptor_ = -1;
  int born_after_ = 0;
};

}  // namespace

namespace internal {

void Blocker::Ring(int bell) {
  const uint64_t once = 1;
  // It cannot fail: each ring is heard before there can be another.
  [[maybe_unused]] const ssize_t written = write(bell, &once, sizeof once);
}

void Blocker::HearRing(int bell) {
  uint64_t rings;
  while (read(bell, &rings, sizeof rings) < 0) {
  }
}

}  // namespace internal

BlockedThread::BlockedThread(AcquisitionId acquisition)
    : acquisition_(acquisition), outer_(std::exchange(current_, this)) {}

BlockedThread::~BlockedThread() {
  current_ = outer_;
  for (const Expected& one : expected_) one.source->EndFetching(one.loan);
}

void BlockedThread::Expect(std::shared_ptr<AnswerSource> source, int descriptor, uint64_t loan) {
  for (Expected& one : expected_) {
    // Also where it was over for the moment, as long as it has not been ended.
    if (one.source == source && (!one.over || one.loan == loan)) {
      one.descriptor = descriptor;
      one.loan = loan;
      one.over = false;
      return;
    }
  }
  expected_.push_back({.source = std::move(source), .descriptor = descriptor, .loan = loan});
}

void BlockedThread::DropOver() {
  for (size_t i = 0; i < expected_.size();) {
    if (!expected_[i].over) {
      ++i;
      continue;
    }
    std::swap(expected_[i], expected_.back());
    const Expected over = std::move(expected_.back());
    expected_.pop_back();
    over.source->EndFetching(over.loan);
  }
}

void BlockedThread::Await(internal::Blocker& blocker) {
  static thread_local Bell bell;
  while (!expected_.empty()) {
    const int descriptor = bell.descriptor();
    if (descriptor < 0) {
      // Nothing could wake it, so it must not keep others from reading.
      for (Expected& one : expected_) one.over = true;
      DropOver();
      break;
    }
    if (!blocker.BeginPolling(descriptor)) break;
    absl::InlinedVector<pollfd, 8> polled = {{.fd = descriptor, .events = POLLIN, .revents = 0}};
    for (const Expected& one : expected_) {
      polled.push_back({.fd = one.descriptor, .events = POLLIN, .revents = 0});
    }
    poll(polled.data(), polled.size(), -1);
    if (!blocker.EndPolling(descriptor)) break;
    for (size_t i = 1; i < polled.size(); ++i) {
      if (polled[i].revents == 0) continue;
      // Fetching may call back, and add to what is expected.
      const Expected one = expected_[i - 1];
      if (!one.source->Fetch(one.loan) && expected_[i - 1].loan == one.loan) {
        expected_[i - 1].over = true;
      }
    }
    DropOver();
  }
}

}  // namespace latchkey
