// The calls that the README shows, compiled and run.
//
// Run it with:  ./bazelw run //examples:tour
#include <iostream>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace {

int failures = 0;

// Every call of the tour is expected to succeed; what it acquired is released at once.
template <typename Result>
void Expect(const Result& result) {
  if (result.ok()) return;
  std::cerr << "failed\n";
  ++failures;
}

void WriteOrder(latchkey::FencingToken token) {
  std::cout << "written with token " << token << "\n";
}

}  // namespace

int main() {
  absl::StatusOr<latchkey::LockManager> locks =
      latchkey::LockManager::Create(latchkey::NewMemoryBackend());
  if (!locks.ok()) return 1;

  Expect(locks->Acquire("orders/42", {.acquire_timeout = absl::Seconds(5)}));
  Expect(locks->Acquire("lights", {.owner = "motion detected", .priority = 100}));
  Expect(locks->Acquire("report", {.lease = absl::Seconds(30), .auto_renew = true}));
  Expect(locks->TryAcquire("cache"));
  locks->AcquireAsync("orders/42", {}, [](absl::StatusOr<latchkey::Lock> lock) { Expect(lock); });

  Expect(locks->Run("orders/42", {}, [](latchkey::LockContext& context) {
    WriteOrder(context.fencing_token());
    return absl::OkStatus();
  }));
  Expect(locks->AcquireAll({"kitchen light", "bedroom light"}, {.priority = 100}));
  return failures;
}
