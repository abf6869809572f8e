#include "latchkey/backends/quorum/quorum_backend.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/core/base/blocked_thread.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/protocol/quorum_member.h"

namespace latchkey {
namespace {

using Action = absl::AnyInvocable<void()>;
using Actions = std::vector<Action>;

void RunAll(Actions actions) {
  for (Action& action : actions) action();
}

// Nothing was done, and asking again is of no use.
bool IsRefusal(const absl::Status& error) {
  return !MayHaveBeenDone(error) && ReasonOf(error) != Reason::kBackendUnavailable;
}

// What one server last said about one attempt.
enum class Vote { kNone, kAsked, kGranted, kReserved, kDenied, kUnavailable, kUnknown };

// The requests under one id on one server that have not left yet: some thread is about to make
// them. A release follows the last of them, since it would find nothing before. Under the attempt's
// mutex.
struct Departures {
  uint64_t requests = 0;
  std::vector<uint64_t> open = {};  // Those that have not left.
  Action release = nullptr;

  uint64_t Begin() {
    open.push_back(++requests);
    return requests;
  }
  // The request was made, or has been answered. Returns what follows.
  Action End(uint64_t request) {
    if (std::erase(open, request) == 0 || !open.empty()) return nullptr;
    return std::exchange(release, nullptr);
  }
};

struct Node {
  // This attempt's id on this server. A new one after each release, since an id is never used again
  // after its release: the release may arrive late, or be repeated.
  AcquisitionId id = AcquisitionId::Next();
  Vote vote = Vote::kNone;
  bool own = false;        // This attempt's id obtained the hold here,
  bool reentered = false;  // or entered a hold of another attempt of its owner.
  bool again = false;      // The last answer was of the very hold that we knew here.
  bool had = false;        // kAsked: granted until then. It is asked again, not lost.
  bool sent = false;       // kAsked: the request has left, or is about to.
  // What was asked under this id before the last request, and that one did not settle: there may be
  // something of it.
  bool unsettled = false;
  std::shared_ptr<Departures> departures = std::make_shared<Departures>();  // Of this id.

  // Of the ids before this one, which were dropped. What is said of this one says nothing of them.
  size_t releasing = 0;  // Their releases that are not answered yet.
  // Releases failed, and until then a lease may last that was granted under such an id.
  absl::Time left_until = absl::InfinitePast();
  std::string left_why = {};

  // Of a hold: this server has it, and no token up to the holder's will be given there again. No
  // other server counts.
  bool confirmed = false;
  bool returning = false;  // Of a hold: it is asked to grant it again, or to confirm its token.
  bool wanted = false;     // Of a hold: refused to extend it, since somebody waits for it.
  FencingToken token = 0;
  absl::Time deadline = absl::InfinitePast();  // If it has granted it, by our clock.
  // kGranted: the server has lost its data, and nothing has made up for its fence yet.
  bool fence_lost = false;
  // Of this round: counts all the same if the fences of a majority of others come after it.
  bool vouched = false;
  bool being_read = false;      // Asked for its fence,
  bool read = false;            // and it has answered.
  FencingToken confirming = 0;  // Asked to confirm this.
  // A reservation of ours may stand here until then, whatever was said since.
  absl::Time reserved_until = absl::InfinitePast();
  ObtainReply reply = {};   // kReserved, kDenied.
  absl::Status error = {};  // kUnavailable, kUnknown.
  LeaseHint hint = 0;

  // Events since the last Obtain.
  bool yielding = false;  // To a holder.
  absl::Time yielding_since = absl::InfinitePast();
  bool signalled = false;  // To a waiter: free for it.
  bool lost = false;       // To a holder: its hold ended there.
  Subscription subscription = {};
  // The latest subscription; events of those before it say nothing any more. (The id stays the same
  // when the server grants the hold again.)
  uint64_t subscribed = 0;

  bool CountsFor(absl::Time now) const { return confirmed && !lost && deadline > now; }
  // Somebody waits for the hold that this server has, as far as it is known.
  bool ReportsSuccessor(absl::Time now) const { return deadline > now && (wanted || yielding); }
  // All that was granted here is released; the watch, if any, goes on.
  void BeginAnew() {
    id = AcquisitionId::Next();
    vote = Vote::kNone;
    own = confirmed = returning = wanted = unsettled = being_read = false;
    departures = std::make_shared<Departures>();
    token = confirming = 0;
    deadline = reserved_until = absl::InfinitePast();
    hint = 0;
    yielding = signalled = lost = false;
  }
  // The server knows nothing of this id: it has said so.
  void HasNothing(ObtainReply said = {}) {
    vote = Vote::kDenied;
    reply = std::move(said);
    confirmed = unsettled = false;
  }
  // The last request failed.
  void Failed(const absl::Status& why) {
    vote = MayHaveBeenDone(why) ? Vote::kUnknown : Vote::kUnavailable;
    error = why;
  }
  bool MayHaveLeft(absl::Time now) const { return releasing > 0 || left_until > now; }
  // There may be something to give back.
  bool MayHave() const {
    return unsettled || returning || being_read || vote == Vote::kGranted ||
           vote == Vote::kReserved || vote == Vote::kUnknown || (vote == Vote::kAsked && sent);
  }
};

struct Round;
class Quorum;

// One acquisition of the caller, with all that became of it on the servers. Its steps run one after
// another; each is over when it is decided.
struct Attempt {
  Attempt(size_t servers, AcquisitionId caller, std::string resource)
      : caller(caller), resource(std::move(resource)), nodes(servers) {}

  const AcquisitionId caller;  // By which the caller names it.
  const std::string resource;
  // Calls that are about to begin something with it. Grows under the quorum's mutex.
  std::atomic<int> calls{0};

  absl::Mutex mutex;
  std::vector<Node> nodes ABSL_GUARDED_BY(mutex);
  bool busy ABSL_GUARDED_BY(mutex) = false;
  std::deque<Action> steps ABSL_GUARDED_BY(mutex);
  bool holds ABSL_GUARDED_BY(mutex) = false;      // Obtained by a majority, and not released.
  FencingToken token ABSL_GUARDED_BY(mutex) = 0;  // If it holds.
  // The latest Obtain; answers to those before it say nothing any more. If it holds, by this one.
  std::shared_ptr<Round> round ABSL_GUARDED_BY(mutex);

  // A request that has failed, and is told what it ends with when the releases of all that was
  // dropped have been answered.
  Action when_given_back ABSL_GUARDED_BY(mutex) = nullptr;

  // The caller's watch.
  struct Watching {
    uint64_t number = 0;
    WatchRole role = WatchRole::kWaiter;
    std::string owner = {};
    Priority priority = 0;
    absl::Duration reservation_lease = {};
    bool asks_next = false;  // Of the ids that the servers know now.
    WatchCallback on_event = nullptr;
    std::optional<WatchEvent> told_to_yield = {};
    bool told_end = false;
    bool telling = false;  // Some thread runs on_event: one event at a time.
    std::deque<WatchEvent> events = {};
  };
  std::shared_ptr<Watching> watching ABSL_GUARDED_BY(mutex);
  uint64_t watches ABSL_GUARDED_BY(mutex) = 0;
};

// One Obtain under way, or the one by which an attempt holds. Apart from the first three, which are
// constant, under the attempt's mutex.
struct Round {
  std::string owner;
  ObtainRequest request;  // Its views point into `owner` and the attempt.
  absl::Time start;
  ObtainCallback done;
  bool decided = false;
  bool failed = false;
  // Reading the fence back, and the smallest token that is above all that was read.
  bool reading = false;
  FencingToken least_token = 0;
};

// One server alone: every token is its own, so there is nothing to agree on, and it need not be
// made for it.
class OnlyServer final : public QuorumMember {
 public:
  explicit OnlyServer(LockingProtocol& server) : server_(server) {}

  void ObtainAsMember(const ObtainRequest& request, MemberCallback done) override {
    server_.Obtain(request, [done = std::move(done)](absl::StatusOr<ObtainReply> reply) mutable {
      if (!reply.ok()) return done(std::move(reply).status());
      done(MemberReply{.reply = *std::move(reply)});
    });
  }
  void Confirm(const HoldRef&, FencingToken, ConfirmCallback done) override {
    done(MakeError(Reason::kNotSupported, "a quorum of one has nothing to confirm"));
  }

 private:
  LockingProtocol& server_;
};

class Quorum : public std::enable_shared_from_this<Quorum> {
 public:
  Quorum(std::vector<std::shared_ptr<LockingProtocol>> servers, Clock& clock,
         const BackendCapabilities& common)
      : servers_(std::move(servers)),
        only_server_(*servers_.front()),
        members_(MembersOf(servers_, only_server_)),
        clock_(clock),
        max_lease_(common.max_lease),
        margin_(common.lease_margin),
        majority_(servers_.size() / 2 + 1) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done);
  void Release(const HoldRef& hold, ReleaseCallback done);
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done);
  Subscription Watch(const WatchRequest& request, WatchCallback on_event);

 private:
  using AttemptPtr = std::shared_ptr<Attempt>;
  using RoundPtr = std::shared_ptr<Round>;

