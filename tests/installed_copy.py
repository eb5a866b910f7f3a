"""A copy of the build as `meson install` leaves it, for tests that use it as one would who has nothing else."""

import atexit
import functools
import glob
import json
import os
import shutil
import subprocess
import tempfile

from script_cases import BUILD, skip, want


def run(command, **how):
    how.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run(command, capture_output=True, text=True, **how)
    want(done.returncode == 0, f"{' '.join(map(str, command))}: exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


@functools.cache
def scratch():
    folder = tempfile.mkdtemp(prefix="tenon-test-")
    atexit.register(shutil.rmtree, folder, True)
    return folder


@functools.cache
def build_option(name):
    options = json.loads(run(["meson", "introspect", "--buildoptions", BUILD]))
    return next(option["value"] for option in options if option["name"] == name)


def skip_if_sanitized():
    if build_option("b_sanitize") != "none":
        skip("programs outside the build would need the sanitizers' run-time library too")


@functools.cache
def installed():
    """Where the installed files stand: a folder that stands for the prefix."""
    skip_if_sanitized()
    root = os.path.join(scratch(), "root")
    run(["meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", "--destdir", root])
    prefix = root + build_option("prefix")
    want(os.path.isdir(prefix), f"nothing was installed in {prefix}")
    return prefix


def one(pattern):
    found = glob.glob(os.path.join(installed(), pattern), recursive=True)
    want(found, f"no {pattern} among the installed files")
    return sorted(found, key=len)[0]


def surroundings():
    """What a shell needs for pkg-config and the loader to find the installed copy."""
    library = os.path.dirname(one("**/libtenon.so"))
    root = os.path.join(scratch(), "root")
    return {**os.environ, "PKG_CONFIG_PATH": os.path.dirname(one("**/tenon.pc")), "PKG_CONFIG_SYSROOT_DIR": root,
            "LD_LIBRARY_PATH": library, "TENON_TEST_COUNTS": ""}
