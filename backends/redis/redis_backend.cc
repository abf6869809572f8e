#include "latchkey/backends/redis/redis_backend.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <uv.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <optional>
#include <random>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/log/log.h"
#include "absl/random/random.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "latchkey/backends/redis/connection.h"
#include "latchkey/backends/redis/io_thread.h"
#include "latchkey/backends/redis/redis_url.h"
#include "latchkey/backends/redis/refusal.h"
#include "latchkey/backends/redis/replies.h"
#include "latchkey/backends/redis/wire.h"
#include "latchkey/core/base/blocked_thread.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/protocol/quorum_member.h"

namespace latchkey {
namespace redis {
namespace {

// Limits of what is remembered in the background.
constexpr size_t kMaxReleases = 100'000;
constexpr size_t kMaxSuspects = 100'000;
constexpr size_t kMaxNameBytes = size_t{1} << 24;

// A request whose outcome is unknown may reach the server even after its compensation, if it took
// another connection. So the compensation is repeated.
constexpr int kSuspectReleases = 3;

template <typename Reply>
using Completion = absl::AnyInvocable<void(absl::StatusOr<Reply>)>;

// One interest in events.
struct WatchEntry {
  // Constant.
  AcquisitionId acquisition = {};
  std::string resource = {};
  WatchRole role = WatchRole::kWaiter;
  std::string owner = {};
  Priority priority = 0;
  bool barging = false;
  absl::Duration reservation = {};
  size_t connection = 0;

  std::atomic<bool> cancelled = false;

  // Of the I/O thread.
  WatchCallback on_event;
  AcquisitionId takes_place_of = {};
  // Why the server did not register this waiter, which therefore nobody will wake.
  absl::Status refused = absl::OkStatus();
  bool awaits_answer = false;            // Not worth a look before the Obtain that follows.
  bool waits = false;                    // Registered as a waiter on the server, or about to be.
  bool looking = false;                  // A look is under way.
  bool look_again = false;               // And another is wanted after it.
  bool ended = false;                    // A holder was told that its hold is over.
  std::optional<WatchEvent> yield = {};  // What a holder was told last.
  std::optional<std::multimap<uint64_t, std::shared_ptr<WatchEntry>>::iterator> timer = {};
};

// ---- The core ----------------------------------------------------------------------------------
//
// Everything but the interface. Owned by the backend, by its own thread, and by nobody else, so
// that a backend may be destroyed by a callback on that very thread.
class Core : public Connection::Listener, public std::enable_shared_from_this<Core> {
 public:
  Core(RedisBackendOptions options, RedisAddress address, SSL_CTX* tls);
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;
  ~Core() override;

  // Starts the thread, which keeps `self` alive until it ends.
  static void Start(const std::shared_ptr<Core>& self);
  const std::shared_ptr<IoThread>& thread() const { return thread_; }
  // The first connections' outcome.
  absl::Status AwaitConnection();
  // Ends the thread, after giving releases that are under way their time. From the thread itself it
  // does not wait; the end of the program does (io_thread.h).
  void Stop();

  // `acquisition`: what the call is about.
  void Submit(size_t connection, std::unique_ptr<Call> call, AcquisitionId acquisition)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void AddWatch(std::shared_ptr<WatchEntry> watch) ABSL_LOCKS_EXCLUDED(mutex_);
  void CancelWatch(std::shared_ptr<WatchEntry> watch) ABSL_LOCKS_EXCLUDED(mutex_);

  size_t ConnectionOf(size_t hash) const { return hash % commands_.size(); }
  const ScriptCalls& calls() const { return calls_; }
  const RedisBackendOptions& options() const { return options_; }
  const std::string& shown_address() const { return shown_address_; }
  const std::string& marker_key() const { return marker_key_; }

  // Whether a release may have to be repeated. Any thread.
  bool has_suspects() const { return has_suspects_; }

  // The rest is for calls, on the I/O thread.
  void RememberSuspect(AcquisitionId acquisition, absl::Duration lease);
  bool TakeSuspect(AcquisitionId acquisition);
  // Repeats a release until `until`, or, having succeeded, `repeats` more times.
  void RetryRelease(size_t connection, ScriptCall script, uint64_t until_ms, int repeats,
                    bool failed);
  // A request may wait for the end of the recovery without a word (outage_patience), so that nobody
  // reads what would end it: it is logged, once for each recovery.
  void WarnOfRecovery(const absl::Status& error, absl::Duration left);
  // `answered`: the server was reached, whether or not its answer was understood.
  void LookSettled(const std::shared_ptr<WatchEntry>& watch,
                   const std::optional<WatchAnswer>& answer, bool answered);
  // The server has refused it.
  void LookRefused(const std::shared_ptr<WatchEntry>& watch, absl::Status why);
  // An Obtain was not granted: who watches has to wait.
  void ObtainRefused(AcquisitionId acquisition);
  // It was granted, and with that the server has ended the acquisition's registration as a waiter.
  void ObtainGranted(AcquisitionId acquisition);
  // Why the server registers none of its watches; OK if it does, or has not been asked yet.
  absl::Status WhyItCannotWait(AcquisitionId acquisition) const;
  uint64_t NowMs() const { return uv_now(&loop_); }

 private:
  struct Task {
    size_t connection = 0;
    std::unique_ptr<Call> call = nullptr;          // Send this,
    std::shared_ptr<WatchEntry> add = nullptr;     // or begin this watch,
    std::shared_ptr<WatchEntry> cancel = nullptr;  // or end it.
  };
  struct Retry {
    size_t connection;
    ScriptCall script;
    uint64_t until_ms;
    int repeats;
  };

  void Run();
  void Post(Task task) ABSL_LOCKS_EXCLUDED(mutex_);
  void Drain() ABSL_LOCKS_EXCLUDED(mutex_);
  void TakeSilentWatches() ABSL_LOCKS_EXCLUDED(mutex_);
  void AddSilently(std::vector<std::shared_ptr<WatchEntry>> watches);
  void BeginStop();
  void CloseAll();

  void OnReady(Connection& connection) override;
  void OnDown(Connection& connection, const absl::Status& why) override;
  void OnMessage(std::string_view message) override;
  void OnWork() override ABSL_LOCKS_EXCLUDED(mutex_);

  void Deliver(const std::shared_ptr<WatchEntry>& watch, const WatchEvent& event);
  void Look(const std::shared_ptr<WatchEntry>& watch);
  void LookAfter(const std::shared_ptr<WatchEntry>& watch, absl::Duration delay);
  void ForgetTimer(WatchEntry& watch);
  void ArmWatchTimer();
  void OnWatchTimer();
  void ArmRetryTimer(uint64_t delay_ms);
  void OnRetryTimer();
  absl::Duration Jittered(absl::Duration most) { return most * absl::Uniform(random_, 0.5, 1.0); }

