#include "bench_document.h"

#include <string.h>
#include <time.h>

#define SCHEMA 2

static void set_text(json_t *object, const char *name, const char *text) {
    if (text && text[0]) json_object_set_new(object, name, json_string(text));
}

static void set_count(json_t *object, const char *name, int64_t count) {
    if (count > 0) json_object_set_new(object, name, json_integer(count));
}

static void set_number(json_t *object, const char *name, double number) {
    if (number > 0) json_object_set_new(object, name, json_real(number));
}

static json_t *machine_of(const bench_run *run) {
    const bench_machine *machine = &run->machine;
    json_t *object = json_object();
    set_text(object, "device", machine->device);
    set_text(object, "processor", machine->processor);
    set_count(object, "threads", machine->threads);
    set_text(object, "system", machine->system);
    set_text(object, "driver", machine->driver);
    set_text(object, "cuda_runtime", machine->cuda_runtime);
    set_count(object, "clock_mhz", machine->clock_mhz);
    set_count(object, "max_clock_mhz", machine->max_clock_mhz);
    set_count(object, "memory_clock_mhz", machine->memory_clock_mhz);
    set_count(object, "max_memory_clock_mhz", machine->max_memory_clock_mhz);
    set_count(object, "cache_bytes", machine->cache_bytes);
    return object;
}

static json_t *method_of(const bench_run *run) {
    json_t *object = json_object();
    json_object_set_new(object, "cold", json_string(run->flush_reads ? "overwrite, then read" : "overwrite"));
    json_object_set_new(object, "flush_bytes", json_integer((json_int_t)tn_bytes(run->flush)));
    json_object_set_new(object, "rotated_bytes", json_integer(run->n_rotated_bytes));
    json_object_set_new(object, "budget_ms", json_real(run->budget_ms));
    json_object_set_new(object, "quick", json_boolean(run->quick));
    return object;
}

static void set_figures(json_t *object, const bench_result *result) {
    set_text(object, "status", bench_status_name(result->status));
    set_text(object, "note", result->note);
    if (result->status != BENCH_OK) return;
    json_object_set_new(object, "median", json_real(result->median));
    json_object_set_new(object, "p20", json_real(result->p20));
    json_object_set_new(object, "p80", json_real(result->p80));
    json_object_set_new(object, "repeats", json_integer(result->repeats));
}

static json_t *peers_of(const bench_rows *rows, int row, int column) {
    json_t *list = json_array();
    for (int i = 0; i < rows->n_peers; i++) {
        const bench_peer_row *peer = &rows->peers[i];
        if (peer->row != row || peer->column != column) continue;
        json_t *object = json_object();
        set_text(object, "provider", peer->provider);
        set_figures(object, &peer->result);
        json_array_append_new(list, object);
    }
    return list;
}

static json_t *row_of(const bench_rows *rows, int row, int column) {
    const bench_result *result = &rows->results[row * rows->n_columns + column];
    const bench_peer_row *best = bench_best_peer(rows, row, column);
    json_t *object = json_object(), *peers = peers_of(rows, row, column);
    json_object_set_new(object, "n", json_integer(rows->n[row]));
    set_text(object, "column", rows->columns[column]->name);
    set_figures(object, result);
    set_count(object, "floor_bytes", result->floor_bytes);
    set_number(object, "floor_ms", result->floor_ms);
    set_number(object, "share", result->share);
    set_number(object, "flops", result->flops);
    set_number(object, "tflops", result->tflops);
    if (best && result->status == BENCH_OK && result->median > 0) {
        set_text(object, "best_peer", best->provider);
        set_number(object, "best_peer_over_tenon", best->result.median / result->median);
    }
    if (json_array_size(peers) > 0) json_object_set(object, "peers", peers);
    json_decref(peers);
    return object;
}

static json_t *table_of(const bench_rows *rows) {
    const bench_table *table = rows->choice.table;
    json_t *object = json_object(), *list = json_array();
    set_text(object, "name", rows->choice.name);
    set_text(object, "family", table->family);
    set_text(object, "kind", bench_kind_name(rows->choice.kind));
    set_text(object, "setting", table->setting);
    set_text(object, "dtype", table->dtypes ? tn_dtype_name(rows->choice.dtype) : NULL);
    set_text(object, "variant", table->variant);
    set_text(object, "doc", table->doc);
    set_text(object, "unit", bench_unit(rows->choice.kind));
    set_number(object, "seconds", rows->seconds);
    for (int row = 0; row < rows->n_rows; row++)
        for (int c = 0; c < rows->n_columns; c++) json_array_append_new(list, row_of(rows, row, c));
    json_object_set_new(object, "rows", list);
    return object;
}

