/* A program outside the project: a line through points, fitted. Exit code 0 when it found the line. */
#include <math.h>
#include <stdio.h>

#include <tenon.h>

int main(void) {
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu", .seed = 7 });
    tn_params *params = tn_params_new(cx);
    tn_tensor *slope = tn_params_add(params, tn_parameter(cx, TN_F32, TN_SHAPE(1, 1)), 0, "slope");
    tn_tensor *offset = tn_params_add(params, tn_parameter(cx, TN_F32, TN_SHAPE(1)), 0, "offset");
    tn_adamw *optimizer = tn_adamw_new(params, TN_ADAMW(.lr = 0.05, .weight_decay = 0));
    for (int step = 0; step < 300; step++) {
        tn_scope *scope = tn_scope_begin(cx);
        tn_tensor *x = tn_randn(cx, TN_F32, TN_SHAPE(64, 1));
        tn_tensor *wanted = tn_affine(x, TN_AFFINE(.scale = 2, .shift = -1));
        tn_tensor *error = tn_sub(tn_linear(x, slope, offset), wanted);
        tn_backward(tn_mean(tn_mul(error, error)));
        tn_adamw_step(optimizer);
        tn_zero_grad(params);
        tn_scope_end(scope);
    }
    double found[] = { tn_item(slope), tn_item(offset) };
    bool well = !tn_failed(cx) && fabs(found[0] - 2) < 1e-2 && fabs(found[1] + 1) < 1e-2;
    if (tn_failed(cx)) fprintf(stderr, "consumer: %s\n", tn_error(cx));
    printf("tenon %s: %.3f x + %.3f\n", tn_version(), found[0], found[1]);
    tn_close(cx);
    return well ? 0 : 1;
}
