#include "latchkey/backends/redis/connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "hiredis/hiredis_ssl.h"
#include "latchkey/backends/redis/refusal.h"
#include "latchkey/backends/redis/replies.h"
#include "latchkey/backends/redis/scripts.h"
#include "latchkey/backends/redis/wire.h"
#include "latchkey/core/base/lock_error.h"

namespace latchkey::redis {
namespace {

// How often an idle subscription asks whether the server is still there.
constexpr uint64_t kPingMs = 5000;

// A connection that was lent is taken back when this long nobody has borrowed it: somebody has to
// read what the last one did not wait for.
constexpr long kLoanMs = 10;

// The most that waits for a connection attempt to end.
constexpr size_t kMaxWaiting = 100'000;

uint64_t ToMs(absl::Duration duration) {
  return static_cast<uint64_t>(
      std::max<int64_t>(1, absl::ToInt64Milliseconds(absl::Ceil(duration, absl::Milliseconds(1)))));
}

bool IsNumericAddress(const std::string& host) {
  in6_addr address;
  return inet_pton(AF_INET, host.c_str(), &address) == 1 ||
         inet_pton(AF_INET6, host.c_str(), &address) == 1;
}

// The first word of an array: "message", "pong", "subscribe".
std::string_view KindOf(const redisReply& reply) {
  if (reply.type != REDIS_REPLY_ARRAY || reply.elements == 0) return {};
  return TextOf(*reply.element[0]);
}

// Its address tells threads apart.
thread_local const char thread_marker = 0;

// Stands in the place of a call that was ended before its reply came.
class EndedCall : public Call {
 public:
  void AppendTo(std::string&) override {}
  Next OnReply(const redisReply&) override { return Next::kDone; }
  bool OnReplyElsewhere(const redisReply&) override { return true; }
  void OnFailure(bool, const absl::Status&) override {}
};

constexpr uint64_t kEndedMs = std::numeric_limits<uint64_t>::max();

// More addresses than this are counted in a message, and not told.
constexpr size_t kMostTold = 8;

class Ping : public Call {
 public:
  void AppendTo(std::string& out) override { out.append(MakeCommand({"PING"})); }
  Next OnReply(const redisReply&) override { return Next::kDone; }
  bool OnReplyElsewhere(const redisReply&) override { return true; }
  void OnFailure(bool, const absl::Status&) override {}
};

}  // namespace

struct Connection::Poll {
  uv_poll_t handle;
  Connection* connection;
};

struct Connection::Resolving {
  uv_getaddrinfo_t request;
  Connection* connection;  // Null: nobody waits any more.
};

Connection::Connection(uv_loop_t* loop, Settings settings, Listener& listener)
    : loop_(loop), settings_(std::move(settings)), listener_(listener) {
  vouches_ = settings_.new_server;
  for (uv_timer_t* timer : {&deadline_timer_, &waiting_timer_, &reconnect_timer_}) {
    uv_timer_init(loop_, timer);
    timer->data = this;
  }
}

Connection::~Connection() = default;

void Connection::Start() { Connect(); }

void Connection::Stop() {
  if (state_ == State::kStopped) return;
  state_ = State::kStopped;
  last_failure_ = BackendUnavailableError("the backend is shut down");
  CloseSocket();
  {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
  }
  HandleAnswered();
  if (resolving_ != nullptr) {
    resolving_->connection = nullptr;
    uv_cancel(reinterpret_cast<uv_req_t*>(&resolving_->request));
    resolving_ = nullptr;
  }
  for (uv_timer_t* timer : {&deadline_timer_, &waiting_timer_, &reconnect_timer_}) {
    uv_close(reinterpret_cast<uv_handle_t*>(timer), nullptr);
  }
  FailCalls(last_failure_);
}

// ---- Connecting --------------------------------------------------------------------------------

void Connection::Connect() {
  uv_timer_stop(&reconnect_timer_);
  uv_timer_start(
      &deadline_timer_, [](uv_timer_t* timer) { static_cast<Connection*>(timer->data)->OnTimer(); },
      ToMs(settings_.connect_timeout), 0);
  attempt_ends_ms_ = uv_now(loop_) + ToMs(settings_.connect_timeout);
  patience_ = settings_.connect_timeout;
  addresses_.clear();
  next_address_ = 0;
  tried_.clear();
  const RedisAddress& address = settings_.address;
  state_ = State::kResolving;
  if (address.transport == Transport::kUnix || IsNumericAddress(address.host)) {
    addresses_ = {address.host};
    return TryAddresses();
  }
  if (settings_.addresses_of != nullptr) {
    addresses_ = settings_.addresses_of(address.host);
    if (addresses_.empty()) return Fail("cannot find the host");
    return TryAddresses();
  }
  // Not hiredis' own look-up: it would block the loop.
  resolving_ = new Resolving{.request = {}, .connection = this};
  resolving_->request.data = resolving_;
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  const int result = uv_getaddrinfo(
      loop_, &resolving_->request,
      [](uv_getaddrinfo_t* request, int status, addrinfo* found) {
        std::unique_ptr<Resolving> resolving(static_cast<Resolving*>(request->data));
        std::vector<std::string> addresses;
        for (const addrinfo* one = status == 0 ? found : nullptr; one != nullptr;
             one = one->ai_next) {
          char text[NI_MAXHOST];
          if (getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, nullptr, 0,
                          NI_NUMERICHOST) == 0) {
            addresses.emplace_back(text);
          }
        }
        uv_freeaddrinfo(found);
        Connection* connection = resolving->connection;
        if (connection == nullptr) return;
        connection->resolving_ = nullptr;
        if (addresses.empty()) {
          connection->Fail(absl::StrCat("cannot find the host: ", uv_strerror(status)));
        } else {
          connection->addresses_ = std::move(addresses);
          connection->TryAddresses();
        }
      },
      address.host.c_str(), nullptr, &hints);
  if (result != 0) {
    delete std::exchange(resolving_, nullptr);
    Fail(absl::StrCat("cannot find the host: ", uv_strerror(result)));
  }
}

