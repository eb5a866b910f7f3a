#include "bench_peers.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct bench_peers {
    pid_t child;
    FILE *to, *from;
    json_t *about;
};

/* ---- lines of JSON ---- */

static bool ask(bench_peers *peers, json_t *question) {
    bool fine = question && json_dumpf(question, peers->to, JSON_COMPACT) == 0 && fputc('\n', peers->to) != EOF && fflush(peers->to) == 0;
    json_decref(question);
    return fine;
}

/* The next line; NULL where the child has ended or says something else. */
static json_t *next_answer(bench_peers *peers) {
    char *line = NULL;
    size_t room = 0;
    json_t *answer = getline(&line, &room, peers->from) > 0 ? json_loads(line, 0, NULL) : NULL;
    free(line);
    return answer;
}

static bool is_last(const json_t *answer) { return json_is_true(json_object_get(answer, "done")); }

/* ---- starting and ending ---- */

static void become_server(const char *folder, const char *device, bool quick, int in, int out) {
    char script[1024];
    snprintf(script, sizeof script, "%s/serve.py", folder);
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    execlp("python3", "python3", script, "--device", device, quick ? "--quick" : (char *)NULL, (char *)NULL);
    _exit(127);
}

static bool start(bench_peers *peers, const char *folder, const char *device, bool quick) {
    int question[2], answer[2];
    if (pipe(question) != 0) return false;
    if (pipe(answer) != 0) {
        close(question[0]);
        close(question[1]);
        return false;
    }
    signal(SIGPIPE, SIG_IGN); /* a child that has gone is an answer of its own */
    peers->child = fork();
    if (peers->child == 0) {
        close(question[1]);
        close(answer[0]);
        become_server(folder, device, quick, question[0], answer[1]);
    }
    close(question[0]);
    close(answer[1]);
    peers->to = fdopen(question[1], "w");
    peers->from = fdopen(answer[0], "r");
    return peers->child > 0 && peers->to && peers->from;
}

bench_peers *bench_peers_open(const char *folder, const char *device, bool quick, char *why, size_t n_bytes) {
    bench_peers *peers = calloc(1, sizeof *peers);
    snprintf(why, n_bytes, "python3 %s/serve.py could not be started", folder);
    if (!peers) return NULL;
    if (start(peers, folder, device, quick)) {
        peers->about = next_answer(peers);
        if (json_is_string(json_object_get(peers->about, "peer"))) return peers;
        const char *reason = json_string_value(json_object_get(peers->about, "reason"));
        if (reason) snprintf(why, n_bytes, "%s", reason);
    }
    bench_peers_close(peers);
    return NULL;
}

void bench_peers_close(bench_peers *peers) {
    if (!peers) return;
    if (peers->to) fclose(peers->to);
    if (peers->from) fclose(peers->from);
    if (peers->child > 0) waitpid(peers->child, NULL, 0);
    json_decref(peers->about);
    free(peers);
}

const json_t *bench_peers_about(const bench_peers *peers) { return peers->about; }

/* ---- tables ---- */

static json_t *table_question(const bench_rows *rows) {
    json_t *n = json_array();
    for (int row = 0; row < rows->n_rows; row++) json_array_append_new(n, json_integer(rows->n[row]));
    return json_pack("{s:s, s:o}", "table", rows->choice.name, "n", n);
}

bool bench_peers_prepare(bench_peers *peers, const bench_rows *tables, int n_tables) {
    json_t *list = json_array(), *answer;
    for (int i = 0; i < n_tables; i++) json_array_append_new(list, table_question(&tables[i]));
    if (!ask(peers, json_pack("{s:o}", "prepare", list)) || !(answer = next_answer(peers))) return false;
    const json_t *seconds = json_object_get(answer, "seconds");
    if (seconds) json_object_set_new(peers->about, "prepare_seconds", json_real(json_number_value(seconds)));
    bool fine = is_last(answer);
    json_decref(answer);
    return fine;
}

static int row_named(const bench_rows *rows, json_int_t n) {
    for (int row = 0; row < rows->n_rows; row++)
        if (rows->n[row] == n) return row;
    return -1;
}

static int column_named(const bench_rows *rows, const char *name) {
    for (int c = 0; name && c < rows->n_columns; c++)
        if (strcmp(rows->columns[c]->name, name) == 0) return c;
    return -1;
}

static double number_of(const json_t *object, const char *name) { return json_number_value(json_object_get(object, name)); }

static bool keep_answer(bench_rows *rows, const json_t *answer) {
    bench_peer_row peer = { .row = row_named(rows, json_integer_value(json_object_get(answer, "n"))),
                            .column = column_named(rows, json_string_value(json_object_get(answer, "column"))) };
    const char *provider = json_string_value(json_object_get(answer, "provider")),
               *note = json_string_value(json_object_get(answer, "note"));
    const char *status = json_string_value(json_object_get(answer, "status"));
    if (peer.row < 0 || peer.column < 0 || !provider || !status) return true; /* a column this kind does not have */
    bench_peer_row *list = realloc(rows->peers, (size_t)(rows->n_peers + 1) * sizeof *list);
    if (!list) return false;
    snprintf(peer.provider, sizeof peer.provider, "%s", provider);
    peer.result.status = strcmp(status, "ok") == 0 ? BENCH_OK : strcmp(status, "out of memory") == 0 ? BENCH_OUT_OF_MEMORY : BENCH_FAILED;
    snprintf(peer.result.note, sizeof peer.result.note, "%s", note ? note : "");
    peer.result.median = number_of(answer, "median");
    peer.result.p20 = number_of(answer, "p20");
    peer.result.p80 = number_of(answer, "p80");
    peer.result.repeats = (int)number_of(answer, "repeats");
    rows->peers = list;
    list[rows->n_peers++] = peer;
    return true;
}

bool bench_peers_measure(bench_peers *peers, bench_rows *rows, double seconds) {
    json_t *answer = NULL, *question = table_question(rows);
    if (seconds > 0) json_object_set_new(question, "seconds", json_real(seconds));
    bool fine = ask(peers, question), last = false;
    while (fine && !last) {
        answer = next_answer(peers);
        last = is_last(answer);
        fine = answer && (last || keep_answer(rows, answer));
        json_decref(answer);
    }
    return fine;
}
