// RunState is one body that runs under a lock, or under several as one: what it holds, its time
// limits and its way to stop.
//
// Thread safety: all methods may be called from any thread; Finish once.
#ifndef LATCHKEY_CORE_RUN_STATE_H_
#define LATCHKEY_CORE_RUN_STATE_H_

#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/core/base/clock.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/lock/hold.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/lock/lock_set.h"
#include "latchkey/core/lock_context.h"
#include "latchkey/core/policy/acquire_options.h"

namespace latchkey::internal {

// The options with which a body's lock is acquired: max_occupation_time bounds the wait, too, and a
// finite lease is renewed.
AcquireOptions OptionsForRun(const AcquireOptions& options);

// What a failure to acquire with those options means for the caller of Run.
absl::Status RunNotBegun(const AcquireOptions& options, absl::Status status);

class RunState : public std::enable_shared_from_this<RunState> {
 public:
  using Held = std::variant<Lock, LockSet>;

  // `asked` is when the caller asked for the lock. `resource` is the lock's; a set knows its own.
  static std::shared_ptr<RunState> Start(Clock& clock, std::string_view resource,
                                         const AcquireOptions& options, absl::Time asked,
                                         Held held);
  RunState(Clock& clock, std::string_view resource, const AcquireOptions& options, Held held);
  // Releases what is held if that has not happened.
  ~RunState() = default;

  LockContext context() { return LockContext(shared_from_this()); }

  absl::Status CheckPoint();
  std::stop_token StopToken();
  // Of the first; 0 of none.
  FencingToken fencing_token() const { return members_.empty() ? 0 : members_[0].token; }
  FencingToken fencing_token(std::string_view resource) const;
  // None if the locks were released; empty for a set of nothing.
  std::optional<std::vector<RefPtr<Hold>>> SharedHolds();

  // For messages: "the lock on 'a'".
  std::string Name() const;

  // Ends the limits, and gives what is held to the caller to release.
  Held Take();
  // The result of a body that dropped its way to finish.
  absl::Status DroppedError() const;
  // What the caller of Run gets: the body's own status unless the lock was lost or the body ran
  // for too long. `released` is what releasing the lock said.
  absl::Status Verdict(const absl::Status& body, const absl::Status& released);

 private:
  void Arm(absl::Time asked);
  void OnLimit(Reason reason);
  absl::Status LimitError(Reason reason) const;
  absl::Status Named(const absl::Status& status) const;

  Clock& clock_;
  struct Member {
    std::string resource;
    FencingToken token;
  };
  std::vector<Member> members_;  // Constant; sorted by name, as a run takes its locks.
  const absl::Duration max_execution_;
  const absl::Duration max_occupation_;

  absl::Mutex mu_;
  Held held_ ABSL_GUARDED_BY(mu_);
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  Reason limit_ ABSL_GUARDED_BY(mu_) = Reason::kNone;  // The first that was over.
  Clock::TimerId execution_timer_ ABSL_GUARDED_BY(mu_) = 0;
  Clock::TimerId occupation_timer_ ABSL_GUARDED_BY(mu_) = 0;
  std::optional<std::stop_source> stop_ ABSL_GUARDED_BY(mu_);
  struct StopFn {
    std::stop_source source;
    void operator()() const {
      std::stop_source kept = source;  // The callbacks may end the run, and this with it.
      kept.request_stop();
    }
  };
  using StopCalls = std::vector<std::unique_ptr<std::stop_callback<StopFn>>>;
  StopCalls held_stops_ ABSL_GUARDED_BY(mu_);
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_RUN_STATE_H_
