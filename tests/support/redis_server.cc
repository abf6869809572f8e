#include "latchkey/tests/support/redis_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "hiredis/hiredis.h"

namespace latchkey {
namespace {

// Longer than any machine needs; only a server that hangs meets it.
constexpr absl::Duration kHangGuard = absl::Seconds(60);

[[noreturn]] void Fail(const std::string& message) {
  fprintf(stderr, "RedisServer: %s\n", message.c_str());
  abort();
}

std::string TextOf(const redisReply* reply) {
  if (reply == nullptr) return "(no reply)";
  switch (reply->type) {
    case REDIS_REPLY_INTEGER:
      return absl::StrCat(reply->integer);
    case REDIS_REPLY_NIL:
      return "(nil)";
    case REDIS_REPLY_ARRAY:
      return absl::StrJoin(reply->element, reply->element + reply->elements, "\n",
                           [](std::string* out, const redisReply* element) {
                             absl::StrAppend(out, TextOf(element));
                           });
    default:
      return std::string(reply->str, reply->len);
  }
}

}  // namespace

// What the server prints, read by a thread of its own so that the pipe never fills.
struct RedisServer::Output {
  absl::Mutex mutex;
  std::string text ABSL_GUARDED_BY(mutex);
  bool ready ABSL_GUARDED_BY(mutex) = false;
  bool ended ABSL_GUARDED_BY(mutex) = false;
  std::thread reader;

  void Read(int fd) {
    char buffer[4096];
    for (;;) {
      const ssize_t size = read(fd, buffer, sizeof buffer);
      if (size < 0 && errno == EINTR) continue;
      absl::MutexLock lock(&mutex);
      if (size <= 0) {
        ended = true;
        break;
      }
      text.append(buffer, static_cast<size_t>(size));
      // "Ready to accept connections" or "The server is now ready to accept connections at ...".
      if (absl::StrContains(text, "eady to accept connections")) ready = true;
    }
    close(fd);
  }
};

int UnusedPort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    Fail("no free port");
  }
  close(fd);
  return ntohs(address.sin_port);
}

RedisServer::RedisServer(RedisServerOptions options) : options_(std::move(options)) {
  // Not the test's own folder: the path of a socket must be short.
  std::string folder = (std::filesystem::temp_directory_path() / "latchkey-redis-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) Fail("cannot make a folder for the server");
  folder_ = folder;
  socket_path_ = folder_ + "/socket";
  if (options_.tcp) port_ = UnusedPort();
  Start();
}

RedisServer::~RedisServer() {
  Kill();
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

std::string RedisServer::url() const { return absl::StrCat("unix://", socket_path_); }

std::string RedisServer::log() const {
  absl::MutexLock lock(&output_->mutex);
  return output_->text;
}

void RedisServer::Start() {
  std::vector<std::string> arguments = {"redis-server",
                                        "--port",
                                        absl::StrCat(port_),
                                        "--bind",
                                        "127.0.0.1",
                                        "--unixsocket",
                                        socket_path_,
                                        "--dir",
                                        folder_,
                                        "--save",
                                        "",
                                        "--daemonize",
                                        "no"};
  if (options_.persistent) {
    for (const char* more : {"--appendonly", "yes", "--appendfsync", "always"}) {
      arguments.emplace_back(more);
    }
  }
  arguments.insert(arguments.end(), options_.arguments.begin(), options_.arguments.end());
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::vector<char*> environment;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    environment.push_back(*variable);
  }
  for (std::string& variable : options_.environment) environment.push_back(variable.data());
  environment.push_back(nullptr);

  unlink(socket_path_.c_str());
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) Fail("no pipe");
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) Fail("cannot fork");
  if (pid_ == 0) {
    // Ends with the test whatever happens to it.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    dup2(pipe_fds[1], STDOUT_FILENO);
    dup2(pipe_fds[1], STDERR_FILENO);
    execvpe(argv[0], argv.data(), environment.data());
    _exit(127);
  }
  close(pipe_fds[1]);
  auto output = std::make_shared<Output>();
  output->reader = std::thread([output, fd = pipe_fds[0]] { output->Read(fd); });
  output_ = output;

  bool ready = false;
  std::string printed;
  {
    absl::MutexLock lock(&output->mutex);
    auto settled = [&output] {
      output->mutex.AssertReaderHeld();
      return output->ready || output->ended;
    };
    output->mutex.AwaitWithTimeout(absl::Condition(&settled), kHangGuard);
    ready = output->ready;
    printed = output->text;
  }
  if (ready) return;
  int status = 0;
  kill(pid_, SIGKILL);
  waitpid(pid_, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
    Fail("there is no redis-server on PATH. Install it (Debian: redis-server); ./bazelw does.");
  }
  Fail(absl::StrCat("redis-server did not start:\n", printed));
}

void RedisServer::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
  output_->reader.join();
}

void RedisServer::Pause() { kill(pid_, SIGSTOP); }

void RedisServer::Continue() { kill(pid_, SIGCONT); }

std::string RedisServer::Command(const std::vector<std::string>& arguments) const {
  std::unique_ptr<redisContext, decltype(&redisFree)> context(
      redisConnectUnix(socket_path_.c_str()), &redisFree);
  if (context == nullptr || context->err != 0) return "(cannot connect)";
  std::vector<const char*> argv;
  std::vector<size_t> sizes;
  for (const std::string& argument : arguments) {
    argv.push_back(argument.data());
    sizes.push_back(argument.size());
  }
  std::unique_ptr<redisReply, decltype(&freeReplyObject)> reply(
      static_cast<redisReply*>(redisCommandArgv(context.get(), static_cast<int>(argv.size()),
                                                argv.data(), sizes.data())),
      &freeReplyObject);
  return TextOf(reply.get());
}

}  // namespace latchkey
