// The first question of a request, whatever form the request has: it asks the backend
// directly if nobody waits for the resource, and in the few cases in which the queue does not
// matter (EngineContext::GoesDirectly). Most requests end with it, so its way for plain ones is
// inline.
//
// Thread safety: all functions may be called from any thread, with no mutex held.
#ifndef LATCHKEY_CORE_ENGINE_FIRST_ASK_H_
#define LATCHKEY_CORE_ENGINE_FIRST_ASK_H_

#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/engine/engine_context.h"
#include "latchkey/core/engine/queue_shard.h"
#include "latchkey/core/engine/request_terms.h"
#include "latchkey/core/engine/waiter.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/lock/lock_maker.h"
#include "latchkey/core/lock/manager_context.h"
#include "latchkey/core/policy/acquire_options.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {

// What an outage is called if a hold was entered again and nobody says when it ends.
inline constexpr std::string_view kNoEndTold =
    "it entered a hold that ends, and the backend did not say when";

// The answer of a backend that answers at once.
absl::StatusOr<ObtainReply> AskNow(LockingProtocol& backend, const ObtainRequest& request);

// The lock of a grant that was asked for at `sent`. Takes over a live reference of the shard's.
Lock LockOf(EngineContext& engine, QueueShard& shard, const ResourceName& resource,
            AcquisitionId id, const RequestTerms& terms, absl::Time sent, const Grant& grant);

// A request on its way: one whose first question did not get it the lock failed, or is to wait.
struct OpenRequest {
  explicit OpenRequest(QueueShard& shard) : keep(shard) {}

  LiveRef keep;        // Until it is over, whatever becomes of the manager.
  absl::Status error;  // OK: it is to wait.
  RequestTerms terms;
  AcquisitionId id;
  // What it was told: no grant, or an error of the backend. Null: it has not asked.
  std::unique_ptr<absl::StatusOr<ObtainReply>> first;
  absl::Time asked_at = kUntimed;
};

// How far a request has come that did not get its lock by asking plainly.
struct PlainTry {
  bool is_plain = false;
  bool others_wait = false;  // True: they are known to.
  // If it asked: as what, and what it was told.
  AcquisitionId id = {};
  std::unique_ptr<absl::StatusOr<ObtainReply>> answer = nullptr;
};

// Goes on from there, and asks if it has not. The lock; or none, and `open` says why not. A
// non-empty `owner` replaces that of the options; it must outlive `open`. `spins`: may try for some
// time to get a lock that is about to be free again.
Lock GoOn(EngineContext& engine, QueueShard& shard, const ResourceName& resource,
          const AcquireOptions& options, std::string_view owner, bool spins, PlainTry tried,
          OpenRequest& open);
inline bool IsLock(const Lock& lock) { return lock.fencing_token() != 0; }

// What a plain hold is known by. No token: there is none.
struct PlainGrant {
  FencingToken token = 0;
  LeaseHint hint = 0;
};

// Asks for a plain request (EngineContext::IsPlain). Without a grant of a hold without end, `other`
// says what came instead.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline PlainGrant AskPlainly(
    LockingProtocol& backend, const ResourceName& resource, AcquisitionId id,
    const AcquireOptions& options, std::string_view owner,
    std::unique_ptr<absl::StatusOr<ObtainReply>>& other) {
  PlainGrant grant;
  // By reference, since the answer is large.
  const auto done = [&grant, &other](absl::StatusOr<ObtainReply>&& answer) {
    if (ABSL_PREDICT_TRUE(answer.ok() && answer->token != 0 &&
                          answer->remaining == absl::InfiniteDuration())) {
      grant.token = answer->token;
      grant.hint = answer->hint;
    } else {
      other = std::make_unique<absl::StatusOr<ObtainReply>>(std::move(answer));
    }
  };
  // One by one: an initialiser would first clear the whole of it.
  ObtainRequest request;
  request.resource = resource;
  request.acquisition = id;
  request.owner = owner;
  request.priority = options.priority;
  request.preemptible = options.preemptible;
  request.reserve_below = kReserveBelowAll;
  backend.Obtain(request,
                 [&done](absl::StatusOr<ObtainReply>&& answer) { done(std::move(answer)); });
  return grant;
}

// Asks if the request is plain and nobody is known to wait. The lock, or what `otherwise(tried)`
// makes of a request that did not get it so: it calls GoOn.
template <typename Result, typename Otherwise>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline Result AskFirst(EngineContext& engine, QueueShard& shard,
                                                    const ResourceName& resource,
                                                    const AcquireOptions& options,
                                                    std::string_view owner, Otherwise otherwise) {
  const bool is_plain = engine.IsPlain(resource, options);
  if (ABSL_PREDICT_FALSE(!is_plain || options.cancel.stop_requested())) {
    return otherwise(PlainTry{.is_plain = is_plain});
  }
  if (!engine.barging() && shard.HasWaiters(resource)) {
    return otherwise(PlainTry{.is_plain = true, .others_wait = true});
  }
  const AcquisitionId id = AcquisitionId::Next();
  std::unique_ptr<absl::StatusOr<ObtainReply>> other;
  const PlainGrant grant = AskPlainly(engine.backend(), resource, id, options, owner, other);
  if (ABSL_PREDICT_FALSE(grant.token == 0)) {
    return otherwise(PlainTry{.is_plain = true, .id = id, .answer = std::move(other)});
  }
  shard.Ref();  // The lock's.
  return LockMaker::Plain(shard, id, grant.token, grant.hint);
}

// Takes the lock if it is free. Waits for the backend's answer.
absl::StatusOr<Lock> TryToLock(EngineContext& engine, QueueShard& shard,
                               const ResourceName& resource, const AcquireOptions& options);

// The same without waiting; without the lock, `done` gets the answer beside the error. It is told
// directly. `options` must outlive that.
using TryCallback = absl::AnyInvocable<void(absl::StatusOr<Lock>, std::optional<ObtainReply>)>;
void TryToLockAsync(EngineContext& engine, QueueShard& shard, const ResourceName& resource,
                    const AcquireOptions& options, TryCallback done);

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_FIRST_ASK_H_
