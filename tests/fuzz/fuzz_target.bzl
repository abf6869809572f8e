"""fuzz_target: one function LLVMFuzzerTestOneInput, built twice."""

load("@rules_cc//cc:defs.bzl", "cc_binary", "cc_test")

def fuzz_target(name, deps, size = "small", tags = []):
    """NAME.cc becomes NAME_test, which replays corpus/NAME, and NAME, the fuzzer itself.

    The fuzzer needs clang's libFuzzer, so only --config=asan builds it, and only when named.
    """
    all_deps = depset(deps + [":fuzz_input"]).to_list()
    cc_test(
        name = name + "_test",
        size = size,
        srcs = [
            name + ".cc",
            "replay_main.cc",
        ],
        args = ["tests/fuzz/corpus/" + name],
        data = native.glob(["corpus/" + name + "/**"]),
        tags = tags,
        deps = all_deps,
    )
    cc_binary(
        name = name,
        testonly = True,
        srcs = [name + ".cc"],
        linkopts = ["-fsanitize=fuzzer"],
        tags = ["manual"],
        deps = all_deps,
    )
