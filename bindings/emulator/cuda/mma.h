#error "wmma is not emulated: use ldmatrix and mma of <mma.cuh>"
