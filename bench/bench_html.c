/* The page: who ran what where, one line per op at its largest n, then every table with its plot. */
#include <string.h>

#include "bench_document.h"
#include "bench_html_style.h"
#include "bench_plot.h"

#define MAX_COLUMNS BENCH_MAX_COLUMNS
#define MAX_PROVIDERS 8
#define N_COLOURS 8 /* the style sheet's; the floor has one of its own */

static const char *text_of(const json_t *object, const char *name) {
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

static double number_of(const json_t *object, const char *name) { return json_number_value(json_object_get(object, name)); }

static bool is_ok(const json_t *row) { return strcmp(text_of(row, "status"), "ok") == 0; }
static bool is_memory(const json_t *table) { return strcmp(text_of(table, "unit"), "MiB") == 0; }

static void write_text(const char *text, FILE *stream) { plot_write_text(text, stream); }

/* ---- what columns and peers a table has ---- */

typedef struct page_names {
    const char *name[MAX_COLUMNS];
    int n;
} page_names;

static int index_of(page_names *names, const char *name, int most) {
    int i = 0;
    while (i < names->n && strcmp(names->name[i], name) != 0) i++;
    if (i == names->n && i < most) names->name[names->n++] = name;
    return i;
}

static page_names columns_of(const json_t *table) {
    page_names names = { .n = 0 };
    size_t i;
    const json_t *row;
    json_array_foreach(json_object_get(table, "rows"), i, row) {
        index_of(&names, text_of(row, "column"), MAX_COLUMNS);
    }
    return names;
}

/* Providers in the order of their appearance; of one column, or of all where it is NULL. */
static page_names providers_of(const json_t *table, const char *column) {
    page_names names = { .n = 0 };
    size_t i, k;
    const json_t *row, *peer;
    json_array_foreach(json_object_get(table, "rows"), i, row) {
        if (column && strcmp(text_of(row, "column"), column) != 0) continue;
        json_array_foreach(json_object_get(row, "peers"), k, peer) {
            index_of(&names, text_of(peer, "provider"), MAX_PROVIDERS);
        }
    }
    return names;
}

static const json_t *peer_named(const json_t *row, const char *provider) {
    size_t i;
    const json_t *peer;
    json_array_foreach(json_object_get(row, "peers"), i, peer) {
        if (strcmp(text_of(peer, "provider"), provider) == 0) return peer;
    }
    return NULL;
}

/* ---- plots ---- */

static void add_figure(plot_series *series, const json_t *row, const json_t *figures) {
    if (figures && is_ok(figures))
        plot_add_point(series, number_of(row, "n"), number_of(figures, "median"), number_of(figures, "p20"), number_of(figures, "p80"));
}

static void add_column(plot *p, const json_t *table, const char *column, int colour) {
    plot_series *series = plot_add(p, column, PLOT_OWN, colour);
    size_t i;
    const json_t *row;
    json_array_foreach(json_object_get(table, "rows"), i, row) {
        if (strcmp(text_of(row, "column"), column) == 0) add_figure(series, row, row);
    }
}

/* One peer of a column, or the best of each row where `provider` is NULL. */
static void add_peer(plot *p, const json_t *table, const char *column, const char *provider, int colour) {
    char name[PLOT_NAME_BYTES];
    snprintf(name, sizeof name, "%.30s%s%.30s", provider ? provider : column, provider ? "" : ", ", provider ? "" : "best peer");
    plot_series *series = plot_add(p, name, PLOT_PEER, colour);
    size_t i;
    const json_t *row;
    json_array_foreach(json_object_get(table, "rows"), i, row) {
        if (strcmp(text_of(row, "column"), column) == 0)
            add_figure(series, row, peer_named(row, provider ? provider : text_of(row, "best_peer")));
    }
}

/* One line where all columns move the same bytes; else none, since there would be as many as columns. */
static void add_floor(plot *p, const json_t *table) {
    plot_series *series = plot_add(p, "floor", PLOT_FLOOR, N_COLOURS);
    size_t i;
    const json_t *row;
    double n = 0, floor = 0;
    json_array_foreach(json_object_get(table, "rows"), i, row) {
        double own = number_of(row, "floor_ms");
        if (own <= 0 || number_of(row, "flops") > 0) continue;
        if (n == number_of(row, "n") && own != floor) {
            p->n_series--;
            return;
        }
        if (n != number_of(row, "n")) plot_add_point(series, number_of(row, "n"), own, 0, 0);
        n = number_of(row, "n");
        floor = own;
    }
}

static void write_plot(const json_t *table, FILE *stream) {
    static plot p;
    char label[256];
    page_names columns = columns_of(table);
    int n_compared = 0, colour = columns.n;
    memset(&p, 0, sizeof p);
    snprintf(label, sizeof label, "%s, %s against n", text_of(table, "name"), text_of(table, "unit"));
    p.unit = text_of(table, "unit");
    p.label = label;
    for (int c = 0; c < columns.n; c++) {
        add_column(&p, table, columns.name[c], c % N_COLOURS);
        n_compared += providers_of(table, columns.name[c]).n > 0;
    }
    for (int c = 0; c < columns.n; c++) {
        page_names providers = providers_of(table, columns.name[c]);
        if (n_compared > 1 && providers.n > 0) add_peer(&p, table, columns.name[c], NULL, c % N_COLOURS);
        for (int i = 0; n_compared == 1 && i < providers.n; i++)
            add_peer(&p, table, columns.name[c], providers.name[i], colour++ % N_COLOURS);
    }
    if (!is_memory(table)) add_floor(&p, table);
    plot_write(&p, stream);
}

/* ---- tables: a line for each row of each column ---- */

static void write_figure_cell(const json_t *figures, FILE *stream) {
    char text[32];
    if (!figures) fprintf(stream, "<td></td>");
    else if (is_ok(figures)) fprintf(stream, "<td>%s</td>", plot_figure(text, number_of(figures, "median")));
    else fprintf(stream, "<td class=\"none\">%s</td>", text_of(figures, "status"));
}

static void write_ratio_cell(const json_t *row, FILE *stream) {
    double ratio = number_of(row, "best_peer_over_tenon");
    if (ratio > 0) fprintf(stream, "<td class=\"%s\">%.2f×</td>", ratio >= 1 ? "ahead" : "behind", ratio);
    else fprintf(stream, "<td></td>");
}

static void write_reached_cell(const json_t *row, FILE *stream) {
    if (number_of(row, "tflops") > 0) fprintf(stream, "<td>%.4g TFLOP/s</td>", number_of(row, "tflops"));
    else if (number_of(row, "share") > 0) fprintf(stream, "<td>%.0f%%</td>", 100 * number_of(row, "share"));
    else fprintf(stream, "<td></td>");
}

static void write_number_cell(double number, FILE *stream) {
    char text[32];
    if (number > 0) fprintf(stream, "<td>%s</td>", plot_figure(text, number));
    else fprintf(stream, "<td></td>");
}

static void write_spread_cell(const json_t *row, FILE *stream) {
    char low[32], high[32];
    if (is_ok(row))
        fprintf(stream, "<td class=\"spread\">%s–%s</td>", plot_figure(low, number_of(row, "p20")),
                plot_figure(high, number_of(row, "p80")));
    else fprintf(stream, "<td class=\"spread\"></td>");
}

/* What is compared stands to the left: a phone shows it without scrolling. */
static void write_row(const json_t *table, const json_t *row, const page_names *providers, bool several, bool new_n, FILE *stream) {
    fprintf(stream, "<tr%s><th>", new_n && several ? " class=\"first\"" : "");
    if (new_n) fprintf(stream, "%.0f", number_of(row, "n"));
    fprintf(stream, "</th>");
    if (several) {
        fprintf(stream, "<td class=\"name\">");
        write_text(text_of(row, "column"), stream);
        fprintf(stream, "</td>");
    }
    write_figure_cell(row, stream);
    for (int i = 0; i < providers->n; i++) write_figure_cell(peer_named(row, providers->name[i]), stream);
    if (providers->n) write_ratio_cell(row, stream);
    if (!is_memory(table)) {
        write_number_cell(number_of(row, "floor_ms"), stream);
        write_reached_cell(row, stream);
        write_spread_cell(row, stream);
    }
    fprintf(stream, "</tr>\n");
}

static void write_table(const json_t *table, FILE *stream) {
    page_names columns = columns_of(table), providers = providers_of(table, NULL);
    size_t i;
    const json_t *row;
    double n = -1;
    fprintf(stream, "<div class=\"scroll\"><table><thead><tr><th>n</th>%s<th>tenon</th>",
            columns.n > 1 ? "<th class=\"name\">column</th>" : "");
    for (int p = 0; p < providers.n; p++) {
        fprintf(stream, "<th>");
        write_text(providers.name[p], stream);
        fprintf(stream, "</th>");
    }
    fprintf(stream, "%s%s</tr></thead><tbody>\n", providers.n ? "<th>best/tenon</th>" : "",
            is_memory(table) ? "" : "<th>floor</th><th>reached</th><th class=\"spread\">p20–p80</th>");
    json_array_foreach(json_object_get(table, "rows"), i, row) {
        write_row(table, row, &providers, columns.n > 1, number_of(row, "n") != n, stream);
        n = number_of(row, "n");
    }
    fprintf(stream, "</tbody></table></div>\n");
}

static const char *title_of(const json_t *table) {
    static const char *const titles[][2] = {
        { "speed-fwd", "Forward, time" },         { "speed-bwd", "Backward, time" },         { "speed-step", "Step, time" },
        { "memory-fwd", "Forward, peak memory" }, { "memory-bwd", "Backward, peak memory" }, { "host", "Host time" },
    };
    for (size_t i = 0; i < sizeof titles / sizeof *titles; i++)
        if (strcmp(titles[i][0], text_of(table, "kind")) == 0) return titles[i][1];
    return text_of(table, "kind");
}

static void write_card(const json_t *table, const json_t *document, FILE *stream) {
    const json_t *own = json_object_get(table, "method"), *method = own ? own : json_object_get(document, "method");
    fprintf(stream, "<figure id=\"");
    write_text(text_of(table, "name"), stream);
    fprintf(stream, "\"><figcaption><b>%s</b> <span>%s</span><code>", title_of(table), text_of(table, "unit"));
    write_text(text_of(table, "name"), stream);
    fprintf(stream, "</code>");
    if (text_of(table, "commit")[0]) {
        fprintf(stream, " <span>commit ");
        write_text(text_of(table, "commit"), stream);
        fprintf(stream, "</span>");
    }
    if (!is_memory(table) && json_is_true(json_object_get(method, "quick")))
        fprintf(stream, " <span>a quick run: a quarter of the repeats</span>");
    fprintf(stream, "</figcaption>\n");
    write_plot(table, stream);
    write_table(table, stream);
    fprintf(stream, "</figure>\n");
}

/* ---- groups of tables with one setting, under a heading for each family ---- */

static bool same(const json_t *a, const json_t *b, const char *name) { return a && strcmp(text_of(a, name), text_of(b, name)) == 0; }
static bool same_group(const json_t *a, const json_t *b) {
    return same(a, b, "family") && same(a, b, "setting") && same(a, b, "dtype") && same(a, b, "variant");
}

static void write_group_name(const json_t *table, bool with_family, FILE *stream) {
    const char *parts[] = { with_family ? text_of(table, "family") : "", text_of(table, "setting"), text_of(table, "variant"),
                            text_of(table, "dtype") };
    bool any = false;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (!parts[i][0]) continue;
        fprintf(stream, "%s", any ? " · " : "");
        write_text(parts[i], stream);
        any = true;
    }
    if (!any) write_text(text_of(table, "family"), stream);
}

