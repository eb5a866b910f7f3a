/* tenon-bench: speed and memory of every op, beside the least bytes it must move and, through bench/peers, beside others. */
#include <errno.h>
#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench_document.h"
#include "bench_session.h"

/* A file that is written whole or not at all: beside its place, then put there. What is no plain file, such as a pipe or a link, is written
 * as it is. */
typedef struct output {
    const char *path; /* NULL: it was not asked for */
    char *temporary;  /* NULL: the path itself */
    FILE *file;
} output;

typedef struct request {
    bench_session session;
    const tn_cli *cli;
    const char *n_list, *csv_path, *verify_path, *peers_folder;
    output json, html;
    tn_cli_texts stored;
    tn_dtype dtype;
    bool has_dtype, list, with_peers;
    bench_choice *choices; /* those chosen */
    int n_choices;
} request;

static const char usage[] = "tenon-bench --list | [TABLE-GLOB...] [--device D] [--dtype T] [--n LIST | --largest] [--quick] [--minutes M] "
                            "[--peers] [--csv F] [--json F] [--html F]\n"
                            "tenon-bench --stored RUN.json... [--json F] [--html F]\n"
                            "tenon-bench --verify RUN.json [TABLE-GLOB...] [--device D] [--quick] [--minutes M]";
static const char doc[] =
    "Measures the tables named (* and ? stand for other characters; all of them where none is named): device time in ms with cold\n"
    "caches, peak memory in MiB, the host's own time in ns. Every column is first compared with the CPU's f64 result. Printed are\n"
    "medians, the floor (bytes a pass must move, at the speed of a plain copy measured in the same run), the share of it reached\n"
    "or TFLOP/s, and the 20th and 80th percentile. '-': the device has no kernel for it, oom: too little memory, WRONG: not timed.";

/* ---- the request ---- */

#define MOST_ROWS (1LL << 40) /* far beyond any memory: what is added and multiplied on the way to a shape stays a number */

static bool read_n_list(request *r) {
    bench_session *s = &r->session;
    for (const char *at = r->n_list; at;) {
        char *end;
        errno = 0;
        int64_t n = strtoll(at, &end, 10);
        if (end == at || (*end && *end != ',') || n <= 0 || n > MOST_ROWS || errno || s->n_count == BENCH_MAX_ROWS)
            return tn_cli_refuse(r->cli, "--n wants up to %d whole numbers from 1 to %lld with commas between, got '%s'", BENCH_MAX_ROWS,
                                 MOST_ROWS, r->n_list) < 0;
        for (int i = 0; i < s->n_count; i++)
            if (s->n[i] == n) return tn_cli_refuse(r->cli, "--n names %lld twice", (long long)n) < 0;
        s->n[s->n_count++] = n;
        at = *end ? end + 1 : NULL;
    }
    return true;
}

static bool wanted(const char *name, char *const *globs, int n_globs) {
    for (int i = 0; i < n_globs; i++)
        if (fnmatch(globs[i], name, 0) == 0) return true;
    return n_globs == 0;
}

/* Keeps the tables that a glob names; a glob must name one. */
static bool choose(request *r, char *const *globs, int n_globs) {
    int n_all = r->n_choices;
    for (int g = 0; g < n_globs; g++) {
        bool any = false;
        for (int i = 0; i < n_all; i++) any = any || fnmatch(globs[g], r->choices[i].name, 0) == 0;
        if (!any) return tn_cli_refuse(r->cli, "there is no table '%s'; --list shows them", globs[g]) < 0;
    }
    r->n_choices = 0;
    for (int i = 0; i < n_all; i++)
        if (wanted(r->choices[i].name, globs, n_globs)) r->choices[r->n_choices++] = r->choices[i];
    return true;
}

static bool same_file(const char *a, const char *b) { return a && b && strcmp(a, b) == 0; }

/* Options that would be ignored are refused. */
static bool options_agree(const request *r) {
    const bench_session *s = &r->session;
    const char *why = NULL;
    if (s->n_count && s->largest) why = "--n and --largest exclude each other";
    else if (!(s->minutes > 0)) why = "--minutes wants a number above 0";
    else if (same_file(r->json.path, r->html.path) || same_file(r->json.path, r->csv_path) || same_file(r->html.path, r->csv_path))
        why = "--csv, --json and --html want a file each";
    else if (r->verify_path && (r->json.path || r->html.path || r->csv_path)) why = "--verify writes no file";
    else if (r->verify_path && (s->n_count || s->largest || r->with_peers)) why = "--verify runs the stored rows, alone";
    else if (r->stored.n && (r->csv_path || s->n_count || s->largest || s->quick || r->with_peers))
        why = "--stored measures nothing: it takes --json and --html alone";
    return !why || tn_cli_refuse(r->cli, "%s", why) < 0;
}

