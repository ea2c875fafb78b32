/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Vellum guests in C.
 *
 * The first half declares the contract between host and guest; the Rust crate vellum-abi is its other form and has
 * the rules in words. The second half makes a guest of a C program:
 *
 *     #define VELLUM_IMPLEMENTATION       // in one source file of the guest
 *     #include <vellum.h>
 *
 *     VELLUM_IMPORT(host_add, VELLUM_I32, VELLUM_I32, VELLUM_I32);
 *
 *     VELLUM_FUNCTION(add, VELLUM_I32, VELLUM_I32, VELLUM_I32)
 *     {
 *         return vellum_i32(argument[0].i32 + argument[1].i32);
 *     }
 *
 * Types are given result first, then the parameters; the dispatcher checks a call against them before the function
 * sees it. Build with gcc or clang as a static program without start files. For x86-64 that makes an amd64 user guest:
 *
 *     gcc -O2 -ffreestanding -fno-pie -fno-stack-protector -no-pie -static -nostdlib -nostartfiles \
 *         -Wl,-z,separate-code,-z,noexecstack,-z,norelro -o guest main.c
 *
 * For 32-bit x86 it makes an i686 identity guest, which runs in ring 0 without paging, x87 and SSE. Add to the above
 *
 *     -m32 -march=i686 -mgeneral-regs-only -Wl,-Ttext-segment=0x100000
 *
 * No 32-bit libraries are needed, so there is no libgcc either: the program does without what only its routines can,
 * which of integers is division and remainder of 64 bits.
 */
#ifndef VELLUM_H
#define VELLUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- The contract ------------------------------------------------------------------------------------------- */

#define VELLUM_ABI_VERSION 2

/* I/O ports, for `out imm8, eax`. */
#define VELLUM_PORT_IDLE 0xE0
#define VELLUM_PORT_HOST_CALL 0xE1
#define VELLUM_PORT_DRAIN 0xE2
#define VELLUM_PORT_PANIC 0xE3
#define VELLUM_PORT_ABORT 0xE4
#define VELLUM_PORT_FILL 0xE5
#define VELLUM_PORT_FAULT 0xE7
#define VELLUM_PORT_CHECKPOINT 0xE6

/* EAX at the idle port. */
#define VELLUM_IDLE_READY 0u
#define VELLUM_IDLE_REPLY 1u

/* EAX at the abort port, as this file uses it. */
#define VELLUM_ABORT_BAD_PEB 0xFFFFFF01u
#define VELLUM_ABORT_NESTED_PANIC 0xFFFFFF03u

/* Types of values. */
#define VELLUM_UNIT 0
#define VELLUM_BOOL 1
#define VELLUM_I32 2
#define VELLUM_U32 3
#define VELLUM_I64 4
#define VELLUM_U64 5
#define VELLUM_F32 6
#define VELLUM_F64 7
#define VELLUM_STRING 8
#define VELLUM_BYTES 9

/* Kinds of messages. */
#define VELLUM_CALL 1u
#define VELLUM_REPLY 2u
#define VELLUM_HOST_CALL 3u
#define VELLUM_HOST_REPLY 4u
#define VELLUM_ONE_WAY 5u

/* Status of a reply: 0, or why there is no value. */
#define VELLUM_OK 0u
#define VELLUM_UNKNOWN_FUNCTION 1u
#define VELLUM_ARGUMENT_COUNT 2u
#define VELLUM_ARGUMENT_TYPE 3u
#define VELLUM_MALFORMED_MESSAGE 4u
#define VELLUM_FUNCTION_FAILED 5u
#define VELLUM_FUNCTION_PANICKED 6u
#define VELLUM_TOO_LARGE 7u
#define VELLUM_NOT_NOW 8u

#define VELLUM_MAX_SLOTS 16u
#define VELLUM_MAX_ERROR_TEXT_LEN_BYTES 1024u
#define VELLUM_MIN_BUFFER_LEN_BYTES 4096u
/* Slot flag: the value lies outside the message. */
#define VELLUM_FLAG_EXTERNAL 1u

/* The outbox: records from this offset on, each at a multiple of 8. */
#define VELLUM_OUTBOX_RECORDS_OFFSET 128u
#define VELLUM_MIN_OUTBOX_LEN_BYTES 4096u
/* Kinds of records. */
#define VELLUM_RECORD_LOG 1u
#define VELLUM_RECORD_METRIC 2u
#define VELLUM_RECORD_ONE_WAY 3u
/* Kinds of metrics. */
#define VELLUM_METRIC_COUNTER 1u
#define VELLUM_METRIC_GAUGE 2u
#define VELLUM_METRIC_SAMPLE 3u

/* Flag of an import: calls have no answer. */
#define VELLUM_FUNCTION_ONE_WAY 1u

/* Log levels. */
#define VELLUM_LOG_ERROR 1u
#define VELLUM_LOG_WARN 2u
#define VELLUM_LOG_INFO 3u
#define VELLUM_LOG_DEBUG 4u
#define VELLUM_LOG_TRACE 5u

#if defined(__i386__)
#define VELLUM_GUEST_KIND 3 /* i686 identity */
/* A pointer field of a table: 64 bits in either architecture, so a 32-bit pointer is followed by zeros. */
#define VELLUM_POINTER_(type, name)                                                                                  \
    type name;                                                                                                       \
    uint32_t name##_high
