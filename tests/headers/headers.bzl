"""Compiles public headers as a user's build would: with warnings as errors, at every level."""

load("@rules_cc//cc:defs.bzl", "cc_library", "cc_test")

_WARNINGS = ["-Wall", "-Wextra", "-Werror"]
_LEVELS = ["-O0", "-O1", "-O2", "-O3"]

# A sanitizer makes g++ 12 see uninitialised reads where there are none.
_TAGS = ["unsanitized"]

def headers_alone(name, headers):
    """Each header alone: once with the rest of the build, and at every level by hand.

    Args:
      name: of the group that has all levels.
      headers: dictionary from a header, as it is included, to its target.
    """
    all_levels = []
    for header, target in headers.items():
        stub = header.replace("/", "_").replace(".h", "_alone")
        native.genrule(
            name = stub + "_cc",
            testonly = True,
            outs = [stub + ".cc"],
            cmd = "echo '#include \"%s\"' > $@" % header,
        )
        for level in _LEVELS:
            library = stub + level.replace("-", "_")
            cc_library(
                name = library,
                testonly = True,
                srcs = [stub + ".cc"],
                copts = _WARNINGS + [level],
                tags = _TAGS + ([] if level == "-O0" else ["manual"]),
                deps = [target],
            )
            all_levels.append(library)
    native.filegroup(
        name = name,
        testonly = True,
        srcs = all_levels,
        tags = ["manual"],
    )

    # That none is forgotten.
    native.sh_test(
        name = name + "_test",
        size = "small",
        srcs = ["every_header.sh"],
        args = sorted(headers.keys()),
        data = [
            "//core:public_headers",
            "//core/policy:public_headers",
        ],
    )

def program_at_every_level(name, srcs, deps):
    for level in _LEVELS:
        cc_test(
            name = name + level.replace("-", "_") + "_test",
            size = "small",
            srcs = srcs,
            copts = _WARNINGS + [level],
            tags = _TAGS,
            deps = deps,
        )
