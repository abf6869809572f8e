#include "latchkey/core/base/lease.h"

#include <pthread.h>
#include <sys/random.h>

#include <atomic>

#include "absl/base/call_once.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace latchkey {
namespace {

// Ids are handed out to threads in blocks, so that threads do not meet on one counter.
constexpr uint64_t kBlock = 1 << 20;

std::atomic<uint64_t> process_half{0};
std::atomic<uint64_t> next_block{1};

uint64_t RandomBits() {
  uint64_t bits = 0;
  // getrandom does not fail for so few bytes once the pool is ready, which it waits for; a signal
  // may interrupt that wait.
  while (getrandom(&bits, sizeof bits, 0) != sizeof bits) {
  }
  return bits;
}

void DrawProcessHalf() { process_half.store(RandomBits(), std::memory_order_relaxed); }

uint64_t ProcessHalf() {
  static absl::once_flag once;
  absl::call_once(once, [] {
    DrawProcessHalf();
    // A forked child must not repeat its parent's ids.
    pthread_atfork(nullptr, nullptr, &DrawProcessHalf);
  });
  return process_half.load(std::memory_order_relaxed);
}

std::string ForMessage(std::string_view bytes) {
  constexpr size_t kShown = 64;
  if (bytes.size() <= kShown) return absl::StrCat("'", absl::CHexEscape(bytes), "'");
  return absl::StrCat("'", absl::CHexEscape(bytes.substr(0, kShown)), "…' (", bytes.size(),
                      " bytes)");
}

}  // namespace

AcquisitionId AcquisitionId::Next() {
  struct Block {
    uint64_t next = 0;
    uint64_t end = 0;
  };
  static thread_local Block block;
  if (block.next == block.end) {
    ProcessHalf();
    block.next = next_block.fetch_add(kBlock, std::memory_order_relaxed);
    block.end = block.next + kBlock;
  }
  return {process_half.load(std::memory_order_relaxed), block.next++};
}

std::string AcquisitionId::ToString() const { return absl::StrFormat("%016x%016x", high, low); }

std::string ResourceForMessage(std::string_view resource) { return ForMessage(resource); }

std::string OwnerForMessage(std::string_view owner) {
  return owner.empty() ? "an anonymous owner" : ForMessage(owner);
}

}  // namespace latchkey
