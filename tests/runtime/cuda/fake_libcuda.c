/* A libcuda without a GPU, as strict as the real one where a mistake would go unnoticed for long.
 *
 * Memory is the process's own. What a stream is given is done when somebody waits for it and not a moment earlier, so a
 * result that is read without waiting is not there. Copies need pinned memory, memory that is still allocated, and
 * stay inside it. Whatever needs a context fails where none is current in the thread. While a stream records, nothing
 * runs. After a fork nothing works. Any function can be told to fail at its n-th call. Functions named fake_... are for
 * tests.
 */

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400, ILLEGAL_ADDRESS = 700, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };

typedef void (*HostFunction)(void *);
typedef struct Work { int kind; uintptr_t to, from; size_t size; HostFunction run; void *data; struct Work *next; } Work;
typedef struct { Work *first, **last; } Queue;
typedef struct { Queue queue; int error, recording, spoiled; Queue recorded; } Stream;
typedef struct { Stream *stream; } Event;
typedef struct { Queue work; } Graph;
typedef struct Block { int kind; char *address; size_t size; struct Block *next; } Block;

enum { DEVICE_MEMORY, PINNED_MEMORY, STREAM, EVENT, GRAPH, EXECUTABLE, KINDS };
enum { COPY_IN, COPY_OUT, COPY_WITHIN, CALL };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pid_t started;
static Block *blocks;
static size_t used, limit = (size_t)1 << 33;
static int retained, device_count = 1, driver_version = 12060, integrated = 1, major = 8, minor = 7;
static char device_name[256] = "Pretended GPU";
static struct { char name[64]; int after, code; } failures[16];
static struct { char name[64]; int count; } calls[64];
static __thread int depth;
static __thread Stream *recording_here, *running_here;

static int enter(const char *name, int needs_context) {
    pthread_mutex_lock(&lock);
    int code = OK;
    for (int i = 0; i < 64; i++) {
        if (!calls[i].name[0]) strcpy(calls[i].name, name);
        if (!strcmp(calls[i].name, name)) { calls[i].count++; break; }
    }
    for (int i = 0; i < 16; i++)
        if (!strcmp(failures[i].name, name) && --failures[i].after == 0) { code = failures[i].code; failures[i].name[0] = 0; }
    pthread_mutex_unlock(&lock);
    if (code) return code;
    if (strcmp(name, "cuInit") && started != getpid()) return NOT_INITIALIZED;
    if (needs_context && !depth) return INVALID_CONTEXT;
    return OK;
}
#define ENTER(needs_context) do { int code = enter(__func__, needs_context); if (code) return code; } while (0)
/* The real library refuses to allocate or wait in a thread that records, and spoils the recording. */
#define NOT_WHILE_RECORDING() do { if (recording_here) { recording_here->spoiled = 1; return CAPTURE_UNSUPPORTED; } } while (0)

static void *keep(int kind, size_t size) {
    Block *block = calloc(1, sizeof *block);
    block->kind = kind; block->size = size;
    if (posix_memalign((void **)&block->address, 256, size ? size : 1)) abort();
    memset(block->address, kind <= PINNED_MEMORY ? 0xA5 : 0, size);
    pthread_mutex_lock(&lock);
    block->next = blocks; blocks = block;
    if (kind == DEVICE_MEMORY) used += size;
    pthread_mutex_unlock(&lock);
    return block->address;
}
static int drop(int kind, void *address) {
    pthread_mutex_lock(&lock);
    for (Block **place = &blocks; *place; place = &(*place)->next)
        if ((*place)->kind == kind && (void *)(*place)->address == address) {
            Block *block = *place;
            *place = block->next;
            if (kind == DEVICE_MEMORY) used -= block->size;
            pthread_mutex_unlock(&lock);
            memset(block->address, 0xEE, block->size);
            free(block->address); free(block);
            return OK;
        }
    pthread_mutex_unlock(&lock);
    return kind == DEVICE_MEMORY || kind == PINNED_MEMORY ? INVALID_VALUE : INVALID_HANDLE;
}
static int inside(int kind, uintptr_t address, size_t size) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (Block *block = blocks; block; block = block->next)
        if (block->kind == kind && address >= (uintptr_t)block->address
            && address + size <= (uintptr_t)block->address + block->size) found = 1;
    pthread_mutex_unlock(&lock);
    return found;
}
static int there(int kind, void *handle) { return handle && inside(kind, (uintptr_t)handle, 1); }

