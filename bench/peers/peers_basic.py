#!/usr/bin/env python3
"""The basic tables of tenon-bench in PyTorch: eager and torch.compile.

    python3 peers_basic.py [TABLE-GLOB...] [--device cuda|cpu] [--dtype bf16|f32|f64] [--n LIST] [--quick] [--out FILE]

Prints JSON lines: first the machine, then one line per (table, n, column, provider) under the names that tenon-bench uses, so that
merge_peers.py can put both side by side. The method is that of bench/README.md.
"""
import argparse
import fnmatch
import json
import math
import statistics
import sys
import time

try:
    import torch
    import torch._functorch.config
    import torch.nn.functional as F
except ImportError:
    sys.exit("peers_basic.py: PyTorch is not installed for this python3")

MIB = 1 << 20
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
VOCABULARY, MODEL_WIDTH, WIDTH = 50304, 768, 4096


# ---- the clock ----

class Bench:
    """Times single calls with cold caches; the device's own time on CUDA, the host's on the CPU."""

    def __init__(self, device, quick):
        self.device, self.cuda = device, device == "cuda"
        cache = torch.cuda.get_device_properties(0).L2_cache_size if self.cuda else 32 * MIB
        self.flush_buffer = torch.empty((max(4 * cache, 256 * MIB) if self.cuda else 32 * MIB) // 4, device=device)
        self.rotated_bytes = (256 if self.cuda else 32) * MIB
        self.budget_ms = (60 if self.cuda else 30) / (4 if quick else 1)
        self.repeats = (11, 100) if self.cuda else (3 if quick else 5, 25)

    def flush(self):
        self.flush_buffer.fill_(1)
        if self.cuda:
            self.flush_buffer.sum()

    def samples(self, call, n, first=0):
        """Milliseconds of n calls; call(i) returns the work of the i-th, readied outside the clock."""
        if not self.cuda:
            times = []
            for i in range(n):
                work = call(first + i)
                self.flush()
                start = time.perf_counter_ns()
                work()
                times.append((time.perf_counter_ns() - start) * 1e-6)
            return times
        begin = [torch.cuda.Event(enable_timing=True) for _ in range(n)]
        end = [torch.cuda.Event(enable_timing=True) for _ in range(n)]
        for i in range(n):
            work = call(first + i)
            self.flush()
            begin[i].record()
            work()
            end[i].record()
        torch.cuda.synchronize()
        return [b.elapsed_time(e) for b, e in zip(begin, end)]

    def measure(self, call, n_sets=1):
        trials = self.samples(call, max(3, n_sets))[-3:]
        n = self.budget_ms / max(statistics.median(trials), 1e-4)
        n = 3 if n < 0.1 else int(min(max(n, self.repeats[0]), self.repeats[1]))
        return percentiles(self.samples(call, n, max(3, n_sets)))

    def copy_gb_per_s(self):
        x = torch.rand((1024 if self.cuda else 128) * MIB // 4, device=self.device)
        y = torch.zeros_like(x)
        for _ in range(5):
            y.copy_(x)
        saved, self.flush = self.flush, lambda: None
        ms = statistics.median(self.samples(lambda i: lambda: y.copy_(x), 21))
        self.flush = saved
        return 2 * x.numel() * 4 / ms * 1e-6


def percentiles(times):
    times = sorted(times)

    def at(share):
        place = share * (len(times) - 1)
        low = int(place)
        high = min(low + 1, len(times) - 1)
        return times[low] + (place - low) * (times[high] - times[low])

    return {"median": at(0.5), "p20": at(0.2), "p80": at(0.8), "repeats": len(times)}


# ---- tables ----

class Context:
    """Makes the inputs of one cell."""

    def __init__(self, device, dtype):
        self.device, self.name, self.dtype = device, dtype, DTYPES[dtype]

    def normal(self, *shape, grad=True, mean=0.0, deviation=1.0):
        t = torch.randn(shape, device=self.device, dtype=self.dtype).mul_(deviation).add_(mean)
        return t.requires_grad_(grad)

    def positive(self, *shape):
        return torch.empty(shape, device=self.device, dtype=self.dtype).uniform_(0.5, 2).requires_grad_()

    def tokens(self, n):
        return torch.randint(0, VOCABULARY, (n,), device=self.device)

    def weight(self, *shape):
        return self.normal(*shape, mean=1.0, deviation=0.1)


class Table:
    """columns: name -> (make(context, n) -> inputs, function of the inputs)."""

    def __init__(self, family, setting, kinds, rows, cpu_rows, columns, forward_only=()):
        self.family, self.setting, self.kinds = family, setting, kinds
        self.rows, self.cpu_rows, self.columns, self.forward_only = rows, cpu_rows, columns, forward_only

    def name(self, kind, dtype):
        return "-".join(part for part in (self.family, kind, self.setting, dtype) if part)


FWD, BWD = ["speed-fwd", "memory-fwd"], ["speed-bwd", "memory-bwd"]
BOTH = FWD + BWD
SPEED = ["speed-fwd", "speed-bwd"]
WIDE_ROWS, WIDE_CPU_ROWS = [1024, 8192, 32768, 65536], [2048]


def rows_of(width, n_inputs=1, positive=False):
    def make(cx, n):
        return [cx.positive(n, width) if positive else cx.normal(n, width) for _ in range(n_inputs)]
    return make


def linear(n_in, n_out, dx, dw, bias=False):
    def make(cx, n):
        inputs = [cx.normal(n, n_in, grad=dx), cx.normal(n_out, n_in, grad=dw, deviation=0.05)]
        return inputs + ([cx.normal(n_out, grad=False)] if bias else [])
    return make


def square(cx, n):
    return [cx.normal(n, n), cx.normal(n, n)]


TRAIN = {"qkvg": (768, 3072), "out": (768, 768), "up": (768, 4096), "down": (2048, 768), "head": (768, VOCABULARY)}


def train_columns(dx, dw):
    return {name: (linear(n_in, n_out, dx, dw), F.linear) for name, (n_in, n_out) in TRAIN.items()}


def gemm_tables():
    def epilogue(bias, act):
        return linear(768, 3072, False, False, bias), lambda *inputs: act(F.linear(*inputs))
    state = {
        "q_state": (lambda cx, n: [cx.normal(144, n, 128), cx.normal(144, 128, 128)], torch.matmul),
        "kt_v": (lambda cx, n: [cx.normal(144, n, 128), cx.normal(144, n, 128)], lambda k, v: torch.matmul(k.transpose(1, 2), v)),
    }
    columns = {"nn": (square, torch.matmul), "nt": (square, lambda a, b: torch.matmul(a, b.t())),
               "tn": (square, lambda a, b: torch.matmul(a.t(), b))}
    acts = {"plain": epilogue(False, lambda o: o), "bias": epilogue(True, lambda o: o), "bias_relu": epilogue(True, F.relu),
            "bias_gelu": epilogue(True, F.gelu), "bias_silu": epilogue(True, F.silu)}
    rows = ([4096, 32768], [128])
    return [
        Table("gemm", "square", SPEED, [1024, 2048, 4096, 8192], [256, 768], columns),
        Table("gemm", "train", FWD, *rows, train_columns(False, False)),
        Table("gemm", "train_dx", ["speed-bwd"], *rows, train_columns(True, False)),
        Table("gemm", "train_dw", ["speed-bwd"], *rows, train_columns(False, True)),
        Table("gemm", "epilogue", ["speed-fwd"], *rows, acts),
        Table("gemm", "batch12-head12-dim128", SPEED, [1024, 8192, 32768], [128], state),
    ]


def swiglu(x):
    u, v = x.chunk(2, -1)
    return F.silu(u) * v


def pointwise_tables():
    def pair(function, positive=False):
        return rows_of(WIDTH, 2, positive), function

    def one(function, positive=False):
        return rows_of(WIDTH, 1, positive), function

    def row(cx, n):
        return [cx.normal(n, WIDTH), cx.weight(WIDTH)]
    binary = {"add": pair(torch.add), "mul": pair(torch.mul), "div": pair(torch.div, True), "maximum": pair(torch.maximum)}
    unary = {"exp": one(torch.exp), "sqrt": one(torch.sqrt, True), "sin": one(torch.sin), "relu": one(F.relu), "silu": one(F.silu),
             "gelu": one(F.gelu), "tanh": one(torch.tanh)}
    copies = {"copy": one(torch.clone), "transpose": one(lambda x: x.t().contiguous()),
              "cast": one(lambda x: x.to(torch.bfloat16 if x.dtype == torch.float32 else torch.float32))}
    rows = (WIDE_ROWS, WIDE_CPU_ROWS)
    return [
        Table("copy", None, FWD, *rows, copies),
        Table("elementwise", "binary", BOTH, *rows, binary, forward_only=("add",)),
        Table("elementwise", "unary", BOTH, *rows, unary),
        Table("elementwise", "row", SPEED, *rows, {"add_row": (row, torch.add), "mul_row": (row, torch.mul)}),
        Table("elementwise", "swiglu_2048", BOTH, *rows, {"swiglu": (rows_of(WIDTH), swiglu)}),
    ]


def softmax_tables():
    def last(width):
        return {"softmax": (rows_of(width), lambda x: F.softmax(x, -1))}
    sequence = {"softmax": (lambda cx, n: [cx.normal(12, n, 1536)], lambda x: F.softmax(x, 1))}
    return [
        Table("softmax", "d128", SPEED, [32768, 262144, 1048576, 2097152], [65536], last(128)),
        Table("softmax", "d1024", BOTH, [4096, 32768, 131072, 262144], [8192], last(1024)),
        Table("softmax", "d32768", SPEED, [128, 1024, 4096, 8192], [256], last(32768)),
        Table("softmax", "batch12-d1536-dim1", SPEED, [1024, 8192, 16384], [256], sequence),
    ]


def norm_tables():
    def columns(d):
        return {
            "rms_norm": (lambda cx, n: [cx.normal(n, d), cx.weight(d)], lambda x, w: F.rms_norm(x, (d,), w, 1e-6)),
            "rms_norm_gated": (lambda cx, n: [cx.normal(n, d), cx.weight(d), cx.normal(n, d)],
                               lambda x, w, g: F.rms_norm(x, (d,), w, 1e-6) * F.silu(g)),
            "layer_norm": (lambda cx, n: [cx.normal(n, d), cx.weight(d), cx.weight(d)],
                           lambda x, w, b: F.layer_norm(x, (d,), w, b, 1e-5)),
        }
    return [
        Table("norm", "d768", BOTH, [4096, 32768, 174848, 349696], [8192], columns(768)),
        Table("norm", "d4096", SPEED, WIDE_ROWS, WIDE_CPU_ROWS, columns(4096)),
    ]


def loss_tables():
    cross_entropy = {"cross_entropy": (lambda cx, n: [cx.normal(n, VOCABULARY), cx.tokens(n)], F.cross_entropy)}
    whole = {"linear_cross_entropy": (
        lambda cx, n: [cx.normal(n, MODEL_WIDTH), cx.normal(VOCABULARY, MODEL_WIDTH, deviation=0.05), cx.tokens(n)],
        lambda x, w, t: F.cross_entropy(F.linear(x, w), t))}
    embedding = {"embedding": (lambda cx, n: [cx.tokens(n), cx.normal(VOCABULARY, MODEL_WIDTH)], F.embedding)}

    def reduced(function):
        return lambda cx, n: [cx.normal(n, WIDTH, mean=1.0)], function
    reduce = {"sum": reduced(torch.sum), "sum_last": reduced(lambda x: x.sum(-1)), "sum_first": reduced(lambda x: x.sum(0)),
              "max_last": reduced(lambda x: x.amax(-1)), "logsumexp_last": reduced(lambda x: torch.logsumexp(x, -1))}
    return [
        Table("cross_entropy", "v50304", BOTH, [1024, 4096, 16384, 32768], [128], cross_entropy),
        Table("cross_entropy", "linear-d768-v50304", BOTH, [4096, 32768], [64], whole),
        Table("cross_entropy", "linear-d768-v50304", ["speed-step"], [4096, 32768], [64], {"both_passes": (LossStep, LossStep.step)}),
        Table("reduce", None, ["speed-fwd"], WIDE_ROWS, WIDE_CPU_ROWS, reduce),
        Table("embedding", "d768-v50304", BOTH, [4096, 32768, 131072], [1024], embedding),
    ]


class LossStep:
    """linear_cross_entropy, forward and backward."""

    @staticmethod
    def loss(x, w, t):
        return F.cross_entropy(F.linear(x, w), t)

    def __init__(self, cx, n):
        self.inputs = [cx.normal(n, MODEL_WIDTH), cx.normal(VOCABULARY, MODEL_WIDTH, deviation=0.05), cx.tokens(n)]

    def step(self):
        clear_grads(self.inputs)
        self.loss(*self.inputs).backward()


class Optimizer:
    """AdamW as in training: bf16 parameters have f32 masters and moments."""

    def __init__(self, cx, n):
        out = max(n // (12 * MODEL_WIDTH) - 1, 1)
        shapes = [(out, MODEL_WIDTH), (MODEL_WIDTH,)] * 12
        self.parameters = [cx.normal(*shape) for shape in shapes]
        for p in self.parameters:
            p.grad = torch.randn_like(p)
        self.mixed = cx.dtype == torch.bfloat16
        self.masters = [p.detach().float().requires_grad_() for p in self.parameters] if self.mixed else self.parameters
        for m, p in zip(self.masters, self.parameters):
            m.grad = p.grad.to(m.dtype)
        self.adamw = torch.optim.AdamW(self.masters, lr=0.3, weight_decay=0.1, fused=cx.device == "cuda" or None)
        self.max_norm = 1.0

    def step(self):
        if self.mixed:
            torch._foreach_copy_([m.grad for m in self.masters], [p.grad for p in self.parameters])
        self.adamw.step()
        if self.mixed:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.masters)

    def clip(self):
        self.max_norm *= 0.999
        torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)

    def norm(self):
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm([p.grad for p in self.parameters])))


