/* What a device says by fields: many in one call. */
#include "fake.h"

#define ALL_LINKS (~0u)
#define UNSIGNED_INT 1
#define UNSIGNED_LONG_LONG 3

typedef struct {
    u32 field, scope;
    int64_t timestamp_us, latency_us;
    u32 type;
    code_t code;
    union {
        u32 small;
        u64 large;
    } value;
} field_value_t;

/* Counters of links: each link moves 10 MB/s more than the one before, the sum over all of them 10,000 KiB/s. */
static code_t link_field(field_value_t *v) {
    int sum = v->scope == ALL_LINKS, modern = nvlink_version >= 5;
    if (!nvlink_version) return NOT_SUPPORTED;
    if (!sum && v->scope >= (u32)link_count) return INVALID_ARGUMENT;
    if (!sum && v->scope < (u32)idle_links && v->field != 165) return NOT_SUPPORTED;
    double link = sum ? 0 : v->scope, bytes_per_s = 1024e4 * (link + 1);
    switch (v->field) {
    case 138: case 139: v->value.large = (u64)(now_s() * bytes_per_s / 1024); return modern && !sum ? NOT_SUPPORTED : OK;
    case 202: case 204: v->value.large = (u64)(now_s() * bytes_per_s); return modern ? OK : NOT_SUPPORTED;
    case 164: v->type = UNSIGNED_INT; v->value.small = modern ? 53125 : 26562; return OK;
    case 165: v->type = UNSIGNED_INT; v->value.small = v->scope >= (u32)idle_links; return OK;
    case 161: case 162: case 163: v->value.large = link; return modern ? NOT_SUPPORTED : OK;
    case 206: case 207: case 208: case 209: case 211: case 212: case 215: case 221:
        v->value.large = link;
        return modern ? OK : NOT_SUPPORTED;
    default: return NOT_SUPPORTED;
    }
}

static code_t answer(const handle_t *h, const state_t *state, field_value_t *v) {
    v->type = UNSIGNED_LONG_LONG;
    switch (v->field) {
    case 83: v->value.large = energy_mj(h->index); return OK;
    case 185: v->type = UNSIGNED_INT; v->value.small = sensed_power_mw(h->index, now_s(), 10); return OK;
    case 186: v->type = UNSIGNED_INT; v->value.small = sensed_power_mw(h->index, now_s(), 1); return OK;
    case 82: v->type = UNSIGNED_INT; v->value.small = state->temp_c + 10; return OK;
    case 74: v->value.large = (u64)state->reasons & 4 ? (u64)(now_s() * 1e9) : 0; return OK;
    case 91: v->type = UNSIGNED_INT; v->value.small = nvlink_version ? link_count : 0; return OK;
    case 187: v->type = UNSIGNED_INT; v->value.small = 200000; return OK;
    case 188: case 189: v->type = UNSIGNED_INT; v->value.small = 700000; return OK;
    case 197: case 198:
        v->value.large = (u64)(now_s() * pcie_bytes_per_s);
        if (narrow_pcie) {
            v->type = UNSIGNED_INT;
            v->value.large &= 0xFFFFFFFF;
        }
        return OK;
    case 230:
        v->type = UNSIGNED_INT;
        v->value.small = now_s() >= gpus[h->index].action_at ? gpus[h->index].action : 0;
        return OK;
    case 3: case 4: case 5: case 6: /* ECC */
    case 38: case 45: case 52: case 59: /* NVLink errors in all */
    case 76: case 269: case 270: case 271: /* throttled for so long */
    case 94: /* PCIe replays */
    case 142: case 143: case 144: case 145: /* remapped rows */
        return OK;
    default: return link_field(v); /* retired pages (29, 30) have gone with Ampere */
    }
}

code_t nvmlDeviceGetFieldValues(handle_t *h, int count, field_value_t *values) {
    BOARD(h);
    if (count > most_fields) return most_fields_code;
    for (int i = 0; i < count; i++) {
        field_value_t *v = &values[i];
        v->timestamp_us = (int64_t)wall_us();
        v->latency_us = 5;
        v->value.large = 0;
        v->code = v->field < MAX_FIELD ? field_codes[v->field] : INVALID_ARGUMENT;
        if (v->code) continue;
        v->code = answer(h, state, v);
        if (field_is_set[v->field]) {
            v->code = OK;
            v->value.large = field_values[v->field];
        }
        if (field_types[v->field]) v->type = field_types[v->field];
    }
    return OK; /* as the driver does, though every value may have failed */
}
