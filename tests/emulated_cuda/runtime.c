#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OK(name, ...) cudaError_t name(__VA_ARGS__) { return cudaSuccess; }

static cudaError_t allocate(void** p, size_t n) {
    *p = aligned_alloc(512, (n + 511) / 512 * 512);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
static int handle;

cudaError_t cudaGetDeviceCount(int* n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { *d = 0; return cudaSuccess; }
OK(cudaSetDevice, int d)
cudaError_t cudaDriverGetVersion(int* v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) { *v = CUDART_VERSION; return cudaSuccess; }
OK(cudaGetLastError, void)
OK(cudaPeekAtLastError, void)
OK(cudaDeviceSynchronize, void)
const char* cudaGetErrorString(cudaError_t e) { return e == cudaErrorLaunchFailure ? "a kernel was launched on the emulated device" : "error of the emulated device"; }
const char* cudaGetErrorName(cudaError_t e) { return "emulated"; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* p, int d) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "emulated CUDA device");
    p->major = 9; p->minor = 0; p->multiProcessorCount = 132; p->warpSize = 32;
    p->maxThreadsPerBlock = 1024; p->maxThreadsPerMultiProcessor = 2048; p->totalGlobalMem = 8ull << 30;
    p->sharedMemPerBlock = 49152; p->regsPerMultiprocessor = 65536; p->regsPerBlock = 65536;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* v, enum cudaDeviceAttr a, int d) { *v = 0; return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* c, int a, int b) { *c = 0; return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* f, size_t* t) { *f = *t = 8ull << 30; return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* a, int* b) { *a = 0; *b = -5; return cudaSuccess; }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned f, int p) { *s = (cudaStream_t)malloc(8); return cudaSuccess; }
OK(cudaStreamDestroy, cudaStream_t s)
OK(cudaStreamSynchronize, cudaStream_t s)
OK(cudaStreamQuery, cudaStream_t s)
OK(cudaStreamWaitEvent, cudaStream_t s, cudaEvent_t e, unsigned f)
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus* c) { *c = cudaStreamCaptureStatusNone; return cudaSuccess; }
#if CUDART_VERSION >= 13000
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus* c, unsigned long long* id, cudaGraph_t* g,
                                     const cudaGraphNode_t** n, const cudaGraphEdgeData** e, size_t* count) {
    *c = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
#endif
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode* m) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int* p) { *p = 0; return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned f) { *e = (cudaEvent_t)malloc(8); return cudaSuccess; }
OK(cudaEventDestroy, cudaEvent_t e)
OK(cudaEventRecord, cudaEvent_t e, cudaStream_t s)
OK(cudaEventRecordWithFlags, cudaEvent_t e, cudaStream_t s, unsigned f)
OK(cudaEventQuery, cudaEvent_t e)
OK(cudaEventSynchronize, cudaEvent_t e)
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return cudaSuccess; }

cudaError_t cudaMalloc(void** p, size_t n) { return allocate(p, n); }
cudaError_t cudaFree(void* p) { free(p); return cudaSuccess; }
// Pinned memory is remembered, so that torch can tell it from other memory.
static struct { char* at; size_t size; } pinned[1 << 16];
static int places;
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned f) {
    cudaError_t status = allocate(p, n);
    if (status == cudaSuccess && places < 1 << 16) { pinned[places].at = *p; pinned[places++].size = n; }
    return status;
}
cudaError_t cudaFreeHost(void* p) {
    for (int i = 0; i < places; i++) if (pinned[i].at == p) pinned[i--] = pinned[--places];
    free(p);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, enum cudaMemcpyKind k, cudaStream_t q) { memcpy(d, s, n); return cudaSuccess; }
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, enum cudaMemcpyKind k) { memcpy(d, s, n); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t q) { memset(d, v, n); return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* a, const void* p) {
    memset(a, 0, sizeof *a);
    for (int i = 0; i < places; i++)
        if ((char*)p >= pinned[i].at && (char*)p < pinned[i].at + pinned[i].size) a->type = cudaMemoryTypeHost;
    return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** a, size_t n, cudaStream_t s) { return cudaErrorLaunchFailure; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void** a) { return cudaErrorLaunchFailure; }

static CUresult nothing(void) { return CUDA_SUCCESS; }
cudaError_t cudaGetDriverEntryPointByVersion(const char* n, void** f, unsigned v, unsigned long long l, enum cudaDriverEntryPointQueryResult* r) {
    *f = (void*)nothing;
    if (r) *r = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned* flags, int* active) { *flags = 0; *active = 1; return CUDA_SUCCESS; }
CUresult cuInit(unsigned f) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult e, const char** s) { *s = "emulated"; return CUDA_SUCCESS; }
