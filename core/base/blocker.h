// Blocker is how a blocking call waits: for its result, or for a nudge to try for itself.
//
// Thread safety: SetReady and Nudge by any thread, the rest by one. The blocker may be destroyed as
// soon as Wait has said kReady.
#ifndef LATCHKEY_CORE_BASE_BLOCKER_H_
#define LATCHKEY_CORE_BASE_BLOCKER_H_

#include <atomic>
#include <thread>

namespace latchkey::internal {

// Tells the processor that this is a spin loop.
inline void SpinPause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Pauses between attempts at something that is taken for a short time as a rule. The first pause is
// as long as a dozen holds of a lock that is in great demand, and each further one is twice as
// long: whoever has it runs on undisturbed meanwhile, where frequent attempts would fetch its cache
// lines away and slow everybody down. After some twenty microseconds, about what it costs to sleep
// and be woken, it is over. It does not yield the processor: that gives it to whoever else is
// there, for longer than any of this takes.
class Spin {
 public:
  // False: enough; sleep instead.
  bool Again() {
    if (round_ == kRounds || !SeveralProcessors()) return false;
    for (int i = 0; i < (kFirstPause << round_); ++i) SpinPause();
    ++round_;
    return true;
  }

 private:
  static constexpr int kRounds = 4;
  static constexpr int kFirstPause = 32;

  // On a single one, the holder cannot come any further meanwhile.
  static bool SeveralProcessors() {
    static const bool several = std::thread::hardware_concurrency() != 1;
    return several;
  }

  int round_ = 0;
};

class Blocker {
 public:
  enum Word { kReady, kNudged };

  // Waits until SetReady or Nudge was called. A nudge counts once, however often it was given.
  Word Wait() {
    // Who is next when the lock is handed over is told within a microsecond as a rule. To sleep and
    // be woken takes tens of them.
    for (int i = 0; i < kSpins && bits_.load(std::memory_order_relaxed) == 0; ++i) SpinPause();
    for (;;) {
      const int bits = bits_.load(std::memory_order_acquire);
      if ((bits & kReadyBit) != 0) return kReady;
      if ((bits & kNudgedBit) != 0) {
        bits_.fetch_and(~kNudgedBit, std::memory_order_acquire);
        return kNudged;
      }
      bits_.wait(0, std::memory_order_acquire);
    }
  }

  bool IsReady() const { return (bits_.load(std::memory_order_acquire) & kReadyBit) != 0; }

  // Between these two the thread waits in poll() instead, and `bell`, an eventfd of its own, is
  // readable when there is something to wake for. Both say whether there is nothing yet. If
  // BeginPolling says that there is, EndPolling must not be called.
  bool BeginPolling(int bell) {
    int none = 0;
    return bits_.compare_exchange_strong(none, bell << kBellShift | kPollingBit,
                                         std::memory_order_acq_rel);
  }
  bool EndPolling(int bell) {
    const int bits = bits_.fetch_and(kReadyBit | kNudgedBit, std::memory_order_acq_rel);
    if ((bits & (kReadyBit | kNudgedBit)) == 0) return true;
    // It was rung, or is about to be: nobody may ring when the thread, and its bell, are gone.
    HearRing(bell);
    return false;
  }

  // After this, the blocker may be gone.
  void SetReady() { Set(kReadyBit); }
  // Only while something else keeps the blocker from becoming ready.
  void Nudge() { Set(kNudgedBit); }

 private:
  static constexpr int kReadyBit = 1;
  static constexpr int kNudgedBit = 2;
  static constexpr int kPollingBit = 4;
  static constexpr int kBellShift = 3;
  static constexpr int kSpins = 50;

  void Set(int bit) {
    // Waking looks at the address only, so it does not matter if the waiter has left by then.
    const int before = bits_.fetch_or(bit, std::memory_order_acq_rel);
    if (before == 0) {
      bits_.notify_one();
    } else if ((before & kPollingBit) != 0 && (before & (kReadyBit | kNudgedBit)) == 0) {
      Ring(before >> kBellShift);
    }
  }

  static void Ring(int bell);
  static void HearRing(int bell);

  std::atomic<int> bits_ = 0;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_BASE_BLOCKER_H_