  static std::vector<QuorumMember*> MembersOf(
      const std::vector<std::shared_ptr<LockingProtocol>>& servers, OnlyServer& only_server) {
    if (servers.size() == 1) return {&only_server};
    std::vector<QuorumMember*> members;
    for (const auto& server : servers) members.push_back(server->quorum_member());
    return members;
  }

  size_t size() const { return servers_.size(); }

  AttemptPtr Find(AcquisitionId id) ABSL_LOCKS_EXCLUDED(mutex_);
  // An attempt that a call works on, and that nobody forgets meanwhile.
  class InUse {
   public:
    InUse(std::shared_ptr<Quorum> quorum, AttemptPtr attempt)
        : quorum_(std::move(quorum)), attempt_(std::move(attempt)) {}
    InUse(const InUse&) = delete;
    InUse& operator=(const InUse&) = delete;
    ~InUse() {
      attempt_->calls.fetch_sub(1);
      quorum_->ForgetIfIdle(attempt_->caller, attempt_);
    }
    const AttemptPtr& attempt() const { return attempt_; }

   private:
    const std::shared_ptr<Quorum> quorum_;
    const AttemptPtr attempt_;
  };
  InUse FindOrAdd(AcquisitionId id, std::string_view resource) ABSL_LOCKS_EXCLUDED(mutex_);
  // Forgets an attempt of which nothing is left on any server.
  void ForgetIfIdle(AcquisitionId id, const AttemptPtr& attempt) ABSL_LOCKS_EXCLUDED(mutex_);

  bool IsIdle(Attempt& attempt) const;

  // Steps of one attempt, one at a time.
  void Enter(const AttemptPtr& attempt, Action step);
  void Leave(const AttemptPtr& attempt);

  void BeginRound(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller);
  void HasLeft(const AttemptPtr& attempt, Departures& departures, uint64_t request)
      ABSL_LOCKS_EXCLUDED(attempt->mutex);
  // Asks one server. `start`: its lease is counted from here. `read`: it is asked for its fence.
  void Ask(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller, size_t i,
           absl::Time start, bool read);
  void OnObtained(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller, size_t i,
                  AcquisitionId id, absl::Time start, bool read,
                  absl::StatusOr<MemberReply> answer);
  // Asks those servers for their fences that have not lost theirs.
  void ReadFences(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller,
                  Actions& actions) ABSL_EXCLUSIVE_LOCKS_REQUIRED(attempt->mutex);
  // Decides if it can; else asks for what is missing.
  void Advance(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller,
               Actions& actions) ABSL_EXCLUSIVE_LOCKS_REQUIRED(attempt->mutex);
  // Gives everything back. A failure that did nothing is told once it is sure that nothing is left.
  void Fail(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller,
            absl::StatusOr<ObtainReply> outcome, Actions& actions)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(attempt->mutex);
  void Decide(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller,
              absl::StatusOr<ObtainReply> outcome, Actions& actions)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(attempt->mutex);
  void Answer(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller,
              absl::StatusOr<ObtainReply> outcome) ABSL_LOCKS_EXCLUDED(attempt->mutex);
  // Releases the id that this server knows, behind every request for it, and takes a new one.
  void GiveBack(const AttemptPtr& attempt, size_t i, Actions& actions, ReleaseCallback done)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(attempt->mutex);
  // The same while the attempt goes on, which remembers what was not given back.
  void Drop(const AttemptPtr& attempt, size_t i, Actions& actions)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(attempt->mutex);
  void OnDropped(const AttemptPtr& attempt, size_t i, const absl::Status& released)
      ABSL_LOCKS_EXCLUDED(attempt->mutex);
  // Is a release of what was dropped not answered yet?
  static bool IsGivingBack(const Attempt& attempt) ABSL_SHARED_LOCKS_REQUIRED(attempt.mutex);
  // For messages: which servers may have something of this attempt. Empty: none.
  std::string NotGivenBack(const Attempt& attempt) const ABSL_SHARED_LOCKS_REQUIRED(attempt.mutex);
  // Gives back what a minority still has of a hold that was lost: it is worth nothing. But the
  // holder may have looked just before, and have no majority without it, so that it stays for the
  // margin.
  void DropRest(const AttemptPtr& attempt) ABSL_LOCKS_EXCLUDED(attempt->mutex);
  std::string Votes(const Attempt& attempt) const ABSL_SHARED_LOCKS_REQUIRED(attempt.mutex);
  // The error if no server did anything and so many of them refuse: without those there may be a
  // majority, another time.
  absl::Status NothingDone(size_t refused, std::string_view message) const {
    return refused > size() - majority_ ? BackendRefusedError(message)
                                        : BackendUnavailableError(message);
  }

