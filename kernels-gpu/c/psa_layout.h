/*
 * Layouts of the buffers, sizes and grids: kernels-gpu/src/layout.rs and its neighbours in C. A test compares
 * both. C99 and C++; nothing here needs CUDA.
 */
#ifndef PSA_LAYOUT_H
#define PSA_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#define PSA_BLOCK 16u           /* tokens of a block: the unit of selection, a page of the cache */
#define PSA_QUANT_GROUP 64u     /* tokens of a mirror page */
#define PSA_BLOCKS_PER_GROUP 4u /* blocks of a mirror page */
#define PSA_MAX_BLOCKS 65536u   /* longest context, in blocks */
#define PSA_RUN 8192u           /* most blocks that one CTA ranks; beyond, `plan_*` in place of `plan` */
#define PSA_MAX_RUNS 8u         /* runs of the longest context */
#define PSA_MAX_GROUP 8u        /* most query heads of a KV head */
#define PSA_MAX_SPLITS 64u      /* most splits of a (sequence, KV head) */
#define PSA_BLOCKS_PER_SPLIT 16u

static inline uint32_t psa_div_ceil(uint32_t a, uint32_t b) { return a / b + (a % b != 0u); }

/* Blocks that hold `tokens` tokens. */
static inline uint32_t psa_blocks(uint32_t tokens) { return psa_div_ceil(tokens, PSA_BLOCK); }

/* Mirror pages in use: full groups of 64 tokens only. */
static inline uint32_t psa_full_groups(uint32_t tokens) { return tokens / PSA_QUANT_GROUP; }

/* Grid z of append: groups of 64 that `added` tokens after `before` touch; the largest of the batch. */
static inline uint32_t psa_groups_touched(uint32_t before, uint32_t added) {
    return psa_div_ceil(before + added, PSA_QUANT_GROUP) - before / PSA_QUANT_GROUP;
}

/* Grid x of score for the longest sequence. */
static inline uint32_t psa_score_grid_x(uint32_t tokens) {
    return psa_div_ceil(psa_div_ceil(tokens, PSA_QUANT_GROUP), 4u);
}

/* The plan kernel, by its N, that holds a row of `blocks` blocks, at most PSA_RUN: 512, 2048 or 8192. */
static inline uint32_t psa_plan_capacity(uint32_t blocks) {
    return blocks <= 512u ? 512u : blocks <= 2048u ? 2048u : 8192u;
}

/* Grid x of attend for the longest sequence; also a good max_splits. */
static inline uint32_t psa_splits(uint32_t blocks) {
    uint32_t wanted = psa_div_ceil(blocks, PSA_BLOCKS_PER_SPLIT);
    return wanted > PSA_MAX_SPLITS ? PSA_MAX_SPLITS : wanted == 0u ? 1u : wanted;
}

/* `target` of plan: the predicted mass, as progressive uses it. planes: of the mirror, 1 (2 bits) or 2 (4). */
static inline uint32_t psa_progressive_target(float mass, uint32_t planes) {
    float predicted = planes == 1u ? mass + (1.0f - mass) / 5.0f : mass;
    float scaled = predicted * 65536.0f;
    uint32_t whole = (uint32_t)scaled;
    return (float)whole < scaled ? whole + 1u : whole;
}

/* Bytes of a slot: K [16, head_dim], then V [16, head_dim], 2-byte elements. */
static inline size_t psa_slot_bytes(uint32_t head_dim) { return (size_t)2 * PSA_BLOCK * head_dim * 2; }

/* Bytes of a mirror page of `planes` 2-bit planes: zero f16 [head_dim], step f16 [head_dim], the planes. */
static inline size_t psa_planes_page_bytes(uint32_t head_dim, uint32_t planes) {
    return (size_t)4 * head_dim + (size_t)planes * (PSA_QUANT_GROUP * head_dim / 4);
}

/* Bytes of a page of boxes: for each of 4 blocks minimum and maximum [head_dim] in the cache's type. */
static inline size_t psa_box_page_bytes(uint32_t head_dim) { return (size_t)PSA_BLOCKS_PER_GROUP * 4 * head_dim; }

/* A step's extents. */
typedef struct psa_shape {
    uint32_t batch;      /* sequences */
    uint32_t layers;     /* of the tables */
    uint32_t kv_heads;
    uint32_t group;      /* query heads of a KV head */
    uint32_t head_dim;
    uint32_t max_blocks; /* width of a block table row, a multiple of 4 */
    uint32_t max_splits; /* at least psa_splits(blocks of the longest sequence) */
} psa_shape;

static inline size_t psa_rows(const psa_shape *s) { return (size_t)s->batch * s->kv_heads; }
static inline size_t psa_heads(const psa_shape *s) { return psa_rows(s) * s->group; }

/* Bytes of the buffers of a decode step (docs: "Buffers"). `rows` of the tables: sequences the cache may hold. */
static inline size_t psa_block_table_bytes(const psa_shape *s, uint32_t rows) {
    return (size_t)rows * s->layers * s->kv_heads * s->max_blocks * 4;
}
static inline size_t psa_mirror_table_bytes(const psa_shape *s, uint32_t rows) {
    return (size_t)rows * s->layers * s->kv_heads * (s->max_blocks / PSA_BLOCKS_PER_GROUP) * 4;
}
static inline size_t psa_q_bytes(const psa_shape *s) { return psa_heads(s) * s->head_dim * 2; }
static inline size_t psa_log_mass_bytes(const psa_shape *s) { return psa_heads(s) * s->max_blocks * 4; }
static inline size_t psa_order_bytes(const psa_shape *s) { return psa_rows(s) * s->max_blocks * 4; }
static inline size_t psa_count_bytes(const psa_shape *s) { return psa_rows(s) * 4; }
static inline size_t psa_peak_bytes(const psa_shape *s) { return psa_heads(s) * 4; }
static inline size_t psa_rest_bytes(const psa_shape *s) { return psa_heads(s) * 8; }
static inline size_t psa_partial_bytes(const psa_shape *s) {
    return psa_heads(s) * s->max_splits * s->head_dim * 4;
}
static inline size_t psa_partial_ml_bytes(const psa_shape *s) {
    return psa_heads(s) * s->max_splits * 8;
}
static inline size_t psa_out_bytes(const psa_shape *s) { return psa_heads(s) * s->head_dim * 4; }
static inline size_t psa_lse_bytes(const psa_shape *s) { return psa_heads(s) * 4; }
static inline size_t psa_read_bytes(const psa_shape *s) { return psa_rows(s) * 8; }
static inline size_t psa_mass_bytes(const psa_shape *s) { return psa_heads(s) * 4; }

#endif
