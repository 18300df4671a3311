/*
 * The simulated node: its devices by trace or at rest, its clock, and how it misbehaves on request.
 *
 * Environment, read by the first nvmlInit; or fake_nvml_configure:
 *   FAKE_NVML_GPUS    number of devices (default 8)
 *   FAKE_NVML_TRACE   CSV file, lines "t_s,gpu,power_mw,gpu_util_percent,memory_mib,temp_c,sm_mhz,reasons,sm_percent",
 *                     sorted by time; each line holds until the next of its device, the trace starts over at its end
 *   FAKE_NVML_FAULTS  comma-separated, G a device, T and U seconds since the start ([-U]: until then, else for ever):
 *     down:G:C@T[-U]         device G answers every call with code C; lost:G@T[-U] is code 15
 *     hang:G:NAME@T[-U]      calls of NAME (or *) about G do not come back before U; G -1: calls about no device
 *     slow:NAME:US           calls of NAME (or *) take so many microseconds
 *     call:NAME:C            function NAME answers code C
 *     field:F:C              field F answers code C
 *     value:F:V  type:F:Y    field F answers V, and as value type Y (1 unsigned int, 3 unsigned long long, ...)
 *     xid:G:X@T[/I]          device G raises XID X, in GPU instance I
 *     action:G:A@T           device G asks for recovery action A
 *     counter_reset:G@T      the energy counter of G starts over
 *     reload@T               driver reloaded: counters start over, handles of before are stale
 *     gone@T[-U]             no driver loaded
 *     version@T              the library does not match the driver
 *     mig:G:P+P+...@T        from T on G is cut into these profiles (1g.10gb and so on), or "none" under MIG, or "off"
 *     process:G:PID:K:MIB:SM[:I]@T[-U]   a process of kind c, g or m, on instance I; the first one replaces the default
 *     spoiling               an event set with a device that is down answers its code
 *     sensor:WINDOW:PERIOD   power gauges see the first WINDOW ms of each PERIOD ms; the default is all of the time
 *     counter:PERIOD         the energy counter moves every PERIOD ms only
 *     pcie:B  pcie32         PCIe bytes per second; and counters of 32 bits
 *     capability:X:Y         compute capability (9.0, a Hopper)
 *     nvlink:V:N             N links of NVLink version V (4: the default, 18 links; 5: Blackwell's counters; 0: none)
 *     idle_links:N           the first N links are not connected
 *     many_fields:N:C        a call for more than N fields at once answers C
 */
#include "fake.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_FAULTS 64

gpu_t gpus[MAX_GPUS];
int gpu_count, init_count, open_objects;
code_t field_codes[MAX_FIELD];
int field_types[MAX_FIELD];
u64 field_values[MAX_FIELD];
char field_is_set[MAX_FIELD];
int spoiling, narrow_pcie, nvlink_version, link_count, idle_links, most_fields, most_fields_code;
int capability[2];
double pcie_bytes_per_s;

static int configured;
static volatile double set_time_s;
static volatile int released;
static volatile u64 calls_made;
static double started_s, trace_s;
static double reload_at, version_at, gone_from, gone_until;
static double sensor_window_s, sensor_period_s, counter_period_s;
static struct {
    char name[128];
    int gpu; /* of a hang */
    code_t code;
    int slow_us;
    double from, until;
} faults[MAX_FAULTS];
static int fault_count;

