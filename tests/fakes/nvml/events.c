/* Event sets. The probe never waits, so that what is asked for is there or is not. */
#include "fake.h"

#include <stdlib.h>

#define XID 0x8
#define RECOVERY_ACTION 0x8000

typedef struct {
    handle_t *watched[MAX_GPUS];
    u64 types[MAX_GPUS];
} event_set_t;

typedef struct {
    handle_t *device;
    u64 type, data;
    u32 gpu_instance, compute_instance;
} event_t;

code_t nvmlEventSetCreate(event_set_t **set) {
    code_t code = check_driver(__func__);
    if (code) return code;
    *set = calloc(1, sizeof **set);
    open_objects++;
    return OK;
}

code_t nvmlEventSetFree(event_set_t *set) {
    free(set);
    open_objects--;
    return OK;
}

code_t nvmlDeviceGetSupportedEventTypes(handle_t *h, u64 *types) {
    DEVICE(h);
    *types = XID | RECOVERY_ACTION;
    return OK;
}

code_t nvmlDeviceRegisterEvents(handle_t *h, u64 types, event_set_t *set) {
    DEVICE(h);
    if (h->instance >= 0) return NOT_SUPPORTED;
    set->watched[h->index] = h;
    set->types[h->index] = types;
    return OK;
}

code_t nvmlEventSetWait_v2(event_set_t *set, event_t *event, u32 timeout_ms) {
    (void)timeout_ms;
    code_t code = check_driver(__func__);
    if (code) return code;
    for (int i = 0; i < gpu_count; i++) {
        gpu_t *g = &gpus[i];
        if (!set->watched[i]) continue;
        if (spoiling && now_s() >= g->down_from && now_s() < g->down_until) return g->down_code;
        if (!g->xid_told && now_s() >= g->xid_at && set->types[i] & XID) {
            g->xid_told = 1;
            *event = (event_t){set->watched[i], XID, g->xid, (u32)g->xid_instance, NO_INSTANCE};
            return OK;
        }
        if (!g->action_told && now_s() >= g->action_at && set->types[i] & RECOVERY_ACTION) {
            g->action_told = 1;
            *event = (event_t){set->watched[i], RECOVERY_ACTION, g->action, NO_INSTANCE, NO_INSTANCE};
            return OK;
        }
    }
    return TIMEOUT;
}
