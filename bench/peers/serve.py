#!/usr/bin/env python3
"""Answers `tenon-bench --peers`: the same tables with PyTorch, torch.compile and, where it is installed, flash-linear-attention.

    python3 serve.py [--device cuda|cpu] [--quick] [--processes N] [--no-compile]

A line of JSON comes first that says who answers, or {"reason": ...}. Then, a question a line:

    {"prepare": [{"table": NAME, "n": [...]}, ...]}   compiles what these will need, in several processes; {"done": true, "seconds": S}
    {"table": NAME, "n": [...], "seconds": S}         a line for each n, column and provider begun within S (0 or none: all), then {"done": true}

The method is that of bench/README.md.
"""
import argparse
import gc
import json
import math
import os
import subprocess
import sys
import time

# What others print goes to standard error; the answers have standard output to themselves.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
# Several processes compile at once: none of them needs a crowd of its own.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def emit(line):
    print(json.dumps(line), file=answers, flush=True)


try:
    import torch
    import torch._dynamo
    import torch._functorch.config
except ImportError:
    emit({"reason": "PyTorch is not installed for python3"})
    sys.exit(0)

import peers_attention
import peers_basic
import peers_common
import peers_linear
import peers_tuning

# torch.compile has code for every third n, counted from the largest (CPU: for that one alone): three points tell a line, and compiling
# for all of them would take longer than everything else.
COMPILED_EVERY = 3


def tables_by_name():
    tables = peers_basic.tables() + peers_linear.tables() + peers_attention.tables()
    return {table.name(kind, dtype): (table, kind, dtype) for table in tables for kind in table.kinds for dtype in peers_common.DTYPES}


class Compiler:
    """torch.compile's functions, each kept for as long as its table's turns last."""

    def __init__(self):
        self.functions = {}
        torch._functorch.config.donated_buffer = False  # backward runs again and again on one graph
        # One function is compiled for many shapes.
        for name in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
            if hasattr(torch._dynamo.config, name):
                setattr(torch._dynamo.config, name, 100000)

    def of(self, key, function):
        if key not in self.functions:
            self.functions[key] = torch.compile(function, dynamic=False)
        return self.functions[key]


def own_function(column):
    return getattr(column.make, "loss", column.function)


def cells_of(args, table, kind, ns):
    """Every (n, column's name, column, provider)."""
    compiled = set(sorted(ns, reverse=True)[::COMPILED_EVERY if args.device == "cuda" else len(ns)] if args.compile else [])
    for n in ns:
        for name, column in table.columns.items():
            if not (kind.endswith("bwd") and name in table.forward_only):
                for provider in column.providers(n, n in compiled):
                    yield n, name, column, provider


def is_out_of_memory(error):
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error)


def empty(device):
    gc.collect()
    if device == "cuda":
        peers_common.release_memory()


def measure(args, bench, compiler, name, ns, seconds, tables):
    table, kind, dtype = tables[name]
    end = time.monotonic() + seconds if seconds else math.inf
    for n, column_name, column, provider in cells_of(args, table, kind, ns):
        if time.monotonic() > end:
            return
        function = column.others.get(provider) or own_function(column)
        if provider == "compile":
            function = compiler.of((table, dtype, column_name), function)
        row = {"n": n, "column": column_name, "provider": provider}
        torch.manual_seed(1337)
        try:
            cx = peers_common.Context(bench.device, dtype)
            row.update(peers_common.run_cell(bench, cx, table, kind, column, n, function), status="ok")
            if not math.isfinite(row["median"]):
                row["status"] = "failed"
        except Exception as error:  # a peer that can't do it is no reason to stop
            row.update(status="out of memory" if is_out_of_memory(error) else "failed", note=str(error)[:200])
        empty(bench.device)
        emit(row)


# ---- compiling ahead ----

def jobs_of(args, questions, tables):
    """What is to be compiled: (table, dtype, column, n, with its backward?); forward and backward are compiled together."""
    jobs = {}
    for question in questions:
        if question["table"] not in tables:
            continue
        table, kind, dtype = tables[question["table"]]
        for n, name, column, provider in cells_of(args, table, kind, question["n"]):
            if provider == "compile":
                key = (table, dtype, name, n)
                jobs[key] = jobs.get(key, False) or kind.endswith(("bwd", "step"))
    return jobs


