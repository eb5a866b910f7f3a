#!/usr/bin/env python3
"""Tenon and PyTorch in turns, on one machine, in one run.

    python3 compare.py [TABLE-GLOB...] --bench build/bench/tenon-bench [--rounds 3] [--all-rows] [--full] [--no-compile] [--csv FILE] [--json FILE]

For every family: tenon-bench, then PyTorch, then tenon-bench again, and so on for several rounds, so that both meet the same clocks and
temperatures. Without globs: every speed table in bf16, each at its largest n. A line is Tenon's median of the rounds' medians, each peer's,
the best peer's divided by Tenon's (above 1 Tenon is quicker) and, behind it, the least and greatest of the rounds' own ratios.
The method is that of bench/README.md on both sides. What torch.compile makes is compiled before, by several processes at once.
"""
import argparse
import csv
import fnmatch
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

try:
    import torch
    import torch._dynamo
    import torch._functorch.config
except ImportError:
    sys.exit("compare.py: PyTorch is not installed for this python3")
import peers_basic as peers

# Where torch.compile calls the same library, or has nothing to join, it is not asked.
NOT_COMPILED = ("gemm-speed-*-square-*", "gemm-speed-*-train*", "gemm-speed-*-dim128-*", "copy-*", "adamw-*")


class Cell:
    """One column of a table at one n."""

    def __init__(self, table, kind, dtype, name, n, column):
        self.table, self.kind, self.dtype, self.name, self.n, self.column = table, kind, dtype, name, n, column
        self.make, self.function = table.columns[column]
        self.compiles = not any(fnmatch.fnmatch(name, glob) for glob in NOT_COMPILED)
        # Forward and backward are compiled together.
        self.work = (table.family, table.setting, dtype, n, column)

    @property
    def key(self):
        return self.name, self.n, self.column


def chosen_cells(args):
    globs = args.globs or ["*-speed-*-bf16"]
    found = []
    for table, kind, dtype, name in peers.cells(peers.all_tables(), globs, list(peers.DTYPES)):
        rows = table.rows if args.device == "cuda" else table.cpu_rows
        for n in args.n or (rows if args.all_rows else rows[-1:]):
            for column in table.columns:
                if not (kind.endswith("bwd") and column in table.forward_only):
                    found.append(Cell(table, kind, dtype, name, n, column))
    return found


# ---- Tenon ----

def run_tenon(args, cells):
    """Medians by key, and the rows and the copy's speed as tenon-bench reports them."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [args.bench, *dict.fromkeys(cell.name for cell in cells), "--device", args.device, "--json", out.name]
        if not args.full:
            command.append("--quick")
        if args.n:
            command += ["--n", ",".join(map(str, args.n))]
        elif not args.all_rows:
            command.append("--largest")
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            run = json.load(out)
        except ValueError:
            sys.exit(f"compare.py: {' '.join(command)} failed:\n{done.stderr}")
        if done.stderr:
            print(done.stderr, file=sys.stderr, end="")
    rows = {}
    for table in run["tables"]:
        for row in table["rows"]:
            if row["status"] == "ok":
                rows[table["name"], row["n"], row["column"]] = dict(row, unit=table["unit"])
    return run, rows


# ---- PyTorch ----

def compiled_of(cell, cache):
    if cell.work not in cache:
        cache[cell.work] = torch.compile(getattr(cell.make, "loss", cell.function), dynamic=False)
    return cache[cell.work]


def configure_compiler():
    torch._functorch.config.donated_buffer = False  # backward runs again and again on one graph
    # One function is compiled for many shapes.
    for name in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 100000)


def run_torch(args, bench, cells, cache):
    medians = {}
    for cell in cells:
        providers = ["eager"] + (["compile"] if args.compile and cell.compiles else [])
        for provider in providers:
            torch.manual_seed(1337)
            try:
                compiled = compiled_of(cell, cache) if provider == "compile" else None
                result = peers.run_cell(bench, peers.Context(args.device, cell.dtype), cell.kind, cell.make, cell.function, cell.n,
                                        provider, compiled)
                medians[cell.key, provider] = result["median"]
            except Exception as error:  # a peer that can't do it is no reason to stop
                print(f"compare.py: {cell.name}, n {cell.n}, {cell.column}, {provider}: {str(error)[:200]}", file=sys.stderr)
            if bench.cuda:
                torch.cuda.empty_cache()
    return medians


def compile_ahead(args, cells, shard, n_shards):
    """Fills the compiler's cache on disk with every n_shards-th function."""
    cache = {}
    works = list(dict.fromkeys(cell.work for cell in cells if cell.compiles))[shard::n_shards]
    for work in works:
        own = [cell for cell in cells if cell.work == work]
        cell, backward = own[0], any(cell.kind.endswith(("bwd", "step")) for cell in own)
        try:
            inputs = cell.make(peers.Context(args.device, cell.dtype), cell.n)
            inputs = getattr(inputs, "inputs", inputs)
            o = compiled_of(cell, cache)(*inputs)
            if backward:
                o.backward(torch.ones_like(o))
            del inputs, o
        except Exception as error:
            print(f"compare.py: compiling {work}: {str(error)[:200]}", file=sys.stderr)
        if args.device == "cuda":
            torch.cuda.empty_cache()


