#include "latchkey/core/lock/lock_set.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_set.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "latchkey/core/base/callback_scope.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/base/scoped_owner.h"
#include "latchkey/core/lock/hold.h"
#include "latchkey/core/lock/lock_set_rep.h"
#include "latchkey/core/lock/manager_context.h"

namespace latchkey {
namespace internal {
namespace {

// What a member answered, from good to bad. A loss is worst: whatever else failed, others may have
// been inside. Then comes what is in the caller's hands, then the backend's failures: first what
// somebody has to mend.
enum class Fate { kDone, kUnavailable, kUnknown, kRefused, kCallers, kLost };

Fate FateOf(const absl::Status& status) {
  if (status.ok()) return Fate::kDone;
  switch (ReasonOf(status)) {
    case Reason::kStolen:
    case Reason::kExpired:
    case Reason::kLost:
      return Fate::kLost;
    case Reason::kBackendUnavailable:
      return Fate::kUnavailable;
    case Reason::kBackendUnknown:
      return Fate::kUnknown;
    case Reason::kNone:  // Of a backend that gives none.
    case Reason::kBackendRefused:
    case Reason::kNotSupported:
      return Fate::kRefused;
    default:
      return Fate::kCallers;
  }
}

// How the whole went. Unavailable and refused mean that nothing was done, so they are no words for
// a set of which a part was, or may have been.
absl::Status OfAll(const std::vector<absl::Status>& statuses) {
  const absl::Status* worst = nullptr;
  const absl::Status* unknown = nullptr;
  bool any_done = false;
  for (const absl::Status& status : statuses) {
    const Fate fate = FateOf(status);
    any_done |= fate == Fate::kDone;
    if (unknown == nullptr && fate == Fate::kUnknown) unknown = &status;
    if (worst == nullptr || fate > FateOf(*worst)) worst = &status;
  }
  if (worst == nullptr) return absl::OkStatus();
  const Fate whole = FateOf(*worst);
  if (whole != Fate::kUnavailable && whole != Fate::kRefused) return *worst;
  if (any_done) {
    return BackendUnknownError(
        absl::StrCat(worst->message(), "; it was done for others of the set"));
  }
  if (unknown != nullptr) {
    return BackendUnknownError(absl::StrCat(
        worst->message(), "; it may have been done for others of the set: ", unknown->message()));
  }
  return *worst;
}

// Waits for the answers of several holds, or passes them on.
class Gathering : public RefCounted<Gathering> {
 public:
  // `done`, if any, runs with the last answer.
  explicit Gathering(size_t answers, absl::AnyInvocable<void(absl::Status)> done = nullptr)
      : left_(answers), statuses_(answers), done_(std::move(done)) {}

  void Answer(size_t index, absl::Status status) {
    absl::AnyInvocable<void(absl::Status)> done;
    absl::Status whole;
    {
      absl::MutexLock lock(&mu_);
      statuses_[index] = std::move(status);
      if (--left_ > 0) return;
      done = std::move(done_);
      whole = OfAll(statuses_);
    }
    if (done) done(std::move(whole));
  }

  // Nothing if the answers are not there and this thread must not wait.
  std::optional<absl::Status> Wait() {
    absl::MutexLock lock(&mu_);
    if (left_ > 0 && CallbackScope::Active()) return std::nullopt;
    const auto complete = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return left_ == 0; };
    mu_.Await(absl::Condition(&complete));
    return OfAll(statuses_);
  }

 private:
  absl::Mutex mu_;
  size_t left_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Status> statuses_ ABSL_GUARDED_BY(mu_);
  absl::AnyInvocable<void(absl::Status)> done_ ABSL_GUARDED_BY(mu_);
};

// A set is as badly off as the worst of its members.
int Badness(LockState state) {
  switch (state) {
    case LockState::kHeld:
      return 0;
    case LockState::kYielding:
      return 1;
    case LockState::kEmpty:
    case LockState::kReleased:
      return 2;
    case LockState::kExpired:
      return 3;
    case LockState::kLost:
      return 4;
    case LockState::kStolen:
      return 5;
  }
  return 0;
}

}  // namespace

// What the callbacks of a set's members share.
class SetListeners : public RefCounted<SetListeners> {
 public:
  explicit SetListeners(std::vector<RefPtr<Hold>> holds) : holds_(std::move(holds)) {}

