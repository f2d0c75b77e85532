/* A libcuda.so.1 for tests: records every call, keeps device memory in host memory, executes no kernel.
 *
 * Settings come from FAKE_CUDA in the environment or from fake_configure(), as words:
 *   devices=2  version=12040  pools=0  memory=BYTES  fail=FUNCTION:CODE[@N][!]
 * A failing function returns CODE at every call, or at its Nth; `!` makes it sticky, so that all later calls
 * return CODE until the last primary context is released. FAKE_CUDA_LOG names a file that gets the log.
 *
 * It is as strict as the driver where a mistake would otherwise pass: no current context (201), handles of
 * another kind (400), copies outside an allocation (1), shared memory above 48 KiB without the attribute (1).
 * -DWITHOUT_POOLS leaves out stream-ordered allocation, -DWITHOUT_DRIVER everything that makes it a driver.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef WITHOUT_DRIVER
int not_a_driver(void) { return 1; }
#else

typedef unsigned long long u64;
typedef int CUresult;

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101,
       INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_PTX = 218, INVALID_HANDLE = 400, NOT_FOUND = 500,
       NOT_READY = 600, UPDATE_FAILURE = 910 };
enum { MAX_DEVICES = 8, MAX_RULES = 16, MAX_PARAMS = 64, DEFAULT_SHARED = 48 * 1024, OPTIN_SHARED = 99 * 1024 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- settings and log ---- */

struct rule { char function[64]; int code, nth, sticky, calls; };
static struct rule rules[MAX_RULES];
static int rule_count, devices, version, pools, initialised, poison, configured;
static u64 memory_limit;
static char *log_text;
static size_t log_size, log_room;

static void apply(const char *settings) {
    rule_count = 0, devices = 1, version = 12040, pools = 1, poison = 0, configured = 1;
    memory_limit = 1ull << 34;
    char *copy = strdup(settings ? settings : ""), *rest = copy, *word;
    while ((word = strsep(&rest, " ")))
        if (sscanf(word, "devices=%d", &devices) == 1 || sscanf(word, "version=%d", &version) == 1
            || sscanf(word, "pools=%d", &pools) == 1 || sscanf(word, "memory=%llu", &memory_limit) == 1)
            continue;
        else if (!strncmp(word, "fail=", 5) && rule_count < MAX_RULES) {
            struct rule *r = &rules[rule_count++];
            memset(r, 0, sizeof *r);
            sscanf(word, "fail=%63[^:]:%d@%d", r->function, &r->code, &r->nth);
            r->sticky = word[strlen(word) - 1] == '!';
        } else if (*word)
            fprintf(stderr, "fake libcuda: unknown setting %s\n", word), abort();
    free(copy);
}

static void note(const char *format, ...) {
    va_list list;
    char line[4096];
    va_start(list, format);
    int n = vsnprintf(line, sizeof line - 1, format, list);
    va_end(list);
    if (n > (int)sizeof line - 2) n = sizeof line - 2;
    line[n++] = '\n', line[n] = 0;
    while (log_size + n + 1 > log_room)
        log_text = realloc(log_text, log_room = log_room ? 2 * log_room : 1 << 16);
    memcpy(log_text + log_size, line, n + 1), log_size += n;
    const char *file = getenv("FAKE_CUDA_LOG");
    FILE *out = file ? fopen(file, "a") : NULL;
    if (out) fputs(line, out), fclose(out);
}

/* What `function` must return before it does anything; 0 to go on. */
static CUresult ruled(const char *function) {
    if (!configured) apply(getenv("FAKE_CUDA"));
    if (poison) return poison;
    for (int i = 0; i < rule_count; i++) {
        struct rule *r = &rules[i];
        if (strcmp(r->function, function) || (r->nth && ++r->calls != r->nth)) continue;
        if (r->sticky) poison = r->code;
        return r->code;
    }
    return SUCCESS;
}

/* ---- objects ---- */

enum kind { CONTEXT = 0x434f4e54, STREAM, EVENT, MODULE, FUNCTION, GRAPH, EXEC, LINK, POOL };
struct object { enum kind kind; };

