#include "bench_report.h"

#include <inttypes.h>
#include <string.h>

#include "bench_commit.h"

const char *bench_commit(void) { return BENCH_COMMIT; }

const char *bench_status_name(bench_status status) {
    static const char *const names[] = { "ok", "wrong", "unsupported", "out of memory", "failed" };
    return names[status];
}

void bench_print_heading(FILE *stream, const bench_run *run) {
    const bench_machine *machine = &run->machine;
    fprintf(stream, "tenon-bench %s (%s) on %s", tn_version(), bench_commit(), machine->device);
    if (machine->driver[0]) fprintf(stream, ", driver %s", machine->driver);
    if (machine->clock_mhz) fprintf(stream, ", %d / %d MHz", machine->clock_mhz, machine->memory_clock_mhz);
    fprintf(stream, "\nplain copy %.1f GB/s, read and written; floor: the bytes a pass must move, at that speed\n",
            run->copy_bytes_per_s * 1e-9);
}

const bench_peer_row *bench_best_peer(const bench_rows *rows, int row, int column) {
    const bench_peer_row *best = NULL;
    for (int i = 0; i < rows->n_peers; i++) {
        const bench_peer_row *peer = &rows->peers[i];
        if (peer->row != row || peer->column != column || peer->result.status != BENCH_OK) continue;
        if (!best || peer->result.median < best->result.median) best = peer;
    }
    return best;
}

/* ---- a grid of texts: columns as wide as they need be, some of them in groups under one title ---- */

#define CELL_BYTES 64
#define MAX_CELLS (2 + 4 * BENCH_MAX_COLUMNS)
#define MAX_GRID_ROWS (1 + BENCH_MAX_ROWS * BENCH_MAX_COLUMNS)

typedef struct text_grid {
    char cell[MAX_GRID_ROWS][MAX_CELLS][CELL_BYTES]; /* the first row holds the columns' names */
    const char *title[MAX_CELLS];                    /* of the group that begins here; NULL: none does */
    size_t width[MAX_CELLS];
    int n_rows, n_cells;
} text_grid;

/* Where the group that begins at cell i ends, and how wide it is. */
static int group_end(const text_grid *grid, int i, size_t *width) {
    *width = grid->width[i];
    for (i++; i < grid->n_cells && !grid->title[i]; i++) *width += 2 + grid->width[i];
    return i;
}

static void widen(text_grid *grid) {
    for (int row = 0; row < grid->n_rows; row++)
        for (int i = 0; i < grid->n_cells; i++)
            if (strlen(grid->cell[row][i]) > grid->width[i]) grid->width[i] = strlen(grid->cell[row][i]);
    for (int i = 0; i < grid->n_cells; i++) {
        size_t width;
        if (!grid->title[i]) continue;
        int end = group_end(grid, i, &width);
        if (strlen(grid->title[i]) > width) grid->width[end - 1] += strlen(grid->title[i]) - width;
    }
}

static void print_grid(FILE *stream, text_grid *grid) {
    widen(grid);
    for (int row = 0; row < grid->n_rows; row++) {
        for (int i = 0; i < grid->n_cells;) {
            fprintf(stream, "%s", grid->title[i] ? " | " : i ? "  " : "");
            if (row == 0 && grid->title[i]) {
                size_t width;
                const char *title = grid->title[i];
                i = group_end(grid, i, &width);
                fprintf(stream, "%-*s", i < grid->n_cells ? (int)width : 0, title);
            } else {
                fprintf(stream, "%*s", (int)grid->width[i], grid->cell[row][i]);
                i++;
            }
        }
        fputc('\n', stream);
    }
}

/* ---- what stands in a table ---- */

static const char *figure(char *text, double value) {
    snprintf(text, CELL_BYTES, value < 10 ? "%.4f" : value < 1000 ? "%.3f" : "%.1f", value);
    return text;
}

static void write_median(char *text, const bench_result *result) {
    static const char *const marks[] = { "", "WRONG", "-", "oom", "error" };
    if (result->status == BENCH_OK) figure(text, result->median);
    else snprintf(text, CELL_BYTES, "%s", marks[result->status]);
}

static void write_floor(char *text, const bench_result *result) {
    if (result->floor_ms > 0) figure(text, result->floor_ms);
    else snprintf(text, CELL_BYTES, "-");
}

