// Strand says who may act when several threads bring news to one object: one thread at a time, and
// never a thread that is acting already. For the parts of the library that note something under a
// mutex and act on it without.
//
//   void Notice(News news) {
//     {
//       absl::MutexLock lock(&mu_);
//       news_ = news;
//     }
//     strand_.Run([this] { Act(); });  // Act takes what is noted, under the mutex.
//   }
//
// Whoever finds the strand taken leaves its news to the thread that has it, which acts once more
// before it leaves, however many have come meanwhile. Where each piece of news counts, or their
// order does, see EventMailbox.
//
// Thread safety: all methods may be called from any thread, with or without a mutex held; Again and
// Abandon by the one that has the strand. What was written before an Enter is seen by whoever acts
// after it.
// Lifetime: while it acts, a thread keeps alive what the strand is part of.
#ifndef LATCHKEY_CORE_BASE_STRAND_H_
#define LATCHKEY_CORE_BASE_STRAND_H_

#include <atomic>
#include <cstdint>
#include <utility>

#include "absl/log/check.h"
#include "latchkey/core/base/ref_counted.h"

namespace latchkey::internal {

class Strand {
 public:
  Strand() = default;
  Strand(const Strand&) = delete;
  Strand& operator=(const Strand&) = delete;

  // Something has happened. True: the caller has the strand, and acts. False: another has it, and
  // will act once more.
  [[nodiscard]] bool Enter() {
    State before = state_.load(std::memory_order_relaxed);
    State after;
    do {
      after = before == State::kFree ? State::kTaken : State::kNewsCame;
    } while (!state_.compare_exchange_weak(before, after, std::memory_order_acq_rel,
                                           std::memory_order_relaxed));
    return before == State::kFree;
  }

  // After acting. True: something has happened meanwhile, and the caller acts again. False: it has
  // the strand no longer.
  [[nodiscard]] bool Again() {
    State before = State::kTaken;
    if (state_.compare_exchange_strong(before, State::kFree, std::memory_order_acq_rel)) {
      return false;
    }
    DCHECK(before == State::kNewsCame) << "who leaves a strand has it";
    // Not a store: it has to see what each of those wrote that have come.
    state_.exchange(State::kTaken, std::memory_order_acq_rel);
    return true;
  }

  // Leaves without acting again. True: something has happened meanwhile, and the caller sees to it
  // that somebody enters.
  [[nodiscard]] bool Abandon() {
    const State before = state_.exchange(State::kFree, std::memory_order_acq_rel);
    DCHECK(before != State::kFree) << "who leaves a strand has it";
    return before == State::kNewsCame;
  }

  // Something has happened: acts, unless another thread, or this one further up its stack, is at
  // it. `act()` must not throw.
  template <typename Act>
  void Run(const Act& act) {
    if (!Enter()) return;
    do {
      act();
    } while (Again());
  }

 private:
  enum class State : uint8_t { kFree, kTaken, kNewsCame };

  std::atomic<State> state_ = State::kFree;
};

// The right, and the duty, to go on with an object, on its way through an executor or in a
// callback. If that is dropped instead of run (see Executor::Execute), the object's OnDropped() is
// called, on the thread that drops it.
//
// Thread safety: none; one thread at a time has it.
template <typename T>
class Ticket {
 public:
  // Keeps the object, a RefCounted, alive.
  explicit Ticket(T* object) : object_(RefPtr<T>::Share(object)) {}
  Ticket(Ticket&&) noexcept = default;
  Ticket& operator=(Ticket&&) = delete;
  ~Ticket() {
    if (object_) Take()->OnDropped();
  }

  // The caller goes on. Once.
  RefPtr<T> Take() { return std::move(object_); }

 private:
  RefPtr<T> object_;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_BASE_STRAND_H_