  // The old ones go without the mutex.
  void SetOnYield(absl::AnyInvocable<void()> callback) {
    absl::MutexLock lock(&mu_);
    std::swap(on_yield_, callback);
  }
  void SetOnLost(absl::AnyInvocable<void(LockState)> callback) {
    absl::MutexLock lock(&mu_);
    std::swap(on_lost_, callback);
  }

  void OnYield(size_t index) {
    absl::AnyInvocable<void()> callback;
    for (;;) {
      std::optional<size_t> other;
      {
        absl::MutexLock lock(&mu_);
        if (!telling_) other = ToldOfAnother(index);
        if (!other) {
          told_of_.insert(index);
          if (telling_ || on_yield_ == nullptr) return;
          callback = std::exchange(on_yield_, nullptr);
          telling_ = true;
          break;
        }
      }
      // Without the mutex: looking at a hold may tell news.
      const bool still_yields = holds_[*other]->State() == LockState::kYielding;
      absl::MutexLock lock(&mu_);
      if (still_yields) {  // So the set is known to yield.
        told_of_.insert(index);
        return;
      }
      told_of_.erase(*other);
    }
    RunContained(
        [&] {
          return absl::StrCat("the OnYieldRequested callback of a set with ",
                              holds_[index]->NameForMessage());
        },
        callback);
    absl::MutexLock lock(&mu_);
    telling_ = false;
    if (on_yield_ == nullptr) on_yield_ = std::move(callback);
  }

  void OnLost(size_t index, LockState state) {
    absl::AnyInvocable<void(LockState)> callback;
    {
      absl::MutexLock lock(&mu_);
      callback = std::exchange(on_lost_, nullptr);  // At most once.
    }
    if (callback == nullptr) return;
    RunContained(
        [&] {
          return absl::StrCat("the OnLost callback of a set with ",
                              holds_[index]->NameForMessage());
        },
        [&] { callback(state); });
  }

 private:
  std::optional<size_t> ToldOfAnother(size_t index) const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    for (const size_t other : told_of_) {
      if (other != index) return other;
    }
    return std::nullopt;
  }

  const std::vector<RefPtr<Hold>> holds_;
  absl::Mutex mu_;
  // Members whose requests to yield were told, or came while another was known.
  absl::btree_set<size_t> told_of_ ABSL_GUARDED_BY(mu_);
  bool telling_ ABSL_GUARDED_BY(mu_) = false;
  absl::AnyInvocable<void()> on_yield_ ABSL_GUARDED_BY(mu_);
  absl::AnyInvocable<void(LockState)> on_lost_ ABSL_GUARDED_BY(mu_);
};

std::string ResourcesForMessage(const std::vector<std::string_view>& resources) {
  constexpr size_t kMost = 4;
  if (resources.empty()) return "nothing";
  std::string text;
  for (size_t i = 0; i < resources.size() && i < kMost; ++i) {
    absl::StrAppend(&text, i > 0 ? ", " : "", ResourceForMessage(resources[i]));
  }
  if (resources.size() > kMost) {
    absl::StrAppend(&text, ", ... (", resources.size(), " resources)");
  }
  return text;
}

LockSetRep::LockSetRep() = default;

LockSetRep::~LockSetRep() {
  // First, since they would wait for those that run on other threads anyway.
  stop_calls.clear();
}

std::vector<RefPtr<Hold>> LockSetRep::Holds() const {
  std::vector<RefPtr<Hold>> holds;
  for (const Member& member : members) holds.push_back(RefPtr<Hold>::Share(&HoldOf(member.lock)));
  return holds;
}

std::vector<RefPtr<Hold>> LockSetRep::HoldsOf(const std::variant<Lock, LockSet>& held) {
  if (const LockSet* const set = std::get_if<LockSet>(&held)) return set->rep_->Holds();
  return {RefPtr<Hold>::Share(&HoldOf(std::get<Lock>(held)))};
}