json_t *bench_document_of(const bench_run *run, const bench_rows *tables, int n_tables, const json_t *peers) {
    char date[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    json_t *document = json_object(), *list = json_array();
    json_object_set_new(document, "schema", json_integer(SCHEMA));
    set_text(document, "program", "tenon-bench");
    set_text(document, "version", tn_version());
    set_text(document, "commit", bench_commit());
    set_text(document, "date", date);
    json_object_set_new(document, "machine", machine_of(run));
    json_object_set_new(document, "method", method_of(run));
    json_object_set_new(document, "copy_gb_per_s", json_real(run->copy_bytes_per_s * 1e-9));
    if (peers) json_object_set_new(document, "peers", json_deep_copy(peers));
    for (int i = 0; i < n_tables; i++) json_array_append_new(list, table_of(&tables[i]));
    json_object_set_new(document, "tables", list);
    return document;
}

bool bench_document_write(const json_t *document, FILE *stream) {
    return json_dumpf(document, stream, JSON_INDENT(1) | JSON_REAL_PRECISION(6)) == 0 && fputc('\n', stream) != EOF;
}

/* ---- stored documents ---- */

/* NULL, or what a page of it could not do without. */
static const char *missing_from(const json_t *document) {
    static const char *const texts[] = { "name", "family", "kind", "unit" };
    size_t i, j;
    const json_t *table, *row, *tables = json_object_get(document, "tables");
    if (json_integer_value(json_object_get(document, "schema")) != SCHEMA || !json_is_array(tables)) return "this program's schema";
    if (!json_is_string(json_object_get(document, "date")) || !json_is_string(json_object_get(document, "commit")))
        return "a date and a commit";
    if (!json_is_object(json_object_get(document, "machine"))) return "a machine";
    json_array_foreach(tables, i, table) {
        for (int t = 0; t < TN_COUNT(texts); t++)
            if (!json_is_string(json_object_get(table, texts[t]))) return "a table's name, family, kind and unit";
        if (!json_is_array(json_object_get(table, "rows"))) return "a table's rows";
        json_array_foreach(json_object_get(table, "rows"), j, row) {
            const json_t *median = json_object_get(row, "median");
            if (!json_is_string(json_object_get(row, "column")) || !json_is_string(json_object_get(row, "status")) ||
                !json_is_integer(json_object_get(row, "n")) || (median && !json_is_number(median)))
                return "a row's n, column, status and median";
        }
    }
    return NULL;
}

json_t *bench_document_read(const char *path, char *why, size_t n_bytes) {
    json_error_t error;
    json_t *document = json_load_file(path, 0, &error);
    if (!document && error.line > 0) snprintf(why, n_bytes, "%s, line %d: %s", path, error.line, error.text);
    else if (!document) snprintf(why, n_bytes, "%s", error.text);
    const char *missing = document ? missing_from(document) : NULL;
    if (missing) {
        snprintf(why, n_bytes, "%s is no whole file of this program's --json: it lacks %s", path, missing);
        json_decref(document);
        document = NULL;
    }
    return document;
}

static const char *text_of(const json_t *object, const char *name) {
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

static bool same_text(const json_t *a, const json_t *b, const char *name) { return strcmp(text_of(a, name), text_of(b, name)) == 0; }

/* What a table says of the run it is from, where that is not the document's. */
static const char *const of_run[] = { "commit", "date", "copy_gb_per_s", "method", "peers" };

/* A run without peers says so: null, lest it take another's in merging. */
static void sign_tables(json_t *document) {
    size_t i;
    json_t *table;
    if (!json_object_get(document, "peers")) json_object_set_new(document, "peers", json_null());
    json_array_foreach(json_object_get(document, "tables"), i, table) {
        for (int m = 0; m < TN_COUNT(of_run); m++)
            if (!json_object_get(table, of_run[m])) json_object_set(table, of_run[m], json_object_get(document, of_run[m]));
    }
}

/* Where the table is; the number of tables: nowhere. */
static size_t find_table(const json_t *tables, const char *name) {
    size_t at = 0, n = json_array_size(tables);
    while (at < n && strcmp(text_of(json_array_get(tables, at), "name"), name) != 0) at++;
    return at;
}

const json_t *bench_document_table(const json_t *document, const char *name) {
    const json_t *tables = json_object_get(document, "tables");
    return json_array_get(tables, find_table(tables, name));
}

static void put_table(json_t *tables, json_t *table) {
    size_t at = find_table(tables, text_of(table, "name"));
    if (at == json_array_size(tables)) json_array_append(tables, table);
    else if (strcmp(text_of(table, "date"), text_of(json_array_get(tables, at), "date")) >= 0) json_array_set(tables, at, table);
}

bool bench_document_add(json_t *document, json_t *more, char *why, size_t n_bytes) {
    const json_t *machine = json_object_get(document, "machine"), *other = json_object_get(more, "machine");
    size_t i;
    json_t *table;
    if (!same_text(machine, other, "device") || !same_text(machine, other, "processor")) {
        snprintf(why, n_bytes, "a run on %s and one on %s don't make one", text_of(machine, "device"), text_of(other, "device"));
        return false;
    }
    sign_tables(document);
    sign_tables(more);
    json_array_foreach(json_object_get(more, "tables"), i, table) {
        put_table(json_object_get(document, "tables"), table);
    }
    if (strcmp(text_of(more, "date"), text_of(document, "date")) > 0) {
        json_object_del(more, "tables");
        json_object_update(document, more);
    } else {
        json_object_update_missing(document, more);
    }
    return true;
}

void bench_document_settle(json_t *document, const bench_choice *order, int n_order) {
    json_t *tables = json_object_get(document, "tables"), *sorted = json_array(), *table;
    size_t i;
    for (int o = 0; o < n_order; o++) {
        size_t at = find_table(tables, order[o].name);
        if (at == json_array_size(tables)) continue;
        json_array_append(sorted, json_array_get(tables, at));
        json_array_remove(tables, at);
    }
    json_array_extend(sorted, tables); /* what this program no longer has */
    json_array_foreach(sorted, i, table) {
        for (int m = 0; m < TN_COUNT(of_run); m++)
            if (json_equal(json_object_get(table, of_run[m]), json_object_get(document, of_run[m]))) json_object_del(table, of_run[m]);
    }
    json_object_set_new(document, "tables", sorted);
}