static void write_tables(const json_t *document, FILE *stream) {
    const json_t *table, *before = NULL;
    size_t i;
    json_array_foreach(json_object_get(document, "tables"), i, table) {
        if (before && !same_group(before, table)) fprintf(stream, "</section>\n");
        if (!same(before, table, "family"))
            fprintf(stream, "<h2 id=\"f-%s\">%s</h2>\n", text_of(table, "family"), text_of(table, "family"));
        if (!same_group(before, table)) {
            fprintf(stream, "<h3>");
            write_group_name(table, false, stream);
            fprintf(stream, "</h3><p class=\"doc\">");
            write_text(text_of(table, "doc"), stream);
            fprintf(stream, "</p>\n<section class=\"cards\">\n");
        }
        write_card(table, document, stream);
        before = table;
    }
    if (before) fprintf(stream, "</section>\n");
}

static void write_index(const json_t *document, FILE *stream) {
    const json_t *table, *before = NULL;
    size_t i;
    fprintf(stream, "<nav aria-label=\"families\">");
    json_array_foreach(json_object_get(document, "tables"), i, table) {
        if (!same(before, table, "family"))
            fprintf(stream, "<a href=\"#f-%s\">%s</a> ", text_of(table, "family"), text_of(table, "family"));
        before = table;
    }
    fprintf(stream, "</nav>\n");
}

