// Traces of lock requests, for the policy simulator: what it reads, and a recorder that writes one
// from a live program.
//
//   std::ofstream file("requests.csv");
//   LockManagerOptions options{.observer = std::make_shared<TraceRecorder>(file)};
//
// A trace is CSV with the header `arrival_us,resource,owner,priority,hold_us`. Times are in
// microseconds, arrivals since the first one seen. Fields with a comma, a quote or a line break are
// quoted as RFC 4180 says. Lines may be in any order.
#ifndef LATCHKEY_BENCHMARKS_TRACE_H_
#define LATCHKEY_BENCHMARKS_TRACE_H_

#include <cstdint>
#include <istream>
#include <ostream>
#include <string>
#include <vector>

#include "absl/base/attributes.h"
#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/core/clock.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/observer.h"

namespace latchkey::benchmarks {

// One request: when it came, and how long it held the lock (or would, if nobody disturbed it).
struct TracedRequest {
  absl::Duration arrival = absl::ZeroDuration();
  std::string resource = {};
  std::string owner = {};  // Empty: anonymous.
  Priority priority = 0;
  absl::Duration hold = absl::ZeroDuration();

  friend bool operator==(const TracedRequest&, const TracedRequest&) = default;
};

// Sorted by arrival. kInvalidArgument names the line that is wrong.
absl::StatusOr<std::vector<TracedRequest>> ReadTrace(std::istream& in);

void WriteTraceHeader(std::ostream& out);
void WriteTraceLine(std::ostream& out, const TracedRequest& request);

// An Observer that writes a line for each lock that is given back. Requests that were never granted
// are not in the trace, since nobody knows how long they would have held the lock.
//
// Thread safety: as Observer asks. It writes under a mutex, so give it a buffered stream.
class TraceRecorder : public Observer {
 public:
  // `out` must outlive the recorder, `clock` (null: RealClock()) too.
  explicit TraceRecorder(std::ostream& out ABSL_ATTRIBUTE_LIFETIME_BOUND,
                         Clock* clock ABSL_ATTRIBUTE_LIFETIME_BOUND = nullptr);
  // Flushes.
  ~TraceRecorder() override;

  void OnAcquired(const Subject& who, absl::Duration waited) override;
  void OnReleased(const Subject& who, absl::Duration held) override;
  void OnStolen(const Subject& who) override { Forget(who); }
  void OnExpired(const Subject& who) override { Forget(who); }
  void OnLost(const Subject& who) override { Forget(who); }

 private:
  void Forget(const Subject& who);

  Clock& clock_;
  absl::Mutex mu_;
  std::ostream& out_ ABSL_GUARDED_BY(mu_);
  absl::Time begin_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::flat_hash_map<AcquisitionId, absl::Duration> arrivals_ ABSL_GUARDED_BY(mu_);
};

}  // namespace latchkey::benchmarks

#endif  // LATCHKEY_BENCHMARKS_TRACE_H_
