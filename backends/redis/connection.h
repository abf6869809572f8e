// One connection to a Redis server on a libuv loop: connects, greets (TLS, login, database),
// pipelines calls, reconnects with jittered back-off. Speaks through hiredis' reader and writer.
//
// Every attempt looks the host's name up anew and tries all its addresses, in the order given,
// until one can be used. An attempt takes connect_timeout at most, of which each address gets an
// equal part, and what those before it have left over.
//
// A call ends within command_timeout, whatever the connection is doing: waiting for it counts.
//
// Not hiredis' asynchronous context: that one asserts what a server may say, and a server that
// answers garbage must not end the process.
//
// A thread that is going to wait for its answer anyway may send its call and read the reply itself
// (SendDirectly, BlockedThread): the connection is *lent* to it, and the loop does not watch the
// socket meanwhile. As long as such threads come one after another it stays lent, so that the loop
// is not disturbed at all; whoever sends a call that nobody waits for takes it back.
//
// Thread safety: everything happens on the loop's thread, but for SendDirectly, Fetch and
// EndFetching. A connection must be stopped, and the loop run until its handles are closed, before
// it is destroyed.
#ifndef LATCHKEY_BACKENDS_REDIS_CONNECTION_H_
#define LATCHKEY_BACKENDS_REDIS_CONNECTION_H_

#include <openssl/ssl.h>
#include <uv.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/random/random.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "hiredis/hiredis.h"
#include "latchkey/backends/redis/redis_url.h"
#include "latchkey/core/base/blocked_thread.h"
#include "latchkey/core/base/lock_error.h"

namespace latchkey::redis {

// One command and what becomes of it: exactly one of OnReply (unless it asks to be sent again) and
// OnFailure is called at last.
class Call {
 public:
  enum class Next { kDone, kSendAgain };

  virtual ~Call() = default;
  // Appends the command, encoded.
  virtual void AppendTo(std::string& out) = 0;
  virtual Next OnReply(const redisReply& reply) = 0;
  // The same on another thread than the loop's. False: nothing was done, since this reply needs the
  // loop's thread; it is given to OnReply there.
  virtual bool OnReplyElsewhere(const redisReply& reply) = 0;
  // `sent`: the server may have executed it, or may still.
  virtual void OnFailure(bool sent, const absl::Status& why) = 0;

 private:
  friend class Connection;
  // By the loop's milliseconds: when it ends, answered or not. 0: it was not handed over yet.
  uint64_t until_ms_ = 0;
};

class Connection : public AnswerSource {
 public:
  class Listener {
   public:
    virtual ~Listener() = default;
    // Greeted (and subscribed): calls are sent from now on.
    virtual void OnReady(Connection& connection) = 0;
    // An attempt failed, or the connection broke. It goes on trying.
    virtual void OnDown(Connection& connection, const absl::Status& why) = 0;
    // A message on the channel that it subscribes to.
    virtual void OnMessage(std::string_view message) = 0;
    // On any thread: there is something to be done; call Flush on the loop's thread.
    virtual void OnWork() = 0;
  };

  struct Settings {
    RedisAddress address = {};
    SSL_CTX* tls = nullptr;        // Borrowed; for kTls.
    std::string server_name = {};  // For kTls: name or numeric address to verify.
    absl::Duration connect_timeout = absl::Seconds(2);
    absl::Duration command_timeout = absl::Seconds(2);
    absl::Duration reconnect_delay = absl::Milliseconds(20);
    absl::Duration max_reconnect_delay = absl::Seconds(2);
    std::string channel = {};  // Not empty: subscribe to it.
    std::string marker = {};   // The key by which a server knows that it has kept its data.
    bool new_server = false;   // Vouch by it, once, that there is no data to lose.
    // The numeric addresses of a name; none: there is no such name. Null: the system is asked.
    std::function<std::vector<std::string>(const std::string& host)> addresses_of = nullptr;
  };

  // `loop` and `listener` must outlive it.
  Connection(uv_loop_t* loop, Settings settings, Listener& listener);
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() override;

  void Start();
  // Fails what is left, and closes everything for good.
  void Stop();
  // Another connection has vouched for the server.
  void StopVouching() { vouches_ = false; }