#elif defined(__x86_64__)
#define VELLUM_GUEST_KIND 1 /* amd64 user */
#define VELLUM_POINTER_(type, name) type name
#else
#error "Vellum guests are x86 programs, of 64 or of 32 bits"
#endif

/* In 32-bit code a uint64_t inside a structure is aligned to 4 (System V ABI for i386); the contract says 8. */
#define VELLUM_ALIGNED_ __attribute__((aligned(8)))

/* Start of every message; `slot_count` slots and then the payload follow. */
struct vellum_message_header {
    uint32_t kind;
    uint32_t function;
    uint32_t status;
    uint32_t slot_count;
    uint32_t total_len_bytes;
    uint32_t reserved[3];
};

/* One value of a message. */
struct VELLUM_ALIGNED_ vellum_slot {
    uint8_t ty;
    uint8_t flags;
    uint16_t reserved;
    uint32_t len_bytes;
    uint64_t bits;
};

/* Request to copy an external argument into guest memory. */
struct VELLUM_ALIGNED_ vellum_fill_request {
    uint32_t slot;
    uint32_t reserved;
    uint64_t gva;
    uint64_t len_bytes;
};

/* Start of the outbox. The guest moves the end behind a record when it is written; the host sets it to 0. */
struct VELLUM_ALIGNED_ vellum_outbox_header {
    uint32_t end_bytes;
    uint32_t dropped;
};

/* Start of a record of the outbox; `len_bytes` bytes and padding to a multiple of 8 follow. */
struct VELLUM_ALIGNED_ vellum_record_header {
    uint32_t kind;
    uint32_t len_bytes;
};

/* A metric, the body of a record; the name follows. `bits` is a number, or the bits of a double. */
struct VELLUM_ALIGNED_ vellum_metric_header {
    uint32_t kind;
    uint32_t name_len_bytes;
    uint64_t bits;
};

/* Start of a log record, the body of a record of the outbox; target and message follow. */
struct vellum_log_header {
    uint32_t level;
    uint32_t target_len_bytes;
    uint32_t message_len_bytes;
    uint32_t reserved;
};

/* Start of a panic record; file name and message follow. */
struct vellum_panic_header {
    uint32_t line;
    uint32_t column;
    uint32_t file_len_bytes;
    uint32_t message_len_bytes;
};

/* "VELLUMPB" in memory order. */
#define VELLUM_PEB_MAGIC UINT64_C(0x42504D554C4C4556)

/* What the entry point gets, by address, in RDI, or EDI in 32-bit code. */
struct VELLUM_ALIGNED_ vellum_peb {
    uint64_t magic;
    uint32_t abi_version;
    uint32_t size_bytes;
    uint64_t input_ptr;
    uint64_t input_len_bytes;
    uint64_t output_ptr;
    uint64_t output_len_bytes;
    uint64_t heap_ptr;
    uint64_t heap_len_bytes;
    uint64_t stack_top;
    uint64_t stack_len_bytes;
    uint64_t init_data_ptr;
    uint64_t init_data_len_bytes;
    uint64_t seed;
    uint64_t mappings_ptr;
    uint64_t mappings_count;
    uint32_t log_level;
    uint32_t flags;
    uint64_t generation;
    uint64_t scratch_ptr;
    uint64_t scratch_len_bytes;
    uint64_t scratch_gpa;
    uint64_t outbox_ptr;
    uint64_t outbox_len_bytes;
};

/* A file or memory of the host that is mapped for the guest. `ptr` is 0 in a kernel with paging, which maps `gpa` itself. */
#define VELLUM_MAX_MAPPINGS 32
#define VELLUM_MAX_LABEL_LEN_BYTES 32
#define VELLUM_MAPPING_WRITABLE 1u
struct VELLUM_ALIGNED_ vellum_mapping {
    uint64_t gpa;
    uint64_t ptr;
    uint64_t len_bytes;
    uint32_t flags;
    uint32_t label_len_bytes;
    char label[VELLUM_MAX_LABEL_LEN_BYTES];
};

/* PEB flag: write to each page of a destination before asking for a fill. */
#define VELLUM_PEB_TOUCH_BEFORE_FILL 1u
/* PEB flag: drop log records and metrics for which the outbox has no room, rather than leave. */
#define VELLUM_PEB_OUTBOX_DROPS 2u

/* What the monitor writes about a fault; guests do not need it. */
struct VELLUM_ALIGNED_ vellum_fault_record {
    uint64_t vector;
    uint64_t error_code;
    uint64_t cr2;
    uint64_t rip;
    uint64_t cs;
    uint64_t rflags;
    uint64_t rsp;
    uint64_t ss;
    uint64_t reason;
};

/* A value as C sees it. `len_bytes` counts `text` and `bytes`, neither of which ends with a zero. */
typedef struct vellum_value {
    uint8_t type;
    uint32_t len_bytes;
    union {
        bool boolean;
        int32_t i32;
        uint32_t u32;
        int64_t i64;
        uint64_t u64;
        float f32;
        double f64;
        const char *text;
        const uint8_t *bytes;
    };
} vellum_value;

/* A guest function. Its arguments have the declared number and types. */
typedef vellum_value (*vellum_entry)(const vellum_value *argument);

/* Element of the sections vellum_functions and vellum_imports. */
struct VELLUM_ALIGNED_ vellum_function {
    VELLUM_POINTER_(const char *, name_ptr);
    uint32_t name_len_bytes;
    uint8_t param_count;
    uint8_t ret;
    uint16_t flags;
    uint8_t params[VELLUM_MAX_SLOTS];
    VELLUM_POINTER_(vellum_entry, entry);
};