def tuned_jobs_of(args, questions, tables):
    """The other providers' functions that tune themselves: (table, dtype, column, provider) -> (the smallest n, with its backward?)."""
    jobs = {}
    for question in questions:
        if args.device != "cuda" or not peers_tuning.Autotuner or question["table"] not in tables:
            continue
        table, kind, dtype = tables[question["table"]]
        for n, name, column, provider in cells_of(args, table, kind, question["n"]):
            if provider in column.others:
                least, backward = jobs.get((table, dtype, name, provider), (n, False))
                jobs[table, dtype, name, provider] = min(n, least), backward or kind.endswith(("bwd", "step"))
    return jobs


def run_once(args, dtype, column, n, function, backward, what):
    try:
        inputs = column.make(peers_common.Context(args.device, dtype), n)
        inputs = getattr(inputs, "inputs", inputs)
        o = function(*inputs)
        if backward:
            o.backward(torch.ones_like(o))
    except Exception as error:
        print(f"serve.py: compiling {what}, n {n}: {str(error)[:200]}", file=sys.stderr)
    inputs = o = None
    empty(args.device)


def compile_share(args, tables):
    """Fills the compiler's cache on disk with this process's share."""
    compiler = Compiler()
    shard, n_shards = map(int, args.compile_share.split("/"))
    questions = json.load(sys.stdin)
    jobs = sorted(jobs_of(args, questions, tables).items(), key=lambda job: job[0][3])
    # Half of the processes begin with what is large, the others end with it: there is memory for some of them at once.
    for (table, dtype, name, n), backward in jobs[shard::n_shards][::-1 if shard % 2 else 1]:
        column = table.columns[name]
        run_once(args, dtype, column, n, compiler.of((table, dtype, name), own_function(column)), backward, f"{table.family}, {name}")
    tuned = tuned_jobs_of(args, questions, tables)
    if tuned:
        peers_tuning.compile_share(shard, n_shards)
    for (table, dtype, name, provider), (n, backward) in tuned.items():
        column = table.columns[name]
        run_once(args, dtype, column, n, column.others[provider], backward, f"{table.family}, {name}, {provider}")


def prepare(args, questions, tables):
    start = time.monotonic()
    tuned = tuned_jobs_of(args, questions, tables)
    n_processes = args.processes if tuned else min(args.processes, len(jobs_of(args, questions, tables)))
    processes = []
    for i in range(n_processes):
        command = [sys.executable, os.path.abspath(__file__), "--device", args.device, "--compile-share", f"{i}/{n_processes}"]
        command += [] if args.compile else ["--no-compile"]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
        processes[-1].stdin.write(json.dumps(questions))
        processes[-1].stdin.close()
    for process in processes:
        process.wait()
    emit({"done": True, "seconds": time.monotonic() - start})


# ---- the program ----

def about(bench):
    names = [f"PyTorch {torch.__version__}"]
    if peers_linear.chunk_simple_gla and bench.cuda:
        import fla
        names.append(f"flash-linear-attention {fla.__version__}")
    if bench.cuda:
        import triton
        names.append(f"Triton {triton.__version__}")
    return {"peer": ", ".join(names), "device": torch.cuda.get_device_name() if bench.cuda else "cpu", "threads": torch.get_num_threads(),
            "copy_gb_per_s": bench.copy_gb_per_s()}


def serve(args, tables):
    bench, compiler = peers_common.Bench(args.device, args.quick), Compiler()
    peers_tuning.time_briefly()
    emit(about(bench))
    for line in sys.stdin:
        question = json.loads(line)
        if "prepare" in question:
            prepare(args, question["prepare"], tables)
            continue
        name = question["table"]
        # PyTorch keeps no account of the CPU's memory.
        if name in tables and (bench.cuda or not tables[name][1].startswith("memory")):
            measure(args, bench, compiler, name, question["n"], question.get("seconds"), tables)
        emit({"done": True})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--processes", type=int, default=min(12, (os.cpu_count() or 2) * 3 // 4), help="that compile at once, 0: none")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile")
    parser.add_argument("--compile-share", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        emit({"reason": "this PyTorch has no CUDA device"})
        return
    tables = tables_by_name()
    if args.compile_share:
        compile_share(args, tables)
    else:
        serve(args, tables)


if __name__ == "__main__":
    main()