def start_compiling(n_processes):
    """The same program with the same arguments, told to compile its share."""
    processes = [subprocess.Popen([sys.executable, *sys.argv, "--compile-share", f"{i}/{n_processes}"]) for i in range(n_processes)]
    for process in processes:
        process.wait()


# ---- both ----

def measure(args, cells):
    bench = peers.Bench(args.device, not args.full)
    tenon, torches, cache, runs = {}, {}, {}, []
    for family, group in itertools.groupby(cells, key=lambda cell: cell.table.family):
        group = list(group)
        for _ in range(args.rounds):
            start = time.monotonic()
            run, rows = run_tenon(args, group)
            middle = time.monotonic()
            medians = run_torch(args, bench, group, cache)
            runs.append(run)
            for key, row in rows.items():
                tenon.setdefault(key, []).append(row)
            for key, median in medians.items():
                torches.setdefault(key, []).append(median)
            print(f"compare.py: {family}: tenon {middle - start:.1f} s, torch {time.monotonic() - middle:.1f} s", file=sys.stderr)
    return bench, tenon, torches, runs


def merge(cells, tenon, torches):
    for cell in cells:
        rows = tenon.get(cell.key)
        rounds = {provider: torches[cell.key, provider] for provider in ("eager", "compile") if (cell.key, provider) in torches}
        if not rows:
            continue
        own = [row["median"] for row in rows]
        others = {provider: statistics.median(times) for provider, times in rounds.items()}
        best = min(others, key=others.get) if others else None
        line = {"table": cell.name, "n": cell.n, "column": cell.column, "unit": rows[0]["unit"], "tenon": statistics.median(own), **others}
        if best:
            by_round = [b / t for b, t in zip(rounds[best], own)]
            line.update(best=best, ratio=others[best] / line["tenon"], least=min(by_round), greatest=max(by_round))
        for figure in ("share", "tflops"):
            if rows[0].get(figure):
                line[figure] = statistics.median(row[figure] for row in rows)
        yield line


def show(lines):
    table = None
    for line in lines:
        if line["table"] != table:
            table = line["table"]
            print(f"\n{table} ({line['unit']}):")
            print(f"{'n':>8} {'column':>20} {'tenon':>9} {'eager':>9} {'compile':>9} {'ratio':>6} {'rounds':>13} {'tenon reaches':>13}")
        reached = f"{line['tflops']:.0f} TFLOP/s" if "tflops" in line else f"{100 * line['share']:.1f}%" if "share" in line else ""
        peer = "".join(f" {line[p]:9.4f}" if p in line else f" {'-':>9}" for p in ("eager", "compile"))
        ratio = f"{line['ratio']:6.2f} {line['least']:6.2f}-{line['greatest']:<6.2f}" if "ratio" in line else f"{'-':>6} {'':>13}"
        print(f"{line['n']:>8} {line['column']:>20} {line['tenon']:9.4f}{peer} {ratio} {reached:>13}")


def write(args, bench, lines, runs):
    copies = [run["copy_gb_per_s"] for run in runs]
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"commit": runs[0]["commit"], "machine": runs[0]["machine"], "torch": torch.__version__, "rounds": args.rounds,
                       "copy_gb_per_s": copies, "rows": lines}, file, indent=1)
    if args.csv:
        columns = ["table", "n", "column", "unit", "tenon", "eager", "compile", "best", "ratio", "least", "greatest", "share", "tflops"]
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(lines)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("globs", nargs="*", metavar="TABLE-GLOB")
    parser.add_argument("--bench", default="build/bench/tenon-bench", help="the program to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--n", type=lambda text: [int(n) for n in text.split(",")], help="rows to run instead of each table's largest")
    parser.add_argument("--all-rows", action="store_true", help="every row of the tables")
    parser.add_argument("--full", action="store_true", help="as many repeats as in a plain run; else a quarter")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="PyTorch eager only")
    parser.add_argument("--processes", type=int, default=min(8, (os.cpu_count() or 2) // 2), help="that compile at once, 0: none")
    parser.add_argument("--csv", metavar="FILE")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--compile-share", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.full = args.full or args.all_rows  # a quick run leaves rows out
    return args


def main():
    args = parse()
    configure_compiler()
    cells = chosen_cells(args)
    if not cells:
        sys.exit("compare.py: no peer has such a table")
    if args.compile_share:
        shard, n_shards = map(int, args.compile_share.split("/"))
        return compile_ahead(args, cells, shard, n_shards)
    start = time.monotonic()
    if args.compile and args.processes and any(cell.compiles for cell in cells):
        start_compiling(args.processes)
    compiled = time.monotonic()
    bench, tenon, torches, runs = measure(args, cells)
    lines = list(merge(cells, tenon, torches))
    copies = [run["copy_gb_per_s"] for run in runs]
    print(f"tenon {runs[0]['commit']} and torch {torch.__version__} on {runs[0]['machine']['device']}, in turns, {args.rounds} rounds; "
          f"plain copy {min(copies):.0f} to {max(copies):.0f} GB/s; {compiled - start:.0f} s compiling, {time.monotonic() - compiled:.0f} s measuring")
    show(lines)
    write(args, bench, lines, runs)


if __name__ == "__main__":
    main()