  // Constant after construction.
  const RedisBackendOptions options_;
  const std::string shown_address_;
  const std::string client_;
  const std::string marker_key_;
  const ScriptCalls calls_;
  SSL_CTX* const tls_;

  const std::shared_ptr<IoThread> thread_;
  uv_async_t wake_;

  absl::Mutex mutex_;
  std::vector<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  size_t calls_posted_ ABSL_GUARDED_BY(mutex_) = 0;  // Those that are not the end of a watch.
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;    // Tasks are on their way to the connections.
  std::vector<std::shared_ptr<WatchEntry>> silent_watches_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;   // The thread takes no more tasks.
  bool asleep_ ABSL_GUARDED_BY(mutex_) = false;  // It must not be woken any more.
  int settled_ ABSL_GUARDED_BY(mutex_) = 0;      // Connections whose first attempt is over.
  absl::Status first_failure_ ABSL_GUARDED_BY(mutex_);

  // Of the I/O thread.
  uv_loop_t loop_;
  uv_prepare_t prepare_;
  uv_timer_t watch_timer_;
  uv_timer_t retry_timer_;
  uv_timer_t stop_timer_;
  bool stop_begun_ = false;
  bool closed_ = false;
  std::vector<std::unique_ptr<Connection>> commands_;  // Constant after construction.
  std::unique_ptr<Connection> events_;
  std::vector<bool> first_attempt_over_;  // commands_, then events_.
  std::multimap<AcquisitionId, std::shared_ptr<WatchEntry>> watches_;
  std::multimap<uint64_t, std::shared_ptr<WatchEntry>> look_at_;  // By the loop's milliseconds.
  absl::flat_hash_map<AcquisitionId, uint64_t> suspects_;         // Until when.
  std::atomic<bool> has_suspects_ = false;                        // Read by all.
  std::vector<Retry> retries_;
  uint64_t warned_until_ms_ = 0;  // The end of the recovery that was logged last.
  absl::BitGen random_;
};

// ---- Calls -------------------------------------------------------------------------------------

absl::Status ErrorFromServer(const Core& core, const ScriptCall& call, std::string_view text) {
  const std::string_view record = call.record();
  const Refusal refusal = ReadScriptError(text, call.text());
  std::string meaning(refusal.meaning);
  if (absl::StrContains(text, "WRONGTYPE waiting list")) {
    meaning = absl::StrCat("the key of its waiting list, ",
                           ResourceForMessage(WaitingListKeyOf(record)), ", holds something else");
  } else if (absl::StrContains(text, "WRONGTYPE") && !meaning.empty()) {
    meaning = absl::StrCat("this key, or the marker ", ResourceForMessage(core.marker_key()),
                           ", holds something else");
  }
  const std::string about = absl::StrCat(core.shown_address(), " at ", ResourceForMessage(record));
  return MakeError(refusal.reason, meaning.empty()
                                       ? absl::StrCat(about, ": ", text)
                                       : absl::StrCat(about, ": ", meaning, " (", text, ")"));
}

absl::Status Unknown(const absl::Status& why) {
  return BackendUnknownError(absl::StrCat(why.message(), "; a request was under way"));
}

absl::Status Garbled(const Core& core) {
  return BackendUnknownError(
      absl::StrCat(core.shown_address(), ": a script's answer is not understood"));
}

// A call of a script. Takes care of servers that do not know it yet.
class ScriptedCall : public Call {
 public:
  ScriptedCall(Core& core, ScriptCall script)
      : core_(core), script_(std::move(script)), under_way_(core.thread()) {}

  void AppendTo(std::string& out) final { script_.AppendTo(out, with_text_); }

  Next OnReply(const redisReply& reply) final {
    if (reply.type == REDIS_REPLY_ERROR) {
      const std::string_view text = TextOf(reply);
      if (!with_text_ && absl::StartsWith(text, "NOSCRIPT")) {
        with_text_ = true;
        return Next::kSendAgain;
      }
      Refused(ErrorFromServer(core_, script_, text));
      return Next::kDone;
    }
    Settle(reply);
    return Next::kDone;
  }

  bool OnReplyElsewhere(const redisReply& reply) final {
    return reply.type != REDIS_REPLY_ERROR && SettleElsewhere(reply);
  }

  void OnFailure(bool sent, const absl::Status& why) final { Settle(sent ? Unknown(why) : why); }

 protected:
  virtual void Settle(const redisReply& reply) = 0;
  // False, having done nothing, if it takes the I/O thread.
  virtual bool SettleElsewhere(const redisReply& reply) = 0;
  virtual void Settle(const absl::Status& failure) = 0;
  // The server answered, with an error.
  virtual void Refused(const absl::Status& failure) { Settle(failure); }

  Core& core_;
  ScriptCall script_;

 private:
  // Goes after what the derived class has: the completion may be the last to need the backend.
  const IoThread::UnderWay under_way_;
  bool with_text_ = false;
};

class ObtainCall final : public ScriptedCall {
 public:
  // Alone, or as a member of a quorum.
  using Done = std::variant<ObtainCallback, MemberCallback>;

  ObtainCall(Core& core, ScriptCall script, AcquisitionId acquisition, absl::Duration lease,
             Done done)
      : ScriptedCall(core, std::move(script)),
        acquisition_(acquisition),
        lease_(lease),
        done_(std::move(done)) {}

 private:
  void Settle(const redisReply& raw) override {
    auto answer = ReadObtainAnswer(raw, acquisition_, lease_);
    if (!answer) {
      core_.RememberSuspect(acquisition_, lease_);
      core_.ObtainRefused(acquisition_);
      return Answer(Garbled(core_));
    }
    if (const Recovering* const recovering = std::get_if<Recovering>(&*answer)) {
      core_.ObtainRefused(acquisition_);
      absl::Status error = BackendUnavailableError(absl::StrCat(
          core_.shown_address(),
          ": recovering: the server was found without its marker key, so it is new or has lost "
          "its data, and leases may be out that it does not know. It grants again in ",
          absl::FormatDuration(absl::Ceil(recovering->left, absl::Milliseconds(1))),
          ". If it is known to be new, connect to it with RedisBackendOptions::new_server: that "
          "ends the recovery at once"));
      core_.WarnOfRecovery(error, recovering->left);
      return Answer(std::move(error));
    }
    MemberReply& granted = std::get<MemberReply>(*answer);
    ObtainReply& reply = granted.reply;
    reply.hint = reply.token;
    absl::Status unheard = absl::OkStatus();
    if (reply.outcome == ObtainOutcome::kDenied) unheard = core_.WhyItCannotWait(acquisition_);
    if (reply.token == 0) {
      core_.ObtainRefused(acquisition_);
    } else {
      core_.ObtainGranted(acquisition_);
    }
    if (!unheard.ok()) {
      return Answer(WithContext(
          absl::StrCat("held by ", OwnerForMessage(reply.other_owner), " with priority ",
                       reply.other_priority, ", and nobody can wait for it"),
          unheard));
    }
    Answer(std::move(granted));
  }

