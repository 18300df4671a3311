/*
 * Answers as libnvidia-ml.so.1 for the entry points the agent's probe uses, and misbehaves on request.
 *
 * Build: tests/fakes/nvml/build.py. No NVIDIA header is needed; the layouts below are NVML's ABI.
 * Environment, read by the first nvmlInit, or by fake_nvml_configure:
 *   FAKE_NVML_GPUS    number of devices (default 8)
 *   FAKE_NVML_TRACE   CSV file, lines "t_s,gpu,power_mw,gpu_util_percent,memory_mib,temp_c,sm_mhz,reasons,sm_percent",
 *                     sorted by time; each line holds until the next of its device, the trace starts over at its end
 *   FAKE_NVML_FAULTS  comma-separated:
 *     lost:G@T[-U]    device G is lost from T (until U)
 *     xid:G:X@T       device G raises XID X at T
 *     reload@T        driver reloaded: counters start over, handles of before are stale
 *     gone@T[-U]      no driver loaded
 *     version@T       the library does not match the driver
 *     field:F:C       field F answers code C
 *     call:NAME:C     function NAME answers code C
 * Times are seconds since the first nvmlInit, or what fake_nvml_set_time last said.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int code_t;
typedef unsigned int u32;
typedef unsigned long long u64;

enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    VERSION_MISMATCH = 18,
    ARGUMENT_VERSION = 25,
    UNKNOWN = 999
};

#define MAX_GPUS 64
#define MAX_FAULTS 64
#define MAX_FIELD 512
#define NEVER 1e300
#define MEMORY_BYTES (81559ULL << 20)

typedef struct {
    double t_s;
    double power_mw, util, memory_mib, temp_c, sm_mhz, reasons, sm_percent;
    double energy_mj; /* integral of power up to t_s */
} state_t;

typedef struct {
    state_t *states;
    int count;
    double lost_from, lost_until;
    double xid_at;
    int xid, xid_told;
} gpu_t;

typedef struct {
    int index, generation;
} handle_t;

static gpu_t gpus[MAX_GPUS];
static handle_t handles[2][MAX_GPUS]; /* before and after a reload */
static int gpu_count, init_count, configured;
static double started_s, set_time_s, trace_s;
static double reload_at, version_at, gone_from, gone_until;
static code_t field_codes[MAX_FIELD];
static struct {
    char name[64];
    code_t code;
} call_codes[MAX_FAULTS];
static int call_code_count;

