// SetPlan decides what a request for several locks does next: whom it asks, what it gives back, and
// what it waits for. It knows what was heard of each member, and nothing of clocks and backends;
// SetRequest does what it says, and has its rules in full.
//
// Thread safety: none.
#ifndef LATCHKEY_CORE_ENGINE_SET_PLAN_H_
#define LATCHKEY_CORE_ENGINE_SET_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace latchkey::internal {

// What was heard last of a member. kSoft: its holder may be asked to yield; kHard: it may not;
// kFailed: instead of an answer, that the backend failed.
enum class Standing : uint8_t { kUnknown, kFailed, kHard, kSoft, kHeld };

struct SetStep {
  enum Kind {
    kAsk,      // Asks, without reserving any, for what is missing from `member` on; see BeginBatch.
    kQueue,    // Gives back what comes behind `member`, waits for it in its queue, and goes on.
    kReserve,  // Reserves `member`, and waits for it.
    kComplete,  // It has them all.
  };
  Kind kind = kComplete;
  size_t member = 0;

  friend bool operator==(const SetStep&, const SetStep&) = default;
};

class SetPlan {
 public:
  // The members it has asked for last: those of [begin, end) that are not held.
  struct Batch {
    size_t begin = 0;
    size_t end = 0;
  };

  // One at a time: that costs nothing where the backend answers at once. Else it asks for all at
  // first, and for some after a wait.
  SetPlan(size_t members, bool one_at_a_time);

  // What is next, once the whole batch is answered; again after each wait.
  SetStep NextStep() const;

  // Does what a kAsk says.
  Batch BeginBatch(size_t from);
  void Hear(size_t member, Standing standing);
  // Gives back what it has from `from` on; it will ask for those anew. (What it waits for in a
  // queue is the one before.)
  void GiveBack(size_t from);

  const Batch& batch() const { return batch_; }
  Standing standing(size_t member) const { return standings_[member]; }
  bool IsHeld(size_t member) const { return standings_[member] == Standing::kHeld; }
  // None from here on is held.
  size_t held_end() const { return held_end_; }

 private:
  // After a wait it asks for so many at once, where that saves time; then for twice as many each
  // time that none of them was in the way.
  static constexpr size_t kAskedAfterAWait = 8;

  // The first from there on that is not held; the number of members if there is none.
  size_t FirstMissing(size_t from) const;

  const bool one_at_a_time_;
  std::vector<Standing> standings_;
  // A pass goes over the members from here to the end.
  size_t pass_begin_ = 0;
  Batch batch_;
  size_t at_once_;
  size_t missing_ = 0;  // The first that is not held.
  size_t held_end_ = 0;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_SET_PLAN_H_
