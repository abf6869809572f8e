// TLS: the server's certificate and its name are verified, always.

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/redis_server.h"
#include "latchkey/tests/support/tcp_proxy.h"

namespace latchkey {
namespace {

// Certificates made for this run: an authority, a server's for two names, and another authority.
class Certificates {
 public:
  Certificates() {
    std::string folder = (std::filesystem::temp_directory_path() / "latchkey-tls-XXXXXX").string();
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    for (const char* authority : {"ca", "stranger"}) {
      Run(absl::StrCat("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes ",
                       "-days 2 -subj /CN=", authority, " -keyout ", Path(authority), ".key -out ",
                       Path(authority), ".crt"));
    }
    Run(absl::StrCat("openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes ",
                     "-subj /CN=server -keyout ", Path("server"), ".key -out ", Path("server"),
                     ".csr"));
    std::ofstream(Path("names")) << "subjectAltName=DNS:localhost,IP:127.0.0.1\n";
    Run(absl::StrCat("openssl x509 -req -days 2 -CAcreateserial -CA ", Path("ca"), ".crt -CAkey ",
                     Path("ca"), ".key -in ", Path("server"), ".csr -extfile ", Path("names"),
                     " -out ", Path("server"), ".crt"));
  }
  ~Certificates() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::string Path(std::string_view name) const { return absl::StrCat(folder_, "/", name); }
  // One with this authority's certificate alone, under the name by which OpenSSL finds it.
  std::string Folder(std::string_view authority) const {
    const std::string folder = Path(absl::StrCat(authority, ".folder"));
    std::filesystem::create_directory(folder);
    std::filesystem::copy_file(Path(absl::StrCat(authority, ".crt")),
                               absl::StrCat(folder, "/", authority, ".crt"));
    Run(absl::StrCat("openssl rehash ", folder));
    return folder;
  }

 private:
  static void Run(const std::string& command) {
    ASSERT_EQ(system(absl::StrCat(command, " >/dev/null 2>&1").c_str()), 0) << command;
  }

  std::string folder_;
};

class RedisTlsTest : public testing::Test {
 protected:
  RedisBackendOptions Options(std::string_view host) const {
    return {.url = absl::StrCat("rediss://", host, ":", port_),
            .new_server = true,
            .tls = {.ca_file = certificates_.Path("ca.crt")}};
  }

