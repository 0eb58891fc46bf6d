/* A stand-in for libnvidia-ml.so.1: reads the file named by FAKE_NVML_WORLD at every call.
 *
 * Lines, fields separated by '|':
 *   init|CODE                                            answer of nvmlInitWithFlags
 *   driver|VERSION
 *   gpu|UUID|NAME|TOTAL_MIB|USED_MIB|UTILISATION|ERROR|MIG|PID,PID,...|MEMORY_UTILISATION|MILLIWATTS|CELSIUS
 *   mig|UUID|NAME|TOTAL_MIB|USED_MIB|UTILISATION|ERROR|0|PID,...   instance of the last gpu line
 *   xid|UUID|NUMBER                                      an error; told once, to who listened before
 * The minor number of a card is its place in the file, counted from the last: the order of the
 * nodes is not that of the list. A MIG instance is the gpu instance of its place, compute instance 0.
 *   fail|FUNCTION|CODE                                   this function answers this code
 *   hang|FUNCTION                                        this function never returns
 *   calls|FILE                                           every call appends its name to FILE
 * A mig line with the UUID "-" is a hole in the numbering. A figure below 0 is not supported.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7,
    TIMED_OUT = 10, IS_LOST = 15, VERSION_MISMATCH = 25, SLOTS = 64, PIDS = 64, FIELDS = 12,
    XID_EVENT = 8
};

typedef unsigned long long u64;
typedef struct { char uuid[96], name[96]; u64 total, used; int util, error, mig, parent;
                 int memory_util, milliwatts, celsius;
                 int pid_count; unsigned pids[PIDS]; } Device;
typedef struct { char uuid[96]; u64 number; } Xid;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned version; int sensor, degrees; } Temperature;
typedef struct { void *device; u64 type, data; unsigned gpu_instance, compute_instance; } Event;
typedef struct { unsigned count, xid_count; int init, answer; char driver[80];
                 Device devices[SLOTS]; Xid xids[SLOTS]; } World;

static int initialised;
/* Which slots are listened to, and how many of the errors are over. */
static char listened[SLOTS];
static unsigned told;
static char events;
/* A handle is the address of a slot; it stays valid whatever the file says later. */
static char handles[SLOTS];

static void copy(char *to, size_t size, const char *from) { snprintf(to, size, "%s", from); }

static void read_device(World *world, char **field, int parent) {
    Device *device = &world->devices[world->count++];
    memset(device, 0, sizeof *device);
    copy(device->uuid, sizeof device->uuid, field[1]);
    copy(device->name, sizeof device->name, field[2]);
    device->total = strtoull(field[3], NULL, 10) << 20;
    device->used = strtoull(field[4], NULL, 10) << 20;
    device->util = atoi(field[5]);
    device->error = atoi(field[6]);
    device->mig = atoi(field[7]);
    device->parent = parent;
    device->memory_util = atoi(field[9]);
    device->milliwatts = atoi(field[10]);
    device->celsius = atoi(field[11]);
    char *rest = field[8], *pid;
    while ((pid = strsep(&rest, ",")) && device->pid_count < PIDS)
        if (*pid) device->pids[device->pid_count++] = (unsigned)strtoul(pid, NULL, 10);
}

static void record(const char *path, const char *function) {
    FILE *calls = fopen(path, "a");
    if (!calls) return;
    fprintf(calls, "%s\n", function);
    fclose(calls);
}

