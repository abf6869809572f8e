// What goes over the wire to Redis: names of keys and channels, numbers as the scripts expect
// them, commands and events. See scripts/record.lua for the other side.
//
// Thread safety: pure functions and values.
#ifndef LATCHKEY_BACKENDS_REDIS_WIRE_H_
#define LATCHKEY_BACKENDS_REDIS_WIRE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "latchkey/backends/redis/scripts.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/protocol/locking_protocol.h"

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

// A number as the record has it, '<d' in Lua: the double in the first 8 bytes, if it is a whole one
// from 0 to kMaxNumber.
std::optional<uint64_t> NumberFromWire(std::string_view bytes);
// The other way round. `number` from -1 to kMaxNumber.
std::array<char, 8> NumberToWire(int64_t number);

// How much of the record's field s every record has. The last 32 bytes are an acquisition.
inline constexpr size_t kStateSize = 64;

// Microseconds, rounded up: a lease on the server never ends before the client's own.
int64_t ToMicrosUp(absl::Duration duration);

// The acquisition id of 32 hexadecimal digits, or none.
std::optional<AcquisitionId> AcquisitionFromWire(std::string_view text);

// Appends one argument, or one whole command, in Redis' protocol.
void AppendArgument(std::string& out, std::string_view argument);
std::string MakeCommand(std::initializer_list<std::string_view> arguments);

// One call of a script, as it is sent. The same call is EVALSHA at first, and EVAL if the server
// does not know the script yet.
class ScriptCall {
 public:
  void AppendTo(std::string& out, bool with_text) const;

  // The key of the record, for messages. Lives as long as the call.
  std::string_view record() const { return std::string_view(command_).substr(key_at_, key_size_); }
  // The script's.
  std::string_view text() const { return ScriptOf(step_).text; }

 private:
  friend class ScriptCalls;

  Step step_ = Step::kObtain;
  uint32_t arguments_ = 0;  // Of the command EVALSHA.
  uint32_t head_size_ = 0;  // Up to the script's name.
  uint32_t key_at_ = 0;
  uint32_t key_size_ = 0;
  std::string command_;
};

// Writes the calls of one client. What the scripts expect is in the head of each; everything of a
// call goes into one buffer, since this is done for each lock and unlock.
//
//   const ScriptCalls calls({.key_prefix = "latchkey:", .client = client, .max_lease = ...});
//   calls.Release("orders/42", acquisition).AppendTo(out, false);
//
// Thread safety: constant after construction.
class ScriptCalls {
 public:
  struct Settings {
    std::string key_prefix = {};
    std::string client = {};  // 16 hexadecimal digits.
    absl::Duration max_lease = {};
    absl::Duration max_clock_skew = {};
    absl::Duration waiter_lease = {};
  };
  // What one wants to know about a resource.
  struct Look {
    std::string_view resource = {};
    AcquisitionId acquisition = {};
    bool as_holder = false;  // Then the rest does not matter.
    std::string_view owner = {};
    Priority priority = 0;
    bool barging = false;
    absl::Duration reservation = {};
    AcquisitionId takes_place_of = {};
  };

  explicit ScriptCalls(Settings settings);

  // A single server needs no agreement on tokens: there they follow its own clock alone, also when
  // a record is lost.
  ScriptCall Obtain(const ObtainRequest& request) const { return Obtain(request, 0, false); }
  // For a quorum, which reads the fence back. `proposed_token`: in microseconds of this machine's
  // clock.
  ScriptCall ObtainAsMember(const ObtainRequest& request, int64_t proposed_token) const {
    return Obtain(request, proposed_token, true);
  }
  ScriptCall Release(std::string_view resource, AcquisitionId acquisition) const;
  ScriptCall Extend(std::string_view resource, AcquisitionId acquisition,
                    absl::Duration lease) const;
  ScriptCall Confirm(std::string_view resource, AcquisitionId acquisition,
                     FencingToken token) const;
  ScriptCall Watch(const Look& look) const;
  ScriptCall Unwatch(std::string_view resource, AcquisitionId acquisition) const;

 private:
  class Writer;

  ScriptCall Obtain(const ObtainRequest& request, int64_t proposed_token,
                    bool reads_fence_back) const;

  const Settings settings_;
  const std::string marker_;  // The marker's key as an argument.
  const std::array<char, 8> max_lease_;
  const std::string clock_skew_;
  const std::string waiter_lease_;
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
