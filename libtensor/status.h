/* What a call can say: TN_OK or the kind of the first thing that went wrong. */
#ifndef TENON_STATUS_H
#define TENON_STATUS_H

#if defined(_WIN32)
#error "Tenon is written for POSIX systems"
#endif
#define TN_API __attribute__((visibility("default")))
#define TN_PRINTF(format_at, first_at) __attribute__((format(printf, format_at, first_at)))

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tn_status {
    TN_OK = 0,
    TN_ERR_ARGUMENT,    /* a value outside what the call documents */
    TN_ERR_SHAPE,       /* shapes that do not fit each other or the op */
    TN_ERR_DTYPE,       /* a dtype the call does not take */
    TN_ERR_UNSUPPORTED, /* right, but not on this device or in this build */
    TN_ERR_MEMORY,      /* device memory or the memory limit is exhausted */
    TN_ERR_HOST_MEMORY, /* malloc failed */
    TN_ERR_DEVICE,      /* a driver or library call failed */
    TN_ERR_IO,          /* a file could not be read or written */
    TN_ERR_FORMAT,      /* a file is not what it claims to be */
    TN_ERR_GRAPH,       /* the tape: released graph, overwritten saved tensor */
    TN_ERR_NUMERIC,     /* anomaly mode met a NaN or an Inf */
    TN_ERR_CORRUPTION,  /* a red zone was overwritten */
    TN_STATUS_COUNT
} tn_status;

/* "TN_ERR_SHAPE" and so on; never NULL. */
TN_API const char *tn_status_name(tn_status status);

#ifdef __cplusplus
}
#endif
#endif
