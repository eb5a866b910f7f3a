/* Whatever is read from and written to files, with every allocation and every file call failing: what was on the disk stays whole. */
#include "fault_loop.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "examples/data_source.h"
#include "libtensor/memory_export.h"
#include "libtensor/npy.h"
#include "libtensor/safetensors.h"

/* ---- tensors and models ---- */

static void want_no_litter(const fault_world *w) {
    TN_TEST_WANT(fault_entries_of(fault_folder) == w->n_files || strcmp(fault_last(), "unlink") == 0 || strcmp(fault_last(), "rmdir") == 0,
                 "%lld files are left behind", (long long)(fault_entries_of(fault_folder) - w->n_files));
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *at) {
    (void)info, (void)kind;
    return at->level == 0 ? 0 : remove(path);
}

static void remove_file(void) {
    TN_TEST_WANT(nftw(fault_folder, remove_one, 8, FTW_DEPTH | FTW_PHYS) == 0, "%s can't be emptied", fault_folder);
}

static bool write_tensors(fault_world *w, float value) {
    tn_tensor *t = tn_full(w->cx, TN_F32, TN_SHAPE(3, 5), (double)value), *turned = tn_permute(t, TN_DIMS(1, 0));
    if (strcmp(w->kind, "npy") == 0) return tn_npy_save(turned, w->path);
    const tn_named_tensor tensors[] = { { "b", turned }, { "a", t } };
    const tn_named_text texts[] = { { "op", "none" }, { "attrs", "{}" } };
    return tn_file_save(w->cx, w->path, tensors, 2, texts, 2);
}

static tn_tensor *read_tensors(fault_world *w) {
    if (strcmp(w->kind, "npy") == 0) return tn_npy_load(w->cx, w->path);
    tn_file *file = tn_file_open(w->cx, w->path);
    tn_tensor *t = tn_file_load(file, "b");
    if (file && !tn_file_metadata(file, "op")) t = NULL;
    tn_file_close(file);
    return t;
}

static void old_file(fault_world *w) {
    remove_file();
    tn_scope *scope = tn_scope_begin(w->cx);
    write_tensors(w, 1);
    tn_scope_end(scope);
}

static bool overwrite(fault_world *w) { return write_tensors(w, 2); }

/* The old file or the new one, whole; the new one if that was said. */
static void whole_file(fault_world *w, bool done) {
    tn_scope *scope = tn_scope_begin(w->cx);
    tn_tensor *t = read_tensors(w);
    tn_test_ok(w->cx);
    double *values = tn_test_doubles(t);
    for (int64_t i = 0; i < t->numel; i++)
        TN_TEST_WANT(values[i] == values[0] && (values[0] == 2 || (!done && values[0] == 1)), "the file holds %g", values[i]);
    free(values);
    tn_scope_end(scope);
    want_no_litter(w);
    old_file(w);
}

static bool read_file(fault_world *w) {
    float values[15];
    return tn_to_data(read_tensors(w), values, sizeof values);
}

static void tensor_files(void **state) {
    (void)state;
    static const char *const kinds[] = { "safetensors", "npy" };
    for (int i = 0; i < 2; i++) {
        const fault_scenario save = { "saving", old_file, overwrite, whole_file, kinds[i], false };
        const fault_scenario load = { "loading", old_file, read_file, NULL, kinds[i], false };
        fault_all_kinds(&save, (fault_world){ .opens = false });
        fault_all_kinds(&load, (fault_world){ .opens = false });
    }
}

static void model_on_disk(fault_world *w) {
    remove_file();
    fault_make_model(w);
    tn_scope *scope = tn_scope_begin(w->cx);
    TN_TEST_WANT(fault_train_step(w), "%s", tn_error(w->cx));
    TN_TEST_WANT(tn_params_save(w->params, w->path), "%s", tn_error(w->cx));
    tn_scope_end(scope);
    tn_fill(w->weight, 3);
}

static bool load_params(fault_world *w) { return tn_params_load(w->params, w->path); }
/* All of them or none. */
static void loaded_whole(fault_world *w, bool done) {
    double *values = tn_test_doubles(w->weight);
    int64_t n_old = 0;
    for (int64_t i = 0; i < w->weight->numel; i++) n_old += values[i] == 3;
    free(values);
    TN_TEST_WANT(done ? n_old == 0 : n_old == 0 || n_old == w->weight->numel, "%lld values of a parameter are old", (long long)n_old);
    tn_fill(w->weight, 3);
}

static void parameters(void **state) {
    (void)state;
    const fault_scenario load = { "loading parameters", model_on_disk, load_params, loaded_whole, NULL, false };
    fault_all_kinds(&load, (fault_world){ .opens = false });
}

static bool save_checkpoint(fault_world *w) {
    return run_checkpoint_save(w->cx, &(run_checkpoint_args){ .folder = w->path,
                                                              .params = w->params,
                                                              .optimizer = w->opt,
                                                              .vocabulary = w->vocabulary,
                                                              .state = &w->state,
                                                              .keep = 1,
                                                              .best = strcmp(w->kind, "best") == 0 });
}

