#include <string.h>

#include "checkpoint_files.h"

#define POLYNOMIAL 0x82f63b78u /* Castagnoli's, bits reversed */

#if defined(__x86_64__)

__attribute__((target("sse4.2"))) static uint32_t crc_instruction(uint32_t crc, const unsigned char *bytes, size_t n_bytes) {
    uint64_t wide = crc, word;
    for (; n_bytes >= 8; bytes += 8, n_bytes -= 8) {
        memcpy(&word, bytes, 8);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = (uint32_t)wide;
    while (n_bytes--) crc = __builtin_ia32_crc32qi(crc, *bytes++);
    return crc;
}

static bool has_instruction(void) { return __builtin_cpu_supports("sse4.2"); }

#else

static uint32_t crc_instruction(uint32_t crc, const unsigned char *bytes, size_t n_bytes) { return (void)bytes, (void)n_bytes, crc; }
static bool has_instruction(void) { return false; }

#endif

/* A byte at a time through a table made anew for each call: 256 entries are nothing beside the file that is read. */
static uint32_t crc_table(uint32_t crc, const unsigned char *bytes, size_t n_bytes) {
    uint32_t table[256];
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) table[i] = table[i] >> 1 ^ (table[i] & 1 ? POLYNOMIAL : 0);
    }
    while (n_bytes--) crc = crc >> 8 ^ table[(crc ^ *bytes++) & 0xff];
    return crc;
}

uint32_t tn_crc32c(uint32_t crc, const void *bytes, size_t n_bytes) {
    crc = ~crc;
    crc = has_instruction() ? crc_instruction(crc, bytes, n_bytes) : crc_table(crc, bytes, n_bytes);
    return ~crc;
}
