/* A block of tokens: what is known of it, sums over it, reading it; and exp. */

#pragma once
#include <stdint.h>
#include <string.h>

#define BLOCK 512         /* tokens: a dozen arrays of them fit into 32 KiB */
#define CHUNK (32 * BLOCK) /* tokens of a thread's unit of work */
#define LANES 16          /* a block's sums; blocks are filled up to a multiple */
#define ROW (BLOCK + LANES) /* arrays a multiple of 4 KiB apart would wait for each other */
#define LARGE 1e30f /* as types.LARGE */
#define LIMIT 20.0f /* as types.LOG_RATIO_LIMIT */

enum { CLIP, CISPO, SAPO, GMPO, REINFORCE };
enum { NO_CORRECTION, TRUNCATE, MASK, REJECT };
enum { TOKEN, SEQUENCE, GEOMETRIC };
enum { K1, K2, K3 };
enum { BY_TOKENS = -1, BY_SEQUENCES = -2 }; /* in place of a denominator */
/* The sums, and in this order the results. */
enum { LOSS, CLIP_LOW, CLIP_HIGH, RATIO, RATIO_MAX, APPROX_KL, TOKENS, ENTROPY, REF_KL, ROLLOUT_KL,
       WEIGHT, OFF_POLICY, SUMS };

typedef struct {
    int32_t objective, sequence_ratio, has_ceiling, sequence_mean;
    int32_t correction, level, off_policy, kl, kl_unbiased, has_kl_limit;
    float low, high, ceiling, tau_positive, tau_negative, weight_low, weight_high;
    float threshold, kl_coef, kl_limit, entropy_coef;
} Options;

typedef struct {
    const Options *options;
    const float *logprobs, *old, *advantages, *rollout, *ref, *entropy;
    const int32_t *offsets;
    const uint8_t *mask;
    float *d_logprobs, *d_entropy;
    int64_t total, sequences;
    int32_t per_token;
    /* Of each sequence: ratio, correction's weight, 1 where off-policy, share of a token, count. */
    float *of[4];
    int32_t *count;
    float scale;
    double *sums; /* [chunks, SUMS] */
} Call;

enum { OF_RATIO, OF_WEIGHT, OF_FAR, OF_SHARE };

typedef struct {
    float logp[ROW], old[ROW], advantage[ROW], live[ROW], other[ROW];
    float x[ROW], ratio[ROW], loss[ROW], slope[ROW];
    float a[ROW], b[ROW], flat[ROW], of[4][ROW];
    int64_t start;
    int32_t size, filled;
} Block __attribute__((aligned(64)));

static inline float clamp(float x, float low, float high) { /* NaN stays NaN */
    x = x < low ? low : x;
    return x > high ? high : x;
}

/* exp(x) for |x| <= 87, within 1.5 units in the last place, and exp(x) - 1 - x without its
 * cancellation near 0. x = k ln 2 + r; the polynomial is Cephes' expf (Moshier), of
 * (exp(r) - 1 - r) / r^2. */
static inline float exponential(float x, float *rest) {
    float k = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    float r = x - k * 0.693359375f + k * 2.12194440e-4f;
    float q = 1.9875691500e-4f;
    q = q * r + 1.3981999507e-3f;
    q = q * r + 8.3334519073e-3f;
    q = q * r + 4.1665795894e-2f;
    q = q * r + 1.6666665459e-1f;
    q = q * r + 5.0000001201e-1f;
    q = q * (r * r);
    int32_t bits = ((int32_t)k + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    float grown = power * (r + q);
    *rest = k == 0.0f ? q : (grown + (power - 1.0f)) - x;
    return power + grown;
}

static inline float exponential_of(float x) {
    float rest;
    return exponential(x, &rest);
}

typedef float Lanes __attribute__((vector_size(4 * LANES), may_alias, aligned(64)));
typedef int32_t Bits __attribute__((vector_size(4 * LANES)));

static double sum_of(const float *values, int32_t filled) {
    Lanes lanes = {0};
    for (int32_t i = 0; i < filled; i += LANES) lanes += *(const Lanes *)(values + i);
    double total = 0;
    for (int j = 0; j < LANES; j++) total += lanes[j];
    return total;
}

static float largest_of(const float *values, int32_t filled) { /* NaN is passed over */
    Lanes lanes = *(const Lanes *)values;
    for (int32_t i = LANES; i < filled; i += LANES) {
        Lanes next = *(const Lanes *)(values + i);
        Bits larger = next > lanes;
        lanes = (Lanes)(((Bits)next & larger) | ((Bits)lanes & ~larger));
    }
    float most = lanes[0];
    for (int j = 1; j < LANES; j++) most = lanes[j] > most ? lanes[j] : most;
    return most;
}

/* Values of the block's tokens, 0 at masked ones and behind its end. */
static void read_into(float *to, const float *from, const Block *b, int masked) {
    memcpy(to, from + b->start, b->size * sizeof(float));
    for (int32_t i = b->size; i < b->filled; i++) to[i] = 0.0f;
    if (masked)
        for (int32_t i = 0; i < b->filled; i++) to[i] = b->live[i] != 0.0f ? to[i] : 0.0f;
}

static void open_block(const Call *c, Block *b, int64_t start, int32_t size) {
    b->start = start;
    b->size = size;
    b->filled = (size + LANES - 1) / LANES * LANES;
    for (int32_t i = 0; i < size; i++) b->live[i] = 1.0f;
    if (c->mask)
        for (int32_t i = 0; i < size; i++) b->live[i] = c->mask[start + i] ? 1.0f : 0.0f;
    for (int32_t i = size; i < b->filled; i++) b->live[i] = 0.0f;
    read_into(b->logp, c->logprobs, b, c->mask != NULL);
    read_into(b->old, c->old, b, c->mask != NULL);
    for (int32_t i = 0; i < b->filled; i++) b->old[i] = clamp(b->old[i], -LARGE, LARGE);
    if (c->per_token) read_into(b->advantage, c->advantages, b, c->mask != NULL);
}

/* `ours` minus other values, clamped; 0 where these are NaN, because not reported. */
static void evidence(float *to, const float *ours, const float *sampler, int32_t filled) {
    for (int32_t i = 0; i < filled; i++) {
        float gap = clamp(ours[i] - clamp(sampler[i], -LARGE, LARGE), -LIMIT, LIMIT);
        to[i] = gap == gap ? gap : 0.0f;
    }
}

static float corrected(const Options *o, float weight) {
    if (o->correction == NO_CORRECTION) return weight;
    if (o->correction == TRUNCATE) return clamp(weight, o->weight_low, o->weight_high);
    int lost = (weight < o->weight_low) | (weight > o->weight_high);
    return lost ? 0.0f : o->correction == REJECT ? 1.0f : weight;
}
