#include "device_immediate.h"

#include "host_memory.h"

tn_status tn_immediate_stream_create(tn_device *device, tn_stream *stream) {
    *stream = ++((tn_immediate_device *)device)->last_stream;
    return TN_OK;
}
tn_status tn_immediate_event_record(tn_device *device, tn_stream stream, tn_device_event *event) {
    (void)device, (void)stream;
    event->handle = 0;
    return TN_OK;
}
tn_status tn_immediate_event_done(tn_device *device, tn_device_event event, bool *done) {
    (void)device, (void)event;
    *done = true;
    return TN_OK;
}
tn_status tn_immediate_event_wait(tn_device *device, tn_device_event event) {
    (void)device, (void)event;
    return TN_OK;
}
tn_status tn_immediate_stream_wait(tn_device *device, tn_stream waiting, tn_stream awaited) {
    (void)device, (void)waiting, (void)awaited;
    return TN_OK;
}
tn_status tn_immediate_synchronize(tn_device *device) {
    (void)device;
    return TN_OK;
}
void *tn_immediate_native_stream(tn_device *device, tn_stream stream) {
    (void)device, (void)stream;
    return NULL;
}

void tn_immediate_close(tn_device *device) { tn_host_free(device); }
