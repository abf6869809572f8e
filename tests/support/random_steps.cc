#include "latchkey/tests/support/random_steps.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "latchkey/core/protocol/lock_record.h"
#include "latchkey/core/protocol/quorum_member.h"

namespace latchkey {
namespace {

// What the events of one watch add up to.
struct Belief {
  bool yielding = false;
  Priority thief_priority = 0;
  bool ended = false;
  bool displaced = false;

  void Hear(const WatchEvent& event) {
    switch (event.kind) {
      case WatchEventKind::kYieldRequested:
        yielding = true;
        thief_priority = event.thief_priority;
        break;
      case WatchEventKind::kYieldWithdrawn:
        yielding = false;
        break;
      case WatchEventKind::kHoldEnded:
        ended = true;
        break;
      case WatchEventKind::kDisplaced:
        displaced = true;
        break;
    }
  }
};

struct Watch {
  std::shared_ptr<Belief> belief = std::make_shared<Belief>();
  Subscription subscription;
};

// One acquisition, as its client knows it.
struct Party {
  int resource = 0;
  std::string owner;
  ObtainRequest request;
  LeaseHint hint = 0;
  std::optional<Watch> as_holder;
  std::optional<Watch> as_thief;
};

struct ResourceUnderTest {
  std::string name;
  LockRecord record = {};
  FencingToken largest = 0;  // Ever given by the backend.
  FencingToken held = 0;     // Of the present hold, by the backend.
};

class Run {
 public:
  Run(LockingProtocol& backend, const RandomStepsOptions& options)
      : backend_(backend), options_(options), random_(options.seed) {
    for (int i = 0; i < options.resources; ++i) {
      resources_.push_back({.name = absl::StrCat(options.name_prefix, options.seed, "/", i)});
    }
  }

  std::string Go() {
    for (int step = 0; step < options_.steps && difference_.empty() && !no_more_; ++step) {
      TakeStep();
      if (difference_.empty() && options_.events) CompareBeliefs();
    }
    parties_.clear();
    if (difference_.empty()) return "";
    // The last steps tell the story.
    const size_t shown = std::min<size_t>(trace_.size(), 40);
    return absl::StrCat("seed ", options_.seed, ": ", difference_, "\nafter ", trace_.size(),
                        " steps, the last of them:\n",
                        absl::StrJoin(trace_.end() - shown, trace_.end(), "\n"));
  }

 private:
  // ---- Chance ----

  int Below(int n) {
    if (!options_.choose) return static_cast<int>(random_() % static_cast<uint64_t>(n));
    const std::optional<int> choice = options_.choose(n);
    if (!choice) no_more_ = true;
    return choice.value_or(0);
  }
  bool Chance(int percent) { return Below(100) < percent; }
  template <typename T>
  T OneOf(std::initializer_list<T> values) {
    return *(values.begin() + Below(static_cast<int>(values.size())));
  }

  absl::Duration SomeLease() {
    if (backend_.capabilities().infinite_lease && Chance(15)) return absl::InfiniteDuration();
    return OneOf({1, 2, 3, 5, 8, 13}) * options_.unit;
  }

  // Someone who has appeared before, rather one who came lately.
  Party& SomeParty() {
    const int back = std::min({Below(10), Below(20), static_cast<int>(parties_.size()) - 1});
    return *parties_[parties_.size() - 1 - static_cast<size_t>(back)];
  }

  // ---- Steps ----

  void TakeStep() {
    const int kind = Below(100);
    if (parties_.empty() || kind < 25) {
      parties_.push_back(std::make_unique<Party>(NewParty()));
      Obtain(*parties_.back());
    } else if (kind < 45) {
      // A repetition, or a poll, perhaps with other terms.
      Party& party = SomeParty();
      if (Chance(10)) SetTerms(party);
      Obtain(party);
    } else if (kind < 63) {
      Release(SomeParty());
    } else if (kind < 73) {
      Extend(SomeParty());
    } else if (kind < 80) {
      if (QuorumMember* const member = backend_.quorum_member()) Confirm(*member, SomeParty());
    } else {
      const absl::Duration duration = OneOf({0, 1, 1, 1, 2, 3}) * options_.unit;
      trace_.push_back(absl::StrCat("advance ", absl::FormatDuration(duration)));
      now_ += duration;
      options_.advance(duration);
      Settle();
    }
  }

