#include "latchkey/backends/redis/wire.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace latchkey::redis {
namespace {

bool IsPlain(char c) {
  constexpr std::string_view kPlain = "-_./:@";
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || kPlain.find(c) != kPlain.npos;
}

// Names may be long, so what needs no escape is copied in one go.
void AppendEscaped(std::string& out, std::string_view resource) {
  constexpr char kHex[] = "0123456789ABCDEF";
  while (!resource.empty()) {
    const auto plain_end = std::find_if_not(resource.begin(), resource.end(), IsPlain);
    const auto plain = static_cast<size_t>(plain_end - resource.begin());
    out.append(resource.substr(0, plain));
    resource.remove_prefix(plain);
    if (resource.empty()) return;
    const auto byte = static_cast<unsigned char>(resource.front());
    out.push_back('%');
    out.push_back(kHex[byte >> 4]);
    out.push_back(kHex[byte & 15]);
    resource.remove_prefix(1);
  }
}

uint64_t Offset(Priority priority) { return static_cast<uint64_t>(priority) ^ (uint64_t{1} << 63); }

std::string TwentyDigits(uint64_t number) {
  std::string digits(20, '0');
  for (size_t i = digits.size(); number != 0; number /= 10) {
    digits[--i] = static_cast<char>('0' + number % 10);
  }
  return digits;
}

}  // namespace

std::string RecordKey(std::string_view prefix, std::string_view resource) {
  std::string key;
  key.reserve(prefix.size() + resource.size() + 2);
  absl::StrAppend(&key, prefix, "{");
  AppendEscaped(key, resource);
  key.push_back('}');
  return key;
}

std::string WaitingListKey(std::string_view prefix, std::string_view resource) {
  return WaitingListKeyOf(RecordKey(prefix, resource));
}

std::string WaitingListKeyOf(std::string_view record_key) {
  return absl::StrCat(record_key, ":waiting");
}

std::string MarkerKey(std::string_view prefix) { return absl::StrCat(prefix, "marker"); }

std::string ChannelPrefix(std::string_view prefix) { return absl::StrCat(prefix, "client:"); }

std::string EncodePriority(Priority priority) { return TwentyDigits(Offset(priority)); }

std::string EncodePriorityDescending(Priority priority) { return TwentyDigits(~Offset(priority)); }

Priority PriorityFromWire(std::string_view text) {
  uint64_t number = 0;
  if (!absl::SimpleAtoi(text, &number)) return 0;
  return static_cast<Priority>(number ^ (uint64_t{1} << 63));
}

int64_t ToMicrosUp(absl::Duration duration) {
  return absl::ToInt64Microseconds(absl::Ceil(duration, absl::Microseconds(1)));
}

std::optional<AcquisitionId> AcquisitionFromWire(std::string_view text) {
  AcquisitionId id;
  if (text.size() != 32 || !absl::SimpleHexAtoi(text.substr(0, 16), &id.high) ||
      !absl::SimpleHexAtoi(text.substr(16), &id.low)) {
    return std::nullopt;
  }
  return id;
}

void AppendArgument(std::string& out, std::string_view argument) {
  absl::StrAppend(&out, "$", argument.size(), "\r\n", argument, "\r\n");
}

std::string MakeCommand(std::initializer_list<std::string_view> arguments) {
  std::string command = absl::StrCat("*", arguments.size(), "\r\n");
  for (const std::string_view argument : arguments) AppendArgument(command, argument);
  return command;
}

std::string_view ScriptCall::record() const {
  // "$1\r\n3\r\n", then the length and the key.
  std::string_view rest = std::string_view(tail_).substr(7);
  size_t size = 0;
  const size_t end = rest.find('\r');
  if (end == std::string_view::npos || !absl::SimpleAtoi(rest.substr(1, end - 1), &size)) return {};
  return rest.substr(end + 2, size);
}

ScriptCall::ScriptCall(Step step, std::string_view record, std::string_view waiting_list,
                       std::string_view marker, std::initializer_list<std::string_view> arguments)
    : step_(step), arguments_(static_cast<int>(arguments.size())) {
  size_t size = record.size() + waiting_list.size() + marker.size() + 32;
  for (const std::string_view argument : arguments) size += argument.size() + 10;
  tail_.reserve(size);
  AppendArgument(tail_, "3");
  AppendArgument(tail_, record);
  AppendArgument(tail_, waiting_list);
  AppendArgument(tail_, marker);
  for (const std::string_view argument : arguments) AppendArgument(tail_, argument);
}

void ScriptCall::AppendTo(std::string& out, bool with_text) const {
  absl::StrAppend(&out, "*", arguments_ + 6, "\r\n");
  const Script& script = ScriptOf(step_);
  AppendArgument(out, with_text ? "EVAL" : "EVALSHA");
  AppendArgument(out, with_text ? script.text : script.sha1);
  out.append(tail_);
}

HoldEnd HoldEndFromWire(char why) {
  switch (why) {
    case 'r':
      return HoldEnd::kReleased;
    case 's':
      return HoldEnd::kStolen;
    default:
      return HoldEnd::kExpired;
  }
}

std::optional<Message> ParseMessage(std::string_view text) {
  if (text.size() < 33) return std::nullopt;
  const std::optional<AcquisitionId> acquisition = AcquisitionFromWire(text.substr(1, 32));
  if (!acquisition) return std::nullopt;
  Message message{.acquisition = *acquisition};
  std::string_view rest = text.substr(33);
  switch (text[0]) {
    case 'D':
      message.event = WatchEvent{.kind = WatchEventKind::kDisplaced};
      return message;
    case 'H':
      if (rest.size() != 1) return std::nullopt;
      message.event =
          WatchEvent{.kind = WatchEventKind::kHoldEnded, .why = HoldEndFromWire(rest[0])};
      return message;
    case 'N':
      message.event = WatchEvent{.kind = WatchEventKind::kYieldWithdrawn};
      return message;
    case 'Y': {
      const std::vector<std::string_view> parts =
          absl::StrSplit(absl::StripLeadingAsciiWhitespace(rest), ' ');
      int64_t grace = 0;
      int64_t left = 0;
      if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &grace) ||
          !absl::SimpleAtoi(parts[2], &left)) {
        return std::nullopt;
      }
      message.look_after = absl::Microseconds(std::max<int64_t>(left, 0));
      message.event = WatchEvent{
          .kind = WatchEventKind::kYieldRequested,
          .grace_remaining = grace < 0 ? absl::InfiniteDuration() : absl::Microseconds(grace),
          .thief_priority = PriorityFromWire(parts[1])};
      return message;
    }
    case 'L': {
      int64_t delay = 0;
      if (!absl::SimpleAtoi(rest, &delay)) return std::nullopt;
      message.look_after = absl::Microseconds(std::max<int64_t>(delay, 0));
      return message;
    }
    default:
      return std::nullopt;
  }
}

}  // namespace latchkey::redis
