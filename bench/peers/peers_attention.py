"""Softmax attention, and tensor product attention by the two ways a user of PyTorch has: products with the factors, or queries, keys and
values made whole and handed to scaled_dot_product_attention ("sdpa": as it chooses; "cudnn": cuDNN's)."""
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from peers_common import BOTH, FWD, Column, Table

HEADS, WIDTH = 32, 128


def attend(q, k, v, causal=False):
    """[b, n, h, d]; fewer heads of k and v serve several of q."""
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    extra = {"enable_gqa": True} if grouped else {}
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, **extra).transpose(1, 2)


def by_cudnn(function):
    def run(*inputs):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return function(*inputs)
    return run


def cudnn_of(function):
    return {"cudnn": by_cudnn(function)} if torch.cuda.is_available() else {}


# ---- tpa_attention ----

def factors(batch, n, m, rank_q, rank_kv, grad):
    def make(cx, tokens):
        queries = [(n or tokens, HEADS, rank_q), (n or tokens, rank_q, WIDTH)]
        shapes = queries + 2 * [(m or tokens, HEADS, rank_kv), (m or tokens, rank_kv, WIDTH)]
        return [cx.normal(batch, *shape, grad=grad) for shape in shapes]
    return make


def whole(a, b):
    """sum over ranks of a [b, n, h, r] b [b, n, r, d], divided by r."""
    return torch.matmul(a, b) / a.shape[-1]


def decode_by_factors(aq, bq, ak, bk, av, bv):
    """Keys and values of rank 1; one query."""
    q = whole(aq, bq).squeeze(1)
    score = (q @ bk.squeeze(2).transpose(1, 2)) * ak.squeeze(-1).transpose(1, 2) * WIDTH ** -0.5
    weight = F.softmax(score, -1, dtype=torch.float32).to(q.dtype) * av.squeeze(-1).transpose(1, 2)
    return (weight @ bv.squeeze(2)).unsqueeze(1)


def decode_whole(aq, bq, ak, bk, av, bv):
    return attend(whole(aq, bq), whole(ak, bk), whole(av, bv))


def train_whole(aq, bq, ak, bk, av, bv):
    return attend(whole(aq, bq), whole(ak, bk), whole(av, bv), causal=True)


def decode_table(batch):
    column = Column(factors(batch, 1, None, 16, 1, False), decode_by_factors, {"sdpa": decode_whole})
    return Table("tpa_decode", f"batch{batch}-head{HEADS}-dim{WIDTH}-rank16", FWD, {"auto": column})


def train_table(batch, rank_q, rank_kv):
    column = Column(factors(batch, None, None, rank_q, rank_kv, True), train_whole, cudnn_of(train_whole))
    return Table("tpa_train", f"batch{batch}-head{HEADS}-dim{WIDTH}-rank{rank_q}_{rank_kv}", BOTH, {"tenon": column})


# ---- attention ----

def attention_columns(batch, queries, grad, function):
    def make(kv_heads):
        def inputs(cx, n):
            keys_and_values = [cx.normal(batch, n, kv_heads, WIDTH, grad=grad) for _ in range(2)]
            return [cx.normal(batch, queries or n, HEADS, WIDTH, grad=grad)] + keys_and_values
        return inputs
    names = {"multi-head": HEADS, "grouped-8": 8, "multi-query": 1}
    return {name: Column(make(kv_heads), function, cudnn_of(function), compiles=False) for name, kv_heads in names.items()}


def causal(q, k, v):
    return attend(q, k, v, causal=True)


def tables():
    return [
        decode_table(8), decode_table(32),
        *(train_table(batch, *ranks) for batch in (4, 2) for ranks in ((6, 2), (16, 1))),
        Table("attention", f"batch2-head{HEADS}-dim{WIDTH}", BOTH, attention_columns(2, None, True, causal)),
        Table("attention", f"decode-batch8-head{HEADS}-dim{WIDTH}", FWD, attention_columns(8, 1, False, attend)),
    ]