  // Servers that a hold lacks. A renewal asks those again that answer and do not have it.
  bool IsLive(const Attempt& attempt, absl::Time now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(attempt.mutex);
  bool MayReturn(const Attempt& attempt, size_t i, absl::Time now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(attempt.mutex);
  // Until `until`, when the hold ends unless it is renewed again.
  void Return(const AttemptPtr& attempt, AcquisitionId caller, size_t i, absl::Time until,
              Actions& actions) ABSL_EXCLUSIVE_LOCKS_REQUIRED(attempt->mutex);
  void OnReturned(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller, size_t i,
                  AcquisitionId id, absl::Time sent, absl::StatusOr<MemberReply> answer);
  // Asks a server that has the hold to confirm its token; `done` hears whether the server counts
  // from now on, or that it does not have the hold.
  void ConfirmAgain(const AttemptPtr& attempt, AcquisitionId caller, size_t i, Actions& actions,
                    absl::AnyInvocable<void(const absl::StatusOr<ConfirmOutcome>&)> done)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(attempt->mutex);
  // A holder's watch on a server that it lacked so far.
  void WatchAgain(const AttemptPtr& attempt, size_t i, Actions& actions)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(attempt->mutex);

  struct Renewal;
  void OnExtended(const AttemptPtr& attempt, const std::shared_ptr<Renewal>& renewal, size_t i,
                  AcquisitionId id, absl::StatusOr<ExtendReply> reply);
  // Says what it can by now, and goes on with the servers that lack the hold.
  void Conclude(const AttemptPtr& attempt, const std::shared_ptr<Renewal>& renewal,
                Actions& actions) ABSL_EXCLUSIVE_LOCKS_REQUIRED(attempt->mutex);

  void WatchServer(const AttemptPtr& attempt, size_t i);
  void OnEvent(const AttemptPtr& attempt, size_t i, uint64_t watch, const WatchEvent& event);
  void Tell(const AttemptPtr& attempt, const std::shared_ptr<Attempt::Watching>& watching);

  // Constant after construction.
  const std::vector<std::shared_ptr<LockingProtocol>> servers_;
  OnlyServer only_server_;                    // Used only if there is one.
  const std::vector<QuorumMember*> members_;  // Of each server.
  Clock& clock_;
  const absl::Duration max_lease_;
  // How long a holder may act on what it saw when it last looked (`lease_margin`).
  const absl::Duration margin_;
  const size_t majority_;

  absl::Mutex mutex_;
  absl::flat_hash_map<AcquisitionId, AttemptPtr> attempts_ ABSL_GUARDED_BY(mutex_);
  size_t sweep_at_ ABSL_GUARDED_BY(mutex_) = 1024;
};

// For messages: "; server 3: why", of the first few and no longer than it takes to see what is
// wrong.
void AppendServer(std::string& text, size_t i, std::string_view what) {
  constexpr size_t kMostText = 2000;
  constexpr size_t kMostOfOne = 400;
  if (text.size() > kMostText) return;
  absl::StrAppend(&text, "; server ", i + 1, ": ", what.substr(0, kMostOfOne),
                  what.size() > kMostOfOne ? "..." : "");
  if (text.size() > kMostText) absl::StrAppend(&text, "; ...");
}

// The n-th smallest (from 1) of some values; infinite if there are fewer.
absl::Duration NthSmallest(std::vector<absl::Duration> values, size_t n) {
  if (n == 0) return absl::ZeroDuration();
  if (values.size() < n) return absl::InfiniteDuration();
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(n) - 1,
                   values.end());
  return values[n - 1];
}

// The n-th largest (from 1).
absl::Duration NthLargest(std::vector<absl::Duration> values, size_t n) {
  std::sort(values.begin(), values.end(), std::greater<>());
  return values[n - 1];
}

// ---- Attempts ----------------------------------------------------------------------------------

std::shared_ptr<Attempt> Quorum::Find(AcquisitionId id) {
  absl::MutexLock lock(&mutex_);
  const auto found = attempts_.find(id);
  return found == attempts_.end() ? nullptr : found->second;
}

Quorum::InUse Quorum::FindOrAdd(AcquisitionId id, std::string_view resource) {
  absl::MutexLock lock(&mutex_);
  // Reservations that nobody withdrew run out without a word.
  if (attempts_.size() >= sweep_at_) {
    absl::erase_if(attempts_, [this](const auto& entry) { return IsIdle(*entry.second); });
    sweep_at_ = 2 * attempts_.size() + 1024;
  }
  AttemptPtr& attempt = attempts_[id];
  if (attempt == nullptr) attempt = std::make_shared<Attempt>(size(), id, std::string(resource));
  attempt->calls.fetch_add(1);
  return InUse(shared_from_this(), attempt);
}

void Quorum::ForgetIfIdle(AcquisitionId id, const AttemptPtr& attempt) {
  absl::MutexLock map_lock(&mutex_);
  const auto found = attempts_.find(id);
  if (found == attempts_.end() || found->second != attempt) return;
  if (IsIdle(*attempt)) attempts_.erase(found);
}

bool Quorum::IsIdle(Attempt& attempt) const {
  absl::MutexLock lock(&attempt.mutex);
  if (attempt.calls.load() > 0 || attempt.busy || attempt.watching != nullptr) return false;
  const absl::Time now = clock_.Now();
  for (const Node& node : attempt.nodes) {
    if (node.MayHave() || node.reserved_until > now || node.MayHaveLeft(now)) return false;
  }
  return true;
}

void Quorum::Enter(const AttemptPtr& attempt, Action step) {
  {
    absl::MutexLock lock(&attempt->mutex);
    if (attempt->busy) {
      attempt->steps.push_back(std::move(step));
      return;
    }
    attempt->busy = true;
  }
  step();
}

void Quorum::Leave(const AttemptPtr& attempt) {
  Action next;
  {
    absl::MutexLock lock(&attempt->mutex);
    if (attempt->steps.empty()) {
      attempt->busy = false;
      return;
    }
    next = std::move(attempt->steps.front());
    attempt->steps.pop_front();
  }
  next();
}

// ---- Obtain ------------------------------------------------------------------------------------

void Quorum::Obtain(const ObtainRequest& request, ObtainCallback done) {
  const InUse in_use = FindOrAdd(request.acquisition, request.resource);
  const AttemptPtr& attempt = in_use.attempt();
  auto round = std::make_shared<Round>();
  round->owner = std::string(request.owner);
  round->request = request;
  round->request.resource = ResourceName(attempt->resource);
  round->request.owner = round->owner;
  round->done = std::move(done);
  // Counted from here: the caller counts from before it called.
  round->start = clock_.Now();
  const AcquisitionId caller = request.acquisition;
  Enter(attempt, [self = shared_from_this(), attempt, round, caller] {
    self->BeginRound(attempt, round, caller);
  });
}

void Quorum::BeginRound(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller) {
  Actions extensions;
  {
    absl::MutexLock lock(&attempt->mutex);
    attempt->round = round;
    const absl::Time now = clock_.Now();
    for (size_t i = 0; i < size(); ++i) {
      Node& node = attempt->nodes[i];
      // A candidate that waits for the rest of a majority must not lose what it has meanwhile. What
      // is no part of one was given back when the last round was decided.
      if (!attempt->holds && node.vote == Vote::kGranted && node.own && node.deadline > now) {
        extensions.push_back([server = servers_[i], attempt, id = node.id, hint = node.hint,
                              lease = round->request.lease] {
          // The Obtain behind it tells what became of this.
          server->Extend({.resource = attempt->resource, .acquisition = id, .hint = hint}, lease,
                         [](absl::StatusOr<ExtendReply>) {});
        });
      }
      node.had = node.vote == Vote::kGranted;
      node.unsettled = node.MayHave();
      node.vote = Vote::kAsked;
      node.sent = false;
      node.returning = false;  // Asked anew, under the same id.
      node.signalled = false;
      node.confirming = 0;
      node.vouched = false;
      node.being_read = false;
      node.read = false;
    }
  }
  RunAll(std::move(extensions));
  for (size_t i = 0; i < size(); ++i) {
    Ask(attempt, round, caller, i, round->start, /*read=*/false);
  }
}

void Quorum::Ask(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller, size_t i,
                 absl::Time start, bool read) {
  ObtainRequest request = round->request;
  std::shared_ptr<Departures> departures;
  uint64_t departure;
  {
    absl::MutexLock lock(&attempt->mutex);
    // A server that was not asked yet need not be asked any more.
    if (round->failed) {
      if (attempt->round == round && !read) attempt->nodes[i].vote = Vote::kNone;
      return;
    }
    if (read && round->decided) return;
    request.acquisition = attempt->nodes[i].id;
    attempt->nodes[i].sent = true;
    departures = attempt->nodes[i].departures;
    departure = departures->Begin();
  }
  {
    const BlockedThread::OnBehalfOf on_behalf(caller);
    members_[i]->ObtainAsMember(
        request, [self = shared_from_this(), attempt, round, caller, i, id = request.acquisition,
                  start, read, departures, departure](absl::StatusOr<MemberReply> answer) {
          self->HasLeft(attempt, *departures, departure);
          self->OnObtained(attempt, round, caller, i, id, start, read, std::move(answer));
        });
  }
  HasLeft(attempt, *departures, departure);
}

void Quorum::HasLeft(const AttemptPtr& attempt, Departures& departures, uint64_t request) {
  Action release;
  {
    absl::MutexLock lock(&attempt->mutex);
    release = departures.End(request);
  }
  if (release != nullptr) release();
}

void Quorum::ReadFences(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller,
                        Actions& actions) {
  round->reading = true;
  for (size_t i = 0; i < size(); ++i) {
    Node& node = attempt->nodes[i];
    if (node.vote == Vote::kGranted && node.fence_lost) {
      node.vouched = true;
    } else if (node.vote != Vote::kUnavailable && node.vote != Vote::kUnknown) {
      // Whatever it said before: an attempt from before the loss may have confirmed a larger token
      // there since. Obtain is idempotent, so it may be asked again.
      node.being_read = true;
      actions.push_back([self = shared_from_this(), attempt, round, caller, i] {
        self->Ask(attempt, round, caller, i, self->clock_.Now(), /*read=*/true);
      });
    }
  }
}

void Quorum::OnObtained(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller,
                        size_t i, AcquisitionId id, absl::Time start, bool read,
                        absl::StatusOr<MemberReply> answer) {
  ObtainReply* const reply = answer.ok() ? &answer->reply : nullptr;
  Actions actions;
  {
    absl::MutexLock lock(&attempt->mutex);
    Node& node = attempt->nodes[i];
    // Given up meanwhile: the release is on its way behind the request.
    if (node.id != id) return;
    if (attempt->round != round) {
      // Too late to count, but not to remember whose hold it is.
      if (reply != nullptr && reply->outcome == ObtainOutcome::kObtained) {
        node.own = true;
        node.token = reply->token;
      }
      return;
    }
    // It has confirmed the token since, which is the later news.
    if (round->decided && attempt->holds && node.confirmed && node.vote == Vote::kGranted) return;
    if (read) {
      node.being_read = false;
      if (reply != nullptr) {
        const bool granted = reply->outcome == ObtainOutcome::kObtained ||
                             reply->outcome == ObtainOutcome::kReentered;
        // A backend that does not say what its fence is has not been read.
        node.read = !answer->fence_lost && (granted || answer->fence != 0);
        if (node.read) {
          round->least_token =
              std::max(round->least_token, granted ? reply->token : answer->fence + 1);
        }
      }
    }
    if (read && reply == nullptr) {
      // What it said before still stands, but it may have granted since.
      node.unsettled |= MayHaveBeenDone(answer.status());
    } else if (reply == nullptr) {
      node.Failed(answer.status());
    } else {
      node.unsettled = false;
      switch (reply->outcome) {
        case ObtainOutcome::kObtained:
        case ObtainOutcome::kReentered:
          node.vote = Vote::kGranted;
          node.again = reply->outcome == ObtainOutcome::kReentered && node.token == reply->token;
          node.own = reply->outcome == ObtainOutcome::kObtained || (node.own && node.again);
          node.reentered = !node.own;
          // The hold that we knew has its token from when the fence was lost, if it was, whatever
          // the server has learnt since; and what made up for that stands.
          if (!node.again) {
            node.fence_lost = answer->fence_lost;
            node.confirmed = false;
          }
          node.reserved_until = absl::InfinitePast();
          node.token = reply->token;
          node.deadline = start + reply->remaining;
          node.hint = reply->hint;
          node.lost = false;
          node.wanted = false;
          node.yielding = false;
          break;
        case ObtainOutcome::kReserved:
          node.vote = Vote::kReserved;
          node.confirmed = false;
          node.reserved_until = clock_.Now() + round->request.reservation_lease;
          node.reply = std::move(*reply);
          break;
        case ObtainOutcome::kDenied:
          node.HasNothing(std::move(*reply));
          break;
      }
    }
    if (!round->decided) {
      Advance(attempt, round, caller, actions);
    } else if (!attempt->holds) {
      // Nothing depends on it any more.
    } else if (node.vote == Vote::kGranted) {
      // It comes after the majority. Its token counts, or else that of the hold does, from when it
      // has confirmed that.
      if (!node.confirmed && !node.fence_lost && node.token >= attempt->token) {
        node.confirmed = true;
      }
      if (node.confirmed) {
        if (!node.subscription.active()) WatchAgain(attempt, i, actions);
      } else if (!node.returning && IsLive(*attempt, clock_.Now())) {
        ConfirmAgain(attempt, caller, i, actions, nullptr);
      }
    } else if (node.vote == Vote::kReserved || (node.vote == Vote::kUnknown && !node.returning)) {
      // A majority is ours already: a reservation would only disturb somebody.
      Drop(attempt, i, actions);
    }
  }
  RunAll(std::move(actions));
}

void Quorum::Advance(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller,
                     Actions& actions) {
  if (round->decided) return;
  const absl::Time now = clock_.Now();
  // What a server that lost its data grants counts once a majority of others was read.
  size_t read = 0;
  size_t being_read = 0;
  for (const Node& node : attempt->nodes) {
    read += node.read ? 1 : 0;
    being_read += node.being_read ? 1 : 0;
  }
  const auto counts = [this, now, read](const Node& node) {
    return node.vote == Vote::kGranted && node.deadline > now &&
           (!node.fence_lost || (node.vouched && read >= majority_));
  };
  size_t granted = 0;
  size_t fence_lost = 0;
  size_t reserved = 0;
  size_t denied = 0;
  size_t asked = 0;
  FencingToken token = read >= majority_ ? round->least_token : 0;
  for (const Node& node : attempt->nodes) {
    switch (node.vote) {
      case Vote::kGranted:
        if (counts(node)) {
          ++granted;
          token = std::max(token, node.token);
        } else if (node.deadline > now) {
          ++fence_lost;
        } else {
          ++denied;
        }
        break;
      case Vote::kReserved:
        ++reserved;
        break;
      case Vote::kDenied:
        ++denied;
        break;
      case Vote::kAsked:
        ++asked;
        break;
      default:
        break;
    }
  }

  if (granted < majority_ && granted + fence_lost >= majority_) {
    if (!round->reading) return ReadFences(attempt, round, caller, actions);
    if (read + being_read >= majority_) return;
    // Too few others can be read, so these are worth nothing for now.
    fence_lost = 0;
  }
  const size_t ours = granted + fence_lost;

  if (granted >= majority_ && attempt->holds) {
    // The holder repeats itself: its token stands where it never lost the hold.
    std::vector<absl::Duration> left;
    for (const Node& node : attempt->nodes) {
      if (node.vote == Vote::kGranted && node.deadline > now && node.again &&
          node.token >= attempt->token) {
        left.push_back(node.deadline - round->start);
      }
    }
    if (left.size() >= majority_) {
      Decide(attempt, round, caller,
             ObtainReply{.outcome = ObtainOutcome::kReentered,
                         .token = attempt->token,
                         .remaining = NthLargest(std::move(left), majority_)},
             actions);
      return;
    }
    if (left.size() + asked >= majority_) return;
  }
  if (granted >= majority_) {
    std::vector<absl::Duration> left;
    size_t confirming = 0;
    bool reentered = false;
    for (const Node& node : attempt->nodes) {
      if (!counts(node)) continue;
      if (node.token == token) {
        left.push_back(node.deadline - round->start);
        reentered |= node.reentered;
      } else if (node.confirming == token) {
        ++confirming;
      }
    }
    if (left.size() >= majority_) {
      attempt->holds = true;
      attempt->token = token;
      if (attempt->watching != nullptr) {
        attempt->watching->told_end = false;
        attempt->watching->told_to_yield.reset();
      }
      for (size_t i = 0; i < size(); ++i) {
        Node& node = attempt->nodes[i];
        if (node.vote == Vote::kReserved || node.vote == Vote::kUnknown) {
          Drop(attempt, i, actions);
        } else if (counts(node) && node.token == token) {
          node.fence_lost = false;  // No more: this token was written there.
        }
        node.confirmed = counts(node) && node.token == token;
      }
      Decide(
          attempt, round, caller,
          ObtainReply{.outcome = reentered ? ObtainOutcome::kReentered : ObtainOutcome::kObtained,
                      .token = token,
                      .remaining = NthLargest(std::move(left), majority_)},
          actions);
      return;
    }
    // A second round, only where the servers' fences disagree.
    for (size_t i = 0; i < size(); ++i) {
      Node& node = attempt->nodes[i];
      if (!counts(node) || node.token == token || node.confirming >= token) continue;
      node.confirming = token;
      ++confirming;
      actions.push_back([self = shared_from_this(), attempt, round, caller, i, token, id = node.id,
                         hint = node.hint] {
        const BlockedThread::OnBehalfOf on_behalf(caller);
        self->members_[i]->Confirm(
            {.resource = attempt->resource, .acquisition = id, .hint = hint}, token,
            [self, attempt, round, caller, i, token, id](absl::StatusOr<ConfirmReply> reply) {
              Actions next;
              {
                absl::MutexLock lock(&attempt->mutex);
                Node& node = attempt->nodes[i];
                if (node.id != id) return;
                // Nothing is under way any more. An answer to a reading that comes after this one
                // may show the old token again; then it is confirmed anew.
                if (node.confirming == token) node.confirming = 0;
                if (!reply.ok()) {
                  node.vote = Vote::kUnknown;
                  node.error = reply.status();
                } else if (reply->outcome == ConfirmOutcome::kNotHeld) {
                  node.HasNothing();
                } else {
                  // Confirmed, or its own is larger: then that one is proposed.
                  node.token = std::max(node.token, reply->token);
                  if (round->decided && attempt->round == round && attempt->holds &&
                      attempt->token <= token) {
                    // Too late for the majority.
                    node.fence_lost = false;
                    node.confirmed = true;
                    self->WatchAgain(attempt, i, next);
                  }
                }
                self->Advance(attempt, round, caller, next);
              }
              RunAll(std::move(next));
            });
      });
    }
    if (left.size() + confirming + asked >= majority_) return;
  } else if (ours + asked >= majority_) {
    return;
  }

  if (ours < majority_ && ours + reserved >= majority_) {
    // What is missing is reserved. Keep it all, and wait for the holders to leave.
    attempt->holds = false;
    ObtainReply outcome{.outcome = ObtainOutcome::kReserved};
    std::vector<absl::Duration> left;
    std::vector<absl::Duration> grace;
    bool first = true;
    for (const Node& node : attempt->nodes) {
      if (node.vote != Vote::kReserved) continue;
      left.push_back(node.reply.remaining);
      grace.push_back(node.reply.grace_remaining);
      if (std::exchange(first, false) || node.reply.other_priority > outcome.other_priority) {
        outcome.other_owner = node.reply.other_owner;
        outcome.other_priority = node.reply.other_priority;
      }
    }
    outcome.remaining = NthSmallest(std::move(left), majority_ - ours);
    outcome.grace_remaining = NthSmallest(std::move(grace), majority_ - ours);
    Decide(attempt, round, caller, std::move(outcome), actions);
    return;
  }
  if (ours < majority_ && ours + reserved + asked >= majority_) return;

  // Not this time. Who split the vote gives it back, and tries again after a random pause.
  if (ours + reserved + denied + asked >= majority_) {
    if (ours + reserved + denied < majority_) return;
    ObtainReply outcome{.outcome = ObtainOutcome::kDenied};
    std::vector<absl::Duration> left;
    // Whoever is in the way on most of them: one that has just left may not have left all yet.
    absl::flat_hash_map<std::pair<std::string, Priority>, int> in_the_way;
    int most = 0;
    for (const Node& node : attempt->nodes) {
      if (node.vote == Vote::kGranted) left.push_back(absl::ZeroDuration());
      if (node.vote != Vote::kReserved && node.vote != Vote::kDenied) continue;
      left.push_back(node.reply.remaining);
      const int times = ++in_the_way[{node.reply.other_owner, node.reply.other_priority}];
      if (times <= most) continue;
      most = times;
      outcome.other_owner = node.reply.other_owner;
      outcome.other_priority = node.reply.other_priority;
    }
    outcome.remaining = NthSmallest(std::move(left), majority_);
    Fail(attempt, round, caller, std::move(outcome), actions);
    return;
  }
  bool unknown = false;
  bool under_way = false;
  size_t refused = 0;
  for (const Node& node : attempt->nodes) {
    unknown |= node.vote == Vote::kUnknown;
    under_way |= (node.vote == Vote::kAsked && node.sent) || node.being_read;
    refused += node.vote == Vote::kUnavailable && IsRefusal(node.error) ? 1 : 0;
  }
  // It fails, but whether anything was done depends on their answers.
  if (!unknown && under_way) return;
  const std::string message =
      absl::StrCat("no majority of ", majority_, " servers answers: ", Votes(*attempt));
  Fail(attempt, round, caller,
       unknown ? BackendUnknownError(message) : NothingDone(refused, message), actions);
}

bool Quorum::IsGivingBack(const Attempt& attempt) {
  return std::any_of(attempt.nodes.begin(), attempt.nodes.end(),
                     [](const Node& node) { return node.releasing > 0; });
}

std::string Quorum::NotGivenBack(const Attempt& attempt) const {
  const absl::Time now = clock_.Now();
  std::string text;
  for (size_t i = 0; i < size(); ++i) {
    const Node& node = attempt.nodes[i];
    if (node.left_until > now) {
      AppendServer(text, i, absl::StrCat("not given back: ", node.left_why));
    } else if (node.MayHave()) {
      AppendServer(text, i, "not given back yet");
    }
  }
  return text;
}

std::string Quorum::Votes(const Attempt& attempt) const {
  std::string votes;
  for (size_t i = 0; i < size(); ++i) {
    const Node& node = attempt.nodes[i];
    std::string vote;
    switch (node.vote) {
      case Vote::kNone:
        vote = "not asked";
        break;
      case Vote::kAsked:
        vote = "no answer yet";
        break;
      case Vote::kGranted:
        vote = node.fence_lost ? "granted, but it has lost its data, and too few others tell "
                                 "which tokens were given"
                               : "granted";
        break;
      case Vote::kReserved:
        vote = absl::StrCat("reserved, held by ", OwnerForMessage(node.reply.other_owner));
        break;
      case Vote::kDenied:
        vote = absl::StrCat("denied, held by ", OwnerForMessage(node.reply.other_owner));
        break;
      case Vote::kUnavailable:
      case Vote::kUnknown:
        vote = std::string(node.error.message());
        break;
    }
    AppendServer(votes, i, vote);
  }
  return votes.substr(2);
}

void Quorum::GiveBack(const AttemptPtr& attempt, size_t i, Actions& actions, ReleaseCallback done) {
  Node& node = attempt->nodes[i];
  Action release = [server = servers_[i], attempt, id = node.id, hint = node.hint,
                    done = std::move(done)]() mutable {
    server->Release({.resource = attempt->resource, .acquisition = id, .hint = hint},
                    std::move(done));
  };
  if (!node.departures->open.empty()) {
    node.departures->release = std::move(release);
  } else {
    actions.push_back(std::move(release));
  }
  node.BeginAnew();
}

void Quorum::Drop(const AttemptPtr& attempt, size_t i, Actions& actions) {
  Node& node = attempt->nodes[i];
  if (node.MayHave()) {
    ++node.releasing;
    GiveBack(attempt, i, actions,
             [self = shared_from_this(), attempt, i](absl::StatusOr<ReleaseOutcome> released) {
               self->OnDropped(attempt, i, released.status());
             });
  } else {
    GiveBack(attempt, i, actions, [](absl::StatusOr<ReleaseOutcome>) {});
  }
  // The watch was for the old id.
  if (attempt->watching != nullptr && attempt->watching->role == WatchRole::kWaiter) {
    attempt->watching->asks_next = false;
    auto old = std::make_shared<Subscription>(std::move(node.subscription));
    actions.push_back([self = shared_from_this(), attempt, i, old] {
      old->Reset();
      self->WatchServer(attempt, i);
    });
  }
}

void Quorum::OnDropped(const AttemptPtr& attempt, size_t i, const absl::Status& released) {
  Action given_back;
  {
    absl::MutexLock lock(&attempt->mutex);
    Node& node = attempt->nodes[i];
    --node.releasing;
    if (!released.ok()) {
      node.left_until = clock_.Now() + max_lease_;
      node.left_why = std::string(released.message());
    }
    if (IsGivingBack(*attempt)) return;
    given_back = std::exchange(attempt->when_given_back, nullptr);
  }
  if (given_back != nullptr) given_back();
  ForgetIfIdle(attempt->caller, attempt);
}

void Quorum::DropRest(const AttemptPtr& attempt) {
  std::vector<AcquisitionId> ids;
  {
    absl::MutexLock lock(&attempt->mutex);
    for (const Node& node : attempt->nodes) {
      ids.push_back(node.MayHave() ? node.id : AcquisitionId());
    }
  }
  const auto drop = [weak = weak_from_this(), attempt, ids] {
    const auto self = weak.lock();
    if (self == nullptr) return;
    Actions actions;
    {
      absl::MutexLock lock(&attempt->mutex);
      for (size_t i = 0; i < ids.size(); ++i) {
        // Unless it was released meanwhile, or is held anew.
        if (!attempt->holds && attempt->nodes[i].id == ids[i]) self->Drop(attempt, i, actions);
      }
    }
    RunAll(std::move(actions));
  };
  if (margin_ > absl::ZeroDuration()) {
    clock_.RunAt(clock_.Now() + margin_, drop);
  } else {
    drop();
  }
}

void Quorum::Fail(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller,
                  absl::StatusOr<ObtainReply> outcome, Actions& actions) {
  round->failed = true;
  round->decided = true;
  attempt->holds = false;
  for (size_t i = 0; i < size(); ++i) {
    const Node& node = attempt->nodes[i];
    // What it has from before stays if it could not be asked, so that a candidate that waits goes
    // on from there; one that ends with this error releases it.
    const bool not_reached =
        node.vote == Vote::kUnavailable || (node.vote == Vote::kAsked && !node.sent);
    if (!outcome.ok() && not_reached && node.unsettled) continue;
    // One that was not asked has nothing of ours. But it wakes one waiter at a time, and may have
    // woken this one: it has to hear that we do not ask, so that it wakes another.
    if (node.MayHave() || node.vote == Vote::kAsked) Drop(attempt, i, actions);
  }
  if (outcome.ok() || MayHaveBeenDone(outcome.status())) {
    Decide(attempt, round, caller, std::move(outcome), actions);
    return;
  }
  Action tell = [self = shared_from_this(), attempt, round, caller, why = outcome.status()] {
    std::string left;
    {
      absl::MutexLock lock(&attempt->mutex);
      left = self->NotGivenBack(*attempt);
    }
    self->Answer(attempt, round, caller,
                 left.empty() ? why : BackendUnknownError(absl::StrCat(why.message(), left)));
  };
  if (IsGivingBack(*attempt)) {
    attempt->when_given_back = std::move(tell);
  } else {
    actions.push_back(std::move(tell));
  }
}

void Quorum::Decide(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller,
                    absl::StatusOr<ObtainReply> outcome, Actions& actions) {
  round->decided = true;
  actions.push_back(
      [self = shared_from_this(), attempt, round, caller, outcome = std::move(outcome)]() mutable {
        self->Answer(attempt, round, caller, std::move(outcome));
      });
}

void Quorum::Answer(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller,
                    absl::StatusOr<ObtainReply> outcome) {
  ObtainCallback done = std::move(round->done);
  Leave(attempt);
  if (!outcome.ok() || outcome->outcome == ObtainOutcome::kDenied) ForgetIfIdle(caller, attempt);
  done(std::move(outcome));
}

// ---- Release and Extend ------------------------------------------------------------------------

void Quorum::Release(const HoldRef& hold, ReleaseCallback done) {
  const AttemptPtr attempt = Find(hold.acquisition);
  if (attempt == nullptr) return done(ReleaseOutcome::kNotHeld);
  struct Count {
    absl::Mutex mutex;
    ReleaseCallback done ABSL_GUARDED_BY(mutex);
    size_t released ABSL_GUARDED_BY(mutex) = 0;
    size_t withdrawn ABSL_GUARDED_BY(mutex) = 0;
    size_t answered ABSL_GUARDED_BY(mutex) = 0;
    size_t failed ABSL_GUARDED_BY(mutex) = 0;
    size_t refused ABSL_GUARDED_BY(mutex) = 0;  // Of these.
    bool unknown ABSL_GUARDED_BY(mutex) = false;
    std::string failures ABSL_GUARDED_BY(mutex);
  };
  auto count = std::make_shared<Count>();
  {
    absl::MutexLock lock(&count->mutex);
    count->done = std::move(done);
  }
  Enter(attempt, [self = shared_from_this(), attempt, count, caller = hold.acquisition] {
    bool held;
    {
      absl::MutexLock lock(&attempt->mutex);
      held = std::exchange(attempt->holds, false);
    }
    // The servers repeat it themselves where it fails. Nothing of ours comes after it.
    Actions releases;
    for (size_t i = 0; i < self->size(); ++i) {
      absl::MutexLock lock(&attempt->mutex);
      attempt->nodes[i].left_until = absl::InfinitePast();
      self->GiveBack(
          attempt, i, releases, [self, count, held, i](absl::StatusOr<ReleaseOutcome> outcome) {
            ReleaseCallback done;
            absl::StatusOr<ReleaseOutcome> result = ReleaseOutcome::kNotHeld;
            {
              absl::MutexLock lock(&count->mutex);
              if (!outcome.ok()) {
                ++count->failed;
                count->unknown |= MayHaveBeenDone(outcome.status());
                count->refused += IsRefusal(outcome.status()) ? 1 : 0;
                AppendServer(count->failures, i, outcome.status().message());
              } else {
                ++count->answered;
                count->released += *outcome == ReleaseOutcome::kReleased ? 1 : 0;
                count->withdrawn += *outcome == ReleaseOutcome::kWithdrawn ? 1 : 0;
              }
              if (count->done == nullptr) return;
              const size_t n = self->size();
              const size_t q = self->majority_;
              const size_t not_held = count->answered - count->released - count->withdrawn;
              const bool all = count->answered + count->failed == n;
              if (count->failed > n - q) {
                // Nothing was done only if that is so everywhere.
                const bool done_somewhere = count->unknown || count->answered > 0;
                if (!done_somewhere && !all) return;
                const std::string message = absl::StrCat(
                    "no majority of ", q, " servers answers the release", count->failures);
                result = done_somewhere ? BackendUnknownError(message)
                                        : self->NothingDone(count->refused, message);
              } else if (held) {
                // Released, unless a majority says that it was lost before.
                if (count->released < q && not_held <= n - q && !all) return;
                if (not_held <= n - q) result = ReleaseOutcome::kReleased;
              } else {
                if (count->answered < q) return;
                // Grants of a minority were no hold.
                if (count->released + count->withdrawn > 0) result = ReleaseOutcome::kWithdrawn;
              }
              done = std::exchange(count->done, nullptr);
            }
            done(std::move(result));
          });
    }
    {
      const BlockedThread::OnBehalfOf on_behalf(caller);
      RunAll(std::move(releases));
    }
    self->Leave(attempt);
    self->ForgetIfIdle(caller, attempt);
  });
}

// One Extend under way, and what follows from its answers when its caller has been answered. Under
// the attempt's mutex.
struct Quorum::Renewal {
  enum class Word { kNone, kExtended, kReserved, kNotHeld, kFailed };

