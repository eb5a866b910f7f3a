/* The disk under checkpoints: checksums, small files written for good, folders of them. */
#ifndef TENON_CHECKPOINT_FILES_H
#define TENON_CHECKPOINT_FILES_H

#include "libtensor/tensor.h"

#define RUN_CHECKPOINT_PATH_BYTES 4096

/* CRC-32C (Castagnoli) of bytes, going on from `crc` (0 at first). */
uint32_t tn_crc32c(uint32_t crc, const void *bytes, size_t n_bytes);

typedef struct tn_file_sum {
    int64_t n_bytes;
    uint32_t crc;
} tn_file_sum;

/* Reads a whole file for its size and checksum. */
bool tn_file_sum_of(tn_context *cx, const char *op, const char *path, tn_file_sum *sum);

/* "FOLDER/NAME"; false, with an error, where that is too long. */
bool tn_path_join(tn_context *cx, const char *op, const char *folder, const char *name, char path[RUN_CHECKPOINT_PATH_BYTES]);

/* Writes a new file and syncs it. */
bool tn_text_write(tn_context *cx, const char *op, const char *path, const char *text, size_t n_bytes);
/* A whole file of at most `cap` bytes with a zero behind it, for free(). NULL on error. */
char *tn_text_read(tn_context *cx, const char *op, const char *path, size_t cap, size_t *n_bytes);

bool tn_folder_exists(const char *path);
/* Makes a folder and those above it, where they are missing. */
bool tn_folder_make(tn_context *cx, const char *op, const char *path);
/* Writes the folder's names to the disk. */
bool tn_folder_sync(tn_context *cx, const char *op, const char *path);
/* Puts the folder `from` in the place of `to`, which may exist; what was there is then in `from`. Atomic where the system can exchange
 * two names, as Linux can. */
bool tn_folder_replace(tn_context *cx, const char *op, const char *from, const char *to);
/* Removes a folder of plain files. What can't be removed stays, and false says so. */
bool tn_folder_remove(const char *path);
/* Calls visit for every name in the folder that is not "." or "..", in no order. */
bool tn_folder_visit(const char *path, void (*visit)(void *user, const char *name), void *user);

#endif
