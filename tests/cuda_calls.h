/* The CUDA runtime and cuBLASLt as the library calls them: each call can be made to fail (FAULT_CUDA), and what it makes is counted.
 *
 * With TENON_TEST_DEVICE=cuda the real ones stand behind it. Otherwise there is a GPU of ours: its memory is the host's, copies copy,
 * kernels do nothing. So all paths of the host's code run anywhere, though nothing is computed. */
#ifndef TENON_CUDA_CALLS_H
#define TENON_CUDA_CALLS_H

#include <stdbool.h>
#include <stdint.h>

bool cuda_calls_real(void);
/* Device memory, pinned memory, events, streams and graphs that were made and not destroyed. */
int64_t cuda_calls_live(void);
int64_t cuda_calls_launches(void);

#endif