  Certificates certificates_;
  int port_ = UnusedPort();
  RedisServer server_{
      {.arguments = {"--tls-port", absl::StrCat(port_), "--tls-cert-file",
                     certificates_.Path("server.crt"), "--tls-key-file",
                     certificates_.Path("server.key"), "--tls-ca-cert-file",
                     certificates_.Path("ca.crt"), "--tls-auth-clients", "optional"}}};
};

TEST_F(RedisTlsTest, LocksOverAVerifiedConnection) {
  for (const char* host : {"localhost", "127.0.0.1"}) {
    const auto backend = ConnectRedisBackend(Options(host));
    ASSERT_TRUE(backend.ok()) << backend.status();
    // Larger than a record of TLS, in both directions.
    const std::string owner(100'000, 'o');
    const AcquisitionId id = AcquisitionId::Next();
    for (const ObtainOutcome expected : {ObtainOutcome::kObtained, ObtainOutcome::kDenied}) {
      const auto reply = Await<ObtainReply>([&](auto done) {
        (*backend)->Obtain(
            {.resource = host,
             .acquisition = expected == ObtainOutcome::kObtained ? id : AcquisitionId::Next(),
             .owner = expected == ObtainOutcome::kObtained ? owner : "another",
             .lease = absl::Seconds(20)},
            std::move(done));
      });
      ASSERT_TRUE(reply.ok()) << reply.status();
      EXPECT_EQ(reply->outcome, expected);
      if (expected == ObtainOutcome::kDenied) {
        EXPECT_EQ(reply->other_owner, owner);
      }
    }
  }
}

TEST_F(RedisTlsTest, ManyRequestsShareAVerifiedConnection) {
  RedisBackendOptions options = Options("localhost");
  options.command_timeout = kHangGuard;  // However slow the machine.
  const auto backend = ConnectRedisBackend(options);
  ASSERT_TRUE(backend.ok()) << backend.status();
  auto replies = std::make_shared<Mailbox<absl::Status>>();
  constexpr int kLocks = 3000;
  for (int i = 0; i < kLocks; ++i) {
    const std::string resource = absl::StrCat("r", i);
    (*backend)->Obtain(
        {.resource = resource, .acquisition = AcquisitionId::Next(), .lease = absl::Seconds(20)},
        [replies](absl::StatusOr<ObtainReply> reply) { replies->Put(reply.status()); });
  }
  for (int i = 0; i < kLocks; ++i) {
    const auto status = replies->Take();
    ASSERT_TRUE(status && status->ok()) << i << ": " << (status ? *status : absl::OkStatus());
  }
}

TEST_F(RedisTlsTest, AnUnknownAuthorityIsRefused) {
  RedisBackendOptions options = Options("localhost");
  options.tls.ca_file = certificates_.Path("stranger.crt");
  const auto backend = ConnectRedisBackend(options);
  EXPECT_EQ(ReasonOf(backend.status()), Reason::kBackendRefused) << backend.status();
  EXPECT_TRUE(absl::StrContains(backend.status().message(), "certificate")) << backend.status();
}

TEST_F(RedisTlsTest, TheSystemsAuthoritiesDoNotKnowOurs) {
  RedisBackendOptions options = Options("localhost");
  options.tls.ca_file = "";
  EXPECT_EQ(ReasonOf(ConnectRedisBackend(options).status()), Reason::kBackendRefused);
}

TEST_F(RedisTlsTest, ACertificateForAnotherNameIsRefused) {
  RedisBackendOptions options = Options("localhost");
  options.tls.server_name = "elsewhere.example";
  const auto backend = ConnectRedisBackend(options);
  EXPECT_EQ(ReasonOf(backend.status()), Reason::kBackendRefused) << backend.status();
  EXPECT_TRUE(absl::StrContains(backend.status().message(), "hostname mismatch"))
      << backend.status();
}

TEST_F(RedisTlsTest, TheNameToVerifyMayBeAnotherThanTheHosts) {
  // A server that is reached by an address, or through a tunnel, under its own name.
  RedisBackendOptions options = Options("127.0.0.1");
  options.tls.server_name = "localhost";
  const auto backend = ConnectRedisBackend(options);
  EXPECT_TRUE(backend.ok()) << backend.status();
}

TEST_F(RedisTlsTest, AuthoritiesMayBeAFolder) {
  RedisBackendOptions options = Options("localhost");
  options.tls.ca_file = "";
  options.tls.ca_folder = certificates_.Folder("ca");
  const auto backend = ConnectRedisBackend(options);
  EXPECT_TRUE(backend.ok()) << backend.status();
  options.tls.ca_folder = certificates_.Folder("stranger");
  EXPECT_EQ(ReasonOf(ConnectRedisBackend(options).status()), Reason::kBackendRefused);
}

TEST_F(RedisTlsTest, AServerThatAsksForACertificateGetsOurs) {
  ASSERT_EQ(server_.Command({"CONFIG", "SET", "tls-auth-clients", "yes"}), "OK");
  RedisBackendOptions options = Options("localhost");
  const absl::Status without = ConnectRedisBackend(options).status();
  EXPECT_EQ(ReasonOf(without), Reason::kBackendRefused) << without;
  // Any that its authority has signed will do.
  options.tls.certificate_file = certificates_.Path("server.crt");
  options.tls.key_file = certificates_.Path("server.key");
  const auto backend = ConnectRedisBackend(options);
  EXPECT_TRUE(backend.ok()) << backend.status();
  options.tls.certificate_file = certificates_.Path("stranger.crt");
  options.tls.key_file = certificates_.Path("stranger.key");
  const absl::Status strange = ConnectRedisBackend(options).status();
  EXPECT_EQ(ReasonOf(strange), Reason::kBackendRefused) << strange;
  // A key of another certificate is a mistake of ours.
  options.tls.certificate_file = certificates_.Path("server.crt");
  const absl::Status mixed = ConnectRedisBackend(options).status();
  EXPECT_EQ(ReasonOf(mixed), Reason::kInvalidArgument) << mixed;
  EXPECT_TRUE(absl::StrContains(mixed.message(), "tls.key_file")) << mixed;
}

TEST_F(RedisTlsTest, AServerThatDoesNotSpeakTlsIsNotTalkedTo) {
  RedisServer plain({.tcp = true});
  RedisBackendOptions options = Options("localhost");
  options.url = absl::StrCat("rediss://localhost:", plain.port());
  options.connect_timeout = absl::Seconds(1);
  // It waits for more of what it takes for a command.
  EXPECT_EQ(ReasonOf(ConnectRedisBackend(options).status()), Reason::kBackendUnavailable);
  GarbageServer answers("-ERR unknown command\r\n", true);
  options.url = absl::StrCat("rediss://localhost:", answers.port());
  const absl::Status refused = ConnectRedisBackend(options).status();
  EXPECT_EQ(ReasonOf(refused), Reason::kBackendRefused) << refused;
}

}  // namespace
}  // namespace latchkey
