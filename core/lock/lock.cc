#include "latchkey/core/lock/lock.h"

#include <optional>
#include <ostream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "latchkey/core/base/blocked_thread.h"
#include "latchkey/core/base/blocker.h"
#include "latchkey/core/base/callback_scope.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/scoped_owner.h"
#include "latchkey/core/lock/hold.h"
#include "latchkey/core/lock/lock_maker.h"
#include "latchkey/core/lock/manager_context.h"

namespace latchkey {
namespace {

absl::Status EmptyError(std::string_view call) {
  return MakeError(Reason::kNotHeld, absl::StrCat(call, " was called on an empty lock"));
}

// The error of a plain lock that the backend says is gone, in the answer to its release.
absl::Status GoneError(LockingProtocol& backend, const HoldRef& hold, FencingToken token) {
  const LockState state = internal::AskWhatBecameOf(backend, hold) == HoldEnd::kStolen
                              ? LockState::kStolen
                              : LockState::kLost;
  return internal::LossError(state, backend, backend.ResourceOf(hold), token);
}

// Waits for a step that tells its status to a callback. Inside a callback of the library it does
// not wait: if the answer is not there at once, that is an error.
template <typename Start>
absl::Status WaitFor(std::string_view call, internal::Hold& hold, Start start) {
  struct Shared : internal::RefCounted<Shared> {
    internal::Blocker blocker;
    absl::Status status;
  };
  const auto shared = internal::RefPtr<Shared>::Adopt(new Shared);
  const auto keep = internal::RefPtr<internal::Hold>::Share(&hold);  // Callbacks may drop the lock.
  std::optional<BlockedThread> fetcher;
  if (!internal::CallbackScope::Active()) fetcher.emplace(hold.terms().id);
  start([shared](absl::Status status) {
    shared->status = std::move(status);
    shared->blocker.SetReady();
  });
  if (!shared->blocker.IsReady()) {
    if (!fetcher) return internal::WouldBlockError(call, hold.NameForMessage());
    fetcher->Await(shared->blocker);
    shared->blocker.Wait();
  }
  return shared->status;
}

// Passes a status on to the user's callback, on the manager's executor.
absl::AnyInvocable<void(absl::Status)> ToldBy(std::string_view where, internal::Hold& hold,
                                              absl::AnyInvocable<void(absl::Status)> done) {
  if (done == nullptr) return [](const absl::Status&) {};
  // By then the backend may have forgotten the name.
  std::string name = hold.KnownName();
  if (name.empty()) {
    return [what = absl::StrCat(where, " of ", hold.NameForMessage()), context = &hold.context(),
            done = internal::WithOwner(std::move(done))](absl::Status status) mutable {
      context->RunUser(
          [what = std::move(what), done = std::move(done), status = std::move(status)]() mutable {
            internal::RunContained(what, "", [&] { done(std::move(status)); });
          });
    };
  }
  return [where, context = &hold.context(), name = std::move(name),
          done = internal::WithOwner(std::move(done))](absl::Status status) mutable {
    context->CallUser(where, name, [done = std::move(done), status = std::move(status)]() mutable {
      done(std::move(status));
    });
  };
}

// The same for a lock that has no manager any more.
void TellHere(std::string_view call, FencingToken token,
              absl::AnyInvocable<void(absl::Status)>& done, absl::Status status) {
  internal::RunContained(
      [&] {
        return absl::StrCat("the callback of ", call, " of ", internal::LockForMessage("", token));
      },
      [&] { done(std::move(status)); });
}

}  // namespace

std::ostream& operator<<(std::ostream& out, LockState state) { return out << LockStateName(state); }

std::string_view LockStateName(LockState state) {
  switch (state) {
    case LockState::kEmpty:
      return "Empty";
    case LockState::kHeld:
      return "Held";
    case LockState::kYielding:
      return "Yielding";
    case LockState::kReleased:
      return "Released";
    case LockState::kStolen:
      return "Stolen";
    case LockState::kExpired:
      return "Expired";
    case LockState::kLost:
      return "Lost";
  }
  return "?";
}

Lock internal::LockMaker::WithHold(ManagerShard& shard, HoldTerms&& terms) {
  auto* const hold = new Hold(&shard, std::move(terms));
  hold->Start();
  return Lock(hold);
}

Lock::Lock(internal::Hold* hold)
    : target_(reinterpret_cast<uintptr_t>(hold) | kHoldTag),
      id_(hold->terms().id),
      token_(hold->terms().token),
      hint_(hold->terms().hint) {}

Lock& Lock::operator=(Lock&& other) noexcept {
  if (this == &other) return *this;
  if (target_ > kReleasedPlain) Drop();
  target_ = std::exchange(other.target_, kNothing);
  id_ = other.id_;
  token_ = other.token_;
  hint_ = other.hint_;
  return *this;
}

void Lock::Drop() {
  if (internal::Hold* const held = hold()) {
    held->Release([](absl::Status) {});
    held->Unref();
  } else {
    internal::ManagerShard* const shard = plain();
    shard->context->backend().Release({ResourceName(), id_, hint_},
                                      [](absl::StatusOr<ReleaseOutcome>) {});
    shard->Unref();
  }
  target_ = kNothing;
}

internal::Hold& Lock::NeedHold() const {
  if (internal::Hold* const held = hold()) return *held;
  auto* const held = new internal::Hold(plain(), {.id = id_, .token = token_, .hint = hint_});
  target_ = reinterpret_cast<uintptr_t>(held) | kHoldTag;
  held->Start();
  return *held;
}

LockState Lock::state() const {
  if (target_ == kNothing) return LockState::kEmpty;
  if (target_ == kReleasedPlain) return LockState::kReleased;
  return NeedHold().State();
}

absl::Duration Lock::remaining() const {
  if (target_ <= kReleasedPlain) return absl::ZeroDuration();
  return NeedHold().Remaining();
}

std::stop_token Lock::stop_token() const {
  if (target_ <= kReleasedPlain) return {};
  return NeedHold().StopToken();
}

void Lock::OnYieldRequested(absl::AnyInvocable<void()> callback) {
  if (target_ > kReleasedPlain)
    NeedHold().OnYieldRequested(internal::WithOwner(std::move(callback)));
}

void Lock::OnLost(absl::AnyInvocable<void(LockState)> callback) {
  if (target_ > kReleasedPlain) NeedHold().OnLost(internal::WithOwner(std::move(callback)));
}

absl::Status Lock::Release() {
  if (target_ == kNothing) return EmptyError("Release()");
  if (target_ == kReleasedPlain) return absl::OkStatus();
  if (internal::Hold* const held = hold()) {
    return WaitFor("Release()", *held, [&](absl::AnyInvocable<void(absl::Status)> done) {
      held->Release(std::move(done));
    });
  }
  absl::Status status;
  internal::ManagerShard* const shard = plain();
  target_ = kReleasedPlain;
  // Backends without a Hold answer at once.
  LockingProtocol& backend = shard->context->backend();
  const HoldRef this_hold{ResourceName(), id_, hint_};
  const auto on_failure = [&](const absl::StatusOr<ReleaseOutcome>& outcome) {
    if (outcome.ok()) {
      status = GoneError(backend, this_hold, token_);
    } else {
      const std::string name = internal::LockForMessage(backend.ResourceOf(this_hold), token_);
      status = WithContext(absl::StrCat("could not release ", name), outcome.status());
    }
  };
  // With one capture, so that it needs no allocation.
  backend.Release(this_hold, [&on_failure](const absl::StatusOr<ReleaseOutcome>& outcome) {
    if (!outcome.ok() || *outcome != ReleaseOutcome::kReleased) on_failure(outcome);
  });
  shard->Unref();
  return status;
}

void Lock::ReleaseDirect(absl::AnyInvocable<void(absl::Status)> done) {
  if (internal::Hold* const held = hold()) {
    held->Release(std::move(done));
  } else {
    done(Release());
  }
}

void Lock::ReleaseAsync(absl::AnyInvocable<void(absl::Status)> done) {
  if (target_ <= kReleasedPlain) {
    if (done != nullptr) TellHere("ReleaseAsync()", token_, done, Release());
    return;
  }
  internal::Hold& held = NeedHold();
  held.Release(ToldBy("the callback of ReleaseAsync()", held, std::move(done)));
}

absl::Status Lock::Extend(absl::Duration lease) {
  if (target_ == kNothing) return EmptyError("Extend()");
  if (target_ == kReleasedPlain) {
    return MakeError(Reason::kNotHeld,
                     absl::StrCat("the lock with fencing token ", token_, " was already released"));
  }
  internal::Hold& held = NeedHold();
  return WaitFor("Extend()", held, [&](absl::AnyInvocable<void(absl::Status)> done) {
    held.Extend(lease, std::move(done));
  });
}

void Lock::ExtendAsync(absl::Duration lease, absl::AnyInvocable<void(absl::Status)> done) {
  if (target_ <= kReleasedPlain) {
    if (done != nullptr) TellHere("ExtendAsync()", token_, done, Extend(lease));
    return;
  }
  internal::Hold& held = NeedHold();
  held.Extend(lease, ToldBy("the callback of ExtendAsync()", held, std::move(done)));
}

}  // namespace latchkey
