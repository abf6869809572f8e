"""Bugs put on purpose into a copy of the library's own source."""

load("@rules_cc//cc:defs.bzl", "cc_test")

def negative_control(name, bug, source, edits, world, finds, seeds):
    """A test that passes if the simulation finds a bug.

    The broken copy of the source is compiled into the test. What it defines takes the place of the
    same functions of the library, as the linker prefers a program's own.

    Args:
      name: the test's name.
      bug: the bug in words.
      source: the source file to break, a label.
      edits: sed expressions; each has to change exactly one line.
      world: the simulated world in which it is to be found.
      finds: the promise that it breaks: what the violation begins with.
      seeds: within how many seeds it is found.
    """
    copy = name + "_broken.cc"
    native.genrule(
        name = name + "_source",
        testonly = True,
        srcs = [source],
        outs = [copy],
        cmd = " ".join(["$(location break_source.sh)", "$<", "$@"] +
                       ["'%s'" % edit for edit in edits]),
        tools = ["break_source.sh"],
    )
    cc_test(
        name = name,
        size = "small",
        srcs = [
            "negative_control_test.cc",
            copy,
        ],
        args = [
            "--bug='%s'" % bug,
            "--world=" + world,
            "--finds='%s'" % finds,
            "--seeds=%d" % seeds,
        ],
        tags = ["notsan"],  # One thread.
        deps = [
            ":simulation",
            "//backends/quorum:quorum_backend",
            "//core:lock_manager",
            "//core/protocol:lock_record",
            "//memory_backend",
            "@com_google_absl//absl/strings",
            "@com_google_googletest//:gtest",
        ],
    )
