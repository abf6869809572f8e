// The conformance suite on a real server, with two clients.

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/protocol/quorum_member.h"
#include "latchkey/tests/backends/redis/settle.h"
#include "latchkey/tests/conformance/conformance.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/redis_server.h"

namespace latchkey {
namespace {

// Watch has no completion, so the order in which two clients register is theirs to settle. Here a
// watch by the test's own thread is on the server before it returns.
class PromptWatches final : public LockingProtocol {
 public:
  explicit PromptWatches(std::shared_ptr<LockingProtocol> inner) : inner_(std::move(inner)) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    inner_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    inner_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    inner_->Extend(hold, lease, std::move(done));
  }
  QuorumMember* quorum_member() override { return inner_->quorum_member(); }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    Subscription subscription = inner_->Watch(request, std::move(on_event));
    if (std::this_thread::get_id() == test_thread_ && !request.resource.empty()) {
      // Requests for one resource are served in order.
      Await<ReleaseOutcome>([&](auto done) {
        inner_->Release({.resource = request.resource, .acquisition = AcquisitionId::Next()},
                        std::move(done));
      }).IgnoreError();
    }
    return subscription;
  }
  const BackendCapabilities& capabilities() const override { return inner_->capabilities(); }

 private:
  const std::shared_ptr<LockingProtocol> inner_;
  const std::thread::id test_thread_ = std::this_thread::get_id();
};

ConformanceParam OnOneServer() {
  ConformanceParam param;
  param.name = "OneServer";
  // The server's clock cannot be moved, so leases take their time.
  param.unit = absl::Milliseconds(60);
  param.stress_rounds = 20;
  param.make = [] {
    // One for all tests: each uses resources of its own.
    static RedisServer server;
    ConformanceSetup setup;
    for (int i = 0; i < 2; ++i) {
      auto client = ConnectRedisBackend({.url = server.url(),
                                         .new_server = true,
                                         .lease_margin = absl::Milliseconds(1),
                                         .waiter_lease = absl::Milliseconds(900)});
      if (!client.ok()) {
        ADD_FAILURE() << client.status();
        abort();
      }
      setup.clients.push_back(std::make_shared<PromptWatches>(*std::move(client)));
    }
    setup.advance = [](absl::Duration duration) { absl::SleepFor(duration); };
    setup.settle = [clients = setup.clients] {
      for (const auto& client : clients) AwaitEventsOf(*client);
    };
    return setup;
  };
  return param;
}

INSTANTIATE_TEST_SUITE_P(Redis, ConformanceTest, testing::Values(OnOneServer()),
                         ConformanceTestName);

}  // namespace
}  // namespace latchkey
