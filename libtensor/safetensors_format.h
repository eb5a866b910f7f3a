/* What the reader and the writer of safetensors files agree on. */
#ifndef TENON_SAFETENSORS_FORMAT_H
#define TENON_SAFETENSORS_FORMAT_H

#include <stdio.h>

#include "safetensors.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors data is mapped as it lies in the file, which is little-endian"
#endif

#define TN_HEADER_LENGTH_BYTES 8
#define TN_HEADER_CAP_BYTES ((uint64_t)16 << 20)
#define TN_METADATA_NAME "__metadata__"

static const char *const tn_format_dtype_names[TN_DTYPE_COUNT] = {
    [TN_F64] = "F64", [TN_F32] = "F32", [TN_BF16] = "BF16", [TN_I64] = "I64", [TN_I32] = "I32", [TN_U8] = "U8", [TN_BOOL] = "BOOL",
};

typedef struct tn_shown {
    char text[128];
} tn_shown;

/* A name from a file or a caller as it may stand in a message: shortened, without control characters. */
static inline tn_shown tn_show(const char *name) {
    tn_shown shown;
    int length = snprintf(shown.text, sizeof shown.text, "%s", name);
    if (length >= (int)sizeof shown.text) snprintf(shown.text + sizeof shown.text - 4, 4, "...");
    for (unsigned char *c = (unsigned char *)shown.text; *c; c++)
        if (*c < 0x20 || *c == 0x7f) *c = '?';
    return shown;
}

#endif