/* ---- Declaring functions ------------------------------------------------------------------------------------ */

/* `aligned(8)` keeps compilers from aligning entries more strictly, which would leave gaps in the table. */
#define VELLUM_TABLE_(name, section_name, prefix, entry_, flags_, ret_, ...)                                          \
    __attribute__((used, section(section_name), aligned(8))) static const struct vellum_function prefix##name = {    \
        .name_ptr = #name,                                                                                           \
        .name_len_bytes = sizeof #name - 1,                                                                          \
        .param_count = sizeof((const uint8_t[]){0 __VA_OPT__(, ) __VA_ARGS__}) - 1,                                  \
        .ret = (ret_),                                                                                               \
        .flags = (flags_),                                                                                           \
        .params = {__VA_ARGS__},                                                                                     \
        .entry = (entry_),                                                                                           \
    }

/* VELLUM_FUNCTION(name, result, parameters...) { body }: a function that the host may call. The body finds its
 * arguments in `argument` and returns a vellum_value.
 *
 * Text and bytes of arguments may lie in the input buffer, which a host call overwrites: copy what must survive one. */
#define VELLUM_FUNCTION(name, ...)                                                                                   \
    static vellum_value name(const vellum_value *argument);                                                          \
    VELLUM_TABLE_(name, "vellum_functions", vellum_export_, name, 0, __VA_ARGS__);                                      \
    static vellum_value name(const vellum_value *argument __attribute__((unused)))

/* VELLUM_IMPORT(name, result, parameters...): a host function that the guest needs; call it with vellum_host_call. */
#define VELLUM_IMPORT(name, ...) VELLUM_TABLE_(name, "vellum_imports", vellum_import_, NULL, 0, __VA_ARGS__)

/* VELLUM_IMPORT_ONE_WAY(name, parameters...): a host function without an answer; call it with vellum_tell. */
#define VELLUM_IMPORT_ONE_WAY(name, ...)                                                                             \
    VELLUM_TABLE_(name, "vellum_imports", vellum_import_, NULL, VELLUM_FUNCTION_ONE_WAY,                             \
                  VELLUM_UNIT __VA_OPT__(, ) __VA_ARGS__)

/* ---- Making values ------------------------------------------------------------------------------------------ */

/* Not a type of the ABI: a vellum_value that says why there is none. */
#define VELLUM_ERROR_VALUE 0xFF

static inline vellum_value vellum_unit(void) { return (vellum_value){.type = VELLUM_UNIT}; }
static inline vellum_value vellum_bool(bool value) { return (vellum_value){.type = VELLUM_BOOL, .boolean = value}; }
static inline vellum_value vellum_i32(int32_t value) { return (vellum_value){.type = VELLUM_I32, .i32 = value}; }
static inline vellum_value vellum_u32(uint32_t value) { return (vellum_value){.type = VELLUM_U32, .u32 = value}; }
static inline vellum_value vellum_i64(int64_t value) { return (vellum_value){.type = VELLUM_I64, .i64 = value}; }
static inline vellum_value vellum_u64(uint64_t value) { return (vellum_value){.type = VELLUM_U64, .u64 = value}; }
static inline vellum_value vellum_f32(float value) { return (vellum_value){.type = VELLUM_F32, .f32 = value}; }
static inline vellum_value vellum_f64(double value) { return (vellum_value){.type = VELLUM_F64, .f64 = value}; }

/* Text must be UTF-8 and, like bytes, stay in place until the next call arrives: static, or from vellum_alloc. */
static inline vellum_value vellum_string(const char *text, uint32_t len_bytes)
{
    return (vellum_value){.type = VELLUM_STRING, .len_bytes = len_bytes, .text = text};
}

static inline vellum_value vellum_bytes(const void *bytes, uint32_t len_bytes)
{
    return (vellum_value){.type = VELLUM_BYTES, .len_bytes = len_bytes, .bytes = bytes};
}

/* A function returns this in place of a value when it fails. */
static inline vellum_value vellum_error(const char *text, uint32_t len_bytes)
{
    return (vellum_value){.type = VELLUM_ERROR_VALUE, .len_bytes = len_bytes, .text = text};
}

#define VELLUM_ERROR(literal) vellum_error("" literal, sizeof(literal) - 1)

static inline bool vellum_is_error(vellum_value value) { return value.type == VELLUM_ERROR_VALUE; }

/* ---- What a guest can do ------------------------------------------------------------------------------------ */

/* Memory until the next call arrives, 16-byte aligned; panics when there is no more. */
void *vellum_alloc(size_t len_bytes);

/* Calls a host function with as many arguments as it was declared to have. The result is a value of the declared
 * type, or an error with the host's words, which can be returned as it is. It is overwritten by the next host call
 * unless it was larger than the buffer. */
#define vellum_host_call(name, ...)                                                                                  \
    vellum_host_call_(&vellum_import_##name, (const vellum_value[]){vellum_unit() __VA_OPT__(, ) __VA_ARGS__} + 1,   \
                      sizeof((const vellum_value[]){vellum_unit() __VA_OPT__(, ) __VA_ARGS__}) /                     \
                              sizeof(vellum_value) -                                                                 \
                          1)
vellum_value vellum_host_call_(const struct vellum_function *import, const vellum_value *arguments, size_t count);

