// Locks on a backend of one's own: two managers, as two processes would have them, on one store.
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string_view>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "cas_backend.h"
#include "cas_store.h"
#include "latchkey/core/clock.h"
#include "latchkey/core/lock_manager.h"

namespace {

// Stops the program if a step of the example did not work.
template <typename T>
T OrDie(absl::StatusOr<T> value, std::string_view what) {
  if (!value.ok()) {
    std::cerr << what << ": " << value.status() << "\n";
    std::exit(1);
  }
  return *std::move(value);
}

latchkey::LockManager NewManager(const std::shared_ptr<example::CasStore>& store) {
  return OrDie(latchkey::LockManager::Create(example::NewCasBackend(store, latchkey::RealClock())),
               "creating a manager");
}

}  // namespace

int main() {
  const auto store = std::make_shared<example::CasStore>();
  latchkey::LockManager day_shift = NewManager(store);
  latchkey::LockManager emergency = NewManager(store);

  latchkey::Lock lock =
      OrDie(day_shift.Acquire("printer", {.owner = "day shift"}), "the day shift's lock");
  std::cout << "day shift prints, token " << lock.fencing_token() << "\n";
  absl::Notification asked_to_yield;
  lock.OnYieldRequested([&] { asked_to_yield.Notify(); });

  std::thread caller([&] {
    latchkey::Lock urgent = OrDie(
        emergency.Acquire("printer", {.owner = "emergency", .priority = 10}), "the urgent lock");
    std::cout << "emergency prints, token " << urgent.fencing_token() << "\n";
  });

  asked_to_yield.WaitForNotification();
  std::cout << "day shift was asked to yield and stops\n";
  if (!lock.Release().ok()) return 1;
  caller.join();
  return 0;
}
