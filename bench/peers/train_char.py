"""The model of examples/configs/shakespeare-char-cpu.json in eager PyTorch: tokens a second of its training step, and on request its loss.

    python3 bench/peers/train_char.py --data input.txt [--config FILE] [--steps 100] [--threads 2] [--device cpu]

Linear layers only; attention is written out as products with the matrix of decays, the quickest way in eager PyTorch at these lengths.
Random windows as in tenon-train, not the same ones. Prints one JSON line."""
import argparse
import json
import math
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


def rms(x, weight):
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-6)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, heads, hidden = c["width"], c["heads"], c.get("hidden") or (c["width"] * 8 // 3 + 31) // 32 * 32
        self.heads, self.data_decay = heads, c.get("decay") == "data"
        self.norm_mixer, self.norm_mlp = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.norm_head = nn.Parameter(torch.ones(width // heads))
        self.qkvg = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)
        low, high = c.get("decay_from", 5), c.get("decay_to", 12)
        lost = 2.0 ** -(low + (high - low) * torch.arange(heads) / heads)
        if self.data_decay:
            self.decay, self.decay_bias = nn.Linear(width, heads, bias=False), nn.Parameter(torch.log1p(-lost) - torch.log(lost))
        else:
            self.register_buffer("log_decay", torch.log1p(-lost))

    def decays(self, h):
        n = h.shape[1]
        each = F.logsigmoid(self.decay(h) + self.decay_bias) if self.data_decay else self.log_decay.expand(1, n, -1)
        total = each.cumsum(1).transpose(1, 2)  # [b, heads, n]
        gap = total.unsqueeze(-1) - total.unsqueeze(-2)
        return torch.exp(gap.masked_fill(torch.ones(n, n, dtype=torch.bool, device=h.device).triu(1), -math.inf))

    def forward(self, x, cos, sin):
        b, n, width = x.shape
        h = rms(x, self.norm_mixer)
        q, k, v, g = self.qkvg(h).view(b, n, 4, self.heads, -1).unbind(2)
        q, k = (rotate(F.silu(t), cos, sin).transpose(1, 2) for t in (q, k))
        o = (q @ k.transpose(2, 3) * self.decays(h)) @ v.transpose(1, 2)
        o = rms(o.transpose(1, 2), self.norm_head) * F.silu(g)
        x = x + self.out(o.reshape(b, n, width))
        left, right = self.up(rms(x, self.norm_mlp)).chunk(2, -1)
        return x + self.down(F.silu(left) * right)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Model(nn.Module):
    def __init__(self, c, vocab):
        super().__init__()
        self.embedding = nn.Embedding(vocab, c["width"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["layers"]))
        self.norm = nn.Parameter(torch.ones(c["width"]))
        half = c["width"] // c["heads"] // 2
        angle = torch.outer(torch.arange(c["context"]), 10000.0 ** -(torch.arange(half) / half))[:, None]
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        deviation = 0.5 / math.sqrt(c["width"])
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=deviation / math.sqrt(2 * c["layers"]) if ".out." in name or ".down." in name else deviation)

    def forward(self, ids, targets):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = rms(x, self.norm) @ self.embedding.weight.t()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def learning_rate(c, step, steps):
    if step < c["warmup"]:
        return c["lr"] * (step + 1) / (c["warmup"] + 1)
    return c["min_lr"] + 0.5 * (c["lr"] - c["min_lr"]) * (1 + math.cos(math.pi * (step - c["warmup"]) / max(1, steps - c["warmup"])))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="examples/configs/shakespeare-char-cpu.json")
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(1337)
    with open(o.config) as f:
        c = json.load(f)
    with open(o.data) as f:
        text = f.read()
    token = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([token[character] for character in text])
    tokens, batch, context = tokens[: len(tokens) * 9 // 10], c["batch"], c["context"]
    model = Model(c, len(token)).to(o.device)
    matrices, others = ([p for p in model.parameters() if (p.dim() == 2) == matrix] for matrix in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": c["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
                                  lr=c["lr"], betas=(c["beta1"], c["beta2"]), fused=True)
    seconds = []
    for step in range(o.steps):
        begin = time.perf_counter()
        at = torch.randint(len(tokens) - context, (batch,))
        window = torch.stack([tokens[i : i + context + 1] for i in at]).to(o.device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(c, step, o.steps)
        loss = model(window[:, :-1], window[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), c["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        seconds.append(time.perf_counter() - begin)
    ms = 1e3 * statistics.median(seconds[len(seconds) // 5 :])
    print(json.dumps({"provider": f"torch {torch.__version__} eager", "device": o.device, "threads": o.threads, "steps": o.steps,
                      "parameters": sum(p.numel() for p in model.parameters()), "loss": value, "ms": ms, "tok_s": batch * context / ms * 1e3}))


if __name__ == "__main__":
    main()
