/* The processor, device, driver and clocks a run happened on. */
#ifndef TENON_BENCH_MACHINE_H
#define TENON_BENCH_MACHINE_H

#include "bench_timer.h"

void bench_machine_describe(bench_machine *machine, bench_timer *timer);
/* Driver and clocks of the GPU at this place on the bus, where NVIDIA's management library is installed. */
void bench_machine_ask_nvml(bench_machine *machine, const char *bus);

#endif
