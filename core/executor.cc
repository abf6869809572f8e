#include "latchkey/core/executor.h"

#include <algorithm>
#include <cstddef>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/no_destructor.h"
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace latchkey {
namespace {

// Tasks that wait for the one that runs, first in, first out. It allocates nothing until there is
// one, which there is not as a rule.
class Trampoline {
 public:
  bool empty() const { return next_ == tasks_.size(); }
  void Push(Executor::Task task) { tasks_.push_back(std::move(task)); }
  Executor::Task Pop() {
    Executor::Task task = std::move(tasks_[next_++]);
    if (empty()) {
      tasks_.clear();
      next_ = 0;
    } else if (next_ >= kMostGone && next_ >= tasks_.size() / 2) {
      tasks_.erase(tasks_.begin(), tasks_.begin() + static_cast<std::ptrdiff_t>(next_));
      next_ = 0;
    }
    return task;
  }

 private:
  static constexpr size_t kMostGone = 64;

  std::vector<Executor::Task> tasks_;
  size_t next_ = 0;
};

// Each thread's: set while a task runs on it, so that tasks that arrive meanwhile wait their turn
// instead of nesting.
thread_local Trampoline* trampoline = nullptr;

class InlineExecutorImpl : public Executor {
 public:
  void Execute(Task task) override {
    if (trampoline != nullptr) {
      trampoline->Push(std::move(task));
      return;
    }
    Trampoline tasks;
    trampoline = &tasks;
    task();
    task = nullptr;  // What it captured goes before the next one runs.
    while (!tasks.empty()) {
      Task next = tasks.Pop();
      next();
    }
    trampoline = nullptr;
  }
};

class ThreadPool : public Executor {
 public:
  explicit ThreadPool(int threads) {
    for (int i = 0; i < std::max(threads, 1); ++i) {
      threads_.emplace_back([this] { Loop(); });
    }
  }

  ~ThreadPool() override {
    {
      absl::MutexLock lock(&mu_);
      closing_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }

  void Execute(Task task) override {
    absl::MutexLock lock(&mu_);
    tasks_.push_back(std::move(task));
  }

 private:
  void Loop() {
    for (;;) {
      Task task;
      {
        absl::MutexLock lock(&mu_);
        const auto ready = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
          return closing_ || !tasks_.empty();
        };
        mu_.Await(absl::Condition(&ready));
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }

  absl::Mutex mu_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mu_);
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace

Executor& InlineExecutor() {
  static absl::NoDestructor<InlineExecutorImpl> executor;
  return *executor;
}

std::unique_ptr<Executor> NewThreadPool(int threads) {
  return std::make_unique<ThreadPool>(threads);
}

}  // namespace latchkey
