/* Backward of non-causal linear attention, readable: for f64, odd widths, any alignment, and where the plain path is asked for.
 *
 * For a run of slices, with X and dX [tokens][d'], Y [tokens][e], all of the wide dtype:
 *     X = qb, Y = X S, dg = act'(do * Y), Y = do * gb, dX = Y S', dS = X' Y + dstate_out, theta's part, dq = act'(lrpe'(scale * dX))
 *     X = kb, Y = vb, dX = Y dS', Y = X dS, dv = act'(Y), theta's part, dk likewise */
#include "linear_attention_bwd.h"
#include "linear_attention_plain_back.cuh"

namespace {

/* In the workspace: theta's parts, then what a run of slices needs. */
struct room {
    int64_t slices, theta, x, dx, y, ds; /* slices of a run; elements of each piece */
};

room make_room(const tn_la_problem *p) {
    int64_t tokens = p->n > p->m ? p->n : p->m, wide = (int64_t)tn_dtype_size(p->wide);
    int64_t x = tokens * p->state_rows, y = tokens * p->e, ds = p->dstate ? 0 : p->state_rows * p->e;
    room r;
    r.slices = tn_la_plain_slices(p, (2 * x + y + ds) * wide);
    r.theta = p->dtheta ? 2 * p->b * p->h * p->q.grid.theta_width : 0;
    r.x = r.dx = r.slices * x;
    r.y = r.slices * y;
    r.ds = r.slices * ds;
    return r;
}

template <typename T> void backward(const tn_la_problem *p, void *workspace, cudaStream_t stream) {
    using W = tn_wide<T>;
    const room r = make_room(p);
    const int64_t slices = p->b * p->h, rows = p->state_rows, e = p->e, n = p->n, m = p->m;
    W *theta_parts = (W *)workspace, *x = theta_parts + r.theta, *dx = x + r.x, *y = dx + r.dx, *ds_room = y + r.y;
    const bool of_output = p->d_o && n > 0;
    if (p->dtheta && r.theta) cudaMemsetAsync(theta_parts, 0, (size_t)r.theta * sizeof(W), stream);
    for (int64_t first = 0; first < slices; first += r.slices) {
        const tn_la_run run = { first, r.slices < slices - first ? r.slices : slices - first, p->h };
        const tn_la_matrix<W> s = tn_la_rows((const W *)p->s + first * rows * e, rows, e);
        W *ds = p->dstate ? (W *)p->dstate + first * rows * e : ds_room;
        const W *begin = p->dstate_out ? (const W *)p->dstate_out + first * rows * e : NULL;
        const tn_la_matrix<W> x_of_n = tn_la_rows(x, n, rows), y_of_n = tn_la_rows(y, n, e), x_of_m = tn_la_rows(x, m, rows),
                              y_of_m = tn_la_rows(y, m, e);
        if (of_output) {
            tn_la_plain_encode_run<T>(p, &p->q, p->scale, run, x, stream);
            tn_la_plain_product_run<W>(run, n, e, rows, x_of_n, s, NULL, y, stream);
            tn_la_plain_gate_back<T><<<tn_la_plain_grid(run, n), TN_LA_PLAIN_THREADS, 0, stream>>>(
                run, p->g, p->has_gate, n, e, p->o_stride, (const T *)p->d_o, (T *)p->dg, y);
            tn_la_plain_product_run<W>(run, n, rows, e, y_of_n, tn_la_transposed(s), NULL, dx, stream);
        }
        tn_la_plain_product_run<W>(run, rows, e, of_output ? n : 0, tn_la_transposed(x_of_n), y_of_n, begin, ds, stream);
        if (of_output) tn_la_plain_decode<T>(p, run, &p->q, p->scale, x, dx, p->dtheta ? theta_parts : NULL, p->dq, stream);
        if (m == 0 || !(p->dk || p->dv || p->dtheta)) continue;
        const tn_la_matrix<W> state = tn_la_rows((const W *)ds, rows, e);
        tn_la_plain_encode_run<T>(p, &p->k, 1, run, x, stream);
        tn_la_plain_encode_run<T>(p, &p->v, 1, run, y, stream);
        tn_la_plain_product_run<W>(run, m, rows, e, y_of_m, tn_la_transposed(state), NULL, dx, stream);
        if (p->dv) {
            tn_la_plain_product_run<W>(run, m, e, rows, x_of_m, state, NULL, y, stream);
            tn_la_plain_act_back<T><<<tn_la_plain_grid(run, m), TN_LA_PLAIN_THREADS, 0, stream>>>(run, p->v, y, e, (T *)p->dv);
        }
        tn_la_plain_decode<T>(p, run, &p->k, 1, x, dx, p->dtheta ? theta_parts + r.theta / 2 : NULL, p->dk, stream);
    }
    if (p->dtheta) {
        int64_t columns = p->q.grid.theta_heads * p->q.grid.theta_width;
        tn_la_plain_theta_sum<W><<<tn_blocks(columns, 128), 128, 0, stream>>>(slices, p->h, p->q.grid, theta_parts, (W *)p->dtheta);
    }
}

} // namespace

size_t tn_la_backward_plain_workspace(const tn_la_problem *problem) {
    const room r = make_room(problem);
    return (size_t)(r.theta + r.x + r.dx + r.y + r.ds) * tn_dtype_size(problem->wide);
}

void tn_la_backward_plain(const tn_la_problem *problem, void *workspace, void *stream) {
    TN_WITH_FLOAT(problem->dtype, T, backward<T>(problem, workspace, (cudaStream_t)stream));
}
