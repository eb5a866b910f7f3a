/* tenon-bench as a user runs it: the tables' names, a small run, its files, stored runs, and what it says without peers. */
#include "harness.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define BENCH TN_TEST_BUILD "/bench/tenon-bench"
#define NAMES TN_TEST_SOURCES "/tests/bench_table_names.txt"
#define SMALL "'softmax-*-fwd-d1024-bf16' --device cpu --n 4,8 --quick"

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/tenon-bench-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

/* Runs the program through a shell in the case's folder; its exit code. */
static int run(const char *arguments) {
    char command[1024];
    snprintf(command, sizeof command, "cd '%s' && '%s' %s >stdout 2>stderr </dev/null", folder, BENCH, arguments);
    int code = system(command);
    return WIFEXITED(code) ? WEXITSTATUS(code) : -1;
}

/* The text of a file in the case's folder, or of one elsewhere; for free(). */
static char *text_of(const char *name) {
    char path[512];
    snprintf(path, sizeof path, name[0] == '/' ? "%s%s" : "%s/%s", name[0] == '/' ? "" : folder, name);
    FILE *stream = fopen(path, "rb");
    TN_TEST_WANT(stream, "there is no %s", path);
    char *text = NULL;
    size_t room = 0;
    if (getdelim(&text, &room, '\0', stream) < 0 && text) text[0] = '\0';
    fclose(stream);
    return text;
}

static json_t *read_json(const char *name) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return json_load_file(path, 0, NULL);
}
static void write_json(const json_t *json, const char *name) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(json_dump_file(json, path, 0), 0);
}

static bool says(const char *name, const char *words) {
    char *text = text_of(name);
    bool found = strstr(text, words) != NULL;
    free(text);
    return found;
}

static void want_run(const char *arguments, int wanted) {
    int code = run(arguments);
    char *said = text_of("stderr");
    TN_TEST_WANT(code == wanted, "tenon-bench %s: exit code %d, wanted %d; it said: %s", arguments, code, wanted, said);
    free(said);
}

static void test_names(void **state) {
    (void)state;
    want_run("--list", 0);
    char *wanted = text_of(NAMES), *got = text_of("stdout");
    for (char *a = wanted, *b = got; *a || *b;) {
        size_t n = strcspn(a, "\n"), m = strcspn(b, "\n");
        TN_TEST_WANT(n == m && strncmp(a, b, n) == 0, "--list names '%.*s' where tests/bench_table_names.txt has '%.*s'", (int)m, b, (int)n,
                     a);
        a += n + (a[n] == '\n');
        b += m + (b[m] == '\n');
    }
    free(wanted);
    free(got);
}

static void test_files(void **state) {
    (void)state;
    want_run(SMALL " --json run.json --csv run.csv --html run.html", 0);
    TN_TEST_WANT(says("stdout", "softmax-speed-fwd-d1024-bf16 (ms):") && says("stdout", "% of floor"), "no table on standard output");
    TN_TEST_WANT(says("run.csv", "softmax-memory-fwd-d1024-bf16,8,softmax,tenon,ok,MiB,"), "no such row in the CSV");
    TN_TEST_WANT(says("run.html", "<svg") && says("run.html", "prefers-color-scheme:dark") && says("run.html", "</html>"), "no whole page");
    TN_TEST_WANT(!says("run.html", "http://") && !says("run.html", "https://"), "the page wants something from elsewhere");

    json_t *run = read_json("run.json"), *tables = json_object_get(run, "tables");
    TN_TEST_WANT(json_array_size(tables) == 2, "%zu tables in the JSON, wanted 2", json_array_size(tables));
    TN_TEST_WANT(json_number_value(json_object_get(run, "copy_gb_per_s")) > 0, "no plain copy in the JSON");
    TN_TEST_WANT(json_is_string(json_object_get(run, "commit")) && json_object_get(json_object_get(run, "machine"), "device"),
                 "no commit or device in the JSON");
    const json_t *row = json_array_get(json_object_get(json_array_get(tables, 0), "rows"), 1);
    double low = json_number_value(json_object_get(row, "p20")), median = json_number_value(json_object_get(row, "median"));
    TN_TEST_WANT(low > 0 && low <= median && median <= json_number_value(json_object_get(row, "p80")), "median %g, p20 %g", median, low);
    json_decref(run);
}

