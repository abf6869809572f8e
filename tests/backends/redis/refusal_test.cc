// What each error of a server means, in the words of all versions.
#include "latchkey/backends/redis/refusal.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>

#include <string>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_error.h"

namespace latchkey::redis {
namespace {

struct Case {
  std::string_view error;
  Reason reason;
  std::string_view meaning;
};

TEST(RefusalTest, SaysOfEachErrorWhetherItPassesAndWhetherAnythingWasDone) {
  constexpr Reason kPasses = Reason::kBackendUnavailable;
  constexpr Reason kRefused = Reason::kBackendRefused;
  constexpr Reason kUnknown = Reason::kBackendUnknown;
  for (const Case& c : {
           Case{"OOM command not allowed when used memory > 'maxmemory'.", kPasses, "memory"},
           Case{"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to "
                "persist to disk.",
                kPasses, "disk"},
           Case{"NOREPLICAS Not enough good replicas to write.", kPasses, "replicas"},
           Case{"LOADING Redis is loading the dataset in memory", kPasses, "loading"},
           Case{"BUSY Redis is busy running a script.", kPasses, "busy"},
           Case{"READONLY You can't write against a read only replica.", kPasses, "replica"},
           Case{"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
                kPasses, "master"},
           Case{"NOSCRIPT No matching script. Please use EVAL.", kPasses, "script"},
           Case{"ERR max number of clients reached", kPasses, "clients"},
           Case{"ERR max number of clients + cluster connections reached", kPasses, "clients"},
           Case{"NOAUTH Authentication required.", kRefused, "password"},
           Case{"WRONGPASS invalid username-password pair or user is disabled.", kRefused, "login"},
           Case{"NOPERM this user has no permissions to run the 'evalsha' command", kRefused,
                "permission"},
           Case{"NOPERM this user has no permissions to access one of the keys used as arguments",
                kRefused, "permission"},
           Case{"DENIED Redis is running in protected mode because protected mode is enabled",
                kRefused, "protected"},
           Case{"WRONGTYPE Operation against a key holding the wrong kind of value", kRefused,
                "something else"},
           Case{"WRONGTYPE waiting list", kRefused, "something else"},
           Case{"ERR DB index is out of range", kRefused, "database"},
           Case{"ERR invalid DB index", kRefused, "database"},
           Case{"ERR unknown command 'EVALSHA', with args beginning with: ", kRefused, "command"},
           Case{"MOVED 3999 127.0.0.1:6381", Reason::kNotSupported, "Cluster"},
           Case{"ASK 3999 127.0.0.1:6381", Reason::kNotSupported, "Cluster"},
           Case{"CROSSSLOT Keys in request don't hash to the same slot", Reason::kNotSupported,
                "Cluster"},
           Case{"TRYAGAIN Multiple keys request during rehashing of slot", Reason::kNotSupported,
                "Cluster"},
           Case{"CLUSTERDOWN The cluster is down", Reason::kNotSupported, "Cluster"},
           Case{"ERR SELECT is not allowed in cluster mode", Reason::kNotSupported, "Cluster"},
           // What a script met, in the words of Redis 6.0, 6.2, 7.
           Case{"ERR Error running script (call to f_94c5): @user_script:20: WRONGTYPE Operation "
                "against a key holding the wrong kind of value",
                kRefused, "something else"},
           Case{"ERR Error running script (call to f_94c5): @user_script:20: @user_script: 20: "
                "-OOM command not allowed when used memory > 'maxmemory'.",
                kPasses, "memory"},
           Case{"@user_script: 156: -OOM command not allowed when used memory > 'maxmemory'.",
                kPasses, "memory"},
           Case{"OOM command not allowed when used memory > 'maxmemory'. script: 94c5, on "
                "@user_script:20.",
                kPasses, "memory"},
           // Not the words that they begin like.
           Case{"ERR something that is not WRONGTYPE or OOM at all", kUnknown, ""},
           Case{"BUSYKEY Target key name already exists.", kUnknown, ""},
           Case{"OOMPH", kUnknown, ""},
           Case{"", kUnknown, ""},
       }) {
    const Refusal refusal = ReadScriptError(c.error, "");
    EXPECT_EQ(refusal.reason, c.reason) << c.error;
    EXPECT_TRUE(absl::StrContains(refusal.meaning, c.meaning)) << c.error;
    EXPECT_EQ(refusal.meaning.empty(), c.meaning.empty()) << c.error;
  }
}

// Whether a script that lacks a permission has done its work before depends on where it was.
TEST(RefusalTest, APermissionThatAScriptLacksIsARefusalUnlessItsWriteMayHaveBeenMade) {
  constexpr std::string_view kScript =
      "local s = redis.call('HGET', KEYS[1], 's')\n"
      "redis.call('HSET', KEYS[1], 's', '')\n"
      "if keep then redis.call('PEXPIRE', KEYS[1], 5) end\n";
  for (const std::string_view met :
       {"ERR The user executing the script can't run this command or subcommand script: 94c5, on "
        "@user_script:",
        "ERR Error running script (call to f_94c5): @user_script: ",
        "NOPERM ACL failure in script: no permission script: 94c5, on @user_script:"}) {
    const auto error = [&](std::string_view line) {
      return absl::StrCat(met, line,
                          ": The user executing the script can't run this command or subcommand");
    };
    EXPECT_EQ(ReadScriptError(error("1"), kScript).reason, Reason::kBackendRefused) << met;
    EXPECT_EQ(ReadScriptError(error("2"), kScript).reason, Reason::kBackendRefused) << met;
    EXPECT_EQ(ReadScriptError(error("3"), kScript).reason, Reason::kBackendUnknown) << met;
    // Nowhere in it.
    for (const std::string_view line : {"0", "5", "x", ""}) {
      EXPECT_EQ(ReadScriptError(error(line), kScript).reason, Reason::kBackendUnknown) << line;
    }
    EXPECT_TRUE(absl::StrContains(ReadScriptError(error("3"), kScript).meaning, "permission"));
  }
  // What a script hands on it has met at its first write.
  EXPECT_EQ(ReadScriptError(
                "ERR The user executing the script can't run this command or subcommand", kScript)
                .reason,
            Reason::kBackendRefused);
  // Later versions name it.
  for (const auto& [command, reason] :
       {std::pair("zadd", Reason::kBackendRefused), std::pair("hset", Reason::kBackendRefused),
        std::pair("pexpire", Reason::kBackendUnknown)}) {
    EXPECT_EQ(ReadScriptError(absl::StrCat("ERR ACL failure in script: User default has no "
                                           "permissions to run the '",
                                           command, "' command"),
                              kScript)
                  .reason,
              reason)
        << command;
  }
  // A command that the server does not have at all.
  EXPECT_EQ(ReadScriptError("ERR Unknown Redis command called from script script: 94c5, on "
                            "@user_script:2.",
                            kScript)
                .reason,
            Reason::kBackendRefused);
}

TEST(RefusalTest, AGreetingThatFailsIsNeverUnknown) {
  struct Greeting {
    std::string_view command;
    std::string_view error;
    Reason reason;
  };
  constexpr Reason kPasses = Reason::kBackendUnavailable;
  constexpr Reason kRefused = Reason::kBackendRefused;
  for (const Greeting& c : {
           Greeting{"AUTH", "WRONGPASS invalid username-password pair", kRefused},
           Greeting{"AUTH", "ERR invalid password", kRefused},
           Greeting{"AUTH", "ERR AUTH <password> called without any password configured", kRefused},
           Greeting{"AUTH", "ERR Client sent AUTH, but no password is set", kRefused},
           Greeting{"AUTH", "ERR wrong number of arguments for 'auth' command", kRefused},
           // Whatever was asked first gets this.
           Greeting{"AUTH", "ERR max number of clients reached", kPasses},
           Greeting{"AUTH", "no upstream host", kPasses},
           Greeting{"SELECT", "ERR DB index is out of range", kRefused},
           Greeting{"SELECT", "ERR something new", kRefused},
           Greeting{"SELECT", "ERR SELECT is not allowed in cluster mode", Reason::kNotSupported},
           Greeting{"INFO", "ERR go away", kPasses},
           Greeting{"INFO", "NOAUTH Authentication required.", kRefused},
           Greeting{"SCRIPT", "LOADING Redis is loading the dataset in memory", kPasses},
           Greeting{"EVAL", "READONLY You can't write against a read only replica.", kPasses},
           Greeting{"EVAL",
                    "ERR The user executing the script can't run this command or subcommand "
                    "script: 94c5, on @user_script:3.",
                    kRefused},
           Greeting{"EVAL", "ERR something new", kPasses},
       }) {
    EXPECT_EQ(ReadGreetingError(c.command, c.error).reason, c.reason) << c.command << c.error;
  }
}

TEST(RefusalTest, TlsThatEndsWithoutAWordPassesAndARefusalDoesNot) {
  const auto ssl = [](int reason) { return ERR_PACK(ERR_LIB_SSL, 0, reason); };
  EXPECT_EQ(ReadTlsError(X509_V_ERR_CERT_HAS_EXPIRED, 0), Reason::kBackendRefused);
  EXPECT_EQ(ReadTlsError(X509_V_ERR_HOSTNAME_MISMATCH, ssl(SSL_R_CERTIFICATE_VERIFY_FAILED)),
            Reason::kBackendRefused);
  EXPECT_EQ(ReadTlsError(X509_V_OK, ssl(SSL_R_WRONG_VERSION_NUMBER)), Reason::kBackendRefused);
  EXPECT_EQ(ReadTlsError(X509_V_OK, ssl(SSL_R_TLSV1_ALERT_UNKNOWN_CA)), Reason::kBackendRefused);
  EXPECT_EQ(ReadTlsError(X509_V_OK, 0), Reason::kBackendUnavailable);
  EXPECT_EQ(ReadTlsError(X509_V_OK, ERR_PACK(ERR_LIB_SYS, 0, ECONNRESET)),
            Reason::kBackendUnavailable);
  EXPECT_EQ(ReadTlsError(X509_V_OK, ssl(SSL_R_TLSV1_ALERT_INTERNAL_ERROR)),
            Reason::kBackendUnavailable);
#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING
  EXPECT_EQ(ReadTlsError(X509_V_OK, ssl(SSL_R_UNEXPECTED_EOF_WHILE_READING)),
            Reason::kBackendUnavailable);
#endif
}

}  // namespace
}  // namespace latchkey::redis
