// RedisBackendOptions: what the header allows is accepted, everything else is refused with
// kInvalidArgument naming the field, before anything connects.
//
// Bytes are the fields in the header's order. What would be accepted is made to connect to a socket
// that does not exist, in the background.
#include <algorithm>
#include <limits>
#include <string>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/backends/redis/redis_url.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/tests/fuzz/fuzz_input.h"

namespace latchkey {
namespace {

bool Within(absl::Duration value, absl::Duration least, absl::Duration most) {
  return least <= value && value <= most;
}

bool AreValid(const RedisBackendOptions& o) {
  const absl::Duration ms = absl::Milliseconds(1);
  const absl::Duration hour = absl::Hours(1);
  const absl::StatusOr<redis::RedisAddress> address = redis::ParseRedisUrl(o.url);
  return address.ok() && o.key_prefix.size() <= 256 && !absl::StrContains(o.key_prefix, '{') &&
         !absl::StrContains(o.key_prefix, '}') && Within(o.connect_timeout, ms, hour) &&
         Within(o.command_timeout, ms, hour) && Within(o.reconnect_delay, ms, hour) &&
         Within(o.max_reconnect_delay, o.reconnect_delay, hour) && o.command_connections >= 1 &&
         o.command_connections <= 16 && Within(o.max_lease, ms, absl::Hours(24)) &&
         Within(o.default_lease, std::max(ms, 3 * o.lease_margin), o.max_lease) &&
         o.clock_drift >= 0 && o.clock_drift <= 0.5 &&
         Within(o.lease_margin, absl::ZeroDuration(), o.max_lease / 3) &&
         Within(o.waiter_lease, absl::Milliseconds(30), hour) &&
         Within(o.shutdown_timeout, absl::ZeroDuration(), hour) &&
         o.tls.certificate_file.empty() == o.tls.key_file.empty();
}

// Mostly what is allowed, or few inputs would get past the first check.
absl::Duration Mostly(FuzzInput& input, absl::Duration otherwise) {
  return input.Below(4) == 0 ? input.SomeDuration() : otherwise;
}

}  // namespace
}  // namespace latchkey

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace latchkey;  // NOLINT(google-build-using-namespace): extern "C".
  FuzzInput input(data, size);
  RedisBackendOptions options;
  if (input.Below(4) == 0) options.url = input.Text(64);
  options.key_prefix = input.Text(255);
  if (input.Below(8) == 0) options.key_prefix.resize(257, 'x');
  options.connect_timeout = Mostly(input, options.connect_timeout);
  options.command_timeout = Mostly(input, options.command_timeout);
  options.reconnect_delay = Mostly(input, options.reconnect_delay);
  options.max_reconnect_delay = Mostly(input, options.max_reconnect_delay);
  if (input.Below(4) == 0) options.command_connections = static_cast<int>(input.SomeInt64());
  options.new_server = input.Flag();
  options.max_lease = Mostly(input, options.max_lease);
  options.default_lease = Mostly(input, options.default_lease);
  if (input.Below(4) == 0) {
    options.clock_drift = input.OneOf<double>(
        {0, 0.5, 0.51, -0.1, 1e300, std::numeric_limits<double>::quiet_NaN(), -0.0});
  }
  options.lease_margin = Mostly(input, options.lease_margin);
  options.waiter_lease = Mostly(input, options.waiter_lease);
  options.shutdown_timeout = Mostly(input, options.shutdown_timeout);
  if (input.Below(4) == 0) options.tls.certificate_file = "/nonexistent/certificate";
  if (input.Below(4) == 0) options.tls.key_file = "/nonexistent/key";
  options.wait_for_connection = false;

  const bool valid = AreValid(options);
  if (valid) options.url = "unix:///nonexistent/latchkey.sock";
  const auto backend = ConnectRedisBackend(options);
  FuzzCheck(backend.ok() == valid,
            absl::StrCat("valid: ", valid, ", but ", backend.status().ToString()));
  if (!valid) {
    FuzzCheck(ReasonOf(backend.status()) == Reason::kInvalidArgument, "the reason is another");
    const std::string_view message = backend.status().message();
    FuzzCheck(
        absl::StartsWith(message, "RedisBackendOptions::") || absl::StartsWith(message, "url: "),
        absl::StrCat("no field is named: ", message));
  } else {
    const BackendCapabilities& can = (*backend)->capabilities();
    FuzzCheck(can.max_lease == options.max_lease && can.default_lease <= can.max_lease,
              "other leases than asked for");
  }
  return 0;
}
