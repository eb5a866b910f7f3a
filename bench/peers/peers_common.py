"""What all peers share: the clock, a cell's inputs, tables, and running a cell. The method is that of bench/README.md."""
import statistics
import time

import torch

MIB = 1 << 20
SHORT_CALL_MS = 1.0
FLUSHES_AHEAD = 200
LONG_CALL_MS = 2000
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}


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
        first = self.samples(call, 1)
        if first[0] >= LONG_CALL_MS:
            return percentiles(self.samples(call, 1, 1))
        trials = self.samples(call, max(3, n_sets))[-3:]
        n = self.budget_ms / max(statistics.median(trials), 1e-4)
        n = 3 if n < 0.1 else int(min(max(n, self.repeats[0]), self.repeats[1]))
        if self.cuda and statistics.median(trials) < SHORT_CALL_MS:
            for _ in range(FLUSHES_AHEAD):  # as wake_up in bench_measure.c
                self.flush()
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

    def tokens(self, n, vocabulary):
        return torch.randint(0, vocabulary, (n,), device=self.device)

    def wide(self, *shape, low=None, high=None, grad=False):
        """f32 beside bf16 and f32, f64 beside f64: normal numbers, or evenly between low and high."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        t = torch.empty(shape, device=self.device, dtype=dtype)
        return (t.normal_() if low is None else t.uniform_(low, high)).requires_grad_(grad)

    def weight(self, *shape):
        return self.normal(*shape, mean=1.0, deviation=0.1)


class Column:
    """make(context, n) -> inputs; function of the inputs, which eager runs and torch.compile compiles; others: provider -> function.
    eager_most: the largest n that eager is asked for, where one call takes too long above."""

    def __init__(self, make, function, others=None, eager=True, compiles=True, eager_most=None):
        self.make, self.function, self.others, self.eager, self.compiles = make, function, others or {}, eager, compiles
        self.eager_most = eager_most

    def providers(self, n, compiled):
        eager = self.eager and not (self.eager_most and n > self.eager_most)
        return ["eager"] * eager + ["compile"] * bool(self.compiles and compiled) + list(self.others)


class Table:
    """columns: name -> Column or (make, function)."""

    def __init__(self, family, setting, kinds, columns, forward_only=(), variant=None, upstream=False, compiles=True):
        self.family, self.setting, self.kinds, self.variant = family, setting, kinds, variant
        self.columns = {name: c if isinstance(c, Column) else Column(*c, compiles=compiles) for name, c in columns.items()}
        self.forward_only, self.upstream = forward_only, upstream

    def name(self, kind, dtype):
        return "-".join(part for part in (self.family, kind, self.setting, dtype, self.variant) if part)


FWD, BWD = ["speed-fwd", "memory-fwd"], ["speed-bwd", "memory-bwd"]
BOTH = FWD + BWD
SPEED = ["speed-fwd", "speed-bwd"]


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


def memory(function, inputs, backward, upstream):
    """Peak of one call in MiB, less what lay there before the cell: inputs, and for backward what was saved, o and do."""
    before = torch.cuda.memory_allocated() - sum(t.numel() * t.element_size() for t in inputs)
    o = function(*inputs)
    do = torch.randn_like(o) if backward or upstream else None
    if not backward:
        o = None
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


def release_memory():
    """Gives what lies unused back, and waits while the driver wipes it (see bench_release_memory in bench_run.c)."""
    before = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    time.sleep((before - torch.cuda.memory_reserved()) / 2.5e11)


def run_cell(bench, cx, table, kind, column, n, function):
    """`function`: the column's own, compiled or not, or another provider's."""
    if kind == "speed-step":
        states = [column.make(cx, n) for _ in range(2)]
        for state in states:
            if hasattr(state, "loss"):
                state.loss = function
            column.function(state)
        return bench.measure(lambda i: lambda: column.function(states[i % 2]), 2)
    if kind.startswith("memory"):
        return memory(function, column.make(cx, n), kind.endswith("bwd"), table.upstream)
    sets = make_sets(bench, cx, column.make, n)
    timed = speed_backward if kind.endswith("bwd") else speed_forward
    try:
        return timed(bench, function, sets)
    except torch.cuda.OutOfMemoryError:
        if len(sets) == 1:
            raise
    # One set has to do where the graphs of several don't fit.
    del sets[1:]
    clear_grads(sets[0])
    release_memory()
    return timed(bench, function, sets)
