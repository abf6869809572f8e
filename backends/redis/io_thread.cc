#include "latchkey/backends/redis/io_thread.h"

#include <openssl/ssl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <vector>

#include "absl/base/no_destructor.h"
#include "latchkey/core/base/clock.h"

namespace latchkey::redis {
namespace {

// What a thread may take to end once nothing is under way any more. Only the look-up of a host's
// name can take longer: it cannot be interrupted.
constexpr absl::Duration kEnding = absl::Seconds(1);

thread_local const IoThread* current = nullptr;

}  // namespace

// Every thread that was started and not joined yet.
struct IoThreads {
  absl::Mutex mutex;
  std::vector<std::shared_ptr<IoThread>> threads ABSL_GUARDED_BY(mutex);
  // A child made by fork() has the list, and none of the threads.
  std::atomic<pid_t> process{0};

  static IoThreads& All() {
    static absl::NoDestructor<IoThreads> all;
    return *all;
  }

  void Add(std::shared_ptr<IoThread> thread) {
    // OpenSSL registers its own clean-up now, so that it runs after the wait and not before.
    static const bool registered =
        OPENSSL_init_ssl(0, nullptr) == 1 && atexit([] { All().WaitAtExit(); }) == 0;
    static_cast<void>(registered);
    process = getpid();
    std::vector<std::shared_ptr<IoThread>> over;
    {
      absl::MutexLock lock(&mutex);
      for (const auto& other : threads) {
        if (other->process_ != getpid()) continue;
        absl::MutexLock other_lock(&other->mutex_);
        if (other->finishing_ && other->over_) over.push_back(other);
      }
      threads.push_back(std::move(thread));
    }
    // Those that could not be waited for when their backends went.
    for (const auto& other : over) other->Join();
  }

  void Remove(const IoThread* thread) {
    absl::MutexLock lock(&mutex);
    std::erase_if(threads, [thread](const auto& other) { return other.get() == thread; });
  }

  void WaitAtExit() {
    if (process != getpid()) return;
    std::vector<std::shared_ptr<IoThread>> all;
    {
      absl::MutexLock lock(&mutex);
      all = threads;
    }
    std::erase_if(all, [](const auto& thread) {
      return thread->process_ != getpid() || thread->IsCurrent();
    });
    // What is under way on one thread may be the last that needs the backends of others, so only
    // when all have settled it is clear which of them end. One patience for all of them.
    const absl::Time start = RealClock().Now();  // Not the wall clock, which may be set meanwhile.
    for (const auto& thread : all) thread->AskToSettle();
    for (const auto& thread : all) thread->AwaitSettled(start + thread->patience_);
    for (const auto& thread : all) thread->AwaitEnd(start + thread->patience_ + kEnding);
  }
};

void IoThread::Start(absl::AnyInvocable<void() &&> body, absl::AnyInvocable<void()> wake) {
  process_ = getpid();
  IoThreads::All().Add(shared_from_this());
  // Signals are the program's business, and writing to a closed socket must not end it: hiredis
  // does not ask for MSG_NOSIGNAL.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  {
    absl::MutexLock lock(&mutex_);
    wake_ = std::move(wake);
    thread_ = std::thread([self = shared_from_this(), body = std::move(body)]() mutable {
      current = self.get();
      std::move(body)();
      body = nullptr;
      absl::MutexLock lock(&self->mutex_);
      self->over_ = true;
    });
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

bool IoThread::IsCurrent() const { return current == this; }

bool IoThread::AwaitOver(absl::Duration most) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&over_), most);
}

void IoThread::Join() {
  std::thread thread;
  {
    absl::MutexLock lock(&mutex_);
    thread = std::move(thread_);
  }
  if (thread.joinable()) thread.join();
  IoThreads::All().Remove(this);
}

void IoThread::Finish() {
  {
    absl::MutexLock lock(&mutex_);
    finishing_ = true;
  }
  if (!IsCurrent() && AwaitOver(patience_ + kEnding)) Join();
}

void IoThread::Close() {
  absl::MutexLock lock(&mutex_);
  closing_ = true;
}

void IoThread::SettleSlowly() {
  if (under_way_ > 0) return;
  absl::MutexLock lock(&mutex_);
  settled_ = true;
}

void IoThread::AskToSettle() {
  settle_asked_ = true;
  WakeToSettle();
}

void IoThread::WakeToSettle() {
  absl::MutexLock lock(&mutex_);
  if (!closing_) wake_();
}

void IoThread::AwaitSettled(absl::Time until) {
  absl::MutexLock lock(&mutex_);
  const auto settled = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    // A thread that closes runs what is left to be told, until it is over.
    return over_ || (settled_ && !closing_);
  };
  mutex_.AwaitWithTimeout(absl::Condition(&settled), until - RealClock().Now());
}

void IoThread::AwaitEnd(absl::Time until) {
  {
    absl::MutexLock lock(&mutex_);
    if (!over_ && !finishing_) return;
  }
  if (AwaitOver(until - RealClock().Now())) Join();
}

}  // namespace latchkey::redis
