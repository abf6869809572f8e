// InlineTurn is the inline executor from the inside: the right to run a task here and now, on the
// caller's stack, without wrapping it up first.
//
//   InlineTurn turn;
//   if (turn.mine()) task(); else InlineTurn::Later(std::move(task));
//
// Thread safety: a turn belongs to the thread that made it.
#ifndef LATCHKEY_CORE_BASE_INLINE_TURN_H_
#define LATCHKEY_CORE_BASE_INLINE_TURN_H_

#include <cstddef>
#include <vector>

#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/executor.h"

namespace latchkey::internal {

class InlineTurn {
 public:
  InlineTurn() {
    if (current_ == nullptr) current_ = this;
  }
  // Runs the tasks that arrived meanwhile, first in, first out.
  ~InlineTurn() {
    if (current_ != this) return;
    while (next_ != tasks_.size()) RunContained("a task of the executor", "", Pop());
    current_ = nullptr;
  }
  InlineTurn(const InlineTurn&) = delete;
  InlineTurn& operator=(const InlineTurn&) = delete;

  // False: this thread is inside a task already, and what it has to do comes after that.
  bool mine() const { return current_ == this; }

  // Runs `task` when the one that runs on this thread has ended.
  static void Later(Executor::Task task) { current_->tasks_.push_back(std::move(task)); }

 private:
  static constexpr size_t kMostGone = 64;

  Executor::Task Pop() {
    Executor::Task task = std::move(tasks_[next_++]);
    if (next_ == tasks_.size()) {
      tasks_.clear();
      next_ = 0;
    } else if (next_ >= kMostGone && next_ >= tasks_.size() / 2) {
      tasks_.erase(tasks_.begin(), tasks_.begin() + static_cast<std::ptrdiff_t>(next_));
      next_ = 0;
    }
    return task;
  }

  static inline thread_local InlineTurn* current_ = nullptr;

  // A queue whose first `next_` are gone. It allocates nothing while nothing arrives.
  std::vector<Executor::Task> tasks_;
  size_t next_ = 0;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_BASE_INLINE_TURN_H_
