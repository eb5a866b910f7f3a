"""The training step of examples/configs/lm-130m.json in PyTorch with flash-linear-attention, on CUDA: milliseconds, tokens a second, peak memory.

    python3 bench/peers/train_lm.py [--eager] [--batch 32] [--steps 20]          needs: pip install fla-core einops

bf16 autocast over f32 parameters, fused AdamW, clipping to norm 1; attention by FLA's chunk_simple_gla. Prints one JSON line."""
import argparse
import json
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from fla.ops import chunk_simple_gla

VOCAB, WIDTH, LAYERS, HEADS, CONTEXT, HIDDEN = 50304, 768, 12, 6, 1024, 2048


def rms(x, weight):
    return F.rms_norm(x, (x.shape[-1],), weight)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_mixer, self.norm_mlp = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))
        self.norm_head = nn.Parameter(torch.ones(WIDTH // HEADS))
        self.qkvg, self.out = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 2 * HIDDEN, bias=False), nn.Linear(HIDDEN, WIDTH, bias=False)
        self.register_buffer("log_decay", torch.log1p(-(2.0 ** -(5 + 7 * torch.arange(HEADS) / HEADS))))

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v, g = self.qkvg(rms(x, self.norm_mixer)).view(b, n, 4, HEADS, WIDTH // HEADS).unbind(2)
        o, _ = chunk_simple_gla(F.silu(q), F.silu(k), v, g_gamma=self.log_decay, scale=1.0)
        o = rms(o.to(x.dtype), self.norm_head) * F.silu(g)
        x = x + self.out(o.reshape(b, n, WIDTH))
        left, right = self.up(rms(x, self.norm_mlp)).chunk(2, -1)
        return x + self.down(F.silu(left) * right)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(WIDTH))
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, ids, targets):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy((rms(x, self.norm) @ self.embedding.weight.t()).view(-1, VOCAB).float(), targets.view(-1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    o = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    model = Model().cuda()
    run = model if o.eager else torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids, targets = (torch.randint(0, VOCAB, (o.batch, CONTEXT), device="cuda") for _ in range(2))

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = run(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(5):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    begin = time.time()
    for _ in range(o.steps):
        step()
    torch.cuda.synchronize()
    ms = 1e3 * (time.time() - begin) / o.steps
    print(json.dumps({"provider": "torch eager + fla" if o.eager else "torch.compile + fla", "ms": ms, "tok_s": o.batch * CONTEXT / ms * 1e3,
                      "parameters": sum(p.numel() for p in model.parameters()), "peak_MiB": torch.cuda.max_memory_allocated() / 2**20}))


if __name__ == "__main__":
    main()
