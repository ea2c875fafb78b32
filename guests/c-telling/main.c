/* The C guest of Vellum's tests that tells its host things without leaving to it, for amd64 and, as a kernel, for i686. */
#define VELLUM_IMPLEMENTATION
#include <vellum.h>

VELLUM_IMPORT_ONE_WAY(tell, VELLUM_U32, VELLUM_STRING);

/* Makes this many one-way calls, with a metric and a log record behind each. */
VELLUM_FUNCTION(tell_all, VELLUM_UNIT, VELLUM_U32)
{
    static const char text[] = "from C";
    for (uint32_t number = 0; number < argument[0].u32; number++) {
        vellum_value told = vellum_tell(tell, vellum_u32(number), vellum_string(text, sizeof text - 1));
        if (vellum_is_error(told)) {
            return told;
        }
        vellum_count("told", number);
        vellum_log(VELLUM_LOG_INFO, "c-telling", "a line from C");
    }
    return vellum_unit();
}

/* Reports one number of each sort, and one under a name that is none. */
VELLUM_FUNCTION(report, VELLUM_UNIT)
{
    vellum_count("counter", UINT64_MAX);
    vellum_gauge("gauge", -0.5);
    vellum_sample("sample", 1e300);
    vellum_count("no name", 1);
    return vellum_unit();
}

/* Tells these many bytes of text, or says why not. */
VELLUM_FUNCTION(tell_large, VELLUM_UNIT, VELLUM_U32)
{
    char *text = vellum_alloc(argument[0].u32);
    memset(text, 'x', argument[0].u32);
    return vellum_tell(tell, vellum_u32(0), vellum_string(text, argument[0].u32));
}

/* Logs a text of this length. */
VELLUM_FUNCTION(log_large, VELLUM_UNIT, VELLUM_U32)
{
    char *text = vellum_alloc((size_t)argument[0].u32 + 1);
    memset(text, 'x', argument[0].u32);
    text[argument[0].u32] = 0;
    vellum_log(VELLUM_LOG_INFO, "c-telling", text);
    return vellum_unit();
}