def optimizer_tables():
    columns = {"adamw": (Optimizer, Optimizer.step), "clip": (Optimizer, Optimizer.clip), "norm": (Optimizer, Optimizer.norm)}
    return [Table("adamw", None, ["speed-step"], [1 << 20, 1 << 24, 1 << 27], [1 << 18, 1 << 22], columns)]


# ---- running a cell ----

def clear_grads(inputs):
    for t in inputs:
        t.grad = None


def speed_forward(bench, function, sets):
    return bench.measure(lambda i: lambda: function(*sets[i % len(sets)]), len(sets))


def speed_backward(bench, function, sets):
    outs = [function(*inputs) for inputs in sets]
    upstream = [torch.randn_like(o) if o.numel() > 1 else torch.ones_like(o) for o in outs]

    def call(i):
        i %= len(sets)
        clear_grads(sets[i])
        return lambda: outs[i].backward(upstream[i], retain_graph=True)
    return bench.measure(call, len(sets))


def memory(function, inputs, backward):
    """Peak of one call in MiB, less what lay there before the cell: inputs, and for backward what was saved, o and do."""
    before = torch.cuda.memory_allocated() - sum(t.numel() * t.element_size() for t in inputs)
    o = function(*inputs) if backward else None
    do = torch.randn_like(o) if backward else None
    for _ in range(2):
        clear_grads(inputs)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        result = o.backward(do, retain_graph=True) if backward else function(*inputs)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        del result
    mib = (peak - before) / MIB
    return {"median": mib, "p20": mib, "p80": mib, "repeats": 1}


