#!/bin/sh
# Never run: see BUILD.bazel.
exit 1