  AcquisitionId caller;
  absl::Time sent;
  ExtendCallback done;
  std::vector<Word> words;
  std::vector<absl::Duration> left;  // kExtended, kReserved.
  bool unknown = false;              // Somebody may have extended it, and not said so.
  size_t refused = 0;
  std::string failures;
  // It was extended, until then. Servers that lack the hold may have it again.
  std::optional<absl::Time> until;

  size_t Count(Word word) const {
    return static_cast<size_t>(std::count(words.begin(), words.end(), word));
  }
};

void Quorum::Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) {
  const AttemptPtr attempt = Find(hold.acquisition);
  if (attempt == nullptr) return done(ExtendReply{.outcome = ExtendOutcome::kNotHeld});
  auto renewal = std::make_shared<Renewal>();
  renewal->caller = hold.acquisition;
  renewal->done = std::move(done);
  renewal->words.resize(size(), Renewal::Word::kNone);
  renewal->left.resize(size());
  Enter(attempt, [self = shared_from_this(), attempt, renewal, lease] {
    bool holds;
    std::vector<std::pair<AcquisitionId, LeaseHint>> ids;
    ExtendCallback lost;
    {
      absl::MutexLock lock(&attempt->mutex);
      holds = attempt->holds;
      renewal->sent = self->clock_.Now();
      for (const Node& node : attempt->nodes) ids.emplace_back(node.id, node.hint);
      if (!holds) lost = std::exchange(renewal->done, nullptr);
    }
    if (!holds) {
      self->Leave(attempt);
      lost(ExtendReply{.outcome = ExtendOutcome::kNotHeld});
      return;
    }
    const BlockedThread::OnBehalfOf on_behalf(renewal->caller);
    for (size_t i = 0; i < self->size(); ++i) {
      self->servers_[i]->Extend(
          {.resource = attempt->resource, .acquisition = ids[i].first, .hint = ids[i].second},
          lease, [self, attempt, renewal, i, id = ids[i].first](absl::StatusOr<ExtendReply> reply) {
            self->OnExtended(attempt, renewal, i, id, std::move(reply));
          });
    }
  });
}