/* Calls a host function that has no answer. It runs when the guest leaves to its host next, in order with what the guest
 * logs and counts. The result is nothing, or an error when the arguments do not fit an empty outbox or the guest still
 * initialises. */
#define vellum_tell(name, ...)                                                                                       \
    vellum_tell_(&vellum_import_##name, (const vellum_value[]){vellum_unit() __VA_OPT__(, ) __VA_ARGS__} + 1,        \
                 sizeof((const vellum_value[]){vellum_unit() __VA_OPT__(, ) __VA_ARGS__}) / sizeof(vellum_value) - 1)
vellum_value vellum_tell_(const struct vellum_function *import, const vellum_value *arguments, size_t count);

/* Writes a log record; target and message end with a zero. Both are cut to the outbox. */
void vellum_log(uint32_t level, const char *target, const char *message);

/* Report a number under a name of 1 to 128 bytes of printable ASCII without space: that something happened this many times
 * more, that something has this value now, one value of many. A name that is none is ignored. */
void vellum_count(const char *name, uint64_t amount);
void vellum_gauge(const char *name, double value);
void vellum_sample(const char *name, double value);

/* Tells the host why the guest cannot go on, and where. */
#define vellum_panic(message) vellum_panic_(__FILE__, __LINE__, message)
_Noreturn void vellum_panic_(const char *file, uint32_t line, const char *message);

/* Ends the guest with a code below 0xFFFFFF00. */
_Noreturn void vellum_abort(uint32_t code);

/* A number that differs between any two sandboxes, clones included. */
uint64_t vellum_seed(void);

/* The generation of the snapshot that this sandbox was made from or last restored to; 0 after a boot. */
uint64_t vellum_generation(void);

/* Asks the host for a snapshot of this moment and goes on, here and in every sandbox that is restored to it. Returns the
 * generation, which is the one from before in the original and another one in a restored copy. */
uint64_t vellum_checkpoint(uint32_t tag);

/* The file or memory that the host has mapped with this label; NULL when there is none (any more). */
const struct vellum_mapping *vellum_find_mapping(const char *label);

/* C11 and later; a C++ compiler has its own spelling. */
_Static_assert(sizeof(struct vellum_message_header) == 32, "message header has 32 bytes");
_Static_assert(sizeof(struct vellum_slot) == 16, "slot has 16 bytes");
_Static_assert(sizeof(struct vellum_fill_request) == 24, "fill request has 24 bytes");
_Static_assert(sizeof(struct vellum_log_header) == 16, "log header has 16 bytes");
_Static_assert(sizeof(struct vellum_panic_header) == 16, "panic header has 16 bytes");
_Static_assert(sizeof(struct vellum_peb) == 176, "PEB has 176 bytes");
_Static_assert(sizeof(struct vellum_mapping) == 64, "mapping has 64 bytes");
_Static_assert(sizeof(struct vellum_function) == 40, "function entry has 40 bytes");
_Static_assert(offsetof(struct vellum_function, entry) == 32, "entry is the last field");

#endif /* VELLUM_H */

/* ---- The guest's runtime ------------------------------------------------------------------------------------ */

#if defined(VELLUM_IMPLEMENTATION) && !defined(VELLUM_IMPLEMENTED)
#define VELLUM_IMPLEMENTED

#define VELLUM_TEXT_(number) #number
#define VELLUM_NUMBER_TEXT_(number) VELLUM_TEXT_(number)

/* The note that marks the file: owner "Vellum", type 1, ABI version, guest kind. */
__asm__(".pushsection .note.vellum, \"a\", @note\n"
        ".p2align 2\n"
        ".long 7, 8, 1\n"
        ".ascii \"Vellum\\0\\0\"\n"
        ".long " VELLUM_NUMBER_TEXT_(VELLUM_ABI_VERSION) ", " VELLUM_NUMBER_TEXT_(VELLUM_GUEST_KIND) "\n"
        ".popsection\n");

#if defined(__i386__)
/* The host enters with EDI = PEB, ESP = stack top, 16-byte aligned, DF and IF clear. The argument goes on the stack,
 * which is 16-byte aligned at the call (System V ABI for i386, section 2.2.2). */
#define VELLUM_CALL_START_                                                                                           \
    "    subl $12, %esp\n"                                                                                           \
    "    pushl %edi\n"                                                                                               \
    "    call vellum_start_\n"
#else
/* The host enters with RDI = PEB, RSP = stack top, 16-byte aligned as before a call, DF clear. */
#define VELLUM_CALL_START_ "    call vellum_start_\n"
#endif

__asm__(".pushsection .text._start, \"ax\", @progbits\n"
        ".globl _start\n"
        ".type _start, @function\n"
        "_start:\n"
        "    xorl %ebp, %ebp\n"  /* outermost frame: a debugger stops here */
        VELLUM_CALL_START_        /* takes the PEB and does not return */
        "    ud2\n"
        ".size _start, . - _start\n"
        ".popsection\n");

/* The linker defines these where the sections exist; a guest may lack either. */
extern const struct vellum_function __start_vellum_functions[] __attribute__((weak));
extern const struct vellum_function __stop_vellum_functions[] __attribute__((weak));
extern const struct vellum_function __start_vellum_imports[] __attribute__((weak));

