#include "train_recompute.h"

#include <stdlib.h>
#include <string.h>

static const char *const names[] = { "none", "attention", "mlp", "block", "every-", "offload" };

/* A number from 1 on, and how it ends. */
static bool read_count(const char **text, int64_t *count) {
    if (**text < '0' || **text > '9') return false;
    *count = strtoll(*text, (char **)text, 10);
    return *count > 0;
}

/* Reads one part and how many layers it is of. */
static bool read_part(const char **text, int64_t layers, train_recompute *recompute) {
    int part = TRAIN_OFFLOAD;
    while (part >= 0 && strncmp(*text, names[part], strlen(names[part])) != 0) part--;
    if (part < 0) return false;
    *text += strlen(names[part]);
    int64_t n = layers;
    if (part == TRAIN_AGAIN_EVERY && !read_count(text, &recompute->every)) return false;
    if (**text == ':' && (++*text, !read_count(text, &n))) return false;
    for (int64_t i = 0; i < n && i < layers; i++)
        if (recompute->part[i] == TRAIN_KEEP_ALL) recompute->part[i] = (train_recompute_part)part;
    return true;
}

bool train_recompute_read(const char *text, int64_t layers, train_recompute *recompute) {
    *recompute = (train_recompute){ .every = 1 };
    if (!text || !read_part(&text, layers, recompute)) return false;
    while (*text == '+')
        if (text++, !read_part(&text, layers, recompute)) return false;
    return !*text;
}
