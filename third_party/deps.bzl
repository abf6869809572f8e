"""The dependencies under WORKSPACE; MODULE.bazel names them for Bazel 7 and later.

A workspace that uses Latchkey calls latchkey_dependencies() after it has named Latchkey itself. What
it has defined before under the same name wins.
"""

load("@bazel_tools//tools/build_defs/repo:http.bzl", "http_archive")

def _stand_in_impl(ctx):
    ctx.file("WORKSPACE", "workspace(name = \"%s\")\n" % ctx.attr.name)
    folder, _, file = ctx.attr.path.rpartition("/")
    ctx.file(folder + "/BUILD.bazel", "exports_files([\"%s\"])\n" % file)
    ctx.symlink(ctx.attr.rules, ctx.attr.path)

_stand_in = repository_rule(
    implementation = _stand_in_impl,
    attrs = {
        "path": attr.string(mandatory = True, doc = "From where others load the rules."),
        "rules": attr.label(mandatory = True),
    },
    doc = "Rules that Bazel 4 has built in, under the name by which newer Bazels load them.",
)

def latchkey_dependencies():
    """Names every repository that Latchkey needs and that the workspace has not named itself."""
    have = native.existing_rules()

    if "rules_cc" not in have:
        _stand_in(
            name = "rules_cc",
            path = "cc/defs.bzl",
            rules = Label("//third_party/rules_cc:cc/defs.bzl"),
        )

    if "rules_shell" not in have:
        _stand_in(
            name = "rules_shell",
            path = "shell/sh_test.bzl",
            rules = Label("//third_party/rules_shell:shell/sh_test.bzl"),
        )

    if "bazel_skylib" not in have:
        http_archive(
            name = "bazel_skylib",
            sha256 = "1c531376ac7e5a180e0237938a2536de0c54d93f5c278634818e0efc952dd56c",
            urls = ["https://github.com/bazelbuild/bazel-skylib/releases/download/1.0.3/bazel-skylib-1.0.3.tar.gz"],
        )

    if "com_google_absl" not in have:
        http_archive(
            name = "com_google_absl",
            sha256 = "f50e5ac311a81382da7fa75b97310e4b9006474f9560ac46f54a9967f07d4ae3",
            strip_prefix = "abseil-cpp-20240722.0",
            urls = ["https://github.com/abseil/abseil-cpp/releases/download/20240722.0/abseil-cpp-20240722.0.tar.gz"],
        )

    if "com_google_googletest" not in have:
        http_archive(
            name = "com_google_googletest",
            sha256 = "81964fe578e9bd7c94dfdb09c8e4d6e6759e19967e397dbea48d1c10e45d0df2",
            strip_prefix = "googletest-release-1.12.1",
            urls = ["https://github.com/google/googletest/archive/refs/tags/release-1.12.1.tar.gz"],
        )

    if "com_github_google_benchmark" not in have:
        http_archive(
            name = "com_github_google_benchmark",
            sha256 = "6430e4092653380d9dc4ccb45a1e2dc9259d581f4866dc0759713126056bc1d7",
            strip_prefix = "benchmark-1.7.1",
            urls = ["https://github.com/google/benchmark/archive/refs/tags/v1.7.1.tar.gz"],
        )

    if "hiredis" not in have:
        http_archive(
            name = "hiredis",
            build_file = Label("//third_party:hiredis.BUILD"),
            sha256 = "82ad632d31ee05da13b537c124f819eb88e18851d9cb0c30ae0552084811588c",
            strip_prefix = "hiredis-1.2.0",
            urls = ["https://github.com/redis/hiredis/archive/refs/tags/v1.2.0.tar.gz"],
        )
