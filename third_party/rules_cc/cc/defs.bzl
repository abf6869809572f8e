"""Stands in for rules_cc under Bazel 4, which still has these rules built in.

Our BUILD files load from @rules_cc//cc:defs.bzl, as Bazel 8 and later require. Bazel 7 and later
use the real rules_cc (see MODULE.bazel) and never see this file.
"""

cc_binary = native.cc_binary
cc_import = native.cc_import
cc_library = native.cc_library
cc_proto_library = native.cc_proto_library
cc_test = native.cc_test
cc_toolchain = native.cc_toolchain
cc_toolchain_suite = native.cc_toolchain_suite
fdo_prefetch_hints = native.fdo_prefetch_hints
fdo_profile = native.fdo_profile
objc_import = native.objc_import
objc_library = native.objc_library
