/*
 * What the parts of the fake driver library share: the simulated node, its time and its faults.
 *
 * The parts: node.c (devices, time, faults), library.c (initialising, handles, names), device.c (what a device says by calls),
 * fields.c (and by fields), mig.c, processes.c, events.c, gpm.c, power.c. No NVIDIA header is needed; the layouts are NVML's ABI.
 */
#pragma once

#include <stdint.h>

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
#define MAX_FIELD 512
#define MAX_PROCESSES 128
#define MAX_LAYOUTS 8
#define SLICES 7 /* of a board under MIG, as a H100 has */
#define NO_INSTANCE (~0u)
#define NEVER 1e300

typedef struct {
    double t_s;
    double power_mw, util, memory_mib, temp_c, sm_mhz, reasons, sm_percent;
    double energy_mj; /* integral of power up to t_s */
} state_t;

/* How a board is cut up from a time on; no slices at all means that MIG is on and holds no instance. */
typedef struct {
    double from_s;
    int on, count;
    int slices[SLICES];
    char profiles[SLICES][24];
} layout_t;

typedef struct {
    u32 pid;
    char kind; /* c(ompute), g(raphics), m(ps) */
    double memory_mib, sm_percent;
    int instance; /* -1: on the board */
    double from_s, until_s;
} process_t;

typedef struct {
    state_t *states;
    int count;
    layout_t layouts[MAX_LAYOUTS];
    int layout_count;
    process_t processes[MAX_PROCESSES];
    int process_count;
    code_t down_code;
    double down_from, down_until;
    double counter_reset_at;
    double xid_at, action_at;
    int xid, xid_instance, xid_told, action, action_told;
} gpu_t;

/* A device, or one of its MIG instances as of one layout. Handles of another generation or layout are dead. */
typedef struct {
    int index, generation, instance, layout;
} handle_t;

extern gpu_t gpus[MAX_GPUS];
extern int gpu_count, init_count, open_objects;
extern code_t field_codes[MAX_FIELD];
extern int field_types[MAX_FIELD];
extern u64 field_values[MAX_FIELD];
extern char field_is_set[MAX_FIELD];
extern int spoiling, narrow_pcie, nvlink_version, link_count, idle_links, most_fields, most_fields_code;
extern int capability[2];
extern double pcie_bytes_per_s;

void use_environment(void);
double now_s(void);
double wall_us(void);
int generation(void);
const state_t *state_at(int gpu, double t_s);
double sensed_power_mw(int gpu, double t_s, int periods);
u64 energy_mj(int gpu);
int layout_of(int gpu);
const layout_t *mig_of(int gpu); /* NULL: MIG is off */
code_t check_driver(const char *name);
code_t check_device(const char *name, const handle_t *h);

#define DEVICE(h)                                         \
    code_t failed = check_device(__func__, h);            \
    if (failed) return failed;                            \
    const state_t *state = state_at((h)->index, now_s()); \
    (void)state

/* Of the board only: a MIG instance has no such thing. */
#define BOARD(h) \
    DEVICE(h);   \
    if ((h)->instance >= 0) return NOT_SUPPORTED