static void write_share(char *text, const bench_result *result) {
    if (result->status != BENCH_OK || (result->share <= 0 && result->tflops <= 0)) snprintf(text, CELL_BYTES, "-");
    else if (result->flops > 0) snprintf(text, CELL_BYTES, "%.4g", result->tflops);
    else snprintf(text, CELL_BYTES, "%.1f", 100 * result->share);
}

static void write_spread(char *text, const bench_result *result) {
    char p20[CELL_BYTES], p80[CELL_BYTES];
    if (result->status != BENCH_OK) snprintf(text, CELL_BYTES, "-");
    else snprintf(text, CELL_BYTES, "%.30s-%.30s", figure(p20, result->p20), figure(p80, result->p80));
}

/* One floor serves all columns where they move the same bytes. */
static bool same_floors(const bench_rows *rows) {
    for (int row = 0; row < rows->n_rows; row++) {
        int64_t floor = 0;
        for (int c = 0; c < rows->n_columns; c++) {
            int64_t bytes = rows->results[row * rows->n_columns + c].floor_bytes;
            if (bytes > 0 && floor > 0 && bytes != floor) return false;
            if (bytes > 0) floor = bytes;
        }
    }
    return true;
}

static const bench_result *any_floor(const bench_result *results, int n_columns) {
    for (int c = 0; c < n_columns; c++)
        if (results[c].floor_ms > 0) return &results[c];
    return &results[0];
}

static void add_group(text_grid *grid, const char *title, int n_columns) {
    grid->title[grid->n_cells] = title;
    grid->n_cells += n_columns;
}

/* Beside each other: row, n and the medians, floors, shares, spreads; each group has the columns in the same order. */
static void lay_out(text_grid *grid, const bench_rows *rows, bool timed, bool one_floor) {
    snprintf(grid->cell[0][1], CELL_BYTES, "n");
    grid->n_cells = 2;
    for (int c = 0; c < rows->n_columns; c++) snprintf(grid->cell[0][grid->n_cells++], CELL_BYTES, "%s", rows->columns[c]->name);
    if (timed) add_group(grid, "floor", one_floor ? 1 : rows->n_columns);
    if (timed) add_group(grid, rows->columns[0]->flops ? "TFLOP/s" : "% of floor", rows->n_columns);
    if (!bench_is_memory(rows->choice.kind)) add_group(grid, "p20-p80", rows->n_columns);
}

static void write_row(text_grid *grid, const bench_rows *rows, int row, bool timed, bool one_floor) {
    const bench_result *results = &rows->results[row * rows->n_columns];
    char(*cell)[CELL_BYTES] = grid->cell[row + 1];
    int at = 0;
    snprintf(cell[at++], CELL_BYTES, "%d", row);
    snprintf(cell[at++], CELL_BYTES, "%" PRId64, rows->n[row]);
    for (int c = 0; c < rows->n_columns; c++) write_median(cell[at++], &results[c]);
    if (timed && one_floor) write_floor(cell[at++], any_floor(results, rows->n_columns));
    for (int c = 0; timed && !one_floor && c < rows->n_columns; c++) write_floor(cell[at++], &results[c]);
    for (int c = 0; timed && c < rows->n_columns; c++) write_share(cell[at++], &results[c]);
    for (int c = 0; !bench_is_memory(rows->choice.kind) && c < rows->n_columns; c++) write_spread(cell[at++], &results[c]);
}

/* ---- beside peers: a line for each row of each column that has any ---- */

#define MAX_PROVIDERS 8

static int providers_of(const bench_rows *rows, const char *names[MAX_PROVIDERS]) {
    int n = 0;
    for (int i = 0; i < rows->n_peers; i++) {
        int p = 0;
        while (p < n && strcmp(names[p], rows->peers[i].provider) != 0) p++;
        if (p == n && n < MAX_PROVIDERS) names[n++] = rows->peers[i].provider;
    }
    return n;
}

static const bench_peer_row *peer_of(const bench_rows *rows, int row, int column, const char *provider) {
    for (int i = 0; i < rows->n_peers; i++)
        if (rows->peers[i].row == row && rows->peers[i].column == column && strcmp(rows->peers[i].provider, provider) == 0)
            return &rows->peers[i];
    return NULL;
}

