/*
 * A decode step from C: append, score, refine, plan, attend, merge over a small paged cache, with nothing of this
 * project but the folder that `cargo xtask dist` makes. First dense, compared with plain attention in double precision;
 * then progressive:0.95, compared with the same over the blocks that it read, and its missed mass is measured.
 *
 *   cc -std=c99 -Wall -Wextra -Werror -I DIST decode_step.c -lcuda -lm -o decode_step    (with CUDA's cuda.h)
 *   cc ... -DPSA_DECLARE_DRIVER_API ...                                                  (with a driver only)
 *   ./decode_step DIST/psa_kernels.ptx
 */
#include "psa_kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { BATCH = 2, KV_HEADS = 2, GROUP = 4, HEAD_DIM = 64, HEADS = KV_HEADS * GROUP, LONGEST = 1000 };
static const uint32_t LENGTHS[BATCH] = {LONGEST, 300};

static void check(CUresult result, const char *what) {
    const char *name = "?";
    if (result == CUDA_SUCCESS) { return; }
    cuGetErrorName(result, &name);
    fprintf(stderr, "%s: %s (%d)\n", what, name, (int)result);
    exit(2);
}

static void *reserve(size_t bytes) {
    void *memory = calloc(1, bytes);
    if (memory == NULL) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(2);
    }
    return memory;
}

static CUdeviceptr room(size_t bytes) {
    CUdeviceptr pointer;
    check(cuMemAlloc(&pointer, bytes), "cuMemAlloc");
    return pointer;
}

static CUdeviceptr upload(const void *data, size_t bytes) {
    CUdeviceptr pointer = room(bytes);
    check(cuMemcpyHtoD(pointer, data, bytes), "cuMemcpyHtoD");
    return pointer;
}

static void download(void *to, CUdeviceptr from, size_t bytes) {
    check(cuMemcpyDtoH(to, from, bytes), "cuMemcpyDtoH");
}

/* bf16 is the upper half of a float; round to nearest, ties to even. */
static uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static double from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* splitmix64, and roughly a normal distribution out of it. */
static uint64_t state = 2503;
static double normal(void) {
    double sum = -6.0;
    int i;
    for (i = 0; i < 12; i++) {
        uint64_t z = (state += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        sum += (double)((z ^ (z >> 31)) >> 40) / (double)(1 << 24);
    }
    return sum;
}

/* A sequence: k and v [tokens, KV_HEADS, HEAD_DIM], q [HEADS, HEAD_DIM], bf16. */
typedef struct sequence {
    uint32_t tokens;
    uint16_t *k, *v, *q;
} sequence;

/* Keys lie near one of four directions for some tokens, as in text; the query looks along one of them. */
static sequence random_sequence(uint32_t tokens) {
    sequence s;
    double axes[KV_HEADS][4][HEAD_DIM];
    uint32_t t, h, c, i;
    s.tokens = tokens;
    s.k = reserve((size_t)tokens * KV_HEADS * HEAD_DIM * 2);
    s.v = reserve((size_t)tokens * KV_HEADS * HEAD_DIM * 2);
    s.q = reserve((size_t)HEADS * HEAD_DIM * 2);
    for (h = 0; h < KV_HEADS; h++) {
        for (i = 0; i < 4; i++) {
            for (c = 0; c < HEAD_DIM; c++) { axes[h][i][c] = normal(); }
        }
    }
    for (t = 0; t < tokens; t++) {
        for (h = 0; h < KV_HEADS; h++) {
            for (c = 0; c < HEAD_DIM; c++) {
                size_t at = ((size_t)t * KV_HEADS + h) * HEAD_DIM + c;
                s.k[at] = to_bf16((float)(0.7 * axes[h][(t / 48) % 4][c] + 0.7 * normal()));
                s.v[at] = to_bf16((float)normal());
            }
        }
    }
    for (h = 0; h < HEADS; h++) {
        for (c = 0; c < HEAD_DIM; c++) {
            s.q[h * HEAD_DIM + c] = to_bf16((float)(1.2 * axes[h / GROUP][h / GROUP][c] + 0.6 * normal()));
        }
    }
    return s;
}

/* Plain attention of one query head over the tokens of the blocks marked in `use`, and the logarithm of its softmax
 * sum; the mass of those tokens among all. */
static double attention(const sequence *s, uint32_t head, const uint8_t *use, double *out, double *lse) {
    double *weights = reserve(s->tokens * sizeof *weights);
    double top = -INFINITY, all = 0.0, used = 0.0;
    uint32_t kv = head / GROUP, t, c;
    for (t = 0; t < s->tokens; t++) {
        double dot = 0.0;
        for (c = 0; c < HEAD_DIM; c++) {
            dot += from_bf16(s->q[head * HEAD_DIM + c])
                   * from_bf16(s->k[((size_t)t * KV_HEADS + kv) * HEAD_DIM + c]);
        }
        weights[t] = dot / sqrt((double)HEAD_DIM);
        top = fmax(top, weights[t]);
    }
    for (c = 0; c < HEAD_DIM; c++) { out[c] = 0.0; }
    for (t = 0; t < s->tokens; t++) {
        double weight = exp(weights[t] - top);
        all += weight;
        if (!use[t / PSA_BLOCK]) { continue; }
        used += weight;
        for (c = 0; c < HEAD_DIM; c++) {
            out[c] += weight * from_bf16(s->v[((size_t)t * KV_HEADS + kv) * HEAD_DIM + c]);
        }
    }
    for (c = 0; c < HEAD_DIM; c++) { out[c] /= used; }
    *lse = top + log(used);
    free(weights);
    return used / all;
}

static char *read_text(const char *path) {
    FILE *file = fopen(path, "rb");
    long bytes;
    char *text;
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (bytes = ftell(file)) < 0) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    rewind(file);
    text = reserve((size_t)bytes + 1);
    if (fread(text, 1, (size_t)bytes, file) != (size_t)bytes) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    fclose(file);
    return text;
}

