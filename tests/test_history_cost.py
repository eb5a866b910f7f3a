"""What remembering every allocation costs a training step on the CPU: instructions counted by callgrind, and time of the fastest of many steps.

    TENON_TEST_BUILD=build python3 tests/test_history_cost.py      prints both; the test is of the instructions alone, which no neighbour disturbs"""

import functools
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

import script_cases
from installed_copy import build_option
from script_cases import BUILD, skip, want

MOST = 0.03  # of a step
# The layers and widths of examples/configs/shakespeare-char-cpu.json, on a twelfth of its tokens: the less a step computes, the more its
# bookkeeping weighs.
STEP = ["--task=uniform", "--task_vocab=65", "--task_length=64", "--layers=4", "--heads=4", "--width=128", "--decay=data", "--batch=1",
        "--device=cpu", "--no-growth", "--rows=0"]
WITH, WITHOUT = "--events=1048576", "--events=0"


def tenon_mem(*options, before=(), threads=None):
    environment = dict(os.environ)
    if threads:
        environment.update(OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads), OPENBLAS_CORETYPE="Haswell")
    done = subprocess.run([*before, BUILD + "/examples/tenon-mem", *STEP, *options], capture_output=True, text=True, env=environment)
    want(done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout


@functools.cache
def instructions(option):
    """Of the step that is looked at: the last of the four that run, two of them dry."""
    if not shutil.which("valgrind"):
        skip("there is no valgrind")
    if build_option("b_sanitize") != "none":
        skip("valgrind does not run what the sanitizers have changed")
    with tempfile.TemporaryDirectory(prefix="tenon-history-") as folder:
        tenon_mem(option, threads=1, before=[
            "valgrind", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=train_step", "--dump-after=train_step",
            f"--callgrind-out-file={folder}/out"])
        totals = []
        for path in sorted(glob.glob(folder + "/out.*"), key=lambda p: int(p.rsplit(".", 1)[1])):
            with open(path, encoding="utf-8") as file:
                totals.append(int(re.search(r"^totals: (\d+)", file.read(), re.MULTILINE)[1]))
    want(len(totals) >= 4 and totals[3] > 1000000, f"counts of {len(totals)} steps: {totals}")
    return totals[3]


def events_of_a_step():
    return int(re.search(r"after event \d+ of (\d+)", tenon_mem(WITH))[1])


def costs_little():
    on, off = instructions(WITH), instructions(WITHOUT)
    print(f"with the history {on} instructions, without {off}: {100 * (on / off - 1):.3f}%, {(on - off) / events_of_a_step():.0f} an event")
    want(on - off < MOST * off, f"the history costs {100 * (on / off - 1):.2f}% of a step")


def takes_little_time():
    """Said, not tested: the fastest step of many, on and off in turns."""
    fastest = {WITH: float("inf"), WITHOUT: float("inf")}
    for _ in range(3):
        for option in fastest:
            fastest[option] = min(fastest[option], float(re.search(r"a step, ([\d.]+) ms", tenon_mem(option, "--repeat=40"))[1]))
    on, off = fastest[WITH], fastest[WITHOUT]
    print(f"with the history {on:.3f} ms, without {off:.3f} ms: {100 * (on / off - 1):+.2f}%")


def nothing_is_kept_when_off():
    said = tenon_mem(WITHOUT)
    want("of 0\n" in said and "differences: 0 bytes" in said, f"no event is remembered: {said[:300]}")


if __name__ == "__main__":
    sys.exit(script_cases.main("test_history_cost", {f.__name__: f for f in (costs_little, takes_little_time, nothing_is_kept_when_off)}))