struct context { enum kind kind; int device, retained; };
static struct context contexts[MAX_DEVICES];
static __thread struct context *current;

struct function { enum kind kind; char name[128]; int params, size[MAX_PARAMS]; int shared_limit; struct function *next; };
struct module { enum kind kind; char *ptx; struct function *functions; };
struct launch { struct function *f; unsigned grid[3], block[3], shared; u64 args[MAX_PARAMS]; struct launch *next; };
struct graph { enum kind kind; struct launch *first, **last; };
struct stream { enum kind kind; int number; struct graph *capture; };
struct event { enum kind kind; int recorded; double when; };
struct link { enum kind kind; char *ptx, *cubin, *error; size_t error_size; };

static int streams, live[16];
static double now;

static void *make(enum kind kind, size_t size) {
    struct object *o = calloc(1, size);
    o->kind = kind, live[kind - CONTEXT]++;
    return o;
}
static void drop(void *object) {
    struct object *o = object;
    live[o->kind - CONTEXT]--, o->kind = 0, free(o);
}
static int is(const void *object, enum kind kind) { return object && ((const struct object *)object)->kind == kind; }

struct block { char *base; u64 size; int number; struct block *next; };
static struct block *blocks, *host_blocks;
static int block_count;
static u64 used;

static struct block *holding(struct block *list, u64 address, u64 size) {
    for (struct block *b = list; b; b = b->next)
        if (address >= (u64)b->base && address + size <= (u64)b->base + b->size) return b;
    return NULL;
}
static CUresult take(struct block **list, u64 *out, u64 size) {
    if (!size) return INVALID_VALUE;
    if (used + size > memory_limit) return OUT_OF_MEMORY;
    struct block *b = calloc(1, sizeof *b);
    b->base = aligned_alloc(256, (size + 255) / 256 * 256), b->size = size, b->number = list == &blocks ? block_count++ : -1;
    if (!b->base) return free(b), OUT_OF_MEMORY;
    memset(b->base, 0, size);
    b->next = *list, *list = b, used += size, *out = (u64)b->base;
    return SUCCESS;
}
static CUresult give(struct block **list, u64 address) {
    for (struct block **b = list; *b; b = &(*b)->next)
        if ((u64)(*b)->base == address) {
            struct block *gone = *b;
            *b = gone->next, used -= gone->size, free(gone->base), free(gone);
            return SUCCESS;
        }
    return INVALID_VALUE;
}

/* ---- for the tests ---- */

/* Forgets the log and everything set before. */
void fake_configure(const char *settings) {
    pthread_mutex_lock(&lock);
    apply(settings), log_size = 0, block_count = 0;
    if (log_text) *log_text = 0;
    pthread_mutex_unlock(&lock);
}
const char *fake_log(void) { return log_text ? log_text : ""; }
/* Objects and allocations that nobody destroyed; retained contexts count too. */
int fake_live(void) {
    int n = 0;
    for (int i = 0; i < 16; i++) n += i == FUNCTION - CONTEXT ? 0 : live[i];
    for (struct block *b = blocks; b; b = b->next) n++;
    for (struct block *b = host_blocks; b; b = b->next) n++;
    for (int i = 0; i < MAX_DEVICES; i++) n += contexts[i].retained;
    return n;
}

/* ---- the driver ---- */

#define API __attribute__((visibility("default")))
#define RETURN(value) do { CUresult code_ = (value); pthread_mutex_unlock(&lock); return code_; } while (0)
/* Every function: log, rules, initialisation. */
#define ENTER(name, ...) do { pthread_mutex_lock(&lock); CUresult e_ = ruled(#name); note(#name " " __VA_ARGS__); \
    if (!e_ && !initialised) e_ = NOT_INITIALIZED; \
    if (e_) RETURN(e_); } while (0)
#define ENTER_CONTEXT(name, ...) do { ENTER(name, __VA_ARGS__); if (!current) RETURN(INVALID_CONTEXT); } while (0)
#define NEED(object, kind) do { if (!is(object, kind)) RETURN(INVALID_HANDLE); } while (0)