void Quorum::OnExtended(const AttemptPtr& attempt, const std::shared_ptr<Renewal>& renewal,
                        size_t i, AcquisitionId id, absl::StatusOr<ExtendReply> reply) {
  using Word = Renewal::Word;
  Actions actions;
  {
    absl::MutexLock lock(&attempt->mutex);
    Node& node = attempt->nodes[i];
    const auto fail = [&](std::string_view why) {
      renewal->words[i] = Word::kFailed;
      AppendServer(renewal->failures, i, why);
    };
    if (!reply.ok()) {
      renewal->unknown |= MayHaveBeenDone(reply.status());
      renewal->refused += IsRefusal(reply.status()) ? 1 : 0;
      fail(reply.status().message());
    } else if (node.id != id) {
      renewal->unknown |= reply->outcome == ExtendOutcome::kExtended;
      fail("released meanwhile");
    } else if (reply->outcome == ExtendOutcome::kNotHeld) {
      renewal->words[i] = Word::kNotHeld;
      // One that is returning may have answered this before it granted.
      if (!node.returning) {
        node.HasNothing();
        node.wanted = false;
        node.yielding = false;
      }
    } else {
      const Word word =
          reply->outcome == ExtendOutcome::kExtended ? Word::kExtended : Word::kReserved;
      node.deadline = std::max(node.deadline, renewal->sent + reply->remaining);
      node.wanted = word == Word::kReserved;
      if (word == Word::kExtended && node.yielding && node.yielding_since < renewal->sent) {
        // Nobody waits there any more: the event that says so was late, or lost.
        node.yielding = false;
        if (attempt->watching != nullptr) {
          actions.push_back(
              [self = shared_from_this(), attempt, i, watch = attempt->watching->number] {
                self->OnEvent(attempt, i, watch, {.kind = WatchEventKind::kYieldWithdrawn});
              });
        }
      }
      renewal->left[i] = reply->remaining;
      if (node.confirmed) {
        renewal->words[i] = word;
        // Whatever became of an earlier answer.
        if (node.vote != Vote::kAsked) node.vote = Vote::kGranted;
      } else if (!node.returning && attempt->holds && IsLive(*attempt, clock_.Now())) {
        // It has the hold: from an answer that was late or lost, or it is back. So it counts as
        // soon as the token is confirmed there.
        if (node.vote != Vote::kAsked) node.vote = Vote::kGranted;
        ConfirmAgain(attempt, renewal->caller, i, actions,
                     [self = shared_from_this(), attempt, renewal, i,
                      word](const absl::StatusOr<ConfirmOutcome>& confirmed) {
                       Actions next;
                       {
                         absl::MutexLock lock(&attempt->mutex);
                         if (!confirmed.ok()) {
                           renewal->unknown = true;
                           renewal->words[i] = Word::kFailed;
                           AppendServer(renewal->failures, i, confirmed.status().message());
                         } else {
                           renewal->words[i] =
                               *confirmed == ConfirmOutcome::kNotHeld ? Word::kNotHeld : word;
                         }
                         self->Conclude(attempt, renewal, next);
                       }
                       RunAll(std::move(next));
                     });
      } else {
        renewal->unknown |= word == Word::kExtended;
        fail("has not confirmed the token yet");
      }
    }
    Conclude(attempt, renewal, actions);
  }
  RunAll(std::move(actions));
}

