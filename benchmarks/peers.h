// What acquire_benchmark measures the library against: three keyed lock tables as people write or
// reuse them. Each has `Acquire(key)`, which blocks and returns a guard that releases.
//
// None of them knows owners, priorities, preemption, leases, fencing tokens, timeouts or policies.
//
// Thread safety: all methods may be called from any thread.
#ifndef LATCHKEY_BENCHMARKS_PEERS_H_
#define LATCHKEY_BENCHMARKS_PEERS_H_

#include <oneapi/tbb/concurrent_hash_map.h>

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>

#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/hash/hash.h"
#include "absl/synchronization/mutex.h"

namespace latchkey::benchmarks {

// The least that works: a set of taken names in 1024 parts. It cannot wait, so it asks again.
class Floor {
 public:
  class [[nodiscard]] Guard {
   public:
    // `key` must outlive the guard.
    Guard(Floor& table, std::string_view key) : table_(table), key_(key) { table_.Take(key_); }
    ~Guard() { table_.Erase(key_); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    Floor& table_;
    const std::string_view key_;
  };

  Guard Acquire(std::string_view key) { return Guard(*this, key); }

 private:
  struct ABSL_CACHELINE_ALIGNED Shard {
    absl::Mutex mu;
    absl::flat_hash_map<std::string, int> taken ABSL_GUARDED_BY(mu);
  };

  Shard& ShardOf(std::string_view key) {
    return shards_[absl::Hash<std::string_view>{}(key) % shards_.size()];
  }
  void Take(std::string_view key) {
    while (!TryEmplace(key)) std::this_thread::yield();
  }
  bool TryEmplace(std::string_view key) {
    Shard& shard = ShardOf(key);
    absl::MutexLock lock(&shard.mu);
    return shard.taken.try_emplace(key, 1).second;
  }
  void Erase(std::string_view key) {
    Shard& shard = ShardOf(key);
    absl::MutexLock lock(&shard.mu);
    shard.taken.erase(key);
  }

  std::array<Shard, 1024> shards_;
};

// What people write by hand when callers have to wait: a map of reference-counted mutexes, in 64
// stripes.
class HandWritten {
 public:
  class [[nodiscard]] Guard {
   public:
    // `key` must outlive the guard.
    Guard(HandWritten& table, std::string_view key) : table_(table), key_(key) {
      table_.Take(key_);
    }
    ~Guard() { table_.Release(key_); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    HandWritten& table_;
    const std::string_view key_;
  };

  Guard Acquire(std::string_view key) { return Guard(*this, key); }

 private:
  struct Entry {
    std::mutex mu;
    int users = 0;
  };
  struct ABSL_CACHELINE_ALIGNED Stripe {
    std::mutex mu;
    std::unordered_map<std::string, Entry> entries;
  };

  Stripe& StripeOf(std::string_view key) {
    return stripes_[std::hash<std::string_view>{}(key) % stripes_.size()];
  }
  void Take(std::string_view key) {
    Stripe& stripe = StripeOf(key);
    Entry* entry;
    {
      const std::lock_guard lock(stripe.mu);
      entry = &stripe.entries[std::string(key)];
      ++entry->users;
    }
    entry->mu.lock();
  }
  void Release(std::string_view key) {
    Stripe& stripe = StripeOf(key);
    const std::lock_guard lock(stripe.mu);
    const auto found = stripe.entries.find(std::string(key));
    found->second.mu.unlock();
    if (--found->second.users == 0) stripe.entries.erase(found);
  }

  std::array<Stripe, 64> stripes_;
};

// oneTBB's concurrent_hash_map, whose accessor is a lock on its element.
class Tbb {
 private:
  struct HashCompare {
    static size_t hash(const std::string& key) { return absl::Hash<std::string_view>{}(key); }
    static bool equal(const std::string& a, const std::string& b) { return a == b; }
  };
  using Map = tbb::concurrent_hash_map<std::string, int, HashCompare,
                                       std::allocator<std::pair<const std::string, int>>>;

 public:
  class [[nodiscard]] Guard {
   public:
    Guard(Tbb& table, const std::string& key) : table_(table) { table_.map_.insert(held_, key); }
    ~Guard() { table_.map_.erase(held_); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    Tbb& table_;
    Map::accessor held_;
  };

  Guard Acquire(const std::string& key) { return Guard(*this, key); }

 private:
  Map map_;
};

}  // namespace latchkey::benchmarks

#endif  // LATCHKEY_BENCHMARKS_PEERS_H_
