#include "latchkey/tests/support/linearizability.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string_view>
#include <thread>
#include <unordered_set>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "latchkey/core/protocol/lock_record.h"

namespace latchkey {
namespace {

// Only differences matter, and there are none.
const absl::Time kNow = absl::UnixEpoch() + absl::Hours(1);

// ---- The sequential specification --------------------------------------------------------------

// Takes the step on `record`. False: the answer is not the one that was heard; `record` is of no
// use then.
bool Take(const Operation& step, LockRecord& record) {
  using Kind = Operation::Kind;
  Effects effects;
  switch (step.kind) {
    case Kind::kObtain: {
      const FencingToken fence = record.fence;
      const ObtainReply expected = Apply(record,
                                         ObtainRequest{.resource = step.resource,
                                                       .acquisition = step.acquisition,
                                                       .owner = step.owner,
                                                       .priority = step.priority,
                                                       .preemptible = step.preemptible,
                                                       .lease = step.lease,
                                                       .reserve_below = step.reserve_below,
                                                       .reservation_lease = step.reservation_lease,
                                                       .grace = step.grace},
                                         kNow, effects);
      const ObtainReply* const heard = std::get_if<ObtainReply>(&step.answer);
      if (heard == nullptr) return true;
      if (heard->outcome != expected.outcome || heard->remaining != expected.remaining) {
        return false;
      }
      switch (expected.outcome) {
        case ObtainOutcome::kObtained:
          // Tokens need not follow each other without a gap, but must grow.
          if (heard->token <= fence) return false;
          record.fence = record.holder->token = heard->token;
          return true;
        case ObtainOutcome::kReentered:
          return heard->token == expected.token;
        case ObtainOutcome::kReserved:
          if (heard->grace_remaining != expected.grace_remaining) return false;
          [[fallthrough]];
        case ObtainOutcome::kDenied:
          return heard->token == 0 && heard->other_owner == expected.other_owner &&
                 heard->other_priority == expected.other_priority;
      }
      return false;
    }
    case Kind::kRelease: {
      const ReleaseOutcome expected = ApplyRelease(record, step.acquisition, kNow, effects);
      const ReleaseOutcome* const heard = std::get_if<ReleaseOutcome>(&step.answer);
      return heard == nullptr || *heard == expected;
    }
    case Kind::kExtend: {
      const ExtendReply expected = ApplyExtend(record, step.acquisition, step.lease, kNow, effects);
      const ExtendReply* const heard = std::get_if<ExtendReply>(&step.answer);
      return heard == nullptr ||
             (heard->outcome == expected.outcome && (expected.outcome == ExtendOutcome::kNotHeld ||
                                                     heard->remaining == expected.remaining));
    }
    case Kind::kConfirm: {
      const ConfirmReply expected =
          ApplyConfirm(record, step.acquisition, step.token, kNow, effects);
      const ConfirmReply* const heard = std::get_if<ConfirmReply>(&step.answer);
      return heard == nullptr ||
             (heard->outcome == expected.outcome &&
              (expected.outcome == ConfirmOutcome::kNotHeld || heard->token == expected.token));
    }
    case Kind::kInspect: {
      const ResourceState* const heard = std::get_if<ResourceState>(&step.answer);
      if (heard == nullptr) return true;
      const ResourceState expected = Describe(record, step.resource, kNow);
      if (heard->held != expected.held || heard->reserved != expected.reserved) return false;
      if (expected.held &&
          (heard->holder_owner != expected.holder_owner ||
           heard->holder_priority != expected.holder_priority ||
           heard->preemptible != expected.preemptible || heard->handles != expected.handles ||
           heard->token != expected.token || heard->remaining_lease != expected.remaining_lease)) {
        return false;
      }
      return !expected.reserved || (heard->successor_owner == expected.successor_owner &&
                                    heard->successor_priority == expected.successor_priority);
    }
  }
  return false;
}

// ---- Words -------------------------------------------------------------------------------------

std::string Name(AcquisitionId acquisition) { return absl::StrCat("#", acquisition.low % 100000); }

std::string Words(const ObtainReply& reply) {
  const std::string left = absl::StrCat(", left ", absl::FormatDuration(reply.remaining));
  const std::string other =
      absl::StrCat(", in the way '", reply.other_owner, "' of priority ", reply.other_priority);
  switch (reply.outcome) {
    case ObtainOutcome::kObtained:
      return absl::StrCat("obtained, token ", reply.token, left);
    case ObtainOutcome::kReentered:
      return absl::StrCat("re-entered, token ", reply.token, left);
    case ObtainOutcome::kReserved:
      return absl::StrCat("reserved", left, ", grace ", absl::FormatDuration(reply.grace_remaining),
                          other);
    case ObtainOutcome::kDenied:
      return absl::StrCat("denied", left, other);
  }
  return "?";
}

std::string Words(ReleaseOutcome outcome) {
  switch (outcome) {
    case ReleaseOutcome::kReleased:
      return "released";
    case ReleaseOutcome::kWithdrawn:
      return "withdrawn";
    case ReleaseOutcome::kNotHeld:
      return "not held";
  }
  return "?";
}

std::string Words(const ExtendReply& reply) {
  const std::string left = absl::StrCat(", left ", absl::FormatDuration(reply.remaining));
  switch (reply.outcome) {
    case ExtendOutcome::kExtended:
      return absl::StrCat("extended", left);
    case ExtendOutcome::kReserved:
      return absl::StrCat("refused, reserved", left);
    case ExtendOutcome::kNotHeld:
      return "not held";
  }
  return "?";
}

std::string Words(const ConfirmReply& reply) {
  switch (reply.outcome) {
    case ConfirmOutcome::kConfirmed:
      return absl::StrCat("confirmed ", reply.token);
    case ConfirmOutcome::kRaise:
      return absl::StrCat("raise to ", reply.token);
    case ConfirmOutcome::kNotHeld:
      return "not held";
  }
  return "?";
}

std::string Words(const ResourceState& state) {
  std::string words = "free";
  if (state.held) {
    words = absl::StrCat("held by '", state.holder_owner, "' with ", state.handles,
                         " handles, priority ", state.holder_priority, ", token ", state.token,
                         ", left ", absl::FormatDuration(state.remaining_lease),
                         state.preemptible ? "" : ", not preemptible");
  }
  if (state.reserved) {
    absl::StrAppend(&words, ", reserved by '", state.successor_owner, "' of priority ",
                    state.successor_priority);
  }
  return words;
}

std::string Words(std::monostate) { return "no answer"; }

std::string Words(const LockRecord& record) {
  std::string words = absl::StrCat(Words(Describe(record, "", kNow)), ", fence ", record.fence);
  if (record.holder) {
    absl::StrAppend(&words, ", handles");
    for (const AcquisitionId handle : record.holder->handles) {
      absl::StrAppend(&words, " ", Name(handle));
    }
  }
  if (record.successor)
    absl::StrAppend(&words, ", successor ", Name(record.successor->acquisition));
  return words;
}

// ---- The search --------------------------------------------------------------------------------

// Everything of a record that a later step may depend on.
void AppendState(const LockRecord& record, std::string& key) {
  absl::StrAppend(&key, record.fence);
  if (record.holder) {
    const LockRecord::Holder& holder = *record.holder;
    absl::StrAppend(&key, "|", holder.owner, "|", holder.priority, "|", holder.preemptible, "|",
                    holder.token, "|", absl::FormatDuration(holder.deadline - kNow));
    for (const AcquisitionId handle : holder.handles) {
      absl::StrAppend(&key, ",", handle.high, ".", handle.low);
    }
  }
  if (record.successor) {
    const LockRecord::Successor& successor = *record.successor;
    absl::StrAppend(&key, "||", successor.acquisition.high, ".", successor.acquisition.low, "|",
                    successor.owner, "|", successor.priority, "|",
                    absl::FormatDuration(successor.deadline - kNow), "|",
                    absl::FormatDuration(successor.grace_end - kNow));
  }
}

struct Search {
  bool found = false;
  std::vector<const Operation*> longest;  // The longest order that agrees,
  LockRecord record;                      // and where it leads.
};

// `steps` are those of one resource.
class Searcher {
 public:
  explicit Searcher(std::vector<const Operation*> steps)
      : steps_(std::move(steps)), taken_(steps_.size()) {
    std::sort(steps_.begin(), steps_.end(),
              [](const Operation* a, const Operation* b) { return a->invoked < b->invoked; });
  }

