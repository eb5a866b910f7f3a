/* What a model is trained on: text and token files, or tasks drawn on the fly. All of it is a function of (seed, split, row).
 *
 *     tn_data *data = tn_data_open(cx, &(tn_data_options){ .path = "tinyshakespeare.txt", .seed = 1337 });
 *     tn_data_rows(data, &(tn_data_draw){ .split = TN_DATA_TRAIN, .first_row = step * batch, .n_rows = batch, .length = 256 }, in, out);
 *     ...
 *     tn_data_close(data);
 *
 * Rows are numbered from 0 in each split, and row i is the same row whenever it is asked for: there is no hidden state, and the number
 * of the next row is all that a checkpoint has to remember. Ids and targets are host arrays [n_rows, length]; the target of a
 * position is the token after it, or TN_DATA_IGNORE where a task asks nothing.
 *
 * Errors are the context's: the call returns NULL or false and tn_error says which file, where in it and what was wanted. */
#ifndef TENON_DATA_SOURCE_H
#define TENON_DATA_SOURCE_H

#include "data_vocabulary.h"

#define TN_DATA_IGNORE (-100)

typedef enum tn_data_kind {
    TN_DATA_AUTO,      /* by what the file holds: llm.c's magic number, a name ending in .bin, else characters */
    TN_DATA_CHAR,      /* text; a token for each distinct UTF-8 code point, numbered in order */
    TN_DATA_BYTE,      /* any file; a token for each of the 256 bytes */
    TN_DATA_BIN,       /* nanoGPT's .bin: plain uint16 tokens; meta.pkl beside it gives the characters */
    TN_DATA_SHARDS,    /* llm.c's .bin: a header of 256 int32, uint16 tokens; one file or a glob of shards */
    TN_DATA_RECALL,    /* multi-query associative recall */
    TN_DATA_COPY,      /* selective copying */
    TN_DATA_INDUCTION, /* induction heads */
    TN_DATA_SHAPES,    /* images of drawn shapes, to be told apart */
    TN_DATA_UNIFORM,   /* tokens drawn one by one, each as likely: nothing to learn, but to measure speed on */
    TN_DATA_KIND_COUNT
} tn_data_kind;

/* "auto", "char", "byte", "bin", "shards", "recall", "copy", "induction", "shapes", "uniform". NULL past the end. */
const char *tn_data_kind_name(tn_data_kind kind);
bool tn_data_kind_parse(const char *name, tn_data_kind *kind);

typedef enum tn_data_split { TN_DATA_TRAIN, TN_DATA_VALIDATION, TN_DATA_SPLIT_COUNT } tn_data_split;

/* Sizes of the drawn tasks; 0 takes the default in brackets. */
typedef struct tn_data_task {
    int64_t vocab;   /* tokens [recall 8192, uniform 50304, copy and induction 16], shapes: classes, at most TN_SHAPES_CLASSES [all] */
    int64_t length;  /* of a row [recall 4 x pairs, uniform 1024, copy and induction 256] */
    int64_t pairs;   /* recall: keys with a value [64] */
    int64_t queries; /* recall: how many of the keys are asked for [all] */
    int64_t copies;  /* copy: how many tokens are to be remembered [16] */
    double noise;    /* shapes: deviation of the noise on pixels of 0 to 1; negative: none [0.1] */
} tn_data_task;

typedef struct tn_data_options {
    tn_data_kind kind;
    const char *path;            /* a file, or a glob such as "fineweb_train_*.bin"; not for tasks */
    const char *validation_path; /* NULL: the last tenth of path is for validation, and the first nine tenths are for training */
    const char *tokenizer;       /* llm.c's tokenizer file or nanoGPT's meta.pkl, so that tokens have texts; may be NULL */
    int64_t vocab;               /* bin and shards: tokens are below this; 0: what the tokenizer says, else 50257 for shards */
    uint64_t seed;
    tn_data_task task;
} tn_data_options;

typedef struct tn_data tn_data;

/* Opens the files (they are mapped, not read) and checks headers and sizes; tokens are checked when they are drawn. */
tn_data *tn_data_open(tn_context *cx, const tn_data_options *options);
void tn_data_close(tn_data *data);

typedef struct tn_data_info {
    tn_data_kind kind;                           /* never TN_DATA_AUTO */
    int64_t vocab;                               /* how many tokens there are; shapes: classes */
    int64_t n_tokens[TN_DATA_SPLIT_COUNT];       /* of each split; 0 for a task, which never ends */
    int64_t length;                              /* a task's row length; 0: any that fits */
    int64_t grid_rows, grid_columns, n_features; /* shapes: patches in an image and pixels in a patch, 8, 8 and 16; else 0 */
} tn_data_info;

tn_data_info tn_data_info_of(const tn_data *data);
/* The texts of the tokens, owned by data; NULL for tasks and for token files without a tokenizer. */
const tn_vocabulary *tn_data_vocabulary(const tn_data *data);

typedef enum tn_data_order {
    TN_DATA_RANDOM,    /* row i begins at a place drawn from (seed, split, i) */
    TN_DATA_SEQUENTIAL /* row i begins at token i x length; after the last whole row comes the first again */
} tn_data_order;

typedef struct tn_data_draw {
    tn_data_split split;
    tn_data_order order; /* of no matter to tasks */
    int64_t first_row, n_rows;
    int64_t length;
} tn_data_draw;

/* Rows first_row .. first_row + n_rows - 1: ids and targets [n_rows, length]. */
bool tn_data_rows(const tn_data *data, const tn_data_draw *draw, int64_t *ids, int64_t *targets);
/* How many whole rows of this length a split has; 0 for a task, or where none fits. */
int64_t tn_data_row_count(const tn_data *data, tn_data_split split, int64_t length);

/* Shapes: patches [n_rows, grid_rows, grid_columns, n_features] and one label per row; order and length of `draw` are not used. */
bool tn_data_images(const tn_data *data, const tn_data_draw *draw, float *patches, int64_t *labels);
#define TN_SHAPES_CLASSES 8
const char *tn_data_class_name(int64_t label); /* "circle", ...; NULL outside the classes */

#endif
