"""Adds up test cases over programs: sum_counts.py COUNTS TESTLOG EXIT_CODE prints one line and exits 1 if any case failed.

COUNTS has a line "program passed failed skipped" for each program that came to its end. TESTLOG is Meson's, one JSON object
per program. A program that has no line, or ended badly after writing a clean one, counts as one failed case."""

import json
import sys


def read_counts(path):
    counts = {}
    with open(path) as lines:
        for line in lines:
            name, *numbers = line.split()
            counts[name] = [a + int(b) for a, b in zip(counts.get(name, [0, 0, 0]), numbers)]
    return counts


def read_results(path):
    try:
        with open(path) as lines:
            return [(entry["name"].split(" / ")[-1], entry["result"]) for entry in map(json.loads, lines)]
    except FileNotFoundError:
        return []


def main(counts_path, log_path, exit_code):
    counts = read_counts(counts_path)
    total = [0, 0, 0]
    for name, result in read_results(log_path):
        passed, failed, skipped = counts.get(name, [0, 0, 0])
        ended_well = result in ("OK", "SKIP")
        if failed == 0 and (not ended_well or name not in counts):
            failed = 1
            print(f"{name}: {result}, and no failed case of it is known")
        total = [total[0] + passed, total[1] + failed, total[2] + skipped]
    print(f"{total[0]} passed, {total[1]} failed, {total[2]} skipped")
    return 1 if total[1] or exit_code != 0 or not any(total) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