  bool SettleElsewhere(const redisReply& raw) override {
    auto answer = ReadObtainAnswer(raw, acquisition_, lease_);
    if (!answer) return false;
    MemberReply* const granted = std::get_if<MemberReply>(&*answer);
    if (granted == nullptr || granted->reply.token == 0) return false;
    granted->reply.hint = granted->reply.token;
    Answer(std::move(*granted));
    return true;
  }

  void Settle(const absl::Status& failure) override {
    if (ReasonOf(failure) == Reason::kBackendUnknown) core_.RememberSuspect(acquisition_, lease_);
    core_.ObtainRefused(acquisition_);
    Answer(failure);
  }

  void Answer(absl::StatusOr<MemberReply> answer) {
    if (MemberCallback* const member = std::get_if<MemberCallback>(&done_)) {
      (*member)(std::move(answer));
    } else if (answer.ok()) {
      std::get<ObtainCallback>(done_)(std::move(answer->reply));
    } else {
      std::get<ObtainCallback>(done_)(std::move(answer).status());
    }
  }

  const AcquisitionId acquisition_;
  const absl::Duration lease_;
  Done done_;
};

class ReleaseCall final : public ScriptedCall {
 public:
  // `done` may be null, for repetitions.
  ReleaseCall(Core& core, ScriptCall script, AcquisitionId acquisition, size_t connection,
              uint64_t until_ms, int repeats, ReleaseCallback done)
      : ScriptedCall(core, std::move(script)),
        acquisition_(acquisition),
        connection_(connection),
        until_ms_(until_ms),
        repeats_(repeats),
        done_(std::move(done)) {}

 private:
  void Settle(const redisReply& raw) override {
    const std::optional<ReleaseOutcome> outcome = ReadReleaseAnswer(raw);
    if (!outcome) return Settle(Garbled(core_));
    int repeats = repeats_;
    if (done_ != nullptr && core_.TakeSuspect(acquisition_)) repeats = kSuspectReleases;
    if (repeats > 0) core_.RetryRelease(connection_, script_, Until(), repeats - 1, false);
    if (done_ != nullptr) done_(*outcome);
  }

  bool SettleElsewhere(const redisReply& raw) override {
    if (core_.has_suspects() || repeats_ > 0 || done_ == nullptr) return false;
    const std::optional<ReleaseOutcome> outcome = ReadReleaseAnswer(raw);
    if (!outcome) return false;
    done_(*outcome);
    return true;
  }

  void Settle(const absl::Status& failure) override {
    const bool suspect = done_ != nullptr && core_.TakeSuspect(acquisition_);
    core_.RetryRelease(connection_, script_, Until(), suspect ? kSuspectReleases : repeats_, true);
    if (done_ != nullptr) done_(failure);
  }

  void Refused(const absl::Status& failure) override {
    const Reason reason = ReasonOf(failure);
    if (reason == Reason::kBackendUnavailable || reason == Reason::kBackendUnknown) {
      return Settle(failure);
    }
    // It would be refused again.
    core_.TakeSuspect(acquisition_);
    if (done_ != nullptr) done_(failure);
  }

  uint64_t Until() const {
    if (until_ms_ != 0) return until_ms_;
    return core_.NowMs() +
           static_cast<uint64_t>(absl::ToInt64Milliseconds(core_.options().max_lease));
  }

  const AcquisitionId acquisition_;
  const size_t connection_;
  const uint64_t until_ms_;  // 0: not yet decided.
  const int repeats_;
  ReleaseCallback done_;
};

class ExtendCall final : public ScriptedCall {
 public:
  ExtendCall(Core& core, ScriptCall script, ExtendCallback done)
      : ScriptedCall(core, std::move(script)), done_(std::move(done)) {}

 private:
  void Settle(const redisReply& raw) override {
    const std::optional<ExtendReply> reply = ReadExtendAnswer(raw);
    if (!reply) return done_(Garbled(core_));
    done_(*reply);
  }
  bool SettleElsewhere(const redisReply& raw) override {
    Settle(raw);
    return true;
  }
  void Settle(const absl::Status& failure) override { done_(failure); }

  ExtendCallback done_;
};

class ConfirmCall final : public ScriptedCall {
 public:
  ConfirmCall(Core& core, ScriptCall script, ConfirmCallback done)
      : ScriptedCall(core, std::move(script)), done_(std::move(done)) {}

 private:
  void Settle(const redisReply& raw) override {
    const std::optional<ConfirmReply> reply = ReadConfirmAnswer(raw);
    if (!reply) return done_(Garbled(core_));
    done_(*reply);
  }
  bool SettleElsewhere(const redisReply& raw) override {
    Settle(raw);
    return true;
  }
  void Settle(const absl::Status& failure) override { done_(failure); }

  ConfirmCallback done_;
};

class LookCall final : public ScriptedCall {
 public:
  LookCall(Core& core, ScriptCall script, std::shared_ptr<WatchEntry> watch)
      : ScriptedCall(core, std::move(script)), watch_(std::move(watch)) {}

 private:
  void Settle(const redisReply& raw) override {
    // One that is not understood is as good as none, for now.
    core_.LookSettled(watch_, ReadWatchAnswer(raw), true);
  }
  bool SettleElsewhere(const redisReply&) override { return false; }
  void Settle(const absl::Status&) override { core_.LookSettled(watch_, std::nullopt, false); }
  void Refused(const absl::Status& failure) override { core_.LookRefused(watch_, failure); }

  const std::shared_ptr<WatchEntry> watch_;
};

// Its failure harms nobody: the registration runs out.
class UnwatchCall final : public ScriptedCall {
 public:
  using ScriptedCall::ScriptedCall;

