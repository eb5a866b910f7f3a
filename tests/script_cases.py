"""What tests written in Python share with those in C (harness.h): --list, --filter GLOB, exit codes, and a line of counts.

A case is a function. It fails by raising, and is skipped by skip(reason)."""

import fnmatch
import os
import sys
import traceback

EXIT_USAGE, EXIT_SKIPPED = 2, 77

SOURCES = os.environ.get("TENON_TEST_SOURCES") or os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.environ.get("TENON_TEST_BUILD") or os.path.join(SOURCES, "build")


class Skipped(Exception):
    pass


def skip(reason):
    raise Skipped(reason)


def want(condition, message):
    if not condition:
        raise AssertionError(message)


def append_counts(program, passed, failed, skipped):
    path = os.environ.get("TENON_TEST_COUNTS")
    if path:
        with open(path, "a") as counts:
            counts.write(f"{program} {passed} {failed} {skipped}\n")


def run_case(name, function):
    """'passed', 'failed' or 'skipped'; says so."""
    try:
        function()
    except Skipped as reason:
        print(f"[ SKIPPED  ] {name}: {reason}", flush=True)
        return "skipped"
    except Exception as error:
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        print(f"[  FAILED  ] {name}: {error}", flush=True)
        print(f"run it again: TENON_TEST_BUILD={BUILD} python3 {os.path.abspath(sys.argv[0])} --filter '{name}'", flush=True)
        return "failed"
    print(f"[       OK ] {name}", flush=True)
    return "passed"


def main(program, cases):
    """Runs cases {name: function} as the command line says; the exit code."""
    arguments, pattern = sys.argv[1:], "*"
    if arguments == ["--list"]:
        print("\n".join(cases))
        return 0
    if len(arguments) == 2 and arguments[0] == "--filter":
        pattern = arguments[1]
    elif arguments:
        print(f"usage: {program} [--list | --filter GLOB]", file=sys.stderr)
        return EXIT_USAGE
    chosen = {name: function for name, function in cases.items() if fnmatch.fnmatch(name, pattern)}
    if not chosen:
        print(f"{program}: no case is called {pattern}", file=sys.stderr)
        return EXIT_USAGE
    results = [run_case(name, function) for name, function in chosen.items()]
    counts = [results.count(kind) for kind in ("passed", "failed", "skipped")]
    append_counts(program, *counts)
    return 1 if counts[1] else 0 if counts[0] else EXIT_SKIPPED