void Quorum::Conclude(const AttemptPtr& attempt, const std::shared_ptr<Renewal>& renewal,
                      Actions& actions) {
  using Word = Renewal::Word;
  const size_t q = majority_;
  const size_t extended = renewal->Count(Word::kExtended);
  const size_t held = extended + renewal->Count(Word::kReserved);
  const size_t not_held = renewal->Count(Word::kNotHeld);
  const size_t open = renewal->Count(Word::kNone);
  const auto qth_left = [&](bool reserved) {
    std::vector<absl::Duration> left;
    for (size_t i = 0; i < size(); ++i) {
      if (renewal->words[i] == Word::kExtended ||
          (reserved && renewal->words[i] == Word::kReserved)) {
        left.push_back(renewal->left[i]);
      }
    }
    return NthLargest(std::move(left), q);
  };

  if (renewal->done != nullptr) {
    absl::StatusOr<ExtendReply> result = ExtendReply();
    if (extended >= q) {
      result = ExtendReply{.outcome = ExtendOutcome::kExtended, .remaining = qth_left(false)};
      renewal->until = renewal->sent + result->remaining;
    } else if (extended + open >= q) {
      return;
    } else if (held >= q) {
      result = ExtendReply{.outcome = ExtendOutcome::kReserved, .remaining = qth_left(true)};
    } else if (held + open >= q) {
      return;
    } else if (not_held > size() - q) {
      result = ExtendReply{.outcome = ExtendOutcome::kNotHeld};
    } else if (not_held + open > size() - q) {
      return;
    } else {
      // Nothing was done only if that is so everywhere.
      const bool done_somewhere = renewal->unknown || extended > 0;
      if (!done_somewhere && open > 0) return;
      const std::string message =
          absl::StrCat("no majority of ", q, " servers extends the lease; extended by ", extended,
                       ", not held by ", not_held, renewal->failures);
      result =
          done_somewhere ? BackendUnknownError(message) : NothingDone(renewal->refused, message);
    }
    const bool lost = result.ok() && result->outcome == ExtendOutcome::kNotHeld &&
                      std::exchange(attempt->holds, false);
    actions.push_back([self = shared_from_this(), attempt, lost,
                       done = std::exchange(renewal->done, nullptr),
                       result = std::move(result)]() mutable {
      if (lost) self->DropRest(attempt);
      self->Leave(attempt);
      done(std::move(result));
    });
  }

  if (!renewal->until) return;
  for (size_t i = 0; i < size(); ++i) {
    if (renewal->words[i] == Word::kNotHeld) {
      Return(attempt, renewal->caller, i, *renewal->until, actions);
    }
  }
}

// ---- Servers that come back --------------------------------------------------------------------

