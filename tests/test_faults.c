/* Opening, every op forward and backward, training and what else happens in memory, with every allocation failing once. */
#include "fault_loop.h"

#include <stdio.h>
#include <string.h>

#include "libtensor/dlpack.h"

/* ---- opening ---- */

static bool open_one(fault_world *w) {
    w->cx = tn_open(&(tn_options){ .device = w->kind, .debug = true, .threads = 2 });
    if (!w->cx) return false;
    return !tn_failed(w->cx);
}

static bool open_and_use(fault_world *w) {
    if (!open_one(w)) return false;
    tn_scope *scope = tn_scope_begin(w->cx);
    tn_label_push(w->cx, "layer");
    tn_label_push(w->cx, "part");
    tn_tensor *t = tn_scope_return(scope, tn_add(tn_full(w->cx, TN_F32, TN_SHAPE(3), 1), tn_randn(w->cx, TN_F32, TN_SHAPE(4, 3))));
    tn_label_pop(w->cx);
    tn_label_pop(w->cx);
    tn_retain(t);
    tn_release(t);
    return !tn_failed(w->cx);
}

static void opening(void **state) {
    (void)state;
    const fault_scenario one = { "tn_open", NULL, open_one, NULL, "cpu", true },
                         use = { "a first tensor", NULL, open_and_use, NULL, "cpu", true };
    fault_all_kinds(&one, (fault_world){ .opens = true });
    fault_all_kinds(&use, (fault_world){ .opens = true });
}

/* ---- every op ---- */

static void fail_op(const tn_op_def *op, const tn_sample *sample, bool all) {
    fault_scenario s = { op->name, fault_make_inputs, fault_forward_and_backward, NULL, sample->name, false };
    fault_world start = { .op = op, .sample = sample, .dtype = fault_dtype_for("cpu", op, sample, TN_F32) };
    if (all) fault_everywhere(&s, start, FAULT_HOST, false);
    fault_everywhere(&s, start, FAULT_HOST, true);
    if (all) fault_everywhere(&s, start, FAULT_DEVICE, false);
    fault_everywhere(&s, start, FAULT_DEVICE, true);
    if (all) fault_everywhere(&s, start, FAULT_SEGMENT, true);
}

static void every_op(void **state) {
    (void)state;
    fault_for_each_op(fail_op);
}

/* ---- training ---- */

static bool build_model(fault_world *w) {
    fault_make_model(w);
    return fault_train_step(w);
}

static void training(void **state) {
    (void)state;
    const fault_scenario step = { "a training step", fault_make_model, fault_train_step, fault_step_again, NULL, true };
    const fault_scenario build = { "making a model", NULL, build_model, NULL, NULL, true };
    const fault_scenario again = { "a training step", fault_make_model, fault_train_step, fault_step_again, "with recompute", true };
    fault_all_kinds(&step, (fault_world){ .opens = false });
    fault_all_kinds(&again, (fault_world){ .opens = false });
    fault_everywhere(&build, (fault_world){ .opens = false }, FAULT_HOST, false);
    fault_everywhere(&build, (fault_world){ .opens = false }, FAULT_DEVICE, false);
}

static bool predict(fault_world *w) {
    tn_memory_stats stats;
    w->reason = w->reason_text;
    *w->reason_text = '\0';
    bool step(tn_context * cx, void *user);
    return tn_predict_memory(&(tn_options){ .device = "cpu", .threads = 1 }, step, w, &stats, w->reason_text, sizeof w->reason_text);
}
bool step(tn_context *cx, void *user) {
    (void)user;
    fault_world w = { .cx = cx };
    fault_make_model(&w);
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *loss = tn_mean(tn_linear(tn_randn(cx, TN_F32, TN_SHAPE(6, 4)), w.weight, NULL));
    tn_backward(loss);
    tn_adamw_step(w.opt);
    tn_scope_end(scope);
    return !tn_failed(cx);
}

static void predicting(void **state) {
    (void)state;
    const fault_scenario s = { "tn_predict_memory", NULL, predict, NULL, NULL, false };
    fault_all_kinds(&s, (fault_world){ .opens = false });
}

/* ---- what is left ---- */

static bool cache_and_attend(fault_world *w) {
    const tn_attention_cache_shape shape = { .batch = 2, .capacity = 5, .heads = 2, .key_width = 4, .value_width = 3 };
    tn_attention_cache *cache = tn_attention_cache_new(w->cx, TN_F32, shape);
    tn_tensor *k = tn_randn(w->cx, TN_F32, TN_SHAPE(2, 3, 2, 4)), *v = tn_randn(w->cx, TN_F32, TN_SHAPE(2, 3, 2, 3));
    bool done = tn_attention_cache_append(cache, NULL, k, NULL, v) && tn_attention_cache_cut(cache, 0, 2) &&
                tn_attention_cache_attend(cache, NULL, tn_randn(w->cx, TN_F32, TN_SHAPE(2, 1, 2, 4)), TN_TPA_ATTENTION(.causal = true));
    tn_attention_cache_free(cache);
    return done;
}

static bool give_and_take(fault_world *w) {
    tn_dl_managed *managed = tn_to_dlpack(tn_full(w->cx, TN_F32, TN_SHAPE(3), 1));
    tn_tensor *back = managed ? tn_from_dlpack(w->cx, managed) : NULL;
    if (managed && !back) managed->deleter(managed);
    return back != NULL;
}

static bool check_a_gradient(fault_world *w) {
    tn_gradcheck_result result;
    const tn_op_def *op = tn_op_find("mul");
    return tn_sample_gradcheck(w->cx, op, op->samples, TN_GRADCHECK(.seed = 1), &result);
}

static bool set_attrs(fault_world *w) {
    const tn_op_def *op = tn_op_find("linear_attention");
    w->reason = w->reason_text;
    *w->reason_text = '\0';
    return tn_op_set_attrs_json(op, &w->args, "{\"causal\": true}", w->reason_text, sizeof w->reason_text);
}

static void rest(void **state) {
    (void)state;
    const fault_scenario all[] = {
        { "attention cache", NULL, cache_and_attend, NULL, NULL, false },
        { "dlpack", NULL, give_and_take, NULL, NULL, false },
        { "gradcheck", NULL, check_a_gradient, NULL, NULL, false },
        { "attributes", NULL, set_attrs, NULL, NULL, false },
    };
    for (int64_t i = 0; i < COUNT(all); i++) fault_all_kinds(&all[i], (fault_world){ .opens = false });
}

#define CASE(function) \
    { #function, function, NULL, NULL, NULL }

static const struct CMUnitTest cases[] = { CASE(opening), CASE(every_op), CASE(training), CASE(predicting), CASE(rest) };

int main(int argc, char **argv) { return fault_main("test_faults", cases, sizeof cases / sizeof *cases, argc, argv); }
