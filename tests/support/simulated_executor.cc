#include "latchkey/tests/support/simulated_executor.h"

#include <utility>

namespace latchkey {

void SimulatedExecutor::Execute(Task task) {
  absl::MutexLock lock(&mu_);
  tasks_.push_back(std::move(task));
}

bool SimulatedExecutor::RunOne() {
  Task task;
  {
    absl::MutexLock lock(&mu_);
    if (tasks_.empty()) return false;
    task = std::move(tasks_.front());
    tasks_.pop_front();
  }
  task();
  return true;
}

size_t SimulatedExecutor::RunAll() {
  size_t ran = 0;
  while (RunOne()) ++ran;
  return ran;
}

void SimulatedExecutor::DropAll() {
  std::deque<Task> dropped;  // Goes without the mutex.
  absl::MutexLock lock(&mu_);
  dropped.swap(tasks_);
}

size_t SimulatedExecutor::Pending() const {
  absl::MutexLock lock(&mu_);
  return tasks_.size();
}

}  // namespace latchkey
