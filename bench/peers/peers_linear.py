"""LRPE and linear attention: lrpe_rotate-*, md_lrpe_cosine-*, flao-*, flao_fal-*, causal-*. Batch and heads 12, width 128 unless said."""
import torch
import torch.nn.functional as F

from peers_common import BOTH, SPEED, Column, Table

try:
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla
except Exception:  # not installed, or not for this device
    chunk_simple_gla = fused_recurrent_simple_gla = None

BATCH, HEADS, WIDTH, CHUNK = 12, 12, 128, 256
EAGER_CAUSAL_MOST = 16384


# ---- LRPE ----

def encode_rotate(x, theta):
    """x [b, n, h, d], theta [h, d/2]."""
    t = torch.arange(x.shape[1], device=x.device, dtype=theta.dtype)
    angle = t[:, None, None] * theta
    x1, x2 = x.chunk(2, -1)
    return torch.cat([x1 * angle.cos() - x2 * angle.sin(), x1 * angle.sin() + x2 * angle.cos()], -1).to(x.dtype)


def rotate_table(setting, act):
    def make(cx, n):
        return [cx.normal(BATCH, n, HEADS, WIDTH), cx.wide(HEADS, WIDTH // 2)]
    columns = {"tenon": (make, lambda x, theta: encode_rotate(act(x), theta))}
    return Table("lrpe_rotate", f"batch{BATCH}-head{HEADS}-dim{WIDTH}-act_{setting}", BOTH, columns)


def grid_angles(theta, shape, leading, width):
    """theta [h, w] -> [h, leading + prod(shape), width]: a place's angles, axis after axis; the leading tokens have none."""
    places = torch.meshgrid(*(torch.arange(size, device=theta.device, dtype=theta.dtype) for size in shape), indexing="ij")
    angle = torch.cat([place.reshape(1, -1, 1) * theta[:, None, :] for place in places], -1)[..., :width]
    return F.pad(angle, (0, 0, leading, 0))


def side_of(n, axes):
    return round(n ** (1 / axes))


def encode_grid(axes, leading):
    def encode(x, theta):
        side = side_of(x.shape[2] - leading, axes)
        angle = grid_angles(theta, (side,) * axes, leading, x.shape[-1])
        return torch.cat([x * angle.cos(), x * angle.sin()], -1).to(x.dtype)
    return encode


def grid_table(axes, leading):
    def make(cx, n):
        tokens = side_of(n, axes) ** axes + leading
        return [cx.normal(BATCH, HEADS, tokens, WIDTH), cx.wide(HEADS, -(-WIDTH // axes))]
    columns = {"direct": (make, encode_grid(axes, leading))}
    return Table("md_lrpe_cosine", f"batch{BATCH}-head{HEADS}-dim{WIDTH}", BOTH, columns, variant=f"{axes}d-l{leading}")


def encode_cosine(x, theta):
    """x [b, h, n, d], theta [h, d]."""
    angle = theta[:, None, :] * torch.arange(x.shape[2], device=x.device, dtype=theta.dtype)[:, None]
    return torch.cat([x * angle.cos(), x * angle.sin()], -1).to(x.dtype)


# ---- linear attention, non-causal: [b, h, n, d] ----

def attend(q, k, v, g):
    return g * torch.matmul(q, torch.matmul(k.transpose(-1, -2), v))


def attend_encoded(q_act):
    def function(q, k, v, g, theta):
        return attend(encode_cosine(q_act(q), theta), encode_cosine(F.silu(k), theta), v, F.silu(g))
    return function


def flao_table(batch, heads, kinds):
    def make(cx, n):
        return [cx.normal(batch, heads, n, WIDTH) for _ in range(4)]
    return Table("flao", f"batch{batch}-head{heads}-dim{WIDTH}", kinds, {"flao": (make, attend)}, upstream=kinds == BOTH)


def fal_table(batch, heads, kinds, setting, q_act):
    def make(cx, n):
        return [cx.normal(batch, heads, n, WIDTH) for _ in range(4)] + [cx.wide(heads, WIDTH)]
    columns = {"fal": (make, attend_encoded(q_act))}
    return Table("flao_fal", f"batch{batch}-head{heads}-dim{WIDTH}-dim{WIDTH}{setting}", kinds, columns, upstream=kinds == BOTH)


def full_tables(batch, heads, kinds):
    """Non-causal, gated: as it is, and with activations and LRPE before it."""
    softmax = "-qact_softmax_-1-kact_silu_None-vact_none_None-gact_silu_None"
    return [flao_table(batch, heads, kinds), fal_table(batch, heads, kinds, "", F.silu),
            fal_table(batch, heads, kinds, softmax, lambda x: F.softmax(x, -1))]


# ---- linear attention, causal with decay: q, k, v [b, n, h, d], log_decay [h] or [b, n, h] ----

def causal(q, k, v, log_decay):
    """Chunk by chunk, the state handed on."""
    b, n, h, d = q.shape
    q, k, v = (x.transpose(1, 2).unflatten(2, (-1, min(CHUNK, n))) for x in (q, k, v))
    decay = log_decay.expand(b, n, h).transpose(1, 2).unflatten(2, (-1, min(CHUNK, n))).cumsum(-1)
    mask = torch.ones(decay.shape[-1], decay.shape[-1], device=q.device, dtype=torch.bool).tril()
    weight = (decay[..., :, None] - decay[..., None, :]).masked_fill(~mask, float("-inf")).exp()
    inside = ((q @ k.transpose(-1, -2)) * weight).to(v.dtype) @ v
    q_decayed, k_decayed = (q * decay.exp()[..., None]).to(q.dtype), (k * (decay[..., -1:] - decay).exp()[..., None]).to(k.dtype)
    added, kept = k_decayed.transpose(-1, -2) @ v, decay[..., -1].exp()
    state, before = torch.zeros_like(added[:, :, 0], dtype=decay.dtype), []
    for i in range(added.shape[2]):
        before.append(state)
        state = state * kept[:, :, i, None, None] + added[:, :, i]
    o = inside + q_decayed @ torch.stack(before, 2).to(q.dtype)
    return o.flatten(2, 3).transpose(1, 2)


def fla_constant(q, k, v, log_decay):
    return chunk_simple_gla(q, k, v, g_gamma=log_decay, scale=1.0)[0]


def fla_scalar(q, k, v, log_decay):
    return chunk_simple_gla(q, k, v, g=log_decay, scale=1.0)[0]


def causal_table(batch, heads):
    def make(decay_shape, grad):
        def inputs(cx, n):
            shape = (batch, n, heads) if decay_shape else (heads,)
            return [cx.normal(batch, n, heads, WIDTH) for _ in range(3)] + [cx.wide(*shape, low=-0.1, high=-0.001, grad=grad)]
        return inputs
    constant, scalar = ({"fla": fla_constant}, {"fla": fla_scalar}) if chunk_simple_gla else ({}, {})
    # Eager goes from chunk to chunk on the host: seconds a call where there are hundreds.
    columns = {"constant": Column(make(False, False), causal, constant, compiles=False, eager_most=EAGER_CAUSAL_MOST),
               "scalar": Column(make(True, True), causal, scalar, compiles=False, eager_most=EAGER_CAUSAL_MOST)}
    return Table("causal", f"batch{batch}-head{heads}-dim{WIDTH}", BOTH, columns)


def step(q, k, v, log_decay, state):
    """A token each for n sequences; the state [n, h, d, e] is updated in place."""
    state.mul_(log_decay.exp()[:, None, None]).add_(k.squeeze(1)[..., None] * v.squeeze(1)[..., None, :])
    return (q.squeeze(1)[..., None, :].float() @ state).to(q.dtype).transpose(1, 2)


def fla_step(q, k, v, log_decay, state):
    return fused_recurrent_simple_gla(q, k, v, g_gamma=log_decay, scale=1.0, initial_state=state, output_final_state=True)


def step_table():
    heads = 32

    def make(cx, n):
        token = [cx.normal(n, 1, heads, WIDTH, grad=False) for _ in range(3)]
        return token + [cx.wide(heads, low=-0.1, high=-0.001), cx.wide(n, heads, WIDTH, WIDTH)]
    others = {"fla": fla_step} if fused_recurrent_simple_gla else {}
    return Table("causal", f"decode-head{heads}-dim{WIDTH}", ["speed-fwd"], {"step": Column(make, step, others)})


def tables():
    return [
        rotate_table("none", lambda x: x), rotate_table("silu", F.silu),
        rotate_table("softmax-dim_-1", lambda x: F.softmax(x, -1)), rotate_table("softmax-dim_1", lambda x: F.softmax(x, 1)),
        *(grid_table(axes, leading) for axes in (1, 2, 3) for leading in (0, 10)),
        *full_tables(BATCH, HEADS, BOTH), *full_tables(1, 4, SPEED),
        causal_table(4, 32), causal_table(1, 8), step_table(),
    ]