/* Reads the world as it is now; blocks in a function that hangs. */
static World look(const char *function) {
    World world = {0};
    char line[4096];
    int last_gpu = -1;
    const char *path = getenv("FAKE_NVML_WORLD");
    FILE *file = path ? fopen(path, "r") : NULL;
    copy(world.driver, sizeof world.driver, "550.54.15");
    while (file && fgets(line, sizeof line, file)) {
        char empty[] = "", *field[FIELDS], *rest = line;
        line[strcspn(line, "\n")] = 0;
        for (int i = 0; i < FIELDS; i++) if (!(field[i] = strsep(&rest, "|"))) field[i] = empty;
        if (!strcmp(field[0], "init")) world.init = atoi(field[1]);
        if (!strcmp(field[0], "driver")) copy(world.driver, sizeof world.driver, field[1]);
        if (!strcmp(field[0], "calls")) record(field[1], function);
        if (!strcmp(field[0], "fail") && !strcmp(field[1], function)) world.answer = atoi(field[2]);
        if (!strcmp(field[0], "hang") && !strcmp(field[1], function)) for (;;) pause();
        if (!strcmp(field[0], "xid") && world.xid_count < SLOTS) {
            Xid *xid = &world.xids[world.xid_count++];
            copy(xid->uuid, sizeof xid->uuid, field[1]);
            xid->number = strtoull(field[2], NULL, 10);
        }
        if (world.count == SLOTS) continue;
        if (!strcmp(field[0], "gpu")) { last_gpu = (int)world.count; read_device(&world, field, -1); }
        if (!strcmp(field[0], "mig")) read_device(&world, field, last_gpu);
    }
    if (file) fclose(file);
    if (!initialised && !world.answer) world.answer = UNINITIALIZED;
    return world;
}

/* The device of a handle, or NULL and the answer to give. */
static Device *find(World *world, void *handle, int *answer) {
    long slot = (char *)handle - handles;
    *answer = world->answer;
    if (*answer) return NULL;
    if (slot < 0 || slot >= SLOTS) { *answer = INVALID; return NULL; }
    if (slot >= (long)world->count) { *answer = IS_LOST; return NULL; }
    *answer = world->devices[slot].error;
    return *answer ? NULL : &world->devices[slot];
}

static int text(char *to, unsigned size, const char *from) {
    if (strlen(from) >= size) return TOO_SMALL;
    copy(to, size, from);
    return OK;
}

/* The n-th GPU (parent < 0) or the n-th instance of a GPU. */
static int nth(World *world, int parent, unsigned index, void **handle) {
    for (unsigned slot = 0, seen = 0; slot < world->count; slot++) {
        Device *device = &world->devices[slot];
        if ((parent < 0) != (device->parent < 0)) continue;
        if (parent >= 0 && device->parent != parent) continue;
        if (seen++ != index) continue;
        if (!strcmp(device->uuid, "-")) return NOT_FOUND;
        if (parent < 0 && device->error == IS_LOST) return IS_LOST;
        *handle = &handles[slot];
        return OK;
    }
    return INVALID;
}

static unsigned how_many(World *world, int parent) {
    unsigned found = 0;
    for (unsigned slot = 0; slot < world->count; slot++)
        found += parent < 0 ? world->devices[slot].parent < 0
                            : world->devices[slot].parent == parent;
    return found;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    initialised = 1;
    World world = look(__func__);
    int answer = world.answer ? world.answer : world.init;
    if (answer) initialised = 0;
    return answer;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlInit(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    World world = look(__func__);
    initialised = 0;
    return world.answer;
}

const char *nvmlErrorString(int code) {
    static char message[32];
    snprintf(message, sizeof message, "error %d", code);
    return message;
}

int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    World world = look(__func__);
    return world.answer ? world.answer : text(version, size, world.driver);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    World world = look(__func__);
    if (!world.answer) *count = how_many(&world, -1);
    return world.answer;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    World world = look(__func__);
    return world.answer ? world.answer : nth(&world, -1, index, handle);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    World world = look(__func__);
    if (world.answer) return world.answer;
    for (unsigned slot = 0; slot < world.count; slot++)
        if (!strcmp(world.devices[slot].uuid, uuid)) { *handle = &handles[slot]; return OK; }
    return NOT_FOUND;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    return device ? text(name, size, device->name) : answer;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned size) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    return device ? text(uuid, size, device->uuid) : answer;
}