API CUresult cuInit(unsigned flags) {
    pthread_mutex_lock(&lock);
    CUresult e = ruled("cuInit");
    note("cuInit %u", flags);
    if (!e && !devices) e = 100;
    initialised |= !e;
    RETURN(e);
}
API CUresult cuDriverGetVersion(int *out) {
    pthread_mutex_lock(&lock);
    CUresult e = ruled("cuDriverGetVersion");
    *out = version;
    RETURN(e);
}
API CUresult cuGetErrorName(int code, const char **out) {
    switch (code) {
    case 0: *out = "CUDA_SUCCESS"; return 0;
    case 2: *out = "CUDA_ERROR_OUT_OF_MEMORY"; return 0;
    case 100: *out = "CUDA_ERROR_NO_DEVICE"; return 0;
    case 218: *out = "CUDA_ERROR_INVALID_PTX"; return 0;
    case 700: *out = "CUDA_ERROR_ILLEGAL_ADDRESS"; return 0;
    case 4242: *out = "CUDA_ERROR_OF_TOMORROW"; return 0;
    default: *out = NULL; return INVALID_VALUE;
    }
}
API CUresult cuGetErrorString(int code, const char **out) {
    switch (code) {
    case 2: *out = "out of memory"; return 0;
    case 100: *out = "no CUDA-capable device is detected"; return 0;
    case 218: *out = "a PTX JIT compilation failed"; return 0;
    case 700: *out = "an illegal memory access was encountered"; return 0;
    case 4242: *out = "something that this binary has never heard of"; return 0;
    default: *out = NULL; return INVALID_VALUE;
    }
}
API CUresult cuDeviceGetCount(int *out) { ENTER(cuDeviceGetCount, ""); *out = devices; RETURN(0); }
API CUresult cuDeviceGet(int *out, int ordinal) {
    ENTER(cuDeviceGet, "%d", ordinal);
    if (ordinal < 0 || ordinal >= devices) RETURN(INVALID_DEVICE);
    *out = ordinal;
    RETURN(0);
}
API CUresult cuDeviceGetName(char *out, int size, int device) {
    ENTER(cuDeviceGetName, "%d", device);
    snprintf(out, size, "Fake GPU %d", device);
    RETURN(0);
}
API CUresult cuDeviceTotalMem_v2(size_t *out, int device) {
    ENTER(cuDeviceTotalMem_v2, "%d", device);
    *out = memory_limit;
    RETURN(0);
}
API CUresult cuDeviceGetAttribute(int *out, int attribute, int device) {
    ENTER(cuDeviceGetAttribute, "%d %d", attribute, device);
    switch (attribute) {
    case 16: *out = 108; break;           /* multiprocessors */
    case 38: *out = 1 << 20; break;       /* bytes of L2 */
    case 75: *out = 8; break;             /* compute capability */
    case 76: *out = device; break;
    case 97: *out = OPTIN_SHARED; break;  /* shared memory of a block, opted in */
    case 115: *out = pools; break;        /* memory pools */
    default: RETURN(INVALID_VALUE);
    }
    RETURN(0);
}
API CUresult cuDevicePrimaryCtxRetain(struct context **out, int device) {
    ENTER(cuDevicePrimaryCtxRetain, "%d", device);
    if (device < 0 || device >= devices) RETURN(INVALID_DEVICE);
    contexts[device].kind = CONTEXT, contexts[device].device = device, contexts[device].retained++;
    *out = &contexts[device];
    RETURN(0);
}
API CUresult cuDevicePrimaryCtxRelease_v2(int device) {
    pthread_mutex_lock(&lock);
    note("cuDevicePrimaryCtxRelease_v2 %d", device);
    if (!contexts[device].retained) RETURN(INVALID_CONTEXT);
    if (!--contexts[device].retained) poison = 0;
    RETURN(0);
}
API CUresult cuCtxSetCurrent(struct context *context) {
    pthread_mutex_lock(&lock);
    if (context && !is(context, CONTEXT)) RETURN(INVALID_CONTEXT);
    current = context;
    RETURN(0);
}
API CUresult cuMemGetInfo_v2(size_t *available, size_t *total) {
    ENTER_CONTEXT(cuMemGetInfo_v2, "");
    *available = memory_limit - used, *total = memory_limit;
    RETURN(0);
}