 private:
  void Settle(const redisReply&) override {}
  bool SettleElsewhere(const redisReply&) override { return true; }
  void Settle(const absl::Status&) override {}
};

// ---- The core: life ----------------------------------------------------------------------------

std::string NewClientId() {
  std::random_device random;
  return absl::StrFormat("%08x%08x", random(), random());
}

Core::Core(RedisBackendOptions options, RedisAddress address, SSL_CTX* tls)
    : options_(std::move(options)),
      shown_address_(address.ToString()),
      client_(NewClientId()),
      marker_key_(MarkerKey(options_.key_prefix)),
      calls_({.key_prefix = options_.key_prefix,
              .client = client_,
              .max_lease = options_.max_lease,
              .max_clock_skew = options_.max_clock_skew,
              .waiter_lease = options_.waiter_lease}),
      tls_(tls),
      thread_(std::make_shared<IoThread>(options_.shutdown_timeout)) {
  uv_loop_init(&loop_);
  uv_async_init(&loop_, &wake_, [](uv_async_t*) {});
  uv_prepare_init(&loop_, &prepare_);
  uv_timer_init(&loop_, &watch_timer_);
  uv_timer_init(&loop_, &retry_timer_);
  uv_timer_init(&loop_, &stop_timer_);
  prepare_.data = watch_timer_.data = retry_timer_.data = stop_timer_.data = this;
  Connection::Settings settings{
      .address = address,
      .tls = tls_,
      .server_name = options_.tls.server_name.empty() ? address.host : options_.tls.server_name,
      .connect_timeout = options_.connect_timeout,
      .command_timeout = options_.command_timeout,
      .reconnect_delay = options_.reconnect_delay,
      .max_reconnect_delay = options_.max_reconnect_delay,
      .marker = marker_key_,
      // Each before its first call, until one has (OnReady).
      .new_server = options_.new_server,
  };
  for (int i = 0; i < options_.command_connections; ++i) {
    commands_.push_back(std::make_unique<Connection>(&loop_, settings, *this));
  }
  settings.new_server = false;
  settings.channel = absl::StrCat(ChannelPrefix(options_.key_prefix), client_);
  events_ = std::make_unique<Connection>(&loop_, settings, *this);
  first_attempt_over_.resize(commands_.size() + 1);
}

Core::~Core() {
  uv_loop_close(&loop_);
  if (tls_ != nullptr) SSL_CTX_free(tls_);
}

void Core::Start(const std::shared_ptr<Core>& self) {
  self->thread_->Start([core = self] { core->Run(); },
                       [core = self.get()] { uv_async_send(&core->wake_); });
}

void Core::Run() {
  uv_prepare_start(&prepare_,
                   [](uv_prepare_t* prepare) { static_cast<Core*>(prepare->data)->Drain(); });
  for (auto& connection : commands_) connection->Start();
  events_->Start();
  uv_run(&loop_, UV_RUN_DEFAULT);
  std::vector<Task> late;
  std::vector<std::shared_ptr<WatchEntry>> silent;
  {
    absl::MutexLock lock(&mutex_);
    ended_ = true;
    late.swap(tasks_);
    silent.swap(silent_watches_);
  }
  const absl::Status down =
      BackendUnavailableError(absl::StrCat(shown_address_, ": the backend is shut down"));
  for (Task& task : late) {
    if (task.call != nullptr) task.call->OnFailure(false, down);
  }
}

absl::Status Core::AwaitConnection() {
  absl::MutexLock lock(&mutex_);
  auto settled = [this] {
    mutex_.AssertReaderHeld();
    return !first_failure_.ok() || settled_ == static_cast<int>(commands_.size()) + 1;
  };
  mutex_.Await(absl::Condition(&settled));
  return first_failure_;
}

void Core::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  uv_async_send(&wake_);
  thread_->Finish();
}

void Core::BeginStop() {
  stop_begun_ = true;
  for (auto& connection : commands_) connection->StopLending();
  // Releases that were handed to us by destructors a moment ago still get their time.
  uv_timer_start(
      &stop_timer_, [](uv_timer_t* timer) { static_cast<Core*>(timer->data)->CloseAll(); },
      static_cast<uint64_t>(
          std::max<int64_t>(0, absl::ToInt64Milliseconds(options_.shutdown_timeout))),
      0);
}

void Core::CloseAll() {
  if (std::exchange(closed_, true)) return;
  thread_->Close();
  {
    absl::MutexLock lock(&mutex_);
    asleep_ = true;
  }
  retries_.clear();
  look_at_.clear();
  for (auto& connection : commands_) connection->Stop();
  events_->Stop();
  watches_.clear();
  look_at_.clear();
  uv_close(reinterpret_cast<uv_handle_t*>(&watch_timer_), nullptr);
  uv_close(reinterpret_cast<uv_handle_t*>(&retry_timer_), nullptr);
  uv_close(reinterpret_cast<uv_handle_t*>(&stop_timer_), nullptr);
  uv_close(reinterpret_cast<uv_handle_t*>(&prepare_), nullptr);
  uv_close(reinterpret_cast<uv_handle_t*>(&wake_), nullptr);
}

// ---- The core: tasks ---------------------------------------------------------------------------

void Core::Post(Task task) {
  bool wake = false;
  bool ended = false;
  {
    absl::MutexLock lock(&mutex_);
    ended = ended_;
    if (!ended) {
      // The thread itself looks here before it sleeps.
      wake = tasks_.empty() && !thread_->IsCurrent() && !stopping_;
      if (task.cancel == nullptr) ++calls_posted_;
      tasks_.push_back(std::move(task));
    }
  }
  if (wake) uv_async_send(&wake_);
  if (ended && task.call != nullptr) {
    task.call->OnFailure(
        false, BackendUnavailableError(absl::StrCat(shown_address_, ": the backend is shut down")));
  }
}

void Core::Submit(size_t connection, std::unique_ptr<Call> call, AcquisitionId acquisition) {
  if (!thread_->IsCurrent()) {
    bool first;
    {
      absl::MutexLock lock(&mutex_);
      // What was submitted before goes before. The end of a watch has no place in that order.
      first = calls_posted_ == 0 && !draining_ && !stopping_;
    }
    if (first) {
      BlockedThread* const caller = BlockedThread::WaitingFor(acquisition);
      const Connection::Direct direct = commands_[connection]->SendDirectly(call, caller);
      if (direct.loan != 0) {
        caller->Expect({shared_from_this(), commands_[connection].get()}, direct.descriptor,
                       direct.loan);
      }
      if (direct.sent) return;
    }
  }
  Post({.connection = connection, .call = std::move(call)});
}

void Core::AddWatch(std::shared_ptr<WatchEntry> watch) {
  if (watch->awaits_answer) {
    // Nothing is to be sent before the answer to the Obtain behind it, so nobody is woken either.
    absl::MutexLock lock(&mutex_);
    if (!ended_) silent_watches_.push_back(std::move(watch));
    return;
  }
  Post({.add = std::move(watch)});
}

void Core::TakeSilentWatches() {
  std::vector<std::shared_ptr<WatchEntry>> watches;
  {
    absl::MutexLock lock(&mutex_);
    if (silent_watches_.empty()) return;
    watches.swap(silent_watches_);
  }
  AddSilently(std::move(watches));
}

void Core::AddSilently(std::vector<std::shared_ptr<WatchEntry>> watches) {
  for (std::shared_ptr<WatchEntry>& watch : watches) {
    if (watch->cancelled.load(std::memory_order_relaxed)) continue;
    // At the latest when any waiter reports.
    LookAfter(watch, Jittered(options_.waiter_lease / 3));
    watches_.emplace(watch->acquisition, std::move(watch));
  }
}

void Core::CancelWatch(std::shared_ptr<WatchEntry> watch) {
  watch->cancelled.store(true, std::memory_order_relaxed);
  {
    // Most are not known to the I/O thread by the time their Obtain is answered, and there is no
    // need to wake it for them.
    absl::MutexLock lock(&mutex_);
    const auto found = std::find(silent_watches_.rbegin(), silent_watches_.rend(), watch);
    if (found != silent_watches_.rend()) {
      silent_watches_.erase(std::next(found).base());
      return;
    }
  }
  Post({.cancel = std::move(watch)});
}

void Core::Drain() {
  if (closed_) return;
  std::vector<Task> tasks;
  std::vector<std::shared_ptr<WatchEntry>> silent;
  bool stopping = false;
  {
    absl::MutexLock lock(&mutex_);
    tasks.swap(tasks_);
    silent.swap(silent_watches_);  // In one go: the end of one must not come before it.
    draining_ = calls_posted_ > 0;
    calls_posted_ = 0;
    stopping = stopping_;
  }
  AddSilently(std::move(silent));
  for (Task& task : tasks) {
    if (task.call != nullptr) {
      commands_[task.connection]->Send(std::move(task.call));
    } else if (task.add != nullptr) {
      watches_.emplace(task.add->acquisition, task.add);
      Look(task.add);
    } else if (task.cancel != nullptr) {
      WatchEntry& watch = *task.cancel;
      ForgetTimer(watch);
      // A look that is under way keeps the entry; what it would have told, and whatever that keeps
      // alive, goes now.
      watch.on_event = nullptr;
      bool others = false;
      auto [begin, end] = watches_.equal_range(watch.acquisition);
      for (auto it = begin; it != end;) {
        if (it->second == task.cancel) {
          it = watches_.erase(it);
        } else {
          others = true;
          ++it;
        }
      }
      if (watch.waits && !others) {
        commands_[watch.connection]->Send(std::make_unique<UnwatchCall>(
            *this, calls_.Unwatch(watch.resource, watch.acquisition)));
      }
    }
  }
  for (auto& connection : commands_) connection->Flush();
  tasks.clear();
  thread_->Settle();
  if (stopping) {
    if (!stop_begun_) BeginStop();
    size_t under_way = 0;
    for (auto& connection : commands_) under_way += connection->calls_in_flight();
    if (under_way == 0) CloseAll();
  }
  if (closed_) return;
  absl::MutexLock lock(&mutex_);
  draining_ = false;
  if (!tasks_.empty()) uv_async_send(&wake_);
}

void Core::OnReady(Connection& connection) {
  for (size_t i = 0; i <= commands_.size(); ++i) {
    if ((i < commands_.size() ? commands_[i].get() : events_.get()) != &connection) continue;
    if (!first_attempt_over_[i]) {
      first_attempt_over_[i] = true;
      absl::MutexLock lock(&mutex_);
      ++settled_;
    }
  }
  if (&connection == events_.get()) {
    // What was told while nobody listened is lost: look again.
    for (auto& [acquisition, watch] : watches_) Look(watch);
    for (auto& command : commands_) command->Flush();
  } else {
    // What another one finds missing from now on is lost data.
    for (auto& command : commands_) command->StopVouching();
    if (!retries_.empty()) ArmRetryTimer(0);
  }
}

void Core::OnWork() {
  absl::MutexLock lock(&mutex_);
  if (!asleep_) uv_async_send(&wake_);
}

void Core::OnDown(Connection&, const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  if (first_failure_.ok()) first_failure_ = why;
}

// ---- The core: releases ------------------------------------------------------------------------

void Core::RememberSuspect(AcquisitionId acquisition, absl::Duration lease) {
  const uint64_t now = NowMs();
  if (suspects_.size() >= kMaxSuspects) {
    absl::erase_if(suspects_, [now](const auto& suspect) { return suspect.second <= now; });
    if (suspects_.size() >= kMaxSuspects) return;
  }
  has_suspects_ = true;
  suspects_[acquisition] = now + static_cast<uint64_t>(absl::ToInt64Milliseconds(lease));
}

bool Core::TakeSuspect(AcquisitionId acquisition) {
  if (suspects_.empty()) return false;
  const auto found = suspects_.find(acquisition);
  if (found == suspects_.end()) return false;
  const bool live = found->second > NowMs();
  suspects_.erase(found);
  has_suspects_ = !suspects_.empty();
  return live;
}

void Core::RetryRelease(size_t connection, ScriptCall script, uint64_t until_ms, int repeats,
                        bool failed) {
  if (closed_ || stop_begun_ || until_ms <= NowMs() || retries_.size() >= kMaxReleases) return;
  retries_.push_back({.connection = connection,
                      .script = std::move(script),
                      .until_ms = until_ms,
                      .repeats = repeats});
  const absl::Duration pause = failed ? options_.max_reconnect_delay : options_.command_timeout;
  ArmRetryTimer(static_cast<uint64_t>(absl::ToInt64Milliseconds(Jittered(pause))));
}

void Core::ArmRetryTimer(uint64_t delay_ms) {
  if (closed_) return;
  if (uv_is_active(reinterpret_cast<uv_handle_t*>(&retry_timer_)) != 0 &&
      uv_timer_get_due_in(&retry_timer_) <= delay_ms) {
    return;
  }
  uv_timer_start(
      &retry_timer_, [](uv_timer_t* timer) { static_cast<Core*>(timer->data)->OnRetryTimer(); },
      delay_ms, 0);
}

void Core::OnRetryTimer() {
  std::vector<Retry> retries = std::move(retries_);
  retries_.clear();
  for (Retry& retry : retries) {
    if (retry.until_ms <= NowMs()) continue;
    Connection& connection = *commands_[retry.connection];
    if (!connection.ready()) {
      // Its OnReady comes back to this.
      retries_.push_back(std::move(retry));
      continue;
    }
    connection.Send(std::make_unique<ReleaseCall>(*this, std::move(retry.script), AcquisitionId{},
                                                  retry.connection, retry.until_ms, retry.repeats,
                                                  nullptr));
  }
}

void Core::WarnOfRecovery(const absl::Status& error, absl::Duration left) {
  constexpr uint64_t kSameMs = 1000;  // The answers of one recovery name its end to within this.
  const uint64_t end = NowMs() + static_cast<uint64_t>(absl::ToInt64Milliseconds(left));
  if (end <= warned_until_ms_ + kSameMs) return;
  warned_until_ms_ = end;
  LOG(WARNING) << "latchkey: " << error.message();
}

// ---- The core: watches -------------------------------------------------------------------------

void Core::Deliver(const std::shared_ptr<WatchEntry>& watch, const WatchEvent& event) {
  if (watch->cancelled.load(std::memory_order_relaxed)) return;
  // The same news may come by message and by looking, and a thief that polls repeats it.
  const bool infinite = event.grace_remaining == absl::InfiniteDuration();
  switch (event.kind) {
    case WatchEventKind::kYieldRequested:
      if (watch->yield && watch->yield->thief_priority == event.thief_priority &&
          (infinite || watch->yield->grace_remaining != absl::InfiniteDuration())) {
        return;
      }
      watch->yield = event;
      break;
    case WatchEventKind::kYieldWithdrawn:
      watch->yield.reset();
      break;
    case WatchEventKind::kHoldEnded:
      if (watch->role == WatchRole::kHolder && std::exchange(watch->ended, true)) return;
      watch->yield.reset();
      break;
    case WatchEventKind::kDisplaced:
      break;
  }
  watch->on_event(event);
}

void Core::OnMessage(std::string_view text) {
  const std::optional<Message> message = ParseMessage(text);
  if (!message) return;
  TakeSilentWatches();
  auto [begin, end] = watches_.equal_range(message->acquisition);
  bool look = false;
  for (auto it = begin; it != end; ++it) {
    if (message->look_after) {
      LookAfter(it->second, *message->look_after + Jittered(absl::Milliseconds(4)));
    }
    if (!message->event) continue;
    // That the resource is free may have been told to this very acquisition as long as it waited,
    // and have been overtaken by the grant, which takes another connection. So a holder asks; only
    // of a theft does nobody else hear.
    if (it->second->role == WatchRole::kHolder &&
        message->event->kind == WatchEventKind::kHoldEnded &&
        message->event->why != HoldEnd::kStolen) {
      Look(it->second);
      look = true;
    } else {
      Deliver(it->second, *message->event);
    }
  }
  if (look) {
    for (auto& connection : commands_) connection->Flush();
  }
}

void Core::Look(const std::shared_ptr<WatchEntry>& watch) {
  if (watch->looking) {
    watch->look_again = true;
    return;
  }
  ForgetTimer(*watch);
  watch->awaits_answer = false;
  watch->looking = true;
  if (watch->role == WatchRole::kWaiter) watch->waits = true;
  commands_[watch->connection]->Send(
      std::make_unique<LookCall>(*this,
                                 calls_.Watch({.resource = watch->resource,
                                               .acquisition = watch->acquisition,
                                               .as_holder = watch->role == WatchRole::kHolder,
                                               .owner = watch->owner,
                                               .priority = watch->priority,
                                               .barging = watch->barging,
                                               .reservation = watch->reservation,
                                               .takes_place_of = watch->takes_place_of}),
                                 watch));
}

void Core::ObtainRefused(AcquisitionId acquisition) {
  if (closed_) return;
  TakeSilentWatches();
  auto [begin, end] = watches_.equal_range(acquisition);
  for (auto it = begin; it != end; ++it) {
    // What the server could not register may have been mended since.
    if (it->second->awaits_answer || !it->second->refused.ok()) Look(it->second);
  }
}

void Core::ObtainGranted(AcquisitionId acquisition) {
  auto [begin, end] = watches_.equal_range(acquisition);
  for (auto it = begin; it != end; ++it) {
    // A look that is under way may register it again, if the hold has ended meanwhile.
    if (!it->second->looking) it->second->waits = false;
  }
}

absl::Status Core::WhyItCannotWait(AcquisitionId acquisition) const {
  auto [begin, end] = watches_.equal_range(acquisition);
  for (auto it = begin; it != end; ++it) {
    if (!it->second->refused.ok()) return it->second->refused;
  }
  return absl::OkStatus();
}

void Core::LookRefused(const std::shared_ptr<WatchEntry>& watch, absl::Status why) {
  const bool news = watch->role == WatchRole::kWaiter && watch->refused.ok();
  if (watch->role == WatchRole::kWaiter) watch->refused = std::move(why);
  LookSettled(watch, std::nullopt, true);
  // Nobody will wake it, so it is to ask again, and then hears why.
  if (news && !closed_) Deliver(watch, {.kind = WatchEventKind::kDisplaced});
}

void Core::LookSettled(const std::shared_ptr<WatchEntry>& watch,
                       const std::optional<WatchAnswer>& answer, bool answered) {
  watch->looking = false;
  if (watch->cancelled.load(std::memory_order_relaxed) || closed_) return;
  if (std::exchange(watch->look_again, false)) {
    Look(watch);
    commands_[watch->connection]->Flush();
    return;
  }
  const absl::Duration refresh = Jittered(options_.waiter_lease / 3);
  if (!answered) {
    // Not reached; the connection tries again by itself, and so do we.
    LookAfter(watch, std::min(refresh, Jittered(absl::Seconds(1))));
    return;
  }
  watch->takes_place_of = {};
  if (!answer) return LookAfter(watch, refresh);
  watch->refused = absl::OkStatus();
  switch (answer->state) {
    case WatchAnswer::State::kHolds:
      // At its deadline nobody else may be there to find out; if it is extended, the look says so.
      watch->waits = false;
      LookAfter(watch, answer->left + absl::Milliseconds(1));
      return;
    case WatchAnswer::State::kIsToYield:
      watch->waits = false;
      LookAfter(watch, answer->left + absl::Milliseconds(1));
      Deliver(watch, {.kind = WatchEventKind::kYieldRequested,
                      .grace_remaining = answer->grace_remaining,
                      .thief_priority = answer->thief_priority});
      return;
    case WatchAnswer::State::kLost:
      watch->waits = false;
      Deliver(watch, {.kind = WatchEventKind::kHoldEnded, .why = HoldEnd::kExpired});
      return;
    case WatchAnswer::State::kMayClaim:
      LookAfter(watch, refresh);
      Deliver(watch, {.kind = WatchEventKind::kHoldEnded, .why = answer->why});
      return;
    case WatchAnswer::State::kWaits: {
      // When a lease runs out no script runs: who comes next looks then, the others a little later.
      absl::Duration look = answer->left + absl::Milliseconds(1);
      if (!answer->next) look += Jittered(options_.waiter_lease / 3);
      LookAfter(watch, std::min(look, refresh));
      return;
    }
  }
}

void Core::ForgetTimer(WatchEntry& watch) {
  if (watch.timer) look_at_.erase(*watch.timer);
  watch.timer.reset();
}

void Core::LookAfter(const std::shared_ptr<WatchEntry>& watch, absl::Duration delay) {
  if (closed_) return;
  const uint64_t at =
      NowMs() +
      static_cast<uint64_t>(absl::ToInt64Milliseconds(absl::Ceil(delay, absl::Milliseconds(1))));
  // A message may have asked for an earlier look while the answer to the last one was on its way.
  if (watch->timer && (*watch->timer)->first <= at) return;
  ForgetTimer(*watch);
  watch->timer = look_at_.emplace(at, watch);
  if (*watch->timer == look_at_.begin()) ArmWatchTimer();
}

void Core::ArmWatchTimer() {
  if (look_at_.empty()) return;
  const uint64_t first = look_at_.begin()->first;
  const uint64_t now = NowMs();
  uv_timer_start(
      &watch_timer_, [](uv_timer_t* timer) { static_cast<Core*>(timer->data)->OnWatchTimer(); },
      first > now ? first - now : 0, 0);
}

void Core::OnWatchTimer() {
  while (!look_at_.empty() && look_at_.begin()->first <= NowMs()) {
    const std::shared_ptr<WatchEntry> watch = look_at_.begin()->second;
    ForgetTimer(*watch);
    Look(watch);
  }
  ArmWatchTimer();
}

// ---- The interface -----------------------------------------------------------------------------

absl::Status BadOption(std::string_view name, std::string_view value, std::string_view rule) {
  return MakeError(Reason::kInvalidArgument, absl::StrCat("RedisBackendOptions::", name, " is ",
                                                          value, "; it must be ", rule));
}

absl::Status CheckDuration(std::string_view name, absl::Duration value, absl::Duration least,
                           absl::Duration most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return BadOption(
      name, absl::FormatDuration(value),
      absl::StrCat("from ", absl::FormatDuration(least), " to ", absl::FormatDuration(most)));
}

absl::Status CheckOptions(const RedisBackendOptions& options) {
  const absl::Duration ms = absl::Milliseconds(1);
  const absl::Duration hour = absl::Hours(1);
  for (const absl::Status& status : {
           CheckDuration("connect_timeout", options.connect_timeout, ms, hour),
           CheckDuration("command_timeout", options.command_timeout, ms, hour),
           CheckDuration("reconnect_delay", options.reconnect_delay, ms, hour),
           CheckDuration("max_reconnect_delay", options.max_reconnect_delay,
                         options.reconnect_delay, hour),
           CheckDuration("max_lease", options.max_lease, ms, absl::Hours(24)),
           // The default lease is renewed, and a renewed one takes three margins.
           CheckDuration("lease_margin", options.lease_margin, absl::ZeroDuration(),
                         options.max_lease / 3),
           CheckDuration("default_lease", options.default_lease,
                         std::max(ms, 3 * options.lease_margin), options.max_lease),
           CheckDuration("max_clock_skew", options.max_clock_skew, absl::ZeroDuration(), hour),
           CheckDuration("waiter_lease", options.waiter_lease, absl::Milliseconds(30), hour),
           CheckDuration("shutdown_timeout", options.shutdown_timeout, absl::ZeroDuration(), hour),
       }) {
    if (!status.ok()) return status;
  }
  if (!(options.clock_drift >= 0 && options.clock_drift <= 0.5)) {
    return BadOption("clock_drift", absl::StrCat(options.clock_drift), "from 0 to 0.5");
  }
  if (options.command_connections < 1 || options.command_connections > 16) {
    return BadOption("command_connections", absl::StrCat(options.command_connections),
                     "from 1 to 16");
  }
  if (options.key_prefix.size() > 256 ||
      options.key_prefix.find_first_of("{}") != std::string::npos) {
    return BadOption("key_prefix", absl::StrCat("'", absl::CHexEscape(options.key_prefix), "'"),
                     "at most 256 bytes and without braces");
  }
  if (options.tls.certificate_file.empty() != options.tls.key_file.empty()) {
    return BadOption("tls", "a certificate_file without a key_file, or the reverse",
                     "both or neither");
  }
  return absl::OkStatus();
}

absl::Status CheckName(std::string_view field, std::string_view value) {
  if (value.size() <= kMaxNameBytes) return absl::OkStatus();
  return MakeError(Reason::kInvalidArgument,
                   absl::StrCat(field, " ", ResourceForMessage(value), " is longer than ",
                                kMaxNameBytes, " bytes"));
}

class RedisBackend final : public LockingProtocol, public QuorumMember {
 public:
  explicit RedisBackend(std::shared_ptr<Core> core) : core_(std::move(core)) {
    const RedisBackendOptions& options = core_->options();
    capabilities_.name = "redis";
    capabilities_.infinite_lease = false;
    capabilities_.max_lease = options.max_lease;
    capabilities_.default_lease = options.default_lease;
    capabilities_.clock_drift = options.clock_drift;
    capabilities_.lease_margin = options.lease_margin;
    capabilities_.keeps_order = true;
  }