  Search Run() {
    result_.found = Extend(LockRecord());
    return std::move(result_);
  }

 private:
  // Takes any step next that nobody who is left must come before, and goes on from there.
  bool Extend(const LockRecord& record) {
    uint64_t first_return = Operation::kNever;
    bool all_answered = true;
    for (size_t i = 0; i < steps_.size(); ++i) {
      if (taken_[i] || !steps_[i]->answered()) continue;
      all_answered = false;
      first_return = std::min(first_return, steps_[i]->returned);
    }
    if (order_.size() >= result_.longest.size()) {
      result_.longest = order_;
      result_.record = record;
    }
    if (all_answered) return true;
    for (size_t i = 0; i < steps_.size() && steps_[i]->invoked < first_return; ++i) {
      if (taken_[i]) continue;
      LockRecord next = record;
      if (!Take(*steps_[i], next)) continue;
      taken_[i] = true;
      if (IsNew(next)) {
        order_.push_back(steps_[i]);
        if (Extend(next)) return true;
        order_.pop_back();
      }
      taken_[i] = false;
    }
    return false;
  }

  // Lowe: whatever the order in which these steps were taken, from the same record it goes on the
  // same.
  bool IsNew(const LockRecord& record) {
    std::string key;
    key.reserve(128);
    for (const bool taken : taken_) key.push_back(taken ? '1' : '0');
    AppendState(record, key);
    return tried_.insert(std::move(key)).second;
  }

