#include "demo_text.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

bool demo_text_add_file(demo_text *text, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return false;
    char piece[1 << 16];
    size_t n;
    bool fine = true;
    while (fine && (n = fread(piece, 1, sizeof piece, file)) > 0) {
        char *bytes = realloc(text->bytes, text->n_bytes + n);
        fine = bytes != NULL;
        if (!fine) break;
        text->bytes = bytes;
        memcpy(bytes + text->n_bytes, piece, n);
        text->n_bytes += n;
    }
    fine = fine && !ferror(file);
    fclose(file);
    return fine;
}

static bool is_source(const char *name) {
    static const char *const endings[] = { ".h", ".c", ".cu", ".md" };
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        if (strcmp(dot, endings[i]) == 0) return true;
    return false;
}

bool demo_text_add_folder(demo_text *text, const char *path) {
    struct dirent **entries;
    int n = scandir(path, &entries, NULL, alphasort);
    if (n < 0) return false;
    for (int i = 0; i < n; i++) {
        char inner[4096];
        struct stat status;
        int length = snprintf(inner, sizeof inner, "%s/%s", path, entries[i]->d_name);
        bool usable = entries[i]->d_name[0] != '.' && length < (int)sizeof inner && stat(inner, &status) == 0;
        if (usable && S_ISDIR(status.st_mode)) demo_text_add_folder(text, inner);
        else if (usable && S_ISREG(status.st_mode) && is_source(entries[i]->d_name)) demo_text_add_file(text, inner);
        free(entries[i]);
    }
    free(entries);
    return true;
}

void demo_text_finish(demo_text *text) {
    bool seen[256] = { false };
    for (size_t i = 0; i < text->n_bytes; i++) seen[(unsigned char)text->bytes[i]] = true;
    text->n_tokens = 0;
    for (int byte = 0; byte < 256; byte++) {
        if (!seen[byte]) continue;
        text->token_of[byte] = (uint8_t)text->n_tokens;
        text->byte_of[text->n_tokens++] = (unsigned char)byte;
    }
}

void demo_text_free(demo_text *text) {
    free(text->bytes);
    text->bytes = NULL;
    text->n_bytes = 0;
}