static void checkpoint_on_disk(fault_world *w) {
    remove_file();
    if (!w->params) {
        fault_make_model(w);
        tn_scope *scope = tn_scope_begin(w->cx);
        TN_TEST_WANT(fault_train_step(w), "%s", tn_error(w->cx));
        tn_scope_end(scope);
        w->vocabulary = tn_vocabulary_characters(w->cx, "a z\xc3\xa4\n", 6);
        w->state = (run_checkpoint_state){ .best_loss = NAN, .config = json_pack("{s:s, s:i}", "model", "linear", "layers", 4) };
    }
    w->state.step = 1;
    TN_TEST_WANT(save_checkpoint(w), "%s", tn_error(w->cx));
    w->state.step = 2;
}

static void whole_checkpoint(fault_world *w, bool done) {
    char best[200];
    snprintf(best, sizeof best, "%s/best", w->path);
    run_checkpoint *checkpoint = run_checkpoint_open(w->cx, strcmp(w->kind, "best") == 0 ? best : w->path);
    tn_test_ok(w->cx);
    int64_t step_there = run_checkpoint_state_of(checkpoint)->step;
    TN_TEST_WANT(step_there == 2 || (!done && step_there == 1), "the checkpoint of step %lld is there", (long long)step_there);
    TN_TEST_WANT(run_checkpoint_load(checkpoint, w->params, w->opt), "%s", tn_error(w->cx));
    run_checkpoint_close(checkpoint);
    checkpoint_on_disk(w);
}

static bool load_checkpoint(fault_world *w) {
    run_checkpoint *checkpoint = run_checkpoint_open(w->cx, w->path);
    bool done = run_checkpoint_load(checkpoint, w->params, w->opt) && run_checkpoint_restore_random(checkpoint, w->cx);
    run_checkpoint_close(checkpoint);
    return done;
}

static void checkpoints(void **state) {
    (void)state;
    static const char *const kinds[] = { "step", "best" };
    for (int i = 0; i < 2; i++) {
        const fault_scenario save = { "saving a checkpoint", checkpoint_on_disk, save_checkpoint, whole_checkpoint, kinds[i], false };
        fault_all_kinds(&save, (fault_world){ .opens = false });
    }
    const fault_scenario load = { "loading a checkpoint", checkpoint_on_disk, load_checkpoint, NULL, "step", false };
    fault_all_kinds(&load, (fault_world){ .opens = false });
}

/* ---- data ---- */

static void write_bytes(const char *path, const void *bytes, size_t n_bytes) {
    FILE *stream = fopen(path, "wb");
    TN_TEST_WANT(stream && fwrite(bytes, 1, n_bytes, stream) == n_bytes && fclose(stream) == 0, "can't write %s", path);
}

/* Two shards of llm.c's, or a text. */
static void data_on_disk(fault_world *w) {
    static const char text[] = "the h\xc3\xa4re ran, the t\xc3\xb6rtoise walked; the rest is history\n";
    char name[200];
    remove_file();
    write_bytes(w->path, text, sizeof text - 1);
    for (int shard = 0; shard < 2; shard++) {
        int32_t header[256] = { 20240520, 1, 40 };
        unsigned char file[1024 + 80] = { 0 };
        memcpy(file, header, sizeof header);
        for (int i = 0; i < 40; i++) file[1024 + 2 * i] = (unsigned char)(i + shard);
        snprintf(name, sizeof name, "%s/shard%d.bin", fault_folder, shard);
        write_bytes(name, file, sizeof file);
    }
}

static bool read_data(fault_world *w) {
    char pattern[200];
    int64_t ids[16], targets[16];
    bool shards = strcmp(w->kind, "shards") == 0, shapes = strcmp(w->kind, "shapes") == 0;
    float *patches = NULL;
    snprintf(pattern, sizeof pattern, "%s/shard*.bin", fault_folder);
    tn_data_kind kind = TN_DATA_AUTO;
    if (!shards && !tn_data_kind_parse(w->kind, &kind)) return false;
    bool is_text = kind == TN_DATA_CHAR || kind == TN_DATA_BYTE;
    tn_data_options options = { .kind = kind, .path = shards ? pattern : is_text ? w->path : NULL, .seed = 3 };
    if (kind == TN_DATA_RECALL) options.task = (tn_data_task){ .vocab = 64, .length = 16, .pairs = 3 };
    tn_data *data = tn_data_open(w->cx, &options);
    bool done = data != NULL;
    if (shapes && done) {
        tn_data_info info = tn_data_info_of(data);
        static float room[64 * 1024];
        patches = room;
        TN_TEST_WANT(info.grid_rows * info.grid_columns * info.n_features * 2 <= COUNT(room), "images are larger than the test's room");
        done = tn_data_images(data, &(tn_data_draw){ .n_rows = 2 }, patches, targets);
    } else if (done) {
        int64_t length = tn_data_info_of(data).length;
        done = length > 16 || tn_data_rows(data, &(tn_data_draw){ .n_rows = 1, .length = length ? length : 8 }, ids, targets);
    }
    tn_data_close(data);
    return done;
}

