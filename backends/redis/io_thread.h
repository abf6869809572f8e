// The I/O thread of one backend, and what the end of the program has to know of it.
//
// A backend cannot always wait for its own thread: the completion of a release may be the last that
// needs the backend, and it runs on that very thread. Left to itself, the thread could be cut off
// by the end of the program, and the release with it. So all threads are known to this file, and
// the end of the program (return from main, exit()) waits, for a bounded time, for the releases
// that are under way and for the threads whose backends are gone.
//
//   auto thread = std::make_shared<IoThread>(shutdown_timeout);
//   thread->Start([core] { core->Run(); }, [raw] { raw->Wake(); });
//   ...
//   thread->Finish();
//
// Thread safety: all methods may be called from any thread, unless they say otherwise.
#ifndef LATCHKEY_BACKENDS_REDIS_IO_THREAD_H_
#define LATCHKEY_BACKENDS_REDIS_IO_THREAD_H_

#include <sys/types.h>

#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace latchkey::redis {

class IoThread : public std::enable_shared_from_this<IoThread> {
 public:
  // `patience`: how long Finish and the end of the program wait for what is under way.
  explicit IoThread(absl::Duration patience) : patience_(patience) {}
  IoThread(const IoThread&) = delete;
  IoThread& operator=(const IoThread&) = delete;

  // Runs `body` on a new thread that takes no signals, and destroys it there. `wake` makes the body
  // come by at Settle; it is not called any more once the body has called Close. Once only.
  void Start(absl::AnyInvocable<void() &&> body, absl::AnyInvocable<void()> wake);

  bool IsCurrent() const;

  // Waits until the body, which was told to stop, is over, and joins the thread. On the thread
  // itself, and if the body takes longer than the patience and a second more, the thread is left
  // to the end of the program.
  void Finish() ABSL_LOCKS_EXCLUDED(mutex_);

  // While one of these exists, something is under way that should not be cut off.
  class UnderWay {
   public:
    explicit UnderWay(std::shared_ptr<IoThread> thread) : thread_(std::move(thread)) {
      thread_->under_way_.fetch_add(1, std::memory_order_relaxed);
    }
    UnderWay(const UnderWay&) = delete;
    UnderWay& operator=(const UnderWay&) = delete;
    ~UnderWay() {
      if (thread_->under_way_.fetch_sub(1) == 1 && thread_->settle_asked_) thread_->WakeToSettle();
    }

   private:
    const std::shared_ptr<IoThread> thread_;
  };

  // For the body: everything that was handed to it before it was woken is done, or under way.
  void Settle() {
    if (settle_asked_.load(std::memory_order_acquire)) SettleSlowly();
  }
  // For the body: it is about to end.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend struct IoThreads;

  void SettleSlowly() ABSL_LOCKS_EXCLUDED(mutex_);
  // The end of what was under way may come on any thread.
  void WakeToSettle() ABSL_LOCKS_EXCLUDED(mutex_);
  bool AwaitOver(absl::Duration most) ABSL_LOCKS_EXCLUDED(mutex_);
  void Join() ABSL_LOCKS_EXCLUDED(mutex_);
  // At the end of the program.
  void AskToSettle() ABSL_LOCKS_EXCLUDED(mutex_);
  void AwaitSettled(absl::Time until) ABSL_LOCKS_EXCLUDED(mutex_);
  void AwaitEnd(absl::Time until) ABSL_LOCKS_EXCLUDED(mutex_);

  const absl::Duration patience_;
  pid_t process_ = 0;  // Constant after Start.

  std::atomic<int64_t> under_way_{0};
  std::atomic<bool> settle_asked_{false};

  absl::Mutex mutex_;
  std::thread thread_ ABSL_GUARDED_BY(mutex_);
  absl::AnyInvocable<void()> wake_ ABSL_GUARDED_BY(mutex_);
  bool settled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;  // Its backend is gone.
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace latchkey::redis

#endif  // LATCHKEY_BACKENDS_REDIS_IO_THREAD_H_
