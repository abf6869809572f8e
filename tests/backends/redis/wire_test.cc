#include "latchkey/backends/redis/wire.h"

#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

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

TEST(RedisWireTest, WritesCommandsInRedisProtocol) {
  EXPECT_EQ(MakeCommand({"GET", "a\r\nb"}), "*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n");
}

}  // namespace
}  // namespace latchkey::redis
