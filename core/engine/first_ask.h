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

// A request whose first question did not get it the lock: it failed, or it is to wait.
struct OpenRequest {
  explicit OpenRequest(QueueShard& shard) : keep(shard) {}

  LiveRef keep;        // Until it is over, whatever becomes of the manager.
  absl::Status error;  // OK: it is to wait.
  RequestTerms terms;
  AcquisitionId id;
  // What it was told, if it asked: no grant, or an error of the backend.
  std::optional<absl::StatusOr<ObtainReply>> first;
  absl::Time asked_at = kUntimed;
};

// What becomes of a plain request that was told `other` instead of a grant without end.
Lock GoOn(EngineContext& engine, QueueShard& shard, const ResourceName& resource,
          const AcquireOptions& options, std::string_view owner, bool spins, AcquisitionId id,
          std::unique_ptr<absl::StatusOr<ObtainReply>> other, std::optional<OpenRequest>& open);
// Of one that is not plain, or that others are known to wait before (`others_wait`).
Lock AskGenerally(EngineContext& engine, QueueShard& shard, const ResourceName& resource,
                  const AcquireOptions& options, std::string_view owner, bool is_plain,
                  bool others_wait, std::optional<OpenRequest>& open);

// Asks for a plain request (EngineContext::IsPlain), and takes a live reference for the lock if
// there is one. Without a grant of a hold without end, `other` says what came instead.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline Lock AskPlainly(
    EngineContext& engine, QueueShard& shard, const ResourceName& resource, AcquisitionId id,
    const AcquireOptions& options, std::string_view owner,
    std::unique_ptr<absl::StatusOr<ObtainReply>>& other) {
  FencingToken token = 0;
  LeaseHint hint = 0;
  // By reference, since the answer is large.
  const auto done = [&token, &hint, &other](absl::StatusOr<ObtainReply>&& answer) {
    if (ABSL_PREDICT_TRUE(answer.ok() && answer->token != 0 &&
                          answer->remaining == absl::InfiniteDuration())) {
      token = answer->token;
      hint = answer->hint;
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
  engine.backend().Obtain(
      request, [&done](absl::StatusOr<ObtainReply>&& answer) { done(std::move(answer)); });
  if (ABSL_PREDICT_FALSE(token == 0)) return Lock();
  shard.Ref();
  return LockMaker::Plain(shard, id, token, hint);
}

// Asks if that takes no waiting. The lock; or what `otherwise(open)` makes of a request that failed
// or is to wait, which is in `open` then. A non-empty `owner` replaces that of the options; it must
// outlive `open`. `spins`: may try for some time to get a lock that is about to be free again.
template <typename Result, typename Otherwise>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline Result AskFirst(EngineContext& engine, QueueShard& shard,
                                                    const ResourceName& resource,
                                                    const AcquireOptions& options,
                                                    std::string_view owner, bool spins,
                                                    std::optional<OpenRequest>& open,
                                                    Otherwise otherwise) {
  const bool is_plain = engine.IsPlain(resource, options);
  bool others_wait = false;
  if (ABSL_PREDICT_TRUE(is_plain && !options.cancel.stop_requested())) {
    others_wait = !engine.barging() && shard.HasWaiters(resource);
    if (ABSL_PREDICT_TRUE(!others_wait)) {
      const AcquisitionId id = AcquisitionId::Next();
      std::unique_ptr<absl::StatusOr<ObtainReply>> other;
      Lock lock = AskPlainly(engine, shard, resource, id, options, owner, other);
      if (ABSL_PREDICT_TRUE(other == nullptr)) return lock;
      Lock late = GoOn(engine, shard, resource, options, owner, spins, id, std::move(other), open);
      if (!open) return late;
      return otherwise(*open);
    }
  }
  Lock lock = AskGenerally(engine, shard, resource, options, owner, is_plain, others_wait, open);
  if (ABSL_PREDICT_TRUE(!open)) return lock;
  return otherwise(*open);
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