/* ---- the first lines ---- */

/* The last column that has a peer (of `column`, where one is given), at the largest n that has one. */
static const json_t *compared_row(const json_t *table, const char *column) {
    const json_t *row, *found = NULL;
    size_t i;
    json_array_foreach(json_object_get(table, "rows"), i, row) {
        if (column && strcmp(text_of(row, "column"), column) != 0) continue;
        if (number_of(row, "best_peer_over_tenon") > 0 && (!found || number_of(row, "n") >= number_of(found, "n"))) found = row;
    }
    return found;
}

/* The column's backward: beside a peer, else at n alone. */
static const json_t *backward_row(const json_t *table, const char *column, double n) {
    const json_t *row, *found = compared_row(table, column);
    size_t i;
    json_array_foreach(json_object_get(table, "rows"), i, row) {
        if (!found && number_of(row, "n") == n && number_of(row, "median") > 0 && strcmp(text_of(row, "column"), column) == 0) found = row;
    }
    return found;
}

static void write_overview_pass(const json_t *row, double n, FILE *stream) {
    char own[32], other[32];
    if (!row) {
        fprintf(stream, "<td></td><td></td><td></td><td></td>");
        return;
    }
    const char *best = text_of(row, "best_peer");
    fprintf(stream, "<td>%s", plot_figure(own, number_of(row, "median")));
    if (number_of(row, "n") != n) fprintf(stream, " <span>at %.0f</span>", number_of(row, "n"));
    fprintf(stream, "</td><td>");
    if (best[0]) fprintf(stream, "%s <span>%s</span>", plot_figure(other, number_of(peer_named(row, best), "median")), best);
    fprintf(stream, "</td>");
    write_ratio_cell(row, stream);
    write_reached_cell(row, stream);
}

