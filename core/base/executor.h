// Executor is where user callbacks run: grants, yield requests, losses, coroutine resumptions.
//
//   InlineExecutor()   on the thread where the event happened (default): fastest. That may be a
//                      thread inside a blocking call of the library, holding mutexes of its own.
//   NewThreadPool(n)   on n threads of its own: a slow callback delays nobody else.
//   your own           derive from Executor and post to your event loop.
//
// Whichever it is, a callback never runs deeper than one level on anybody's stack, and never with a
// mutex of the library held. Blocking calls of the library refuse to run inside a callback
// (kFailedPrecondition) rather than hang.
//
// Thread safety: Execute may be called from any thread.
#ifndef LATCHKEY_CORE_BASE_EXECUTOR_H_
#define LATCHKEY_CORE_BASE_EXECUTOR_H_

#include <memory>

#include "absl/functional/any_invocable.h"

namespace latchkey {

class Executor {
 public:
  using Task = absl::AnyInvocable<void()>;

  virtual ~Executor() = default;

  // Runs `task`, which is not null, exactly once, now or later, on a thread of the executor's
  // choice. Tasks must not throw; the executors here log what one throws, and go on with the next.
  // Execute must not throw either. The executor must outlive every manager that uses it and the
  // locks of those managers.
  //
  // An executor that shuts down may destroy a task without running it. Whom the task would have
  // told is then never told; a lock in it is released, and what waits for a set of locks, or for
  // the end of a transaction, ends. It must hold no mutex of its own meanwhile, and take (or drop)
  // the tasks that come of it. Execute must not throw; what it throws all the same is logged, and
  // the task counts as dropped.
  virtual void Execute(Task task) = 0;
};

// Runs each task on the calling thread: at once, or, if this thread is already inside a task, after
// that one has returned (a trampoline). So a chain of 100,000 hand-overs uses constant stack. Lives
// until the process ends; nobody owns it.
Executor& InlineExecutor();

// `threads` (at least 1) threads with one first-in-first-out queue. The destructor runs what is
// queued, then joins; it must not be called from one of its own tasks.
std::unique_ptr<Executor> NewThreadPool(int threads);

}  // namespace latchkey

#endif  // LATCHKEY_CORE_BASE_EXECUTOR_H_