static double clock_s(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static double now_s(void) { return set_time_s >= 0 ? set_time_s : clock_s(CLOCK_MONOTONIC) - started_s; }

static int generation(void) { return now_s() >= reload_at; }

static void read_fault(const char *text) {
    int gpu, value;
    double from, until = NEVER;
    char name[64];
    if (sscanf(text, "lost:%d@%lf-%lf", &gpu, &from, &until) >= 2) {
        gpus[gpu].lost_from = from;
        gpus[gpu].lost_until = until;
    } else if (sscanf(text, "xid:%d:%d@%lf", &gpu, &value, &from) == 3) {
        gpus[gpu].xid = value;
        gpus[gpu].xid_at = from;
    } else if (sscanf(text, "reload@%lf", &from) == 1) {
        reload_at = from;
    } else if (sscanf(text, "version@%lf", &from) == 1) {
        version_at = from;
    } else if (sscanf(text, "gone@%lf-%lf", &from, &until) >= 1) {
        gone_from = from;
        gone_until = until;
    } else if (sscanf(text, "field:%d:%d", &gpu, &value) == 2) {
        field_codes[gpu] = value;
    } else if (sscanf(text, "call:%63[^:]:%d", name, &value) == 2 && call_code_count < MAX_FAULTS) {
        strcpy(call_codes[call_code_count].name, name);
        call_codes[call_code_count++].code = value;
    } else {
        fprintf(stderr, "fake_nvml: no such fault: %s\n", text);
        abort();
    }
}

static void read_trace(const char *path) {
    char line[512];
    FILE *file = fopen(path, "r");
    if (!file) {
        perror(path);
        abort();
    }
    while (fgets(line, sizeof line, file)) {
        state_t s = {0};
        int gpu;
        if (sscanf(line, "%lf,%d,%lf,%lf,%lf,%lf,%lf,%lf,%lf", &s.t_s, &gpu, &s.power_mw, &s.util, &s.memory_mib,
                   &s.temp_c, &s.sm_mhz, &s.reasons, &s.sm_percent) != 9 || gpu < 0 || gpu >= MAX_GPUS)
            continue; /* the header */
        gpu_t *g = &gpus[gpu];
        if (g->count) {
            state_t *before = &g->states[g->count - 1];
            s.energy_mj = before->energy_mj + (s.t_s - before->t_s) * before->power_mw;
        }
        g->states = realloc(g->states, (g->count + 1) * sizeof(state_t));
        g->states[g->count++] = s;
        if (s.t_s > trace_s) trace_s = s.t_s;
    }
    fclose(file);
}

void fake_nvml_set_time(double t_s) { set_time_s = t_s; }

void fake_nvml_configure(int count, const char *trace, const char *faults) {
    for (int g = 0; g < MAX_GPUS; g++) {
        free(gpus[g].states);
        gpus[g] = (gpu_t){.lost_from = NEVER, .lost_until = NEVER, .xid_at = NEVER};
    }
    memset(field_codes, 0, sizeof field_codes);
    reload_at = version_at = gone_from = gone_until = NEVER;
    call_code_count = init_count = 0;
    trace_s = 0;
    set_time_s = -1;
    started_s = clock_s(CLOCK_MONOTONIC);
    gpu_count = count;
    configured = 1;
    if (trace && *trace) read_trace(trace);
    for (int g = 0; g < gpu_count; g++) {
        if (gpus[g].count) continue;
        /* 300 W and a little more for each further device, so that devices can be told apart */
        state_t s = {0, 300000 + 1000 * g, 50, 20000, 55, 1700, 0, 40, 0};
        gpus[g].states = malloc(sizeof s);
        gpus[g].states[0] = s;
        gpus[g].count = 1;
    }
    char copy[1024], *rest = copy, *fault;
    snprintf(copy, sizeof copy, "%s", faults ? faults : "");
    while ((fault = strsep(&rest, ",")))
        if (*fault) read_fault(fault);
}

static const state_t *state_at(int gpu, double t_s) {
    const gpu_t *g = &gpus[gpu];
    if (trace_s > 0) t_s -= (int)(t_s / trace_s) * trace_s;
    int at = 0;
    while (at + 1 < g->count && g->states[at + 1].t_s <= t_s) at++;
    return &g->states[at];
}

static double energy_until(int gpu, double t_s) {
    const gpu_t *g = &gpus[gpu];
    const state_t *last = &g->states[g->count - 1], *s = state_at(gpu, t_s);
    int rounds = trace_s > 0 ? (int)(t_s / trace_s) : 0;
    double round_mj = last->energy_mj + (trace_s - last->t_s) * last->power_mw;
    return rounds * round_mj + s->energy_mj + (t_s - rounds * trace_s - s->t_s) * s->power_mw;
}

static u64 energy_mj(int gpu) {
    double base = generation() ? energy_until(gpu, reload_at) : -1e9; /* one megajoule was used before we came */
    return (u64)(energy_until(gpu, now_s()) - base);
}

static code_t check_driver(const char *name) {
    for (int i = 0; i < call_code_count; i++)
        if (!strcmp(name, call_codes[i].name)) return call_codes[i].code;
    if (now_s() >= version_at) return VERSION_MISMATCH;
    if (now_s() >= gone_from && now_s() < gone_until) return DRIVER_NOT_LOADED;
    return OK;
}

static code_t check_device(const char *name, const handle_t *h) {
    code_t code = init_count ? check_driver(name) : UNINITIALIZED;
    if (code) return code;
    if (h->generation != generation()) return UNKNOWN;
    return now_s() >= gpus[h->index].lost_from && now_s() < gpus[h->index].lost_until ? GPU_IS_LOST : OK;
}

#define DEVICE(h)                                            \
    code_t failed = check_device(__func__, h);               \
    if (failed) return failed;                               \
    const state_t *state = state_at((h)->index, now_s());    \
    (void)state

/* --- library --- */

code_t nvmlInitWithFlags(u32 flags) {
    (void)flags;
    if (!configured) {
        const char *count = getenv("FAKE_NVML_GPUS");
        fake_nvml_configure(count ? atoi(count) : 8, getenv("FAKE_NVML_TRACE"), getenv("FAKE_NVML_FAULTS"));
    }
    code_t code = check_driver(__func__);
    if (!code) init_count++;
    return code;
}

code_t nvmlShutdown(void) {
    if (!init_count) return UNINITIALIZED;
    init_count--;
    return OK;
}

code_t nvmlDeviceGetCount_v2(u32 *count) {
    *count = gpu_count;
    return init_count ? check_driver(__func__) : UNINITIALIZED;
}

code_t nvmlDeviceGetHandleByIndex_v2(u32 index, handle_t **h) {
    if (index >= (u32)gpu_count) return INVALID_ARGUMENT;
    *h = &handles[generation()][index];
    **h = (handle_t){index, generation()};
    return check_device(__func__, *h);
}

code_t nvmlDeviceGetHandleByUUID(const char *uuid, handle_t **h) {
    unsigned index;
    if (sscanf(uuid, "GPU-fa4e0000-0000-4000-8000-%x", &index) != 1) return NOT_FOUND;
    return nvmlDeviceGetHandleByIndex_v2(index, h);
}

/* --- what a device is --- */

code_t nvmlDeviceGetUUID(handle_t *h, char *text, u32 size) {
    DEVICE(h);
    snprintf(text, size, "GPU-fa4e0000-0000-4000-8000-%012x", h->index);
    return OK;
}

code_t nvmlDeviceGetName(handle_t *h, char *text, u32 size) {
    DEVICE(h);
    snprintf(text, size, "NVIDIA H100 80GB HBM3");
    return OK;
}

typedef struct {
    char bus_id_legacy[16];
    u32 domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_t;

code_t nvmlDeviceGetPciInfo_v3(handle_t *h, pci_t *pci) {
    DEVICE(h);
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", h->index);
    return OK;
}

/* --- what a device says --- */

typedef struct {
    u32 version;
    u64 total, reserved, free, used;
} memory_v2_t;

code_t nvmlDeviceGetMemoryInfo_v2(handle_t *h, memory_v2_t *m) {
    DEVICE(h);
    if (m->version != (sizeof *m | 2u << 24)) return ARGUMENT_VERSION;
    m->total = MEMORY_BYTES;
    m->reserved = 560ULL << 20;
    m->used = (u64)state->memory_mib << 20;
    m->free = m->total - m->used - m->reserved;
    return OK;
}

code_t nvmlDeviceGetUtilizationRates(handle_t *h, u32 rates[2]) {
    DEVICE(h);
    rates[0] = state->util;
    rates[1] = state->util / 2;
    return OK;
}

code_t nvmlDeviceGetEncoderUtilization(handle_t *h, u32 *percent, u32 *period_us) {
    DEVICE(h);
    *percent = 0;
    *period_us = 167000;
    return OK;
}

code_t nvmlDeviceGetDecoderUtilization(handle_t *h, u32 *percent, u32 *period_us) {
    DEVICE(h);
    *percent = 0;
    *period_us = 167000;
    return OK;
}

typedef struct {
    u32 version, sensor;
    int temp_c;
} temperature_t;

code_t nvmlDeviceGetTemperatureV(handle_t *h, temperature_t *t) {
    DEVICE(h);
    if (t->version != (sizeof *t | 1u << 24)) return ARGUMENT_VERSION;
    t->temp_c = state->temp_c;
    return OK;
}

code_t nvmlDeviceGetTemperature(handle_t *h, int sensor, u32 *temp_c) {
    DEVICE(h);
    (void)sensor;
    *temp_c = state->temp_c;
    return OK;
}

code_t nvmlDeviceGetClockInfo(handle_t *h, int kind, u32 *mhz) {
    DEVICE(h);
    *mhz = kind == 2 ? 2619 : state->sm_mhz;
    return OK;
}

code_t nvmlDeviceGetCurrentClocksEventReasons(handle_t *h, u64 *reasons) {
    DEVICE(h);
    *reasons = state->reasons;
    return OK;
}

code_t nvmlDeviceGetPerformanceState(handle_t *h, u32 *pstate) {
    DEVICE(h);
    *pstate = state->util > 0 ? 0 : 8;
    return OK;
}

code_t nvmlDeviceGetEnforcedPowerLimit(handle_t *h, u32 *mw) {
    DEVICE(h);
    *mw = 700000;
    return OK;
}

code_t nvmlDeviceGetComputeRunningProcesses_v3(handle_t *h, u32 *count, void *processes) {
    DEVICE(h);
    (void)processes;
    int running = state->memory_mib > 600; /* the driver's own reserve is not a job's */
    code_t code = (u32)running > *count ? INSUFFICIENT_SIZE : OK;
    *count = running;
    return code;
}

typedef struct {
    u32 field, scope;
    int64_t timestamp_us, latency_us;
    u32 type; /* 1 unsigned int, 3 unsigned long long */
    code_t code;
    union {
        u32 small;
        u64 large;
    } value;
} field_value_t;

code_t nvmlDeviceGetFieldValues(handle_t *h, int count, field_value_t *values) {
    DEVICE(h);
    for (int i = 0; i < count; i++) {
        field_value_t *v = &values[i];
        v->timestamp_us = (int64_t)(clock_s(CLOCK_REALTIME) * 1e6);
        v->latency_us = 5;
        v->value.large = 0;
        v->code = v->field < MAX_FIELD ? field_codes[v->field] : INVALID_ARGUMENT;
        v->type = 3;
        if (v->code) continue;
        switch (v->field) {
        case 83: v->value.large = energy_mj(h->index); break;
        case 185: case 186: v->type = 1; v->value.small = state->power_mw; break;
        case 82: v->type = 1; v->value.small = state->temp_c + 10; break;
        case 74: v->value.large = (u64)state->reasons & 4 ? (u64)(now_s() * 1e9) : 0; break;
        case 197: case 198: v->value.large = (u64)(now_s() * 1e6); break;
        case 138: case 139: v->value.large = (u64)(now_s() * 1e4); break;
        case 3: case 4: case 38: case 45: case 52: case 59: case 76: case 94: case 269: case 270: case 271: break;
        default: v->code = NOT_SUPPORTED;
        }
    }
    return OK; /* as the driver does, though every value may have failed */
}

/* --- events --- */

typedef struct {
    handle_t *watched[MAX_GPUS];
} event_set_t;

typedef struct {
    handle_t *device;
    u64 type, data;
    u32 gpu_instance, compute_instance;
} event_t;

code_t nvmlEventSetCreate(event_set_t **set) {
    code_t code = check_driver(__func__);
    if (!code) *set = calloc(1, sizeof **set);
    return code;
}

code_t nvmlEventSetFree(event_set_t *set) {
    free(set);
    return OK;
}

code_t nvmlDeviceRegisterEvents(handle_t *h, u64 types, event_set_t *set) {
    DEVICE(h);
    if (types & 8) set->watched[h->index] = h;
    return OK;
}

code_t nvmlEventSetWait_v2(event_set_t *set, event_t *event, u32 timeout_ms) {
    (void)timeout_ms; /* the probe never waits */
    code_t code = check_driver(__func__);
    if (code) return code;
    for (int g = 0; g < gpu_count; g++) {
        if (!set->watched[g] || gpus[g].xid_told || now_s() < gpus[g].xid_at) continue;
        gpus[g].xid_told = 1;
        *event = (event_t){set->watched[g], 8, gpus[g].xid, ~0u, ~0u};
        return OK;
    }
    return TIMEOUT;
}

/* --- GPU performance monitoring --- */

typedef struct {
    int index;
    double t_s;
} gpm_sample_t;

typedef struct {
    u32 id;
    code_t code;
    double value;
    const char *names[3];
} gpm_metric_t;

typedef struct {
    u32 version, count;
    gpm_sample_t *earlier, *later;
    gpm_metric_t metrics[];
} gpm_request_t;

code_t nvmlGpmQueryDeviceSupport(handle_t *h, u32 support[2]) {
    DEVICE(h);
    support[1] = 1;
    return OK;
}

code_t nvmlGpmSampleAlloc(gpm_sample_t **sample) {
    *sample = calloc(1, sizeof **sample);
    return OK;
}

code_t nvmlGpmSampleFree(gpm_sample_t *sample) {
    free(sample);
    return OK;
}

code_t nvmlGpmSampleGet(handle_t *h, gpm_sample_t *sample) {
    DEVICE(h);
    *sample = (gpm_sample_t){h->index, now_s()};
    return OK;
}

code_t nvmlGpmMetricsGet(gpm_request_t *request) {
    code_t code = check_driver(__func__);
    if (code) return code;
    if (request->version != 1) return ARGUMENT_VERSION;
    const state_t *state = state_at(request->later->index, (request->earlier->t_s + request->later->t_s) / 2);
    for (u32 i = 0; i < request->count; i++) {
        gpm_metric_t *m = &request->metrics[i];
        m->code = m->id == 2 || m->id == 5 || m->id == 10 ? OK : NOT_SUPPORTED;
        m->value = m->id == 2 ? state->sm_percent : m->id == 5 ? state->sm_percent / 2 : state->sm_percent / 4;
    }
    return OK;
}
