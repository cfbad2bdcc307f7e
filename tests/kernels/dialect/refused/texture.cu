__global__ void texture_read(float* out, cudaTextureObject_t image) { out[0] = tex2D<float>(image, 0.0f, 0.0f); }
