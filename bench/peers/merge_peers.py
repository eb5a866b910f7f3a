#!/usr/bin/env python3
"""Puts a run of tenon-bench and runs of its peers side by side.

    python3 merge_peers.py TENON.json PEERS.jsonl... [--csv FILE]

One line per row that both measured: Tenon's figure, each peer's, and the best peer's divided by Tenon's: above 1 Tenon is quicker,
or smaller.
"""
import argparse
import csv
import json
import sys


def read_tenon(path):
    with open(path) as file:
        run = json.load(file)
    rows = {}
    for table in run["tables"]:
        for row in table["rows"]:
            if row["status"] == "ok":
                rows[table["name"], row["n"], row["column"]] = dict(row, unit=table["unit"])
    return run, rows


def read_peers(paths):
    peers, rows = [], {}
    for path in paths:
        with open(path) as file:
            for line in file:
                row = json.loads(line)
                if "peer" in row:
                    peers.append(row)
                elif row["status"] == "ok":
                    rows.setdefault((row["table"], row["n"], row["column"]), {})[row["provider"]] = row["median"]
    return peers, rows


def merge(tenon, peers):
    for key, row in tenon.items():
        others = peers.get(key)
        if not others:
            continue
        best = min(others, key=others.get)
        yield key, row, others, best, others[best] / row["median"] if row["median"] else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tenon", metavar="TENON.json")
    parser.add_argument("peers", metavar="PEERS.jsonl", nargs="+")
    parser.add_argument("--csv", metavar="FILE")
    args = parser.parse_args()
    run, tenon = read_tenon(args.tenon)
    machines, peers = read_peers(args.peers)
    providers = sorted({provider for row in peers.values() for provider in row})
    merged = list(merge(tenon, peers))
    if not merged:
        sys.exit("merge_peers.py: the runs have no row in common")

    print(f"tenon {run['commit']} on {run['machine']['device']}, plain copy {run['copy_gb_per_s']:.1f} GB/s")
    for machine in machines:
        print(f"{machine['peer']} on {machine['device']}, plain copy {machine['copy_gb_per_s']:.1f} GB/s")
    table = None
    for (name, n, column), row, others, best, ratio in merged:
        if name != table:
            table = name
            print(f"\n{name} ({row['unit']}):")
            heads = "".join(f" {provider:>10}" for provider in providers)
            print(f"{'n':>9} {'column':>22} {'tenon':>10}{heads} {'best/tenon':>11} {'tenon reaches':>13}")
        reached = f"{row['tflops']:.0f} TFLOP/s" if row.get("tflops") else f"{100 * row['share']:.1f}%" if row.get("share") else ""
        figures = "".join(f" {others[p]:10.4f}" if p in others else f" {'-':>10}" for p in providers)
        print(f"{n:>9} {column:>22} {row['median']:10.4f}{figures} {ratio:11.2f} {reached:>13}")
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["table", "n", "column", "unit", "tenon", *providers, "best", "best_over_tenon"])
            for (name, n, column), row, others, best, ratio in merged:
                writer.writerow([name, n, column, row["unit"], row["median"], *(others.get(p, "") for p in providers), best, ratio])


if __name__ == "__main__":
    main()
