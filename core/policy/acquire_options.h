// What one request for a lock may ask for. Every field has a default; name those that matter:
//
//   locks.Acquire("orders/42", {.priority = 5, .acquire_timeout = absl::Seconds(2)});
//
// A value that makes no sense is refused with kInvalidArgument, which names the field and the
// value; one that the backend cannot honour, with kUnimplemented.
#ifndef LATCHKEY_CORE_POLICY_ACQUIRE_OPTIONS_H_
#define LATCHKEY_CORE_POLICY_ACQUIRE_OPTIONS_H_

#include <concepts>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/policy/admission_policy.h"
#include "latchkey/core/policy/preemption_policy.h"
#include "latchkey/core/policy/retry_policy.h"

namespace latchkey {

struct AcquireOptions {
  static constexpr int kUnlimited = std::numeric_limits<int>::max();

  // Who locks. The same owner enters a lock that it holds already; any bytes. Each entry is a
  // handle of its own, with its own release and its own max_hold; the hold ends with the last.
  // They share one lease, see `lease`. Empty: the owner of the surrounding ScopedOwner, or else a
  // fresh anonymous one, equal to nobody. For the body of Run, RunAll and their asynchronous forms
  // it is in force as with a ScopedOwner.
  std::string owner = {};

  // Larger is more urgent; any int64. Entering a hold again raises its priority and never lowers
  // it.
  Priority priority = 0;

  // False: nobody may ask this hold to yield, nor take it by force, whatever their priority. So as
  // long as it is renewed, nobody else enters; `max_hold` bounds that. Entering a hold again with
  // false ends a reservation that stands. It is the whole hold's, to its end: the owner's other
  // handles are protected as well, also after the one that asked for it was released. (So is a
  // priority that was raised.)
  bool preemptible = true;

  // How long the hold lasts unless extended; positive, and longer than the backend's margin; if it
  // is renewed, at least three margins, or there is no time to renew it (kInvalidArgument). None:
  // infinite where the backend offers that (the in-memory one does), else the backend's default
  // lease, renewed.
  //
  // Entering a hold again does not change its lease: the new handle has what is left. From then on
  // each extension, and each renewal, is for all handles. Where it is finite, those of a named
  // owner look by themselves: a handle asks the backend when 60 % of the time that it knows of is
  // over, and again for the rest. So it learns what another one did before its own time is over, as
  // long as the backend answers; until then Lock::remaining() may say less than there is, never
  // more.
  std::optional<absl::Duration> lease = std::nullopt;

  // Renew the lease in the background while the lock is held; plays no part where it is infinite.
  // None: only where the lease is finite because the backend has no infinite one; for the bodies of
  // Run, RunAll and their asynchronous forms, always. A hold that is entered again may have an end
  // although this request asks for none: true renews it by what was left then.
  std::optional<bool> auto_renew = std::nullopt;

  // The hold ends after this time at the latest, renewed, extended or not; positive. It keeps a
  // stuck holder from holding for ever. A longer lease, also one that Extend asks for, is cut to
  // it. A hold that was entered again ends for this handle only (kExpired), which is given back
  // then, one margin of the backend later, although its Lock is still there; the lock is free when
  // the last handle has ended.
  absl::Duration max_hold = absl::InfiniteDuration();

  // How long a holder that this request preempts has to yield before the lock is taken by force;
  // not negative. Infinite: it is waited for, however long (acknowledged). None: as the preemption
  // policy says, which is infinite by default. It is this request's own, and begins when it
  // reserves: if a more urgent one takes the reservation over, or it comes after one that gave up,
  // the time begins anew.
  std::optional<absl::Duration> preemption_grace = std::nullopt;

  // How long to wait for the lock; not negative. Zero: not at all, the backend's first answer
  // decides. It is asked for whoever waits, and bounded by the time that the backend allows for one
  // operation; for a set that gives a part back, for two.
  absl::Duration acquire_timeout = absl::InfiniteDuration();

