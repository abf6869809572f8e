// A client of the tests in a process of its own, spoken to line by line over its standard input and
// output, so that it can be killed and paused.
//
//   ClientProcess client({"path/of/lock_client", server.url()});
//   client.Say("acquire r lease_ms=500");
//   std::optional<std::string> line = client.Hear("acquired r ");  // "acquired r 17...": the token
//   client.Kill();
//
// Thread safety: none, but for Hear, which waits on a thread that reads. The process dies with the
// thread that made it.
#ifndef LATCHKEY_TESTS_BACKENDS_REDIS_CLIENT_PROCESS_H_
#define LATCHKEY_TESTS_BACKENDS_REDIS_CLIENT_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace latchkey {

class ClientProcess {
 public:
  // Starts it; its standard error goes to ours.
  explicit ClientProcess(std::vector<std::string> arguments);
  ClientProcess(const ClientProcess&) = delete;
  ClientProcess& operator=(const ClientProcess&) = delete;
  // Kills it if it still runs.
  ~ClientProcess();

  // Says one line. False if it is gone.
  bool Say(std::string_view line);
  // Waits until it has said a line that begins with this, and removes that one. Nothing if it ended
  // before it did, or hangs.
  std::optional<std::string> Hear(std::string_view beginning);
  // Has it said such a line by now?
  bool HasSaid(std::string_view beginning) const;

  // SIGSTOP and SIGCONT; Pause returns once it stands.
  void Pause();
  void Continue();
  // SIGKILL, and waits for its end.
  void Kill();
  // Tells it that nobody will say anything more.
  void CloseInput();
  // Waits for its end, and says how: its exit code, or minus the signal. Kills it if it hangs.
  int AwaitExit();
  // Has it ended by itself?
  bool HasEnded();

  pid_t pid() const { return pid_; }

 private:
  struct Output;

  pid_t pid_ = -1;
  int input_ = -1;
  std::optional<int> exit_;
  std::shared_ptr<Output> output_;
};

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_BACKENDS_REDIS_CLIENT_PROCESS_H_