/* A group of tables in one line: forward, or a whole step, and backward of the same column. */
static void write_overview_group(const json_t *tables, size_t first, size_t end, FILE *stream) {
    const json_t *forward = NULL, *back = NULL;
    for (size_t i = first; i < end; i++) {
        const json_t *table = json_array_get(tables, i);
        if (is_memory(table)) continue;
        if (strcmp(text_of(table, "kind"), "speed-bwd") == 0) back = table;
        else if (!forward) forward = compared_row(table, NULL);
    }
    const json_t *table = json_array_get(tables, first), *row = forward ? forward : compared_row(back, NULL);
    if (!row) return;
    const char *column = text_of(row, "column");
    double n = number_of(row, "n");
    fprintf(stream, "<tr><td class=\"name\"><a href=\"#%s\">", text_of(table, "name"));
    write_group_name(table, true, stream);
    fprintf(stream, "</a> <span>%s</span></td><th>%.0f</th>", column, n);
    write_overview_pass(forward, n, stream);
    write_overview_pass(backward_row(back, column, n), n, stream);
    fprintf(stream, "</tr>\n");
}

#define PEERS_BYTES 512

/* Those of `names`, which commas part, that the list lacks. */
static void add_names(const char *names, char list[PEERS_BYTES]) {
    while (*names) {
        size_t n = strcspn(names, ","), used = strlen(list);
        char name[PEERS_BYTES];
        snprintf(name, sizeof name, "%.*s", (int)n, names);
        if (!strstr(list, name)) snprintf(list + used, PEERS_BYTES - used, "%s%s", used ? ", " : "", name);
        names += n;
        names += strspn(names, ", ");
    }
}

