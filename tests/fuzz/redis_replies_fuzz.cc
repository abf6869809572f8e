// What a Redis server sends, through hiredis' reader with our bounds to the readers of the scripts'
// answers and of messages: never crashes, never hangs, and what is read is within its range and the
// same however the bytes arrive.
//
// The first byte says in what pieces the bytes arrive (0: in one), the rest is the stream.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "hiredis/hiredis.h"
#include "latchkey/backends/redis/replies.h"
#include "latchkey/backends/redis/wire.h"
#include "latchkey/tests/fuzz/fuzz_input.h"

namespace latchkey {
namespace {

using namespace redis;  // NOLINT(google-build-using-namespace): a test of its inside.

// Who asks. An answer that grants names it.
constexpr AcquisitionId kAcquisition = {0x1111111111111111, 0x1111111111111111};

bool InRange(absl::Duration duration, bool may_be_infinite) {
  if (duration == absl::InfiniteDuration()) return may_be_infinite;
  return duration >= absl::ZeroDuration() &&
         duration <= absl::Microseconds(static_cast<int64_t>(kMaxNumber));
}

bool IsToken(FencingToken token) { return token >= 1 && token <= kMaxNumber; }

// What the readers make of one reply, in a form that can be compared; checks it on the way.
std::string ReadAll(const redisReply& reply) {
  std::string all;
  if (const auto answer = ReadObtainAnswer(reply, kAcquisition, absl::Seconds(30))) {
    if (const auto* const recovering = std::get_if<Recovering>(&*answer)) {
      FuzzCheck(InRange(recovering->left, false), "recovers for ever");
      absl::StrAppend(&all, "recovering ", absl::FormatDuration(recovering->left), ";");
    } else {
      const MemberReply& member = std::get<MemberReply>(*answer);
      const ObtainReply& r = member.reply;
      const bool holds =
          r.outcome == ObtainOutcome::kObtained || r.outcome == ObtainOutcome::kReentered;
      FuzzCheck(holds ? IsToken(r.token) : r.token == 0, "a token that is none");
      FuzzCheck(member.fence <= kMaxNumber && (!holds || member.fence == 0),
                "a fence that is none");
      FuzzCheck(!member.fence_lost || holds, "lost the fence of nothing");
      FuzzCheck(InRange(r.remaining, false), "remaining");
      FuzzCheck(InRange(r.grace_remaining, true), "grace_remaining");
      absl::StrAppend(&all, "obtain ", static_cast<int>(r.outcome), " ", r.token, " ",
                      absl::FormatDuration(r.remaining), " ",
                      absl::FormatDuration(r.grace_remaining), " ", r.other_owner, " ",
                      r.other_priority, " ", member.fence, member.fence_lost, ";");
    }
  }
  if (const auto answer = ReadReleaseAnswer(reply)) {
    absl::StrAppend(&all, "release ", static_cast<int>(*answer), ";");
  }
  if (const auto answer = ReadExtendAnswer(reply)) {
    FuzzCheck(InRange(answer->remaining, false), "remaining");
    absl::StrAppend(&all, "extend ", static_cast<int>(answer->outcome), " ",
                    absl::FormatDuration(answer->remaining), ";");
  }
  if (const auto answer = ReadConfirmAnswer(reply)) {
    FuzzCheck(
        answer->outcome == ConfirmOutcome::kNotHeld ? answer->token == 0 : IsToken(answer->token),
        "a token that is none");
    absl::StrAppend(&all, "confirm ", static_cast<int>(answer->outcome), " ", answer->token, ";");
  }
  if (const auto answer = ReadWatchAnswer(reply)) {
    FuzzCheck(InRange(answer->left, false) && InRange(answer->grace_remaining, true), "left");
    absl::StrAppend(&all, "watch ", static_cast<int>(answer->state), " ",
                    absl::FormatDuration(answer->left), " ",
                    absl::FormatDuration(answer->grace_remaining), " ", answer->thief_priority, " ",
                    static_cast<int>(answer->why), answer->next, ";");
  }
  if (const std::optional<Message> message = ParseMessage(TextOf(reply))) {
    FuzzCheck(!message->look_after || InRange(*message->look_after, false) ||
                  *message->look_after >= absl::ZeroDuration(),
              "looks in the past");
    absl::StrAppend(&all, "message ", message->acquisition.ToString(), ";");
    if (message->event) {
      FuzzCheck(message->event->grace_remaining >= absl::ZeroDuration(), "a grace in the past");
      absl::StrAppend(&all, static_cast<int>(message->event->kind), " ",
                      message->event->thief_priority, ";");
    }
  }
  if (reply.type == REDIS_REPLY_ARRAY) {
    FuzzCheck(reply.elements <= size_t{kMaxElements}, "too many elements");
  }
  return all;
}

// A string for each reply, and the reader's error at last if there is one.
std::vector<std::string> ReadStream(std::string_view bytes, size_t piece) {
  std::vector<std::string> read;
  const std::unique_ptr<redisReader, decltype(&redisReaderFree)> reader(redisReaderCreate(),
                                                                        &redisReaderFree);
  LimitReader(*reader);
  while (!bytes.empty()) {
    const size_t size = std::min(piece, bytes.size());
    if (redisReaderFeed(reader.get(), bytes.data(), size) != REDIS_OK) break;
    bytes.remove_prefix(size);
    for (;;) {
      void* raw = nullptr;
      if (redisReaderGetReply(reader.get(), &raw) != REDIS_OK) {
        read.push_back("error");
        return read;
      }
      if (raw == nullptr) break;
      const std::unique_ptr<redisReply, decltype(&freeReplyObject)> reply(
          static_cast<redisReply*>(raw), &freeReplyObject);
      read.push_back(ReadAll(*reply));
    }
  }
  return read;
}

}  // namespace
}  // namespace latchkey

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  latchkey::FuzzInput input(data, size);
  const size_t piece = input.Byte();
  const std::string_view stream = input.Rest();
  const auto whole = latchkey::ReadStream(stream, stream.size());
  if (piece > 0) {
    latchkey::FuzzCheck(latchkey::ReadStream(stream, piece) == whole,
                        "other replies where the bytes arrive in pieces");
  }
  return 0;
}
