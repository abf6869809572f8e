// The storage of one shard of the in-memory backend: a hash table of slots, one for each resource
// that is held, reserved or watched.
//
// Slots live in slabs and are named by an index, which is stable while the slot is in use: it is
// the hint that saves the second look-up on release. The table is chained through the slots, so
// that a held lock costs a slot (80 bytes) and a bucket (4 bytes). Names of up to 20 bytes are kept
// inside the slot. Slabs that fall empty are freed, but for one.
//
// Thread safety: none; the shard's mutex guards it.
#ifndef LATCHKEY_MEMORY_BACKEND_SLOT_TABLE_H_
#define LATCHKEY_MEMORY_BACKEND_SLOT_TABLE_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "latchkey/core/base/lease.h"

namespace latchkey::memory_backend_internal {

struct Extra;

using SlotIndex = uint32_t;
inline constexpr SlotIndex kNoSlot = ~SlotIndex{0};

// One resource. While `extra` is null, it is held by one anonymous, preemptible handle with an
// infinite lease, nobody waits, and these fields say everything.
struct Slot {
  AcquisitionId handle;  // None: the slot is not in use (or see `extra`).
  FencingToken token = 0;
  Priority priority = 0;
  Extra* extra = nullptr;
  int64_t began = 0;  // Coarse nanoseconds of the clock.
  SlotIndex next = kNoSlot;
  uint32_t hash = 0;
  uint32_t name_size = 0;
  std::array<char, 20> name_bytes;  // Or, if longer, a pointer to them.

  std::string_view name() const {
    if (name_size <= name_bytes.size()) return {name_bytes.data(), name_size};
    return {HeapName(), name_size};
  }
  bool HasName(std::string_view name) const {
    return name.size() == name_size && std::memcmp(NameData(), name.data(), name_size) == 0;
  }
  // `name` is at most 4 GiB - 1 long.
  void SetName(std::string_view name) {
    const size_t size = name.size();
    name_size = static_cast<uint32_t>(size);
    char* const to = name_bytes.data();
    // Two copies of a fixed size that overlap are quicker than a call for a few bytes.
    if (size > name_bytes.size()) {
      char* const heap = new char[size];
      std::memcpy(to, &heap, sizeof heap);
      std::memcpy(heap, name.data(), size);
    } else if (size >= 16) {
      std::memcpy(to, name.data(), 16);
      std::memcpy(to + size - 4, name.data() + size - 4, 4);
    } else if (size >= 8) {
      std::memcpy(to, name.data(), 8);
      std::memcpy(to + size - 8, name.data() + size - 8, 8);
    } else {
      for (size_t i = 0; i < size; ++i) to[i] = name[i];
    }
  }
  void FreeName() {
    if (name_size > name_bytes.size()) delete[] HeapName();
    name_size = 0;
  }

 private:
  char* HeapName() const {
    char* heap;
    std::memcpy(&heap, name_bytes.data(), sizeof heap);
    return heap;
  }
  const char* NameData() const {
    return name_size <= name_bytes.size() ? name_bytes.data() : HeapName();
  }
};
static_assert(sizeof(Slot) == 80, "a held lock has a budget of memory");

class SlotTable {
 public:
  SlotTable() = default;
  SlotTable(const SlotTable&) = delete;
  SlotTable& operator=(const SlotTable&) = delete;

  ~SlotTable() {
    ForEach([](SlotIndex, Slot& slot) { slot.FreeName(); });
  }

  // The slot of a name, or kNoSlot.
  SlotIndex Find(std::string_view name, uint32_t hash) {
    for (SlotIndex i = buckets_[hash & mask_]; i != kNoSlot;) {
      const Slot& slot = At(i);
      if (slot.hash == hash && slot.HasName(name)) return i;
      i = slot.next;
    }
    return kNoSlot;
  }

  // A new slot for a name that has none.
  SlotIndex Insert(std::string_view name, uint32_t hash) {
    if (size_ > mask_) Rehash((mask_ + 1) * 2);
    const SlotIndex index = Allocate();
    Slot& slot = At(index);
    slot.hash = hash;
    slot.SetName(name);
    slot.next = buckets_[hash & mask_];
    buckets_[hash & mask_] = index;
    ++size_;
    return index;
  }

  // Frees a slot. Its `extra` is null by now.
  void Erase(SlotIndex index) {
    Slot& slot = At(index);
    SlotIndex* link = &buckets_[slot.hash & mask_];
    while (*link != index) link = &At(*link).next;
    *link = slot.next;
    slot.FreeName();
    slot.handle = AcquisitionId();
    Free(index);
    --size_;
    if (size_ == 0 && slabs_.size() > 1) {
      // Nothing of a large table that was emptied is kept, the list of its slabs included.
      slabs_.clear();
      slabs_.shrink_to_fit();
      holes_.clear();
      holes_.shrink_to_fit();
      with_room_ = kNoSlab;
    }
    if (mask_ >= kFewBuckets * 4 && size_ < mask_ / 8) Rehash((mask_ + 1) / 2);
  }

