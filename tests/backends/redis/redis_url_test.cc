#include "latchkey/backends/redis/redis_url.h"

#include <string>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_error.h"

namespace latchkey::redis {
namespace {

TEST(RedisUrlTest, ReadsAllPartsOfATcpUrl) {
  const auto address = ParseRedisUrl("redis://me:p%40ss@example.org:7000/3");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->transport, Transport::kTcp);
  EXPECT_EQ(address->host, "example.org");
  EXPECT_EQ(address->port, 7000);
  EXPECT_EQ(address->user, "me");
  EXPECT_EQ(address->password, "p@ss");
  EXPECT_EQ(address->database, 3);
}

TEST(RedisUrlTest, EverythingButTheHostMayBeLeftOut) {
  const auto address = ParseRedisUrl("redis://localhost");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->host, "localhost");
  EXPECT_EQ(address->port, 6379);
  EXPECT_EQ(address->user, "");
  EXPECT_EQ(address->password, "");
  EXPECT_EQ(address->database, 0);
  EXPECT_TRUE(ParseRedisUrl("redis://localhost/").ok());
}

TEST(RedisUrlTest, ReadsAPasswordWithoutAUser) {
  const auto address = ParseRedisUrl("rediss://:secret@host");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->transport, Transport::kTls);
  EXPECT_EQ(address->user, "");
  EXPECT_EQ(address->password, "secret");
}

TEST(RedisUrlTest, APasswordMayHoldAnAtSignAndAColon) {
  const auto address = ParseRedisUrl("redis://u:a@b:c@host");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->password, "a@b:c");
  EXPECT_EQ(address->host, "host");
}

TEST(RedisUrlTest, ReadsNumericAddresses) {
  const auto address = ParseRedisUrl("redis://[::1]:7001/1");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->host, "::1");
  EXPECT_EQ(address->port, 7001);
  EXPECT_EQ(address->ToString(), "redis://[::1]:7001/1");
}

TEST(RedisUrlTest, ReadsASocketsPath) {
  const auto address = ParseRedisUrl("unix://:pw@/run/my%20redis.sock?db=2");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->transport, Transport::kUnix);
  EXPECT_EQ(address->path, "/run/my redis.sock");
  EXPECT_EQ(address->password, "pw");
  EXPECT_EQ(address->database, 2);
}

TEST(RedisUrlTest, WhatIsShownHasNoLogin) {
  const auto address = ParseRedisUrl("rediss://me:secret@host:1/2");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->ToString(), "rediss://host:1/2");
}

TEST(RedisUrlTest, WhatIsShownOfASocketIsItsUrl) {
  for (const std::string url :
       {"unix:///run/a%3Fb", "unix:///run/a%2541b?db=1", "unix:///run/%20%7f", "unix:///run/a@b"}) {
    const auto address = ParseRedisUrl(url);
    ASSERT_TRUE(address.ok()) << address.status();
    const auto again = ParseRedisUrl(address->ToString());
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->path, address->path);
    EXPECT_EQ(again->database, address->database);
  }
}

TEST(RedisUrlTest, APathThatNoSocketCanHaveIsRefused) {
  EXPECT_TRUE(ParseRedisUrl("unix:///" + std::string(106, 'p')).ok());
  EXPECT_FALSE(ParseRedisUrl("unix:///" + std::string(107, 'p')).ok());
  EXPECT_FALSE(ParseRedisUrl("unix:///run/a%00b").ok());
}

TEST(RedisUrlTest, APasswordWithASlashIsNotShownWhereverItEndsUp) {
  for (const char* url :
       {"redis://user:secret/x@host", "redis://us/er:secret@host", "unix://user:a/secret@/run/x",
        "user:secret@://host", "redis://user:x/secret@host/1"}) {
    const auto address = ParseRedisUrl(url);
    ASSERT_FALSE(address.ok()) << url;
    EXPECT_EQ(ReasonOf(address.status()), Reason::kInvalidArgument);
    EXPECT_FALSE(absl::StrContains(address.status().message(), "secret")) << address.status();
    EXPECT_TRUE(absl::StrContains(address.status().message(), "%2F")) << address.status();
  }
}

struct BadUrl {
  const char* url;
  const char* named;  // What the message has to say.
};

TEST(RedisUrlTest, BadUrlsAreRefusedNamingPartAndValueButNoPassword) {
  for (const BadUrl& bad : {
           BadUrl{"localhost:6379", "scheme"},
           BadUrl{"http://host", "scheme 'http'"},
           BadUrl{"redis://", "host ''"},
           BadUrl{"redis://:s3cret@", "host ''"},
           BadUrl{"redis://:s3cret@host:99999", "port '99999'"},
           BadUrl{"redis://:s3cret@host:", "port ''"},
           BadUrl{"redis://host:0", "port '0'"},
           BadUrl{"redis://:s3cret@host/one", "database 'one'"},
           BadUrl{"redis://host/-1", "database '-1'"},
           BadUrl{"redis://host/1?x=2", "query 'x=2'"},
           BadUrl{"redis://:s3cret%zz@host", "password"},
           BadUrl{"redis://us%g0er:s3cret@host", "user"},
           BadUrl{"redis://user@host", "password"},
           BadUrl{"redis://[::1", "host '[::1'"},
           BadUrl{"redis://[::1]6379", "host"},
           BadUrl{"redis://ho st", "host 'ho st'"},
           BadUrl{"unix://run/redis.sock", "path 'run/redis.sock'"},
           BadUrl{"unix:///run/redis.sock?database=1", "query 'database=1'"},
           BadUrl{"unix:///run/redis%1", "path"},
       }) {
    const auto address = ParseRedisUrl(bad.url);
    ASSERT_FALSE(address.ok()) << bad.url;
    EXPECT_EQ(ReasonOf(address.status()), Reason::kInvalidArgument) << bad.url;
    const std::string message(address.status().message());
    EXPECT_TRUE(absl::StrContains(message, bad.named)) << bad.url << ": " << message;
    EXPECT_FALSE(absl::StrContains(message, "s3cret")) << message;
  }
}

}  // namespace
}  // namespace latchkey::redis
