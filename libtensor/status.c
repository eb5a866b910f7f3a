#include "status.h"

static const char *const status_names[TN_STATUS_COUNT] = {
    [TN_OK] = "TN_OK",
    [TN_ERR_ARGUMENT] = "TN_ERR_ARGUMENT",
    [TN_ERR_SHAPE] = "TN_ERR_SHAPE",
    [TN_ERR_DTYPE] = "TN_ERR_DTYPE",
    [TN_ERR_UNSUPPORTED] = "TN_ERR_UNSUPPORTED",
    [TN_ERR_MEMORY] = "TN_ERR_MEMORY",
    [TN_ERR_HOST_MEMORY] = "TN_ERR_HOST_MEMORY",
    [TN_ERR_DEVICE] = "TN_ERR_DEVICE",
    [TN_ERR_IO] = "TN_ERR_IO",
    [TN_ERR_FORMAT] = "TN_ERR_FORMAT",
    [TN_ERR_GRAPH] = "TN_ERR_GRAPH",
    [TN_ERR_NUMERIC] = "TN_ERR_NUMERIC",
    [TN_ERR_CORRUPTION] = "TN_ERR_CORRUPTION",
};

const char *tn_status_name(tn_status status) { return (unsigned)status < TN_STATUS_COUNT ? status_names[status] : "unknown status"; }
