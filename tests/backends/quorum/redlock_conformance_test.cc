// The conformance suite over five real servers, with two clients.

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/backends/redis/settle.h"
#include "latchkey/tests/conformance/conformance.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/redis_server.h"

namespace latchkey {
namespace {

constexpr int kServers = 5;

// A quorum answers when a majority has; the other servers are still at it. Here each step of the
// test's own thread waits first until every server has done what it was sent before, so that what a
// test expects of one step does not depend on the last one's stragglers.
class StepByStep final : public LockingProtocol {
 public:
  StepByStep(std::shared_ptr<LockingProtocol> inner,
             std::shared_ptr<std::vector<std::shared_ptr<LockingProtocol>>> servers)
      : inner_(std::move(inner)), servers_(std::move(servers)) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    AwaitServers(request.resource);
    inner_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    AwaitServers(hold.resource);
    inner_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    AwaitServers(hold.resource);
    inner_->Extend(hold, lease, std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    AwaitServers(request.resource);
    Subscription subscription = inner_->Watch(request, std::move(on_event));
    AwaitServers(request.resource);
    return subscription;
  }
  const BackendCapabilities& capabilities() const override { return inner_->capabilities(); }

 private:
  void AwaitServers(const ResourceName& resource) {
    if (std::this_thread::get_id() != test_thread_ || resource.empty()) return;
    for (const auto& server : *servers_) {
      Await<ReleaseOutcome>([&](auto done) {
        server->Release({.resource = resource, .acquisition = AcquisitionId::Next()},
                        std::move(done));
      }).IgnoreError();
    }
  }

  const std::shared_ptr<LockingProtocol> inner_;
  const std::shared_ptr<std::vector<std::shared_ptr<LockingProtocol>>> servers_;
  const std::thread::id test_thread_ = std::this_thread::get_id();
};

ConformanceParam OverFiveServers() {
  ConformanceParam param;
  param.name = "FiveServers";
  // The servers' clocks cannot be moved, so leases take their time.
  param.unit = absl::Milliseconds(60);
  param.stress_rounds = 5;
  param.make = [] {
    // The same for all tests: each uses resources of its own.
    static RedisServer servers[kServers];
    ConformanceSetup setup;
    auto all = std::make_shared<std::vector<std::shared_ptr<LockingProtocol>>>();
    for (int i = 0; i < 2; ++i) {
      std::vector<std::shared_ptr<LockingProtocol>> protocols;
      for (int j = 0; j < kServers; ++j) {
        auto client = ConnectRedisBackend({.url = servers[j].url(),
                                           .new_server = true,
                                           .lease_margin = absl::Milliseconds(1),
                                           .waiter_lease = absl::Milliseconds(900)});
        if (!client.ok()) {
          ADD_FAILURE() << client.status();
          abort();
        }
        protocols.push_back(*std::move(client));
        all->push_back(protocols.back());
      }
      setup.clients.push_back(
          std::make_shared<StepByStep>(*NewQuorumBackend(std::move(protocols)), all));
    }
    setup.advance = [](absl::Duration duration) { absl::SleepFor(duration); };
    setup.settle = [all] {
      for (const auto& client : *all) AwaitEventsOf(*client);
    };
    return setup;
  };
  return param;
}

INSTANTIATE_TEST_SUITE_P(Redlock, ConformanceTest, testing::Values(OverFiveServers()),
                         ConformanceTestName);

}  // namespace
}  // namespace latchkey