/* ---- files ---- */

static bool refuse_path(const request *r, const char *path) {
    return tn_cli_refuse(r->cli, "%s can't be written: %s", path, strerror(errno)) < 0;
}

static bool begin_output(const request *r, output *o) {
    static const char ending[] = ".part";
    struct stat there;
    if (!o->path) return true;
    if (lstat(o->path, &there) != 0 || S_ISREG(there.st_mode)) {
        size_t n = strlen(o->path);
        o->temporary = malloc(n + sizeof ending);
        if (!o->temporary) return refuse_path(r, o->path);
        memcpy(o->temporary, o->path, n);
        memcpy(o->temporary + n, ending, sizeof ending);
    }
    o->file = fopen(o->temporary ? o->temporary : o->path, "w");
    return o->file || refuse_path(r, o->path);
}

/* Puts a file in its place where it is `whole`, else leaves what is there alone. False where it could not be written. */
static bool end_output(const request *r, output *o, bool whole) {
    bool fine = !o->file || (!ferror(o->file) & (fclose(o->file) == 0));
    if (o->file && o->temporary) {
        fine = fine && (!whole || rename(o->temporary, o->path) == 0);
        if (!fine || !whole) remove(o->temporary);
    }
    if (!fine) refuse_path(r, o->path);
    free(o->temporary);
    *o = (output){ .path = o->path };
    return fine;
}

static bool open_csv(request *r) {
    if (!r->csv_path) return true;
    r->session.csv = fopen(r->csv_path, "w");
    return r->session.csv || refuse_path(r, r->csv_path);
}

static bool close_csv(request *r) {
    FILE *csv = r->session.csv;
    bool fine = !csv || (!ferror(csv) & (fclose(csv) == 0));
    r->session.csv = NULL;
    return fine || refuse_path(r, r->csv_path);
}

/* ---- what is done ---- */

static bool write_document(request *r, const json_t *document) {
    if (r->html.file) bench_html_write(document, r->html.file);
    bool fine = !r->json.file || bench_document_write(document, r->json.file);
    return end_output(r, &r->html, true) & end_output(r, &r->json, fine) & fine;
}

static int measure(request *r) {
    bench_session *s = &r->session;
    if (r->with_peers) s->peers_folder = r->peers_folder;
    int code = bench_session_open(s) ? TN_CLI_FAILED : TN_CLI_USAGE;
    if (code == TN_CLI_FAILED && open_csv(r)) {
        bool fine = bench_session_run(s, r->choices, r->n_choices) & close_csv(r);
        json_t *document = bench_document_of(&s->run, s->tables, s->n_tables, s->peers ? bench_peers_about(s->peers) : NULL);
        fine = write_document(r, document) && fine && !s->n_wrong;
        json_decref(document);
        if (s->n_wrong) tn_cli_refuse(r->cli, "%d results were wrong or failed", s->n_wrong);
        code = fine ? TN_CLI_OK : TN_CLI_FAILED;
    }
    bench_session_close(s);
    return code;
}

/* Several stored runs become one document: a table comes from the newest run that has it. */
static int show_stored(request *r) {
    char why[512];
    json_t *document = bench_document_read(r->stored.text[0], why, sizeof why);
    bool fine = document != NULL;
    for (int i = 1; fine && i < r->stored.n; i++) {
        json_t *more = bench_document_read(r->stored.text[i], why, sizeof why);
        fine = more && bench_document_add(document, more, why, sizeof why);
        json_decref(more);
    }
    int n_order = 0, code = fine ? TN_CLI_OK : tn_cli_refuse(r->cli, "--stored: %s", why);
    bench_choice *order = bench_list_tables(NULL, &n_order);
    if (fine && order) bench_document_settle(document, order, n_order);
    free(order);
    if (fine && !write_document(r, document)) code = TN_CLI_FAILED;
    json_decref(document);
    return code;
}

static int verify(request *r) {
    bench_session *s = &r->session;
    char why[512];
    json_t *stored = bench_document_read(r->verify_path, why, sizeof why);
    if (!stored) return tn_cli_refuse(r->cli, "--verify: %s", why);
    int code = TN_CLI_USAGE;
    bool any = false;
    for (int i = 0; i < r->n_choices; i++) any = any || bench_document_table(stored, r->choices[i].name);
    if (!any) {
        tn_cli_refuse(r->cli, "--verify: %s has none of the tables", r->verify_path);
    } else if (bench_session_open(s)) {
        const char *device = json_string_value(json_object_get(json_object_get(stored, "machine"), "device"));
        if (device && strcmp(device, s->run.machine.device) != 0)
            fprintf(stderr, "%s: %s was measured on %s\n", r->cli->program, r->verify_path, device);
        int n_moved = bench_session_verify(s, stored, r->choices, r->n_choices);
        if (n_moved == BENCH_NOTHING_STORED) tn_cli_refuse(r->cli, "--verify: %s has none of the rows", r->verify_path);
        code = n_moved == BENCH_NOTHING_STORED ? TN_CLI_USAGE : n_moved || s->n_wrong ? TN_CLI_FAILED : TN_CLI_OK;
    }
    bench_session_close(s);
    json_decref(stored);
    return code;
}

