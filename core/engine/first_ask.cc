#include "latchkey/core/engine/first_ask.h"

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "latchkey/core/base/blocked_thread.h"
#include "latchkey/core/base/blocker.h"
#include "latchkey/core/base/callback_scope.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/engine/outage.h"
#include "latchkey/core/engine/request_errors.h"

namespace latchkey::internal {
namespace {

// Whoever has less time than this to wait does not try again before it queues.
constexpr absl::Duration kTimeToSpin = absl::Milliseconds(1);

void Withdraw(LockingProtocol& backend, const ResourceName& resource, AcquisitionId id) {
  backend.Release({resource, id, 0}, [](absl::StatusOr<ReleaseOutcome>) {});
}

// It entered a hold that ends, and had not looked at the clock: asks again, which is idempotent, to
// learn when. If that fails, `answer` is unknown, and may be undone.
void LearnEnd(EngineContext& engine, const ResourceName& resource, OpenRequest& open,
              absl::StatusOr<ObtainReply>& answer) {
  open.asked_at = engine.clock().Now();
  answer = AskNow(engine.backend(), RequestOf(resource, open.id, open.terms));
  if (!answer.ok()) {
    answer = BackendUnknownError(absl::StrCat(kNoEndTold, ": ", answer.status().message()));
  }
}

// The lock, if that is what it was told; else `answer` says what came instead.
Lock Take(EngineContext& engine, QueueShard& shard, const ResourceName& resource, OpenRequest& open,
          absl::StatusOr<ObtainReply>& answer) {
  if (ABSL_PREDICT_FALSE(open.asked_at == kUntimed && answer.ok() && answer->token != 0 &&
                         answer->remaining != absl::InfiniteDuration())) {
    LearnEnd(engine, resource, open, answer);
  }
  if (!answer.ok() || answer->token == 0) {
    return Lock();
  }
  if (Observer* const seen = engine.observer()) {
    seen->OnAcquired({resource, open.terms.owner, open.terms.priority, open.id},
                     absl::ZeroDuration());
  }
  open.keep.Release();  // It is the lock's now.
  return LockOf(engine, shard, resource, open.id, open.terms, open.asked_at, Grant(*answer));
}

// A lock that others have is likely to be free again before this thread would be asleep.
PlainGrant SpinPlainly(EngineContext& engine, const ResourceName& resource,
                       const AcquireOptions& options, std::string_view owner, PlainTry& tried) {
  PlainGrant grant;
  const bool spins = engine.barging() && options.max_attempts == AcquireOptions::kUnlimited &&
                     options.acquire_timeout >= kTimeToSpin;
  for (Spin spin; spins && grant.token == 0 && tried.answer->ok() &&
                  (*tried.answer)->outcome == ObtainOutcome::kDenied && spin.Again();) {
    std::unique_ptr<absl::StatusOr<ObtainReply>> other;
    grant = AskPlainly(engine.backend(), resource, tried.id, options, owner, other);
    if (grant.token == 0) tried.answer = std::move(other);
  }
  return grant;
}

// Asks, unless others come first. No lock: it is to wait, and open.first says what it was told.
Lock AskIfItMay(EngineContext& engine, QueueShard& shard, const ResourceName& resource,
                const AcquireOptions& options, bool others_wait, OpenRequest& open) {
  const bool asks =
      engine.capabilities().answers_at_once && !options.cancel.stop_requested() &&
      (engine.GoesDirectly(open.terms, options) || !(others_wait || shard.HasWaiters(resource)));
  if (!asks) return Lock();
  if (engine.NeedsTime(open.terms)) open.asked_at = engine.clock().Now();
  ObtainRequest request = RequestOf(resource, open.id, open.terms);
  // Past a queue, a request may only re-enter or take what is free, unless it comes before all that
  // wait there: they were first to ask the holder to yield.
  if (!engine.barging() && shard.IsAnyoneAhead(resource, request.priority)) {
    request.reserve_below.reset();
  }
  absl::StatusOr<ObtainReply> answer = AskNow(engine.backend(), request);
  Lock lock = Take(engine, shard, resource, open, answer);
  if (!IsLock(lock)) open.first = std::make_unique<absl::StatusOr<ObtainReply>>(std::move(answer));
  return lock;
}

// One that neither waits nor reserves.
absl::Status OpenToTry(EngineContext& engine, const ResourceName& resource,
                       const AcquireOptions& options, OpenRequest& open) {
  absl::Status bad = engine.TermsOf(resource, options, open.terms);
  if (!bad.ok()) return bad;
  open.terms.reserve_below.reset();
  open.terms.grace.reset();
  open.id = AcquisitionId::Next();
  if (engine.NeedsTime(open.terms)) open.asked_at = engine.clock().Now();
  return absl::OkStatus();
}

absl::StatusOr<Lock> TakeTried(EngineContext& engine, QueueShard& shard,
                               const ResourceName& resource, OpenRequest& open,
                               absl::StatusOr<ObtainReply>& answer) {
  Lock lock = Take(engine, shard, resource, open, answer);
  if (IsLock(lock)) return lock;
  if (answer.ok()) return HeldByOtherError(resource, *answer);
  if (MayHaveBeenDone(answer.status())) Withdraw(engine.backend(), resource, open.id);
  return CouldNotLock(resource, answer.status());
}

// One that tries and waits for the answer, which may come after it has given up.
struct Answer : RefCounted<Answer> {
  Blocker blocker;
  absl::Mutex mu;
  std::optional<absl::StatusOr<ObtainReply>> reply ABSL_GUARDED_BY(mu);
  bool abandoned ABSL_GUARDED_BY(mu) = false;