static void test_stored(void **state) {
    (void)state;
    want_run(SMALL " --json a.json", 0);
    want_run("'host' --device cpu --n 64 --json b.json", 0);
    want_run("--stored a.json --stored b.json --json both.json --html both.html", 0);
    TN_TEST_WANT(says("both.json", "softmax-speed-fwd-d1024-bf16") && says("both.json", "\"host\""),
                 "a run's tables are missing from both");
    TN_TEST_WANT(says("both.html", "f-softmax") && says("both.html", "f-host"), "a run's tables are missing from the page");

    /* A table of an older commit stays where no newer run has it, and says so; the newer run's are in the list's order. */
    json_t *older = read_json("b.json");
    json_object_set_new(older, "commit", json_string("0123abc"));
    json_object_set_new(older, "date", json_string("2001-01-01T00:00:00Z"));
    write_json(older, "older.json");
    want_run("--stored older.json --stored a.json --json both.json --html both.html", 0);
    TN_TEST_WANT(says("both.html", "commit 0123abc") && says("both.json", "\"0123abc\""), "the older commit is not named");
    json_t *both = read_json("both.json");
    const json_t *tables = json_object_get(both, "tables");
    const char *last = json_string_value(json_object_get(json_array_get(tables, json_array_size(tables) - 1), "name"));
    TN_TEST_WANT(last && strcmp(last, "host") == 0, "the last table is %s", last ? last : "nameless");
    TN_TEST_WANT(strcmp(json_string_value(json_object_get(both, "commit")), "0123abc") != 0, "the older run speaks for the whole");
    want_run("--stored b.json --stored older.json --json both.json", 0);
    TN_TEST_WANT(!says("both.json", "0123abc"), "an older run's table has replaced a newer one's");
    json_object_set_new(json_object_get(older, "machine"), "device", json_string("another"));
    write_json(older, "older.json");
    want_run("--stored a.json --stored older.json --json both.json", 2);
    TN_TEST_WANT(says("stderr", "another"), "the other machine is not named");
    json_decref(older);
    json_decref(both);

    /* Peers are those of the run that a table is from, also where that had none. */
    older = read_json("b.json");
    json_object_set_new(older, "date", json_string("2001-01-01T00:00:00Z"));
    json_object_set_new(older, "peers", json_pack("{s:s}", "peer", "Somebody 1.0"));
    write_json(older, "older.json");
    json_decref(older);
    for (int i = 0; i < 2; i++) {
        want_run(i ? "--stored a.json --stored older.json --json both.json --html both.html"
                   : "--stored older.json --stored a.json --json both.json --html both.html",
                 0);
        both = read_json("both.json");
        tables = json_object_get(both, "tables");
        TN_TEST_WANT(!json_is_object(json_object_get(both, "peers")) && !json_object_get(json_array_get(tables, 0), "peers") &&
                         json_is_object(json_object_get(json_array_get(tables, json_array_size(tables) - 1), "peers")),
                     "a run without peers has taken another's");
        TN_TEST_WANT(says("both.html", "Somebody 1.0"), "the page does not name the peers");
        json_decref(both);
    }

    /* Two runs of one commit keep what differs; what is not whole is refused. */
    want_run("--stored a.json --stored b.json --json both.json", 0);
    both = read_json("both.json");
    TN_TEST_WANT(!json_object_get(json_array_get(json_object_get(both, "tables"), 0), "commit"), "a commit stands twice");
    json_object_set_new(json_array_get(json_object_get(json_array_get(json_object_get(both, "tables"), 0), "rows"), 0), "median",
                        json_string("x"));
    write_json(both, "broken.json");
    want_run("--stored broken.json --html c.html", 2);
    TN_TEST_WANT(says("stderr", "broken.json") && says("stderr", "median"), "what is broken is not named");
    json_object_del(json_array_get(json_object_get(both, "tables"), 0), "rows");
    write_json(both, "broken.json");
    want_run("--stored broken.json --html c.html", 2);
    json_decref(both);
    want_run("--stored absent.json --html c.html", 2);
    TN_TEST_WANT(says("stderr", "absent.json"), "the file is not named");
}