static struct {
    const struct vellum_peb *peb;
    const uint8_t *input;
    uint64_t input_len_bytes;
    uint8_t *output;
    uint64_t output_len_bytes;
    uint8_t *outbox;
    uint32_t outbox_room_bytes;
    bool is_started;
    uint64_t heap_used_bytes;
    bool is_panicking;
} vellum_state;

/* `out` with the port as an immediate, the cheapest exit. The host may change memory meanwhile. */
#define VELLUM_OUT_(port, eax) __asm__ volatile("outl %0, %1" : : "a"((uint32_t)(eax)), "N"(port) : "memory")

/* Compilers call these four whether or not the program does. */
void *memcpy(void *restrict destination, const void *restrict source, size_t len_bytes)
{
    void *to = destination;
#if defined(__i386__)
    /* Ring 0 may be emulated, one step at a time; four bytes a step. */
    size_t words = len_bytes / 4;
    len_bytes %= 4;
    __asm__ volatile("rep movsl" : "+D"(to), "+S"(source), "+c"(words) : : "memory");
#endif
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(source), "+c"(len_bytes) : : "memory");
    return destination;
}

void *memmove(void *destination, const void *source, size_t len_bytes)
{
    uint8_t *to = destination;
    const uint8_t *from = source;
    if ((uintptr_t)to - (uintptr_t)from >= len_bytes) {
        return memcpy(destination, source, len_bytes);
    }
    while (len_bytes > 0) {
        len_bytes--;
        to[len_bytes] = from[len_bytes];
        __asm__ volatile("" : : : "memory"); /* keeps the loop from becoming a call of memmove */
    }
    return destination;
}

void *memset(void *destination, int value, size_t len_bytes)
{
    void *to = destination;
#if defined(__i386__)
    size_t words = len_bytes / 4;
    len_bytes %= 4;
    __asm__ volatile("rep stosl" : "+D"(to), "+c"(words) : "a"((uint8_t)value * 0x01010101u) : "memory");
#endif
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(len_bytes) : "a"(value) : "memory");
    return destination;
}

int memcmp(const void *left, const void *right, size_t len_bytes)
{
    const uint8_t *a = left, *b = right;
    for (size_t index = 0; index < len_bytes; index++) {
        if (a[index] != b[index]) {
            return a[index] - b[index];
        }
    }
    return 0;
}

static size_t vellum_text_len_(const char *text)
{
    size_t len_bytes = 0;
    while (text[len_bytes] != 0) {
        len_bytes++;
    }
    return len_bytes;
}

/* The most bytes, up to `limit`, of a UTF-8 text that end between characters. */
static size_t vellum_cut_(const char *text, size_t len_bytes, size_t limit)
{
    if (len_bytes <= limit) {
        return len_bytes;
    }
    while (limit > 0 && ((uint8_t)text[limit] & 0xC0) == 0x80) {
        limit--;
    }
    return limit;
}

uint64_t vellum_seed(void)
{
    return *(const volatile uint64_t *)&vellum_state.peb->seed;
}

uint64_t vellum_generation(void)
{
    return *(const volatile uint64_t *)&vellum_state.peb->generation;
}

uint64_t vellum_checkpoint(uint32_t tag)
{
    VELLUM_OUT_(VELLUM_PORT_CHECKPOINT, tag);
    return vellum_generation();
}

const struct vellum_mapping *vellum_find_mapping(const char *label)
{
    const volatile struct vellum_peb *peb = vellum_state.peb;
    const struct vellum_mapping *table = (const struct vellum_mapping *)(uintptr_t)peb->mappings_ptr;
    const size_t label_len_bytes = vellum_text_len_(label);
    for (uint64_t index = 0; index < peb->mappings_count; index++) {
        if (table[index].label_len_bytes == label_len_bytes &&
            memcmp(table[index].label, label, label_len_bytes) == 0) {
            return &table[index];
        }
    }
    return NULL;
}

_Noreturn void vellum_abort(uint32_t code)
{
    for (;;) {
        VELLUM_OUT_(VELLUM_PORT_ABORT, code);
    }
}

/* Puts two texts into `room` bytes at `to`; the lengths that fitted go into `lens`. */
static void vellum_put_texts_(uint8_t *to, size_t room, const char *first, const char *second, uint32_t lens[2])
{
    const char *texts[2] = {first, second};
    for (int index = 0; index < 2; index++) {
        size_t len = vellum_cut_(texts[index], vellum_text_len_(texts[index]), room);
        memcpy(to, texts[index], len);
        lens[index] = (uint32_t)len;
        to += len;
        room -= len;
    }
}

_Noreturn void vellum_panic_(const char *file, uint32_t line, const char *message)
{
    if (!vellum_state.is_panicking) {
        vellum_state.is_panicking = true;
        uint32_t lens[2];
        vellum_put_texts_(vellum_state.output + 16, vellum_state.output_len_bytes - 16, file, message, lens);
        struct vellum_panic_header header = {line, 0, lens[0], lens[1]};
        memcpy(vellum_state.output, &header, sizeof header);
        VELLUM_OUT_(VELLUM_PORT_PANIC, 0);
    }
    vellum_abort(VELLUM_ABORT_NESTED_PANIC);
}

static volatile struct vellum_outbox_header *vellum_outbox_(void)
{
    return (volatile struct vellum_outbox_header *)vellum_state.outbox;
}

/* Room in the outbox for the body of a record of `len_bytes`, or NULL. Where there is none at the moment the guest leaves to
 * have the outbox emptied, or counts what it `may_drop`, as the host likes. */