  ~RedisBackend() override { core_->Stop(); }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    if (absl::Status status = Check(request); !status.ok()) return done(std::move(status));
    Submit(request, core_->calls().Obtain(request), std::move(done));
  }

  void Release(const HoldRef& hold, ReleaseCallback done) override {
    if (absl::Status status = Check(hold); !status.ok()) return done(std::move(status));
    const size_t connection = core_->ConnectionOf(hold.resource.hash());
    core_->Submit(connection,
                  std::make_unique<ReleaseCall>(
                      *core_, core_->calls().Release(hold.resource.bytes(), hold.acquisition),
                      hold.acquisition, connection, 0, 0, std::move(done)),
                  hold.acquisition);
  }

  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    absl::Status status = Check(hold);
    if (status.ok()) status = CheckLease("lease", lease, capabilities_);
    if (!status.ok()) return done(std::move(status));
    core_->Submit(core_->ConnectionOf(hold.resource.hash()),
                  std::make_unique<ExtendCall>(
                      *core_, core_->calls().Extend(hold.resource.bytes(), hold.acquisition, lease),
                      std::move(done)),
                  hold.acquisition);
  }

  QuorumMember* quorum_member() override { return this; }

  void ObtainAsMember(const ObtainRequest& request, MemberCallback done) override {
    if (absl::Status status = Check(request); !status.ok()) return done(std::move(status));
    // In whole milliseconds, so that the servers of a quorum nearly always hear the same.
    const int64_t proposal = absl::ToUnixMillis(absl::Now()) * 1000;
    Submit(request, core_->calls().ObtainAsMember(request, proposal), std::move(done));
  }

