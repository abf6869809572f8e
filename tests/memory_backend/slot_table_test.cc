#include "latchkey/memory_backend/slot_table.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "latchkey/tests/support/random_steps.h"

namespace latchkey::memory_backend_internal {
namespace {

// A hash that collides a lot.
uint32_t BadHash(std::string_view name) {
  return static_cast<uint32_t>(name.empty() ? 0 : name.back() % 5);
}

TEST(SlotTableTest, FindsWhatWasInsertedUntilItIsErased) {
  SlotTable table;
  const std::vector<std::string> names = {
      "a",     std::string(20, 'x'),     std::string(21, 'x'), std::string("a\0b", 3),
      "a\xff", std::string(1 << 20, 'y')};
  std::vector<SlotIndex> slots;
  for (const std::string& name : names) slots.push_back(table.Insert(name, BadHash(name)));
  for (size_t i = 0; i < names.size(); ++i) {
    EXPECT_EQ(table.Find(names[i], BadHash(names[i])), slots[i]);
    EXPECT_EQ(table.At(slots[i]).name(), names[i]);
  }
  EXPECT_EQ(table.Find("absent", BadHash("absent")), kNoSlot);
  EXPECT_EQ(table.Find(std::string("a\0c", 3), BadHash("c")), kNoSlot);
  for (size_t i = 0; i < names.size(); ++i) {
    table.Erase(slots[i]);
    EXPECT_EQ(table.Find(names[i], BadHash(names[i])), kNoSlot);
  }
  EXPECT_EQ(table.size(), 0u);
}

TEST(SlotTableTest, BehavesAsAMapOnRandomSteps) {
  const uint64_t seed = SeedFromEnvironment();
  SCOPED_TRACE(absl::StrCat("LATCHKEY_SEED=", seed));
  std::mt19937_64 random(seed);
  SlotTable table;
  std::map<std::string, SlotIndex> reference;
  // It grows to thousands and shrinks to nothing several times.
  for (int step = 0; step < 60'000; ++step) {
    const bool grow = (step / 6'000) % 2 == 0;
    const std::string name = absl::StrCat("name ", random() % 5'000);
    const auto hash = static_cast<uint32_t>(std::hash<std::string>{}(name));
    const auto found = reference.find(name);
    const SlotIndex slot = table.Find(name, hash);
    ASSERT_EQ(slot, found == reference.end() ? kNoSlot : found->second);
    if (slot == kNoSlot && (grow || random() % 8 == 0)) {
      reference[name] = table.Insert(name, hash);
    } else if (slot != kNoSlot && (!grow || random() % 8 == 0)) {
      table.Erase(slot);
      reference.erase(found);
    }
    ASSERT_EQ(table.size(), reference.size());
  }
  size_t visited = 0;
  table.ForEach([&](SlotIndex index, Slot& slot) {
    ++visited;
    EXPECT_EQ(reference.at(std::string(slot.name())), index);
  });
  EXPECT_EQ(visited, reference.size());
}

TEST(SlotTableTest, AnInventedIndexIsNoSlot) {
  SlotTable table;
  EXPECT_EQ(table.TryAt(0), nullptr);
  const SlotIndex slot = table.Insert("a", 1);
  EXPECT_NE(table.TryAt(slot), nullptr);
  EXPECT_EQ(table.TryAt(slot + 100'000), nullptr);
  EXPECT_EQ(table.TryAt(kNoSlot), nullptr);
}

}  // namespace
}  // namespace latchkey::memory_backend_internal
