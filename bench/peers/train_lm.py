"""The training step of examples/configs/lm-130m.json in PyTorch with flash-linear-attention, on CUDA: milliseconds, tokens a second, peak memory.

    python3 bench/peers/train_lm.py [--prepare 14] [--mode both] [--batch 32] [--steps 20]          needs: pip install fla-core einops

bf16 autocast over f32 parameters, fused AdamW, clipping to norm 1; attention by FLA's chunk_simple_gla. Prints a JSON line for each mode and
says on stderr how far it is: compiling takes minutes. --prepare first compiles FLA's kernels in that many processes at once, from which
Triton's cache on disk has them."""
import argparse
import json
import os
import subprocess
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

VOCAB, WIDTH, LAYERS, HEADS, CONTEXT, HIDDEN = 50304, 768, 12, 6, 1024, 2048
BEGIN = time.time()


def say(text):
    print(f"[{time.time() - BEGIN:5.1f} s] {text}", file=sys.stderr, flush=True)


def import_attention(part=0, parts=1):
    """Of each kernel's variants that Triton would try: every parts-th, from part on."""
    from triton.runtime.autotuner import Autotuner

    init = Autotuner.__init__

    def init_part(self, fn, arg_names, configs, *rest, **named):
        init(self, fn, arg_names, (configs[part::parts] or configs[:1]) if configs else configs, *rest, **named)

    if parts > 1:
        Autotuner.__init__ = init_part
    from fla.ops.simple_gla import chunk_simple_gla

    return chunk_simple_gla


def log_decay():
    return torch.log1p(-(2.0 ** -(5 + 7 * torch.arange(HEADS) / HEADS)))


def compile_part(part, parts):
    attend = import_attention(part, parts)
    q, k, v = (torch.randn(2, CONTEXT, HEADS, WIDTH // HEADS, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    o, _ = attend(q, k, v, g_gamma=log_decay().cuda(), scale=1.0)
    o.sum().backward()
    torch.cuda.synchronize()


def prepare(parts):
    say(f"compiling in {parts} processes")
    compilers = [subprocess.Popen([sys.executable, __file__, "--part", f"{part}/{parts}"]) for part in range(parts)]
    say(f"compiled, exit codes {sorted({compiler.wait() for compiler in compilers})}")


def rms(x, weight):
    return F.rms_norm(x, (x.shape[-1],), weight)


class Block(nn.Module):
    def __init__(self, attend):
        super().__init__()
        self.attend = attend
        self.norm_mixer, self.norm_mlp = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))
        self.norm_head = nn.Parameter(torch.ones(WIDTH // HEADS))
        self.qkvg, self.out = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 2 * HIDDEN, bias=False), nn.Linear(HIDDEN, WIDTH, bias=False)
        self.register_buffer("log_decay", log_decay())

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v, g = self.qkvg(rms(x, self.norm_mixer)).view(b, n, 4, HEADS, WIDTH // HEADS).unbind(2)
        o, _ = self.attend(F.silu(q), F.silu(k), v, g_gamma=self.log_decay, scale=1.0)
        o = rms(o.to(x.dtype), self.norm_head) * F.silu(g)
        x = x + self.out(o.reshape(b, n, WIDTH))
        left, right = self.up(rms(x, self.norm_mlp)).chunk(2, -1)
        return x + self.down(F.silu(left) * right)


class Model(nn.Module):
    def __init__(self, attend):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block(attend) for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(WIDTH))
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, ids, targets):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy((rms(x, self.norm) @ self.embedding.weight.t()).view(-1, VOCAB).float(), targets.view(-1))


def measure(mode, attend, batch, steps):
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    model = Model(attend).cuda()
    run = torch.compile(model) if mode == "compile" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids, targets = (torch.randint(0, VOCAB, (batch, CONTEXT), device="cuda") for _ in range(2))

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = run(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for i in range(5):
        step()
        torch.cuda.synchronize()
        say(f"{mode}: step {i + 1} to get warm")
    torch.cuda.reset_peak_memory_stats()
    begin = time.time()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    ms = 1e3 * (time.time() - begin) / steps
    print(json.dumps({"provider": f"torch {mode} + fla", "ms": ms, "tok_s": batch * CONTEXT / ms * 1e3,
                      "parameters": sum(p.numel() for p in model.parameters()), "peak_MiB": torch.cuda.max_memory_allocated() / 2**20}), flush=True)
    torch._dynamo.reset()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=("eager", "compile", "both"), default="compile")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prepare", type=int, default=0)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.part:
        compile_part(*map(int, o.part.split("/")))
        return
    if o.prepare:
        prepare(o.prepare)
    attend = import_attention()
    say("flash-linear-attention is there")
    torch.backends.cuda.matmul.allow_tf32 = True
    for mode in ("compile", "eager") if o.mode == "both" else (o.mode,):
        measure(mode, attend, o.batch, o.steps)


if __name__ == "__main__":
    main()
