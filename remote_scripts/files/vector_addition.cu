// Adds two vectors on every card that this system has, and checks each sum on the processor.
// Ends with "Result = PASS" and status 0, or with the first error as "CUDA error NUMBER: TEXT" and status 1.
#include <cstdio>
#include <vector>
#include <cuda_runtime.h>

__global__ void add(const float *a, const float *b, float *sum, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) sum[i] = a[i] + b[i];
}

static int failed(cudaError_t error) {
  if (error == cudaSuccess) return 0;
  fprintf(stderr, "CUDA error %d: %s\n", (int)error, cudaGetErrorString(error));
  return 1;
}

static int check(int card) {
  const int n = 1 << 20, threads = 256;
  const size_t size = n * sizeof(float);
  std::vector<float> a(n), b(n), sum(n, -1.0f);
  for (int i = 0; i < n; i++) {
    a[i] = (float)(i % 4096);
    b[i] = (float)(2 * (i % 1024) + 1);
  }
  float *on_card[3];
  if (failed(cudaSetDevice(card))) return 1;
  for (int i = 0; i < 3; i++) {
    if (failed(cudaMalloc((void **)&on_card[i], size))) return 1;
  }
  if (failed(cudaMemcpy(on_card[0], a.data(), size, cudaMemcpyHostToDevice))) return 1;
  if (failed(cudaMemcpy(on_card[1], b.data(), size, cudaMemcpyHostToDevice))) return 1;
  add<<<(n + threads - 1) / threads, threads>>>(on_card[0], on_card[1], on_card[2], n);
  if (failed(cudaGetLastError())) return 1;
  if (failed(cudaDeviceSynchronize())) return 1;
  if (failed(cudaMemcpy(sum.data(), on_card[2], size, cudaMemcpyDeviceToHost))) return 1;
  for (int i = 0; i < 3; i++) cudaFree(on_card[i]);
  for (int i = 0; i < n; i++) {
    if (sum[i] != a[i] + b[i]) {
      fprintf(stderr, "card %d: %g + %g gave %g at %d\n", card, a[i], b[i], sum[i], i);
      return 1;
    }
  }
  return 0;
}

int main() {
  int cards = 0;
  if (failed(cudaGetDeviceCount(&cards))) return 1;
  printf("%d CUDA device(s)\n", cards);
  for (int card = 0; card < cards; card++) {
    cudaDeviceProp about;
    if (failed(cudaGetDeviceProperties(&about, card))) return 1;
    printf("  %d: %s, compute capability %d.%d\n", card, about.name, about.major, about.minor);
    if (check(card)) return 1;
  }
  printf("Result = %s\n", cards > 0 ? "PASS" : "FAIL");
  return cards > 0 ? 0 : 1;
}
