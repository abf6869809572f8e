// What the locks of the chaos test protect: a resource that checks fencing tokens, and remembers
// who said when that it held which lock. It listens on a Unix socket, so that clients in other
// processes write to it.
//
// A client claims: "I held the lock from `from`, when it had been granted, until `until`". `until`
// is read from the clock *before* the lock is asked whether it is held, and is sent only if it is.
// All processes share one clock. So a claim is true or false whatever pauses anybody: if the lock
// says at some moment that it is held, it was held exclusively at any moment before, back to its
// grant. Of each acquisition the latest claim counts. Judge() then demands, for each key, that no
// two claims overlap, and that the tokens grow in the order of the claims.
//
// Wire format, one line each way; times in nanoseconds:
//
//   enter KEY ACQUISITION TOKEN FROM UNTIL    the first write under a lock
//   write KEY ACQUISITION TOKEN UNTIL         another; UNTIL is 0 for one that was made without
//   looking
//   -> ok | stale
//
// Thread safety: all methods may be called from any thread.
#ifndef LATCHKEY_TESTS_BACKENDS_REDIS_FENCED_RESOURCE_H_
#define LATCHKEY_TESTS_BACKENDS_REDIS_FENCED_RESOURCE_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace latchkey {

class FencedResource {
 public:
  // Listens on `socket_path`, which must not exist. Empty: only what Handle is told.
  explicit FencedResource(std::string socket_path);
  FencedResource(const FencedResource&) = delete;
  FencedResource& operator=(const FencedResource&) = delete;
  ~FencedResource();

  // One line, and the answer to it.
  std::string Handle(std::string_view line) ABSL_LOCKS_EXCLUDED(mutex_);

  // What must not be and was, in words. With `exclusive` false, claims may overlap (forced
  // hand-over), and only the fence is judged.
  std::vector<std::string> Judge(bool exclusive) const ABSL_LOCKS_EXCLUDED(mutex_);

  struct Counts {
    int64_t acquisitions = 0;    // Accepted.
    int64_t writes = 0;          // Accepted.
    int64_t stale_claims = 0;    // Refused although the lock had been looked at before.
    int64_t stale_careless = 0;  // Refused, and nobody had looked.
  };
  Counts counts() const ABSL_LOCKS_EXCLUDED(mutex_);
  // How long ago something was accepted.
  absl::Duration idle() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Claim {
    std::string acquisition = {};
    uint64_t token = 0;
    int64_t from = 0;
    int64_t until = 0;
  };
  struct Key {
    // The largest token seen, and whose it is.
    uint64_t token = 0;
    std::string acquisition = {};
    std::map<std::string, Claim> claims = {};
  };

  void Run();
  std::string HandleLocked(const std::vector<std::string>& words)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string path_;
  int listener_ = -1;
  int wake_ = -1;
  std::thread thread_;

  mutable absl::Mutex mutex_;
  std::map<std::string, Key> keys_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> violations_ ABSL_GUARDED_BY(mutex_);
  Counts counts_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_accepted_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_BACKENDS_REDIS_FENCED_RESOURCE_H_