static void write_peers_line(const bench_rows *rows, int row, int column, const char *const *providers, int n, char (*cell)[CELL_BYTES]) {
    const bench_result *own = &rows->results[row * rows->n_columns + column];
    const bench_peer_row *best = bench_best_peer(rows, row, column);
    int at = 0;
    snprintf(cell[at++], CELL_BYTES, "%d", row);
    snprintf(cell[at++], CELL_BYTES, "%" PRId64, rows->n[row]);
    snprintf(cell[at++], CELL_BYTES, "%s", rows->columns[column]->name);
    write_median(cell[at++], own);
    for (int p = 0; p < n; p++) {
        const bench_peer_row *peer = peer_of(rows, row, column, providers[p]);
        if (peer) write_median(cell[at], &peer->result);
        at++;
    }
    if (best && own->status == BENCH_OK && own->median > 0) {
        snprintf(cell[at], CELL_BYTES, "%.2f", best->result.median / own->median);
        snprintf(cell[at + 1], CELL_BYTES, "%s", best->provider);
    }
}

static void print_peers(FILE *stream, const bench_rows *rows) {
    static text_grid grid;
    const char *providers[MAX_PROVIDERS], *heads[] = { "", "n", "column", "tenon" };
    int n = providers_of(rows, providers);
    if (n == 0) return;
    memset(&grid, 0, sizeof grid);
    grid.n_rows = 1;
    for (int i = 0; i < TN_COUNT(heads); i++) snprintf(grid.cell[0][i], CELL_BYTES, "%s", heads[i]);
    for (int p = 0; p < n; p++) snprintf(grid.cell[0][TN_COUNT(heads) + p], CELL_BYTES, "%s", providers[p]);
    grid.n_cells = TN_COUNT(heads) + n;
    add_group(&grid, "best/tenon", 2);
    for (int row = 0; row < rows->n_rows; row++)
        for (int c = 0; c < rows->n_columns; c++) {
            bool any = false;
            for (int p = 0; p < n; p++) any = any || peer_of(rows, row, c, providers[p]);
            if (any) write_peers_line(rows, row, c, providers, n, grid.cell[grid.n_rows++]);
        }
    fprintf(stream, "beside its peers (%s):\n", bench_unit(rows->choice.kind));
    print_grid(stream, &grid);
}

void bench_print_rows(FILE *stream, const bench_rows *rows) {
    static text_grid grid;
    bool timed = !bench_is_memory(rows->choice.kind) && rows->choice.kind != BENCH_HOST, one_floor = same_floors(rows);
    memset(&grid, 0, sizeof grid);
    grid.n_rows = rows->n_rows + 1;
    lay_out(&grid, rows, timed, one_floor);
    for (int row = 0; row < rows->n_rows; row++) write_row(&grid, rows, row, timed, one_floor);
    fprintf(stream, "\n%s (%s):\n", rows->choice.name, bench_unit(rows->choice.kind));
    print_grid(stream, &grid);
    print_peers(stream, rows);
    fflush(stream);
}

/* ---- CSV ---- */

void bench_csv_heading(FILE *stream) {
    fprintf(stream, "table,n,column,provider,status,unit,median,p20,p80,repeats,floor_bytes,floor_ms,share,flops,tflops\n");
}

static void csv_row(FILE *stream, const bench_rows *rows, int row, int column, const char *provider, const bench_result *result) {
    fprintf(stream, "%s,%" PRId64 ",%s,%s,%s,%s,", rows->choice.name, rows->n[row], rows->columns[column]->name, provider,
            bench_status_name(result->status), bench_unit(rows->choice.kind));
    fprintf(stream, "%.9g,%.9g,%.9g,%d,%" PRId64 ",%.9g,%.6g,%.9g,%.6g\n", result->median, result->p20, result->p80, result->repeats,
            result->floor_bytes, result->floor_ms, result->share, result->flops, result->tflops);
}

void bench_csv_rows(FILE *stream, const bench_rows *rows) {
    for (int row = 0; row < rows->n_rows; row++)
        for (int c = 0; c < rows->n_columns; c++) csv_row(stream, rows, row, c, "tenon", &rows->results[row * rows->n_columns + c]);
    for (int i = 0; i < rows->n_peers; i++)
        csv_row(stream, rows, rows->peers[i].row, rows->peers[i].column, rows->peers[i].provider, &rows->peers[i].result);
    fflush(stream);
}
