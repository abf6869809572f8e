// The conformance suite over quorums of in-memory backends, in simulated time.

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/core/clock.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/conformance/conformance.h"

namespace latchkey {
namespace {

ConformanceParam OverMemory(int servers, int clients) {
  ConformanceParam param = OnSimulatedTime([servers, clients](Clock& clock) {
    std::vector<std::shared_ptr<LockingProtocol>> stores;
    for (int i = 0; i < servers; ++i) {
      stores.push_back(NewMemoryBackend({.clock = &clock, .shards = 4}));
    }
    std::vector<std::shared_ptr<LockingProtocol>> made;
    for (int i = 0; i < clients; ++i) {
      made.push_back(*NewQuorumBackend(stores, {.clock = &clock}));
    }
    return made;
  });
  param.name = absl::StrCat(servers, "Servers", clients, "Clients");
  return param;
}

INSTANTIATE_TEST_SUITE_P(Quorum, ConformanceTest,
                         testing::Values(OverMemory(1, 1), OverMemory(3, 1), OverMemory(3, 2),
                                         OverMemory(5, 2)),
                         ConformanceTestName);

}  // namespace
}  // namespace latchkey
