// Reads what a server sends: bounds for hiredis' reader, and the answers of our scripts.
//
//   LimitReader(*context->reader);
//   ...
//   const std::optional<ExtendReply> reply = ReadExtendAnswer(*raw);   // none: not understood
//
// The server may be broken, or be something else than Redis. Whatever it sends, nothing here
// crashes, and what is not the answer of the script that was called, with every number in its
// range, is read as none. What follows an answer is ignored, for scripts of a later version.
//
// Thread safety: pure functions.
#ifndef LATCHKEY_BACKENDS_REDIS_REPLIES_H_
#define LATCHKEY_BACKENDS_REDIS_REPLIES_H_

#include <optional>
#include <string_view>
#include <variant>

#include "absl/time/time.h"
#include "hiredis/hiredis.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/quorum_member.h"

namespace latchkey::redis {

// Our scripts answer with a handful of elements, and nothing that we call answers with an array in
// an array of an array.
inline constexpr long long kMaxElements = 64;
inline constexpr int kMaxDepth = 4;

// Makes the reader fail on more than that. Without it a few bytes make the reader reserve room for
// any number of elements, and a long row of opening brackets ends the process: hiredis frees nested
// replies by recursion. `reader` must be fresh.
void LimitReader(redisReader& reader);

// The text of a string, status or error; empty for anything else. Lives as long as the reply.
std::string_view TextOf(const redisReply& reply);

// The server has lost its data and grants nothing for this long.
struct Recovering {
  absl::Duration left = absl::ZeroDuration();
};

// The answers of obtain, release, extend, confirm. See the head of each file in scripts/. A
// MemberReply has everything but its hint, and of the fence what only a member is told.
// `acquisition` and `lease` are what was asked for: an answer that grants it names the one and does
// not repeat the other.
std::optional<std::variant<MemberReply, Recovering>> ReadObtainAnswer(const redisReply& reply,
                                                                      AcquisitionId acquisition,
                                                                      absl::Duration lease);
std::optional<ReleaseOutcome> ReadReleaseAnswer(const redisReply& reply);
std::optional<ExtendReply> ReadExtendAnswer(const redisReply& reply);
std::optional<ConfirmReply> ReadConfirmAnswer(const redisReply& reply);

// The answer of watch.
struct WatchAnswer {
  enum class State {
    kHolds,
    kIsToYield,  // Holds, and somebody has reserved.
    kLost,       // Asked as a holder, and holds no more.
    kMayClaim,
    kWaits,
  };
  State state = State::kWaits;
  // kHolds: of the lease. kIsToYield: of the reservation. kWaits: of what is in the way.
  absl::Duration left = absl::ZeroDuration();
  // kIsToYield.
  absl::Duration grace_remaining = absl::InfiniteDuration();
  Priority thief_priority = 0;
  // kMayClaim: how the hold before ended.
  HoldEnd why = HoldEnd::kReleased;
  // kWaits: nobody comes before it.
  bool next = false;
};
std::optional<WatchAnswer> ReadWatchAnswer(const redisReply& reply);

}  // namespace latchkey::redis

#endif  // LATCHKEY_BACKENDS_REDIS_REPLIES_H_
