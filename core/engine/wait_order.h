// WaitOrder is an ordered list of those who wait for one resource: by rank, and among equals as
// they came. Ranks are few as a rule, so each has a list of its own, chained through the waiters:
// coming last, and leaving from anywhere, looks at no other waiter but the neighbours, and
// allocates nothing. The ranks themselves are in a tree.
//
// Thread safety: none; the mutex of the queue's shard guards it.
#ifndef LATCHKEY_CORE_ENGINE_WAIT_ORDER_H_
#define LATCHKEY_CORE_ENGINE_WAIT_ORDER_H_

#include <cstdint>

#include "absl/container/btree_map.h"
#include "absl/numeric/int128.h"

namespace latchkey::internal {

// What an element needs for each order that it is in.
template <typename T>
struct WaitLink {
  T* before = nullptr;
  T* after = nullptr;
  absl::int128 rank = 0;
};

// The elements belong to somebody else.
template <typename T, WaitLink<T> T::*kLink>
class WaitOrder {
 public:
  WaitOrder() = default;
  WaitOrder(const WaitOrder&) = delete;
  WaitOrder& operator=(const WaitOrder&) = delete;

  bool empty() const { return size_ == 0; }
  int64_t size() const { return size_; }
  // The next, and the last of all; null if there is none.
  T* first() const { return empty() ? nullptr : lists_.begin()->second.first; }
  T* last() const { return empty() ? nullptr : lists_.rbegin()->second.last; }

  // After those of the same rank, or before them.
  void Insert(T& element, absl::int128 rank, bool in_front = false) {
    WaitLink<T>& link = element.*kLink;
    link.rank = rank;
    List& list = lists_[rank];
    link.before = in_front ? nullptr : list.last;
    link.after = in_front ? list.first : nullptr;
    (link.before != nullptr ? (link.before->*kLink).after : list.first) = &element;
    (link.after != nullptr ? (link.after->*kLink).before : list.last) = &element;
    ++size_;
  }

  void Erase(T& element) {
    const WaitLink<T>& link = element.*kLink;
    const auto found = lists_.find(link.rank);
    List& list = found->second;
    (link.before != nullptr ? (link.before->*kLink).after : list.first) = link.after;
    (link.after != nullptr ? (link.after->*kLink).before : list.last) = link.before;
    if (list.first == nullptr) lists_.erase(found);
    --size_;
  }

  // Calls `f(element)` in order until it returns false; it changes nothing.
  template <typename F>
  void ForEach(F f) const {
    for (auto list = lists_.begin(); list != lists_.end(); ++list) {
      for (T* element = list->second.first; element != nullptr;) {
        T* const next = (element->*kLink).after;
        if (!f(*element)) return;
        element = next;
      }
    }
  }

  // The last element for which `f(element)` is true; null if there is none. It changes nothing.
  template <typename F>
  T* LastOf(F f) const {
    for (auto list = lists_.rbegin(); list != lists_.rend(); ++list) {
      for (T* element = list->second.last; element != nullptr; element = (element->*kLink).before) {
        if (f(*element)) return element;
      }
    }
    return nullptr;
  }

 private:
  struct List {
    T* first = nullptr;
    T* last = nullptr;
  };

  absl::btree_map<absl::int128, List> lists_;
  int64_t size_ = 0;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_WAIT_ORDER_H_