  void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) override {
    if (absl::Status status = Check(hold); !status.ok()) return done(std::move(status));
    if (token == 0 || token > kMaxNumber) {
      return done(MakeError(Reason::kInvalidArgument,
                            absl::StrCat("token ", token, " is not from 1 to ", kMaxNumber)));
    }
    core_->Submit(
        core_->ConnectionOf(hold.resource.hash()),
        std::make_unique<ConfirmCall>(
            *core_, core_->calls().Confirm(hold.resource.bytes(), hold.acquisition, token),
            std::move(done)),
        hold.acquisition);
  }

  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    if (!CheckRequest(request, capabilities_).ok() ||
        !CheckName("resource", request.resource).ok() || !CheckName("owner", request.owner).ok()) {
      return Subscription();
    }
    auto watch = std::make_shared<WatchEntry>();
    watch->acquisition = request.acquisition;
    watch->resource = std::string(request.resource.bytes());
    watch->role = request.role;
    watch->owner = std::string(request.owner);
    watch->priority = request.priority;
    watch->barging = request.barging;
    const RedisBackendOptions& options = core_->options();
    // Short, whatever the caller would allow: a dead waiter costs one such reservation.
    watch->reservation =
        std::clamp(request.reservation_lease, absl::Microseconds(1), options.waiter_lease / 3);
    watch->connection = core_->ConnectionOf(request.resource.hash());
    watch->on_event = std::move(on_event);
    watch->takes_place_of = request.takes_place_of;
    // Who takes somebody's place must register before that one leaves.
    watch->awaits_answer =
        request.asks_next && request.role == WatchRole::kWaiter && request.takes_place_of.IsNone();
    core_->AddWatch(watch);
    return Subscription([core = std::weak_ptr<Core>(core_), watch]() mutable {
      watch->cancelled.store(true, std::memory_order_relaxed);
      if (auto alive = core.lock()) alive->CancelWatch(std::move(watch));
    });
  }

  const BackendCapabilities& capabilities() const override { return capabilities_; }

 private:
  void Submit(const ObtainRequest& request, ScriptCall script, ObtainCall::Done done) {
    core_->Submit(core_->ConnectionOf(request.resource.hash()),
                  std::make_unique<ObtainCall>(*core_, std::move(script), request.acquisition,
                                               request.lease, std::move(done)),
                  request.acquisition);
  }

  absl::Status Check(const ObtainRequest& request) const {
    absl::Status status = CheckRequest(request, capabilities_);
    if (status.ok()) status = CheckName("resource", request.resource);
    if (status.ok()) status = CheckName("owner", request.owner);
    return status;
  }
  absl::Status Check(const HoldRef& hold) const {
    absl::Status status = CheckRequest(hold, capabilities_);
    if (status.ok()) status = CheckName("resource", hold.resource);
    return status;
  }

  const std::shared_ptr<Core> core_;
  BackendCapabilities capabilities_;
};

