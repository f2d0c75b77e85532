// nvcc -arch=sm_80 --jump-table-density=50 -ptx switches.cu -o switches.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// A small interpreter: a dense switch (brx.idx), a stack in local memory, a program in constant memory.
__constant__ unsigned char fallback[8] = {0, 9, 9, 2, 9, 4, 9, 15};

extern "C" __global__ void interpret(const unsigned char *code, const int *input, int *out, int length, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int stack[16], sp = 0;
    const unsigned char *p = i % 5 == 4 ? fallback : code;
    int len = i % 5 == 4 ? 8 : length;
    for (int pc = 0; pc < len; pc++) {
        int a = sp > 0 ? stack[sp - 1] : 0, b = sp > 1 ? stack[sp - 2] : 0;
        switch (p[pc] % 16) {
            case 0: stack[sp++] = input[i]; break;
            case 1: stack[sp++] = i; break;
            case 2: sp--; stack[sp - 1] = a + b; break;
            case 3: sp--; stack[sp - 1] = b - a; break;
            case 4: sp--; stack[sp - 1] = a * b; break;
            case 5: sp--; stack[sp - 1] = a & b; break;
            case 6: sp--; stack[sp - 1] = a ^ b; break;
            case 7: stack[sp - 1] = ~a; break;
            case 8: stack[sp - 1] = a >> 3; break;
            case 9: stack[sp++] = a; break;
            case 10: stack[sp - 1] = __popc(a); break;
            case 11: stack[sp - 1] = __clz(a) ^ i; break;
            case 12: stack[sp - 1] = a * 7 + 3; break;
            case 13: stack[sp - 1] = __brev(a); break;
            case 14: stack[sp - 1] = input[a & 7]; break;
            default: if (a < 0) { stack[sp - 1] = -a; } else { pc++; } break;
        }
    }
    int sum = 0;
    for (int k = 0; k < sp; k++) sum = sum * 31 + stack[k];
    out[i] = sum;
}