/* A file that is there stays as it is until another is whole. */
static void test_files_stay(void **state) {
    static const char *const in_vain[] = { "--stored absent.json --json run.json --html run.html",
                                           "--device nothing --json run.json --html run.html --csv run.csv",
                                           "'copy-*' --device cpu --json run.json --html /nowhere/run.html" };
    (void)state;
    want_run(SMALL " --json run.json --csv run.csv --html run.html", 0);
    char *json = text_of("run.json"), *html = text_of("run.html"), *csv = text_of("run.csv");
    for (int i = 0; i < 3; i++) {
        int code = run(in_vain[i]);
        char *now[] = { text_of("run.json"), text_of("run.html"), text_of("run.csv") };
        TN_TEST_WANT(code != 0, "tenon-bench %s: all is well", in_vain[i]);
        TN_TEST_WANT(strcmp(now[0], json) == 0 && strcmp(now[1], html) == 0 && strcmp(now[2], csv) == 0,
                     "tenon-bench %s: a file has changed", in_vain[i]);
        for (int f = 0; f < 3; f++) free(now[f]);
    }
    want_run("--stored run.json --json run.json", 0);
    char *again = text_of("run.json");
    TN_TEST_WANT(strcmp(again, json) == 0, "a stored run is another after it was put together with nothing");
    want_run("--stored run.json --json /dev/stdout", 0);
    TN_TEST_WANT(says("stdout", "softmax-speed-fwd-d1024-bf16"), "no JSON on standard output");
    char command[128];
    snprintf(command, sizeof command, "test -z \"$(find '%s' -name '*.part')\"", folder);
    TN_TEST_WANT(run("--stored run.json --json run.json --html x/run.html") != 0 && system(command) == 0,
                 "a file that was begun is left over");
    want_run(SMALL " --csv x/run.csv", 1);
    want_run(SMALL " --json x/run.json", 1);
    free(json), free(html), free(csv), free(again);
}

/* A stored figure far from what is measured is told, one row by name; memory does not move. */
static void test_verify(void **state) {
    (void)state;
    want_run("'softmax-memory-fwd-d1024-bf16' --device cpu --n 4,8 --json run.json", 0);
    want_run("--verify run.json 'softmax-memory-fwd-d1024-bf16' --device cpu", 0);
    TN_TEST_WANT(says("stdout", "0 of 2 rows moved"), "memory moved");

    json_t *run = read_json("run.json");
    json_t *row = json_array_get(json_object_get(json_array_get(json_object_get(run, "tables"), 0), "rows"), 1);
    const char *figures[] = { "median", "p20", "p80" };
    for (int i = 0; i < 3; i++) json_object_set_new(row, figures[i], json_real(1000));
    write_json(run, "run.json");
    json_decref(run);
    want_run("--verify run.json --device cpu", 1);
    TN_TEST_WANT(says("stdout", "softmax-memory-fwd-d1024-bf16  n 8  softmax  1000 -> ") && says("stdout", "1 of 2 rows moved"),
                 "the row that moved is not named");
    want_run("--verify run.json --device cpu --minutes 0.00001", 1);
    TN_TEST_WANT(says("stdout", "0 of 0 rows moved") && says("stderr", "left out"), "it does not say that it was cut short");
    want_run("--verify run.json 'host'", 2);
    TN_TEST_WANT(says("stderr", "none of the tables"), "it does not say that there is nothing to compare");

    /* What can no longer be measured has moved. */
    run = read_json("run.json");
    row = json_array_get(json_object_get(json_array_get(json_object_get(run, "tables"), 0), "rows"), 1);
    json_object_set_new(row, "n", json_integer(1LL << 39));
    write_json(run, "run.json");
    json_decref(run);
    want_run("--verify run.json --device cpu", 1);
    TN_TEST_WANT(says("stdout", "1000 MiB -> out of memory") && says("stdout", "1 of 2 rows moved"), "the row that went is not named");
}

/* A line of the page's overview is about one column, forward and backward. */
static void test_overview(void **state) {
    static const char *const columns[] = { "first", "last" };
    (void)state;
    want_run("'softmax-speed-*-d1024-bf16' --device cpu --n 4 --quick --json run.json", 0);
    json_t *run = read_json("run.json");
    for (size_t t = 0; t < 2; t++) {
        json_t *rows = json_object_get(json_array_get(json_object_get(run, "tables"), t), "rows");
        json_array_append_new(rows, json_deep_copy(json_array_get(rows, 0)));
        for (size_t c = 0; c < 2; c++) {
            json_t *row = json_array_get(rows, c);
            json_object_set_new(row, "column", json_string(columns[c]));
            json_object_set_new(row, "median", json_real(1000 * (double)(t + 1) + 111 * (double)(c + 1)));
            if (t == 1 && c == 1) continue; /* backward of the last column has no peer */
            json_object_set_new(row, "best_peer", json_string("eager"));
            json_object_set_new(row, "best_peer_over_tenon", json_real(2));
            json_object_set_new(row, "peers", json_pack("[{s:s,s:s,s:f}]", "provider", "eager", "status", "ok", "median", 5000.0));
        }
    }
    json_object_set_new(run, "peers", json_pack("{s:s}", "peer", "Somebody 1.0"));
    write_json(run, "run.json");
    json_decref(run);
    want_run("--stored run.json --html run.html", 0);
    char *page = text_of("run.html"), *line = strstr(page, "<span>last</span></td>"), *end = line ? strstr(line, "</tr>") : NULL;
    TN_TEST_WANT(end, "the overview has no line of the last column");
    *end = '\0';
    TN_TEST_WANT(strstr(line, "1222") && strstr(line, "2222") && !strstr(line, "2111"), "the overview's line mixes columns: %s", line);
    free(page);
}