bool Quorum::IsLive(const Attempt& attempt, absl::Time now) const {
  size_t count = 0;
  for (const Node& node : attempt.nodes) count += node.CountsFor(now) ? 1 : 0;
  return attempt.holds && count >= majority_;
}

bool Quorum::MayReturn(const Attempt& attempt, size_t i, absl::Time now) const {
  // An Obtain of the caller asks all of them anyway.
  if (!attempt.round->decided || !IsLive(attempt, now)) return false;
  // Nor is anything taken that somebody who waits for the hold could have.
  for (const Node& node : attempt.nodes) {
    if (node.ReportsSuccessor(now)) return false;
  }
  const Node& node = attempt.nodes[i];
  return !node.confirmed && !node.returning;
}

void Quorum::Return(const AttemptPtr& attempt, AcquisitionId caller, size_t i, absl::Time until,
                    Actions& actions) {
  const absl::Time now = clock_.Now();
  if (until <= now + margin_ || !MayReturn(*attempt, i, now)) return;
  Node& node = attempt->nodes[i];
  node.unsettled = node.MayHave();
  node.returning = true;
  // The hold's own request keeps alive what the views point to.
  const RoundPtr round = attempt->round;
  ObtainRequest request = round->request;
  // Not released there since it was last used, so it is still this attempt's.
  request.acquisition = node.id;
  request.lease = until - now;
  request.reserve_below = std::nullopt;
  request.grace = std::nullopt;
  actions.push_back([self = shared_from_this(), attempt, round, caller, i, request, now] {
    std::shared_ptr<Departures> departures;
    uint64_t departure;
    {
      absl::MutexLock lock(&attempt->mutex);
      if (attempt->nodes[i].id != request.acquisition) return;
      departures = attempt->nodes[i].departures;
      departure = departures->Begin();
    }
    {
      const BlockedThread::OnBehalfOf on_behalf(caller);
      self->members_[i]->ObtainAsMember(
          request, [self, attempt, round, caller, i, id = request.acquisition, now, departures,
                    departure](absl::StatusOr<MemberReply> answer) {
            self->HasLeft(attempt, *departures, departure);
            self->OnReturned(attempt, round, caller, i, id, now, std::move(answer));
          });
    }
    self->HasLeft(attempt, *departures, departure);
  });
}

void Quorum::OnReturned(const AttemptPtr& attempt, const RoundPtr& round, AcquisitionId caller,
                        size_t i, AcquisitionId id, absl::Time sent,
                        absl::StatusOr<MemberReply> answer) {
  ObtainReply* const reply = answer.ok() ? &answer->reply : nullptr;
  Actions actions;
  {
    absl::MutexLock lock(&attempt->mutex);
    Node& node = attempt->nodes[i];
    // Given up meanwhile: the release is on its way behind the request. Or asked anew.
    if (node.id != id || attempt->round != round || !node.returning) return;
    node.returning = false;
    if (reply == nullptr) {
      node.Failed(answer.status());
    } else if (reply->outcome != ObtainOutcome::kObtained &&
               reply->outcome != ObtainOutcome::kReentered) {
      node.HasNothing(std::move(*reply));
    } else {
      node.vote = Vote::kGranted;
      node.unsettled = false;
      node.own = reply->outcome == ObtainOutcome::kObtained;
      node.reentered = !node.own;
      node.token = reply->token;
      node.fence_lost = answer->fence_lost;
      node.deadline = sent + reply->remaining;
      node.hint = reply->hint;
      node.lost = false;
      node.wanted = false;
      node.yielding = false;
      // Meanwhile somebody may wait for it, or it may be over: then this is nobody's.
      if (MayReturn(*attempt, i, clock_.Now())) {
        ConfirmAgain(attempt, caller, i, actions, nullptr);
      } else {
        Drop(attempt, i, actions);
      }
    }
  }
  RunAll(std::move(actions));
}

void Quorum::ConfirmAgain(const AttemptPtr& attempt, AcquisitionId caller, size_t i,
                          Actions& actions,
                          absl::AnyInvocable<void(const absl::StatusOr<ConfirmOutcome>&)> done) {
  Node& node = attempt->nodes[i];
  node.returning = true;
  actions.push_back([self = shared_from_this(), attempt, round = attempt->round, caller, i,
                     id = node.id, hint = node.hint, token = attempt->token,
                     done = std::move(done)]() mutable {
    const BlockedThread::OnBehalfOf on_behalf(caller);
    self->members_[i]->Confirm(
        {.resource = attempt->resource, .acquisition = id, .hint = hint}, token,
        [self, attempt, round, i, id,
         done = std::move(done)](absl::StatusOr<ConfirmReply> reply) mutable {
          absl::StatusOr<ConfirmOutcome> outcome = BackendUnknownError("released meanwhile");
          Actions next;
          {
            absl::MutexLock lock(&attempt->mutex);
            Node& node = attempt->nodes[i];
            if (node.id == id && attempt->round == round && node.returning) {
              node.returning = false;
              if (!reply.ok()) {
                node.vote = Vote::kUnknown;
                node.error = reply.status();
                outcome = reply.status();
              } else {
                outcome = reply->outcome;
                if (reply->outcome == ConfirmOutcome::kNotHeld) {
                  node.HasNothing();
                } else if (attempt->holds) {
                  // Confirmed, or its own is larger, which does the same: the holder's stays.
                  node.vote = Vote::kGranted;
                  node.token = std::max(node.token, reply->token);
                  node.fence_lost = false;
                  node.lost = false;
                  node.yielding = false;
                  node.confirmed = true;
                  self->WatchAgain(attempt, i, next);
                }
              }
            }
          }
          RunAll(std::move(next));
          if (done != nullptr) done(outcome);
        });
  });
}

void Quorum::WatchAgain(const AttemptPtr& attempt, size_t i, Actions& actions) {
  if (attempt->watching == nullptr || attempt->watching->role != WatchRole::kHolder) return;
  actions.push_back([self = shared_from_this(), attempt, i] { self->WatchServer(attempt, i); });
}

// ---- Watch -------------------------------------------------------------------------------------

Subscription Quorum::Watch(const WatchRequest& request, WatchCallback on_event) {
  const InUse in_use = FindOrAdd(request.acquisition, request.resource);
  const AttemptPtr& attempt = in_use.attempt();
  const AcquisitionId caller = request.acquisition;
  auto watching = std::make_shared<Attempt::Watching>();
  watching->role = request.role;
  watching->owner = std::string(request.owner);
  watching->priority = request.priority;
  watching->reservation_lease = request.reservation_lease;
  watching->asks_next = request.asks_next;
  watching->on_event = std::move(on_event);
  std::vector<Subscription> old;
  {
    absl::MutexLock lock(&attempt->mutex);
    watching->number = ++attempt->watches;
    attempt->watching = watching;
    for (Node& node : attempt->nodes) {
      old.push_back(std::move(node.subscription));
      node.signalled = false;
      node.yielding = false;
      node.lost = false;
    }
  }
  old.clear();
  bool lost = false;
  for (size_t i = 0; i < size(); ++i) WatchServer(attempt, i);
  if (request.role == WatchRole::kHolder) {
    absl::MutexLock lock(&attempt->mutex);
    lost = !attempt->holds && attempt->watching == watching && !watching->told_end;
    if (lost) {
      watching->told_end = true;
      watching->events.push_back({.kind = WatchEventKind::kHoldEnded, .why = HoldEnd::kExpired});
    }
  }
  if (lost) Tell(attempt, watching);
  return Subscription([weak = weak_from_this(), attempt, watching, caller] {
    std::vector<Subscription> ended;
    {
      absl::MutexLock lock(&attempt->mutex);
      watching->events.clear();
      if (attempt->watching != watching) return;
      attempt->watching = nullptr;
      for (Node& node : attempt->nodes) ended.push_back(std::move(node.subscription));
    }
    ended.clear();
    if (auto self = weak.lock()) self->ForgetIfIdle(caller, attempt);
  });
}

void Quorum::WatchServer(const AttemptPtr& attempt, size_t i) {
  WatchRequest request;
  std::shared_ptr<Attempt::Watching> watching;
  uint64_t subscribed;
  {
    absl::MutexLock lock(&attempt->mutex);
    watching = attempt->watching;
    if (watching == nullptr) return;
    request = {.resource = attempt->resource,
               .acquisition = attempt->nodes[i].id,
               .role = watching->role,
               .owner = watching->owner,
               .priority = watching->priority,
               // Reservations of single servers would go to different waiters.
               .barging = true,
               .reservation_lease = watching->reservation_lease,
               .asks_next = watching->asks_next,
               .hint = attempt->nodes[i].hint};
    // A holder has nothing to hear from a server that does not know it.
    if (watching->role == WatchRole::kHolder && attempt->nodes[i].vote != Vote::kGranted) return;
    subscribed = ++attempt->nodes[i].subscribed;
  }
  Subscription subscription =
      servers_[i]->Watch(request, [weak = weak_from_this(), attempt, i, number = watching->number,
                                   subscribed, id = request.acquisition](const WatchEvent& event) {
        const auto self = weak.lock();
        if (self == nullptr) return;
        {
          absl::MutexLock lock(&attempt->mutex);
          const Node& node = attempt->nodes[i];
          if (node.id != id || node.subscribed != subscribed) return;
        }
        self->OnEvent(attempt, i, number, event);
      });
  // What is left in `subscription` ends when the mutex is free again: ending it is a call.
  absl::MutexLock lock(&attempt->mutex);
  if (attempt->watching == watching && attempt->nodes[i].subscribed == subscribed &&
      attempt->nodes[i].id == request.acquisition) {
    std::swap(attempt->nodes[i].subscription, subscription);
  }
}