  std::vector<const Operation*> steps_;
  std::vector<bool> taken_;
  std::vector<const Operation*> order_;
  std::unordered_set<std::string> tried_;
  Search result_;
};

// What was known at moment `end`: later steps have not begun, later answers are not there yet.
History Beginning(const std::vector<const Operation*>& steps, uint64_t end) {
  History beginning;
  for (const Operation* const step : steps) {
    if (step->invoked > end) continue;
    beginning.push_back(*step);
    if (step->returned > end) {
      beginning.back().returned = Operation::kNever;
      beginning.back().answer = std::monostate();
    }
  }
  return beginning;
}

std::vector<const Operation*> Pointers(const History& history) {
  std::vector<const Operation*> pointers;
  for (const Operation& step : history) pointers.push_back(&step);
  return pointers;
}

std::string Explain(std::string_view resource, const std::vector<const Operation*>& steps) {
  // A beginning of a linearizable history is linearizable, so the shortest that is not is where it
  // went wrong.
  std::vector<uint64_t> ends;
  for (const Operation* const step : steps) {
    if (step->answered()) ends.push_back(step->returned);
  }
  std::sort(ends.begin(), ends.end());
  for (const uint64_t end : ends) {
    History beginning = Beginning(steps, end);
    std::sort(beginning.begin(), beginning.end(),
              [](const Operation& a, const Operation& b) { return a.invoked < b.invoked; });
    const Search search = Searcher(Pointers(beginning)).Run();
    if (search.found) continue;
    std::string text = absl::StrCat("no order of these steps on ", ResourceForMessage(resource),
                                    " explains their answers:\n");
    for (const Operation& step : beginning) absl::StrAppend(&text, "  ", step.ToString(), "\n");
    absl::StrAppend(&text, "the longest order that does:\n");
    for (const Operation* const step : search.longest) {
      absl::StrAppend(&text, "  ", step->ToString(), "\n");
    }
    absl::StrAppend(&text, "after which it is ", Words(search.record), "\n");
    return text;
  }
  return "no order found";
}

// ---- Recording ---------------------------------------------------------------------------------

// One acquisition of a history. Every thread may act for it: steps may be repeated, late and out of
// order.
struct Party {
  std::string resource;
  std::string owner;
  Priority priority = 0;
  AcquisitionId acquisition = AcquisitionId::Next();
};

// How many steps all threads have come to so far.
struct Meeting {
  std::atomic<int> arrived{0};
};

class Client {
 public:
  Client(LockingProtocol& backend, const HistoryOptions& options, const std::vector<Party>& parties,
         int number, std::atomic<uint64_t>& stamp, Meeting& meeting)
      : backend_(backend),
        options_(options),
        parties_(parties),
        number_(number),
        stamp_(stamp),
        meeting_(meeting),
        random_(options.seed * 1000 + static_cast<uint64_t>(number)),
        hints_(parties.size()) {}

