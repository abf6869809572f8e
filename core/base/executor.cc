#include "latchkey/core/base/executor.h"

#include <algorithm>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/no_destructor.h"
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/inline_turn.h"

namespace latchkey {
namespace {

class InlineExecutorImpl : public Executor {
 public:
  void Execute(Task task) override {
    internal::InlineTurn turn;
    if (!turn.mine()) {
      internal::InlineTurn::Later(std::move(task));
      return;
    }
    internal::RunContained("a task of the executor", "", task);
    task = nullptr;  // What it captured goes before the next one runs.
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
      internal::RunContained("a task of the executor", "", task);
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