static uint8_t *vellum_room_(size_t len_bytes, bool may_drop)
{
    const size_t header = sizeof(struct vellum_record_header);
    if (len_bytes > vellum_state.outbox_room_bytes - header) {
        return NULL;
    }
    if (len_bytes > vellum_state.outbox_room_bytes - header - vellum_outbox_()->end_bytes ||
        vellum_outbox_()->end_bytes > vellum_state.outbox_room_bytes - header) {
        if (may_drop && vellum_state.peb->flags & VELLUM_PEB_OUTBOX_DROPS) {
            vellum_outbox_()->dropped++;
            return NULL;
        }
        VELLUM_OUT_(VELLUM_PORT_DRAIN, 0);
    }
    return vellum_state.outbox + VELLUM_OUTBOX_RECORDS_OFFSET + vellum_outbox_()->end_bytes + header;
}

/* Adds the record whose body was written to the room for it. */
static void vellum_append_(uint32_t kind, size_t len_bytes)
{
    struct vellum_record_header header = {kind, (uint32_t)len_bytes};
    uint32_t end = vellum_outbox_()->end_bytes;
    memcpy(vellum_state.outbox + VELLUM_OUTBOX_RECORDS_OFFSET + end, &header, sizeof header);
    /* The record is complete before the end covers it. */
    __asm__ volatile("" : : : "memory");
    vellum_outbox_()->end_bytes = end + (uint32_t)(sizeof header + ((len_bytes + 7) & ~(size_t)7));
}

void vellum_log(uint32_t level, const char *target, const char *message)
{
    if (level > vellum_state.peb->log_level) {
        return;
    }
    const size_t fixed = sizeof(struct vellum_log_header);
    size_t texts = vellum_text_len_(target) + vellum_text_len_(message);
    size_t most = vellum_state.outbox_room_bytes - sizeof(struct vellum_record_header) - fixed;
    size_t len_bytes = fixed + (texts < most ? texts : most);
    uint8_t *body = vellum_room_(len_bytes, true);
    if (body == NULL) {
        return;
    }
    uint32_t lens[2];
    vellum_put_texts_(body + fixed, len_bytes - fixed, target, message, lens);
    struct vellum_log_header header = {level, lens[0], lens[1], 0};
    memcpy(body, &header, sizeof header);
    vellum_append_(VELLUM_RECORD_LOG, len_bytes);
}

static void vellum_metric_(uint32_t kind, const char *name, uint64_t bits)
{
    struct vellum_metric_header header = {kind, 0, bits};
    size_t name_len_bytes = vellum_text_len_(name);
    bool is_name = name_len_bytes > 0 && name_len_bytes <= 128;
    for (size_t index = 0; is_name && index < name_len_bytes; index++) {
        is_name = name[index] > ' ' && name[index] < 0x7F;
    }
    if (!is_name) {
        return;
    }
    header.name_len_bytes = (uint32_t)name_len_bytes;
    uint8_t *body = vellum_room_(sizeof header + name_len_bytes, true);
    if (body == NULL) {
        return;
    }
    memcpy(body, &header, sizeof header);
    memcpy(body + sizeof header, name, name_len_bytes);
    vellum_append_(VELLUM_RECORD_METRIC, sizeof header + name_len_bytes);
}

void vellum_count(const char *name, uint64_t amount) { vellum_metric_(VELLUM_METRIC_COUNTER, name, amount); }

/* The bits of a double are read from memory: a kernel may not use vector registers. */
void vellum_gauge(const char *name, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    vellum_metric_(VELLUM_METRIC_GAUGE, name, bits);
}

void vellum_sample(const char *name, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    vellum_metric_(VELLUM_METRIC_SAMPLE, name, bits);
}

/* Memory until the next call arrives, or NULL. */
static void *vellum_try_alloc_(size_t len_bytes)
{
    uint64_t free_bytes = vellum_state.peb->heap_len_bytes - vellum_state.heap_used_bytes;
    if (len_bytes > free_bytes) {
        return NULL;
    }
    uint8_t *memory = (uint8_t *)(uintptr_t)(vellum_state.peb->heap_ptr + vellum_state.heap_used_bytes);
    uint64_t rounded = ((uint64_t)len_bytes + 15) & ~UINT64_C(15);
    vellum_state.heap_used_bytes += rounded < free_bytes ? rounded : free_bytes;
    return memory;
}

void *vellum_alloc(size_t len_bytes)
{
    void *memory = vellum_try_alloc_(len_bytes);
    if (memory == NULL) {
        char message[64] = "allocation of ";
        char digits[20];
        size_t count = 0, at = 14;
        do {
            digits[count++] = (char)('0' + len_bytes % 10);
            len_bytes /= 10;
        } while (len_bytes > 0);
        while (count > 0) {
            message[at++] = digits[--count];
        }
        memcpy(message + at, " bytes failed", 14);
        vellum_panic(message);
    }
    return memory;
}

