"""The basic tables of tenon-bench in PyTorch: products, elementwise ops, softmax, norms, losses, reductions, the optimizer."""
import torch
import torch.nn.functional as F

from peers_common import BOTH, FWD, SPEED, Table, clear_grads

VOCABULARY, MODEL_WIDTH, WIDTH = 50304, 768, 4096


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
    return [
        Table("gemm", "square", SPEED, columns, compiles=False),
        Table("gemm", "train", FWD, train_columns(False, False), compiles=False),
        Table("gemm", "train_dx", ["speed-bwd"], train_columns(True, False), compiles=False),
        Table("gemm", "train_dw", ["speed-bwd"], train_columns(False, True), compiles=False),
        Table("gemm", "epilogue", ["speed-fwd"], acts),
        Table("gemm", "batch12-head12-dim128", SPEED, state, compiles=False),
    ]


def swiglu(x):
    u, v = x.chunk(2, -1)
    return F.silu(u) * v


def pointwise_tables():
    def pair(function, positive=False):
        return rows_of(WIDTH, 2, positive), function

    def one(function, positive=False):
        return rows_of(WIDTH, 1, positive), function

    def row(cx, n, grad=True):
        return [cx.normal(n, WIDTH, grad=grad), cx.weight(WIDTH)]

    def fixed_row(cx, n):
        return row(cx, n, grad=False)
    binary = {"add": pair(torch.add), "mul": pair(torch.mul), "div": pair(torch.div, True), "maximum": pair(torch.maximum)}
    unary = {"exp": one(torch.exp), "sqrt": one(torch.sqrt, True), "sin": one(torch.sin), "relu": one(F.relu), "silu": one(F.silu),
             "gelu": one(F.gelu), "tanh": one(torch.tanh)}
    copies = {"copy": one(torch.clone), "transpose": one(lambda x: x.t().contiguous()),
              "cast": one(lambda x: x.to(torch.bfloat16 if x.dtype == torch.float32 else torch.float32))}
    return [
        Table("copy", None, FWD, copies, compiles=False),
        Table("elementwise", "binary", BOTH, binary, forward_only=("add",)),
        Table("elementwise", "unary", BOTH, unary),
        Table("elementwise", "row", SPEED, {"add_row": (fixed_row, torch.add), "mul_row": (row, torch.mul)}),
        Table("elementwise", "swiglu_2048", BOTH, {"swiglu": (rows_of(WIDTH), swiglu)}),
    ]


def softmax_tables():
    def last(width):
        return {"softmax": (rows_of(width), lambda x: F.softmax(x, -1))}
    sequence = {"softmax": (lambda cx, n: [cx.normal(12, n, 1536)], lambda x: F.softmax(x, 1))}
    return [
        Table("softmax", "d128", SPEED, last(128)),
        Table("softmax", "d1024", BOTH, last(1024)),
        Table("softmax", "d32768", SPEED, last(32768)),
        Table("softmax", "batch12-d1536-dim1", SPEED, sequence),
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
        Table("norm", "d768", BOTH, columns(768)),
        Table("norm", "d4096", SPEED, columns(4096)),
    ]


def loss_tables():
    cross_entropy = {"cross_entropy": (lambda cx, n: [cx.normal(n, VOCABULARY), cx.tokens(n, VOCABULARY)], F.cross_entropy)}
    whole = {"linear_cross_entropy": (
        lambda cx, n: [cx.normal(n, MODEL_WIDTH), cx.normal(VOCABULARY, MODEL_WIDTH, deviation=0.05), cx.tokens(n, VOCABULARY)],
        lambda x, w, t: F.cross_entropy(F.linear(x, w), t))}
    embedding = {"embedding": (lambda cx, n: [cx.tokens(n, VOCABULARY), cx.normal(VOCABULARY, MODEL_WIDTH)], F.embedding)}

    def reduced(function):
        return lambda cx, n: [cx.normal(n, WIDTH, mean=1.0)], function
    reduce = {"sum": reduced(torch.sum), "sum_last": reduced(lambda x: x.sum(-1)), "sum_first": reduced(lambda x: x.sum(0)),
              "max_last": reduced(lambda x: x.amax(-1)), "logsumexp_last": reduced(lambda x: torch.logsumexp(x, -1))}
    return [
        Table("cross_entropy", "v50304", BOTH, cross_entropy),
        Table("cross_entropy", "linear-d768-v50304", BOTH, whole),
        Table("cross_entropy", "linear-d768-v50304", ["speed-step"], {"both_passes": (LossStep, LossStep.step)}),
        Table("reduce", None, ["speed-fwd"], reduce),
        Table("embedding", "d768-v50304", BOTH, embedding),
    ]


def random_tables():
    dropout = {"dropout": (rows_of(WIDTH), lambda x: F.dropout(x, 0.1))}
    sampling = {
        "topk_50": (lambda cx, n: [cx.normal(n, VOCABULARY)], lambda x: torch.topk(x, 50).values),
        "multinomial": (lambda cx, n: [cx.normal(n, VOCABULARY, grad=False).uniform_()], lambda w: torch.multinomial(w, 1)),
    }
    return [
        Table("dropout", None, BOTH, dropout),
        Table("sampling", "v50304", BOTH, sampling, compiles=False, forward_only=("multinomial",)),
    ]


class LossStep:
    """linear_cross_entropy, forward and backward."""

    @staticmethod
    def loss(x, w, t):
        return F.cross_entropy(F.linear(x, w), t)

    def __init__(self, cx, n):
        self.inputs = [cx.normal(n, MODEL_WIDTH), cx.normal(VOCABULARY, MODEL_WIDTH, deviation=0.05), cx.tokens(n, VOCABULARY)]

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
    return [Table("adamw", None, ["speed-step"], columns, compiles=False)]


def tables():
    pointwise = pointwise_tables()
    rest = (softmax_tables, norm_tables, loss_tables, random_tables, optimizer_tables)
    return pointwise[:1] + gemm_tables() + pointwise[1:] + [table for tables in rest for table in tables()]