FencingToken LockSetRep::TokenOf(std::string_view resource) {
  constexpr size_t kFew = 8;
  if (members.size() <= kFew) {
    for (const Member& member : members) {
      if (member.resource == resource) return member.lock.fencing_token();
    }
    return 0;
  }
  if (by_resource.empty()) {
    for (const Member& member : members) by_resource.emplace(member.resource, &member);
  }
  const auto found = by_resource.find(resource);
  return found == by_resource.end() ? 0 : found->second->lock.fencing_token();
}

SetListeners& LockSetRep::Listeners() {
  if (!listeners) listeners = RefPtr<SetListeners>::Adopt(new SetListeners(Holds()));
  return *listeners;
}

}  // namespace internal

using internal::Gathering;
using internal::Hold;
using internal::LockSetRep;
using internal::RefPtr;
using internal::SetListeners;

LockSet::LockSet() = default;
LockSet::LockSet(std::unique_ptr<LockSetRep> rep) : rep_(std::move(rep)) {}
LockSet::LockSet(LockSet&&) noexcept = default;
LockSet& LockSet::operator=(LockSet&&) noexcept = default;
LockSet::~LockSet() = default;

size_t LockSet::size() const { return rep_ == nullptr ? 0 : rep_->members.size(); }

std::vector<std::string_view> LockSet::resources() const {
  std::vector<std::string_view> names;
  if (rep_ == nullptr) return names;
  for (const LockSetRep::Member& member : rep_->members) names.push_back(member.resource);
  return names;
}

FencingToken LockSet::fencing_token(std::string_view resource) const {
  return rep_ == nullptr ? 0 : rep_->TokenOf(resource);
}

// Looking at a member may bring news, whose callback may destroy this set: what is needed of it
// after that is copied before, and the holds are kept alive.

LockState LockSet::state() const {
  if (rep_ == nullptr) return LockState::kEmpty;
  LockState worst = LockState::kHeld;
  const auto note = [&worst](LockState one) {
    if (internal::Badness(one) > internal::Badness(worst)) worst = one;
  };
  if (rep_->released) {
    worst = LockState::kReleased;
    for (const LockSetRep::Member& member : rep_->members) note(member.lock.state());
  } else {
    for (const RefPtr<Hold>& hold : rep_->Holds()) note(hold->State());
  }
  return worst;
}

absl::Duration LockSet::remaining() const {
  if (rep_ == nullptr || rep_->released) return absl::ZeroDuration();
  absl::Duration shortest = absl::InfiniteDuration();
  for (const RefPtr<Hold>& hold : rep_->Holds()) shortest = std::min(shortest, hold->Remaining());
  return shortest;
}

std::stop_token LockSet::stop_token() const {
  if (rep_ == nullptr) return {};
  if (!rep_->stop) {
    std::vector<std::stop_token> tokens;
    if (rep_->released) {
      for (const LockSetRep::Member& member : rep_->members) {
        tokens.push_back(member.lock.stop_token());
      }
    } else {
      for (const RefPtr<Hold>& hold : rep_->Holds()) tokens.push_back(hold->StopToken());
    }
    if (rep_ == nullptr) {
      std::stop_source gone;
      gone.request_stop();
      return gone.get_token();
    }
    rep_->stop.emplace();
    for (const std::stop_token& token : tokens) {
      rep_->stop_calls.push_back(std::make_unique<std::stop_callback<LockSetRep::StopFn>>(
          token, LockSetRep::StopFn{*rep_->stop}));
    }
  }
  return rep_->stop->get_token();
}

void LockSet::OnYieldRequested(absl::AnyInvocable<void()> callback) {
  if (rep_ == nullptr || rep_->released) return;
  rep_->Listeners().SetOnYield(internal::WithOwner(std::move(callback)));
  if (std::exchange(rep_->hears_yield, true)) return;
  const RefPtr<SetListeners> listeners = rep_->listeners;
  const std::vector<RefPtr<Hold>> holds = rep_->Holds();
  for (size_t i = 0; i < holds.size(); ++i) {
    holds[i]->OnYieldRequested([listeners, i] { listeners->OnYield(i); });
  }
}

