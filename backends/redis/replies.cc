#include "latchkey/backends/redis/replies.h"

#include <cstddef>
#include <cstdint>
#include <string>

#include "latchkey/backends/redis/wire.h"

namespace latchkey::redis {
namespace {

// An array that begins with a number, or that number alone.
class Answer {
 public:
  explicit Answer(const redisReply& reply) : reply_(reply) {}

  int64_t code() const {
    if (reply_.type == REDIS_REPLY_INTEGER) return reply_.integer;
    return Number(0).value_or(-1);
  }
  std::optional<int64_t> Number(size_t i) const {
    const redisReply* const element = At(i, REDIS_REPLY_INTEGER);
    if (element == nullptr) return std::nullopt;
    return element->integer;
  }
  std::optional<std::string_view> Text(size_t i) const {
    const redisReply* const element = At(i, REDIS_REPLY_STRING);
    if (element == nullptr) return std::nullopt;
    return TextOf(*element);
  }
  std::optional<FencingToken> Token(size_t i) const {
    const std::optional<int64_t> number = Number(i);
    if (!number || *number < 1 || *number > int64_t{kMaxNumber}) return std::nullopt;
    return static_cast<FencingToken>(*number);
  }
  std::optional<absl::Duration> Micros(size_t i) const {
    const std::optional<int64_t> number = Number(i);
    if (!number || *number < 0 || *number > int64_t{kMaxNumber}) return std::nullopt;
    return absl::Microseconds(*number);
  }
  // What only a quorum gets: a number up to `most`, 0 where there is none.
  std::optional<FencingToken> Optional(size_t i, uint64_t most) const {
    if (reply_.type == REDIS_REPLY_ARRAY && i >= reply_.elements) return 0;
    const std::optional<int64_t> number = Number(i);
    if (!number || *number < 0 || static_cast<uint64_t>(*number) > most) return std::nullopt;
    return static_cast<FencingToken>(*number);
  }
  // -1 is "none"; less, that it is over, which concerns only who asked for it: none as well.
  std::optional<absl::Duration> MicrosOrInfinite(size_t i) const {
    const std::optional<int64_t> number = Number(i);
    if (number && *number < 0) return absl::InfiniteDuration();
    return Micros(i);
  }
  std::optional<Priority> ReadPriority(size_t i) const {
    const std::optional<std::string_view> text = Text(i);
    if (!text) return std::nullopt;
    const Priority priority = PriorityFromWire(*text);
    if (EncodePriority(priority) != *text) return std::nullopt;
    return priority;
  }

 private:
  const redisReply* At(size_t i, int type) const {
    if (reply_.type != REDIS_REPLY_ARRAY || i >= reply_.elements) return nullptr;
    const redisReply* const element = reply_.element[i];
    return element != nullptr && element->type == type ? element : nullptr;
  }