  // Takes a call: sends it with the next Flush if ready, keeps it for at most command_timeout while
  // a first attempt to (re)connect is under way, and fails it at once after an attempt that failed.
  void Send(std::unique_ptr<Call> call);
  void Flush() ABSL_LOCKS_EXCLUDED(mutex_);

  // For any thread: writes the call to the socket if nothing is in the way, which saves waking the
  // loop's thread. The reply comes to that one, unless the connection was lent.
  struct Direct {
    bool sent = false;    // `call` was taken; if false it was left alone: use Send.
    uint64_t loan = 0;    // Not 0: lent to `caller`, who is to expect the reply,
    int descriptor = -1;  // from here.
  };
  // `caller`: this very thread, if it will wait for the reply; else null.
  Direct SendDirectly(std::unique_ptr<Call>& call, const BlockedThread* caller)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // For the thread that it was lent to.
  bool Fetch(uint64_t loan) override ABSL_LOCKS_EXCLUDED(context_mutex_, mutex_);
  void EndFetching(uint64_t loan) override ABSL_LOCKS_EXCLUDED(mutex_);

  // From now on it is not lent any more.
  void StopLending() ABSL_LOCKS_EXCLUDED(mutex_);

  bool ready() const { return state_ == State::kReady; }
  size_t calls_in_flight() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  enum class State { kDown, kResolving, kConnecting, kTls, kGreeting, kReady, kStopped };
  struct InFlight {
    std::unique_ptr<Call> call;
    uint64_t sent_ms;
    uint64_t loan = 0;  // By whom it was sent, if that thread reads the reply: see loan_.
  };
  struct FreeReply {
    void operator()(redisReply* reply) const { freeReplyObject(reply); }
  };
  using Reply = std::unique_ptr<redisReply, FreeReply>;
  struct Answered {
    std::unique_ptr<Call> call;  // Null: to nothing that was asked.
    Reply reply;
  };
  struct Poll;       // The loop's handle for one socket.
  struct Resolving;  // A look-up of a name that is under way.
  // What became of an address in this attempt.
  struct Tried {
    std::string address;  // Empty: before any was known.
    std::string why;
    Reason reason;
  };

  void Connect();
  // The addresses that are left, up to one that may yet be of use.
  void TryAddresses();
  // Begins with one; what is wrong if that fails at once.
  std::optional<std::string> ConnectTo(const std::string& host);
  void OnPoll();
  void OnConnected();
  void StepTls();
  void Greet();
  void OnGreetingReply(const redisReply& reply);
  void BecomeReady();
  void Read() ABSL_LOCKS_EXCLUDED(context_mutex_, mutex_);
  void ReadReplies() ABSL_LOCKS_EXCLUDED(context_mutex_, mutex_);
  // What another thread has read and left to this one.
  void HandleAnswered() ABSL_LOCKS_EXCLUDED(mutex_);
  // Or else a reply to the greeting, or a message.
  bool IsAnswer(const redisReply& reply) const;
  void HandleAnswer(std::unique_ptr<Call> call, const redisReply& reply);
  void Write() ABSL_LOCKS_EXCLUDED(context_mutex_, mutex_);
  bool WatchSocket() ABSL_LOCKS_EXCLUDED(mutex_);
  InFlight TakeOldest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UpdatePoll() ABSL_LOCKS_EXCLUDED(mutex_);
  void OnLoanTimer() ABSL_LOCKS_EXCLUDED(mutex_);
  void StartLoanTimer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Makes the loop read the socket, or let it alone.
  void TakeBack() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Lend() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetWatched() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnTimer();
  void ArmCommandTimer();
  // Ends the calls whose time is over although the connection's is not: those that waited for it.
  // Returns when to look again; 0: the connection's time is over.
  uint64_t EndLateCalls() ABSL_LOCKS_EXCLUDED(mutex_);
  void ArmWaitingTimer();
  void OnWaitingTimer();
  // Lets other threads write, if there is nothing left to be written before.
  void AllowDirect() ABSL_LOCKS_EXCLUDED(mutex_);
  // Closes the socket; while it connects, goes on with the next address.
  void Fail(std::string_view why, Reason reason = Reason::kBackendUnavailable);
  // Fails what was under way, and plans the next attempt.
  void GoDown(const absl::Status& why);
  // Of an attempt of which nothing has come.
  absl::Status WhyNoneIsOfUse() const;
  // The last words of a server that has ended the connection while it was greeted; false: it has
  // said nothing that explains it.
  bool HeardWhy();
  void CloseSocket();
  void FailCalls(const absl::Status& why);
  void FailTls(std::string_view what);