API CUresult cuStreamCreateWithPriority(struct stream **out, unsigned flags, int priority) {
    ENTER_CONTEXT(cuStreamCreateWithPriority, "%u %d", flags, priority);
    *out = make(STREAM, sizeof **out), (*out)->number = streams++;
    RETURN(0);
}
API CUresult cuStreamDestroy_v2(struct stream *s) {
    ENTER_CONTEXT(cuStreamDestroy_v2, "");
    NEED(s, STREAM);
    drop(s);
    RETURN(0);
}
API CUresult cuStreamSynchronize(struct stream *s) {
    ENTER_CONTEXT(cuStreamSynchronize, "");
    NEED(s, STREAM);
    RETURN(s->capture ? 900 : 0);
}
API CUresult cuStreamQuery(struct stream *s) { ENTER_CONTEXT(cuStreamQuery, ""); NEED(s, STREAM); RETURN(s->capture ? 900 : 0); }
API CUresult cuStreamWaitEvent(struct stream *s, struct event *e, unsigned flags) {
    ENTER_CONTEXT(cuStreamWaitEvent, "%u", flags);
    NEED(s, STREAM);
    NEED(e, EVENT);
    RETURN(0);
}

API CUresult cuEventCreate(struct event **out, unsigned flags) {
    ENTER_CONTEXT(cuEventCreate, "%u", flags);
    *out = make(EVENT, sizeof **out);
    RETURN(0);
}
API CUresult cuEventDestroy_v2(struct event *e) { ENTER_CONTEXT(cuEventDestroy_v2, ""); NEED(e, EVENT); drop(e); RETURN(0); }
API CUresult cuEventRecord(struct event *e, struct stream *s) {
    ENTER_CONTEXT(cuEventRecord, "");
    NEED(e, EVENT);
    NEED(s, STREAM);
    e->recorded = 1, e->when = now;
    RETURN(0);
}
API CUresult cuEventSynchronize(struct event *e) { ENTER_CONTEXT(cuEventSynchronize, ""); NEED(e, EVENT); RETURN(0); }
API CUresult cuEventQuery(struct event *e) { ENTER_CONTEXT(cuEventQuery, ""); NEED(e, EVENT); RETURN(0); }
API CUresult cuEventElapsedTime(float *out, struct event *a, struct event *b) {
    ENTER_CONTEXT(cuEventElapsedTime, "");
    NEED(a, EVENT);
    NEED(b, EVENT);
    if (!a->recorded || !b->recorded) RETURN(INVALID_HANDLE);
    *out = b->when - a->when;
    RETURN(0);
}