static void list_tables(const request *r) {
    for (int i = 0; i < r->n_choices; i++) printf("%s\n", r->choices[i].name);
}

static int act(request *r) {
    int code = TN_CLI_FAILED;
    if (begin_output(r, &r->json) && begin_output(r, &r->html))
        code = r->verify_path ? verify(r) : r->stored.n ? show_stored(r) : measure(r);
    end_output(r, &r->json, false);
    end_output(r, &r->html, false);
    return code;
}

static int answer(request *r, char *const *globs, int n_globs) {
    if (!read_n_list(r) || !options_agree(r)) return TN_CLI_USAGE;
    if (r->stored.n && (n_globs || r->verify_path))
        return tn_cli_refuse(r->cli, "--stored measures nothing: it takes no tables and no --verify");
    r->choices = bench_list_tables(r->has_dtype ? &r->dtype : NULL, &r->n_choices);
    if (!r->choices) return TN_CLI_FAILED;
    if (!choose(r, globs, n_globs)) return TN_CLI_USAGE;
    if (!r->list) return act(r);
    list_tables(r);
    return TN_CLI_OK;
}

int main(int argc, char **argv) {
    static const char *const dtypes[] = { "listed", "f64", "f32", "bf16", NULL };
    int dtype = 0, n_globs, code;
    const char *folder = getenv("TENON_BENCH_PEERS");
    request r = { .session.device = "auto", .session.minutes = INFINITY, .peers_folder = folder ? folder : BENCH_PEERS_FOLDER };
    const tn_cli_option options[] = {
        { "list", TN_CLI_FLAG, &r.list, .doc = "name the tables and end" },
        { "device", TN_CLI_TEXT, &r.session.device, .argument = "cpu|cuda|auto",
          .doc = "what to measure (auto: the first usable GPU, else the CPU, with smaller n)" },
        { "dtype", TN_CLI_CHOICE, &dtype, .choices = dtypes, .doc = "every table in this dtype instead of those --list shows" },
        { "n", TN_CLI_TEXT, &r.n_list, .argument = "LIST", .doc = "rows to run instead of the tables' own: 256,1024" },
        { "largest", TN_CLI_FLAG, &r.session.largest, .doc = "only the last, largest row of each table" },
        { "quick", TN_CLI_FLAG, &r.session.quick, .doc = "fewer rows and repeats" },
        { "minutes", TN_CLI_NUMBER, &r.session.minutes, .argument = "M",
          .doc = "begin nothing after so many: what was measured is written" },
        { "peers", TN_CLI_FLAG, &r.with_peers, .doc = "the same tables with PyTorch and flash-linear-attention, in turns, and ratios" },
        { "peers-folder", TN_CLI_TEXT, &r.peers_folder, .argument = "FOLDER",
          .doc = "where serve.py is (default: TENON_BENCH_PEERS, or the sources)" },
        { "csv", TN_CLI_TEXT, &r.csv_path, .argument = "FILE", .doc = "also write every row there, table by table" },
        { "json", TN_CLI_TEXT, &r.json.path, .argument = "FILE",
          .doc = "also write everything there at the end: machine, commit, method, rows" },
        { "html", TN_CLI_TEXT, &r.html.path, .argument = "FILE", .doc = "also write a page with plots there at the end" },
        { "stored", TN_CLI_TEXTS, &r.stored, .argument = "FILE",
          .doc = "measure nothing: put stored runs on one machine together and write them as --json and --html say" },
        { "verify", TN_CLI_TEXT, &r.verify_path, .argument = "FILE",
          .doc = "measure a stored run's rows again and print those whose median moved by more than their spread" },
        { .name = NULL },
    };
    const tn_cli cli = { .program = "tenon-bench", .usage = usage, .doc = doc, .options = options };
    if (!tn_cli_parse(&cli, argc, argv, &n_globs, &code)) return code;
    r.cli = r.session.cli = &cli;
    r.has_dtype = dtype > 0 && tn_dtype_parse(dtypes[dtype], &r.dtype);
    code = answer(&r, argv, n_globs);
    free(r.choices);
    return tn_cli_finish(&cli, code);
}
