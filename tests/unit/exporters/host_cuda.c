// The part of the CUDA driver's interface that exporters/cuda_driver.py calls, on host memory and one clock: what is
// checked against it is how arguments are passed, not what a device does.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t CUdeviceptr;
typedef int CUdevice;
static int live_allocations, live_events, live_streams, retained;
static double clock_ms;

int cuInit(unsigned flags) { return flags; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(CUdevice *device, int ordinal) { return *device = 40 + ordinal, 0; }
int cuDeviceGetName(char *name, int length, CUdevice device) {
    if (device != 40) return 101;
    return strncpy(name, "Host device", length), 0;
}
int cuDriverGetVersion(int *version) { return *version = 12060, 0; }
int cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) { return *bytes = (size_t)8 << 30, device != 40; }
int cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return device != 40;
}
int cuDevicePrimaryCtxRetain(void **context, CUdevice device) {
    retained++;
    return *context = &retained, device != 40;
}
int cuDevicePrimaryCtxRelease_v2(CUdevice device) { return retained--, device != 40; }
int cuCtxSetCurrent(void *context) { return context != &retained; }
int cuStreamCreate(void **stream, unsigned flags) {
    live_streams++;
    return *stream = malloc(8), flags;
}
int cuStreamDestroy_v2(void *stream) { return free(stream), live_streams--, 0; }
int cuStreamSynchronize(void *stream) { return stream == NULL; }
int cuMemAlloc_v2(CUdeviceptr *pointer, size_t size) {
    if (size > (size_t)1 << 30) return 2;
    live_allocations++;
    return *pointer = (CUdeviceptr)(uintptr_t)malloc(size), 0;
}
int cuMemFree_v2(CUdeviceptr pointer) { return free((void *)(uintptr_t)pointer), live_allocations--, 0; }
int cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t size, void *stream) {
    return memcpy((void *)(uintptr_t)target, source, size), stream == NULL;
}
int cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t size, void *stream) {
    return memcpy(target, (void *)(uintptr_t)source, size), stream == NULL;
}
int cuEventCreate(void **event, unsigned flags) {
    live_events++;
    return *event = calloc(1, sizeof(double)), flags;
}
int cuEventDestroy_v2(void *event) { return free(event), live_events--, 0; }
int cuEventRecord(void *event, void *stream) { return *(double *)event = clock_ms += 1.5, stream == NULL; }
int cuEventSynchronize(void *event) { return event == NULL; }
int cuEventElapsedTime(float *ms, void *start, void *end) {
    return *ms = (float)(*(double *)end - *(double *)start), 0;
}
int cuGetErrorString(int status, const char **text) { return *text = status == 2 ? "out of memory" : "other", 0; }
int live(void) { return live_allocations + live_events + live_streams + retained; }
