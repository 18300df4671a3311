/* Who uses a device. Without a process of the test's own, there is one wherever there is memory in use. */
#include "fake.h"

typedef struct {
    u32 pid;
    u64 memory_bytes;
    u32 gpu_instance, compute_instance;
} process_info_t;

typedef struct {
    u32 pid;
    u64 timestamp_us;
    u32 sm_percent, memory_percent, encoder_percent, decoder_percent;
} utilization_t;

static int running(const handle_t *h, process_t found[MAX_PROCESSES]) {
    const gpu_t *g = &gpus[h->index];
    const state_t *state = state_at(h->index, now_s());
    int count = 0;
    if (!g->process_count && state->memory_mib > 600 && h->instance <= 0) /* less is the driver's own reserve */
        found[count++] = (process_t){4000 + h->index, 'c', state->memory_mib - 600, state->sm_percent, h->instance, 0, NEVER};
    for (int i = 0; i < g->process_count; i++) {
        const process_t *p = &g->processes[i];
        if (now_s() < p->from_s || now_s() >= p->until_s) continue;
        if (h->instance < 0 || p->instance == h->instance + 1) found[count++] = *p;
    }
    return count;
}

static code_t list(const handle_t *h, char kind, u32 *count, process_info_t *processes) {
    process_t found[MAX_PROCESSES];
    u32 total = running(h, found), room = processes ? *count : 0, used = 0;
    for (u32 i = 0; i < total; i++) {
        /* clients of MPS are in the list of compute processes as well */
        if (found[i].kind != kind && !(kind == 'c' && found[i].kind == 'm')) continue;
        int mig = mig_of(h->index) != 0;
        u32 instance = mig ? (u32)(h->instance >= 0 ? h->instance + 1 : found[i].instance) : NO_INSTANCE;
        if (used < room)
            processes[used] =
                (process_info_t){found[i].pid, (u64)found[i].memory_mib << 20, instance, mig ? 0 : NO_INSTANCE};
        used++;
    }
    *count = used;
    return used > room ? INSUFFICIENT_SIZE : OK;
}

code_t nvmlDeviceGetComputeRunningProcesses_v3(handle_t *h, u32 *count, process_info_t *processes) {
    DEVICE(h);
    return list(h, 'c', count, processes);
}

code_t nvmlDeviceGetGraphicsRunningProcesses_v3(handle_t *h, u32 *count, process_info_t *processes) {
    DEVICE(h);
    return mig_of(h->index) ? NOT_SUPPORTED : list(h, 'g', count, processes);
}

code_t nvmlDeviceGetMPSComputeRunningProcesses_v3(handle_t *h, u32 *count, process_info_t *processes) {
    DEVICE(h);
    return list(h, 'm', count, processes);
}

code_t nvmlDeviceGetProcessUtilization(handle_t *h, utilization_t *samples, u32 *count, u64 after_us) {
    BOARD(h);
    if (mig_of(h->index)) return NOT_SUPPORTED;
    process_t found[MAX_PROCESSES];
    u32 total = running(h, found), room = samples ? *count : 0, used = 0;
    u64 timestamp_us = (u64)(now_s() * 1e6) + 1;
    for (u32 i = 0; i < total && timestamp_us > after_us; i++) {
        if (found[i].sm_percent <= 0) continue; /* only who ran something is told */
        if (used < room)
            samples[used] = (utilization_t){found[i].pid, timestamp_us, found[i].sm_percent, found[i].sm_percent / 2, 0, 0};
        used++;
    }
    *count = used;
    return !used ? NOT_FOUND : used > room ? INSUFFICIENT_SIZE : OK;
}