/* The columns of a row that are ways to one result take turns. */
static void test_turns(void **state) {
    (void)state;
    want_run("'tpa_decode-speed-fwd-batch8-*' --n 64 --device cpu --quick --json run.json", 0);
    json_t *run = read_json("run.json");
    const json_t *rows = json_object_get(json_array_get(json_object_get(run, "tables"), 0), "rows"), *row;
    size_t i;
    TN_TEST_WANT(json_array_size(rows) == 6, "%zu columns, wanted 6", json_array_size(rows));
    json_array_foreach(rows, i, row) {
        TN_TEST_WANT(strcmp(json_string_value(json_object_get(row, "status")), "ok") == 0 &&
                         json_number_value(json_object_get(row, "median")) > 0,
                     "column %zu was not timed", i);
    }
    json_decref(run);
}

static void test_no_peers(void **state) {
    (void)state;
    want_run(SMALL " --peers --peers-folder /nowhere", 0);
    TN_TEST_WANT(says("stderr", "no peers: ") && says("stderr", "running alone"), "it does not say that it runs alone");
    TN_TEST_WANT(says("stdout", "softmax-speed-fwd-d1024-bf16 (ms):"), "it does not run alone");
}

static void test_refusals(void **state) {
    (void)state;
    want_run("nothing-like-this", 2);
    want_run("--stored a.json 'softmax-*'", 2);
    want_run("--verify absent.json", 2);
    want_run("--n 4,x 'softmax-*'", 2);
    want_run("--n 4,8,4 'softmax-*'", 2);
    want_run("--n 9223372036854775807 'md*'", 2);
    want_run("--n 4 --largest 'softmax-*'", 2);
    want_run("--minutes 0 'softmax-*'", 2);
    want_run("--minutes nan 'softmax-*'", 2);
    want_run("--json a --html a 'softmax-*'", 2);
    want_run("--verify a.json --json b.json", 2);
    want_run("--verify a.json --peers", 2);
    want_run("--stored a.json --csv a.csv", 2);
    want_run("'softmax-*' --device dry-run", 2);
    want_run("'softmax-*' --device dry-run:cuda", 2);
}

/* Runs one of bench/'s scripts; skips where it says that it has nothing to compare. */
static void want_script(const char *command) {
    char whole[1024];
    snprintf(whole, sizeof whole, "cd '%s' && { %s; } >'%s/stdout' 2>&1 </dev/null", TN_TEST_SOURCES, command, folder);
    int code = system("command -v python3 >/dev/null 2>&1") == 0 ? system(whole) : 77 << 8;
    char *said = text_of("stdout");
    code = WIFEXITED(code) ? WEXITSTATUS(code) : -1;
    if (code == 77) {
        printf("%s", said);
        free(said);
        skip();
    }
    TN_TEST_WANT(code == 0, "%s: exit code %d: %s", command, code, said);
    free(said);
}

/* The pages are what the program makes of the stored runs. */
static void test_stored_pages(void **state) {
    static const char *const runs[] = { "h100", "cpu" };
    (void)state;
    for (int i = 0; i < 2; i++) {
        char command[512];
        snprintf(command, sizeof command,
                 "test -f bench/results/%s.json || exit 77; '%s' --stored bench/results/%s.json --html '%s/page.html' && "
                 "cmp bench/results/%s.html '%s/page.html'",
                 runs[i], BENCH, runs[i], folder, runs[i], folder);
        want_script(command);
    }
}

/* The README's table and plot are what the stored run says. */
static void test_headline(void **state) {
    (void)state;
    want_script("test -f bench/results/h100.json || exit 77; python3 bench/headline.py --check");
}

static void test_instructions(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
    skip();
#else
    want_script("python3 bench/check_instructions.py '" TN_TEST_BUILD "/bench/bench-hot-paths'");
#endif
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, make_folder, remove_folder)

static const struct CMUnitTest cases[] = {
    CASE(test_names),        CASE(test_files), CASE(test_files_stay), CASE(test_stored),   CASE(test_verify),   CASE(test_overview),
    CASE(test_stored_pages), CASE(test_turns), CASE(test_no_peers),   CASE(test_refusals), CASE(test_headline), CASE(test_instructions),
};

TN_TEST_MAIN("test_bench", cases)
