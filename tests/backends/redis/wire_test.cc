#include "latchkey/backends/redis/wire.h"

#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/redis/scripts.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::redis {
namespace {

TEST(RedisWireTest, NamesAreEscapedIntoOneSlot) {
  EXPECT_EQ(RecordKey("latchkey:", "orders/42"), "latchkey:{orders/42}");
  EXPECT_EQ(RecordKey("p", std::string("a}{\0%\xff", 6)), "p{a%7D%7B%00%25%FF}");
  EXPECT_EQ(WaitingListKey("p", "x"), "p{x}:waiting");
}

TEST(RedisWireTest, DifferentNamesNeverShareAKey) {
  EXPECT_NE(RecordKey("p", "a:waiting"), WaitingListKey("p", "a"));
  EXPECT_NE(RecordKey("p", "%7D"), RecordKey("p", "}"));
}

TEST(RedisWireTest, PrioritiesCompareAsStrings) {
  const std::vector<Priority> priorities = {std::numeric_limits<Priority>::min(),
                                            std::numeric_limits<Priority>::min() + 1,
                                            -1,
                                            0,
                                            1,
                                            int64_t{1} << 53,
                                            (int64_t{1} << 53) + 1,
                                            std::numeric_limits<Priority>::max() - 1,
                                            std::numeric_limits<Priority>::max()};
  for (size_t i = 0; i < priorities.size(); ++i) {
    EXPECT_EQ(EncodePriority(priorities[i]).size(), 20u);
    EXPECT_EQ(PriorityFromWire(EncodePriority(priorities[i])), priorities[i]);
    if (i == 0) continue;
    EXPECT_LT(EncodePriority(priorities[i - 1]), EncodePriority(priorities[i]));
    EXPECT_GT(EncodePriorityDescending(priorities[i - 1]), EncodePriorityDescending(priorities[i]));
  }
}

TEST(RedisWireTest, LeasesAreRoundedUp) {
  EXPECT_EQ(ToMicrosUp(absl::Nanoseconds(1)), 1);
  EXPECT_EQ(ToMicrosUp(absl::Microseconds(7)), 7);
}

TEST(RedisWireTest, ReadsEveryMessageOfTheScripts) {
  const AcquisitionId id{0x123456789abcdef0, 0xfedcba9876543210};
  const auto yield = ParseMessage("Y" + id.ToString() + " 250 " + EncodePriority(-3) + " 900");
  ASSERT_TRUE(yield && yield->event);
  EXPECT_EQ(yield->acquisition, id);
  EXPECT_EQ(yield->event->kind, WatchEventKind::kYieldRequested);
  EXPECT_EQ(yield->event->grace_remaining, absl::Microseconds(250));
  EXPECT_EQ(yield->event->thief_priority, -3);
  EXPECT_EQ(yield->look_after, absl::Microseconds(900));
  const auto endless = ParseMessage("Y" + id.ToString() + " -1 " + EncodePriority(1) + " 0");
  ASSERT_TRUE(endless && endless->event);
  EXPECT_EQ(endless->event->grace_remaining, absl::InfiniteDuration());
  const auto ended = ParseMessage("H" + id.ToString() + "s");
  ASSERT_TRUE(ended && ended->event);
  EXPECT_EQ(ended->event->kind, WatchEventKind::kHoldEnded);
  EXPECT_EQ(ended->event->why, HoldEnd::kStolen);
  const auto look = ParseMessage("L" + id.ToString() + " 1500");
  ASSERT_TRUE(look);
  EXPECT_FALSE(look->event);
  EXPECT_EQ(look->look_after, absl::Microseconds(1500));
  EXPECT_EQ(ParseMessage("D" + id.ToString())->event->kind, WatchEventKind::kDisplaced);
  EXPECT_EQ(ParseMessage("N" + id.ToString())->event->kind, WatchEventKind::kYieldWithdrawn);
}

TEST(RedisWireTest, IgnoresWhatIsNotOurs) {
  const std::string id(32, '1');
  for (const std::string& text :
       {std::string(), std::string("H"), "H" + id, "Z" + id, "H" + id + "rr", "Y" + id + " x 1",
        "L" + id + " soon", "D" + std::string(32, 'x')}) {
    EXPECT_FALSE(ParseMessage(text).has_value()) << text;
  }
}

TEST(RedisWireTest, ReadsTheNumbersOfTheRecord) {
  auto number = [](double value) {
    std::string bytes(8, ' ');
    std::memcpy(bytes.data(), &value, 8);
    return NumberFromWire(bytes + "and more");
  };
  EXPECT_EQ(number(0), 0u);
  EXPECT_EQ(number(1790000000123457), 1790000000123457u);
  EXPECT_EQ(number(static_cast<double>(kMaxNumber)), kMaxNumber);
  for (const double bad :
       {-1.0, 0.5, 9007199254740992.0, 1e300, std::numeric_limits<double>::infinity(),
        std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_FALSE(number(bad).has_value()) << bad;
  }
  EXPECT_FALSE(NumberFromWire("1234567").has_value());
}

// A call as EVALSHA; with the text it differs in the first words alone.
std::string Sent(const ScriptCall& call, Step step) {
  std::string by_name;
  call.AppendTo(by_name, false);
  std::string by_text;
  call.AppendTo(by_text, true);
  const Script& script = ScriptOf(step);
  std::string expected = by_name.substr(0, by_name.find("EVALSHA") - 4);
  AppendArgument(expected, "EVAL");
  AppendArgument(expected, script.text);
  expected.append(by_name, by_name.find(script.sha1) + script.sha1.size() + 2);
  EXPECT_EQ(by_text, expected);
  return by_name;
}

TEST(RedisWireTest, WritesTheCallsOfTheScripts) {
  const std::string client = "00112233445566aa";
  const ScriptCalls calls({.key_prefix = "p:",
                           .client = client,
                           .max_lease = absl::Minutes(1),
                           .max_clock_skew = absl::Milliseconds(250),
                           .waiter_lease = absl::Seconds(3)});
  const AcquisitionId id{0x00000000000000ab, 0xfedcba9876543210};
  const std::string id_text = id.ToString();
  const std::string key = RecordKey("p:", "a{b");
  auto sha = [](Step step) -> std::string_view { return ScriptOf(step).sha1; };

  ObtainRequest request{.resource = "a{b",
                        .acquisition = id,
                        .owner = "me",
                        .priority = -7,
                        .preemptible = false,
                        .lease = absl::Seconds(30)};
  const std::string info = client + EncodePriority(-7) + "0me";
  auto number = [](double value) {
    std::string bytes(8, ' ');
    std::memcpy(bytes.data(), &value, 8);
    return bytes;
  };
  EXPECT_EQ(Sent(calls.Obtain(request), Step::kObtain),
            MakeCommand({"EVALSHA", sha(Step::kObtain), "2", key, "p:marker", id_text, info,
                         number(30000000) + number(0) + number(60000000)}));
  EXPECT_EQ(
      Sent(calls.ObtainAsMember(request, 1790000000123000), Step::kObtain),
      MakeCommand({"EVALSHA", sha(Step::kObtain), "2", key, "p:marker", id_text, info,
                   number(30000000) + number(1790000000123000) + number(60000000), "250000"}));
  request.reserve_below = std::numeric_limits<Priority>::max();
  request.reservation_lease = absl::Nanoseconds(1500);
  const std::string_view largest = "18446744073709551615";
  EXPECT_EQ(Sent(calls.Obtain(request), Step::kObtain),
            MakeCommand({"EVALSHA", sha(Step::kObtain), "2", key, "p:marker", id_text, info,
                         absl::StrCat(number(30000000), number(0), number(60000000), number(2),
                                      number(-1), largest)}));
  // Longer than any number that the scripts can hold.
  request.reservation_lease = absl::InfiniteDuration();
  request.grace = absl::Milliseconds(1);
  EXPECT_EQ(Sent(calls.ObtainAsMember(request, 5), Step::kObtain),
            MakeCommand({"EVALSHA", sha(Step::kObtain), "2", key, "p:marker", id_text, info,
                         absl::StrCat(number(30000000), number(5), number(60000000),
                                      number(4503599627370495), number(1000), largest),
                         "250000"}));

  EXPECT_EQ(Sent(calls.Release("a{b", id), Step::kRelease),
            MakeCommand({"EVALSHA", sha(Step::kRelease), "1", key, id_text}));
  EXPECT_EQ(Sent(calls.Extend("a{b", id, absl::Seconds(2)), Step::kExtend),
            MakeCommand({"EVALSHA", sha(Step::kExtend), "1", key, id_text, "2000000"}));
  EXPECT_EQ(Sent(calls.Confirm("a{b", id, kMaxNumber), Step::kConfirm),
            MakeCommand({"EVALSHA", sha(Step::kConfirm), "1", key, id_text, "9007199254740991"}));
  EXPECT_EQ(Sent(calls.Unwatch("a{b", id), Step::kUnwatch),
            MakeCommand({"EVALSHA", sha(Step::kUnwatch), "1", key, id_text}));
  EXPECT_EQ(calls.Release("a{b", id).record(), key);

  ScriptCalls::Look look{.resource = "a{b",
                         .acquisition = id,
                         .owner = "me",
                         .priority = 9,
                         .barging = true,
                         .reservation = absl::Milliseconds(70),
                         .takes_place_of = {1, 2}};
  EXPECT_EQ(Sent(calls.Watch(look), Step::kWatch),
            MakeCommand({"EVALSHA", sha(Step::kWatch), "1", key, id_text,
                         absl::StrCat(client, "0000000000070000", "1", EncodePriority(9), "me"),
                         EncodePriorityDescending(9), "3000000", AcquisitionId{1, 2}.ToString()}));
  look.as_holder = true;
  look.takes_place_of = {};
  EXPECT_EQ(Sent(calls.Watch(look), Step::kWatch),
            MakeCommand({"EVALSHA", sha(Step::kWatch), "1", key, id_text, "",
                         EncodePriorityDescending(9), "3000000"}));
}

TEST(RedisWireTest, WritesCommandsInRedisProtocol) {
  EXPECT_EQ(MakeCommand({"GET", "a\r\nb"}), "*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n");
}

}  // namespace
}  // namespace latchkey::redis
