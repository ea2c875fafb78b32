/* The C guest of Vellum's demo and tests: one function of each sort, from plain gcc and one header. */
#define VELLUM_IMPLEMENTATION
#include <vellum.h>

VELLUM_IMPORT(host_add, VELLUM_I32, VELLUM_I32, VELLUM_I32);

VELLUM_FUNCTION(c_add, VELLUM_I32, VELLUM_I32, VELLUM_I32)
{
    /* Signed overflow is undefined in C; unsigned wraps. */
    return vellum_i32((int32_t)((uint32_t)argument[0].i32 + (uint32_t)argument[1].i32));
}

VELLUM_FUNCTION(c_greet, VELLUM_STRING, VELLUM_STRING)
{
    static const char before[] = "Hello, ", after[] = " from C!";
    const size_t before_len = sizeof before - 1, after_len = sizeof after - 1;
    if (argument[0].len_bytes > UINT32_MAX - before_len - after_len) {
        return VELLUM_ERROR("name too long");
    }
    uint32_t len = (uint32_t)(before_len + argument[0].len_bytes + after_len);
    char *text = vellum_alloc(len);
    memcpy(text, before, before_len);
    memcpy(text + before_len, argument[0].text, argument[0].len_bytes);
    memcpy(text + before_len + argument[0].len_bytes, after, after_len);
    return vellum_string(text, len);
}

VELLUM_FUNCTION(c_sum_bytes, VELLUM_U64, VELLUM_BYTES)
{
    uint64_t sum = 0;
    for (uint32_t index = 0; index < argument[0].len_bytes; index++) {
        sum += argument[0].bytes[index];
    }
    return vellum_u64(sum);
}

VELLUM_FUNCTION(c_call_host_add, VELLUM_I32, VELLUM_I32, VELLUM_I32)
{
    return vellum_host_call(host_add, argument[0], argument[1]);
}

/* Returns an error with this text. */
VELLUM_FUNCTION(c_fail, VELLUM_UNIT, VELLUM_STRING)
{
    return vellum_error(argument[0].text, argument[0].len_bytes);
}

/* Panics with a message of its own. */
VELLUM_FUNCTION(c_panic, VELLUM_UNIT)
{
    vellum_panic("the C guest was asked to panic");
}

/* Writes one log record. */
VELLUM_FUNCTION(c_log, VELLUM_UNIT)
{
    vellum_log(VELLUM_LOG_INFO, "c-user", "a line from C");
    return vellum_unit();
}

/* Allocates, and panics when there is no room. */
VELLUM_FUNCTION(c_allocate, VELLUM_U64, VELLUM_U64)
{
    vellum_alloc(argument[0].u64);
    return vellum_u64(argument[0].u64);
}

#include "host_state.h"
