// SimulatedExecutor is an Executor whose tasks wait until a test runs them, one by one if it likes,
// so that a test chooses what happens between an event and its callback.
//
//   SimulatedExecutor executor;
//   executor.Execute([&] { told = true; });   // told == false
//   executor.RunAll();                        // told == true
//
// Thread safety: all methods may be called from any thread. A task runs on the thread that calls
// RunOne or RunAll, with no mutex held.
#ifndef LATCHKEY_TESTS_SUPPORT_SIMULATED_EXECUTOR_H_
#define LATCHKEY_TESTS_SUPPORT_SIMULATED_EXECUTOR_H_

#include <cstddef>
#include <deque>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "latchkey/core/executor.h"

namespace latchkey {

class SimulatedExecutor : public Executor {
 public:
  SimulatedExecutor() = default;
  // Tasks that were not run are destroyed.
  ~SimulatedExecutor() override = default;

  SimulatedExecutor(const SimulatedExecutor&) = delete;
  SimulatedExecutor& operator=(const SimulatedExecutor&) = delete;

  // Queues the task; it never runs here.
  void Execute(Task task) override;

  // Runs the oldest task. False if there is none.
  bool RunOne();

  // Runs tasks until none is left, those included that are queued meanwhile. Returns how many ran.
  size_t RunAll();

  // Destroys the tasks that wait, as an executor does that shuts down.
  void DropAll();

  // How many tasks wait.
  size_t Pending() const;

 private:
  mutable absl::Mutex mu_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mu_);
};

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SUPPORT_SIMULATED_EXECUTOR_H_
