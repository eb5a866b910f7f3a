#!/usr/bin/env python3
"""Instructions that sixteen hot paths take on the CPU, counted by callgrind, against the counts stored for the same surroundings.

    python3 bench/check_instructions.py PROGRAM [--counts bench/instruction_counts.json] [--update]

PROGRAM is bench-hot-paths. Counts do not depend on how busy the machine is, and callgrind shows every x86 processor with AVX2 as the same
one; they do depend on the compiler and the C library, so each combination has counts of its own. A count more than 3% off is an error in
both directions: what has become quicker wants to be stored, so that it stays. Exit code 0: all near; 1: some moved; 77: nothing to compare.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

TOLERANCE = 0.03
SKIPPED = 77


def skip(why):
    print(f"check_instructions.py: not compared: {why}")
    sys.exit(SKIPPED)


def count(program):
    """Surroundings, and instructions by path."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=hot_path_run", "--dump-after=hot_path_run",
                   f"--callgrind-out-file={folder}/out", program]
        # One thread; no instructions beyond those that valgrind knows.
        environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", OPENBLAS_CORETYPE="Haswell")
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            skip(f"valgrind could not run {program}: {done.stderr.strip()[-300:]}")
        surroundings, *names = done.stdout.splitlines()
        counts = {}
        for i, name in enumerate(names, 1):
            with open(f"{folder}/out.{i}", encoding="utf-8") as file:
                counts[name] = int(re.search(r"^totals: (\d+)", file.read(), re.MULTILINE).group(1))
        return surroundings, counts


def compare(stored, counts):
    """Prints a line for each path that moved or has no count; how many did."""
    n_moved = 0
    for name, n in counts.items():
        before = stored.get(name)
        if before and abs(n - before) <= TOLERANCE * before:
            continue
        n_moved += 1
        print(f"{name}: {n} instructions, " + (f"{100 * (n / before - 1):+.1f}% from {before}" if before else "and no count is stored"))
    return n_moved


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--counts", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "instruction_counts.json"))
    parser.add_argument("--update", action="store_true", help="store what is counted now")
    args = parser.parse_args()
    if not shutil.which("valgrind"):
        skip("valgrind is not installed")
    surroundings, counts = count(args.program)
    with open(args.counts, encoding="utf-8") as file:
        stored = json.load(file)
    if args.update:
        stored[surroundings] = counts
        with open(args.counts, "w", encoding="utf-8") as file:
            file.write(json.dumps(stored, indent=1) + "\n")
        return
    if surroundings not in stored:
        skip(f"no counts are stored for {surroundings} (--update stores them)")
    n_moved = compare(stored[surroundings], counts)
    print(f"{len(counts) - n_moved} of {len(counts)} paths within {100 * TOLERANCE:.0f}% of their count ({surroundings})")
    if n_moved:
        print(f"If that is meant: python3 bench/check_instructions.py {args.program} --update")
        sys.exit(1)


if __name__ == "__main__":
    main()
