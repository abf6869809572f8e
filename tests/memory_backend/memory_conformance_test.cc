#include "gtest/gtest.h"
#include "latchkey/core/clock.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/conformance/conformance.h"

namespace latchkey {
namespace {

ConformanceParam WithShards(int shards) {
  ConformanceParam param = OnSimulatedTime(
      [shards](Clock& clock) { return NewMemoryBackend({.clock = &clock, .shards = shards}); });
  param.name = shards == 1 ? "OneShard" : "ManyShards";
  param.stress_rounds = 300;
  return param;
}

INSTANTIATE_TEST_SUITE_P(MemoryBackend, ConformanceTest,
                         testing::Values(WithShards(256), WithShards(1)), ConformanceTestName);

}  // namespace
}  // namespace latchkey
