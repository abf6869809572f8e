#include "latchkey/core/lease.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "gtest/gtest.h"

namespace latchkey {
namespace {

TEST(AcquisitionIdTest, NoneIsNoIdThatIsEverGiven) {
  EXPECT_TRUE(AcquisitionId().IsNone());
  EXPECT_FALSE((AcquisitionId{0, 1}).IsNone());
  EXPECT_FALSE((AcquisitionId{1, 0}).IsNone());
  EXPECT_FALSE(AcquisitionId::Next().IsNone());
}

TEST(AcquisitionIdTest, AreUniqueAndShareTheProcessesRandomHalf) {
  // More than a thread takes from the common counter at once.
  constexpr int kIds = 1'200'000;
  const uint64_t high = AcquisitionId::Next().high;
  uint64_t last = AcquisitionId::Next().low;
  for (int i = 0; i < kIds; ++i) {
    const AcquisitionId id = AcquisitionId::Next();
    ASSERT_EQ(id.high, high);
    ASSERT_GT(id.low, last);
    last = id.low;
  }
}

TEST(AcquisitionIdTest, AreUniqueOverThreads) {
  constexpr int kThreads = 8;
  constexpr int kIds = 20'000;
  std::vector<std::vector<AcquisitionId>> ids(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&ids, t] {
      for (int i = 0; i < kIds; ++i) ids[t].push_back(AcquisitionId::Next());
    });
  }
  for (std::thread& thread : threads) thread.join();
  absl::flat_hash_set<AcquisitionId> all;
  for (const auto& some : ids) all.insert(some.begin(), some.end());
  EXPECT_EQ(all.size(), size_t{kThreads} * kIds);
}

TEST(AcquisitionIdTest, AForkedChildDoesNotRepeatItsParentsIds) {
  AcquisitionId::Next();  // The parent has its random half and its place in the counter.
  std::array<int, 2> ends;
  ASSERT_EQ(pipe(ends.data()), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const std::array<AcquisitionId, 3> ids = {AcquisitionId::Next(), AcquisitionId::Next(),
                                              AcquisitionId::Next()};
    const bool written = write(ends[1], ids.data(), sizeof ids) == sizeof ids;
    _exit(written ? 0 : 1);
  }
  std::array<AcquisitionId, 3> childs;
  ASSERT_EQ(read(ends[0], childs.data(), sizeof childs), ssize_t{sizeof childs});
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  close(ends[0]);
  close(ends[1]);
  const AcquisitionId own = AcquisitionId::Next();
  EXPECT_NE(childs[0], childs[1]);
  for (const AcquisitionId& id : childs) EXPECT_NE(id.high, own.high);
}

TEST(AcquisitionIdTest, PrintsAs32HexadecimalDigits) {
  EXPECT_EQ((AcquisitionId{0x12, 0xabc}).ToString(), "00000000000000120000000000000abc");
  EXPECT_EQ((AcquisitionId{~uint64_t{0}, ~uint64_t{0}}).ToString(), std::string(32, 'f'));
}

TEST(AcquisitionIdTest, ComparesByBothHalves) {
  EXPECT_EQ((AcquisitionId{1, 2}), (AcquisitionId{1, 2}));
  EXPECT_NE((AcquisitionId{1, 2}), (AcquisitionId{2, 2}));
  EXPECT_NE((AcquisitionId{1, 2}), (AcquisitionId{1, 3}));
  EXPECT_LT((AcquisitionId{1, 9}), (AcquisitionId{2, 0}));
  EXPECT_LT((AcquisitionId{1, 1}), (AcquisitionId{1, 2}));
}

TEST(ResourceNameTest, IsTheBytesWithTheirHash) {
  const std::string bytes("a\0b", 3);
  const ResourceName name = bytes;
  EXPECT_EQ(name.bytes(), bytes);
  EXPECT_EQ(std::string_view(name), bytes);
  EXPECT_FALSE(name.empty());
  EXPECT_TRUE(ResourceName().empty());
  EXPECT_TRUE(ResourceName("").empty());
  EXPECT_EQ(name.hash(), ResourceName(std::string_view(bytes)).hash());
  EXPECT_NE(name.hash(), ResourceName("a").hash());
  EXPECT_EQ(ResourceName("x").bytes(), ResourceName(std::string("x")).bytes());
}

TEST(ResourceNameTest, TakesACopyOfItsBytesWithoutHashingThemAgain) {
  const std::string original = "orders/42";
  const std::string copy = original;
  const ResourceName name = ResourceName(original).WithBytes(copy);
  EXPECT_EQ(name.bytes().data(), copy.data());
  EXPECT_EQ(name.hash(), ResourceName(original).hash());
}

TEST(MessageTest, QuotesAndEscapesWhatDoesNotPrint) {
  EXPECT_EQ(ResourceForMessage("orders/42"), "'orders/42'");
  EXPECT_EQ(ResourceForMessage(std::string_view("a\0\n", 3)), "'a\\x00\\n'");
  EXPECT_EQ(ResourceForMessage("\xff"), "'\\xff'");
  EXPECT_EQ(ResourceForMessage(""), "''");
}

TEST(MessageTest, CutsLongNamesAndTellsTheirLength) {
  EXPECT_EQ(ResourceForMessage(std::string(64, 'x')), "'" + std::string(64, 'x') + "'");
  const std::string cut = ResourceForMessage(std::string(1 << 20, 'x'));
  EXPECT_EQ(cut, "'" + std::string(64, 'x') + "…' (1048576 bytes)");
}

TEST(MessageTest, NamesAnonymousOwners) {
  EXPECT_EQ(OwnerForMessage(""), "an anonymous owner");
  EXPECT_EQ(OwnerForMessage("bob"), "'bob'");
}

}  // namespace
}  // namespace latchkey