/* Reads slot `index` of the host's message into `value`; returns a status. */
static uint32_t vellum_read_slot_(uint32_t index, uint32_t total, uint8_t type, vellum_value *value)
{
    struct vellum_slot slot;
    memcpy(&slot, vellum_state.input + sizeof(struct vellum_message_header) + index * sizeof slot, sizeof slot);
    if (slot.ty != type) {
        return VELLUM_ARGUMENT_TYPE;
    }
    *value = (vellum_value){.type = type, .len_bytes = slot.len_bytes};
    if (type < VELLUM_STRING) {
        memcpy(&value->u64, &slot.bits, sizeof slot.bits);
        return slot.flags == 0 && slot.len_bytes == 0 ? VELLUM_OK : VELLUM_MALFORMED_MESSAGE;
    }
    if (slot.flags == VELLUM_FLAG_EXTERNAL) {
        uint8_t *memory = vellum_try_alloc_(slot.len_bytes);
        if (memory == NULL) {
            return VELLUM_TOO_LARGE;
        }
        /* The host fills pages that are the guest's own already; a write makes them so. */
        uint64_t touched = vellum_state.peb->flags & VELLUM_PEB_TOUCH_BEFORE_FILL ? slot.len_bytes : 0;
        for (uint64_t at = 0; at < touched; at += 4096) {
            *(volatile uint8_t *)(memory + at) = 0;
        }
        if (touched > 0) {
            *(volatile uint8_t *)(memory + slot.len_bytes - 1) = 0;
        }
        struct vellum_fill_request request = {(uint32_t)slot.bits, 0, (uint64_t)(uintptr_t)memory, slot.len_bytes};
        memcpy(vellum_state.output, &request, sizeof request);
        VELLUM_OUT_(VELLUM_PORT_FILL, 0);
        value->bytes = memory;
        return VELLUM_OK;
    }
    if (slot.flags != 0 || slot.bits > total || slot.len_bytes > total - slot.bits) {
        return VELLUM_MALFORMED_MESSAGE;
    }
    value->bytes = vellum_state.input + slot.bits;
    return VELLUM_OK;
}

/* Reads the header of the host's message; returns a status. */
static uint32_t vellum_read_header_(struct vellum_message_header *header, uint32_t kind)
{
    memcpy(header, vellum_state.input, sizeof *header);
    uint64_t least = sizeof *header + (uint64_t)header->slot_count * sizeof(struct vellum_slot);
    bool is_sound = header->kind == kind && header->slot_count <= VELLUM_MAX_SLOTS &&
                    header->total_len_bytes >= least && header->total_len_bytes <= vellum_state.input_len_bytes;
    return is_sound ? VELLUM_OK : VELLUM_MALFORMED_MESSAGE;
}

/* Writes a message of values into `room` bytes at `to`; text and bytes that do not fit are named by address. */
static void vellum_write_values_(uint8_t *to, uint64_t room, struct vellum_message_header header,
                                 const vellum_value *values)
{
    uint64_t end = sizeof header + header.slot_count * sizeof(struct vellum_slot);
    for (uint32_t index = 0; index < header.slot_count; index++) {
        const vellum_value *value = &values[index];
        struct vellum_slot slot = {.ty = value->type};
        switch (value->type) {
        case VELLUM_UNIT:
            break;
        case VELLUM_BOOL:
            slot.bits = value->boolean;
            break;
        case VELLUM_I32:
            slot.bits = (uint64_t)(int64_t)value->i32;
            break;
        case VELLUM_U32:
        case VELLUM_F32:
            slot.bits = value->u32;
            break;
        case VELLUM_STRING:
        case VELLUM_BYTES:
            slot.len_bytes = value->len_bytes;
            if (value->len_bytes <= room - end) {
                slot.bits = end;
                memcpy(to + end, value->bytes, value->len_bytes);
                end += value->len_bytes;
            } else {
                slot.flags = VELLUM_FLAG_EXTERNAL;
                slot.bits = (uint64_t)(uintptr_t)value->bytes;
            }
            break;
        default:
            slot.bits = value->u64;
        }
        memcpy(to + sizeof header + index * sizeof slot, &slot, sizeof slot);
    }
    header.total_len_bytes = (uint32_t)end;
    memcpy(to, &header, sizeof header);
}

/* Writes a message of values into the output buffer. */
static void vellum_write_message_(struct vellum_message_header header, const vellum_value *values)
{
    vellum_write_values_(vellum_state.output, vellum_state.output_len_bytes, header, values);
}

static void vellum_write_error_(uint32_t function, uint32_t status, const char *text, size_t len_bytes)
{
    struct vellum_message_header header = {VELLUM_REPLY, function, status, 1, 0, {0}};
    vellum_value value = vellum_string(text, (uint32_t)vellum_cut_(text, len_bytes, VELLUM_MAX_ERROR_TEXT_LEN_BYTES));
    vellum_write_message_(header, &value);
}

/* Nothing, or an error when the arguments are not those of the import. */
static vellum_value vellum_check_(const struct vellum_function *import, const vellum_value *arguments, size_t count)
{
    if (count != import->param_count) {
        return VELLUM_ERROR("host call with another number of arguments than declared");
    }
    for (size_t index = 0; index < count; index++) {
        if (arguments[index].type != import->params[index]) {
            return VELLUM_ERROR("host call with an argument of another type than declared");
        }
    }
    return vellum_unit();
}