  void Go() {
    for (int i = 0; i < options_.steps; ++i) {
      TakeStep();
    }
  }

  History& history() { return history_; }

 private:
  using Kind = Operation::Kind;

  int Below(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }

  // Waits until all threads are about to take their next step, so that they take it together: a
  // step is so short that they would hardly ever meet by themselves. Now and then a thread goes on
  // alone, and they meet one behind the other.
  void Meet() {
    const int round = ++rounds_;
    meeting_.arrived.fetch_add(1);
    if (Below(8) == 0) return;
    for (int i = 0; meeting_.arrived < round * options_.threads && i < 20'000; ++i) {
      // Another thread may need this one's processor to get here.
      if (i % 1000 == 999) std::this_thread::yield();
    }
  }

  absl::Duration SomeLease() {
    if (backend_.capabilities().infinite_lease && Below(3) == 0) return absl::InfiniteDuration();
    return (1 + Below(4)) * options_.unit;
  }

  void TakeStep() {
    const size_t which = static_cast<size_t>(Below(static_cast<int>(parties_.size())));
    const Party& party = parties_[which];
    Operation step{.client = number_, .resource = party.resource, .acquisition = party.acquisition};
    const BackendCapabilities& can = backend_.capabilities();
    const bool can_confirm = backend_.quorum_member() != nullptr;
    const int kind = Below(20);
    if (kind < 9) {
      step.kind = Kind::kObtain;
      step.owner = party.owner;
      step.priority = party.priority;
      step.preemptible = Below(8) != 0;
      step.lease = SomeLease();
      if (Below(4) != 0) step.reserve_below = 100;
      step.reservation_lease = SomeLease();
      // Nothing, or time stands still before its end.
      if (step.reserve_below && can.forced_handover && Below(3) == 0) {
        step.grace = Below(2) * options_.unit;
      }
    } else if (kind < 15 || (kind >= 17 && !can_confirm && !can.inspect)) {
      step.kind = Kind::kRelease;
    } else if (kind < 17) {
      step.kind = Kind::kExtend;
      step.lease = SomeLease();
    } else if (kind < 18 && can_confirm) {
      step.kind = Kind::kConfirm;
      step.token = last_token_ + static_cast<FencingToken>(Below(3));
      if (step.token == 0) step.token = 1;
    } else if (can.inspect) {
      step.kind = Kind::kInspect;
    } else {
      step.kind = Kind::kRelease;
    }
    Run(step, which);
    history_.push_back(std::move(step));
  }

  // Where the answer to a step is put. One that comes late, although it should not, comes to
  // nobody.
  struct Slot {
    std::mutex mu;
    bool late = false;
    decltype(Operation::answer) answer;
  };

  // Anything but an answer leaves the step open.
  template <typename T>
  static auto Hear(const std::shared_ptr<Slot>& slot) {
    return [slot](absl::StatusOr<T> answer) {
      const std::lock_guard<std::mutex> lock(slot->mu);
      if (answer.ok() && !slot->late) slot->answer = *std::move(answer);
    };
  }

  void Run(Operation& step, size_t which) {
    const HoldRef hold{.resource = step.resource,
                       .acquisition = step.acquisition,
                       .hint = Below(2) == 0 ? hints_[which] : 0};
    const ObtainRequest request{.resource = step.resource,
                                .acquisition = step.acquisition,
                                .owner = step.owner,
                                .priority = step.priority,
                                .preemptible = step.preemptible,
                                .lease = step.lease,
                                .reserve_below = step.reserve_below,
                                .reservation_lease = step.reservation_lease,
                                .grace = step.grace};
    const auto slot = std::make_shared<Slot>();
    Meet();
    step.invoked = stamp_.fetch_add(1);
    switch (step.kind) {
      case Kind::kObtain:
        backend_.Obtain(request, Hear<ObtainReply>(slot));
        break;
      case Kind::kRelease:
        backend_.Release(hold, Hear<ReleaseOutcome>(slot));
        break;
      case Kind::kExtend:
        backend_.Extend(hold, step.lease, Hear<ExtendReply>(slot));
        break;
      case Kind::kConfirm:
        backend_.quorum_member()->Confirm(hold, step.token, Hear<ConfirmReply>(slot));
        break;
      case Kind::kInspect: {
        ResourceState state;
        backend_.Inspect(step.resource, [&state](const ResourceState& seen) { state = seen; });
        slot->answer = std::move(state);
        break;
      }
    }
    const uint64_t now = stamp_.fetch_add(1);
    {
      const std::lock_guard<std::mutex> lock(slot->mu);
      slot->late = true;
      step.answer = std::move(slot->answer);
    }
    if (step.answered()) step.returned = now;
    if (const ObtainReply* const reply = std::get_if<ObtainReply>(&step.answer)) {
      if (reply->hint != 0) hints_[which] = reply->hint;
      last_token_ = std::max(last_token_, reply->token);
    }
  }

