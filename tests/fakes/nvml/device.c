/* What a device says, each by a call of its own. */
#include "fake.h"

#define MEMORY_BYTES (81559ULL << 20)
#define RESERVED_BYTES (560ULL << 20)
#define SLICE_BYTES (9856ULL << 20)

typedef struct {
    u32 version;
    u64 total, reserved, free, used;
} memory_v2_t;

code_t nvmlDeviceGetMemoryInfo_v2(handle_t *h, memory_v2_t *m) {
    DEVICE(h);
    if (m->version != (sizeof *m | 2u << 24)) return ARGUMENT_VERSION;
    m->total = MEMORY_BYTES;
    m->reserved = RESERVED_BYTES;
    m->used = (u64)state->memory_mib << 20;
    if (h->instance >= 0) { /* its slices, of which it uses 100 MiB each */
        int slices = gpus[h->index].layouts[h->layout].slices[h->instance];
        m->total = slices * SLICE_BYTES;
        m->reserved = 0;
        m->used = (u64)slices * 100 << 20;
    }
    m->free = m->total - m->used - m->reserved;
    return OK;
}

code_t nvmlDeviceGetUtilizationRates(handle_t *h, u32 rates[2]) {
    BOARD(h);
    if (mig_of(h->index)) return NOT_SUPPORTED;
    rates[0] = state->util;
    rates[1] = state->util / 2;
    return OK;
}

code_t nvmlDeviceGetEncoderUtilization(handle_t *h, u32 *percent, u32 *period_us) {
    BOARD(h);
    *percent = 0;
    *period_us = 167000;
    return OK;
}

code_t nvmlDeviceGetDecoderUtilization(handle_t *h, u32 *percent, u32 *period_us) {
    BOARD(h);
    *percent = 0;
    *period_us = 167000;
    return OK;
}

typedef struct {
    u32 version, sensor;
    int temp_c;
} temperature_t;

code_t nvmlDeviceGetTemperatureV(handle_t *h, temperature_t *t) {
    BOARD(h);
    if (t->version != (sizeof *t | 1u << 24)) return ARGUMENT_VERSION;
    t->temp_c = state->temp_c;
    return OK;
}

code_t nvmlDeviceGetTemperature(handle_t *h, int sensor, u32 *temp_c) {
    BOARD(h);
    (void)sensor;
    *temp_c = state->temp_c;
    return OK;
}

code_t nvmlDeviceGetTemperatureThreshold(handle_t *h, int kind, u32 *temp_c) {
    BOARD(h);
    static const u32 thresholds[] = {92 /* shutdown */, 89 /* slowdown */, 95 /* memory */, 85 /* gpu */};
    if (kind < 0 || kind > 3) return NOT_SUPPORTED;
    *temp_c = thresholds[kind];
    return OK;
}

code_t nvmlDeviceGetClockInfo(handle_t *h, int kind, u32 *mhz) {
    BOARD(h);
    *mhz = kind == 2 ? 2619 : state->sm_mhz;
    return OK;
}

code_t nvmlDeviceGetMaxClockInfo(handle_t *h, int kind, u32 *mhz) {
    BOARD(h);
    *mhz = kind == 2 ? 2619 : 1980;
    return OK;
}

code_t nvmlDeviceGetCurrentClocksEventReasons(handle_t *h, u64 *reasons) {
    BOARD(h);
    *reasons = state->reasons;
    return OK;
}

code_t nvmlDeviceGetPerformanceState(handle_t *h, u32 *pstate) {
    BOARD(h);
    *pstate = state->util > 0 ? 0 : 8;
    return OK;
}

code_t nvmlDeviceGetPowerUsage(handle_t *h, u32 *mw) {
    BOARD(h);
    *mw = sensed_power_mw(h->index, now_s(), capability[0] > 8 ? 10 : 1);
    return OK;
}

code_t nvmlDeviceGetCudaComputeCapability(handle_t *h, int *major, int *minor) {
    DEVICE(h);
    *major = capability[0];
    *minor = capability[1];
    return OK;
}

code_t nvmlDeviceGetCurrPcieLinkGeneration(handle_t *h, u32 *generation) {
    BOARD(h);
    *generation = state->util > 0 ? 5 : 1;
    return OK;
}

code_t nvmlDeviceGetMaxPcieLinkGeneration(handle_t *h, u32 *generation) {
    BOARD(h);
    *generation = 5;
    return OK;
}

code_t nvmlDeviceGetCurrPcieLinkWidth(handle_t *h, u32 *lanes) {
    BOARD(h);
    *lanes = 16;
    return OK;
}

code_t nvmlDeviceGetMaxPcieLinkWidth(handle_t *h, u32 *lanes) {
    BOARD(h);
    *lanes = 16;
    return OK;
}
