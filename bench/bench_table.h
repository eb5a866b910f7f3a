/* What a benchmark table is: a name, columns (variants), rows (n), and how the inputs of one cell are built.
 *
 * A table is one constant. It says what its inputs are for a given cell (shape, numbers, which of them want a gradient) and, for each
 * column, which op runs with which attributes. From that follow speed and memory, forward and backward, the floor, the comparison with
 * the CPU's f64 result, and the table's names:
 *
 *     family-{speed,memory}-{fwd,bwd,step}[-setting]-dtype[-variant]      norm-speed-bwd-d1024-bf16
 *
 * A new table is one entry in a bench_tables_*.c, and a new file of them one line in bench_tables.c. */
#ifndef TENON_BENCH_TABLE_H
#define TENON_BENCH_TABLE_H

#include "ops/sample_inputs.h"
#include "ops/tenon.h"

#define BENCH_MAX_INPUTS 64
#define BENCH_MAX_COLUMNS 12
#define BENCH_MAX_ROWS 16
#define BENCH_SLICE_DIMS 2
#define BENCH_NAME_BYTES 192

typedef struct bench_table bench_table;
typedef struct bench_column bench_column;
typedef struct bench_run bench_run;
typedef struct bench_result bench_result;

typedef enum bench_kind {
    BENCH_SPEED_FWD,
    BENCH_SPEED_BWD,
    BENCH_SPEED_STEP, /* what has no backward and changes its inputs: an optimizer */
    BENCH_MEMORY_FWD,
    BENCH_MEMORY_BWD,
    BENCH_HOST, /* the host's own time: columns with `host` */
    BENCH_KIND_COUNT
} bench_kind;
#define BENCH_BIT(kind) (1u << (kind))
#define BENCH_FWD (BENCH_BIT(BENCH_SPEED_FWD) | BENCH_BIT(BENCH_MEMORY_FWD))
#define BENCH_BWD (BENCH_BIT(BENCH_SPEED_BWD) | BENCH_BIT(BENCH_MEMORY_BWD))

static inline bool bench_is_backward(bench_kind kind) { return kind == BENCH_SPEED_BWD || kind == BENCH_MEMORY_BWD; }
static inline bool bench_is_memory(bench_kind kind) { return kind == BENCH_MEMORY_FWD || kind == BENCH_MEMORY_BWD; }

/* One row of one column. */
typedef struct bench_cell {
    const bench_table *table;
    const bench_column *column;
    bench_kind kind;
    tn_dtype dtype;
    int64_t n;
} bench_cell;

/* One input of a cell. Slices: where the op treats an axis of the work (a row, a batch, a head) by itself, `slice[s]` names the axis of
 * this input that goes with it, counted from 1; 0: the input is shared by all. Large cells are compared with the CPU on a few of them. */
typedef struct bench_input {
    tn_shape shape;
    tn_sample_fill fill; /* normal, uniform, integer or constant */
    double a, b;
    bool gradient; /* it wants one, in backward and, as when training, in forward */
    bool wide;     /* f32 beside bf16 and f32, f64 beside f64 */
    bool absent;   /* an optional input left out */
    bool other_dtype;
    tn_dtype dtype; /* where other_dtype */
    int slice[BENCH_SLICE_DIMS];
} bench_input;

typedef struct bench_inputs {
    bench_input in[BENCH_MAX_INPUTS];
    int n;
    int out_slice[BENCH_SLICE_DIMS]; /* the output's axes; all 0: it can't be taken apart */
    bool mean;                       /* the output is a mean over slice dimension 0: a slice's gradients count more by as much */
} bench_inputs;

/* The inputs of a cell on one context, and what running it needs besides. */
typedef struct bench_set {
    const bench_cell *cell;
    tn_context *cx;
    bench_inputs spec;
    tn_tensor *in[BENCH_MAX_INPUTS];
    tn_op_args_buffer args;
    void *state; /* open's */
} bench_set;

struct bench_column {
    const char *name;

    /* What runs: an op of the registry with these attributes (JSON), or `call`. `call` takes everything from set->in: when slices are
     * compared, shapes are smaller than the cell says. For kind step it returns the tensor to compare. */
    const char *op, *attrs;
    void (*write_attrs)(const bench_cell *cell, char *json, size_t n_bytes); /* attributes that depend on n */
    tn_tensor *(*call)(bench_set *set);
    bool (*open)(bench_set *set);
    void (*close)(bench_set *set);
    /* Kind host: fills ns[0 .. n_rounds) with the host's nanoseconds of one call. */
    bool (*host)(bench_run *run, const bench_cell *cell, double *ns, int n_rounds);

    /* Bytes a pass must move: the op's own formula unless said, or that of another column which does the same work. */
    int64_t (*floor_bytes)(const bench_set *set, bool backward);
    const char *floor_like;
    /* Floating-point operations, for what is bound by them; NULL: the floor is what counts. */
    double (*flops)(const bench_cell *cell);

    unsigned kinds;  /* BENCH_BITs in which the column appears; 0: all of the table's */
    int64_t size[4]; /* the table's own numbers: widths, axes, ... */
};

struct bench_table {
    const char *family, *setting, *variant; /* parts of the name; setting and variant may be NULL */
    const char *doc;
    unsigned kinds;
    unsigned dtypes; /* TN_MASK bits of the dtypes that are run unless --dtype says otherwise; 0: no dtype in the name */
    const bench_column *columns;
    int n_columns;
    int64_t rows[BENCH_MAX_ROWS], cpu_rows[BENCH_MAX_ROWS]; /* of n, up to the first 0 */
    void (*inputs)(const bench_cell *cell, bench_inputs *inputs);
    int64_t gate_rows; /* cells up to this n are compared with the CPU whole, larger ones in slices; 0: 512 */
    int64_t size[4];
    bool upstream_resident; /* memory-fwd: an upstream gradient lies beside the inputs */
    bool one_input;         /* forward, a row's columns are timed in turns on the same tensors: they are ways to one result */
};

typedef struct bench_table_list {
    const bench_table *tables;
    int n;
} bench_table_list;

extern const bench_table_list bench_copy_tables, bench_gemm_tables, bench_elementwise_tables, bench_softmax_tables, bench_norm_tables,
    bench_loss_tables, bench_reduce_tables, bench_optim_tables, bench_lrpe_tables, bench_md_lrpe_tables, bench_flao_tables,
    bench_fal_tables, bench_causal_tables, bench_attention_tables, bench_random_tables, bench_host_tables;

/* One table as it is run: its kind and dtype chosen. */
typedef struct bench_choice {
    const bench_table *table;
    bench_kind kind;
    tn_dtype dtype;
    char name[BENCH_NAME_BYTES];
} bench_choice;

/* "speed-fwd", ... */
const char *bench_kind_name(bench_kind kind);

/* Every table there is, in order: kinds x dtypes (only `dtype` where it is not NULL). NULL without host memory; freed by the caller. */
bench_choice *bench_list_tables(const tn_dtype *dtype, int *n_choices);

/* The columns of a table that appear in `kind`. Returns how many. */
int bench_columns_of(const bench_table *table, bench_kind kind, const bench_column *columns[BENCH_MAX_COLUMNS]);

#endif