int main(int count, char **arguments) {
    psa_shape shape = {BATCH, 1, KV_HEADS, GROUP, HEAD_DIM, 0, 0};
    uint32_t widest = psa_blocks(LONGEST), used_slots = 0, used_pages = 0, b, h, i, c, part;
    const float scale = 1.0f / 8.0f; /* 1 / sqrt(64) */
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUfunction append, score, refine, plan, plan_identity, attend, merge;
    sequence sequences[BATCH];
    if (count != 2) {
        fprintf(stderr, "usage: %s psa_kernels.ptx\n", arguments[0]);
        return 2;
    }
    check(cuInit(0), "cuInit");
    check(cuDeviceGet(&device, 0), "cuDeviceGet");
    check(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    check(cuModuleLoadData(&module, read_text(arguments[1])), "cuModuleLoadData");
    check(psa_get(&append, module, PSA_APPEND_BF16_D64_P2), "append");
    check(psa_get(&score, module, PSA_SCORE_NESTED_BF16_D64), "score_nested");
    check(psa_get(&refine, module, PSA_REFINE_BF16_D64), "refine");
    check(psa_get(&plan, module, PSA_PLAN_N512), "plan");
    check(psa_get(&plan_identity, module, PSA_PLAN_IDENTITY), "plan_identity");
    check(psa_get(&attend, module, PSA_ATTEND_BF16_D64), "attend");
    check(psa_get(&merge, module, PSA_MERGE_BF16_D64), "merge");

    /* The cache: tables that name a slot for each block and a page for each full group of 64 tokens. */
    shape.max_blocks = (widest + 3u) & ~3u;
    shape.max_splits = psa_splits(widest);
    uint32_t *block_table = reserve(psa_block_table_bytes(&shape, BATCH));
    uint32_t *mirror_table = reserve(psa_mirror_table_bytes(&shape, BATCH));
    uint32_t pages = shape.max_blocks / PSA_BLOCKS_PER_GROUP;
    for (b = 0; b < BATCH; b++) {
        for (h = 0; h < KV_HEADS; h++) {
            uint32_t row = b * KV_HEADS + h;
            for (i = 0; i < psa_blocks(LENGTHS[b]); i++) { block_table[row * shape.max_blocks + i] = used_slots++; }
            for (i = 0; i < psa_full_groups(LENGTHS[b]); i++) { mirror_table[row * pages + i] = used_pages++; }
        }
    }
    CUdeviceptr arena = room(used_slots * psa_slot_bytes(HEAD_DIM));
    CUdeviceptr mirror = room(used_pages * psa_planes_page_bytes(HEAD_DIM, 2));
    CUdeviceptr blocks = upload(block_table, psa_block_table_bytes(&shape, BATCH));
    CUdeviceptr mirrors = upload(mirror_table, psa_mirror_table_bytes(&shape, BATCH));
    const uint32_t rows[BATCH] = {0, 1};
    CUdeviceptr seqs = upload(rows, sizeof rows);

    /* Append: all tokens but the last, as a prefill; then the last one, as a decode step does. */
    for (b = 0; b < BATCH; b++) { sequences[b] = random_sequence(LENGTHS[b]); }
    CUdeviceptr lens = 0;
    for (part = 0; part < 2; part++) {
        uint32_t offsets[BATCH + 1] = {0}, now[BATCH], groups = 0;
        size_t row = (size_t)KV_HEADS * HEAD_DIM * 2, bytes;
        for (b = 0; b < BATCH; b++) {
            uint32_t before = part == 0 ? 0 : LENGTHS[b] - 1, touched;
            now[b] = part == 0 ? LENGTHS[b] - 1 : LENGTHS[b];
            offsets[b + 1] = offsets[b] + now[b] - before;
            touched = psa_groups_touched(before, now[b] - before);
            groups = touched > groups ? touched : groups;
        }
        bytes = offsets[BATCH] * row;
        CUdeviceptr k = room(bytes), v = room(bytes);
        for (b = 0; b < BATCH; b++) {
            uint32_t fresh = offsets[b + 1] - offsets[b];
            size_t from = (size_t)(now[b] - fresh) * KV_HEADS * HEAD_DIM, to = offsets[b] * row;
            check(cuMemcpyHtoD(k + to, sequences[b].k + from, fresh * row), "k");
            check(cuMemcpyHtoD(v + to, sequences[b].v + from, fresh * row), "v");
        }
        CUdeviceptr where = upload(offsets, sizeof offsets);
        lens = upload(now, sizeof now);
        psa_append_params params = {k,    v, where, arena, mirror, blocks, mirrors, seqs, lens,
                                    0, 1, KV_HEADS, shape.max_blocks};
        check(psa_launch_append(append, PSA_APPEND_BF16_D64_P2, KV_HEADS, BATCH, groups, NULL, params), "append");
    }

    /* The step's buffers; sizes as in docs/kernels.md. */
    CUdeviceptr log_mass = room(psa_log_mass_bytes(&shape)), order = room(psa_order_bytes(&shape));
    CUdeviceptr counts = room(psa_count_bytes(&shape)), peak = room(psa_peak_bytes(&shape));
    CUdeviceptr rest = room(psa_rest_bytes(&shape)), partial = room(psa_partial_bytes(&shape));
    CUdeviceptr partial_ml = room(psa_partial_ml_bytes(&shape)), out = room(psa_out_bytes(&shape));
    CUdeviceptr lse = room(psa_lse_bytes(&shape)), read = room(psa_read_bytes(&shape));
    CUdeviceptr mass = room(psa_mass_bytes(&shape)), q = room(psa_q_bytes(&shape));
    CUdeviceptr doubt = room(psa_doubt_bytes(&shape)), threshold = room(psa_threshold_bytes(&shape));
    const uint32_t zeros[2 * BATCH * KV_HEADS] = {0};
    CUdeviceptr looks = upload(zeros, sizeof zeros); /* 0 before the first step */
    const uint32_t budgets[BATCH] = {PSA_MAX_BLOCKS, PSA_MAX_BLOCKS};
    CUdeviceptr budget = upload(budgets, sizeof budgets);
    for (b = 0; b < BATCH; b++) {
        check(cuMemcpyHtoD(q + (size_t)b * HEADS * HEAD_DIM * 2, sequences[b].q, HEADS * HEAD_DIM * 2), "q");
    }

    for (part = 0; part < 2; part++) {
        float stop = part == 0 ? 0.0f : 0.95f; /* 0: no stop test */
        uint32_t most = 0, all = 0;
        double worst = 0.0, worst_lse = 0.0, missed = 0.0;
        if (part == 0) {
            psa_plan_identity_params params = {lens, order, counts, peak, rest, KV_HEADS, GROUP, shape.max_blocks};
            check(psa_launch_plan_identity(plan_identity, PSA_PLAN_IDENTITY, KV_HEADS, BATCH, 1, NULL, params),
                  "plan_identity");
        } else {
            uint32_t quarters = psa_score_grid_x(LONGEST);
            psa_score_nested_params scores = {q, arena, mirror, blocks, mirrors, seqs, lens, log_mass, doubt, threshold,
                                              looks, scale, 0, 1, KV_HEADS, GROUP, shape.max_blocks};
            check(psa_launch_score_nested(score, PSA_SCORE_NESTED_BF16_D64, quarters, KV_HEADS, BATCH, NULL, scores),
                  "score_nested");
            psa_refine_params refines = {q, mirror, mirrors, seqs, lens, doubt, threshold, log_mass,
                                         looks, scale, 0, 1, KV_HEADS, GROUP, shape.max_blocks};
            check(psa_launch_refine(refine, PSA_REFINE_BF16_D64, quarters, KV_HEADS, BATCH, NULL, refines), "refine");
            psa_plan_params params = {log_mass, lens, budget, order, counts, peak, rest,
                                      psa_progressive_target(stop, 2), 1, 2, KV_HEADS, GROUP, shape.max_blocks};
            check(psa_launch_plan(plan, PSA_PLAN_N512, KV_HEADS, BATCH, 1, NULL, params), "plan");
        }
        psa_attend_params attends = {q, arena, blocks, seqs, lens, order, counts, partial, partial_ml,
                                     scale, 0, 1, KV_HEADS, GROUP, shape.max_blocks, shape.max_splits};
        check(psa_launch_attend(attend, PSA_ATTEND_BF16_D64, psa_splits(widest), KV_HEADS, BATCH, NULL, attends),
              "attend");
        psa_merge_params merges = {q, arena, blocks, seqs, lens, log_mass, order, counts, budget, peak, rest,
                                   partial, partial_ml, out, lse, read, mass, scale, stop, 0, 1, KV_HEADS, GROUP,
                                   shape.max_blocks, shape.max_splits};
        check(psa_launch_merge(merge, PSA_MERGE_BF16_D64, KV_HEADS, BATCH, 1, NULL, merges), "merge");
        check(cuCtxSynchronize(), "cuCtxSynchronize");

        float *got = reserve(psa_out_bytes(&shape)), *got_lse = reserve(psa_lse_bytes(&shape));
        uint32_t *ranks = reserve(psa_order_bytes(&shape)), *reads = reserve(psa_read_bytes(&shape));
        download(got, out, psa_out_bytes(&shape));
        download(got_lse, lse, psa_lse_bytes(&shape));
        download(ranks, order, psa_order_bytes(&shape));
        download(reads, read, psa_read_bytes(&shape));
        for (b = 0; b < BATCH; b++) {
            for (h = 0; h < HEADS; h++) {
                uint32_t row = b * KV_HEADS + h / GROUP;
                uint8_t *use = reserve(shape.max_blocks);
                double expected[HEAD_DIM], expected_lse, covered, error;
                for (i = 0; i < reads[2 * row]; i++) { use[ranks[row * shape.max_blocks + i]] = 1; }
                covered = attention(&sequences[b], h, use, expected, &expected_lse);
                missed = fmax(missed, 1.0 - covered);
                for (c = 0; c < HEAD_DIM; c++) {
                    error = fabs(got[((size_t)b * HEADS + h) * HEAD_DIM + c] - expected[c]);
                    worst = error <= worst ? worst : error; /* a NaN stays */
                }
                error = fabs(got_lse[(size_t)b * HEADS + h] - expected_lse);
                worst_lse = error <= worst_lse ? worst_lse : error;
                if (h % GROUP == 0) {
                    most += reads[2 * row];
                    all += psa_blocks(LENGTHS[b]);
                }
                free(use);
            }
        }
        printf("%s: %u of %u blocks read, largest error %.1e (lse %.1e), largest missed mass %.4f\n",
               part == 0 ? "dense" : "progressive:0.95", most, all, worst, worst_lse, missed);
        /* attend rounds weights to bf16, each by 2^-9 of itself at most, and values are below 6 in magnitude: 6 * 2^-9 =
         * 0.0117; f32 sums of 1000 of them add 1000 * 2^-24 * 6 = 3.6e-4. The softmax's sum is of unrounded weights: a
         * score is a sum of 64 products below 300 in all, off by at most 68 * 2^-24 * 300 / 8 = 1.5e-4, and so is lse; as
         * much again for exp2 and the sum. The rest of the mass is an estimate, so what is missed may exceed 0.05 a
         * little; twice that would be a fault. */
        if (!(worst < 0.0121) || !(worst_lse < 3e-4) || !(missed < 0.1) || (part == 0 && missed > 1e-12) || (part == 1 && most >= all)) {
            printf("WRONG\n");
            return 1;
        }
        free(got);
        free(got_lse);
        free(ranks);
        free(reads);
    }
    printf("as plain attention says\n");
    return 0;
}