void Quorum::OnEvent(const AttemptPtr& attempt, size_t i, uint64_t watch, const WatchEvent& event) {
  std::shared_ptr<Attempt::Watching> watching;
  {
    absl::MutexLock lock(&attempt->mutex);
    watching = attempt->watching;
    if (watching == nullptr || watching->number != watch) return;
    Node& node = attempt->nodes[i];
    // A watch goes on when its waiter has become the holder, or its holder waits again.
    const bool holder =
        attempt->holds || (watching->role == WatchRole::kHolder && !watching->told_end);
    switch (event.kind) {
      case WatchEventKind::kYieldRequested:
        node.yielding = true;
        node.yielding_since = clock_.Now();
        break;
      case WatchEventKind::kYieldWithdrawn:
        node.yielding = false;
        break;
      case WatchEventKind::kHoldEnded:
        (holder ? node.lost : node.signalled) = true;
        break;
      case WatchEventKind::kDisplaced:
        break;
    }
    size_t whole = 0;  // Held, and wanted by nobody.
    size_t held = 0;
    size_t claimable = 0;
    for (const Node& other : attempt->nodes) {
      const bool granted =
          other.vote == Vote::kGranted || (other.vote == Vote::kAsked && other.had);
      // Another handle may have made it last for longer than we know.
      const bool counts = other.confirmed && !other.lost;
      held += counts ? 1 : 0;
      whole += counts && !other.yielding ? 1 : 0;
      claimable += granted || other.signalled ? 1 : 0;
    }
    if (event.kind == WatchEventKind::kDisplaced) {
      watching->events.push_back(event);
    } else if (holder) {
      if (held < majority_) {
        if (std::exchange(watching->told_end, true)) return;
        watching->events.push_back(
            {.kind = WatchEventKind::kHoldEnded,
             .why = event.kind == WatchEventKind::kHoldEnded ? event.why : HoldEnd::kExpired});
      } else if (whole < majority_) {
        // Whoever reserved has, or may have, a majority without us.
        if (event.kind != WatchEventKind::kYieldRequested) return;
        // Each server tells of the same thief.
        if (watching->told_to_yield &&
            watching->told_to_yield->thief_priority == event.thief_priority &&
            (event.grace_remaining == absl::InfiniteDuration() ||
             watching->told_to_yield->grace_remaining != absl::InfiniteDuration())) {
          return;
        }
        watching->told_to_yield = event;
        watching->events.push_back(event);
      } else {
        if (!std::exchange(watching->told_to_yield, std::nullopt)) return;
        watching->events.push_back({.kind = WatchEventKind::kYieldWithdrawn});
      }
    } else if (event.kind == WatchEventKind::kHoldEnded) {
      // One server's news is no news.
      if (claimable < majority_) return;
      for (Node& other : attempt->nodes) other.signalled = false;
      watching->events.push_back(event);
    } else {
      return;
    }
  }
  Tell(attempt, watching);
}

void Quorum::Tell(const AttemptPtr& attempt, const std::shared_ptr<Attempt::Watching>& watching) {
  for (bool first = true;; first = false) {
    WatchEvent event;
    {
      absl::MutexLock lock(&attempt->mutex);
      // One at a time; whoever is telling already goes on with these.
      if (first && watching->telling) return;
      watching->telling = !watching->events.empty();
      if (!watching->telling) return;
      event = watching->events.front();
      watching->events.pop_front();
    }
    watching->on_event(event);
  }
}

// ---- The interface -----------------------------------------------------------------------------

class QuorumBackend final : public LockingProtocol {
 public:
  QuorumBackend(std::vector<std::shared_ptr<LockingProtocol>> servers, Clock& clock)
      : capabilities_(Common(servers)),
        quorum_(std::make_shared<Quorum>(std::move(servers), clock, capabilities_)) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    if (absl::Status status = CheckRequest(request, capabilities_); !status.ok()) {
      return done(std::move(status));
    }
    quorum_->Obtain(request, std::move(done));
  }

  void Release(const HoldRef& hold, ReleaseCallback done) override {
    if (absl::Status status = CheckRequest(hold, capabilities_); !status.ok()) {
      return done(std::move(status));
    }
    quorum_->Release(hold, std::move(done));
  }

  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    absl::Status status = CheckRequest(hold, capabilities_);
    if (status.ok()) status = CheckLease("lease", lease, capabilities_);
    if (!status.ok()) return done(std::move(status));
    quorum_->Extend(hold, lease, std::move(done));
  }

  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    if (!CheckRequest(request, capabilities_).ok()) return Subscription();
    return quorum_->Watch(request, std::move(on_event));
  }

  const BackendCapabilities& capabilities() const override { return capabilities_; }

 private:
  static BackendCapabilities Common(const std::vector<std::shared_ptr<LockingProtocol>>& servers) {
    BackendCapabilities common = servers.front()->capabilities();
    common.name = absl::StrCat("quorum of ", servers.size(), " ", common.name);
    for (const auto& server : servers) {
      const BackendCapabilities& one = server->capabilities();
      common.infinite_lease &= one.infinite_lease;
      common.max_lease = std::min(common.max_lease, one.max_lease);
      common.default_lease = std::min(common.default_lease, one.default_lease);
      common.clock_drift = std::max(common.clock_drift, one.clock_drift);
      common.lease_margin = std::max(common.lease_margin, one.lease_margin);
      common.barging &= one.barging;
      common.forced_handover &= one.forced_handover;
    }
    // Where requests meet, the thread of one runs the completion of the other, and candidates that
    // split the vote answer after a pause.
    common.answers_at_once = false;
    // One server's event may come without a majority's.
    common.reliable_events = false;
    common.keeps_order = false;
    common.inspect = false;
    common.hint_identifies_hold = false;
    return common;
  }

  const BackendCapabilities capabilities_;
  const std::shared_ptr<Quorum> quorum_;
};

// Each server's default lease is of use with its own margin; with another's it need not be.
absl::Status CheckDefaultLease(const std::vector<std::shared_ptr<LockingProtocol>>& servers) {
  const auto lease_of = [&servers](size_t i) {
    const BackendCapabilities& one = servers[i]->capabilities();
    return std::min(one.default_lease, one.max_lease);
  };
  const auto margin_of = [&servers](size_t i) { return servers[i]->capabilities().lease_margin; };
  bool finite = false;
  size_t shortest = 0;
  size_t widest = 0;
  for (size_t i = 0; i < servers.size(); ++i) {
    finite |= !servers[i]->capabilities().infinite_lease;
    if (lease_of(i) < lease_of(shortest)) shortest = i;
    if (margin_of(i) > margin_of(widest)) widest = i;
  }
  // The default lease is renewed, and a renewed one takes three margins.
  const absl::Duration least = 3 * margin_of(widest);
  if (!finite || lease_of(shortest) >= least) return absl::OkStatus();
  return MakeError(
      Reason::kInvalidArgument,
      absl::StrCat("the default lease of protocols[", shortest, "], '",
                   servers[shortest]->capabilities().name, "', which is ",
                   absl::FormatDuration(lease_of(shortest)), " (default_lease, at most max_lease)",
                   ", must be at least ", absl::FormatDuration(least),
                   ", three times the lease_margin of protocols[", widest, "], '",
                   servers[widest]->capabilities().name, "'"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<LockingProtocol>> NewQuorumBackend(
    std::vector<std::shared_ptr<LockingProtocol>> protocols, QuorumOptions options) {
  if (protocols.empty()) return MakeError(Reason::kInvalidArgument, "protocols is empty");
  for (size_t i = 0; i < protocols.size(); ++i) {
    if (protocols[i] == nullptr) {
      return MakeError(Reason::kInvalidArgument, absl::StrCat("protocols[", i, "] is null"));
    }
    for (size_t j = 0; j < i; ++j) {
      if (protocols[i] == protocols[j]) {
        return MakeError(Reason::kInvalidArgument,
                         absl::StrCat("protocols[", j, "] and protocols[", i, "] are the same"));
      }
    }
    if (protocols.size() > 1 && protocols[i]->quorum_member() == nullptr) {
      return MakeError(Reason::kNotSupported,
                       absl::StrCat("protocols[", i, "], '", protocols[i]->capabilities().name,
                                    "', has no quorum_member()"));
    }
  }
  if (absl::Status status = CheckDefaultLease(protocols); !status.ok()) return status;
  Clock& clock = options.clock == nullptr ? RealClock() : *options.clock;
  return std::make_shared<QuorumBackend>(std::move(protocols), clock);
}

}  // namespace latchkey