static void add(Queue *queue, Work work) {
    if (!queue->last) queue->last = &queue->first;
    Work *copy = malloc(sizeof *copy);
    *copy = work; copy->next = NULL;
    *queue->last = copy; queue->last = &copy->next;
}
static void clear(Queue *queue) {
    for (Work *work = queue->first, *next; work; work = next) { next = work->next; free(work); }
    queue->first = NULL; queue->last = &queue->first;
}
static int give(Stream *stream, Work work) {
    if (!there(STREAM, stream)) return INVALID_HANDLE;
    add(stream->recording ? &stream->recorded : &stream->queue, work);
    return OK;
}
static int finish(Stream *stream) {
    for (Work *work = stream->queue.first; work && !stream->error; work = work->next) {
        if (work->kind == CALL) { running_here = stream; work->run(work->data); running_here = NULL; continue; }
        int to = work->kind == COPY_OUT ? PINNED_MEMORY : DEVICE_MEMORY;
        int from = work->kind == COPY_IN ? PINNED_MEMORY : DEVICE_MEMORY;
        if (!inside(to, work->to, work->size) || !inside(from, work->from, work->size)) stream->error = ILLEGAL_ADDRESS;
        else memcpy((void *)work->to, (void *)work->from, work->size);
    }
    clear(&stream->queue);
    return stream->error;
}

