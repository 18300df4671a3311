/* GPU performance monitoring: means between two samples. */
#include "fake.h"

#include <stdlib.h>

#define BYTES_PER_MIB 1048576.0

typedef struct {
    int index;
    u32 instance;
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
    code_t code = check_driver(__func__);
    if (code) return code;
    *sample = calloc(1, sizeof **sample);
    open_objects++;
    return OK;
}

code_t nvmlGpmSampleFree(gpm_sample_t *sample) {
    free(sample);
    open_objects--;
    return OK;
}

code_t nvmlGpmSampleGet(handle_t *h, gpm_sample_t *sample) {
    BOARD(h);
    *sample = (gpm_sample_t){h->index, 0, now_s()};
    return OK;
}

code_t nvmlGpmMigSampleGet(handle_t *h, u32 instance, gpm_sample_t *sample) {
    BOARD(h);
    const layout_t *layout = mig_of(h->index);
    if (!layout || !instance || instance > (u32)layout->count) return NOT_FOUND;
    *sample = (gpm_sample_t){h->index, instance, now_s()};
    return OK;
}

/* Each instance is a little busier than the one before, and the first than the board. */
static code_t metric(const gpm_request_t *request, gpm_metric_t *m) {
    const gpm_sample_t *a = request->earlier, *b = request->later;
    double busy = state_at(b->index, (a->t_s + b->t_s) / 2)->sm_percent + b->instance;
    switch (m->id) {
    case 2: m->value = busy; return OK;
    case 5: m->value = busy / 2; return OK;
    case 10: m->value = busy / 4; return OK;
    case 20: case 21: m->value = pcie_bytes_per_s / BYTES_PER_MIB; return OK;
    default: return NOT_SUPPORTED;
    }
}

code_t nvmlGpmMetricsGet(gpm_request_t *request) {
    code_t code = check_driver(__func__);
    if (code) return code;
    if (request->version != 1) return ARGUMENT_VERSION;
    for (u32 i = 0; i < request->count; i++) request->metrics[i].code = metric(request, &request->metrics[i]);
    return OK;
}
