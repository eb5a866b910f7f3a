/* tenon-bench: speed and memory of every op, beside the least bytes it must move and, through bench/peers, beside others. */
#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_report.h"
#include "examples/cli.h"

typedef struct request {
    const tn_cli *cli;
    const char *device, *n_list, *csv_path, *json_path;
    tn_dtype dtype;
    bool has_dtype, list, quick, largest;
    FILE *csv, *json;

    int64_t n[BENCH_MAX_ROWS]; /* --n */
    int n_count;
    bench_choice *choices; /* those chosen */
    int n_choices;
    bench_rows *tables;
    int n_tables, n_wrong;
} request;

static const char usage[] =
    "tenon-bench --list | [TABLE-GLOB...] [--device D] [--dtype T] [--n LIST | --largest] [--csv F] [--json F] [--quick]";
static const char doc[] =
    "Measures the tables named (* and ? stand for other characters; all of them where none is named): device time in ms with cold\n"
    "caches, peak memory in MiB, the host's own time in ns. Every column is first compared with the CPU's f64 result. Printed are\n"
    "medians, the floor (bytes a pass must move, at the speed of a plain copy measured in the same run), the share of it reached\n"
    "or TFLOP/s, and the 20th and 80th percentile. '-': the device has no kernel for it, oom: too little memory, WRONG: not timed.";

/* ---- the request ---- */

