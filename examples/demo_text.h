/* Text for the demo: files joined into one string, and the alphabet that turns it into tokens. */
#ifndef TENON_DEMO_TEXT_H
#define TENON_DEMO_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct demo_text {
    char *bytes;
    size_t n_bytes;
    int n_tokens;               /* distinct bytes */
    uint8_t token_of[256];      /* byte -> token */
    unsigned char byte_of[256]; /* token -> byte */
} demo_text;

/* Appends a file; false if it can't be read. */
bool demo_text_add_file(demo_text *text, const char *path);
/* Appends every .h, .c, .cu and .md file below a folder, in the order of their names; false if there is no such folder. */
bool demo_text_add_folder(demo_text *text, const char *path);
/* Numbers the bytes that occur. */
void demo_text_finish(demo_text *text);
void demo_text_free(demo_text *text);

#endif