  const redisReply& reply_;
};

// hiredis' own functions, once some reader has shown them.
const redisReplyObjectFunctions* original_functions = nullptr;

void* CreateArray(const redisReadTask* task, size_t elements) {
  int depth = 1;
  for (const redisReadTask* parent = task->parent; parent != nullptr; parent = parent->parent) {
    if (++depth > kMaxDepth) return nullptr;  // The reader says that it is out of memory.
  }
  return original_functions->createArray(task, elements);
}

}  // namespace

void LimitReader(redisReader& reader) {
  static redisReplyObjectFunctions functions = [&reader] {
    original_functions = reader.fn;
    redisReplyObjectFunctions copy = *reader.fn;
    copy.createArray = CreateArray;
    return copy;
  }();
  reader.fn = &functions;
  reader.maxelements = kMaxElements;
}

std::string_view TextOf(const redisReply& reply) {
  switch (reply.type) {
    case REDIS_REPLY_STRING:
    case REDIS_REPLY_STATUS:
    case REDIS_REPLY_ERROR:
      return reply.str == nullptr ? std::string_view() : std::string_view(reply.str, reply.len);
    default:
      return {};
  }
}

std::optional<std::variant<MemberReply, Recovering>> ReadObtainAnswer(const redisReply& raw,
                                                                      AcquisitionId acquisition,
                                                                      absl::Duration lease) {
  const Answer answer(raw);
  MemberReply answered;
  ObtainReply& reply = answered.reply;
  if (raw.type == REDIS_REPLY_STRING) {
    const std::string_view state = TextOf(raw);
    if (state.size() != kStateSize ||
        AcquisitionFromWire(state.substr(kStateSize - 32)) != acquisition) {
      return std::nullopt;
    }
    const std::optional<uint64_t> token = NumberFromWire(state);
    if (!token || *token == 0) return std::nullopt;
    reply.outcome = ObtainOutcome::kObtained;
    reply.token = *token;
    reply.remaining = lease;
    return answered;
  }
  switch (answer.code()) {
    case 1:
    case 2: {
      const auto token = answer.Token(1);
      const auto left = answer.Micros(2);
      const auto fence_lost = answer.Optional(3, 1);
      if (!token || !left || !fence_lost) return std::nullopt;
      reply.outcome = answer.code() == 1 ? ObtainOutcome::kObtained : ObtainOutcome::kReentered;
      reply.token = *token;
      reply.remaining = *left;
      answered.fence_lost = *fence_lost == 1;
      return answered;
    }
    case 3: {
      const auto left = answer.Micros(1);
      const auto grace = answer.MicrosOrInfinite(2);
      const auto owner = answer.Text(3);
      const auto priority = answer.ReadPriority(4);
      const auto fence = answer.Optional(5, kMaxNumber);
      if (!left || !grace || !owner || !priority || !fence) return std::nullopt;
      reply.outcome = ObtainOutcome::kReserved;
      reply.remaining = *left;
      reply.grace_remaining = *grace;
      reply.other_owner = std::string(*owner);
      reply.other_priority = *priority;
      answered.fence = *fence;
      return answered;
    }
    case 4: {
      const auto left = answer.Micros(1);
      const auto owner = answer.Text(2);
      const auto priority = answer.ReadPriority(3);
      const auto fence = answer.Optional(4, kMaxNumber);
      if (!left || !owner || !priority || !fence) return std::nullopt;
      reply.outcome = ObtainOutcome::kDenied;
      reply.remaining = *left;
      reply.other_owner = std::string(*owner);
      reply.other_priority = *priority;
      answered.fence = *fence;
      return answered;
    }
    case 5: {
      const auto left = answer.Micros(1);
      if (!left) return std::nullopt;
      return Recovering{*left};
    }
    default:
      return std::nullopt;
  }
}

std::optional<ReleaseOutcome> ReadReleaseAnswer(const redisReply& raw) {
  switch (Answer(raw).code()) {
    case 1:
      return ReleaseOutcome::kReleased;
    case 2:
      return ReleaseOutcome::kWithdrawn;
    case 3:
      return ReleaseOutcome::kNotHeld;
    default:
      return std::nullopt;
  }
}

std::optional<ExtendReply> ReadExtendAnswer(const redisReply& raw) {
  const Answer answer(raw);
  const int64_t code = answer.code();
  if (code == 3) return ExtendReply{.outcome = ExtendOutcome::kNotHeld};
  const auto left = answer.Micros(1);
  if ((code != 1 && code != 2) || !left) return std::nullopt;
  return ExtendReply{.outcome = code == 1 ? ExtendOutcome::kExtended : ExtendOutcome::kReserved,
                     .remaining = *left};
}

std::optional<ConfirmReply> ReadConfirmAnswer(const redisReply& raw) {
  const Answer answer(raw);
  const int64_t code = answer.code();
  if (code == 3) return ConfirmReply{.outcome = ConfirmOutcome::kNotHeld};
  const auto token = answer.Token(1);
  if ((code != 1 && code != 2) || !token) return std::nullopt;
  return ConfirmReply{.outcome = code == 1 ? ConfirmOutcome::kConfirmed : ConfirmOutcome::kRaise,
                      .token = *token};
}

std::optional<WatchAnswer> ReadWatchAnswer(const redisReply& raw) {
  using State = WatchAnswer::State;
  const Answer answer(raw);
  switch (answer.code()) {
    case 1: {
      const auto left = answer.Micros(1);
      if (!left) return std::nullopt;
      return WatchAnswer{.state = State::kHolds, .left = *left};
    }
    case 2: {
      const auto grace = answer.MicrosOrInfinite(1);
      const auto priority = answer.ReadPriority(2);
      const auto left = answer.Micros(3);
      if (!grace || !priority || !left) return std::nullopt;
      return WatchAnswer{.state = State::kIsToYield,
                         .left = *left,
                         .grace_remaining = *grace,
                         .thief_priority = *priority};
    }
    case 3:
      return WatchAnswer{.state = State::kLost};
    case 4: {
      const auto why = answer.Text(1);
      if (!why || why->size() != 1) return std::nullopt;
      return WatchAnswer{.state = State::kMayClaim, .why = HoldEndFromWire(why->front())};
    }
    case 5: {
      const auto left = answer.Micros(1);
      const auto next = answer.Text(2);
      if (!left || !next) return std::nullopt;
      return WatchAnswer{.state = State::kWaits, .left = *left, .next = *next == "1"};
    }
    default:
      return std::nullopt;
  }
}

}  // namespace latchkey::redis
