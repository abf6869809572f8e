// The party and the alarm: a party lets the lights run through its colours. When somebody opens a
// window, the alarm takes the lights; when it has had them, the party goes on with the colour that
// it was at.
//
// Run it with:  ./bazelw run //examples:party_lights
#include <functional>
#include <iostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/transaction.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace {

using latchkey::Locker;
using latchkey::Transaction;
using latchkey::TransactionContext;
using latchkey::TransactionHandle;

// Shows who switched them, and believes only the newest fencing token it has seen.
class Lights {
 public:
  void Show(std::string_view who, std::string_view colour, latchkey::FencingToken token) {
    if (token < newest_token_) return;
    newest_token_ = token;
    shown_.push_back(std::string(who) + ": " + std::string(colour));
    std::cout << shown_.back() << "\n";
    if (on_show) on_show(colour);
  }
  const std::vector<std::string>& shown() const { return shown_; }

  std::function<void(std::string_view colour)> on_show;

 private:
  latchkey::FencingToken newest_token_ = 0;
  std::vector<std::string> shown_;
};

// [party]
Transaction<int> Party(Lights& lights, TransactionContext& ctx) {
  int shows = 0;
  for (const std::string_view colour : {"red", "yellow", "green", "blue"}) {
    bool seen_long_enough = false;
    while (!seen_long_enough) {
      lights.Show("party", colour, ctx.fencing_token());
      ++shows;
      // Wakes early, and without the lights, if somebody more important wants them. When this
      // returns, the party has them again.
      seen_long_enough = co_await ctx.Interruptible(ctx.Sleep(absl::Milliseconds(20)));
    }
  }
  co_return shows;
}

Transaction<void> Alarm(Lights& lights, TransactionContext& ctx) {
  for (int i = 0; i < 3; ++i) {
    lights.Show("alarm", "flash", ctx.fencing_token());
    co_await ctx.Sleep(absl::Milliseconds(5));
  }
}
// [party]

int Main() {
  absl::StatusOr<latchkey::LockManager> locks =
      latchkey::LockManager::Create(latchkey::NewMemoryBackend());
  if (!locks.ok()) return 1;

  // [start]
  Lights hall_lights;
  Locker lights(*locks, "lights", hall_lights, {.owner = "party"});
  hall_lights.on_show = [&](std::string_view colour) {
    if (colour != "green") return;
    hall_lights.on_show = nullptr;
    std::cout << "(a window is opened)\n";
    auto alarm = lights.With({.owner = "alarm", .priority = 100}).Start(Alarm);
    // Dropping the handle lets the alarm go on.
  };
  TransactionHandle<int> party = lights.Start(Party, latchkey::AlwaysResume());
  const absl::StatusOr<int> shows = party.Wait();
  // [start]

  if (!shows.ok()) {
    std::cerr << shows.status() << "\n";
    return 1;
  }
  std::cout << "the party is over after " << *shows << " shows\n";
  const std::vector<std::string> expected = {"party: red",   "party: yellow", "party: green",
                                             "alarm: flash", "alarm: flash",  "alarm: flash",
                                             "party: green", "party: blue"};
  return hall_lights.shown() == expected ? 0 : 1;
}

}  // namespace

int main() { return Main(); }
