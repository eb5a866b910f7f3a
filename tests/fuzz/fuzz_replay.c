/* Runs a fuzz target over the files of a folder, in place of libFuzzer: exit code 0, or a crash that names the file. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "fuzz_input.h"

static int run_file(const char *path) {
    FILE *stream = fopen(path, "rb");
    static uint8_t bytes[1 << 20];
    if (!stream) return perror(path), 1;
    size_t n_bytes = fread(bytes, 1, sizeof bytes, stream);
    fclose(stream);
    /* Memory of just this size, so that a sanitizer sees a read past the end. */
    uint8_t *exact = malloc(n_bytes ? n_bytes : 1);
    if (!exact) return 1;
    for (size_t i = 0; i < n_bytes; i++) exact[i] = bytes[i];
    fprintf(stderr, "%s\n", path);
    LLVMFuzzerTestOneInput(exact, n_bytes);
    free(exact);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: %s NAME CORPUS\n", argv[0]), 2;
    struct dirent **entries;
    int n = scandir(argv[2], &entries, NULL, alphasort), n_run = 0, failed = 0;
    if (n < 0) return perror(argv[2]), 2;
    for (int i = 0; i < n; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", argv[2], entries[i]->d_name);
        if (entries[i]->d_name[0] != '.') {
            failed += run_file(path);
            n_run++;
        }
        free(entries[i]);
    }
    free(entries);
    fprintf(stderr, "%d inputs, %d could not be read\n", n_run, failed);
    const char *counts = getenv("TENON_TEST_COUNTS");
    FILE *stream = counts ? fopen(counts, "a") : NULL;
    if (stream) {
        fprintf(stream, "%s %d %d 0\n", argv[1], n_run - failed, failed);
        fclose(stream);
    }
    return failed != 0 || n_run == 0;
}