void Connection::TryAddresses() {
  state_ = State::kConnecting;
  while (next_address_ < addresses_.size()) {
    const uint64_t now = uv_now(loop_);
    const uint64_t left = attempt_ends_ms_ - std::min(attempt_ends_ms_, now);
    if (left == 0 && next_address_ > 0) break;
    const uint64_t share = std::max<uint64_t>(1, left / (addresses_.size() - next_address_));
    if (addresses_.size() > 1) patience_ = absl::Milliseconds(share);
    uv_timer_start(
        &deadline_timer_,
        [](uv_timer_t* timer) { static_cast<Connection*>(timer->data)->OnTimer(); }, share, 0);
    const std::string& address = addresses_[next_address_++];
    std::optional<std::string> wrong = ConnectTo(address);
    if (!wrong) return;
    CloseSocket();
    tried_.push_back(
        {.address = address, .why = *std::move(wrong), .reason = Reason::kBackendUnavailable});
  }
  GoDown(WhyNoneIsOfUse());
}

absl::Status Connection::WhyNoneIsOfUse() const {
  // A server that answers and refuses tells more than an address where there is none.
  Reason reason = Reason::kBackendUnavailable;
  for (const Tried& one : tried_) {
    if (reason == Reason::kBackendUnavailable) reason = one.reason;
  }
  std::string message = settings_.address.ToString();
  for (size_t i = 0; i < std::min(tried_.size(), kMostTold); ++i) {
    absl::StrAppend(&message, i == 0 ? ": " : "; ");
    if (addresses_.size() > 1) absl::StrAppend(&message, "at ", tried_[i].address, ": ");
    absl::StrAppend(&message, tried_[i].why);
  }
  const size_t told = std::min(tried_.size(), kMostTold);
  if (addresses_.size() > told) {
    absl::StrAppend(&message, "; and ", addresses_.size() - told, " more addresses");
  }
  return MakeError(reason, message);
}

std::optional<std::string> Connection::ConnectTo(const std::string& host) {
  redisOptions options{};
  options.options |= REDIS_OPT_NONBLOCK;
  if (settings_.address.transport == Transport::kUnix) {
    REDIS_OPTIONS_SET_UNIX(&options, settings_.address.path.c_str());
  } else {
    REDIS_OPTIONS_SET_TCP(&options, host.c_str(), settings_.address.port);
  }
  context_ = redisConnectWithOptions(&options);
  if (context_ == nullptr) return "cannot connect: out of memory";
  if (context_->err != 0) return absl::StrCat("cannot connect: ", context_->errstr);
  LimitReader(*context_->reader);
  if (!WatchSocket()) return absl::StrCat("cannot watch the socket: ", strerror(errno));
  write_blocked_ = true;  // Writable means connected.
  UpdatePoll();
  return std::nullopt;
}

bool Connection::WatchSocket() {
  const int watch_fd = epoll_create1(EPOLL_CLOEXEC);
  if (watch_fd < 0) return false;
  epoll_event none{};
  poll_ = new Poll{.handle = {}, .connection = this};
  poll_->handle.data = poll_;
  int result = epoll_ctl(watch_fd, EPOLL_CTL_ADD, context_->fd, &none) == 0 ? 0 : -errno;
  if (result == 0) result = uv_poll_init(loop_, &poll_->handle, watch_fd);
  if (result != 0) {
    delete std::exchange(poll_, nullptr);
    close(watch_fd);
    errno = -result;
    return false;
  }
  uv_poll_start(&poll_->handle, UV_READABLE, [](uv_poll_t* handle, int, int) {
    static_cast<Poll*>(handle->data)->connection->OnPoll();
  });
  absl::MutexLock lock(&mutex_);
  watch_fd_ = watch_fd;
  socket_fd_ = static_cast<int>(context_->fd);
  watched_ = 0;
  return true;
}