API CUresult cuMemAlloc_v2(u64 *out, size_t size) { ENTER_CONTEXT(cuMemAlloc_v2, "%zu", size); RETURN(take(&blocks, out, size)); }
API CUresult cuMemFree_v2(u64 address) { ENTER_CONTEXT(cuMemFree_v2, ""); RETURN(give(&blocks, address)); }
#ifndef WITHOUT_POOLS
API CUresult cuMemAllocAsync(u64 *out, size_t size, struct stream *s) {
    ENTER_CONTEXT(cuMemAllocAsync, "%zu", size);
    NEED(s, STREAM);
    RETURN(pools ? take(&blocks, out, size) : 801);
}
API CUresult cuMemFreeAsync(u64 address, struct stream *s) {
    ENTER_CONTEXT(cuMemFreeAsync, "");
    NEED(s, STREAM);
    RETURN(give(&blocks, address));
}
static struct object pool = { POOL };
API CUresult cuDeviceGetDefaultMemPool(struct object **out, int device) {
    ENTER(cuDeviceGetDefaultMemPool, "%d", device);
    *out = &pool;
    RETURN(0);
}
API CUresult cuMemPoolSetAttribute(struct object *p, int attribute, void *value) {
    ENTER(cuMemPoolSetAttribute, "%d %llu", attribute, *(u64 *)value);
    NEED(p, POOL);
    RETURN(0);
}
API CUresult cuMemPoolTrimTo(struct object *p, size_t keep) { ENTER(cuMemPoolTrimTo, "%zu", keep); NEED(p, POOL); RETURN(0); }
#endif
API CUresult cuMemHostAlloc(void **out, size_t size, unsigned flags) {
    ENTER_CONTEXT(cuMemHostAlloc, "%zu %u", size, flags);
    RETURN(take(&host_blocks, (u64 *)out, size));
}
API CUresult cuMemFreeHost(void *p) { ENTER_CONTEXT(cuMemFreeHost, ""); RETURN(give(&host_blocks, (u64)p)); }
API CUresult cuMemHostGetDevicePointer_v2(u64 *out, void *p, unsigned flags) {
    ENTER_CONTEXT(cuMemHostGetDevicePointer_v2, "%u", flags);
    if (!holding(host_blocks, (u64)p, 1)) RETURN(INVALID_VALUE);
    *out = (u64)p;
    RETURN(0);
}
API CUresult cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t size, struct stream *s) {
    ENTER_CONTEXT(cuMemcpyHtoDAsync_v2, "%zu", size);
    NEED(s, STREAM);
    if (!holding(blocks, to, size)) RETURN(INVALID_VALUE);
    memcpy((void *)to, from, size);
    RETURN(0);
}
API CUresult cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t size, struct stream *s) {
    ENTER_CONTEXT(cuMemcpyDtoHAsync_v2, "%zu", size);
    NEED(s, STREAM);
    if (!holding(blocks, from, size)) RETURN(INVALID_VALUE);
    memcpy(to, (void *)from, size);
    RETURN(0);
}
API CUresult cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t size, struct stream *s) {
    ENTER_CONTEXT(cuMemcpyDtoDAsync_v2, "%zu", size);
    NEED(s, STREAM);
    if (!holding(blocks, from, size) || !holding(blocks, to, size)) RETURN(INVALID_VALUE);
    memcpy((void *)to, (void *)from, size);
    RETURN(0);
}
API CUresult cuMemsetD32Async(u64 to, unsigned value, size_t words, struct stream *s) {
    ENTER_CONTEXT(cuMemsetD32Async, "%u %zu", value, words);
    NEED(s, STREAM);
    if (!holding(blocks, to, 4 * words) && !holding(host_blocks, to, 4 * words)) RETURN(INVALID_VALUE);
    for (size_t i = 0; i < words; i++) ((unsigned *)to)[i] = value;
    RETURN(0);
}

/* ---- modules: a "cubin" is a mark and the PTX ---- */

static const char mark[] = "FAKECUBIN\n";

