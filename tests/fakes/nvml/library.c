/* Initialising, handles, and what a device is. */
#include "fake.h"

#include <stdio.h>
#include <string.h>

static handle_t handles[2][MAX_GPUS]; /* before and after a reload */

code_t nvmlInitWithFlags(u32 flags) {
    (void)flags;
    use_environment();
    code_t code = check_driver(__func__);
    if (!code) init_count++;
    return code;
}

code_t nvmlShutdown(void) {
    if (!init_count) return UNINITIALIZED;
    code_t code = check_driver(__func__);
    init_count--;
    return code;
}

code_t nvmlSystemGetDriverVersion(char *text, u32 size) {
    snprintf(text, size, "590.48.01");
    return init_count ? check_driver(__func__) : UNINITIALIZED;
}

code_t nvmlDeviceGetCount_v2(u32 *count) {
    *count = gpu_count;
    return init_count ? check_driver(__func__) : UNINITIALIZED;
}

static code_t handle_of(u32 index, handle_t **h, const char *name) {
    if (index >= (u32)gpu_count) return INVALID_ARGUMENT;
    *h = &handles[generation()][index];
    **h = (handle_t){index, generation(), -1, -1};
    return check_device(name, *h);
}

code_t nvmlDeviceGetHandleByIndex_v2(u32 index, handle_t **h) { return handle_of(index, h, __func__); }

code_t nvmlDeviceGetHandleByUUID(const char *uuid, handle_t **h) {
    u32 index;
    if (sscanf(uuid, "GPU-fa4e0000-0000-4000-8000-%x", &index) != 1) return NOT_FOUND;
    return handle_of(index, h, __func__);
}

code_t nvmlDeviceGetUUID(handle_t *h, char *text, u32 size) {
    DEVICE(h);
    if (h->instance < 0)
        snprintf(text, size, "GPU-fa4e0000-0000-4000-8000-%012x", h->index);
    else /* the same for the same profile at the same place, as the driver's are */
        snprintf(text, size, "MIG-fa4e0000-0000-4000-8000-%08x%02x%02x", h->index, h->instance,
                 gpus[h->index].layouts[h->layout].slices[h->instance]);
    return OK;
}

code_t nvmlDeviceGetName(handle_t *h, char *text, u32 size) {
    DEVICE(h);
    if (h->instance < 0)
        snprintf(text, size, "NVIDIA H100 80GB HBM3");
    else
        snprintf(text, size, "NVIDIA H100 80GB HBM3 MIG %s", gpus[h->index].layouts[h->layout].profiles[h->instance]);
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