void Connection::UpdatePoll() {
  if (poll_ == nullptr) return;
  absl::MutexLock lock(&mutex_);
  wants_out_ = state_ == State::kConnecting || write_blocked_;
  SetWatched();
}

void Connection::SetWatched() {
  // Its end is for the loop in any case.
  const uint32_t wanted =
      (lent_ ? uint32_t{EPOLLRDHUP} : uint32_t{EPOLLIN}) | (wants_out_ ? uint32_t{EPOLLOUT} : 0u);
  if (wanted == watched_ || watch_fd_ < 0) return;
  watched_ = wanted;
  epoll_event event{};
  event.events = wanted;
  // It cannot fail: the socket was added before.
  epoll_ctl(watch_fd_, EPOLL_CTL_MOD, socket_fd_, &event);
}

void Connection::OnPoll() {
  OnLoanTimer();
  if (state_ == State::kConnecting) return OnConnected();
  if (state_ == State::kTls) return StepTls();
  Poll* const polled = poll_;
  Read();
  // Reading may have ended the connection, and even begun another. Under TLS a write may have
  // waited for something to read.
  if (poll_ == polled && write_blocked_) Write();
}

// ---- Lending -----------------------------------------------------------------------------------

void Connection::Lend() {
  lent_ = true;
  SetWatched();
  if (loan_timer_runs_) return;
  if (loan_timer_fd_ < 0) {
    loan_timer_fd_ = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    epoll_event event{};
    event.events = EPOLLIN;
    if (loan_timer_fd_ < 0 || epoll_ctl(watch_fd_, EPOLL_CTL_ADD, loan_timer_fd_, &event) != 0) {
      lending_ = false;
      return;
    }
  }
  StartLoanTimer();
}

void Connection::StartLoanTimer() {
  itimerspec once{};
  once.it_value.tv_nsec = kLoanMs * 1'000'000;
  timerfd_settime(loan_timer_fd_, 0, &once, nullptr);
  loan_timer_runs_ = true;
  loan_at_last_look_ = loan_;
}

void Connection::OnLoanTimer() {
  absl::MutexLock lock(&mutex_);
  uint64_t times;
  if (!loan_timer_runs_ || read(loan_timer_fd_, &times, sizeof times) < 0) return;
  loan_timer_runs_ = false;
  if (!lent_) return;
  // Nobody borrows it any more; or who does is busy with something else, and leaves it unread.
  bool idle = loan_ == loan_at_last_look_;
  if (idle && borrower_ != nullptr) {
    pollfd now{.fd = socket_fd_, .events = POLLIN, .revents = 0};
    idle = poll(&now, 1, 0) == 1;
  }
  if (idle) {
    TakeBack();
  } else {
    StartLoanTimer();
  }
}

void Connection::TakeBack() {
  lent_ = false;
  borrower_ = nullptr;
  taken_back_ = loan_;
  prompt_ = in_flight_.size();
  SetWatched();
}

void Connection::StopLending() {
  absl::MutexLock lock(&mutex_);
  lending_ = false;
  if (lent_) TakeBack();
}

Connection::InFlight Connection::TakeOldest() {
  InFlight oldest = std::move(in_flight_.front());
  in_flight_.pop_front();
  if (oldest.loan <= taken_back_) {
    --prompt_;
  } else if (borrower_ != nullptr && oldest.loan == loan_) {
    --due_;
  }
  return oldest;
}

bool Connection::Fetch(uint64_t loan) {
  std::vector<Answered> here;
  bool work = false;
  {
    absl::MutexLock context_lock(&context_mutex_);
    if (lent_context_ == nullptr) return false;
    {
      absl::MutexLock lock(&mutex_);
      if (borrower_ == nullptr || loan_ != loan) return false;
    }
    // What is wrong is for the loop's thread, which comes across it once more.
    bool wrong = redisBufferRead(lent_context_) != REDIS_OK;
    for (void* raw = nullptr;;) {
      if (redisReaderGetReply(lent_context_->reader, &raw) != REDIS_OK) wrong = true;
      if (raw == nullptr) break;
      Answered answered{.call = nullptr, .reply = Reply(static_cast<redisReply*>(raw))};
      raw = nullptr;
      absl::MutexLock lock(&mutex_);
      if (!in_flight_.empty()) answered.call = TakeOldest().call;
      if (answered.call != nullptr) {
        here.push_back(std::move(answered));
      } else {
        answered_.push_back(std::move(answered));
        work = true;
      }
    }
    if (wrong) {
      absl::MutexLock lock(&mutex_);
      TakeBack();
      read_asked_ = work = true;
    }
  }
  for (Answered& one : here) {
    if (one.call->OnReplyElsewhere(*one.reply)) continue;
    {
      absl::MutexLock lock(&mutex_);
      if (!stopped_) {
        answered_.push_back(std::move(one));
        work = true;
        continue;
      }
    }
    one.call->OnFailure(true, BackendUnavailableError("the backend is shut down"));
  }
  bool more;
  {
    absl::MutexLock lock(&mutex_);
    more = borrower_ != nullptr && loan_ == loan && due_ > 0;
    if (!lending_) work = true;  // It may be what the loop's thread waits for before it ends.
  }
  if (work) listener_.OnWork();
  return more;
}