/* The parameter sizes of `.entry NAME(.param .u64 NAME_param_0, ...)`. */
static void read_params(const char *ptx, struct function *f) {
    char entry[160];
    snprintf(entry, sizeof entry, ".entry %s(", f->name);
    const char *p = strstr(ptx, entry), *end = p ? strchr(p + strlen(entry), ')') : NULL;
    f->params = -1;
    if (!end) return;
    for (f->params = 0; (p = strstr(p, ".param ")) && p < end; p++) {
        const char *type = p + 7;
        while (*type && (*type < '0' || *type > '9')) type++;
        f->size[f->params++] = atoi(type) / 8;
    }
}
API CUresult cuLinkCreate_v2(unsigned count, int *options, void **values, struct link **out) {
    ENTER_CONTEXT(cuLinkCreate_v2, "%u", count);
    struct link *l = *out = make(LINK, sizeof *l);
    for (unsigned i = 0; i < count; i++) {
        if (options[i] == 5) l->error = values[i];
        if (options[i] == 6) l->error_size = (size_t)values[i];
        if (options[i] == 3) snprintf(values[i], 64, "fake ptxas info");
    }
    RETURN(0);
}
API CUresult cuLinkAddData_v2(struct link *l, int type, void *data, size_t size, const char *name, unsigned n,
                              int *options, void **values) {
    pthread_mutex_lock(&lock);
    CUresult e = ruled("cuLinkAddData_v2");
    (void)options, (void)values;
    note("cuLinkAddData_v2 type %d %zu bytes %s options %u", type, size, name, n);
    if (e && l->error) snprintf(l->error, l->error_size, "ptxas %s, line 7; error : the fake does not like it", name);
    if (!e && (type != 1 || ((char *)data)[size - 1])) e = INVALID_IMAGE; /* PTX ends with a NUL */
    if (!e) l->ptx = strdup(data);
    RETURN(e);
}
API CUresult cuLinkComplete(struct link *l, void **cubin, size_t *size) {
    ENTER_CONTEXT(cuLinkComplete, "");
    NEED(l, LINK);
    *size = strlen(mark) + strlen(l->ptx) + 1;
    l->cubin = malloc(*size);
    snprintf(l->cubin, *size, "%s%s", mark, l->ptx);
    *cubin = l->cubin;
    RETURN(0);
}
API CUresult cuLinkDestroy(struct link *l) {
    ENTER_CONTEXT(cuLinkDestroy, "");
    NEED(l, LINK);
    free(l->ptx), free(l->cubin), drop(l);
    RETURN(0);
}
API CUresult cuModuleLoadDataEx(struct module **out, const void *image, unsigned count, int *options, void **values) {
    ENTER_CONTEXT(cuModuleLoadDataEx, "%u", count);
    (void)options, (void)values;
    if (strncmp(image, mark, strlen(mark))) RETURN(INVALID_IMAGE);
    *out = make(MODULE, sizeof **out), (*out)->ptx = strdup(image);
    RETURN(0);
}
API CUresult cuModuleUnload(struct module *m) {
    ENTER_CONTEXT(cuModuleUnload, "");
    NEED(m, MODULE);
    for (struct function *f = m->functions, *next; f; f = next) next = f->next, drop(f);
    free(m->ptx), drop(m);
    RETURN(0);
}
API CUresult cuModuleGetFunction(struct function **out, struct module *m, const char *name) {
    ENTER_CONTEXT(cuModuleGetFunction, "%s", name);
    NEED(m, MODULE);
    for (struct function *f = m->functions; f; f = f->next)
        if (!strcmp(f->name, name)) { *out = f; RETURN(0); }
    struct function *f = make(FUNCTION, sizeof *f);
    snprintf(f->name, sizeof f->name, "%s", name), read_params(m->ptx, f);
    if (f->params < 0) { drop(f); RETURN(NOT_FOUND); }
    f->shared_limit = DEFAULT_SHARED, f->next = m->functions, m->functions = f, *out = f;
    RETURN(0);
}
API CUresult cuFuncSetAttribute(struct function *f, int attribute, int value) {
    ENTER_CONTEXT(cuFuncSetAttribute, "%s %d %d", is(f, FUNCTION) ? f->name : "?", attribute, value);
    NEED(f, FUNCTION);
    if (attribute != 8 || value < 0 || value > OPTIN_SHARED) RETURN(INVALID_VALUE);
    f->shared_limit = value;
    RETURN(0);
}

/* ---- launches and graphs ---- */

