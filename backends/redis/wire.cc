#include "latchkey/backends/redis/wire.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <charconv>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace latchkey::redis {
namespace {

bool IsPlain(char c) {
  static constexpr std::array<bool, 256> kPlain = [] {
    std::array<bool, 256> plain = {};
    for (const char c : std::string_view("-_./:@0123456789abcdefghijklmnopqrstuvwxyz"
                                         "ABCDEFGHIJKLMNOPQRSTUVWXYZ")) {
      plain[static_cast<unsigned char>(c)] = true;
    }
    return plain;
  }();
  return kPlain[static_cast<unsigned char>(c)];
}

size_t EscapedSize(std::string_view resource) {
  size_t size = resource.size();
  for (const char c : resource) size += IsPlain(c) ? 0 : 2;
  return size;
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

std::string ArgumentOf(std::string_view text) {
  std::string argument;
  AppendArgument(argument, text);
  return argument;
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

std::optional<uint64_t> NumberFromWire(std::string_view bytes) {
  if (bytes.size() < 8) return std::nullopt;
  uint64_t bits = 0;
  for (size_t i = 8; i > 0; --i) bits = bits << 8 | static_cast<unsigned char>(bytes[i - 1]);
  const double number = std::bit_cast<double>(bits);
  if (!(number >= 0 && number <= static_cast<double>(kMaxNumber))) return std::nullopt;
  const auto whole = static_cast<uint64_t>(number);
  if (static_cast<double>(whole) != number) return std::nullopt;
  return whole;
}

std::array<char, 8> NumberToWire(int64_t number) {
  const auto bits = std::bit_cast<uint64_t>(static_cast<double>(number));
  std::array<char, 8> bytes;
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(bits >> (8 * i) & 0xff);
  return bytes;
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

namespace {

// "*7\r\n$7\r\nEVALSHA\r\n$40\r\nSHA1\r\n" and how many keys follow: the beginning of every call of
// a step with so many arguments of its own.
constexpr uint32_t kMostArguments = 5;

struct Head {
  std::string text;
  uint32_t arguments = 0;
};

const Head& HeadOf(Step step, uint32_t own_arguments) {
  using Heads = std::array<std::array<Head, kMostArguments + 1>, kSteps>;
  // Never destroyed: I/O threads may outlive static objects.
  static const Heads& heads = *new Heads([] {
    Heads heads;
    for (int s = 0; s < kSteps; ++s) {
      const auto step = static_cast<Step>(s);
      const uint32_t keys = step == Step::kObtain ? 2 : 1;
      for (uint32_t own = 0; own <= kMostArguments; ++own) {
        Head& head = heads[static_cast<size_t>(s)][own];
        head.arguments = 3 + keys + own;
        absl::StrAppend(&head.text, "*", head.arguments, "\r\n");
        AppendArgument(head.text, "EVALSHA");
        AppendArgument(head.text, ScriptOf(step).sha1);
        AppendArgument(head.text, keys == 2 ? "2" : "1");
      }
    }
    return heads;
  }());
  return heads[static_cast<size_t>(step)][own_arguments];
}

// The length that an argument begins with. Nearly all are below 100.
void AppendSize(std::string& out, size_t size) {
  char buffer[24] = "$";
  char* end = std::to_chars(buffer + 1, buffer + sizeof buffer - 2, size).ptr;
  *end++ = '\r';
  *end++ = '\n';
  out.append(buffer, static_cast<size_t>(end - buffer));
}

// In microseconds. Longer than a century is as long as that: its end, too, has to be a number that
// Lua holds exactly.
int64_t BoundedMicros(absl::Duration duration) {
  return std::min(ToMicrosUp(duration), int64_t{kMaxNumber / 2});
}

// A number below 10^16.
std::array<char, 16> SixteenDigits(int64_t number) {
  std::array<char, 16> digits;
  digits.fill('0');
  for (size_t i = digits.size(); number > 0 && i > 0; number /= 10) {
    digits[--i] = static_cast<char>('0' + number % 10);
  }
  return digits;
}

template <size_t N>
std::string_view ViewOf(const std::array<char, N>& bytes) {
  return {bytes.data(), bytes.size()};
}

}  // namespace

// One call, argument by argument: Begin(size) and then Put() of exactly that many bytes, or one of
// the others.
class ScriptCalls::Writer {
 public:
  // `size`: at least what the arguments need, so that the buffer is allocated once.
  Writer(const ScriptCalls& calls, Step step, std::string_view resource, uint32_t arguments,
         size_t size) {
    const Head& head = HeadOf(step, arguments);
    const size_t key_size = calls.settings_.key_prefix.size() + EscapedSize(resource) + 2;
    std::string& out = call_.command_;
    out.reserve(head.text.size() + key_size + calls.marker_.size() + size + 12 * (arguments + 1));
    call_.step_ = step;
    call_.arguments_ = head.arguments;
    call_.head_size_ = static_cast<uint32_t>(head.text.size() - kKeysSize);
    out.append(head.text);
    AppendSize(out, key_size);
    call_.key_at_ = static_cast<uint32_t>(out.size());
    call_.key_size_ = static_cast<uint32_t>(key_size);
    out.append(calls.settings_.key_prefix);
    out.push_back('{');
    AppendEscaped(out, resource);
    out.append("}\r\n");
    if (step == Step::kObtain) out.append(calls.marker_);
  }

  void Begin(size_t size) {
    AppendSize(call_.command_, size);
    end_ = call_.command_.size() + size;
  }
  void Put(std::string_view bytes) { call_.command_.append(bytes); }
  void Put(char byte) { call_.command_.push_back(byte); }
  void PutNumber(int64_t number) { Put(ViewOf(NumberToWire(number))); }
  void PutPriority(uint64_t offset) {
    char* const digits = Room(20);
    for (size_t i = 20; i > 0; offset /= 10) digits[--i] = static_cast<char>('0' + offset % 10);
  }
  void PutAcquisition(AcquisitionId acquisition) {
    constexpr char kHex[] = "0123456789abcdef";
    char* const digits = Room(32);
    for (size_t i = 16; i > 0; acquisition.high >>= 4) digits[--i] = kHex[acquisition.high & 15];
    for (size_t i = 32; i > 16; acquisition.low >>= 4) digits[--i] = kHex[acquisition.low & 15];
  }
  void End() {
    assert(call_.command_.size() == end_);
    call_.command_.append("\r\n");
  }

  void Argument(std::string_view argument) {
    AppendSize(call_.command_, argument.size());
    call_.command_.append(argument);
    call_.command_.append("\r\n");
  }
  void Argument(int64_t number) {
    char buffer[24];
    const auto end = std::to_chars(buffer, buffer + sizeof buffer, number).ptr;
    Argument(std::string_view(buffer, static_cast<size_t>(end - buffer)));
  }
  void Argument(AcquisitionId acquisition) {
    Begin(32);
    PutAcquisition(acquisition);
    End();
  }

  ScriptCall Take() { return std::move(call_); }

 private:
  static constexpr size_t kKeysSize = 7;  // "$1\r\n2\r\n".

  char* Room(size_t size) {
    std::string& out = call_.command_;
    out.resize(out.size() + size);
    return out.data() + out.size() - size;
  }

  ScriptCall call_;
  size_t end_ = 0;  // Of the argument that was begun.
};

ScriptCalls::ScriptCalls(Settings settings)
    : settings_(std::move(settings)),
      marker_(ArgumentOf(MarkerKey(settings_.key_prefix))),
      max_lease_(NumberToWire(ToMicrosUp(settings_.max_lease))),
      clock_skew_(absl::StrCat(ToMicrosUp(settings_.max_clock_skew))),
      waiter_lease_(absl::StrCat(ToMicrosUp(settings_.waiter_lease))) {}

ScriptCall ScriptCalls::Obtain(const ObtainRequest& request, int64_t proposed_token,
                               bool reads_fence_back) const {
  Writer call(*this, Step::kObtain, request.resource.bytes(), reads_fence_back ? 4 : 3,
              32 + 37 + request.owner.size() + 60 + 16);
  call.Argument(request.acquisition);
  call.Begin(37 + request.owner.size());
  call.Put(settings_.client);
  call.PutPriority(Offset(request.priority));
  call.Put(request.preemptible ? '1' : '0');
  call.Put(request.owner);
  call.End();
  call.Begin(request.reserve_below ? 60 : 24);
  call.PutNumber(ToMicrosUp(request.lease));
  call.PutNumber(proposed_token);
  call.Put(ViewOf(max_lease_));
  if (request.reserve_below) {
    const bool forced = request.grace && *request.grace != absl::InfiniteDuration();
    call.PutNumber(BoundedMicros(request.reservation_lease));
    call.PutNumber(forced ? BoundedMicros(*request.grace) : -1);
    call.PutPriority(Offset(*request.reserve_below));
  }
  call.End();
  if (reads_fence_back) call.Argument(clock_skew_);
  return call.Take();
}

ScriptCall ScriptCalls::Release(std::string_view resource, AcquisitionId acquisition) const {
  Writer call(*this, Step::kRelease, resource, 1, 32);
  call.Argument(acquisition);
  return call.Take();
}

ScriptCall ScriptCalls::Extend(std::string_view resource, AcquisitionId acquisition,
                               absl::Duration lease) const {
  Writer call(*this, Step::kExtend, resource, 2, 32 + 16);
  call.Argument(acquisition);
  call.Argument(ToMicrosUp(lease));
  return call.Take();
}

ScriptCall ScriptCalls::Confirm(std::string_view resource, AcquisitionId acquisition,
                                FencingToken token) const {
  Writer call(*this, Step::kConfirm, resource, 2, 32 + 16);
  call.Argument(acquisition);
  call.Argument(static_cast<int64_t>(token));
  return call.Take();
}

ScriptCall ScriptCalls::Watch(const Look& look) const {
  const bool takes_place = !look.takes_place_of.IsNone();
  Writer call(*this, Step::kWatch, look.resource, takes_place ? 5 : 4,
              32 + 53 + look.owner.size() + 20 + 16 + 32);
  call.Argument(look.acquisition);
  if (look.as_holder) {
    call.Argument(std::string_view());
  } else {
    call.Begin(53 + look.owner.size());
    call.Put(settings_.client);
    call.Put(ViewOf(SixteenDigits(BoundedMicros(look.reservation))));
    call.Put(look.barging ? '1' : '0');
    call.PutPriority(Offset(look.priority));
    call.Put(look.owner);
    call.End();
  }
  call.Begin(20);
  call.PutPriority(~Offset(look.priority));
  call.End();
  call.Argument(waiter_lease_);
  if (takes_place) call.Argument(look.takes_place_of);
  return call.Take();
}

ScriptCall ScriptCalls::Unwatch(std::string_view resource, AcquisitionId acquisition) const {
  Writer call(*this, Step::kUnwatch, resource, 1, 32);
  call.Argument(acquisition);
  return call.Take();
}

void ScriptCall::AppendTo(std::string& out, bool with_text) const {
  if (!with_text) {
    out.append(command_);
    return;
  }
  absl::StrAppend(&out, "*", arguments_, "\r\n");
  AppendArgument(out, "EVAL");
  AppendArgument(out, ScriptOf(step_).text);
  out.append(command_, head_size_);
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
