// A whole Connection, over a real socket, to a server that says whatever the bytes are: it never
// crashes or hangs, each call ends exactly once, and it tells of going down and nothing after Stop.
//
// The first byte picks the settings and whether the server first greets as Redis does; the second,
// after how many bytes of the rest another call is made (0: all at the start).
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <uv.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "hiredis/hiredis.h"
#include "latchkey/backends/redis/connection.h"
#include "latchkey/backends/redis/replies.h"
#include "latchkey/backends/redis/wire.h"
#include "latchkey/tests/fuzz/fuzz_input.h"

namespace latchkey {
namespace {

using redis::Call;
using redis::Connection;

// One listening socket for all runs, in a folder that goes with the process.
class Listening {
 public:
  Listening() {
    // As the backend does on its own thread.
    signal(SIGPIPE, SIG_IGN);
    std::string name = "/tmp/latchkey-fuzz-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) FuzzFailure("cannot make a folder");
    folder_ = name;
    path_ = absl::StrCat(folder_, "/socket");
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, sizeof address.sun_path - 1);
    socket_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        listen(socket_, 16) != 0) {
      FuzzFailure("cannot listen");
    }
  }
  ~Listening() {
    close(socket_);
    unlink(path_.c_str());
    rmdir(folder_.c_str());
  }

  const std::string& path() const { return path_; }
  int Accept() const { return accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK); }

 private:
  std::string folder_;
  std::string path_;
  int socket_ = -1;
};

// How all calls of a run ended.
struct Ends {
  int begun = 0;
  int ended = 0;
};

class CheckedCall final : public Call {
 public:
  explicit CheckedCall(Ends& ends) : ends_(ends) { ++ends_.begun; }
  ~CheckedCall() override { FuzzCheck(ended_, "a call vanished"); }
  CheckedCall(const CheckedCall&) = delete;
  CheckedCall& operator=(const CheckedCall&) = delete;

  void AppendTo(std::string& out) override { out.append(redis::MakeCommand({"EVALSHA", "0"})); }

  Next OnReply(const redisReply& reply) override {
    FuzzCheck(!ended_, "a call ended twice");
    // As for a server that does not know a script yet.
    if (reply.type == REDIS_REPLY_ERROR && !again_) {
      again_ = true;
      return Next::kSendAgain;
    }
    redis::ReadObtainAnswer(reply, {1, 2}, absl::Seconds(30));
    redis::ReadReleaseAnswer(reply);
    redis::ReadWatchAnswer(reply);
    End();
    return Next::kDone;
  }

  bool OnReplyElsewhere(const redisReply&) override {
    FuzzCheck(false, "the connection was lent, though nobody waits");
    return false;
  }

  void OnFailure(bool, const absl::Status& why) override {
    FuzzCheck(!ended_, "a call ended twice");
    FuzzCheck(!why.ok(), "failed with OK");
    End();
  }

 private:
  void End() {
    ended_ = true;
    ++ends_.ended;
  }

  Ends& ends_;
  bool again_ = false;
  bool ended_ = false;
};

class Listener : public Connection::Listener {
 public:
  void OnReady(Connection&) override {
    FuzzCheck(!stopped, "ready after Stop");
    ready = true;
  }
  void OnDown(Connection&, const absl::Status& why) override {
    FuzzCheck(!stopped, "down after Stop");
    FuzzCheck(!why.ok(), "down for no reason");
    down = true;
  }
  void OnMessage(std::string_view message) override {
    FuzzCheck(!stopped, "a message after Stop");
    redis::ParseMessage(message);
  }
  void OnWork() override { FuzzCheck(false, "work from another thread, of which there is none"); }

  bool ready = false;
  bool down = false;
  bool stopped = false;
};

class Run {
 public:
  Run(const Listening& listening, FuzzInput& input) {
    const int flags = input.Byte();
    const size_t piece = input.Byte();
    std::string stream;
    uv_loop_init(&loop_);
    Connection::Settings settings{
        .address = {.transport = redis::Transport::kUnix, .path = listening.path()},
        .connect_timeout = absl::Hours(1),
        .command_timeout = absl::Hours(1),
        .reconnect_delay = absl::Hours(1),
        .max_reconnect_delay = absl::Hours(1)};
    if ((flags & 1) != 0) {
      settings.address.password = "password";
      stream += "+OK\r\n";
    }
    if ((flags & 2) != 0) {
      settings.address.database = 3;
      stream += "+OK\r\n";
    }
    stream += "$19\r\n# Cluster\r\nx:0\r\n\r\n\r\n";
    if ((flags & 4) != 0) {
      settings.marker = "marker";
      settings.new_server = true;
      stream += "$-1\r\n";
    }
    if ((flags & 8) != 0) {
      settings.channel = "channel";
      stream += "*3\r\n$9\r\nsubscribe\r\n$7\r\nchannel\r\n:1\r\n";
    } else if ((flags & 4) != 0) {
      stream += ":0\r\n";
    }
    // Does the server greet as it should, before the bytes?
    if ((flags & 16) == 0) stream.clear();
    stream += input.Rest();

    {
      Connection connection(&loop_, settings, listener_);
      connection.Start();
      const int server = listening.Accept();
      FuzzCheck(server >= 0, "nobody connected");
      if (piece == 0) Ask(connection);
      std::string_view left = stream;
      while (!left.empty() && !listener_.down) {
        const size_t size = piece == 0 ? left.size() : std::min(piece, left.size());
        const ssize_t sent = send(server, left.data(), size, MSG_NOSIGNAL);
        if (sent <= 0) break;
        left.remove_prefix(static_cast<size_t>(sent));
        if (piece != 0) Ask(connection);
        Turn();
      }
      close(server);
      if (!listener_.down) Turn();
      FuzzCheck(listener_.down, "it did not notice that the server is gone");
      listener_.stopped = true;
      connection.Stop();
      connection.Send(std::make_unique<CheckedCall>(ends_));
      FuzzCheck(ends_.begun == ends_.ended, "a call did not end");
      uv_run(&loop_, UV_RUN_DEFAULT);
    }
    FuzzCheck(uv_loop_close(&loop_) == 0, "the loop still has work");
  }

 private:
  void Ask(Connection& connection) {
    connection.Send(std::make_unique<CheckedCall>(ends_));
    connection.Flush();
  }

  // A few rounds of the loop: what has arrived is read, and what is to be written is.
  void Turn() {
    for (int i = 0; i < 6 && !listener_.down; ++i) uv_run(&loop_, UV_RUN_NOWAIT);
  }

  uv_loop_t loop_;
  Listener listener_;
  Ends ends_;
};

}  // namespace
}  // namespace latchkey

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const latchkey::Listening listening;
  latchkey::FuzzInput input(data, size);
  latchkey::Run(listening, input);
  return 0;
}