static double clock_s(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

double wall_us(void) { return clock_s(CLOCK_REALTIME) * 1e6; }
double now_s(void) { return set_time_s >= 0 ? set_time_s : clock_s(CLOCK_MONOTONIC) - started_s; }
int generation(void) { return now_s() >= reload_at; }

/* --- faults --- */

static void add_fault(const char *name, int gpu, code_t code, int slow_us, double from, double until) {
    if (fault_count == MAX_FAULTS) abort();
    faults[fault_count].gpu = gpu;
    faults[fault_count].code = code;
    faults[fault_count].slow_us = slow_us;
    faults[fault_count].from = from;
    faults[fault_count].until = until;
    snprintf(faults[fault_count++].name, sizeof faults->name, "%s", name);
}

static void read_layout(int gpu, char *profiles, double from) {
    gpu_t *g = &gpus[gpu];
    if (g->layout_count == MAX_LAYOUTS) abort();
    layout_t *l = &g->layouts[g->layout_count++];
    *l = (layout_t){.from_s = from, .on = strcmp(profiles, "off") != 0};
    if (!l->on || !strcmp(profiles, "none")) return;
    for (char *p; (p = strsep(&profiles, "+")) && l->count < SLICES; l->count++) {
        l->slices[l->count] = atoi(p);
        snprintf(l->profiles[l->count], sizeof l->profiles[0], "%s", p);
    }
}

static void read_process(const char *text) {
    process_t p = {.instance = -1, .until_s = NEVER};
    int gpu, used = 0;
    if (sscanf(text, "process:%d:%u:%c:%lf:%lf%n", &gpu, &p.pid, &p.kind, &p.memory_mib, &p.sm_percent, &used) < 5) abort();
    sscanf(text + used, ":%d", &p.instance);
    const char *at = strchr(text, '@');
    if (at) sscanf(at, "@%lf-%lf", &p.from_s, &p.until_s);
    if (gpus[gpu].process_count == MAX_PROCESSES) abort();
    gpus[gpu].processes[gpus[gpu].process_count++] = p;
}

static void read_fault(const char *text) {
    int gpu, value, more = -1;
    double from, until = NEVER, third;
    char name[128];
    u64 large;
    if (sscanf(text, "lost:%d@%lf-%lf", &gpu, &from, &until) >= 2) {
        gpus[gpu].down_code = GPU_IS_LOST;
        gpus[gpu].down_from = from;
        gpus[gpu].down_until = until;
    } else if (sscanf(text, "down:%d:%d@%lf-%lf", &gpu, &value, &from, &until) >= 3) {
        gpus[gpu].down_code = value;
        gpus[gpu].down_from = from;
        gpus[gpu].down_until = until;
    } else if (sscanf(text, "hang:%d:%127[^@]@%lf-%lf", &gpu, name, &from, &until) >= 3) {
        add_fault(name, gpu, OK, 0, from, until);
    } else if (sscanf(text, "slow:%127[^:]:%d", name, &value) == 2) {
        add_fault(name, 0, OK, value, 0, NEVER);
    } else if (sscanf(text, "call:%127[^:]:%d", name, &value) == 2) {
        add_fault(name, 0, value, 0, 0, NEVER);
    } else if (sscanf(text, "field:%d:%d", &gpu, &value) == 2) {
        field_codes[gpu] = value;
    } else if (sscanf(text, "value:%d:%llu", &gpu, &large) == 2) {
        field_values[gpu] = large;
        field_is_set[gpu] = 1;
    } else if (sscanf(text, "type:%d:%d", &gpu, &value) == 2) {
        field_types[gpu] = value;
    } else if (sscanf(text, "xid:%d:%d@%lf/%d", &gpu, &value, &from, &more) >= 3) {
        gpus[gpu].xid = value;
        gpus[gpu].xid_at = from;
        gpus[gpu].xid_instance = more;
    } else if (sscanf(text, "action:%d:%d@%lf", &gpu, &value, &from) == 3) {
        gpus[gpu].action = value;
        gpus[gpu].action_at = from;
    } else if (sscanf(text, "counter_reset:%d@%lf", &gpu, &from) == 2) {
        gpus[gpu].counter_reset_at = from;
    } else if (sscanf(text, "reload@%lf", &from) == 1) {
        reload_at = from;
    } else if (sscanf(text, "version@%lf", &from) == 1) {
        version_at = from;
    } else if (sscanf(text, "gone@%lf-%lf", &from, &until) >= 1) {
        gone_from = from;
        gone_until = until;
    } else if (sscanf(text, "mig:%d:%127[^@]@%lf", &gpu, name, &from) == 3) {
        read_layout(gpu, name, from);
    } else if (!strncmp(text, "process:", 8)) {
        read_process(text);
    } else if (sscanf(text, "sensor:%lf:%lf", &from, &third) == 2) {
        sensor_window_s = from / 1e3;
        sensor_period_s = third / 1e3;
    } else if (sscanf(text, "counter:%lf", &from) == 1) {
        counter_period_s = from / 1e3;
    } else if (sscanf(text, "pcie:%lf", &from) == 1) {
        pcie_bytes_per_s = from;
    } else if (sscanf(text, "capability:%d:%d", &value, &more) == 2) {
        capability[0] = value;
        capability[1] = more;
    } else if (sscanf(text, "idle_links:%d", &value) == 1) {
        idle_links = value;
    } else if (sscanf(text, "many_fields:%d:%d", &value, &more) == 2) {
        most_fields = value;
        most_fields_code = more;
    } else if (!strcmp(text, "spoiling")) {
        spoiling = 1;
    } else if (!strcmp(text, "pcie32")) {
        narrow_pcie = 1;
    } else if (sscanf(text, "nvlink:%d:%d", &value, &more) == 2) {
        nvlink_version = value;
        link_count = more;
    } else {
        fprintf(stderr, "fake_nvml: no such fault: %s\n", text);
        abort();
    }
}

/* Counts the call, takes the time it was told to take, and returns the code it was told to return. */
static code_t misbehave(const char *name, int gpu) {
    calls_made++;
    for (int i = 0; i < fault_count; i++) {
        if (strcmp(faults[i].name, "*") && strcmp(faults[i].name, name)) continue;
        if (faults[i].code) return faults[i].code;
        if (faults[i].slow_us) usleep(faults[i].slow_us);
        if (faults[i].slow_us || faults[i].gpu != gpu) continue;
        while (now_s() >= faults[i].from && now_s() < faults[i].until && !released) usleep(2000);
    }
    return OK;
}

code_t check_driver(const char *name) {
    code_t code = misbehave(name, -1);
    if (code) return code;
    if (now_s() >= version_at) return VERSION_MISMATCH;
    if (now_s() >= gone_from && now_s() < gone_until) return DRIVER_NOT_LOADED;
    return OK;
}

code_t check_device(const char *name, const handle_t *h) {
    if (!init_count) return UNINITIALIZED;
    code_t code = misbehave(name, h->index);
    if (code) return code;
    if (now_s() >= version_at) return VERSION_MISMATCH;
    if (now_s() >= gone_from && now_s() < gone_until) return DRIVER_NOT_LOADED;
    if (h->generation != generation()) return UNKNOWN;
    if (h->instance >= 0 && h->layout != layout_of(h->index)) return NOT_FOUND;
    const gpu_t *g = &gpus[h->index];
    return now_s() >= g->down_from && now_s() < g->down_until ? g->down_code : OK;
}

/* --- what the devices do --- */

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

const state_t *state_at(int gpu, double t_s) {
    const gpu_t *g = &gpus[gpu];
    if (trace_s > 0) t_s -= floor(t_s / trace_s) * trace_s;
    int at = 0;
    while (at + 1 < g->count && g->states[at + 1].t_s <= t_s) at++;
    return &g->states[at];
}

static double energy_until(int gpu, double t_s) {
    const gpu_t *g = &gpus[gpu];
    const state_t *last = &g->states[g->count - 1];
    double rounds = trace_s > 0 ? floor(t_s / trace_s) : 0;
    double inside_s = t_s - rounds * trace_s, round_mj = last->energy_mj + (trace_s - last->t_s) * last->power_mw;
    const state_t *s = state_at(gpu, inside_s);
    return rounds * round_mj + s->energy_mj + (inside_s - s->t_s) * s->power_mw;
}

u64 energy_mj(int gpu) {
    double t_s = now_s();
    if (counter_period_s > 0) t_s = floor(t_s / counter_period_s + 1e-9) * counter_period_s;
    double base = generation() ? energy_until(gpu, reload_at) : -1e9; /* one megajoule was used before we came */
    if (t_s >= gpus[gpu].counter_reset_at) base = energy_until(gpu, gpus[gpu].counter_reset_at);
    return (u64)(energy_until(gpu, t_s) - base);
}

/* What the power sensor says: the mean of the windows it saw in the last so many of its periods. */
double sensed_power_mw(int gpu, double t_s, int periods) {
    if (sensor_period_s <= 0) return state_at(gpu, t_s)->power_mw;
    double latest = floor((t_s - sensor_window_s) / sensor_period_s + 1e-9), seen_mj = 0;
    if (latest < 0) return state_at(gpu, t_s)->power_mw;
    if (periods > latest + 1) periods = (int)latest + 1;
    for (int i = 0; i < periods; i++) {
        double from = (latest - i) * sensor_period_s;
        seen_mj += energy_until(gpu, from + sensor_window_s) - energy_until(gpu, from);
    }
    return seen_mj / (periods * sensor_window_s);
}

int layout_of(int gpu) {
    int at = -1;
    while (at + 1 < gpus[gpu].layout_count && gpus[gpu].layouts[at + 1].from_s <= now_s()) at++;
    return at;
}

const layout_t *mig_of(int gpu) {
    int at = layout_of(gpu);
    return at >= 0 && gpus[gpu].layouts[at].on ? &gpus[gpu].layouts[at] : NULL;
}

/* --- what the tests turn --- */

void fake_nvml_set_time(double t_s) { set_time_s = t_s; }
void fake_nvml_release(void) { released = 1; } /* calls that hang come back, and none hangs any more */
u64 fake_nvml_calls(void) { return calls_made; }
int fake_nvml_open_objects(void) { return open_objects; } /* event sets and GPM samples not freed */
int fake_nvml_init_count(void) { return init_count; }

void fake_nvml_configure(int count, const char *trace, const char *text) {
    for (int g = 0; g < MAX_GPUS; g++) {
        free(gpus[g].states);
        gpus[g] = (gpu_t){
            .down_from = NEVER, .counter_reset_at = NEVER, .xid_at = NEVER, .action_at = NEVER, .xid_instance = -1};
    }
    memset(field_codes, 0, sizeof field_codes);
    memset(field_types, 0, sizeof field_types);
    memset(field_is_set, 0, sizeof field_is_set);
    reload_at = version_at = gone_from = gone_until = NEVER;
    sensor_window_s = sensor_period_s = counter_period_s = trace_s = 0;
    fault_count = init_count = open_objects = spoiling = narrow_pcie = idle_links = released = 0;
    most_fields = 1 << 20;
    nvlink_version = 4;
    link_count = 18;
    capability[0] = 9;
    capability[1] = 0;
    pcie_bytes_per_s = 1e6;
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
    char *copy = strdup(text ? text : ""), *rest = copy, *fault;
    while ((fault = strsep(&rest, ",")))
        if (*fault) read_fault(fault);
    free(copy);
}

void use_environment(void) {
    if (configured) return;
    const char *count = getenv("FAKE_NVML_GPUS");
    fake_nvml_configure(count ? atoi(count) : 8, getenv("FAKE_NVML_TRACE"), getenv("FAKE_NVML_FAULTS"));
}