  // How long the request goes on while the backend fails to answer (kBackendUnavailable,
  // kBackendUnknown); not negative. Between two tries the request pauses as its retry policy says,
  // but for no more than half of the time that is left. The first failure after this time ends the
  // request, with the backend's error; an answer before ends the outage. Zero: the first failure
  // decides. Infinite: as long as the request may wait. `acquire_timeout` bounds it in any case.
  // A request that waits behind others of this manager for the same lock asks nothing itself: what
  // the backend answers those others, or fails to answer, counts for it, too.
  absl::Duration outage_patience = absl::InfiniteDuration();

  // How often the backend may answer "denied" before the request fails; positive. The first answer
  // counts, and then each that its retry policy or an event asked for; being told again on coming,
  // or coming back, to the front of the queue does not, nor do polls of a reservation. With 1, a
  // request that would have to queue fails at once; one that may preempt the holder is not denied:
  // it reserves, and waits for the holder to yield (to wait for nothing, set `acquire_timeout` to
  // zero, or use TryAcquire). Failures of the backend do not count either, see `outage_patience`.
  int max_attempts = kUnlimited;

  // Go before those of the same priority that wait already, and so before whoever is behind them;
  // under FifoQueue(), where priorities do not order, to the front of the queue. One that has
  // reserved keeps the reservation: only a higher priority takes it.
  bool skip_queue = false;

  // Gives the request up when it is requested to stop (kCancelled). Has no effect on a lock that
  // was granted, nor on a body that runs; a transaction ends at its next checkpoint.
  std::stop_token cancel = {};

  // For bodies (Run, RunAll) and transactions, positive: how long the body may run, and how long
  // waiting and running may take together, before the body is asked to stop. The limit never frees
  // the lock under it.
  absl::Duration max_execution_time = absl::InfiniteDuration();
  absl::Duration max_occupation_time = absl::InfiniteDuration();

  // Policies for this request; null: the manager's.
  std::shared_ptr<const AdmissionPolicy> admission = nullptr;
  std::shared_ptr<const PreemptionPolicy> preemption = nullptr;
  std::shared_ptr<const RetryPolicy> retry = nullptr;
};

// One member of a set, with an owner, a priority and options of its own.
struct LockRequest {
  std::string resource = {};
  AcquireOptions options = {};
};

// What is locked as one (AcquireAll, RunAll, and their other forms): names, in braces or any list
// of strings, or requests with options of their own. A call makes it of its argument.
class LockRequests {
 public:
  LockRequests() = default;
  // NOLINTBEGIN(google-explicit-constructor): it stands for the list.
  LockRequests(std::initializer_list<std::string_view> resources)
      : resources_(resources.begin(), resources.end()) {}
  LockRequests(std::initializer_list<LockRequest> requests) : requests_(requests) {}
  template <std::convertible_to<absl::Span<const std::string>> List>
  LockRequests(const List& resources) {
    const absl::Span<const std::string> list = resources;
    resources_.assign(list.begin(), list.end());
  }
  template <std::convertible_to<absl::Span<const LockRequest>> List>
  LockRequests(const List& requests) {
    const absl::Span<const LockRequest> list = requests;
    requests_.assign(list.begin(), list.end());
  }
  // NOLINTEND(google-explicit-constructor)

  // Those that were given as names alone get the options. Uses this up.
  std::vector<LockRequest> With(const AcquireOptions& options) && {
    for (std::string& resource : resources_) {
      requests_.push_back({.resource = std::move(resource), .options = options});
    }
    return std::move(requests_);
  }

 private:
  // One of the two is empty.
  std::vector<std::string> resources_;
  std::vector<LockRequest> requests_;
};

// In which order a set takes its members.
enum class LockOrder {
  kSorted,  // By their bytes. Sets that do so never wait for each other in a cycle.
  kAsGiven,
};

}  // namespace latchkey

#endif  // LATCHKEY_CORE_POLICY_ACQUIRE_OPTIONS_H_
