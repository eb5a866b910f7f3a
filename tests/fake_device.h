/* A device for the allocator's tests: memory from the C library, events completed by hand, failures on demand. */
#ifndef TENON_FAKE_DEVICE_H
#define TENON_FAKE_DEVICE_H

#include <stdlib.h>
#include <string.h>

#include "libtensor/allocator.h"

#define FAKE_STREAMS 8
#define FAKE_EVENTS 4096

typedef struct fake_device {
    tn_device device;
    size_t capacity; /* bytes it has; 0: plenty */
    bool refuses;    /* segment_alloc fails */
    bool record_fails, wait_fails, sync_fails, fill_fails, find_fails;
    size_t reserved;
    int64_t n_segments, n_segment_allocs, n_live_events, n_recorded, n_waits, n_syncs, n_fills, n_finds;
    uint64_t recorded[FAKE_STREAMS], done[FAKE_STREAMS]; /* events of a stream: how many were put, how many are through */
    struct {
        tn_stream stream;
        uint64_t number;
        bool live;
    } event[FAKE_EVENTS];
} fake_device;

static inline fake_device *fake_of(tn_device *device) { return (fake_device *)device; }

static inline tn_status fake_segment_alloc(tn_device *device, size_t bytes, void **memory) {
    fake_device *fake = fake_of(device);
    snprintf(device->failure, sizeof device->failure, "fake memory is full");
    if (fake->refuses || bytes > ((size_t)1 << 32) || (fake->capacity && fake->reserved + bytes > fake->capacity)) return TN_ERR_MEMORY;
    *memory = aligned_alloc(512, bytes);
    if (!*memory) return TN_ERR_MEMORY;
    device->failure[0] = 0;
    fake->reserved += bytes;
    fake->n_segments++;
    fake->n_segment_allocs++;
    return TN_OK;
}

static inline void fake_segment_free(tn_device *device, void *memory, size_t bytes) {
    fake_device *fake = fake_of(device);
    fake->reserved -= bytes;
    fake->n_segments--;
    free(memory);
}

static inline tn_status fake_event_record(tn_device *device, tn_stream stream, tn_device_event *event) {
    fake_device *fake = fake_of(device);
    if (fake->record_fails) return TN_ERR_DEVICE;
    for (uint64_t i = 0; i < FAKE_EVENTS; i++) {
        if (fake->event[i].live) continue;
        fake->event[i].live = true;
        fake->event[i].stream = stream;
        fake->event[i].number = ++fake->recorded[stream];
        fake->n_live_events++;
        fake->n_recorded++;
        event->handle = i;
        return TN_OK;
    }
    return TN_ERR_DEVICE;
}

static inline void fake_event_destroy(fake_device *fake, tn_device_event event) {
    if (!fake->event[event.handle].live) abort();
    fake->event[event.handle].live = false;
    fake->n_live_events--;
}

static inline tn_status fake_event_done(tn_device *device, tn_device_event event, bool *done) {
    fake_device *fake = fake_of(device);
    if (!fake->event[event.handle].live) abort();
    *done = fake->event[event.handle].number <= fake->done[fake->event[event.handle].stream];
    if (*done) fake_event_destroy(fake, event);
    return TN_OK;
}

static inline tn_status fake_event_wait(tn_device *device, tn_device_event event) {
    fake_device *fake = fake_of(device);
    fake->n_waits++;
    uint64_t *done = &fake->done[fake->event[event.handle].stream];
    uint64_t number = fake->event[event.handle].number;
    fake_event_destroy(fake, event);
    if (fake->wait_fails) return TN_ERR_DEVICE;
    if (*done < number) *done = number;
    return TN_OK;
}

static inline tn_status fake_synchronize(tn_device *device) {
    fake_device *fake = fake_of(device);
    fake->n_syncs++;
    if (fake->sync_fails) return TN_ERR_DEVICE;
    memcpy(fake->done, fake->recorded, sizeof fake->done);
    return TN_OK;
}

static inline tn_status fake_fill_bytes(tn_device *device, void *to, unsigned char byte, size_t bytes, tn_stream stream) {
    (void)stream;
    fake_of(device)->n_fills++;
    if (fake_of(device)->fill_fails) return TN_ERR_DEVICE;
    memset(to, byte, bytes);
    return TN_OK;
}

static inline tn_status fake_find_other_byte(tn_device *device, const void *from, unsigned char byte, size_t bytes, size_t *at) {
    fake_of(device)->n_finds++;
    if (fake_of(device)->find_fails) return TN_ERR_DEVICE;
    const unsigned char *bytes_at = from;
    for (*at = 0; *at < bytes && bytes_at[*at] == byte;) ++*at;
    return TN_OK;
}

/* Everything put on the stream so far is through. */
static inline void fake_finish(fake_device *fake, tn_stream stream) { fake->done[stream] = fake->recorded[stream]; }

static inline void fake_open(fake_device *fake) {
    static const tn_device_interface interface = {
        .segment_alloc = fake_segment_alloc,
        .segment_free = fake_segment_free,
        .event_record = fake_event_record,
        .event_done = fake_event_done,
        .event_wait = fake_event_wait,
        .synchronize = fake_synchronize,
        .fill_bytes = fake_fill_bytes,
        .find_other_byte = fake_find_other_byte,
    };
    memset(fake, 0, sizeof *fake);
    fake->device.interface = &interface;
    fake->device.name = "fake";
}

#endif
