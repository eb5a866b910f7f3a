#include "bench_session.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_document.h"

static double number_of(const json_t *object, const char *name) { return json_number_value(json_object_get(object, name)); }

/* ---- opening ---- */

static void open_peers(bench_session *s) {
    char why[512];
    if (!s->peers_folder) return;
    s->peers = bench_peers_open(s->peers_folder, tn_device_name(s->run.cx), s->quick, why, sizeof why);
    if (!s->peers) fprintf(stderr, "%s: no peers: %s; running alone\n", s->cli->program, why);
}

bool bench_session_open(bench_session *s) {
    const char *error;
    if (!bench_run_open(&s->run, s->device, s->quick, &error)) {
        tn_cli_refuse(s->cli, "--device: %s", error);
        return false;
    }
    open_peers(s);
    return true;
}

void bench_session_close(bench_session *s) {
    for (int i = 0; i < s->n_tables; i++) {
        free(s->tables[i].results);
        free(s->tables[i].peers);
    }
    free(s->tables);
    bench_peers_close(s->peers);
    bench_run_close(&s->run);
}

/* ---- planning ---- */

static void choose_rows(const bench_session *s, bench_rows *rows) {
    const bench_table *table = rows->choice.table;
    const int64_t *own = strcmp(tn_device_name(s->run.cx), "cuda") == 0 ? table->rows : table->cpu_rows;
    int n_own = 0;
    while (n_own < BENCH_MAX_ROWS && own[n_own]) n_own++;
    if (s->n_count) {
        rows->n_rows = s->n_count;
        memcpy(rows->n, s->n, sizeof rows->n);
    } else if (s->largest && n_own > 0) {
        rows->n[rows->n_rows++] = own[n_own - 1];
    } else if (s->quick && n_own > 2) { /* the smallest and one from the middle */
        rows->n[rows->n_rows++] = own[0];
        rows->n[rows->n_rows++] = own[n_own / 2];
    } else {
        rows->n_rows = n_own;
        memcpy(rows->n, own, (size_t)n_own * sizeof *own);
    }
}

/* The tables with their rows, in s->tables, before the first is run: the peers compile for all of them at once. */
static bool plan(bench_session *s, const bench_choice *choices, int n_choices) {
    s->tables = calloc((size_t)n_choices + 1, sizeof *s->tables);
    for (int i = 0; s->tables && i < n_choices; i++) {
        bench_rows *rows = &s->tables[s->n_tables++];
        rows->choice = choices[i];
        rows->n_columns = bench_columns_of(choices[i].table, choices[i].kind, rows->columns);
        choose_rows(s, rows);
        rows->results = calloc((size_t)(rows->n_rows * rows->n_columns) + 1, sizeof *rows->results);
        if (!rows->results) return false;
    }
    return s->tables != NULL;
}

/* ---- when to end ---- */

static volatile sig_atomic_t told_to_end;

/* timeout(1) signals its child and then the child's group, which is the child once more: only the third is impatience. */
static void on_signal(int number) {
    (void)number;
    if (++told_to_end == 3) _exit(1);
}