int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    if (device) *memory = (Memory){device->total, device->total - device->used, device->used};
    return answer;
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, MemoryV2 *memory) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    if (!device) return answer;
    if (memory->version != 0x02000028) return VERSION_MISMATCH;
    *memory = (MemoryV2){0x02000028, device->total, 0, device->total - device->used, device->used};
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *list) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    if (!device) return answer;
    unsigned room = *count;
    *count = (unsigned)device->pid_count;
    if (!device->pid_count) return OK;
    if (room < *count || !list) return TOO_SMALL;
    for (unsigned i = 0; i < *count; i++) list[i] = (Process){device->pids[i], ~0ULL, ~0u, ~0u};
    return OK;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, Process *list) {
    int answer;
    World world = look(__func__);
    (void)list;
    if (find(&world, handle, &answer)) *count = 0;
    return answer;
}

int nvmlDeviceGetUtilizationRates(void *handle, Utilization *rates) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    if (!device) return answer;
    if (device->util < 0 || device->parent >= 0) return NOT_SUPPORTED;
    *rates = (Utilization){(unsigned)device->util, (unsigned)device->memory_util};
    return OK;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    if (!device) return answer;
    if (device->milliwatts < 0 || device->parent >= 0) return NOT_SUPPORTED;
    *milliwatts = (unsigned)device->milliwatts;
    return OK;
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *degrees) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    if (!device) return answer;
    if (sensor || device->celsius < 0 || device->parent >= 0) return NOT_SUPPORTED;
    *degrees = (unsigned)device->celsius;
    return OK;
}

int nvmlDeviceGetTemperatureV(void *handle, Temperature *temperature) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    if (!device) return answer;
    if (device->celsius < 0 || device->parent >= 0) return NOT_SUPPORTED;
    temperature->degrees = device->celsius;
    return OK;
}

int nvmlEventSetCreate(void **set) {
    World world = look(__func__);
    if (world.answer) return world.answer;
    memset(listened, 0, sizeof listened);
    told = world.xid_count;
    *set = &events;
    return OK;
}

int nvmlDeviceRegisterEvents(void *handle, u64 types, void *set) {
    int answer;
    World world = look(__func__);
    if (!find(&world, handle, &answer)) return answer;
    if (set != &events || types != XID_EVENT) return INVALID;
    listened[(char *)handle - handles] = 1;
    return OK;
}

/* Tells the errors of lost cards too: that is when they matter. */
int nvmlEventSetWait_v2(void *set, Event *event, unsigned milliseconds) {
    World world = look(__func__);
    (void)milliseconds;
    if (world.answer) return world.answer;
    if (set != &events) return INVALID;
    while (told < world.xid_count) {
        Xid *xid = &world.xids[told++];
        for (unsigned slot = 0; slot < world.count; slot++)
            if (listened[slot] && !strcmp(world.devices[slot].uuid, xid->uuid)) {
                *event = (Event){&handles[slot], XID_EVENT, xid->number, ~0u, ~0u};
                return OK;
            }
    }
    return TIMED_OUT;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    if (device) *current = *pending = (unsigned)device->mig;
    return answer;
}

int nvmlDeviceGetMinorNumber(void *handle, unsigned *minor) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    if (!device) return answer;
    if (device->parent >= 0) return NOT_SUPPORTED;
    *minor = 0;
    for (unsigned slot = (unsigned)(device - world.devices) + 1; slot < world.count; slot++)
        *minor += world.devices[slot].parent < 0;
    return OK;
}

int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *id) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    if (!device) return answer;
    if (device->parent < 0) return NOT_SUPPORTED;
    *id = (unsigned)(device - &world.devices[device->parent]);
    return OK;
}

int nvmlDeviceGetComputeInstanceId(void *handle, unsigned *id) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    if (!device) return answer;
    if (device->parent < 0) return NOT_SUPPORTED;
    *id = 0;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    int answer;
    World world = look(__func__);
    if (find(&world, handle, &answer)) *count = how_many(&world, (int)((char *)handle - handles));
    return answer;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **instance) {
    int answer;
    World world = look(__func__);
    if (!find(&world, handle, &answer)) return answer;
    return nth(&world, (int)((char *)handle - handles), index, instance);
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *handle, void **parent) {
    int answer;
    World world = look(__func__);
    Device *device = find(&world, handle, &answer);
    if (!device) return answer;
    if (device->parent < 0) return INVALID;
    *parent = &handles[device->parent];
    return OK;
}
