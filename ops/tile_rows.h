/* Sums and maxima of rows of REAL, for CPU tile bodies: tile_f32.h and tile_f64.h include it. */

#define LANES 16

/* Sums and maxima run in sixteen lanes, which are added in a fixed order. */
TN_INLINE REAL OF(fold)(const REAL *lane) {
    REAL sum = 0;
    for (int l = 0; l < LANES / 2; l++) sum += lane[l] + lane[l + LANES / 2];
    return sum;
}
TN_INLINE REAL OF(row_dot)(const REAL *restrict a, const REAL *restrict b, int64_t n) {
    REAL lane[LANES] = { 0 }, rest = 0;
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += a[j + l] * b[j + l];
    for (; j < n; j++) rest += a[j] * b[j];
    return OF(fold)(lane) + rest;
}
TN_INLINE REAL OF(row_sum)(const REAL *a, int64_t n) {
    REAL lane[LANES] = { 0 }, rest = 0;
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += a[j + l];
    for (; j < n; j++) rest += a[j];
    return OF(fold)(lane) + rest;
}
TN_INLINE REAL OF(row_max)(const REAL *a, int64_t n, REAL most) {
    REAL lane[LANES];
    int64_t j = 0;
    for (int l = 0; l < LANES; l++) lane[l] = most;
    for (; j + LANES <= n; j += LANES)
        for (int l = 0; l < LANES; l++) lane[l] = a[j + l] > lane[l] ? a[j + l] : lane[l];
    for (; j < n; j++) most = a[j] > most ? a[j] : most;
    for (int l = 0; l < LANES; l++) most = lane[l] > most ? lane[l] : most;
    return most;
}