void Connection::EndFetching(uint64_t loan) {
  absl::MutexLock lock(&mutex_);
  if (borrower_ == nullptr || loan_ != loan) return;
  borrower_ = nullptr;
  if (prompt_ > 0 || !lending_) TakeBack();
}

void Connection::HandleAnswered() {
  for (;;) {
    Answered next;
    {
      absl::MutexLock lock(&mutex_);
      if (answered_.empty()) return;
      next = std::move(answered_.front());
      answered_.pop_front();
    }
    HandleAnswer(std::move(next.call), *next.reply);
  }
}

void Connection::OnConnected() {
  int error = 0;
  socklen_t size = sizeof error;
  if (getsockopt(context_->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
  if (error != 0) return Fail(absl::StrCat("cannot connect: ", strerror(error)));
  write_blocked_ = false;
  if (settings_.address.transport != Transport::kUnix) {
    const int on = 1;
    setsockopt(context_->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    redisEnableKeepAliveWithInterval(context_, 15);
  }
  if (settings_.address.transport != Transport::kTls) return Greet();

  state_ = State::kTls;
  ERR_clear_error();
  SSL* ssl = SSL_new(settings_.tls);
  if (ssl == nullptr) return FailTls("cannot begin TLS");
  // hiredis checks neither; without them any certificate of a trusted authority would do.
  SSL_set_verify(ssl, SSL_VERIFY_PEER, nullptr);
  const std::string& name = settings_.server_name;
  const bool named = IsNumericAddress(name)
                         ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name.c_str()) == 1
                         : SSL_set1_host(ssl, name.c_str()) == 1 &&
                               SSL_set_tlsext_host_name(ssl, name.c_str()) == 1;
  ssl_ = ssl;
  if (!named || redisInitiateSSL(context_, ssl) != REDIS_OK) {
    // Not taken over, and asked why before it goes.
    const std::unique_ptr<SSL, decltype(&SSL_free)> owned(ssl, &SSL_free);
    return FailTls("TLS failed");
  }
  StepTls();
}

void Connection::FailTls(std::string_view what) {
  const long verified = ssl_ == nullptr ? X509_V_OK : SSL_get_verify_result(ssl_);
  const unsigned long error = ERR_peek_last_error();
  const char* said = ERR_reason_error_string(error);
  std::string why(what);
  if (verified != X509_V_OK) {
    absl::StrAppend(&why, ": the server's certificate is not accepted: ",
                    X509_verify_cert_error_string(verified));
  } else {
    absl::StrAppend(&why, ": ", said == nullptr ? "the connection ended" : said);
  }
  Fail(why, ReadTlsError(verified, error));
}

void Connection::StepTls() {
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_);
  if (result == 1) {
    write_blocked_ = false;
    return Greet();
  }
  const int error = SSL_get_error(ssl_, result);
  if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) {
    return FailTls("TLS failed");
  }
  write_blocked_ = error == SSL_ERROR_WANT_WRITE;
  UpdatePoll();
}

// ---- Greeting ----------------------------------------------------------------------------------

void Connection::Greet() {
  state_ = State::kGreeting;
  UpdatePoll();
  greeting_.clear();
  greeted_ = 0;
  out_.clear();
  const RedisAddress& address = settings_.address;
  auto say = [this](std::initializer_list<std::string_view> command) {
    greeting_.emplace_back(*command.begin());
    out_.append(MakeCommand(command));
  };
  if (!address.password.empty()) {
    if (address.user.empty()) {
      say({"AUTH", address.password});
    } else {
      say({"AUTH", address.user, address.password});
    }
  }
  if (address.database != 0) say({"SELECT", absl::StrCat(address.database)});
  say({"INFO", "cluster"});
  // Once only: a marker missing later means lost data.
  if (vouches_) say({"EVAL", VouchText(), "1", settings_.marker});
  if (!settings_.channel.empty()) {
    say({"SUBSCRIBE", settings_.channel});
  } else {
    // The last command of a script: without a permission for it the others would be done. This one
    // does nothing, since 1 ms is no longer than anything.
    if (!settings_.marker.empty()) say({"PEXPIRE", settings_.marker, "1", "GT"});
    // Calls are served in order only if none has to be sent a second time with its text.
    for (int step = 0; step < kSteps; ++step) {
      say({"SCRIPT", "LOAD", ScriptOf(static_cast<Step>(step)).text});
    }
  }
  Write();
}