static bool read_n_list(request *r) {
    for (const char *at = r->n_list; at;) {
        char *end;
        errno = 0;
        int64_t n = strtoll(at, &end, 10);
        if (end == at || (*end && *end != ',') || n <= 0 || errno || r->n_count == BENCH_MAX_ROWS)
            return tn_cli_refuse(r->cli, "--n wants up to %d whole numbers above 0 with commas between, got '%s'", BENCH_MAX_ROWS,
                                 r->n_list) < 0;
        r->n[r->n_count++] = n;
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

static bool open_file(const request *r, const char *path, FILE **file) {
    if (!path) return true;
    *file = fopen(path, "w");
    return *file || tn_cli_refuse(r->cli, "%s can't be written: %s", path, strerror(errno)) < 0;
}

/* ---- running ---- */

static void choose_rows(const request *r, const bench_run *run, bench_rows *rows) {
    const bench_table *table = rows->choice.table;
    const int64_t *own = strcmp(tn_device_name(run->cx), "cuda") == 0 ? table->rows : table->cpu_rows;
    int n_own = 0;
    while (n_own < BENCH_MAX_ROWS && own[n_own]) n_own++;
    if (r->n_count) {
        rows->n_rows = r->n_count;
        memcpy(rows->n, r->n, sizeof rows->n);
    } else if (r->largest && n_own > 0) {
        rows->n[rows->n_rows++] = own[n_own - 1];
    } else if (run->quick && n_own > 2) { /* the smallest and one from the middle */
        rows->n[rows->n_rows++] = own[0];
        rows->n[rows->n_rows++] = own[n_own / 2];
    } else {
        rows->n_rows = n_own;
        memcpy(rows->n, own, (size_t)n_own * sizeof *own);
    }
}

static void say_progress(const char *name, int64_t n, const char *column) {
    if (!isatty(STDERR_FILENO)) return;
    if (name) fprintf(stderr, "\r\033[K%s  n %" PRId64 "  %s", name, n, column);
    else fprintf(stderr, "\r\033[K");
    fflush(stderr);
}

/* A column that can't be had on this device or does not fit it is no failure of the run; a wrong one is. */
static void tell(request *r, const bench_rows *rows, int row, int column, const bench_result *result) {
    if (result->status == BENCH_OK) return;
    if (result->status == BENCH_WRONG || result->status == BENCH_FAILED) r->n_wrong++;
    say_progress(NULL, 0, NULL);
    fprintf(stderr, "%s: %s, n %" PRId64 ", %s: %s: %s\n", r->cli->program, rows->choice.name, rows->n[row], rows->columns[column]->name,
            bench_status_name(result->status), result->note);
}

static bool run_table(request *r, bench_run *run, const bench_choice *choice) {
    bench_rows *rows = &r->tables[r->n_tables];
    *rows = (bench_rows){ .choice = *choice };
    rows->n_columns = bench_columns_of(choice->table, choice->kind, rows->columns);
    choose_rows(r, run, rows);
    rows->results = calloc((size_t)(rows->n_rows * rows->n_columns) + 1, sizeof *rows->results);
    if (!rows->results) return false;
    r->n_tables++;
    bench_begin_table(run);
    for (int row = 0; row < rows->n_rows; row++)
        for (int c = 0; c < rows->n_columns; c++) {
            bench_cell cell = { choice->table, rows->columns[c], choice->kind, choice->dtype, rows->n[row] };
            bench_result *result = &rows->results[row * rows->n_columns + c];
            say_progress(choice->name, cell.n, cell.column->name);
            bench_measure_cell(run, &cell, result);
            tell(r, rows, row, c, result);
        }
    say_progress(NULL, 0, NULL);
    bench_print_rows(stdout, rows);
    if (r->csv) bench_csv_rows(r->csv, rows);
    return true;
}

static int run_tables(request *r) {
    bench_run run;
    const char *error;
    if (!bench_run_open(&run, r->device, r->quick, &error)) {
        tn_cli_refuse(r->cli, "--device: %s", error);
        bench_run_close(&run);
        return TN_CLI_USAGE;
    }
    bool fine = true;
    r->tables = calloc((size_t)r->n_choices + 1, sizeof *r->tables);
    bench_print_heading(stdout, &run);
    if (r->csv) bench_csv_heading(r->csv);
    for (int i = 0; fine && r->tables && i < r->n_choices; i++) fine = run_table(r, &run, &r->choices[i]);
    if (fine && r->json && !bench_json_write(r->json, &run, r->tables, r->n_tables)) {
        fine = false;
        tn_cli_refuse(r->cli, "%s can't be written", r->json_path);
    }
    fine = fine && r->tables && !r->n_wrong;
    for (int i = 0; i < r->n_tables; i++) free(r->tables[i].results);
    free(r->tables);
    bench_run_close(&run);
    if (r->n_wrong) tn_cli_refuse(r->cli, "%d results were wrong or failed", r->n_wrong);
    return fine ? TN_CLI_OK : TN_CLI_FAILED;
}

static void list_tables(const request *r) {
    for (int i = 0; i < r->n_choices; i++) printf("%s\n", r->choices[i].name);
}

static int answer(request *r, char *const *globs, int n_globs) {
    if (!read_n_list(r)) return TN_CLI_USAGE;
    r->choices = bench_list_tables(r->has_dtype ? &r->dtype : NULL, &r->n_choices);
    if (!r->choices) return TN_CLI_FAILED;
    if (!choose(r, globs, n_globs)) return TN_CLI_USAGE;
    if (r->list) {
        list_tables(r);
        return TN_CLI_OK;
    }
    if (!open_file(r, r->csv_path, &r->csv) || !open_file(r, r->json_path, &r->json)) return TN_CLI_FAILED;
    int code = run_tables(r);
    if (r->csv && fclose(r->csv) != 0) code = TN_CLI_FAILED;
    if (r->json && fclose(r->json) != 0) code = TN_CLI_FAILED;
    return code;
}

int main(int argc, char **argv) {
    static const char *const dtypes[] = { "listed", "f64", "f32", "bf16", NULL };
    int dtype = 0, n_globs, code;
    request r = { .device = "auto" };
    const tn_cli_option options[] = {
        { "list", TN_CLI_FLAG, &r.list, .doc = "name the tables and end" },
        { "device", TN_CLI_TEXT, &r.device, .argument = "cpu|cuda|auto",
          .doc = "what to measure (auto: the first usable GPU, else the CPU, with smaller n)" },
        { "dtype", TN_CLI_CHOICE, &dtype, .choices = dtypes, .doc = "every table in this dtype instead of those --list shows" },
        { "n", TN_CLI_TEXT, &r.n_list, .argument = "LIST", .doc = "rows to run instead of the tables' own: 256,1024" },
        { "largest", TN_CLI_FLAG, &r.largest, .doc = "only the last, largest row of each table" },
        { "csv", TN_CLI_TEXT, &r.csv_path, .argument = "FILE", .doc = "also write every row there, table by table" },
        { "json", TN_CLI_TEXT, &r.json_path, .argument = "FILE",
          .doc = "also write everything there at the end: machine, commit, method, rows" },
        { "quick", TN_CLI_FLAG, &r.quick, .doc = "fewer rows and repeats" },
        { .name = NULL },
    };
    const tn_cli cli = { .program = "tenon-bench", .usage = usage, .doc = doc, .options = options };
    if (!tn_cli_parse(&cli, argc, argv, &n_globs, &code)) return code;
    r.cli = &cli;
    r.has_dtype = dtype > 0 && tn_dtype_parse(dtypes[dtype], &r.dtype);
    code = answer(&r, argv, n_globs);
    free(r.choices);
    return tn_cli_finish(&cli, code);
}
