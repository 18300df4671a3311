/* The power limit of a board, which whoever may can set within its constraints. */
#include "fake.h"

#define LOWEST_MW 200000
#define HIGHEST_MW 700000

static u32 set_mw[MAX_GPUS]; /* 0: never set */

code_t nvmlDeviceGetPowerManagementLimitConstraints(handle_t *h, u32 *low_mw, u32 *high_mw) {
    BOARD(h);
    *low_mw = LOWEST_MW;
    *high_mw = HIGHEST_MW;
    return OK;
}

code_t nvmlDeviceGetPowerManagementLimit(handle_t *h, u32 *mw) {
    BOARD(h);
    *mw = set_mw[h->index] ? set_mw[h->index] : HIGHEST_MW;
    return OK;
}

code_t nvmlDeviceGetPowerManagementDefaultLimit(handle_t *h, u32 *mw) {
    BOARD(h);
    *mw = HIGHEST_MW;
    return OK;
}

code_t nvmlDeviceGetEnforcedPowerLimit(handle_t *h, u32 *mw) {
    return nvmlDeviceGetPowerManagementLimit(h, mw);
}

code_t nvmlDeviceSetPowerManagementLimit(handle_t *h, u32 mw) {
    BOARD(h);
    if (mw < LOWEST_MW || mw > HIGHEST_MW) return INVALID_ARGUMENT;
    set_mw[h->index] = mw;
    return OK;
}
