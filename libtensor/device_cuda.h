/* What is known of the CUDA device from outside. */
#ifndef TENON_DEVICE_CUDA_H
#define TENON_DEVICE_CUDA_H

#include "device.h"

/* Its number among the process's GPUs, as the driver counts them; 0 for other devices. */
int tn_cuda_ordinal(tn_device *device);

#endif