  Party NewParty() {
    Party party;
    party.resource = Below(options_.resources);
    party.owner = OneOf<std::string>({"", "", "ann", "bob", "cid"});
    party.request.acquisition = AcquisitionId::Next();
    // Owner and priority belong to the acquisition; the other terms may change from poll to poll.
    party.request.priority = OneOf<Priority>({-1, 0, 0, 1, 2, 3, 4});
    SetTerms(party);
    return party;
  }

  void SetTerms(Party& party) {
    ObtainRequest& request = party.request;
    request.preemptible = !Chance(10);
    request.lease = SomeLease();
    request.reserve_below = std::nullopt;
    if (Chance(60)) request.reserve_below = 100;
    if (Chance(15)) request.reserve_below = OneOf<Priority>({-1, 0, 1, 2});
    request.reservation_lease = SomeLease();
    request.grace = std::nullopt;
    if (backend_.capabilities().forced_handover && Chance(25)) {
      request.grace = OneOf({0, 1, 2, 4}) * options_.unit;
    }
  }

  void Obtain(Party& party) {
    ResourceUnderTest& resource = resources_[party.resource];
    ObtainRequest request = party.request;
    request.resource = resource.name;
    request.owner = party.owner;
    trace_.push_back(absl::StrCat(
        "obtain ", Name(party), " priority ", request.priority, " lease ",
        absl::FormatDuration(request.lease), request.preemptible ? "" : " not preemptible",
        request.reserve_below ? absl::StrCat(" below ", *request.reserve_below) : "",
        " reservation ", absl::FormatDuration(request.reservation_lease),
        request.grace ? absl::StrCat(" grace ", absl::FormatDuration(*request.grace)) : ""));
    // By turns alone, and as a member of a quorum, of which more is said.
    std::optional<absl::StatusOr<MemberReply>> answer;
    QuorumMember* const member = ++obtains_ % 2 == 0 ? backend_.quorum_member() : nullptr;
    if (member != nullptr) {
      trace_.back() += " as a member";
      member->ObtainAsMember(request,
                             [&](absl::StatusOr<MemberReply> reply) { answer = std::move(reply); });
    } else {
      backend_.Obtain(request, [&](absl::StatusOr<ObtainReply> reply) {
        if (reply.ok()) {
          answer = MemberReply{.reply = *std::move(reply)};
        } else {
          answer = reply.status();
        }
      });
    }
    Effects effects;
    const MemberReply expected_as_member = ApplyAsMember(resource.record, request, now_, effects);
    const ObtainReply& expected = expected_as_member.reply;
    const MemberReply* const said = Check(answer);
    if (said == nullptr) return;
    const ObtainReply* const reply = &said->reply;
    Compare("fence_lost", said->fence_lost, false);
    absl::StrAppend(&trace_.back(), " -> ", ObtainOutcomeName(reply->outcome));
    Compare("outcome", ObtainOutcomeName(reply->outcome), ObtainOutcomeName(expected.outcome));
    CompareDurations("remaining", reply->remaining, expected.remaining);
    if (!difference_.empty()) return;
    switch (expected.outcome) {
      case ObtainOutcome::kObtained:
        if (reply->token <= resource.largest) {
          Differ(absl::StrCat("token ", reply->token, " after ", resource.largest));
        }
        resource.largest = resource.held = reply->token;
        [[fallthrough]];
      case ObtainOutcome::kReentered:
        Compare("token", reply->token, options_.exact_tokens ? expected.token : resource.held);
        party.hint = reply->hint;
        break;
      case ObtainOutcome::kReserved:
        CompareDurations("grace_remaining", reply->grace_remaining, expected.grace_remaining);
        [[fallthrough]];
      case ObtainOutcome::kDenied:
        Compare("token", reply->token, FencingToken{0});
        Compare("other_owner", reply->other_owner, expected.other_owner);
        Compare("other_priority", reply->other_priority, expected.other_priority);
        if (member != nullptr && options_.exact_tokens) {
          Compare("fence", said->fence, expected_as_member.fence);
        } else if (said->fence != 0 && said->fence < resource.largest) {
          Differ(absl::StrCat("fence ", said->fence, " after token ", resource.largest));
        }
        break;
    }
    if (options_.events) BeginWatch(party);
  }

