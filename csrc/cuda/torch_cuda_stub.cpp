// Linked as libtorch_cuda.so so that the real one becomes a needed entry of _C_cuda: beside a CPU-only
// torch there is no such library to link, and torch keeps its own out of the global scope. Never shipped.
extern "C" void maskfuse_torch_cuda_stub() {}
