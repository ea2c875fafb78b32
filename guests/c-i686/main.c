/* The C kernel of Vellum's tests: 32-bit, flat, in ring 0 without paging. From plain gcc and one header. */
#define VELLUM_IMPLEMENTATION
#include <vellum.h>

#define PAGE_LEN_BYTES 4096u

VELLUM_IMPORT(host_add, VELLUM_I32, VELLUM_I32, VELLUM_I32);

static uint64_t counter;

VELLUM_FUNCTION(null, VELLUM_UNIT)
{
    return vellum_unit();
}

VELLUM_FUNCTION(add, VELLUM_I32, VELLUM_I32, VELLUM_I32)
{
    /* Signed overflow is undefined in C; unsigned wraps. */
    return vellum_i32((int32_t)((uint32_t)argument[0].i32 + (uint32_t)argument[1].i32));
}

VELLUM_FUNCTION(greet, VELLUM_STRING, VELLUM_STRING)
{
    static const char before[] = "Hello, ", after[] = "!";
    const uint32_t before_len = sizeof before - 1, after_len = sizeof after - 1;
    const uint32_t name_len = argument[0].len_bytes;
    if (name_len > UINT32_MAX - before_len - after_len) {
        return VELLUM_ERROR("name too long");
    }
    uint32_t len = before_len + name_len + after_len;
    char *text = vellum_alloc(len);
    memcpy(text, before, before_len);
    memcpy(text + before_len, argument[0].text, name_len);
    memcpy(text + before_len + name_len, after, after_len);
    return vellum_string(text, len);
}

VELLUM_FUNCTION(counter_add, VELLUM_U64, VELLUM_U64)
{
    counter += argument[0].u64;
    return vellum_u64(counter);
}

VELLUM_FUNCTION(counter_get, VELLUM_U64)
{
    return vellum_u64(counter);
}

VELLUM_FUNCTION(call_host_add, VELLUM_I32, VELLUM_I32, VELLUM_I32)
{
    return vellum_host_call(host_add, argument[0], argument[1]);
}

VELLUM_FUNCTION(sum_bytes, VELLUM_U64, VELLUM_BYTES)
{
    uint64_t sum = 0;
    for (uint32_t index = 0; index < argument[0].len_bytes; index++) {
        sum += argument[0].bytes[index];
    }
    return vellum_u64(sum);
}

/* Writes one word in each of the first pages of the heap, and returns how many it wrote. */
VELLUM_FUNCTION(touch_pages, VELLUM_U64, VELLUM_U64)
{
    const struct vellum_peb *peb = vellum_state.peb;
    uint64_t first = (peb->heap_ptr + PAGE_LEN_BYTES - 1) & ~(uint64_t)(PAGE_LEN_BYTES - 1);
    uint64_t end = peb->heap_ptr + peb->heap_len_bytes;
    /* In the type of the argument: a count of 2^32 pages and more is no smaller one. */
    uint64_t possible = end > first ? (end - first) / PAGE_LEN_BYTES : 0;
    if (argument[0].u64 > possible) {
        return VELLUM_ERROR("the heap has fewer pages");
    }
    for (uint32_t page = 0; page < (uint32_t)argument[0].u64; page++) {
        *(volatile uint32_t *)((uintptr_t)first + page * PAGE_LEN_BYTES) = 0x5EED + page;
    }
    return argument[0];
}

static volatile uint32_t *word_at(uint64_t address)
{
    /* Every address a program can form has 32 bits; the rest of the argument must not be lost silently. */
    if (address > UINT32_MAX) {
        vellum_panic("address of more than 32 bits");
    }
    return (volatile uint32_t *)(uintptr_t)address;
}

VELLUM_FUNCTION(read_address, VELLUM_U64, VELLUM_U64)
{
    return vellum_u64(*word_at(argument[0].u64));
}

VELLUM_FUNCTION(write_address, VELLUM_UNIT, VELLUM_U64, VELLUM_U64)
{
    *word_at(argument[0].u64) = (uint32_t)argument[1].u64;
    return vellum_unit();
}

VELLUM_FUNCTION(peb_address, VELLUM_U64)
{
    return vellum_u64((uintptr_t)vellum_state.peb);
}

VELLUM_FUNCTION(get_cr0, VELLUM_U32)
{
    uint32_t value;
    __asm__ volatile("movl %%cr0, %0" : "=r"(value));
    return vellum_u32(value);
}

VELLUM_FUNCTION(do_panic, VELLUM_UNIT, VELLUM_STRING)
{
    if (argument[0].len_bytes > SIZE_MAX - 1) {
        vellum_panic("message too long");
    }
    char *message = vellum_alloc(argument[0].len_bytes + 1);
    memcpy(message, argument[0].text, argument[0].len_bytes);
    message[argument[0].len_bytes] = 0;
    vellum_panic(message);
}

/* Stops the CPU. Interrupts are off, so only the host can bring it back. */
VELLUM_FUNCTION(halt, VELLUM_UNIT)
{
    __asm__ volatile("hlt");
    return vellum_unit();
}

/* An exception without an interrupt table cannot be delivered, nor can the double fault after it: the CPU shuts down
 * (Intel SDM volume 3, section 6.15, "Interrupt 8"). The exception is the #GP of a CR0 with NW set and CD clear
 * (volume 2, "MOV - Move to/from Control Registers"), which hypervisors that emulate ring 0 raise like any CPU; not all
 * of them know how to raise #BP or #UD. */
VELLUM_FUNCTION(triple_fault, VELLUM_UNIT)
{
    static const struct __attribute__((packed)) {
        uint16_t limit;
        uint32_t base;
    } no_table = {0, 0};
    const uint32_t not_write_through = UINT32_C(1) << 29, pe_and_et = 0x11;
    __asm__ volatile("lidt %0\n\tmovl %1, %%cr0\n\tud2" : : "m"(no_table), "r"(not_write_through | pe_and_et));
    __builtin_unreachable();
}

VELLUM_FUNCTION(spin, VELLUM_UNIT)
{
    for (;;) {
        __asm__ volatile("pause");
    }
    /* Keeps the compiler from missing a value. */
    __builtin_unreachable();
}

#include "../c-user/host_state.h"
