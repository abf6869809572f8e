// A small store with compare-and-swap and a change feed, in this process. It stands for the store
// that you have: a key-value server, a database row, an object store with conditional writes.
//
// Thread safety: all methods may be called from any thread.
#ifndef EXAMPLES_CONSUMER_CAS_STORE_H_
#define EXAMPLES_CONSUMER_CAS_STORE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "latchkey/core/protocol/lock_record.h"

namespace example {

class CasStore {
 public:
  // A value and its version; version 0 is a key that was never written. A real store keeps bytes:
  // write the record's fields in whatever form it likes.
  struct Entry {
    latchkey::LockRecord record;
    uint64_t version = 0;
  };

  Entry Load(const std::string& key) const {
    absl::MutexLock lock(&mu_);
    const auto entry = entries_.find(key);
    return entry == entries_.end() ? Entry() : entry->second;
  }

  // Stores `record` if the key's version still is `version`, then tells the observers.
  bool CompareAndSwap(const std::string& key, uint64_t version,
                      const latchkey::LockRecord& record) {
    const Entry next = {record, version + 1};
    std::vector<std::shared_ptr<Observer>> observers;
    {
      absl::MutexLock lock(&mu_);
      Entry& entry = entries_[key];
      if (entry.version != version) return false;
      entry = next;
      observers = observers_;
    }
    for (const auto& observer : observers) (*observer)(key, next);
    return true;
  }

  // Calls `observer` after each change, on the thread that made it, for the store's life. Changes
  // made at the same time may be told in any order.
  using Observer = std::function<void(const std::string& key, const Entry& entry)>;
  void Observe(Observer observer) {
    absl::MutexLock lock(&mu_);
    observers_.push_back(std::make_shared<Observer>(std::move(observer)));
  }

 private:
  mutable absl::Mutex mu_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mu_);
  std::vector<std::shared_ptr<Observer>> observers_ ABSL_GUARDED_BY(mu_);
};

}  // namespace example

#endif  // EXAMPLES_CONSUMER_CAS_STORE_H_