  void Release(Party& party) {
    ResourceUnderTest& resource = resources_[party.resource];
    trace_.push_back(absl::StrCat("release ", Name(party)));
    std::optional<absl::StatusOr<ReleaseOutcome>> answer;
    backend_.Release(Ref(party), [&](absl::StatusOr<ReleaseOutcome> r) { answer = std::move(r); });
    Effects effects;
    const ReleaseOutcome expected =
        ApplyRelease(resource.record, party.request.acquisition, now_, effects);
    if (const ReleaseOutcome* const outcome = Check(answer)) {
      Compare("outcome", ReleaseOutcomeName(*outcome), ReleaseOutcomeName(expected));
    }
    // Only now: a watch that ends takes the reservation of a woken waiter with it.
    party.as_holder.reset();
    party.as_thief.reset();
  }

  void Extend(Party& party) {
    ResourceUnderTest& resource = resources_[party.resource];
    const absl::Duration lease = SomeLease();
    trace_.push_back(absl::StrCat("extend ", Name(party), " ", absl::FormatDuration(lease)));
    std::optional<absl::StatusOr<ExtendReply>> answer;
    backend_.Extend(Ref(party), lease,
                    [&](absl::StatusOr<ExtendReply> reply) { answer = std::move(reply); });
    Effects effects;
    const ExtendReply expected =
        ApplyExtend(resource.record, party.request.acquisition, lease, now_, effects);
    if (const ExtendReply* const reply = Check(answer)) {
      Compare("outcome", ExtendOutcomeName(reply->outcome), ExtendOutcomeName(expected.outcome));
      if (expected.outcome != ExtendOutcome::kNotHeld) {
        CompareDurations("remaining", reply->remaining, expected.remaining);
      }
    }
  }

  void Confirm(QuorumMember& member, Party& party) {
    ResourceUnderTest& resource = resources_[party.resource];
    // Relative to the hold's token, which need not be the same number on both sides.
    const FencingToken more = OneOf<FencingToken>({0, 1, 3});
    const bool less = Chance(20) && resource.record.holder && resource.record.holder->token > 1;
    const FencingToken own = resource.record.holder ? resource.record.holder->token : 1;
    trace_.push_back(
        absl::StrCat("confirm ", Name(party), less ? " less" : absl::StrCat(" +", more)));
    std::optional<absl::StatusOr<ConfirmReply>> answer;
    member.Confirm(Ref(party), less ? resource.held - 1 : resource.held + more,
                   [&](absl::StatusOr<ConfirmReply> reply) { answer = std::move(reply); });
    Effects effects;
    const ConfirmReply expected = ApplyConfirm(resource.record, party.request.acquisition,
                                               less ? own - 1 : own + more, now_, effects);
    const ConfirmReply* const reply = Check(answer);
    if (reply == nullptr) return;
    Compare("outcome", ConfirmOutcomeName(reply->outcome), ConfirmOutcomeName(expected.outcome));
    if (!difference_.empty() || expected.outcome == ConfirmOutcome::kNotHeld) return;
    if (expected.outcome == ConfirmOutcome::kConfirmed) {
      resource.held += more;
      resource.largest = std::max(resource.largest, resource.held);
    }
    Compare("token", reply->token, options_.exact_tokens ? expected.token : resource.held);
  }

  // ---- Events ----

  Watch Subscribe(const Party& party, WatchRole role) {
    Watch watch;
    watch.subscription =
        backend_.Watch({.resource = resources_[party.resource].name,
                        .acquisition = party.request.acquisition,
                        .role = role,
                        .owner = party.owner,
                        .priority = party.request.priority,
                        .reservation_lease = party.request.reservation_lease,
                        .hint = party.hint},
                       [belief = watch.belief](const WatchEvent& event) { belief->Hear(event); });
    Settle();
    return watch;
  }

  bool IsHandle(const Party& party) const {
    const auto& holder = resources_[party.resource].record.holder;
    return holder && std::find(holder->handles.begin(), holder->handles.end(),
                               party.request.acquisition) != holder->handles.end();
  }

  bool IsSuccessor(const Party& party) const {
    const auto& successor = resources_[party.resource].record.successor;
    return successor && successor->acquisition == party.request.acquisition;
  }

