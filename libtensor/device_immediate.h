/* The queue of a device whose calls are done when they return: streams are numbers, and there is never anything to wait for. */
#ifndef TENON_DEVICE_IMMEDIATE_H
#define TENON_DEVICE_IMMEDIATE_H

#include "device.h"

typedef struct tn_immediate_device {
    tn_device base;
    tn_stream last_stream;
} tn_immediate_device;

tn_status tn_immediate_stream_create(tn_device *device, tn_stream *stream);
tn_status tn_immediate_event_record(tn_device *device, tn_stream stream, tn_device_event *event);
tn_status tn_immediate_event_done(tn_device *device, tn_device_event event, bool *done);
tn_status tn_immediate_event_wait(tn_device *device, tn_device_event event);
tn_status tn_immediate_stream_wait(tn_device *device, tn_stream waiting, tn_stream awaited);
tn_status tn_immediate_synchronize(tn_device *device);
void *tn_immediate_native_stream(tn_device *device, tn_stream stream);
void tn_immediate_close(tn_device *device);

/* These, in a device's interface. */
#define TN_IMMEDIATE_QUEUE                                                                                                         \
    .stream_create = tn_immediate_stream_create, .event_record = tn_immediate_event_record, .event_done = tn_immediate_event_done, \
    .event_wait = tn_immediate_event_wait, .stream_wait = tn_immediate_stream_wait, .synchronize = tn_immediate_synchronize,       \
    .native_stream = tn_immediate_native_stream, .close = tn_immediate_close

#endif
