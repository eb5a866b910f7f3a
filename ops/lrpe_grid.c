#include "lrpe_grid.h"

#include <stdio.h>

/* Coordinates beyond this are not all numbers in f64. */
#define MAX_COORDINATE (INT64_C(1) << 53)

#define REFUSE(status, ...)                     \
    do {                                        \
        snprintf(reason, n_bytes, __VA_ARGS__); \
        return status;                          \
    } while (0)

static tn_status take_shape(tn_lrpe_grid *grid, const tn_lrpe_request *request, char *reason, size_t n_bytes) {
    if (request->leading < 0 || request->leading > request->tokens)
        REFUSE(TN_ERR_ARGUMENT, "l = %lld: wanted 0 to the %lld tokens there are", (long long)request->leading, (long long)request->tokens);
    grid->tokens = request->tokens;
    grid->leading = request->leading;
    if (!request->shape.axes) {
        grid->axes = 1;
        grid->extent[0] = request->tokens - request->leading;
        return TN_OK;
    }
    int64_t product = 1;
    grid->axes = request->shape.axes;
    for (int i = 0; i < grid->axes; i++) {
        grid->extent[i] = request->shape.size[i];
        if (grid->extent[i] < 0) REFUSE(TN_ERR_ARGUMENT, "shape has an axis of %lld", (long long)grid->extent[i]);
        if (__builtin_mul_overflow(product, grid->extent[i], &product)) product = INT64_MAX;
    }
    if (product != request->tokens - request->leading)
        REFUSE(TN_ERR_SHAPE, "the product of shape (%lld) and l = %lld: wanted %lld tokens in all", (long long)product,
               (long long)request->leading, (long long)request->tokens);
    return TN_OK;
}

static tn_status take_offset(tn_lrpe_grid *grid, const tn_lrpe_request *request, char *reason, size_t n_bytes) {
    grid->offset = request->offset;
    if (grid->axes > 1 && (request->offset || request->moves))
        REFUSE(TN_ERR_ARGUMENT, "an offset goes with one axis, shape has %d", grid->axes);
    if (request->offset > MAX_COORDINATE - request->tokens || request->offset < -MAX_COORDINATE)
        REFUSE(TN_ERR_ARGUMENT, "offset = %lld: positions beyond 2^53 are not told apart", (long long)request->offset);
    return TN_OK;
}

static tn_status take_theta(tn_lrpe_grid *grid, const tn_lrpe_request *request, char *reason, size_t n_bytes) {
    const tn_shape *theta = request->theta;
    if (theta->axes != 2 || theta->size[1] < 1 || (theta->size[0] != 1 && theta->size[0] != request->heads))
        REFUSE(TN_ERR_SHAPE, "wanted theta [%lld, w] or [1, w] with w >= 1", (long long)request->heads);
    grid->theta_heads = theta->size[0];
    grid->theta_width = theta->size[1];
    grid->span = grid->theta_width > 1 ? grid->theta_width : (grid->angles + grid->axes - 1) / grid->axes;
    if (grid->span < 1) grid->span = 1; /* no features at all */
    return TN_OK;
}

tn_status tn_lrpe_grid_make(tn_lrpe_grid *grid, const tn_lrpe_request *request, char *reason, size_t n_bytes) {
    *grid = (tn_lrpe_grid){ 0 };
    if (request->kind != TN_ROTATE && request->kind != TN_COSINE) REFUSE(TN_ERR_ARGUMENT, "kind is required: rotate or cosine");
    if (request->kind == TN_ROTATE && request->width % 2)
        REFUSE(TN_ERR_SHAPE, "rotate turns pairs of features: wanted an even width, not %lld", (long long)request->width);
    grid->angles = request->kind == TN_ROTATE ? request->width / 2 : request->width;
    tn_status status = take_shape(grid, request, reason, n_bytes);
    if (status == TN_OK) status = take_offset(grid, request, reason, n_bytes);
    return status == TN_OK ? take_theta(grid, request, reason, n_bytes) : status;
}