  LockingProtocol& backend_;
  const HistoryOptions& options_;
  const std::vector<Party>& parties_;
  const int number_;
  std::atomic<uint64_t>& stamp_;
  Meeting& meeting_;
  std::mt19937_64 random_;
  std::vector<LeaseHint> hints_;
  FencingToken last_token_ = 0;
  int rounds_ = 0;
  History history_;
};

}  // namespace

std::string Operation::ToString() const {
  std::string text =
      absl::StrCat("[", invoked, ", ", returned == kNever ? "-" : absl::StrCat(returned),
                   "] thread ", client, ": ");
  switch (kind) {
    case Kind::kObtain:
      absl::StrAppend(&text, "obtain ", Name(acquisition), " of '", owner, "' priority ", priority,
                      " lease ", absl::FormatDuration(lease), preemptible ? "" : " not preemptible",
                      reserve_below ? absl::StrCat(" below ", *reserve_below) : "",
                      grace ? absl::StrCat(" grace ", absl::FormatDuration(*grace)) : "");
      break;
    case Kind::kRelease:
      absl::StrAppend(&text, "release ", Name(acquisition));
      break;
    case Kind::kExtend:
      absl::StrAppend(&text, "extend ", Name(acquisition), " ", absl::FormatDuration(lease));
      break;
    case Kind::kConfirm:
      absl::StrAppend(&text, "confirm ", Name(acquisition), " ", token);
      break;
    case Kind::kInspect:
      absl::StrAppend(&text, "inspect");
      break;
  }
  return absl::StrCat(text, " -> ", std::visit([](const auto& a) { return Words(a); }, answer));
}

std::string CheckLinearizable(const History& history) {
  std::map<std::string_view, std::vector<const Operation*>> by_resource;
  for (const Operation& step : history) by_resource[step.resource].push_back(&step);
  for (const auto& [resource, steps] : by_resource) {
    if (!Searcher(steps).Run().found) return Explain(resource, steps);
  }
  return "";
}

History RecordHistory(const std::vector<LockingProtocol*>& clients, const HistoryOptions& options) {
  std::mt19937_64 random(options.seed);
  const auto below = [&random](size_t n) { return random() % n; };
  std::vector<Party> parties;
  constexpr std::string_view kOwners[] = {"", "", "ann", "bob"};
  for (int i = 0; i < 3 * options.resources; ++i) {
    parties.push_back(
        {.resource = absl::StrCat(options.name_prefix, options.seed, "/", i % options.resources),
         .owner = std::string(kOwners[below(4)]),
         .priority = static_cast<Priority>(below(3))});
  }
  std::atomic<uint64_t> stamp{1};
  Meeting meeting;
  std::vector<Client> all;
  all.reserve(static_cast<size_t>(options.threads));
  for (int i = 0; i < options.threads; ++i) {
    all.emplace_back(*clients[static_cast<size_t>(i) % clients.size()], options, parties, i, stamp,
                     meeting);
  }
  std::vector<std::thread> threads;
  for (Client& client : all) {
    threads.emplace_back([&client] { client.Go(); });
  }
  for (std::thread& thread : threads) thread.join();
  History history;
  for (Client& client : all) {
    history.insert(history.end(), client.history().begin(), client.history().end());
  }
  return history;
}

}  // namespace latchkey
