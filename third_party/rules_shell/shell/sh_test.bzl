"""Stands in for rules_shell under Bazel 4, which still has this rule built in."""

sh_test = native.sh_test
