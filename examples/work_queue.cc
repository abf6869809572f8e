// A queue of jobs and workers of whom the one that has processed fewest wins: each asks for a job
// with minus the number of jobs that it has processed as its priority. Somebody who has done less
// takes a job away from somebody who has done more; the latter rolls back what it did, and goes on
// with another job. A job that is in better hands already is not waited for: max_attempts is 1.
//
// Run it with:  ./bazelw run //examples:work_queue
#include <deque>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/time/time.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/transaction.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace {

using latchkey::Locker;
using latchkey::Loss;
using latchkey::Replace;
using latchkey::Transaction;
using latchkey::TransactionContext;

constexpr int kPages = 3;

struct Job {
  std::string name;
  std::map<std::string, int> pages = {};  // Printed, by worker. Of one alone, if all goes well.
  std::string finished_by = {};
};

enum class Outcome { kFinished, kWasFinished, kRolledBack };

class Worker {
 public:
  // `on_first_page` is called once. `done` is told when there is nothing left to do.
  Worker(latchkey::LockManager& locks, std::deque<Job>& jobs, std::string name, int processed,
         std::function<void()> on_first_page, std::function<void()> done)
      : locks_(locks),
        jobs_(jobs),
        name_(std::move(name)),
        processed_(processed),
        on_first_page_(std::move(on_first_page)),
        done_(std::move(done)) {}

  // Takes the next job that it can have, from the first one on.
  void Work(size_t index = 0) {
    if (index == jobs_.size()) {
      done_();
      return;
    }
    Job& job = jobs_[index];
    // [take]
    Locker jobs(locks_, job.name, job,
                {.owner = name_, .priority = -processed_, .max_attempts = 1});
    jobs.Start([this](Job& taken, TransactionContext& ctx) { return Process(taken, ctx); },
               [this](const Loss&) {
                 return Replace(
                     [this](Job& lost, TransactionContext& ctx) { return RollBack(lost, ctx); },
                     // This time it waits for its turn.
                     latchkey::AcquireOptions{.owner = name_, .priority = -processed_});
               })
        .OnDone([this, index](absl::StatusOr<Outcome> outcome) {
          if (outcome.ok() && *outcome == Outcome::kFinished) ++processed_;
          Work(index + 1);  // Also if it could not have this one.
        });
    // [take]
  }

  const std::string& name() const { return name_; }
  int processed() const { return processed_; }

 private:
  // [process]
  Transaction<Outcome> Process(Job& job, TransactionContext& ctx) {
    if (!job.finished_by.empty()) co_return Outcome::kWasFinished;
    std::cout << name_ << " (" << processed_ << " processed) takes " << job.name << "\n";
    for (int page = 1; page <= kPages; ++page) {
      ++job.pages[name_];
      if (on_first_page_) std::exchange(on_first_page_, nullptr)();
      co_await ctx.Sleep(absl::Milliseconds(5));  // The printer is slow.
    }
    job.finished_by = name_;
    std::cout << name_ << " has finished " << job.name << "\n";
    co_return Outcome::kFinished;
  }

  Transaction<Outcome> RollBack(Job& job, TransactionContext&) {
    std::cout << name_ << " withdraws " << job.pages[name_] << " page(s) of " << job.name << "\n";
    job.pages.erase(name_);
    co_return Outcome::kRolledBack;
  }
  // [process]

  latchkey::LockManager& locks_;
  std::deque<Job>& jobs_;
  const std::string name_;
  int processed_;
  std::function<void()> on_first_page_;
  std::function<void()> done_;
};

int Main() {
  absl::StatusOr<latchkey::LockManager> locks =
      latchkey::LockManager::Create(latchkey::NewMemoryBackend());
  if (!locks.ok()) return 1;
  std::deque<Job> jobs = {{"the letter"}, {"the report"}};
  absl::BlockingCounter at_work(3);
  const auto done = [&] { at_work.DecrementCount(); };

  Worker carol(*locks, jobs, "carol", 9, nullptr, done);
  Worker bob(*locks, jobs, "bob", 0, nullptr, done);
  // Ann is alone at first. While she prints her first page, the others come.
  Worker ann(
      *locks, jobs, "ann", 5,
      [&] {
        bob.Work();    // Has done less than Ann: takes her letter, once she has put it down.
        carol.Work();  // Has done more: takes the report instead.
      },
      done);
  ann.Work();
  at_work.Wait();

  bool right = bob.processed() >= 1;
  for (const Job& job : jobs) {
    std::cout << job.name << " was printed by " << job.finished_by << "\n";
    right &= job.pages == std::map<std::string, int>{{job.finished_by, kPages}};
  }
  right &= jobs[0].finished_by == "bob";
  right &= ann.processed() + bob.processed() + carol.processed() == 5 + 0 + 9 + 2;
  return right && !locks->IsBusy() ? 0 : 1;
}

}  // namespace

int main() { return Main(); }