void Connection::OnGreetingReply(const redisReply& reply) {
  const std::string_view command = greeting_[greeted_++];
  if (reply.type == REDIS_REPLY_ERROR) {
    const std::string_view text = TextOf(reply);
    // A user may be allowed everything that we need, and yet not INFO, nor SCRIPT. What keeps a
    // server from writing is told to those who ask for it.
    const Refusal refusal = ReadGreetingError(command, text);
    const bool dispensable = command == "PEXPIRE" ? refusal.reason == Reason::kBackendUnavailable
                                                  : (command == "INFO" || command == "SCRIPT") &&
                                                        absl::StartsWith(text, "NOPERM");
    if (!dispensable) {
      const std::string_view meaning =
          refusal.meaning.empty() ? "the server does not do what it is asked" : refusal.meaning;
      return Fail(absl::StrCat(meaning, " (", command, ": ", text, ")"), refusal.reason);
    }
  } else if (command == "INFO") {
    if (reply.type != REDIS_REPLY_STRING) return Fail("this is no Redis server");
    if (absl::StrContains(TextOf(reply), "cluster_enabled:1")) {
      return Fail(
          "the server is part of a Redis Cluster, which is not supported; use a server "
          "of its own, or a quorum of independent servers",
          Reason::kNotSupported);
    }
  } else if (command == "SUBSCRIBE" && KindOf(reply) != "subscribe") {
    return Fail("this is no Redis server");
  }
  if (greeted_ == greeting_.size()) BecomeReady();
}

void Connection::BecomeReady() {
  OnWaitingTimer();  // Those whose time is over are not sent.
  state_ = State::kReady;
  vouches_ = false;
  failures_ = 0;
  tried_.clear();
  uv_timer_stop(&deadline_timer_);
  if (!settings_.channel.empty()) {
    uv_timer_start(
        &reconnect_timer_,
        [](uv_timer_t* timer) {
          auto* connection = static_cast<Connection*>(timer->data);
          connection->Send(std::make_unique<Ping>());
          connection->Flush();
        },
        kPingMs, kPingMs);
  }
  if (ssl_ == nullptr && settings_.channel.empty()) {
    absl::MutexLock lock(&context_mutex_);
    lent_context_ = context_;
  }
  listener_.OnReady(*this);
  std::deque<std::unique_ptr<Call>> waiting = std::move(waiting_);
  waiting_.clear();
  for (auto& call : waiting) Send(std::move(call));
  Flush();
}

// ---- Calls -------------------------------------------------------------------------------------

void Connection::Send(std::unique_ptr<Call> call) {
  if (call->until_ms_ == 0) call->until_ms_ = uv_now(loop_) + ToMs(settings_.command_timeout);
  switch (state_) {
    case State::kReady:
      call->AppendTo(out_);
      {
        absl::MutexLock lock(&mutex_);
        direct_fd_ = -1;  // Until this is written.
        in_flight_.push_back({.call = std::move(call), .sent_ms = uv_now(loop_)});
        ++prompt_;
        last_sender_ = nullptr;
        if (lent_ && borrower_ == nullptr) TakeBack();
      }
      return;
    case State::kStopped:
      call->OnFailure(false, last_failure_);
      return;
    default:
      if (failures_ > 0) {
        call->OnFailure(false, last_failure_);
      } else if (waiting_.size() >= kMaxWaiting) {
        call->OnFailure(
            false, BackendUnavailableError(absl::StrCat(
                       settings_.address.ToString(), ": too many requests wait for a connection")));
      } else {
        waiting_.push_back(std::move(call));
        ArmWaitingTimer();
      }
  }
}

void Connection::ArmWaitingTimer() {
  if (waiting_.empty() || uv_is_active(reinterpret_cast<uv_handle_t*>(&waiting_timer_)) != 0) {
    return;
  }
  const uint64_t now = uv_now(loop_);
  uv_timer_start(
      &waiting_timer_,
      [](uv_timer_t* timer) { static_cast<Connection*>(timer->data)->OnWaitingTimer(); },
      waiting_.front()->until_ms_ - std::min(waiting_.front()->until_ms_, now), 0);
}

