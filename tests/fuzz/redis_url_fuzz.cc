// Reading a Redis server's URL: never crashes, refuses only with kInvalidArgument, never shows a
// password, and what it shows of a URL that it accepts is a URL of the same server.
//
// Even first byte: the rest is the URL. Odd: a URL is put together with a known password in it.
#include <string>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "latchkey/backends/redis/redis_url.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/tests/fuzz/fuzz_input.h"

namespace latchkey {
namespace {

using redis::ParseRedisUrl;
using redis::RedisAddress;
using redis::Transport;

// Must not come up in anything shown.
constexpr std::string_view kSecret = "Geheim0815";

void CheckShown(std::string_view shown, bool has_secret) {
  FuzzCheck(!has_secret || !absl::StrContains(shown, kSecret),
            absl::StrCat("shows the password: ", shown));
}

void Check(std::string_view url, bool has_secret) {
  const absl::StatusOr<RedisAddress> address = ParseRedisUrl(url);
  if (!address.ok()) {
    FuzzCheck(ReasonOf(address.status()) == Reason::kInvalidArgument, "the reason is another");
    FuzzCheck(absl::StartsWith(address.status().message(), "url: "), "the option is not named");
    CheckShown(address.status().ToString(), has_secret);
    return;
  }
  if (address->transport == Transport::kUnix) {
    FuzzCheck(absl::StartsWith(address->path, "/"), "a path that is not absolute");
    // Longer ones, and what follows a NUL, would be cut off on the way to the kernel.
    FuzzCheck(address->path.size() <= 107, "a path that no socket has");
    FuzzCheck(!absl::StrContains(address->path, '\0'), "a path with a NUL");
  } else {
    FuzzCheck(!address->host.empty(), "no host");
    FuzzCheck(address->port >= 1 && address->port <= 65535, "no port");
  }
  FuzzCheck(address->database >= 0, "a negative database");
  FuzzCheck(address->user.empty() || !address->password.empty(), "a user without a password");

  const std::string shown = address->ToString();
  // What begins with a '/' is a path, whatever is in it.
  CheckShown(shown, has_secret && address->transport != Transport::kUnix);
  const absl::StatusOr<RedisAddress> again = ParseRedisUrl(shown);
  FuzzCheck(again.ok(), absl::StrCat("what is shown is no URL: ", shown));
  FuzzCheck(again->user.empty() && again->password.empty(), "a login is shown");
  FuzzCheck(again->transport == address->transport && again->host == address->host &&
                again->path == address->path && again->database == address->database &&
                (again->port == address->port || address->transport == Transport::kUnix),
            absl::StrCat("what is shown is another server: ", shown));
}

// The password as it stands between "user:" and "@", with whatever before and after it.
void CheckSecret(FuzzInput& input) {
  const std::string_view scheme = input.OneOf<std::string_view>(
      {"redis://", "rediss://", "unix://", "redis:/", "http://", "://", ""});
  const std::string user = input.Text(16);
  const std::string before = input.Text(8);
  const std::string after = input.Text(8);
  const std::string_view rest = input.Rest();
  for (const std::string_view part :
       {std::string_view(user), std::string_view(before), std::string_view(after), rest}) {
    // The fuzzer has learnt the password, and written it elsewhere.
    if (absl::StrContains(part, kSecret)) return;
  }
  Check(absl::StrCat(scheme, user, ":", before, kSecret, after, "@", rest), true);
}

}  // namespace
}  // namespace latchkey

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  latchkey::FuzzInput input(data, size);
  if (input.Flag()) {
    latchkey::CheckSecret(input);
  } else {
    latchkey::Check(input.Rest(), false);
  }
  return 0;
}
