/* What the host tells and gives: generations of snapshots, mapped files and memories. For the C guests of this repository, each of
 * which includes it once, behind vellum.h. */

static uint64_t host_state_counter;

VELLUM_FUNCTION(generation, VELLUM_U64)
{
    return vellum_u64(vellum_generation());
}

VELLUM_FUNCTION(checkpoint, VELLUM_U64, VELLUM_U32)
{
    return vellum_u64(vellum_checkpoint(argument[0].u32));
}

/* Asks for a snapshot, then counts: both copies go on behind the request. */
VELLUM_FUNCTION(checkpoint_then_count, VELLUM_U64, VELLUM_U32, VELLUM_U64)
{
    uint64_t generation = vellum_checkpoint(argument[0].u32);
    host_state_counter += argument[1].u64;
    return vellum_u64(generation * 1000 + host_state_counter);
}

/* The mapping that an argument names; NULL when there is none. */
static const struct vellum_mapping *host_state_find(vellum_value name)
{
    char label[VELLUM_MAX_LABEL_LEN_BYTES + 1] = {0};
    if (name.len_bytes > VELLUM_MAX_LABEL_LEN_BYTES) {
        return NULL;
    }
    memcpy(label, name.text, name.len_bytes);
    return vellum_find_mapping(label);
}

#define HOST_STATE_OF_MAPPING(name, type, value)            \
    VELLUM_FUNCTION(name, type, VELLUM_STRING)              \
    {                                                       \
        const struct vellum_mapping *mapping = host_state_find(argument[0]); \
        if (mapping == NULL) {                              \
            return VELLUM_ERROR("no mapping has this label"); \
        }                                                   \
        return value;                                       \
    }

HOST_STATE_OF_MAPPING(mapping_gpa, VELLUM_U64, vellum_u64(mapping->gpa))
HOST_STATE_OF_MAPPING(mapping_address, VELLUM_U64, vellum_u64(mapping->ptr))
HOST_STATE_OF_MAPPING(mapping_len, VELLUM_U64, vellum_u64(mapping->len_bytes))
HOST_STATE_OF_MAPPING(mapping_is_writable, VELLUM_BOOL, vellum_bool(mapping->flags & VELLUM_MAPPING_WRITABLE))

VELLUM_FUNCTION(mapping_count, VELLUM_U64)
{
    const volatile struct vellum_peb *peb = vellum_state.peb;
    return vellum_u64(peb->mappings_count);
}