/* Parameters of 8 bytes that lie in device memory are shown as allocation:offset. */
static void show(const char *verb, const struct launch *l) {
    char args[3000] = "";
    size_t n = 0;
    for (int i = 0; i < l->f->params && n < sizeof args - 64; i++) {
        struct block *b = l->f->size[i] == 8 ? holding(blocks, l->args[i], 1) : NULL;
        n += b ? snprintf(args + n, sizeof args - n, " @%d+%llu", b->number, l->args[i] - (u64)b->base)
               : snprintf(args + n, sizeof args - n, " %llu", l->args[i]);
    }
    note("%s %s grid %u %u %u block %u %u %u shared %u args%s", verb, l->f->name, l->grid[0], l->grid[1],
         l->grid[2], l->block[0], l->block[1], l->block[2], l->shared, args);
}
API CUresult cuLaunchKernel(struct function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                            unsigned bz, unsigned shared, struct stream *s, void **params, void **extra) {
    pthread_mutex_lock(&lock);
    CUresult e = ruled("cuLaunchKernel");
    if (!e && !current) e = INVALID_CONTEXT;
    if (!e && (!is(f, FUNCTION) || !is(s, STREAM))) e = INVALID_HANDLE;
    if (!e && (extra || !gx || !gy || !gz || !bx || !by || !bz || shared > (unsigned)f->shared_limit)) e = INVALID_VALUE;
    if (e) { note("cuLaunchKernel failed %d", e); RETURN(e); }
    struct launch *l = calloc(1, sizeof *l);
    *l = (struct launch){ f, { gx, gy, gz }, { bx, by, bz }, shared, { 0 }, NULL };
    for (int i = 0; i < f->params; i++) memcpy(&l->args[i], params[i], f->size[i]);
    show(s->capture ? "capture" : "launch", l);
    now += 0.5;
    if (s->capture) *s->capture->last = l, s->capture->last = &l->next;
    else free(l);
    RETURN(0);
}
static void clear(struct graph *g) {
    for (struct launch *l = g->first, *next; l; l = next) next = l->next, free(l);
    g->first = NULL, g->last = &g->first;
}
static void copy(struct graph *to, const struct graph *from) {
    to->last = &to->first;
    for (struct launch *l = from->first; l; l = l->next) {
        struct launch *mine = malloc(sizeof *mine);
        *mine = *l, mine->next = NULL, *to->last = mine, to->last = &mine->next;
    }
}
API CUresult cuStreamBeginCapture_v2(struct stream *s, int mode) {
    ENTER_CONTEXT(cuStreamBeginCapture_v2, "%d", mode);
    NEED(s, STREAM);
    if (s->capture) RETURN(INVALID_VALUE);
    s->capture = make(GRAPH, sizeof *s->capture), s->capture->last = &s->capture->first;
    RETURN(0);
}
API CUresult cuStreamEndCapture(struct stream *s, struct graph **out) {
    ENTER_CONTEXT(cuStreamEndCapture, "");
    NEED(s, STREAM);
    if (!s->capture) RETURN(INVALID_VALUE);
    *out = s->capture, s->capture = NULL;
    RETURN(0);
}
API CUresult cuGraphInstantiateWithFlags(struct graph **out, struct graph *g, u64 flags) {
    ENTER_CONTEXT(cuGraphInstantiateWithFlags, "%llu", flags);
    NEED(g, GRAPH);
    *out = make(EXEC, sizeof **out), copy(*out, g);
    RETURN(0);
}
API CUresult cuGraphExecUpdate(struct graph *exec, struct graph *g, void **node, int *result) {
    ENTER_CONTEXT(cuGraphExecUpdate, "");
    NEED(exec, EXEC);
    NEED(g, GRAPH);
    struct launch *a = exec->first, *b = g->first;
    for (; a && b && a->f == b->f; a = a->next, b = b->next) {}
    *node = NULL, *result = a || b ? 77 /* a reason of tomorrow */ : 0;
    if (a || b) RETURN(UPDATE_FAILURE);
    clear(exec), copy(exec, g);
    RETURN(0);
}
API CUresult cuGraphLaunch(struct graph *exec, struct stream *s) {
    ENTER_CONTEXT(cuGraphLaunch, "");
    NEED(exec, EXEC);
    NEED(s, STREAM);
    for (struct launch *l = exec->first; l; l = l->next) show("replay", l), now += 0.25;
    RETURN(0);
}
API CUresult cuGraphExecDestroy(struct graph *exec) { ENTER_CONTEXT(cuGraphExecDestroy, ""); NEED(exec, EXEC); clear(exec), drop(exec); RETURN(0); }
API CUresult cuGraphDestroy(struct graph *g) { ENTER_CONTEXT(cuGraphDestroy, ""); NEED(g, GRAPH); clear(g), drop(g); RETURN(0); }
#endif
