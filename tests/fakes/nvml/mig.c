/* Boards that are cut into instances. A handle of an instance is good until the board is cut anew. */
#include "fake.h"

static handle_t instances[MAX_GPUS][MAX_LAYOUTS][SLICES];

code_t nvmlDeviceGetMigMode(handle_t *h, u32 *current, u32 *pending) {
    BOARD(h);
    *current = *pending = mig_of(h->index) != 0;
    return OK;
}

code_t nvmlDeviceGetMaxMigDeviceCount(handle_t *h, u32 *count) {
    BOARD(h);
    *count = SLICES;
    return OK;
}

code_t nvmlDeviceGetMigDeviceHandleByIndex(handle_t *h, u32 index, handle_t **instance) {
    BOARD(h);
    const layout_t *layout = mig_of(h->index);
    if (!layout || index >= (u32)layout->count) return NOT_FOUND;
    int at = layout_of(h->index);
    *instance = &instances[h->index][at][index];
    **instance = (handle_t){h->index, h->generation, (int)index, at};
    return OK;
}

code_t nvmlDeviceGetGpuInstanceId(handle_t *h, u32 *id) {
    DEVICE(h);
    if (h->instance < 0) return INVALID_ARGUMENT;
    *id = h->instance + 1;
    return OK;
}

code_t nvmlDeviceGetComputeInstanceId(handle_t *h, u32 *id) {
    DEVICE(h);
    if (h->instance < 0) return INVALID_ARGUMENT;
    *id = 0;
    return OK;
}

typedef struct {
    u32 multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    u64 memory_mib;
} attributes_t;

code_t nvmlDeviceGetAttributes_v2(handle_t *h, attributes_t *a) {
    DEVICE(h);
    if (h->instance < 0) return NOT_SUPPORTED;
    int slices = gpus[h->index].layouts[h->layout].slices[h->instance];
    *a = (attributes_t){.multiprocessors = 16 * slices, .gpu_slices = slices, .compute_slices = slices};
    a->memory_mib = 9856ULL * slices;
    return OK;
}