  // Some watch from the first moment, some later, some never. A thief's watch ends with its
  // reservation: from then on it would be that of a common waiter, of whom the reference knows
  // nothing.
  void BeginWatch(Party& party) {
    if (IsHandle(party)) {
      party.as_thief.reset();
      if (!party.as_holder && Chance(60)) party.as_holder = Subscribe(party, WatchRole::kHolder);
    } else if (IsSuccessor(party)) {
      // What it held before, by the same acquisition, is past.
      party.as_holder.reset();
      if (!party.as_thief && Chance(60)) party.as_thief = Subscribe(party, WatchRole::kWaiter);
    }
  }

  void CompareBeliefs() {
    Settle();
    for (ResourceUnderTest& resource : resources_) {
      Effects effects;
      Expire(resource.record, now_, effects);
    }
    for (const std::unique_ptr<Party>& party : parties_) {
      const LockRecord& record = resources_[party->resource].record;
      if (party->as_holder) {
        const Belief& belief = *party->as_holder->belief;
        const bool holds = IsHandle(*party);
        Compare(absl::StrCat(Name(*party), " heard that its hold ended"), belief.ended, !holds);
        if (holds) {
          const bool yielding = record.successor.has_value();
          Compare(absl::StrCat(Name(*party), " heard that it has to yield"), belief.yielding,
                  yielding);
          if (yielding) {
            Compare(absl::StrCat(Name(*party), " heard to what priority"), belief.thief_priority,
                    record.successor->priority);
          }
        } else {
          party->as_holder.reset();
        }
      }
      if (party->as_thief) {
        const Belief& belief = *party->as_thief->belief;
        if (IsSuccessor(*party)) {
          Compare(absl::StrCat(Name(*party), " heard that it was displaced"), belief.displaced,
                  false);
          Compare(absl::StrCat(Name(*party), " heard that the hold ended"), belief.ended,
                  !record.holder.has_value());
        } else {
          // Where the hold ended before the reservation did, it has heard of one of the two.
          Compare(absl::StrCat(Name(*party), " heard that its reservation is gone"),
                  belief.displaced || belief.ended, true);
          party->as_thief.reset();
        }
      }
      if (!difference_.empty()) return;
    }
  }

  // ---- Comparing ----

  void Settle() {
    if (options_.settle) options_.settle();
  }

  HoldRef Ref(const Party& party) {
    return {.resource = resources_[party.resource].name,
            .acquisition = party.request.acquisition,
            .hint = Chance(50) ? party.hint : 0};
  }

  std::string Name(const Party& party) const {
    return absl::StrCat("#", party.request.acquisition.low % 100000, " of '", party.owner, "' on ",
                        party.resource);
  }

  void Differ(std::string what) {
    if (difference_.empty()) difference_ = std::move(what);
  }

  template <typename T>
  void Compare(std::string_view what, const T& actual, const T& expected) {
    if (actual != expected) {
      Differ(absl::StrCat(what, " is ", actual, ", but ", expected, " by the reference"));
    }
  }

  void CompareDurations(std::string_view what, absl::Duration actual, absl::Duration expected) {
    Compare(what, absl::FormatDuration(actual), absl::FormatDuration(expected));
  }

  template <typename T>
  const T* Check(std::optional<absl::StatusOr<T>>& answer) {
    Settle();
    if (!answer) {
      Differ("no completion");
    } else if (!answer->ok()) {
      Differ(answer->status().ToString());
    } else {
      return &**answer;
    }
    return nullptr;
  }

  LockingProtocol& backend_;
  const RandomStepsOptions& options_;
  std::mt19937_64 random_;
  bool no_more_ = false;  // `choose` has come to its end.
  // The reference's time; only differences matter.
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  std::vector<ResourceUnderTest> resources_;
  std::vector<std::unique_ptr<Party>> parties_;
  int obtains_ = 0;
  std::vector<std::string> trace_;
  std::string difference_;
};

}  // namespace

std::string RunRandomSteps(LockingProtocol& backend, const RandomStepsOptions& options) {
  return Run(backend, options).Go();
}

uint64_t SeedFromEnvironment(uint64_t otherwise) {
  const char* const seed = std::getenv("LATCHKEY_SEED");
  return seed != nullptr ? std::strtoull(seed, nullptr, 10) : otherwise;
}

}  // namespace latchkey