  // False: nobody waits for it any more.
  bool Give(absl::StatusOr<ObtainReply>& given) {
    absl::MutexLock lock(&mu);
    if (abandoned) return false;
    reply = std::move(given);
    blocker.SetReady();
    return true;
  }
  // False: the answer is there. After true, it is given back when it comes.
  bool Abandon() {
    absl::MutexLock lock(&mu);
    abandoned = !reply.has_value();
    return abandoned;
  }
  std::optional<absl::StatusOr<ObtainReply>> Take() {
    absl::MutexLock lock(&mu);
    return std::move(reply);
  }
};

}  // namespace

absl::StatusOr<ObtainReply> AskNow(LockingProtocol& backend, const ObtainRequest& request) {
  absl::StatusOr<ObtainReply> answer = absl::StatusOr<ObtainReply>(ObtainReply());
  backend.Obtain(request,
                 [&answer](absl::StatusOr<ObtainReply>&& reply) { answer = std::move(reply); });
  return answer;
}

Lock LockOf(EngineContext& engine, QueueShard& shard, const ResourceName& resource,
            AcquisitionId id, const RequestTerms& terms, absl::Time sent, const Grant& grant) {
  const absl::Duration remaining = grant.remaining;
  if (ABSL_PREDICT_TRUE(remaining == absl::InfiniteDuration() && !engine.NeedsHold(terms))) {
    return LockMaker::Plain(shard, id, grant.token, grant.hint);
  }
  HoldTerms hold{.resource = std::string(resource.bytes()),
                 .owner = std::string(terms.owner),
                 .priority = terms.priority,
                 .id = id,
                 .token = grant.token,
                 .hint = grant.hint,
                 .lease = terms.lease,
                 .auto_renew = terms.auto_renew};
  hold.valid_until = engine.ValidUntil(sent, remaining);
  if (grant.reentered && terms.renew_reentered && remaining != absl::InfiniteDuration()) {
    // By what is left of it where this request asks for no end: that must not make it endless.
    hold.auto_renew = true;
    if (terms.lease == absl::InfiniteDuration()) hold.lease = remaining;
  }
  if (terms.max_hold != absl::InfiniteDuration()) hold.hold_end = sent + terms.max_hold;
  if (engine.observer() != nullptr) hold.acquired = engine.clock().Now();
  return LockMaker::WithHold(shard, std::move(hold));
}

// ---- Requests that may wait ----

Lock GoOn(EngineContext& engine, QueueShard& shard, const ResourceName& resource,
          const AcquireOptions& options, std::string_view owner, bool spins, PlainTry tried,
          OpenRequest& open) {
  if (tried.answer != nullptr) {
    const PlainGrant late =
        spins ? SpinPlainly(engine, resource, options, owner, tried) : PlainGrant();
    if (late.token != 0) {
      shard.Ref();
      return LockMaker::Plain(shard, tried.id, late.token, late.hint);
    }
  }
  if (tried.is_plain) {
    open.terms = PlainTerms(owner, options);
  } else {
    open.error = engine.TermsOf(resource, options, open.terms);
    if (ABSL_PREDICT_FALSE(!open.error.ok())) return Lock();
    if (!owner.empty()) open.terms.owner = owner;
  }
  if (tried.answer == nullptr) {
    open.id = AcquisitionId::Next();
    return AskIfItMay(engine, shard, resource, options, tried.others_wait, open);
  }
  open.id = tried.id;
  Lock lock = Take(engine, shard, resource, open, *tried.answer);
  if (!IsLock(lock)) open.first = std::move(tried.answer);
  return lock;
}

// ---- Requests that only try ----

absl::StatusOr<Lock> TryToLock(EngineContext& engine, QueueShard& shard,
                               const ResourceName& resource, const AcquireOptions& options) {
  OpenRequest open(shard);
  if (absl::Status bad = OpenToTry(engine, resource, options, open); !bad.ok()) return bad;
  if (options.cancel.stop_requested()) return CancelledError(resource, /*unanswered=*/false);
  const auto waits = RefPtr<Answer>::Adopt(new Answer);
  std::optional<BlockedThread> fetcher;
  if (!CallbackScope::Active()) fetcher.emplace(open.id);
  engine.backend().Obtain(
      RequestOf(resource, open.id, open.terms),
      [waits, backend = engine.SharedBackend(), id = open.id,
       name = std::string(resource.bytes())](absl::StatusOr<ObtainReply> reply) {
        if (waits->Give(reply)) return;
        if (reply.ok() ? reply->token != 0 : MayHaveBeenDone(reply.status())) {
          Withdraw(*backend, ResourceName(name), id);
        }
      });
  if (!waits->blocker.IsReady()) {
    if (fetcher) {
      const auto give_up = [&waits] {
        if (waits->Abandon()) waits->blocker.SetReady();
      };
      std::optional<std::stop_callback<decltype(give_up)>> on_cancel;
      if (options.cancel.stop_possible()) on_cancel.emplace(options.cancel, give_up);
      fetcher->Await(waits->blocker);
      waits->blocker.Wait();
    } else if (waits->Abandon()) {
      return WouldBlockError("TryAcquire()", ResourceForMessage(resource));
    }
  }
  absl::StatusOr<Lock> lock = absl::StatusOr<Lock>(Lock());
  if (std::optional<absl::StatusOr<ObtainReply>> answer = waits->Take()) {
    lock = TakeTried(engine, shard, resource, open, *answer);
  } else {
    // Where it follows the question, it need not wait for the answer.
    Withdraw(engine.backend(), resource, open.id);
    lock = CancelledError(resource, /*unanswered=*/true);
  }
  if (Observer* const seen = engine.observer(); seen != nullptr && !lock.ok()) {
    seen->OnDenied({resource, open.terms.owner, open.terms.priority, {}}, absl::ZeroDuration(),
                   lock.status());
  }
  return lock;
}

void TryToLockAsync(EngineContext& engine, QueueShard& shard, const ResourceName& resource,
                    const AcquireOptions& options, TryCallback done) {
  OpenRequest open(shard);
  if (absl::Status bad = OpenToTry(engine, resource, options, open); !bad.ok()) {
    done(std::move(bad), std::nullopt);
    return;
  }
  const ObtainRequest request = RequestOf(resource, open.id, open.terms);
  engine.backend().Obtain(request, [&engine, &shard, name = std::string(resource.bytes()),
                                    hashed = resource, owner = std::string(open.terms.owner),
                                    open = std::move(open), done = std::move(done)](
                                       absl::StatusOr<ObtainReply> answer) mutable {
    open.terms.owner = owner;
    absl::StatusOr<Lock> lock = TakeTried(engine, shard, hashed.WithBytes(name), open, answer);
    const bool denied = !lock.ok() && answer.ok();
    done(std::move(lock), denied ? std::optional<ObtainReply>(*std::move(answer)) : std::nullopt);
  });
}

}  // namespace latchkey::internal
