"""Times of kernels and of prefills on a GPU, beside what the GPU could do at best and beside other libraries."""