vellum_value vellum_tell_(const struct vellum_function *import, const vellum_value *arguments, size_t count)
{
    vellum_value checked = vellum_check_(import, arguments, count);
    if (vellum_is_error(checked)) {
        return checked;
    }
    if (!vellum_state.is_started) {
        return VELLUM_ERROR("a guest cannot call the host while it initialises");
    }
    uint64_t len_bytes = sizeof(struct vellum_message_header) + count * sizeof(struct vellum_slot);
    for (size_t index = 0; index < count; index++) {
        len_bytes += arguments[index].len_bytes;
    }
    uint8_t *body = len_bytes > SIZE_MAX ? NULL : vellum_room_((size_t)len_bytes, false);
    if (body == NULL) {
        return VELLUM_ERROR("a one-way call does not fit the outbox");
    }
    uint32_t function = (uint32_t)(import - __start_vellum_imports);
    vellum_write_values_(body, len_bytes,
                         (struct vellum_message_header){VELLUM_ONE_WAY, function, 0, (uint32_t)count, 0, {0}}, arguments);
    vellum_append_(VELLUM_RECORD_ONE_WAY, (size_t)len_bytes);
    return vellum_unit();
}

vellum_value vellum_host_call_(const struct vellum_function *import, const vellum_value *arguments, size_t count)
{
    uint32_t function = (uint32_t)(import - __start_vellum_imports);
    vellum_value checked = vellum_check_(import, arguments, count);
    if (vellum_is_error(checked)) {
        return checked;
    }
    vellum_write_message_((struct vellum_message_header){VELLUM_HOST_CALL, function, 0, (uint32_t)count, 0, {0}},
                          arguments);
    VELLUM_OUT_(VELLUM_PORT_HOST_CALL, 0);
    struct vellum_message_header header;
    vellum_value value;
    uint32_t status = vellum_read_header_(&header, VELLUM_HOST_REPLY);
    if (status == VELLUM_OK && header.slot_count == 1) {
        uint8_t type = header.status == VELLUM_OK ? import->ret : VELLUM_STRING;
        status = vellum_read_slot_(0, header.total_len_bytes, type, &value);
        if (status == VELLUM_OK) {
            return header.status == VELLUM_OK ? value : vellum_error(value.text, value.len_bytes);
        }
    }
    return VELLUM_ERROR("the host's reply could not be read");
}

/* Runs the call in the input buffer and writes the reply. */
static void vellum_answer_(void)
{
    vellum_state.heap_used_bytes = 0;
    struct vellum_message_header header;
    uint32_t status = vellum_read_header_(&header, VELLUM_CALL);
    if (status != VELLUM_OK) {
        static const char text[] = "the call could not be read";
        vellum_write_error_(UINT32_MAX, status, text, sizeof text - 1);
        return;
    }
    if (header.function >= (size_t)(__stop_vellum_functions - __start_vellum_functions)) {
        static const char text[] = "guest has no function with this index";
        vellum_write_error_(header.function, VELLUM_UNKNOWN_FUNCTION, text, sizeof text - 1);
        return;
    }
    const struct vellum_function *function = &__start_vellum_functions[header.function];
    if (header.slot_count != function->param_count) {
        static const char text[] = "call has another number of arguments than the function";
        vellum_write_error_(header.function, VELLUM_ARGUMENT_COUNT, text, sizeof text - 1);
        return;
    }
    vellum_value arguments[VELLUM_MAX_SLOTS];
    for (uint32_t index = 0; index < header.slot_count; index++) {
        status = vellum_read_slot_(index, header.total_len_bytes, function->params[index], &arguments[index]);
        if (status != VELLUM_OK) {
            static const char text[] = "argument is of another type, malformed or too large";
            vellum_write_error_(header.function, status, text, sizeof text - 1);
            return;
        }
    }
    vellum_value value = function->entry(arguments);
    if (vellum_is_error(value)) {
        vellum_write_error_(header.function, VELLUM_FUNCTION_FAILED, value.text, value.len_bytes);
    } else if (value.type != function->ret) {
        vellum_panic("function returned a value of another type than declared");
    } else {
        vellum_write_message_((struct vellum_message_header){VELLUM_REPLY, header.function, 0, 1, 0, {0}}, &value);
    }
}

/* The first C code of the guest. Called from _start, hence not static. */
_Noreturn __attribute__((used)) void vellum_start_(const struct vellum_peb *peb)
{
    if (peb->magic != VELLUM_PEB_MAGIC || peb->abi_version != VELLUM_ABI_VERSION || peb->size_bytes < sizeof *peb ||
        peb->input_len_bytes < VELLUM_MIN_BUFFER_LEN_BYTES || peb->output_len_bytes < VELLUM_MIN_BUFFER_LEN_BYTES ||
        peb->outbox_len_bytes < VELLUM_MIN_OUTBOX_LEN_BYTES || peb->outbox_len_bytes > UINT32_MAX) {
        vellum_abort(VELLUM_ABORT_BAD_PEB);
    }
    vellum_state.peb = peb;
    vellum_state.input = (const uint8_t *)(uintptr_t)peb->input_ptr;
    vellum_state.input_len_bytes = peb->input_len_bytes;
    vellum_state.output = (uint8_t *)(uintptr_t)peb->output_ptr;
    vellum_state.output_len_bytes = peb->output_len_bytes;
    vellum_state.outbox = (uint8_t *)(uintptr_t)peb->outbox_ptr;
    vellum_state.outbox_room_bytes = (uint32_t)peb->outbox_len_bytes - VELLUM_OUTBOX_RECORDS_OFFSET;
    VELLUM_OUT_(VELLUM_PORT_IDLE, VELLUM_IDLE_READY);
    vellum_state.is_started = true;
    for (;;) {
        vellum_answer_();
        VELLUM_OUT_(VELLUM_PORT_IDLE, VELLUM_IDLE_REPLY);
    }
}

#endif /* VELLUM_IMPLEMENTATION */