void Connection::OnWaitingTimer() {
  // Those that may be added meanwhile are not over yet.
  while (!waiting_.empty() && waiting_.front()->until_ms_ <= uv_now(loop_)) {
    const std::unique_ptr<Call> late = std::move(waiting_.front());
    waiting_.pop_front();
    late->OnFailure(false, BackendUnavailableError(
                               absl::StrCat(settings_.address.ToString(), ": no connection within ",
                                            absl::FormatDuration(settings_.command_timeout))));
  }
  ArmWaitingTimer();
}

void Connection::Flush() {
  HandleAnswered();
  bool read_asked = false;
  {
    absl::MutexLock lock(&mutex_);
    if (!left_over_.empty()) {
      out_.insert(0, left_over_);
      left_over_.clear();
    }
    read_asked = std::exchange(read_asked_, false);
  }
  if (state_ != State::kReady) return;
  if (read_asked) {
    Poll* const polled = poll_;
    Read();
    if (poll_ != polled) return;
  }
  if (out_.empty() || write_blocked_) return;
  ArmCommandTimer();
  Write();
}

Connection::Direct Connection::SendDirectly(std::unique_ptr<Call>& call,
                                            const BlockedThread* caller) {
  std::string bytes;
  call->AppendTo(bytes);
  const uint64_t now = uv_hrtime() / 1'000'000;
  call->until_ms_ = now + ToMs(settings_.command_timeout);
  bool all_written = false;
  Direct direct;
  {
    absl::MutexLock lock(&mutex_);
    if (direct_fd_ < 0) return direct;
    // Where several threads take turns, the loop's reads for all of them, in larger bites.
    const bool again = std::exchange(last_sender_, &thread_marker) == &thread_marker;
    const bool borrows = caller != nullptr && lending_ && again &&
                         (!lent_ || borrower_ == nullptr || borrower_ == caller);
    if (borrows && !lent_) Lend();
    if (!borrows && lent_ && borrower_ == nullptr) TakeBack();
    // Under the mutex, so that the order of the calls is that of their bytes, and no reply is
    // early.
    const ssize_t written =
        send(direct_fd_, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (written <= 0) return direct;  // What is wrong the loop's thread will see.
    direct.sent = true;
    if (borrows) {
      if (borrower_ != caller) {
        borrower_ = caller;
        ++loan_;
        due_ = 0;
      }
      ++due_;
      direct.loan = loan_;
      direct.descriptor = direct_fd_;
    } else {
      ++prompt_;
    }
    in_flight_.push_back({.call = std::move(call), .sent_ms = now, .loan = direct.loan});
    all_written = static_cast<size_t>(written) == bytes.size();
    if (!all_written) {
      direct_fd_ = -1;
      left_over_ = bytes.substr(static_cast<size_t>(written));
    }
  }
  if (!all_written) listener_.OnWork();
  return direct;
}

void Connection::AllowDirect() {
  // Without the timer nobody would notice that no reply comes. TLS is not for two threads.
  const bool allowed = state_ == State::kReady && ssl_ == nullptr && !write_blocked_ &&
                       out_.empty() && settings_.channel.empty() && !reading_ &&
                       uv_is_active(reinterpret_cast<uv_handle_t*>(&deadline_timer_)) != 0;
  absl::MutexLock lock(&mutex_);
  direct_fd_ = allowed && left_over_.empty() ? static_cast<int>(context_->fd) : -1;
}

size_t Connection::calls_in_flight() const {
  absl::MutexLock lock(&mutex_);
  return in_flight_.size() + answered_.size() + waiting_.size();
}

void Connection::Write() {
  if (context_ == nullptr) return;
  ERR_clear_error();
  int done = 0;
  int result;
  {
    absl::MutexLock lock(&context_mutex_);
    if (!out_.empty()) redisAppendFormattedCommand(context_, out_.data(), out_.size());
    result = redisBufferWrite(context_, &done);
  }
  out_.clear();
  if (result != REDIS_OK) {
    const std::string why = absl::StrCat("the connection broke: ", context_->errstr);
    if (!HeardWhy()) Fail(why);
    return;
  }
  // Under TLS a write may wait for something to read; asking for writability would spin.
  write_blocked_ = done == 0 && (ssl_ == nullptr || SSL_want_read(ssl_) == 0);
  UpdatePoll();
  write_blocked_ = done == 0;
  AllowDirect();
}

void Connection::Read() {
  Poll* const polled = poll_;
  HandleAnswered();
  if (poll_ != polled) return;
  {
    absl::MutexLock lock(&mutex_);
    if (lent_) {
      // It was lent when this was under way already, or it broke.
      pollfd now{.fd = socket_fd_, .events = POLLRDHUP, .revents = 0};
      if (poll(&now, 1, 0) != 1) return;
      TakeBack();
    }
    // What was said unasked must not become the answer to a request that is made meanwhile.
    direct_fd_ = -1;
  }
  // What is handled may flush, and that may read.
  const bool within = std::exchange(reading_, true);
  do {
    ERR_clear_error();
    int result;
    {
      absl::MutexLock lock(&context_mutex_);
      result = redisBufferRead(context_);
    }
    if (result != REDIS_OK) {
      if (ssl_ != nullptr && state_ == State::kGreeting &&
          ReadTlsError(X509_V_OK, ERR_peek_last_error()) == Reason::kBackendRefused) {
        // From TLS 1.3 on this is how a server refuses our certificate.
        return FailTls("TLS failed");
      }
      // What came before the end may be a last word, such as "too many clients".
      std::string why = absl::StrCat("the connection broke: ", context_->errstr);
      if (context_->err == REDIS_ERR_EOF) {
        context_->err = 0;
        ReadReplies();
        if (poll_ != polled) return;
      }
      return Fail(why);
    }
    ReadReplies();
    if (poll_ != polled) return;
  } while (ssl_ != nullptr && SSL_pending(ssl_) > 0);
  reading_ = within;
  AllowDirect();
}

bool Connection::HeardWhy() {
  if (state_ != State::kGreeting) return false;
  Poll* const polled = poll_;
  context_->err = 0;
  Read();
  return poll_ != polled;
}

void Connection::ReadReplies() {
  Poll* const polled = poll_;
  for (;;) {
    Reply reply;
    std::unique_ptr<Call> call;
    bool is_answer = false;
    int result;
    {
      absl::MutexLock lock(&context_mutex_);
      void* raw = nullptr;
      result = redisGetReplyFromReader(context_, &raw);
      reply.reset(static_cast<redisReply*>(raw));
      is_answer = reply != nullptr && IsAnswer(*reply);
      if (is_answer) {
        absl::MutexLock calls_lock(&mutex_);
        if (!in_flight_.empty()) call = TakeOldest().call;
      }
    }
    if (result != REDIS_OK) {
      return Fail(absl::StrCat("the server does not speak Redis' protocol: ",
                               absl::CHexEscape(context_->errstr)));
    }
    if (reply == nullptr) return;
    if (is_answer) {
      HandleAnswer(std::move(call), *reply);
    } else if (state_ == State::kGreeting) {
      OnGreetingReply(*reply);
    } else if (reply->elements == 3) {
      listener_.OnMessage(TextOf(*reply->element[2]));
    }
    if (poll_ != polled) return;
  }
}

bool Connection::IsAnswer(const redisReply& reply) const {
  if (state_ == State::kGreeting) return greeted_ == greeting_.size();
  return settings_.channel.empty() || KindOf(reply) != "message";
}

void Connection::HandleAnswer(std::unique_ptr<Call> call, const redisReply& reply) {
  if (call == nullptr) {
    // A reply to nothing. An error is the server's reason for what it does next.
    if (reply.type == REDIS_REPLY_ERROR) {
      return Fail(absl::StrCat("the server says: ", TextOf(reply)),
                  ReadGreetingError("", TextOf(reply)).reason);
    }
    return Fail("the server sent a reply that nobody asked for");
  }
  if (call->OnReply(reply) == Call::Next::kSendAgain) Send(std::move(call));
}

void Connection::ArmCommandTimer() {
  uint64_t left = ToMs(settings_.command_timeout);
  {
    absl::MutexLock lock(&mutex_);
    if (in_flight_.empty()) return;
    // A call that waited for the connection has less time left.
    const uint64_t until = in_flight_.front().call->until_ms_;
    left = std::min(left, until - std::min(until, uv_now(loop_)));
  }
  // Not moved for each call: when it fires, it looks for the oldest one.
  if (uv_is_active(reinterpret_cast<uv_handle_t*>(&deadline_timer_)) != 0) return;
  uv_timer_start(
      &deadline_timer_, [](uv_timer_t* timer) { static_cast<Connection*>(timer->data)->OnTimer(); },
      left, 0);
}

void Connection::OnTimer() {
  if (state_ != State::kReady) {
    return Fail(absl::StrCat("no connection within ", absl::FormatDuration(patience_)));
  }
  Poll* const polled = poll_;
  const uint64_t again = EndLateCalls();
  if (poll_ != polled) return;
  if (again == 0) {
    return Fail(absl::StrCat("no reply within ", absl::FormatDuration(settings_.command_timeout)));
  }
  if (again == kEndedMs) return;
  const uint64_t now = uv_now(loop_);
  uv_timer_start(
      &deadline_timer_, [](uv_timer_t* timer) { static_cast<Connection*>(timer->data)->OnTimer(); },
      again - std::min(again, now), 0);
}

uint64_t Connection::EndLateCalls() {
  const uint64_t limit = ToMs(settings_.command_timeout);
  const absl::Status why = BackendUnavailableError(
      absl::StrCat(settings_.address.ToString(), ": no reply within ",
                   absl::FormatDuration(settings_.command_timeout), ", connecting included"));
  for (;;) {
    std::unique_ptr<Call> late;
    {
      absl::MutexLock lock(&mutex_);
      if (in_flight_.empty()) {
        direct_fd_ = -1;  // The next call sets the timer.
        return kEndedMs;
      }
      // The loop's idea of now may be older than what another thread has sent.
      const uint64_t now = uv_now(loop_);
      const uint64_t due = in_flight_.front().sent_ms + limit;
      if (due <= now) return 0;
      const auto next = std::find_if(in_flight_.begin(), in_flight_.end(), [](const InFlight& one) {
        return one.call->until_ms_ != kEndedMs;
      });
      if (next == in_flight_.end()) return due;
      if (next->call->until_ms_ > now) return std::min(due, next->call->until_ms_);
      late = std::exchange(next->call, std::make_unique<EndedCall>());
      next->call->until_ms_ = kEndedMs;
    }
    late->OnFailure(true, why);
    if (state_ != State::kReady) return kEndedMs;
  }
}

// ---- Ends --------------------------------------------------------------------------------------

void Connection::CloseSocket() {
  {
    absl::MutexLock lock(&context_mutex_);
    lent_context_ = nullptr;
  }
  if (poll_ != nullptr) {
    poll_->connection = nullptr;
    uv_close(reinterpret_cast<uv_handle_t*>(&poll_->handle),
             [](uv_handle_t* handle) { delete static_cast<Poll*>(handle->data); });
    poll_ = nullptr;
  }
  {
    absl::MutexLock lock(&mutex_);
    direct_fd_ = -1;
    left_over_.clear();
    read_asked_ = false;
    std::erase_if(answered_, [](const Answered& one) { return one.call == nullptr; });
    // Whoever waits for it is to look again.
    if (lent_) shutdown(socket_fd_, SHUT_RDWR);
    lent_ = false;
    borrower_ = nullptr;
    // Only now: a descriptor must not be closed while the loop watches it.
    if (watch_fd_ >= 0) close(std::exchange(watch_fd_, -1));
    if (loan_timer_fd_ >= 0) close(std::exchange(loan_timer_fd_, -1));
    loan_timer_runs_ = false;
    socket_fd_ = -1;
  }
  if (context_ != nullptr) redisFree(context_);  // Frees ssl_ as well.
  context_ = nullptr;
  ssl_ = nullptr;
  out_.clear();
  write_blocked_ = false;
  reading_ = false;
}

void Connection::FailCalls(const absl::Status& why) {
  std::deque<InFlight> in_flight;
  {
    absl::MutexLock lock(&mutex_);
    in_flight.swap(in_flight_);
    prompt_ = due_ = 0;
  }
  std::deque<std::unique_ptr<Call>> waiting = std::move(waiting_);
  waiting_.clear();
  for (InFlight& sent : in_flight) sent.call->OnFailure(true, why);
  for (auto& call : waiting) call->OnFailure(false, why);
}

void Connection::Fail(std::string_view why, Reason reason) {
  if (state_ == State::kStopped) return;
  const bool was_ready = state_ == State::kReady;
  CloseSocket();
  if (resolving_ != nullptr) {
    resolving_->connection = nullptr;
    uv_cancel(reinterpret_cast<uv_req_t*>(&resolving_->request));
    resolving_ = nullptr;
  }
  if (was_ready) {
    return GoDown(MakeError(reason, absl::StrCat(settings_.address.ToString(), ": ", why)));
  }
  tried_.push_back({.address = next_address_ > 0 ? addresses_[next_address_ - 1] : "",
                    .why = std::string(why),
                    .reason = reason});
  TryAddresses();
}

void Connection::GoDown(const absl::Status& why) {
  const bool was_ready = state_ == State::kReady;
  uv_timer_stop(&deadline_timer_);
  state_ = State::kDown;
  last_failure_ = why;
  // After a connection that worked the first attempt follows at once, and calls wait for it.
  absl::Duration delay = absl::ZeroDuration();
  if (!was_ready) {
    delay = std::min(settings_.max_reconnect_delay,
                     settings_.reconnect_delay * (1 << std::min(failures_, 20)));
    ++failures_;
  }
  const uint64_t most = ToMs(delay);
  uv_timer_start(
      &reconnect_timer_,
      [](uv_timer_t* timer) { static_cast<Connection*>(timer->data)->Connect(); },
      absl::Uniform<uint64_t>(random_, most / 2, most + 1), 0);
  FailCalls(why);
  listener_.OnDown(*this, why);
}

}  // namespace latchkey::redis
