__global__ void unknown(unsigned* out, unsigned x) { out[0] = __vabsdiffu4(x, out[0]); }
