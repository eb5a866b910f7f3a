#include <jansson.h>
#include <time.h>

#include "bench_report.h"

#define SCHEMA 1

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

static json_t *row_of(const bench_rows *rows, int row, int column) {
    const bench_result *result = &rows->results[row * rows->n_columns + column];
    json_t *object = json_object();
    json_object_set_new(object, "n", json_integer(rows->n[row]));
    set_text(object, "column", rows->columns[column]->name);
    set_text(object, "status", bench_status_name(result->status));
    set_text(object, "note", result->note);
    if (result->status == BENCH_OK) {
        json_object_set_new(object, "median", json_real(result->median));
        json_object_set_new(object, "p20", json_real(result->p20));
        json_object_set_new(object, "p80", json_real(result->p80));
        json_object_set_new(object, "repeats", json_integer(result->repeats));
    }
    set_count(object, "floor_bytes", result->floor_bytes);
    set_number(object, "floor_ms", result->floor_ms);
    set_number(object, "share", result->share);
    set_number(object, "flops", result->flops);
    set_number(object, "tflops", result->tflops);
    return object;
}

static json_t *table_of(const bench_rows *rows) {
    json_t *object = json_object(), *list = json_array();
    set_text(object, "name", rows->choice.name);
    set_text(object, "unit", bench_unit(rows->choice.kind));
    for (int row = 0; row < rows->n_rows; row++)
        for (int c = 0; c < rows->n_columns; c++) json_array_append_new(list, row_of(rows, row, c));
    json_object_set_new(object, "rows", list);
    return object;
}

bool bench_json_write(FILE *stream, const bench_run *run, const bench_rows *tables, int n_tables) {
    char date[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    json_t *object = json_object(), *list = json_array();
    json_object_set_new(object, "schema", json_integer(SCHEMA));
    set_text(object, "program", "tenon-bench");
    set_text(object, "version", tn_version());
    set_text(object, "commit", bench_commit());
    set_text(object, "date", date);
    json_object_set_new(object, "machine", machine_of(run));
    json_object_set_new(object, "method", method_of(run));
    json_object_set_new(object, "copy_gb_per_s", json_real(run->copy_bytes_per_s * 1e-9));
    for (int i = 0; i < n_tables; i++) json_array_append_new(list, table_of(&tables[i]));
    json_object_set_new(object, "tables", list);
    bool fine = json_dumpf(object, stream, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) == 0 && fputc('\n', stream) != EOF;
    json_decref(object);
    return fine;
}
