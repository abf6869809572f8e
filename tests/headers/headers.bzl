"""Compiles public headers as a user's build would: with warnings as errors, at every level."""

load("@rules_cc//cc:defs.bzl", "cc_library", "cc_test")

_WARNINGS = ["-Wall", "-Wextra", "-Werror"]
_LEVELS = ["-O0", "-O1", "-O2", "-O3"]

# A sanitizer makes g++ 12 see uninitialised reads where there are none.
_TAGS = ["unsanitized"]

def _tags(level, by_default):
    return _TAGS + ([] if level in by_default else ["manual"])

def headers_alone(name, headers, public_headers):
    """Each header alone: at -O0 with the rest of the build, and at every level in a group.

    Args:
      name: of the group that has all levels.
      headers: dictionary from a header, as it is included, to its target.
      public_headers: the files that have to be in there.
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
                tags = _tags(level, ["-O0"]),
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
        data = public_headers,
    )

def program_at_every_level(name, srcs, deps, by_default = _LEVELS):
    """A program, as a test for each level.

    Args:
      name: of the group that has all levels.
      srcs: its sources.
      deps: its dependencies.
      by_default: the levels that are built with the rest of the build.
    """
    all_levels = []
    for level in _LEVELS:
        test = name + level.replace("-", "_") + "_test"
        cc_test(
            name = test,
            size = "small",
            srcs = srcs,
            copts = _WARNINGS + [level],
            tags = _tags(level, by_default),
            deps = deps,
        )
        all_levels.append(test)
    native.filegroup(
        name = name,
        testonly = True,
        srcs = all_levels,
        tags = ["manual"],
    )