static void data(void **state) {
    (void)state;
    static const char *const kinds[] = { "char", "byte", "shards", "recall", "shapes" };
    for (int64_t i = 0; i < COUNT(kinds); i++) {
        const fault_scenario s = { "reading data", data_on_disk, read_data, NULL, kinds[i], false };
        fault_all_kinds(&s, (fault_world){ .opens = false });
    }
}

/* nanoGPT's pickle and llm.c's tokenizer, and a text encoded by them. */
static void vocabulary_on_disk(fault_world *w) {
    static const char pickle[] = "\x80\x04}q\x00(\x8c\nvocab_sizeK\x02\x8c\x04itos}q\x01(K\x00\x8c\x01"
                                 "aK\x01\x8c\x01"
                                 "bu\x8c\x04stoi}q\x02(\x8c\x01"
                                 "aK\x00\x8c\x01"
                                 "bK\x01uu.";
    remove_file();
    if (strcmp(w->kind, "nanogpt") == 0) {
        write_bytes(w->path, pickle, sizeof pickle - 1);
        return;
    }
    unsigned char file[1024 + 256 * 2 + 4] = { 0 };
    int32_t header[256] = { 20240328, 2, 257, 256 };
    memcpy(file, header, sizeof header);
    for (int i = 0; i < 256; i++) file[1024 + 2 * i] = 1, file[1025 + 2 * i] = (unsigned char)i;
    memcpy(file + 1024 + 512, (unsigned char[]){ 2, 'a', 'b' }, 3);
    write_bytes(w->path, file, 1024 + 512 + 3);
}

static bool read_vocabulary(fault_world *w) {
    int64_t *ids = NULL;
    bool nanogpt = strcmp(w->kind, "nanogpt") == 0;
    tn_vocabulary *v = nanogpt ? tn_vocabulary_nanogpt(w->cx, w->path) : tn_vocabulary_tokenizer(w->cx, w->path);
    int64_t n = v ? tn_vocabulary_encode(w->cx, v, "abba", 4, &ids) : -1;
    bool done = n > 0;
    free(ids);
    json_t *json = done ? tn_vocabulary_json(v) : NULL;
    tn_vocabulary *again = json ? tn_vocabulary_from_json(w->cx, json, "json") : NULL;
    if (done && !json) tn_fail(w->cx, TN_ERR_HOST_MEMORY, "json", "no host memory for the vocabulary's JSON");
    done = again != NULL;
    json_decref(json);
    tn_vocabulary_free(again);
    tn_vocabulary_free(v);
    return done;
}

static void vocabularies(void **state) {
    (void)state;
    static const char *const kinds[] = { "nanogpt", "tokenizer" };
    for (int64_t i = 0; i < COUNT(kinds); i++) {
        const fault_scenario s = { "reading a vocabulary", vocabulary_on_disk, read_vocabulary, NULL, kinds[i], false };
        fault_all_kinds(&s, (fault_world){ .opens = false });
    }
}

/* ---- reports ---- */

static void some_history(fault_world *w) {
    remove_file();
    fault_make_model(w);
    tn_scope *scope = tn_scope_begin(w->cx);
    tn_label_push(w->cx, "layer \"1\"");
    TN_TEST_WANT(fault_train_step(w), "%s", tn_error(w->cx));
    tn_label_pop(w->cx);
    tn_scope_end(scope);
}

static bool export_memory(fault_world *w) {
    if (strcmp(w->kind, "page") == 0) return tn_memory_write_page(w->cx, w->path);
    if (strcmp(w->kind, "snapshot") == 0) return tn_memory_write_snapshot(w->cx, w->path);
    if (strcmp(w->kind, "trace") == 0) return tn_memory_write_trace(w->cx, w->path);
    return tn_memory_write_csv(w->cx, w->path);
}

static void exported_or_not(fault_world *w, bool done) {
    struct stat info;
    TN_TEST_WANT(!done || (stat(w->path, &info) == 0 && info.st_size > 0), "no file");
    remove_file();
}

static void memory_files(void **state) {
    (void)state;
    static const char *const kinds[] = { "page", "snapshot", "trace", "csv" };
    for (int64_t i = 0; i < COUNT(kinds); i++) {
        const fault_scenario s = { "exporting memory", some_history, export_memory, exported_or_not, kinds[i], false };
        fault_all_kinds(&s, (fault_world){ .opens = false });
    }
}

#define CASE(function) \
    { #function, function, NULL, NULL, NULL }

static const struct CMUnitTest cases[] = { CASE(tensor_files), CASE(parameters),   CASE(checkpoints),
                                           CASE(data),         CASE(vocabularies), CASE(memory_files) };

int main(int argc, char **argv) { return fault_main("test_file_faults", cases, sizeof cases / sizeof *cases, argc, argv); }