  Slot& At(SlotIndex index) { return slabs_[index / kSlabSlots]->slots[index % kSlabSlots]; }

  // A slot by an index that may be stale or invented: null unless it lies in a slab.
  Slot* TryAt(SlotIndex index) {
    const size_t slab = index / kSlabSlots;
    return slab < slabs_.size() && slabs_[slab] ? &At(index) : nullptr;
  }

  size_t size() const { return size_; }

  // Calls `f(index, slot)` for each slot in use. `f` does not insert or erase.
  template <typename F>
  void ForEach(F f) {
    for (uint32_t bucket = 0; bucket <= mask_; ++bucket) {
      for (SlotIndex i = buckets_[bucket]; i != kNoSlot;) {
        const SlotIndex next = At(i).next;
        f(i, At(i));
        i = next;
      }
    }
  }

 private:
  static constexpr uint32_t kSlabSlots = 32;
  static constexpr uint32_t kFewBuckets = 4;  // These need no allocation.
  static constexpr uint32_t kNoSlab = ~uint32_t{0};

  struct Slab {
    std::array<Slot, kSlabSlots> slots;
    uint32_t used = 0;
    SlotIndex free = kNoSlot;  // Chained through Slot::next.
    // The list of slabs with a free slot.
    uint32_t previous = kNoSlab;
    uint32_t next = kNoSlab;
  };

  SlotIndex Allocate() {
    if (with_room_ == kNoSlab) AddSlab();
    Slab& slab = *slabs_[with_room_];
    const SlotIndex index = slab.free;
    slab.free = slab.slots[index % kSlabSlots].next;
    ++slab.used;
    if (slab.free == kNoSlot) Unlink(with_room_);
    return index;
  }

  void Free(SlotIndex index) {
    const uint32_t number = index / kSlabSlots;
    Slab& slab = *slabs_[number];
    At(index).next = slab.free;
    if (slab.free == kNoSlot) Link(number);
    slab.free = index;
    // An empty slab goes, unless it is the only one with room: the next insert would want it back.
    if (--slab.used == 0 && (slab.next != kNoSlab || slab.previous != kNoSlab)) {
      Unlink(number);
      slabs_[number].reset();
      holes_.push_back(number);
    }
  }

  void AddSlab() {
    uint32_t number = static_cast<uint32_t>(slabs_.size());
    if (holes_.empty()) {
      slabs_.push_back(nullptr);
    } else {
      number = holes_.back();
      holes_.pop_back();
    }
    slabs_[number] = std::make_unique<Slab>();
    Slab& slab = *slabs_[number];
    for (uint32_t i = kSlabSlots; i-- > 0;) {
      slab.slots[i].next = slab.free;
      slab.free = number * kSlabSlots + i;
    }
    Link(number);
  }

  void Link(uint32_t number) {
    Slab& slab = *slabs_[number];
    slab.previous = kNoSlab;
    slab.next = with_room_;
    if (with_room_ != kNoSlab) slabs_[with_room_]->previous = number;
    with_room_ = number;
  }

  void Unlink(uint32_t number) {
    Slab& slab = *slabs_[number];
    if (slab.previous != kNoSlab) slabs_[slab.previous]->next = slab.next;
    if (slab.next != kNoSlab) slabs_[slab.next]->previous = slab.previous;
    if (with_room_ == number) with_room_ = slab.next;
    slab.previous = slab.next = kNoSlab;
  }

  void Rehash(uint32_t buckets) {
    auto fresh = std::make_unique<SlotIndex[]>(buckets);
    std::fill_n(fresh.get(), buckets, kNoSlot);
    ForEach([&](SlotIndex i, Slot& slot) {
      slot.next = fresh[slot.hash & (buckets - 1)];
      fresh[slot.hash & (buckets - 1)] = i;
    });
    many_buckets_ = std::move(fresh);
    buckets_ = many_buckets_.get();
    mask_ = buckets - 1;
  }

  std::array<SlotIndex, kFewBuckets> few_buckets_ = {kNoSlot, kNoSlot, kNoSlot, kNoSlot};
  SlotIndex* buckets_ = few_buckets_.data();
  uint32_t mask_ = kFewBuckets - 1;
  uint32_t size_ = 0;
  uint32_t with_room_ = kNoSlab;
  std::vector<std::unique_ptr<Slab>> slabs_;
  std::vector<uint32_t> holes_;  // Numbers of slabs that were freed.
  std::unique_ptr<SlotIndex[]> many_buckets_;
};

}  // namespace latchkey::memory_backend_internal

#endif  // LATCHKEY_MEMORY_BACKEND_SLOT_TABLE_H_