/* The peers of all the runs that the document is made of. */
static void list_peers(const json_t *document, char list[PEERS_BYTES]) {
    size_t i;
    const json_t *table;
    list[0] = 0;
    add_names(text_of(json_object_get(document, "peers"), "peer"), list);
    json_array_foreach(json_object_get(document, "tables"), i, table) add_names(text_of(json_object_get(table, "peers"), "peer"), list);
}

static void write_overview(const json_t *document, FILE *stream) {
    const json_t *tables = json_object_get(document, "tables");
    char peers[PEERS_BYTES];
    list_peers(document, peers);
    if (!peers[0]) return;
    fprintf(stream, "<h2 id=\"overview\">At the largest n</h2>\n<p class=\"doc\">Milliseconds; of several columns the last that has a "
                    "peer.</p><div class=\"scroll\">"
                    "<table class=\"overview\"><thead><tr><th class=\"name\">op</th><th>n</th><th>forward</th><th>best "
                    "peer</th><th>×</th><th>reached</th>"
                    "<th>backward</th><th>best peer</th><th>×</th><th>reached</th></tr></thead><tbody>\n");
    for (size_t first = 0, end; first < json_array_size(tables); first = end) {
        for (end = first + 1; end < json_array_size(tables); end++)
            if (!same_group(json_array_get(tables, first), json_array_get(tables, end))) break;
        write_overview_group(tables, first, end, stream);
    }
    fprintf(stream, "</tbody></table></div>\n");
}

static void write_fact(const char *name, const char *text, FILE *stream) {
    if (!text[0]) return;
    fprintf(stream, "<div><dt>%s</dt><dd>", name);
    write_text(text, stream);
    fprintf(stream, "</dd></div>");
}

static void write_facts(const json_t *document, FILE *stream) {
    const json_t *machine = json_object_get(document, "machine");
    char copy[64], clocks[96] = "", threads[32] = "", peers[PEERS_BYTES];
    list_peers(document, peers);
    snprintf(copy, sizeof copy, "%.0f GB/s, read and written", number_of(document, "copy_gb_per_s"));
    if (number_of(machine, "clock_mhz") > 0)
        snprintf(clocks, sizeof clocks, "%.0f MHz, memory %.0f MHz", number_of(machine, "clock_mhz"),
                 number_of(machine, "memory_clock_mhz"));
    if (number_of(machine, "threads") > 0 && strncmp(text_of(machine, "device"), "cpu", 3) == 0)
        snprintf(threads, sizeof threads, "%.0f", number_of(machine, "threads"));
    fprintf(stream, "<dl>");
    write_fact("device", text_of(machine, "device"), stream);
    write_fact("driver", text_of(machine, "driver"), stream);
    write_fact("clocks", clocks, stream);
    write_fact("processor", text_of(machine, "processor"), stream);
    write_fact("threads", threads, stream);
    write_fact("plain copy", copy, stream);
    write_fact("commit", text_of(document, "commit"), stream);
    write_fact("date", text_of(document, "date"), stream);
    write_fact("peers", peers, stream);
    fprintf(stream, "</dl>\n");
}

void bench_html_write(const json_t *document, FILE *stream) {
    fprintf(stream, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
                    "content=\"width=device-width, initial-scale=1\">"
                    "<meta name=\"color-scheme\" content=\"light dark\"><title>tenon-bench ");
    write_text(text_of(document, "commit"), stream);
    fprintf(stream, "</title><style>%s</style></head><body>\n<header><h1>tenon-bench</h1>", bench_html_style);
    write_facts(document, stream);
    fprintf(
        stream,
        "<p>Medians with cold caches and rotated inputs. The <b>floor</b> is the bytes a pass must move at the speed of the plain copy; "
        "<b>reached</b> is the share of it, or TFLOP/s for what arithmetic bounds. <b>best/tenon</b>: how many times as long (as much) the "
        "best peer needs. "
        "Both axes of a plot are logarithmic.</p></header>\n<main>\n");
    write_index(document, stream);
    write_overview(document, stream);
    write_tables(document, stream);
    fprintf(stream, "</main></body></html>\n");
}
