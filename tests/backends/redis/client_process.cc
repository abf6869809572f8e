#include "latchkey/tests/backends/redis/client_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <deque>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/tests/support/await.h"

namespace latchkey {
namespace {

[[noreturn]] void Fail(std::string_view what) {
  fprintf(stderr, "ClientProcess: %.*s: %s\n", static_cast<int>(what.size()), what.data(),
          strerror(errno));
  abort();
}

int ExitOf(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status); }

}  // namespace

// What the client says, read by a thread of its own so that the pipe never fills.
struct ClientProcess::Output {
  mutable absl::Mutex mutex;
  std::deque<std::string> lines ABSL_GUARDED_BY(mutex);
  bool ended ABSL_GUARDED_BY(mutex) = false;
  std::thread reader;

  void Read(int fd) {
    std::string text;
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
      for (size_t end; (end = text.find('\n')) != std::string::npos;) {
        lines.push_back(text.substr(0, end));
        text.erase(0, end + 1);
      }
    }
    close(fd);
  }
};

ClientProcess::ClientProcess(std::vector<std::string> arguments) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  int to_client[2];
  int from_client[2];
  if (pipe2(to_client, O_CLOEXEC) != 0 || pipe2(from_client, O_CLOEXEC) != 0) Fail("no pipe");
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) Fail("cannot fork");
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    dup2(to_client[0], STDIN_FILENO);
    dup2(from_client[1], STDOUT_FILENO);
    execv(argv[0], argv.data());
    fprintf(stderr, "cannot run %s: %s\n", argv[0], strerror(errno));
    _exit(127);
  }
  close(to_client[0]);
  close(from_client[1]);
  input_ = to_client[1];
  output_ = std::make_shared<Output>();
  output_->reader = std::thread([output = output_, fd = from_client[0]] { output->Read(fd); });
}

ClientProcess::~ClientProcess() {
  if (!exit_) Kill();
  CloseInput();
  output_->reader.join();
}

bool ClientProcess::Say(std::string_view line) {
  if (input_ < 0) return false;
  std::string text = absl::StrCat(line, "\n");
  // It may have ended; that must not end the test.
  struct sigaction ignore {};
  struct sigaction before {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, &before);
  const ssize_t size = write(input_, text.data(), text.size());
  sigaction(SIGPIPE, &before, nullptr);
  return size == static_cast<ssize_t>(text.size());
}

std::optional<std::string> ClientProcess::Hear(std::string_view beginning) {
  Output& output = *output_;
  absl::MutexLock lock(&output.mutex);
  std::optional<size_t> at;
  auto heard = [&] {
    output.mutex.AssertReaderHeld();
    for (size_t i = 0; i < output.lines.size(); ++i) {
      if (absl::StartsWith(output.lines[i], beginning)) {
        at = i;
        return true;
      }
    }
    return output.ended;
  };
  output.mutex.AwaitWithTimeout(absl::Condition(&heard), kHangGuard);
  if (!at) {
    fprintf(stderr, "client %d never said '%.*s', but:\n", pid_, static_cast<int>(beginning.size()),
            beginning.data());
    for (const std::string& line : output.lines) fprintf(stderr, "  %s\n", line.c_str());
    return std::nullopt;
  }
  std::string line = std::move(output.lines[*at]);
  output.lines.erase(output.lines.begin() + static_cast<std::ptrdiff_t>(*at));
  return line;
}

bool ClientProcess::HasSaid(std::string_view beginning) const {
  absl::MutexLock lock(&output_->mutex);
  for (const std::string& line : output_->lines) {
    if (absl::StartsWith(line, beginning)) return true;
  }
  return false;
}

void ClientProcess::Pause() {
  if (exit_) return;
  kill(pid_, SIGSTOP);
  int status = 0;
  if (waitpid(pid_, &status, WUNTRACED) == pid_ && !WIFSTOPPED(status)) exit_ = ExitOf(status);
}

void ClientProcess::Continue() {
  if (!exit_) kill(pid_, SIGCONT);
}

void ClientProcess::Kill() {
  if (exit_) return;
  kill(pid_, SIGKILL);
  int status = 0;
  waitpid(pid_, &status, 0);
  exit_ = ExitOf(status);
}

void ClientProcess::CloseInput() {
  if (input_ >= 0) close(std::exchange(input_, -1));
}

bool ClientProcess::HasEnded() {
  int status = 0;
  if (!exit_ && waitpid(pid_, &status, WNOHANG) == pid_) exit_ = ExitOf(status);
  return exit_.has_value();
}

int ClientProcess::AwaitExit() {
  if (exit_) return *exit_;
  // Its output ends with it.
  bool ended = false;
  {
    absl::MutexLock lock(&output_->mutex);
    ended = output_->mutex.AwaitWithTimeout(absl::Condition(&output_->ended), kHangGuard);
  }
  if (!ended) fprintf(stderr, "client %d hangs\n", pid_);
  if (!ended) kill(pid_, SIGKILL);
  int status = 0;
  waitpid(pid_, &status, 0);
  exit_ = ExitOf(status);
  return *exit_;
}

}  // namespace latchkey
