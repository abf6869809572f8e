#include "cas_backend.h"

#include <memory>
#include <vector>

#include "cas_store.h"
#include "gtest/gtest.h"
#include "latchkey/tests/conformance/conformance.h"

namespace latchkey {
namespace {

using Clients = std::vector<std::shared_ptr<LockingProtocol>>;

// Two clients of one store, as two processes would be.
INSTANTIATE_TEST_SUITE_P(
    CasBackend, ConformanceTest, testing::Values(OnSimulatedTime([](Clock& clock) -> Clients {
      auto store = std::make_shared<example::CasStore>();
      return {example::NewCasBackend(store, clock), example::NewCasBackend(store, clock)};
    })),
    ConformanceTestName);

}  // namespace
}  // namespace latchkey