void LockSet::OnLost(absl::AnyInvocable<void(LockState)> callback) {
  if (rep_ == nullptr || rep_->released) return;
  rep_->Listeners().SetOnLost(internal::WithOwner(std::move(callback)));
  if (std::exchange(rep_->hears_lost, true)) return;
  const RefPtr<SetListeners> listeners = rep_->listeners;
  const std::vector<RefPtr<Hold>> holds = rep_->Holds();
  for (size_t i = 0; i < holds.size(); ++i) {
    holds[i]->OnLost([listeners, i](LockState state) { listeners->OnLost(i, state); });
  }
}

std::string LockSet::NamesForMessage() const {
  return absl::StrCat("the set of locks on ", internal::ResourcesForMessage(resources()));
}

absl::Status LockSet::Release() {
  if (rep_ == nullptr) {
    return MakeError(Reason::kNotHeld, "Release() was called on an empty set of locks");
  }
  rep_->released = true;
  // Before a callback may destroy the set; needed for an error only.
  const std::string names = internal::CallbackScope::Active() ? NamesForMessage() : "";
  const auto answers = RefPtr<Gathering>::Adopt(new Gathering(rep_->members.size()));
  for (size_t i = 0; i < rep_->members.size(); ++i) {
    rep_->members[i].lock.ReleaseDirect(
        [answers, i](absl::Status status) { answers->Answer(i, std::move(status)); });
  }
  std::optional<absl::Status> status = answers->Wait();
  return status ? *std::move(status) : internal::WouldBlockError("Release()", names);
}

void LockSet::ReleaseAsync(absl::AnyInvocable<void(absl::Status)> done) {
  if (size() == 0 || rep_->released) {
    if (done == nullptr) return;
    absl::Status status = Release();
    internal::RunContained(
        [names = NamesForMessage()] {
          return absl::StrCat("the callback of ReleaseAsync() of ", names);
        },
        [&] { done(std::move(status)); });
    return;
  }
  rep_->released = true;
  internal::ManagerContext& context = LockSetRep::HoldOf(rep_->members[0].lock).context();
  absl::AnyInvocable<void(absl::Status)> tell;
  if (done != nullptr) {
    tell = [&context, names = NamesForMessage(),
            done = internal::WithOwner(std::move(done))](absl::Status status) mutable {
      context.RunUser(
          [names = std::move(names), done = std::move(done), status = std::move(status)]() mutable {
            internal::RunContained(
                [&] { return absl::StrCat("the callback of ReleaseAsync() of ", names); },
                [&] { done(std::move(status)); });
          });
    };
  }
  const auto answers =
      RefPtr<Gathering>::Adopt(new Gathering(rep_->members.size(), std::move(tell)));
  for (size_t i = 0; i < rep_->members.size(); ++i) {
    rep_->members[i].lock.ReleaseDirect(
        [answers, i](absl::Status status) { answers->Answer(i, std::move(status)); });
  }
}

absl::Status LockSet::Extend(absl::Duration lease) {
  if (rep_ == nullptr) {
    return MakeError(Reason::kNotHeld, "Extend() was called on an empty set of locks");
  }
  if (rep_->released) {
    return MakeError(Reason::kNotHeld, absl::StrCat(NamesForMessage(), " was already released"));
  }
  const std::string names = internal::CallbackScope::Active() ? NamesForMessage() : "";
  const std::vector<RefPtr<Hold>> holds = rep_->Holds();
  const auto answers = RefPtr<Gathering>::Adopt(new Gathering(holds.size()));
  for (size_t i = 0; i < holds.size(); ++i) {
    holds[i]->Extend(lease,
                     [answers, i](absl::Status status) { answers->Answer(i, std::move(status)); });
  }
  std::optional<absl::Status> status = answers->Wait();
  return status ? *std::move(status) : internal::WouldBlockError("Extend()", names);
}

}  // namespace latchkey