absl::Status TlsOptionError(std::string_view field, std::string_view value) {
  const char* reason = ERR_reason_error_string(ERR_peek_last_error());
  return MakeError(Reason::kInvalidArgument,
                   absl::StrCat("RedisBackendOptions::tls.", field, " '", value,
                                "' cannot be used: ", reason == nullptr ? "unknown" : reason));
}

absl::StatusOr<SSL_CTX*> MakeTlsContext(const RedisTlsOptions& options) {
  ERR_clear_error();
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()),
                                                            &SSL_CTX_free);
  if (context == nullptr) return TlsOptionError("", "");
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE);
  if (options.ca_file.empty() && options.ca_folder.empty()) {
    SSL_CTX_set_default_verify_paths(context.get());
  }
  if (!options.ca_file.empty() &&
      SSL_CTX_load_verify_locations(context.get(), options.ca_file.c_str(), nullptr) != 1) {
    return TlsOptionError("ca_file", options.ca_file);
  }
  if (!options.ca_folder.empty() &&
      SSL_CTX_load_verify_locations(context.get(), nullptr, options.ca_folder.c_str()) != 1) {
    return TlsOptionError("ca_folder", options.ca_folder);
  }
  if (!options.certificate_file.empty()) {
    if (SSL_CTX_use_certificate_chain_file(context.get(), options.certificate_file.c_str()) != 1) {
      return TlsOptionError("certificate_file", options.certificate_file);
    }
    if (SSL_CTX_use_PrivateKey_file(context.get(), options.key_file.c_str(), SSL_FILETYPE_PEM) !=
        1) {
      return TlsOptionError("key_file", options.key_file);
    }
  }
  return context.release();
}

}  // namespace
}  // namespace redis

absl::StatusOr<std::shared_ptr<LockingProtocol>> ConnectRedisBackend(RedisBackendOptions options) {
  if (absl::Status status = redis::CheckOptions(options); !status.ok()) return status;
  absl::StatusOr<redis::RedisAddress> address = redis::ParseRedisUrl(options.url);
  if (!address.ok()) return address.status();
  SSL_CTX* tls = nullptr;
  if (address->transport == redis::Transport::kTls) {
    absl::StatusOr<SSL_CTX*> made = redis::MakeTlsContext(options.tls);
    if (!made.ok()) return made.status();
    tls = *made;
  }
  const bool wait = options.wait_for_connection;
  auto core = std::make_shared<redis::Core>(std::move(options), *std::move(address), tls);
  redis::Core::Start(core);
  auto backend = std::make_shared<redis::RedisBackend>(core);
  if (wait) {
    if (absl::Status status = core->AwaitConnection(); !status.ok()) return status;
  }
  return backend;
}

}  // namespace latchkey