  // Constant after construction.
  uv_loop_t* const loop_;
  const Settings settings_;
  Listener& listener_;

  State state_ = State::kDown;
  bool vouches_ = false;  // That the server is new, at the next greeting.
  int failures_ = 0;      // Attempts failed in a row.
  absl::Status last_failure_;
  // Of the attempt that is under way.
  uint64_t attempt_ends_ms_ = 0;
  std::vector<std::string> addresses_;
  size_t next_address_ = 0;
  absl::Duration patience_;  // For the address that is being tried.
  std::vector<Tried> tried_;
  redisContext* context_ = nullptr;
  SSL* ssl_ = nullptr;  // Owned by context_ once TLS has begun.
  Poll* poll_ = nullptr;
  Resolving* resolving_ = nullptr;
  bool write_blocked_ = false;
  // Replies are being handled: until they all are, nobody else may send, and so borrow and read.
  bool reading_ = false;
  uv_timer_t deadline_timer_;          // Connecting, or the oldest call.
  uv_timer_t waiting_timer_;           // The first of the calls that wait for the connection.
  uv_timer_t reconnect_timer_;         // The next attempt, or the next ping.
  std::vector<std::string> greeting_;  // The names of the greeting's commands, in order.
  size_t greeted_ = 0;
  std::string out_;
  std::deque<std::unique_ptr<Call>> waiting_;
  absl::BitGen random_;

  // Held while the buffers of context_ are used, and when it goes. Before mutex_.
  absl::Mutex context_mutex_;
  redisContext* lent_context_ ABSL_GUARDED_BY(context_mutex_) =
      nullptr;  // For Fetch; null: not now.

  mutable absl::Mutex mutex_;
  std::deque<InFlight> in_flight_ ABSL_GUARDED_BY(mutex_);  // In the order of their bytes.
  // Where other threads may write; -1: nowhere. Then and only then the loop's thread has something
  // of its own to write, or the socket may go.
  int direct_fd_ ABSL_GUARDED_BY(mutex_) = -1;
  std::string left_over_ ABSL_GUARDED_BY(mutex_);  // What the socket did not take at once.

  // The loop watches this epoll instance, and it the socket and the timer below, so that any thread
  // can decide whether the loop's is to be woken. -1: there is no socket.
  int watch_fd_ ABSL_GUARDED_BY(mutex_) = -1;
  int socket_fd_ ABSL_GUARDED_BY(mutex_) = -1;
  bool lending_ ABSL_GUARDED_BY(mutex_) = true;     // False: never again.
  bool lent_ ABSL_GUARDED_BY(mutex_) = false;       // The loop does not watch for input.
  bool wants_out_ ABSL_GUARDED_BY(mutex_) = false;  // It waits until it can write.
  uint32_t watched_ ABSL_GUARDED_BY(mutex_) = 0;    // The epoll events that it gets.
  // To whom it is lent now; null while it is lent: to nobody, though the next one is expected soon.
  const BlockedThread* borrower_ ABSL_GUARDED_BY(mutex_) = nullptr;
  uint64_t loan_ ABSL_GUARDED_BY(mutex_) = 0;        // Counts how often it was lent,
  uint64_t taken_back_ ABSL_GUARDED_BY(mutex_) = 0;  // and up to which it was taken back.
  size_t due_ ABSL_GUARDED_BY(mutex_) = 0;           // Calls in flight of the borrower,
  size_t prompt_ ABSL_GUARDED_BY(mutex_) = 0;        // and of nobody who could read the reply.
  // The thread that sent last, by an address of its own; null: the loop's.
  const void* last_sender_ ABSL_GUARDED_BY(mutex_) = nullptr;
  // Looks from time to time whether it still pays to keep it lent.
  int loan_timer_fd_ ABSL_GUARDED_BY(mutex_) = -1;
  bool loan_timer_runs_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t loan_at_last_look_ ABSL_GUARDED_BY(mutex_) = 0;
  // What Fetch has left to the loop's thread.
  std::deque<Answered> answered_ ABSL_GUARDED_BY(mutex_);
  bool read_asked_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace latchkey::redis

#endif  // LATCHKEY_BACKENDS_REDIS_CONNECTION_H_
