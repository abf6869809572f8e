"""Tests that check a Promela model with SPIN."""

load("@rules_shell//shell:sh_test.bzl", "sh_test")

# Memory that one search may use, in MB.
_QUICK_MEMORY = 2000
_THOROUGH_MEMORY = 8000

def _model_test(name, model, args, thorough, timeout):
    sh_test(
        name = name,
        srcs = ["run_model.sh"],
        args = ["$(location %s.pml)" % model] + args + [
            "--memory=%d" % (_THOROUGH_MEMORY if thorough else _QUICK_MEMORY),
        ],
        data = native.glob(["*.pml"]),
        # SPIN reads the models only; compiling our code with a sanitizer changes nothing here.
        tags = ["unsanitized"] + (["manual"] if thorough else []),
        timeout = timeout or ("eternal" if thorough else "moderate"),
    )

def holds(name, model, setting = [], claim = None, thorough = False, timeout = None):
    """The properties hold in every reachable state of the model.

    Args:
      name: the test's name.
      model: the model's file, without its ending.
      setting: switches of the model, NAME or NAME=VALUE.
      claim: the LTL formula to check, under weak fairness; none: the assertions.
      thorough: run only by name and by the suite :thorough.
      timeout: Bazel's name of the time allowed.
    """
    args = ["holds"] + ["-D" + s for s in setting] + (["--claim=" + claim] if claim else [])
    _model_test(name, model, args, thorough, timeout)

def finds(name, model, broken, setting = [], claim = None, timeout = None):
    """The setting, one rule broken or one assumption taken away, has a counterexample.

    Args:
      name: the test's name.
      model: the model's file, without its ending.
      broken: the property that is violated: the flag of an assertion, or the formula `claim`.
      setting: switches of the model, NAME or NAME=VALUE.
      claim: the LTL formula to check, under weak fairness; none: the assertions.
      timeout: Bazel's name of the time allowed.
    """
    args = ["finds", broken] + ["-D" + s for s in setting] + (["--claim=" + claim] if claim else [])
    _model_test(name, model, args, False, timeout)
