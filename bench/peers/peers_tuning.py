"""Triton's autotuner, which flash-linear-attention chooses its kernels with: what it may choose from is compiled ahead by several processes,
each with a share of it, and timed briefly. Without this the first call of a kernel compiles hundreds of versions one after the other."""

WARM_UP_MS, MEASURED_MS = 2, 10

try:
    import triton.testing
    from triton.runtime.autotuner import Autotuner
except ImportError:
    Autotuner = None


def compile_share(shard, n_shards):
    """From here on a tuned kernel's first call compiles its configurations shard, shard + n_shards, ... and times none."""
    prune = Autotuner.prune_configs

    def pruned(self, *args, **others):
        configurations = prune(self, *args, **others)
        return configurations[shard::n_shards] or [configurations[shard % len(configurations)]]

    def run_once(self, *args, config, **meta):
        try:
            self.fn.run(*args, **dict(meta, **config.all_kwargs()))
            return [1.0, 1.0, 1.0]
        except Exception:  # too much shared memory, say: not to be chosen
            return [float("inf")] * 3

    Autotuner.prune_configs, Autotuner._bench = pruned, run_once


def time_briefly():
    """From here on each configuration is timed for MEASURED_MS rather than Triton's own tenfold: the choice is between kernels of 0.1 ms and up."""
    def timed(call, quantiles=None, **_):
        return triton.testing.do_bench(call, warmup=WARM_UP_MS, rep=MEASURED_MS, quantiles=quantiles)

    if Autotuner:
        Autotuner.do_bench = property(lambda self: timed)