static void listen_to_signals(void) {
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* 0: as long as it takes. */
static double seconds_left(const bench_session *s) {
    if (isinf(s->minutes)) return 0;
    double left = s->minutes * 60 - (bench_now_ns() - s->begin_ns) * 1e-9;
    return left > 1e-3 ? left : 1e-3;
}

static bool time_is_up(const bench_session *s) { return told_to_end || (!isinf(s->minutes) && seconds_left(s) <= 1e-3); }

/* ---- running ---- */

static void say_progress(const char *name, int64_t n, const char *column) {
    if (!isatty(STDERR_FILENO)) return;
    if (name) fprintf(stderr, "\r\033[K%s  n %" PRId64 "  %s", name, n, column);
    else fprintf(stderr, "\r\033[K");
    fflush(stderr);
}

/* A column that can't be had on this device or does not fit it is no failure of the run; a wrong one is. */
static void tell(bench_session *s, const bench_rows *rows, int row, int column, const bench_result *result) {
    if (result->status == BENCH_OK) return;
    if (result->status == BENCH_WRONG || result->status == BENCH_FAILED) s->n_wrong++;
    say_progress(NULL, 0, NULL);
    fprintf(stderr, "%s: %s, n %" PRId64 ", %s: %s: %s\n", s->cli->program, rows->choice.name, rows->n[row], rows->columns[column]->name,
            bench_status_name(result->status), result->note);
}

static void ask_peers(bench_session *s, bench_rows *rows) {
    if (!s->peers || time_is_up(s)) return;
    bench_release_memory(&s->run); /* they want it too */
    say_progress(rows->choice.name, 0, "peers");
    if (bench_peers_measure(s->peers, rows, seconds_left(s)) || told_to_end) return;
    fprintf(stderr, "%s: %s: the peers have gone; running on alone\n", s->cli->program, rows->choice.name);
    bench_peers_close(s->peers);
    s->peers = NULL;
}

/* False: it was not finished. */
static bool run_row(bench_session *s, const bench_rows *rows, int row, bench_result *results) {
    bench_cell cells[BENCH_MAX_COLUMNS];
    for (int c = 0; c < rows->n_columns; c++)
        cells[c] = (bench_cell){ rows->choice.table, rows->columns[c], rows->choice.kind, rows->choice.dtype, rows->n[row] };
    int c = 0, n_at_once = bench_in_turns(&cells[0]) ? rows->n_columns : 1;
    for (; c < rows->n_columns && !time_is_up(s); c += n_at_once) {
        say_progress(rows->choice.name, cells[c].n, n_at_once > 1 ? "all columns" : cells[c].column->name);
        bench_measure_cells(&s->run, &cells[c], n_at_once, &results[c]);
        for (int told = c; told < c + n_at_once; told++) tell(s, rows, row, told, &results[told]);
    }
    return c == rows->n_columns;
}

/* False: it was not finished. */
static bool run_table(bench_session *s, bench_rows *rows) {
    double begin = bench_now_ns();
    bench_begin_table(&s->run);
    for (int row = 0; row < rows->n_rows; row++)
        if (!run_row(s, rows, row, &rows->results[row * rows->n_columns])) return false;
    ask_peers(s, rows);
    say_progress(NULL, 0, NULL);
    rows->seconds = (bench_now_ns() - begin) * 1e-9;
    return true;
}

static void prepare_peers(bench_session *s) {
    if (!s->peers) return;
    if (isatty(STDERR_FILENO)) fprintf(stderr, "the peers compile\r");
    if (bench_peers_prepare(s->peers, s->tables, s->n_tables)) return;
    fprintf(stderr, "%s: the peers have gone; running alone\n", s->cli->program);
    bench_peers_close(s->peers);
    s->peers = NULL;
}

static void print_peers_heading(const bench_session *s) {
    if (!s->peers) return;
    const json_t *about = bench_peers_about(s->peers);
    printf("beside %s, plain copy %.1f GB/s as it measures it; %.0f s compiling\n", json_string_value(json_object_get(about, "peer")),
           number_of(about, "copy_gb_per_s"), number_of(about, "prepare_seconds"));
}

static void say_why_it_ends(const bench_session *s, const char *table) {
    if (told_to_end) fprintf(stderr, "%s: told to end", s->cli->program);
    else fprintf(stderr, "%s: %g minutes have passed", s->cli->program, s->minutes);
    fprintf(stderr, ": tables from %s on are left out\n", table);
}

/* Tables that no time is left for are as if nobody had asked for them. */
static void leave_rest(bench_session *s, int done) {
    say_why_it_ends(s, s->tables[done].choice.name);
    for (int i = done; i < s->n_tables; i++) free(s->tables[i].results);
    s->n_tables = done;
}

bool bench_session_run(bench_session *s, const bench_choice *choices, int n_choices) {
    s->begin_ns = bench_now_ns();
    listen_to_signals();
    if (!plan(s, choices, n_choices)) return false;
    prepare_peers(s);
    bench_print_heading(stdout, &s->run);
    print_peers_heading(s);
    fflush(stdout);
    if (s->csv) bench_csv_heading(s->csv);
    for (int i = 0; i < s->n_tables; i++) {
        if (!run_table(s, &s->tables[i])) {
            leave_rest(s, i);
            break;
        }
        bench_print_rows(stdout, &s->tables[i]);
        if (s->csv) bench_csv_rows(s->csv, &s->tables[i]);
    }
    return true;
}

/* ---- running again ---- */

/* What the clock and the machine's state do to a median anyway. */
#define LEAST_MOVE 0.01

static const json_t *stored_row(const json_t *table, int64_t n, const char *column) {
    size_t i;
    const json_t *row;
    json_array_foreach(json_object_get(table, "rows"), i, row) {
        const char *other = json_string_value(json_object_get(row, "column"));
        if (json_integer_value(json_object_get(row, "n")) == n && other && strcmp(other, column) == 0 && json_object_get(row, "median"))
            return row;
    }
    return NULL;
}

/* The rows that the stored table has, rather than the program's. */
static void take_rows(bench_rows *rows, const json_t *table) {
    size_t i;
    const json_t *row;
    rows->n_rows = 0;
    json_array_foreach(json_object_get(table, "rows"), i, row) {
        int64_t n = json_integer_value(json_object_get(row, "n"));
        bool known = rows->n_rows > 0 && rows->n[rows->n_rows - 1] == n;
        if (!known && n > 0 && rows->n_rows < BENCH_MAX_ROWS) rows->n[rows->n_rows++] = n;
    }
}

/* Has the median moved by more than the wider of both runs' distances from 20th to 80th percentile? */
static bool moved(const bench_result *now, const json_t *then) {
    double before = number_of(then, "median"), old_spread = number_of(then, "p80") - number_of(then, "p20");
    double spread = now->p80 - now->p20 > old_spread ? now->p80 - now->p20 : old_spread;
    double distance = now->median > before ? now->median - before : before - now->median;
    return distance > spread && distance > LEAST_MOVE * before;
}

static bool told_if_moved(const bench_rows *rows, int row, int c, const bench_result *now, const json_t *then) {
    double before = number_of(then, "median");
    if (now->status != BENCH_OK) {
        printf("%s  n %" PRId64 "  %s  %.5g %s -> %s\n", rows->choice.name, rows->n[row], rows->columns[c]->name, before,
               bench_unit(rows->choice.kind), bench_status_name(now->status));
        return true;
    }
    if (!moved(now, then)) return false;
    printf("%s  n %" PRId64 "  %s  %.5g -> %.5g %s  (%+.1f%%; p20-p80 %.5g-%.5g -> %.5g-%.5g)\n", rows->choice.name, rows->n[row],
           rows->columns[c]->name, before, now->median, bench_unit(rows->choice.kind), 100 * (now->median / before - 1),
           number_of(then, "p20"), number_of(then, "p80"), now->p20, now->p80);
    fflush(stdout);
    return true;
}

/* False: it was not finished. */
static bool compare_rows(bench_session *s, const bench_rows *rows, const json_t *table, int *n_moved, int *n_compared) {
    bench_begin_table(&s->run);
    for (int row = 0; row < rows->n_rows; row++) {
        bench_result now[BENCH_MAX_COLUMNS] = { 0 };
        bool finished = run_row(s, rows, row, now);
        say_progress(NULL, 0, NULL);
        if (!finished) return false;
        for (int c = 0; c < rows->n_columns; c++) {
            const json_t *then = stored_row(table, rows->n[row], rows->columns[c]->name);
            if (!then) continue;
            *n_moved += told_if_moved(rows, row, c, &now[c], then);
            ++*n_compared;
        }
    }
    return true;
}

int bench_session_verify(bench_session *s, const json_t *stored, const bench_choice *choices, int n_choices) {
    int n_moved = 0, n_compared = 0;
    s->begin_ns = bench_now_ns();
    listen_to_signals();
    if (!plan(s, choices, n_choices)) return -1;
    bench_print_heading(stdout, &s->run);
    bool finished = true;
    for (int i = 0; finished && i < s->n_tables; i++) {
        bench_rows *rows = &s->tables[i];
        const json_t *table = bench_document_table(stored, rows->choice.name);
        if (!table) continue;
        take_rows(rows, table);
        finished = compare_rows(s, rows, table, &n_moved, &n_compared);
        if (!finished) say_why_it_ends(s, rows->choice.name);
    }
    printf("%d of %d rows moved by more than their spread\n", n_moved, n_compared);
    return !finished ? BENCH_CUT_SHORT : n_compared ? n_moved : BENCH_NOTHING_STORED;
}