int cuInit(unsigned flags) { ENTER(0); if (flags) return INVALID_VALUE; started = getpid(); return OK; }
int cuDriverGetVersion(int *version) { ENTER(0); *version = driver_version; return OK; }
int cuGetErrorName(int code, const char **text) {
    static const struct { int code; const char *name; } names[] = {
        {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {3, "CUDA_ERROR_NOT_INITIALIZED"},
        {100, "CUDA_ERROR_NO_DEVICE"}, {201, "CUDA_ERROR_INVALID_CONTEXT"}, {400, "CUDA_ERROR_INVALID_HANDLE"},
        {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
        {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}, {999, "CUDA_ERROR_UNKNOWN"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].code == code) { *text = names[i].name; return OK; }
    *text = NULL;
    return INVALID_VALUE;
}
int cuGetErrorString(int code, const char **text) { *text = code == OUT_OF_MEMORY ? "out of memory" : "pretended"; return OK; }
int cuDeviceGetCount(int *count) { ENTER(0); *count = device_count; return OK; }
int cuDeviceGet(int *device, int index) { ENTER(0); if (index >= device_count) return 101; *device = index; return OK; }
int cuDeviceGetName(char *name, int size, int device) { ENTER(0); snprintf(name, size, "%s", device_name); return OK; }
int cuDeviceGetUuid_v2(char *uuid, int device) { ENTER(0); for (int i = 0; i < 16; i++) uuid[i] = i; return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { ENTER(0); *bytes = limit; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER(0);
    *value = attribute == 75 ? major : attribute == 76 ? minor : attribute == 18 ? integrated : -1;
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { ENTER(0); retained++; *context = &retained; return OK; }
int cuCtxPushCurrent_v2(void *context) { ENTER(0); if (context != &retained) return INVALID_CONTEXT; depth++; return OK; }
int cuCtxPopCurrent_v2(void **context) { ENTER(1); depth--; *context = &retained; return OK; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { ENTER(1); *free_bytes = limit - used; *total = limit; return OK; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    ENTER(1); NOT_WHILE_RECORDING();
    if (!size) return INVALID_VALUE;
    if (used + size > limit) return OUT_OF_MEMORY;
    *address = (uintptr_t)keep(DEVICE_MEMORY, size);
    return OK;
}
int cuMemFree_v2(uint64_t address) { ENTER(1); NOT_WHILE_RECORDING(); return drop(DEVICE_MEMORY, (void *)address); }
int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    ENTER(1); NOT_WHILE_RECORDING();
    if (!size || flags) return INVALID_VALUE;
    *address = keep(PINNED_MEMORY, size);
    return OK;
}
int cuMemFreeHost(void *address) { ENTER(1); NOT_WHILE_RECORDING(); return drop(PINNED_MEMORY, address); }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    ENTER(1);
    if (!inside(DEVICE_MEMORY, to, size) || !inside(PINNED_MEMORY, (uintptr_t)from, size)) return INVALID_VALUE;
    return give(stream, (Work){COPY_IN, to, (uintptr_t)from, size, NULL, NULL, NULL});
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    ENTER(1);
    if (!inside(PINNED_MEMORY, (uintptr_t)to, size) || !inside(DEVICE_MEMORY, from, size)) return INVALID_VALUE;
    return give(stream, (Work){COPY_OUT, (uintptr_t)to, from, size, NULL, NULL, NULL});
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void *stream) {
    ENTER(1);
    if (!inside(DEVICE_MEMORY, to, size) || !inside(DEVICE_MEMORY, from, size)) return INVALID_VALUE;
    return give(stream, (Work){COPY_WITHIN, to, from, size, NULL, NULL, NULL});
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) {
    ENTER(1); NOT_WHILE_RECORDING();
    if (!inside(DEVICE_MEMORY, from, size)) return INVALID_VALUE;
    memcpy(to, (void *)from, size);
    return OK;
}
int cuLaunchHostFunc(void *stream, HostFunction run, void *data) {
    ENTER(1);
    return give(stream, (Work){CALL, 0, 0, 0, run, data, NULL});
}
int cuStreamCreate(void **stream, unsigned flags) {
    ENTER(1); NOT_WHILE_RECORDING();
    *stream = keep(STREAM, sizeof(Stream));
    return OK;
}
int cuStreamSynchronize(Stream *stream) {
    ENTER(1);
    if (!there(STREAM, stream)) return INVALID_HANDLE;
    if (stream->recording) { stream->spoiled = 1; return CAPTURE_UNSUPPORTED; }
    return finish(stream);
}
int cuStreamDestroy_v2(Stream *stream) {
    ENTER(1);
    if (!there(STREAM, stream)) return INVALID_HANDLE;
    clear(&stream->queue); clear(&stream->recorded);
    return drop(STREAM, stream);
}
int cuStreamBeginCapture_v2(Stream *stream, int mode) {
    ENTER(1);
    if (!there(STREAM, stream)) return INVALID_HANDLE;
    if (stream->recording || mode != 1) return INVALID_VALUE;
    stream->recording = 1; stream->spoiled = 0; recording_here = stream;
    return OK;
}
int cuStreamEndCapture(Stream *stream, void **graph) {
    ENTER(1);
    if (!there(STREAM, stream) || !stream->recording) return INVALID_HANDLE;
    stream->recording = 0; recording_here = NULL; *graph = NULL;
    if (stream->spoiled) { clear(&stream->recorded); return CAPTURE_INVALIDATED; }
    Graph *made = keep(GRAPH, sizeof *made);
    for (Work *work = stream->recorded.first; work; work = work->next) add(&made->work, *work);
    clear(&stream->recorded);
    *graph = made;
    return OK;
}
int cuEventCreate(void **event, unsigned flags) { ENTER(1); *event = keep(EVENT, sizeof(Event)); return OK; }
int cuEventRecord(Event *event, Stream *stream) {
    ENTER(1);
    if (!there(EVENT, event) || !there(STREAM, stream)) return INVALID_HANDLE;
    event->stream = stream;
    return OK;
}
int cuEventSynchronize(Event *event) {
    ENTER(1);
    if (!there(EVENT, event)) return INVALID_HANDLE;
    return event->stream ? finish(event->stream) : OK;
}
int cuEventDestroy_v2(Event *event) { ENTER(1); return drop(EVENT, event); }
int cuGraphInstantiateWithFlags(void **executable, Graph *graph, unsigned long long flags) {
    ENTER(1);
    if (!there(GRAPH, graph)) return INVALID_HANDLE;
    Graph *made = keep(EXECUTABLE, sizeof *made);
    for (Work *work = graph->work.first; work; work = work->next) add(&made->work, *work);
    *executable = made;
    return OK;
}
int cuGraphDestroy(Graph *graph) { ENTER(1); if (!there(GRAPH, graph)) return INVALID_HANDLE; clear(&graph->work); return drop(GRAPH, graph); }
int cuGraphLaunch(Graph *graph, Stream *stream) {
    ENTER(1);
    if (!there(EXECUTABLE, graph) || !there(STREAM, stream)) return INVALID_HANDLE;
    for (Work *work = graph->work.first; work; work = work->next) give(stream, *work);
    return OK;
}
int cuGraphExecDestroy(Graph *graph) { ENTER(1); if (!there(EXECUTABLE, graph)) return INVALID_HANDLE; clear(&graph->work); return drop(EXECUTABLE, graph); }

/* From now on, the n-th call of a function returns a code instead of doing anything. */
void fake_fail(const char *name, int nth, int code) {
    for (int i = 0; i < 16; i++)
        if (!failures[i].name[0]) { strcpy(failures[i].name, name); failures[i].after = nth; failures[i].code = code; return; }
}
int fake_calls(const char *name) {
    for (int i = 0; i < 64; i++) if (!strcmp(calls[i].name, name)) return calls[i].count;
    return 0;
}
int fake_live(int kind) { int count = 0; for (Block *block = blocks; block; block = block->next) count += block->kind == kind; return count; }
void fake_limit(size_t bytes) { limit = bytes; }
void fake_device(const char *name, int count, int shares_memory) { snprintf(device_name, sizeof device_name, "%s", name); device_count = count; integrated = shares_memory; }
int fake_depth(void) { return depth; }
/* For what pretends to be a kernel: whether memory of the GPU is there, and what happens where it is not. */
int fake_inside(uint64_t address, size_t size) { return inside(DEVICE_MEMORY, address, size); }
void fake_fault(void) { if (running_here) running_here->error = ILLEGAL_ADDRESS; }
