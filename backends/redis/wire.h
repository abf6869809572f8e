// What goes over the wire to Redis: names of keys and channels, numbers as the scripts expect
// them, commands and events. See scripts/record.lua for the other side.
//
// Thread safety: pure functions and values.
#ifndef LATCHKEY_BACKENDS_REDIS_WIRE_H_
#define LATCHKEY_BACKENDS_REDIS_WIRE_H_

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "latchkey/backends/redis/scripts.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/locking_protocol.h"

namespace latchkey::redis {

// Tokens and times stay below this, so that Lua's doubles hold them exactly.
inline constexpr uint64_t kMaxNumber = (uint64_t{1} << 53) - 1;

// How far a proposed token may be from the server's clock, as in scripts/record.lua.
inline constexpr absl::Duration kTokenSlack = absl::Seconds(10);

// The keys of one resource. Bytes that could confuse a reader of keys (anything but letters,
// digits and -_./:@) are percent-encoded. The braces keep both in one slot.
std::string RecordKey(std::string_view prefix, std::string_view resource);
std::string WaitingListKey(std::string_view prefix, std::string_view resource);
std::string WaitingListKeyOf(std::string_view record_key);
std::string MarkerKey(std::string_view prefix);
std::string ChannelPrefix(std::string_view prefix);

// An int64 as 20 digits that compare as it does; and the other way round, which orders the waiting
// list. PriorityFromWire: what EncodePriority made; 0 for anything else.
std::string EncodePriority(Priority priority);
std::string EncodePriorityDescending(Priority priority);
Priority PriorityFromWire(std::string_view text);

// Microseconds, rounded up: a lease on the server never ends before the client's own.
int64_t ToMicrosUp(absl::Duration duration);

// The acquisition id of 32 hexadecimal digits, or none.
std::optional<AcquisitionId> AcquisitionFromWire(std::string_view text);

// Appends one argument, or one whole command, in Redis' protocol.
void AppendArgument(std::string& out, std::string_view argument);
std::string MakeCommand(std::initializer_list<std::string_view> arguments);

// One call of a script. The same call is EVALSHA at first, and EVAL if the server does not know
// the script yet.
class ScriptCall {
 public:
  // `keys` in the order of record.lua.
  ScriptCall(Step step, std::string_view record, std::string_view waiting_list,
             std::string_view marker, std::initializer_list<std::string_view> arguments);

  void AppendTo(std::string& out, bool with_text) const;

  // The key of the record, for messages.
  std::string_view record() const;

 private:
  Step step_;
  int arguments_;
  std::string tail_;  // Keys and arguments, encoded.
};

// A message on a client's channel.
struct Message {
  AcquisitionId acquisition = {};
  // None: the message only asks to look.
  std::optional<WatchEvent> event = std::nullopt;
  // Look after this time, when the state may change although no script runs.
  std::optional<absl::Duration> look_after = std::nullopt;
};

// Nothing if it is none of ours.
std::optional<Message> ParseMessage(std::string_view text);

// 'r', 'x', 's' as in scripts/record.lua.
HoldEnd HoldEndFromWire(char why);

}  // namespace latchkey::redis

#endif  // LATCHKEY_BACKENDS_REDIS_WIRE_H_