def make_sets(bench, cx, make, n):
    first = make(cx, n)
    n_bytes = sum(t.numel() * t.element_size() for t in first)
    wanted = min(max(bench.rotated_bytes // max(n_bytes, 1) + 1, 2), 8)
    sets = [first]
    try:
        while len(sets) < wanted:
            sets.append([t.detach().clone().requires_grad_(t.requires_grad) for t in first])
    except torch.cuda.OutOfMemoryError:
        pass
    return sets


def run_cell(bench, cx, kind, make, function, n, provider, compiled=None):
    """`compiled`: what torch.compile made of the function before, for these shapes."""
    if kind == "speed-step":
        states = [make(cx, n) for _ in range(2)]
        for state in states:
            if provider == "compile":
                state.loss = compiled or torch.compile(make.loss, dynamic=False)
            function(state)
        return bench.measure(lambda i: lambda: function(states[i % 2]), 2)
    if compiled:
        function = compiled
    elif provider == "compile":
        torch._dynamo.reset()
        function = torch.compile(function, dynamic=False)
    if kind.startswith("memory"):
        return memory(function, make(cx, n), kind.endswith("bwd"))
    sets = make_sets(bench, cx, make, n)
    return (speed_backward if kind.endswith("bwd") else speed_forward)(bench, function, sets)


def cells(tables, globs, dtypes):
    """Every (table, kind, dtype, name) that a glob names."""
    for table in tables:
        for dtype in dtypes:
            for kind in table.kinds:
                name = table.name(kind, dtype)
                if not globs or any(fnmatch.fnmatch(name, glob) for glob in globs):
                    yield table, kind, dtype, name


def rows_for(table, args):
    rows = args.n or (table.rows if args.device == "cuda" else table.cpu_rows)
    return [rows[0], rows[len(rows) // 2]] if args.quick and not args.n and len(rows) > 2 else rows


def all_tables():
    pointwise = pointwise_tables()
    return pointwise[:1] + gemm_tables() + pointwise[1:] + softmax_tables() + norm_tables() + loss_tables() + optimizer_tables()


def run(args, emit):
    bench = Bench(args.device, args.quick)
    emit({"peer": "torch " + torch.__version__, "device": torch.cuda.get_device_name() if bench.cuda else "cpu",
          "threads": torch.get_num_threads(), "copy_gb_per_s": bench.copy_gb_per_s()})
    for table, kind, dtype, name in cells(all_tables(), args.globs, args.dtypes):
        if kind.startswith("memory") and not bench.cuda:
            continue  # PyTorch keeps no such account of the CPU
        for n in rows_for(table, args):
            for column, (make, function) in table.columns.items():
                if kind.endswith("bwd") and column in table.forward_only:
                    continue
                for provider in ["eager"] if kind == "speed-step" and not hasattr(make, "loss") else args.providers:
                    row = {"table": name, "n": n, "column": column, "provider": provider}
                    try:
                        torch.manual_seed(1337)
                        row.update(run_cell(bench, Context(args.device, dtype), kind, make, function, n, provider), status="ok")
                    except Exception as error:
                        row.update(status="failed", note=str(error)[:200])
                    if bench.cuda:
                        torch.cuda.empty_cache()
                    if not math.isfinite(row.get("median", 0)):
                        row["status"] = "failed"
                    emit(row)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("globs", nargs="*", metavar="TABLE-GLOB")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(DTYPES))
    parser.add_argument("--n", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--providers", type=lambda text: text.split(","), default=["eager", "compile"], help="eager,compile")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", help="also write the lines there")
    args = parser.parse_args()
    args.dtypes = [args.dtype] if args.dtype else ["bf16", "f32"]
    # Backward runs again and again on one graph; a compiled one must keep what it saved.
    torch._functorch.config.donated_buffer = False
    out = open(args.out, "w") if args.out else None

    def emit(line):
        for stream in (sys.stdout, out):
            if stream:
                print(json.dumps(line), file=stream, flush=True)
    run(args, emit)


if __name__ == "__main__":
    main()
