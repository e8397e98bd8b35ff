/* The policy loss of packed tokens in one pass: loss, gradient and metrics, in float32.
 *
 * compiled.py compiles this file and calls `policy_loss`; portable.py computes the same with PyTorch.
 * Tokens are taken in blocks of BLOCK, whose values lie in the first cache between the small loops
 * below, and whose loops a compiler turns into vector instructions. Sums have one order: lanes of a
 * block in float32, blocks of a chunk in float64, chunks in float64. It does not depend on the number
 * of threads. Values of whole sequences come from an earlier pass over the same blocks. */

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 512         /* tokens: a dozen arrays of them fit into 32 KiB */
#define CHUNK (32 * BLOCK) /* tokens of a thread's unit of work */
#define LANES 16          /* a block's sums; blocks are filled up to a multiple */
#define ROW (BLOCK + LANES) /* arrays a multiple of 4 KiB apart would wait for each other */
#define MOST_THREADS 64
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
    float a[ROW], b[ROW], of[4][ROW];
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

/* The earlier pass: values of whole sequences from `first` to `last` - 1. */
static void whole_sequences(Call *c, int64_t first, int64_t last) {
    const Options *o = c->options;
    Block block, *b = &block;
    for (int64_t s = first; s < last; s++) {
        double count = 0, log_ratio = 0, gap = 0, drift = 0;
        for (int64_t at = c->offsets[s]; at < c->offsets[s + 1]; at += BLOCK) {
            int64_t left = c->offsets[s + 1] - at;
            open_block(c, b, at, left < BLOCK ? left : BLOCK);
            count += c->mask ? sum_of(b->live, b->filled) : b->size;
            if (o->sequence_ratio) {
                if (!c->per_token)
                    for (int32_t i = 0; i < b->filled; i++)
                        b->advantage[i] = b->live[i] != 0.0f ? c->advantages[s] : 0.0f;
                for (int32_t i = 0; i < b->filled; i++) {
                    float x = clamp(b->logp[i] - b->old[i], -LIMIT, LIMIT);
                    if (o->objective == GMPO) {
                        x = (x < o->low) & (b->advantage[i] < 0) ? o->low : x;
                        x = (x > o->high) & (b->advantage[i] > 0) ? o->high : x;
                        x = b->advantage[i] == 0.0f ? 0.0f : x;
                    }
                    b->x[i] = x;
                }
                log_ratio += sum_of(b->x, b->filled);
            }
            if (c->rollout) read_into(b->other, c->rollout, b, c->mask != NULL);
            if (o->level != TOKEN) {
                evidence(b->x, b->old, b->other, b->filled);
                gap += sum_of(b->x, b->filled);
            }
            if (o->off_policy) {
                evidence(b->x, b->logp, c->rollout ? b->other : b->old, b->filled);
                drift -= sum_of(b->x, b->filled);
            }
        }
        double divisor = count > 1 ? count : 1;
        c->count[s] = (int32_t)count;
        c->of[OF_SHARE][s] = 1.0f / (float)divisor;
        c->of[OF_RATIO][s] = exponential_of((float)(log_ratio / divisor));
        if (o->level == GEOMETRIC) gap /= divisor;
        c->of[OF_WEIGHT][s] = corrected(o, exponential_of(clamp((float)gap, -LIMIT, LIMIT)));
        c->of[OF_FAR][s] = (float)(drift / divisor) > o->threshold ? 1.0f : 0.0f;
    }
}

/* The sequence of token `at`: the last one that begins there or before. */
static int64_t sequence_at(const Call *c, int64_t at) {
    int64_t low = 0, high = c->sequences;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (c->offsets[middle] <= at) low = middle; else high = middle;
    }
    return low;
}

/* Whole vectors, also behind the end, where the next sequence is written after this one: a loop for
 * the rest of each tiny sequence would cost more than all else. */
static inline void fill(float *values, float value, int32_t from, int32_t to) {
    for (int32_t i = from; i < to; i += LANES)
        for (int j = 0; j < LANES; j++) values[i + j] = value;
}

/* Values of sequences, for each token of the block; gives the sequence of the next block. */
static int64_t spread(const Call *c, Block *b, int64_t s) {
    int64_t end = b->start + b->size;
    for (int64_t at = b->start; at < end; s++) {
        int64_t stop = c->offsets[s + 1] < end ? c->offsets[s + 1] : end;
        int32_t from = at - b->start, to = stop - b->start;
        if (!c->per_token) fill(b->advantage, c->advantages[s], from, to);
        for (int k = 0; k < 4; k++)
            if (c->of[k]) fill(b->of[k], c->of[k][s], from, to);
        at = stop;
        if (c->offsets[s + 1] > end) break;
    }
    for (int32_t i = b->size; i < b->filled; i++) {
        b->advantage[i] = 0.0f;
        for (int k = 0; k < 4; k++) b->of[k][i] = 1.0f;
    }
    if (c->mask && !c->per_token)
        for (int32_t i = 0; i < b->filled; i++)
            b->advantage[i] = b->live[i] != 0.0f ? b->advantage[i] : 0.0f;
    return s;
}

/* Loss and slope of each token from its ratio, as objectives.objective; counts active clips. */
static void objective(const Call *c, Block *b, const float *ratio, double *sums) {
    const Options *o = c->options;
    int32_t n = b->filled;
    float low = o->low, high = o->high;
    /* A token past the clamp of its log-ratio, or NaN, has no slope. */
    switch (o->objective) {
    case CLIP: {
        float most = o->has_ceiling ? o->ceiling : 3.4e38f;
        for (int32_t i = 0; i < n; i++) {
            float negative = -b->advantage[i], r = ratio[i];
            float loss = negative * r, bent = negative * clamp(r, low, high);
            int flat = (bent > loss) | (b->x[i] != b->logp[i] - b->old[i]);
            float slope = flat ? 0.0f : loss;
            loss = bent > loss ? bent : loss;
            float ceiling = negative * most;
            int beyond = (b->advantage[i] < 0) & (loss > ceiling);
            b->loss[i] = beyond ? ceiling : loss;
            b->slope[i] = beyond ? 0.0f : slope;
            b->a[i] = (r < low) & (b->advantage[i] < 0) ? 1.0f : 0.0f;
            b->b[i] = (r > high) & (b->advantage[i] > 0) ? 1.0f : 0.0f;
        }
        break;
    }
    case CISPO:
        for (int32_t i = 0; i < n; i++) {
            float bounded = clamp(b->logp[i], -LARGE, LARGE);
            float slope = -clamp(ratio[i], low, high) * b->advantage[i];
            b->loss[i] = slope * bounded;
            b->slope[i] = bounded != b->logp[i] ? 0.0f : slope;
            b->a[i] = ratio[i] < low ? b->live[i] : 0.0f;
            b->b[i] = ratio[i] > high ? b->live[i] : 0.0f;
        }
        break;
    case SAPO:
        for (int32_t i = 0; i < n; i++) {
            float tau = b->advantage[i] > 0 ? o->tau_positive : o->tau_negative;
            float power = exponential_of(clamp(-tau * (ratio[i] - 1.0f), -87.0f, 87.0f));
            float gate = 1.0f / (1.0f + power), shut = power / (1.0f + power);
            b->loss[i] = -b->advantage[i] * gate * 4.0f / tau;
            float slope = -4.0f * b->advantage[i] * gate * shut * ratio[i];
            b->slope[i] = b->x[i] != b->logp[i] - b->old[i] ? 0.0f : slope;
        }
        return;
    case GMPO:
        for (int32_t i = 0; i < n; i++) {
            int below = (b->x[i] < low) & (b->advantage[i] < 0);
            int above = (b->x[i] > high) & (b->advantage[i] > 0);
            b->loss[i] = -b->advantage[i] * ratio[i];
            int flat = below | above | (b->x[i] != b->logp[i] - b->old[i]);
            b->slope[i] = flat ? 0.0f : b->loss[i];
            b->a[i] = below ? 1.0f : 0.0f;
            b->b[i] = above ? 1.0f : 0.0f;
        }
        break;
    default: /* REINFORCE */
        for (int32_t i = 0; i < n; i++) {
            float bounded = clamp(b->logp[i], -LARGE, LARGE);
            b->loss[i] = -b->advantage[i] * bounded;
            b->slope[i] = bounded != b->logp[i] ? 0.0f : -b->advantage[i];
        }
        return;
    }
    sums[CLIP_LOW] += sum_of(b->a, n);
    sums[CLIP_HIGH] += sum_of(b->b, n);
}

/* The rollout correction, as objectives.correction_weight. */
static void correct(const Call *c, Block *b, double *sums) {
    const Options *o = c->options;
    read_into(b->other, c->rollout, b, c->mask != NULL);
    evidence(b->other, b->old, b->other, b->filled);
    for (int32_t i = 0; i < b->filled; i++) {
        float weight = exponential(b->other[i], &b->a[i]);
        b->b[i] = weight;
    }
    sums[ROLLOUT_KL] += sum_of(b->a, b->filled);
    const float *weight = b->b;
    if (o->level != TOKEN) {
        weight = b->of[OF_WEIGHT];
    } else if (o->correction == TRUNCATE) {
        for (int32_t i = 0; i < b->filled; i++)
            b->b[i] = clamp(b->b[i], o->weight_low, o->weight_high);
    } else if (o->correction != NO_CORRECTION) {
        for (int32_t i = 0; i < b->filled; i++) {
            float kept = o->correction == REJECT ? 1.0f : b->b[i];
            b->b[i] = (b->b[i] < o->weight_low) | (b->b[i] > o->weight_high) ? 0.0f : kept;
        }
    }
    for (int32_t i = 0; i < b->filled; i++) b->a[i] = b->live[i] != 0.0f ? weight[i] : 0.0f;
    sums[WEIGHT] += sum_of(b->a, b->filled);
    if (o->correction == NO_CORRECTION) return;
    for (int32_t i = 0; i < b->filled; i++) {
        b->loss[i] *= weight[i];
        b->slope[i] *= weight[i];
    }
}

/* The KL to the reference, as objectives.kl. */
static void add_kl(const Call *c, Block *b, double *sums) {
    const Options *o = c->options;
    read_into(b->other, c->ref, b, c->mask != NULL);
    float limit = o->has_kl_limit ? o->kl_limit : 3.4e38f;
    for (int32_t i = 0; i < b->filled; i++) {
        float raw = b->logp[i] - clamp(b->other[i], -LARGE, LARGE), rest;
        float delta = clamp(raw, -LIMIT, LIMIT);
        exponential(-delta, &rest);
        float kl = o->kl == K1 ? delta : o->kl == K2 ? 0.5f * delta * delta : rest;
        float slope = o->kl == K1 ? 1.0f : o->kl == K2 ? delta : delta - rest;
        /* Their sum; with k3 it is delta exactly, while adding the two would lose digits. */
        float both = o->kl == K3 ? delta : kl + slope;
        int flat = (delta != raw) | (kl > limit) | (kl < -limit);
        kl = clamp(kl, -limit, limit);
        slope = flat ? 0.0f : slope;
        if (o->kl_unbiased) {
            int bound = b->x[i] != b->logp[i] - b->old[i];
            slope = b->ratio[i] * (bound ? slope : flat ? kl : both);
            kl *= b->ratio[i];
        }
        b->a[i] = kl;
        b->b[i] = slope;
    }
    sums[REF_KL] += sum_of(b->a, b->filled);
    if (o->kl_coef == 0.0f) return;
    for (int32_t i = 0; i < b->filled; i++) {
        b->loss[i] += o->kl_coef * b->a[i];
        b->slope[i] += o->kl_coef * b->b[i];
    }
}

/* The pass over one block. */
static void one_block(const Call *c, Block *b, double *sums) {
    const Options *o = c->options;
    int32_t n = b->filled;
    for (int32_t i = 0; i < n; i++) {
        float x = clamp(b->logp[i] - b->old[i], -LIMIT, LIMIT);
        b->x[i] = x;
        b->ratio[i] = exponential(x, &b->a[i]);
    }
    sums[APPROX_KL] += sum_of(b->a, n);
    const float *ratio = o->sequence_ratio ? b->of[OF_RATIO] : b->ratio;
    for (int32_t i = 0; i < n; i++) b->a[i] = b->live[i] != 0.0f ? ratio[i] : 0.0f;
    double total = sum_of(b->a, n), most = largest_of(b->a, n);
    sums[RATIO] += total;
    if (most > sums[RATIO_MAX] || total != total) sums[RATIO_MAX] = total == total ? most : total;
    sums[TOKENS] += c->mask ? sum_of(b->live, n) : b->size;
    objective(c, b, ratio, sums);
    if (c->rollout) correct(c, b, sums);
    if (o->off_policy) {
        for (int32_t i = 0; i < n; i++) {
            int dropped = (b->advantage[i] < 0) & (b->of[OF_FAR][i] != 0.0f);
            b->a[i] = dropped ? 1.0f : 0.0f;
            b->loss[i] = dropped ? 0.0f : b->loss[i];
            b->slope[i] = dropped ? 0.0f : b->slope[i];
        }
        sums[OFF_POLICY] += sum_of(b->a, n);
    }
    if (c->ref) add_kl(c, b, sums);
    if (c->entropy) {
        read_into(b->other, c->entropy, b, c->mask != NULL);
        sums[ENTROPY] += sum_of(b->other, n);
        if (o->entropy_coef != 0.0f)
            for (int32_t i = 0; i < n; i++) b->loss[i] -= o->entropy_coef * b->other[i];
    }
    if (o->sequence_mean)
        for (int32_t i = 0; i < n; i++) {
            b->loss[i] *= b->of[OF_SHARE][i];
            b->slope[i] *= b->of[OF_SHARE][i];
        }
    for (int32_t i = 0; i < n; i++) b->loss[i] = b->live[i] != 0.0f ? b->loss[i] : 0.0f;
    sums[LOSS] += sum_of(b->loss, n);
    float scale = c->scale;
    for (int32_t i = 0; i < n; i++) {
        float slope = b->slope[i] * scale;
        b->a[i] = b->live[i] != 0.0f ? slope : 0.0f;
    }
    memcpy(c->d_logprobs + b->start, b->a, b->size * sizeof(float));
    if (c->d_entropy) {
        float bonus = -o->entropy_coef;
        for (int32_t i = 0; i < n; i++) b->a[i] = b->live[i] != 0.0f ? bonus : 0.0f;
        if (o->sequence_mean)
            for (int32_t i = 0; i < n; i++) b->a[i] *= b->of[OF_SHARE][i];
        for (int32_t i = 0; i < n; i++) b->a[i] *= scale;
        memcpy(c->d_entropy + b->start, b->a, b->size * sizeof(float));
    }
}

/* The same as open_block and one_block in a single loop, for the clipped objective of token ratios
 * and no more. */
static void plain_block(const Call *c, Block *b, double *sums) {
    const Options *o = c->options;
    const float *logp = c->logprobs + b->start, *old = c->old + b->start;
    const float *advantages = c->per_token ? c->advantages + b->start : b->advantage;
    float *to = c->d_logprobs + b->start, low = o->low, high = o->high, scale = c->scale;
    float most = o->has_ceiling ? o->ceiling : 3.4e38f;
    float total = 0, kl = 0, mean = 0, largest = 0;
    int32_t below = 0, above = 0;
#pragma omp simd reduction(+ : total, kl, mean, below, above) reduction(max : largest)
    for (int32_t i = 0; i < b->size; i++) {
        float raw = logp[i] - clamp(old[i], -LARGE, LARGE), advantage = advantages[i], rest;
        float x = clamp(raw, -LIMIT, LIMIT), r = exponential(x, &rest);
        float loss = -advantage * r, bent = -advantage * clamp(r, low, high);
        float slope = (bent > loss) | (x != raw) ? 0.0f : loss;
        loss = bent > loss ? bent : loss;
        float ceiling = -advantage * most;
        int beyond = (advantage < 0) & (loss > ceiling);
        total += beyond ? ceiling : loss;
        to[i] = beyond ? 0.0f : slope * scale;
        kl += rest;
        mean += r;
        largest = r > largest ? r : largest;
        below += (r < low) & (advantage < 0);
        above += (r > high) & (advantage > 0);
    }
    sums[LOSS] += total;
    sums[APPROX_KL] += kl;
    sums[RATIO] += mean;
    if (largest > sums[RATIO_MAX] || mean != mean) sums[RATIO_MAX] = mean == mean ? largest : mean;
    sums[CLIP_LOW] += below;
    sums[CLIP_HIGH] += above;
    sums[TOKENS] += b->size;
    if (c->entropy) {
        const float *entropy = c->entropy + b->start;
        float nats = 0;
#pragma omp simd reduction(+ : nats)
        for (int32_t i = 0; i < b->size; i++) nats += entropy[i];
        sums[ENTROPY] += nats;
    }
}

static int is_plain(const Call *c) {
    const Options *o = c->options;
    return o->objective == CLIP && !o->sequence_ratio && !o->sequence_mean && !c->mask &&
           !c->rollout && !o->off_policy && !c->ref && o->entropy_coef == 0.0f;
}

typedef struct {
    Call *call;
    int64_t rank, workers;
    int earlier;
} Share;

/* A thread's part: of the earlier pass its sequences, of the pass every workers-th chunk. */
static void *work(void *argument) {
    const Share *share = argument;
    Call *c = share->call;
    if (share->earlier) {
        int64_t first = 0, last = c->sequences;
        if (share->rank > 0)
            first = sequence_at(c, c->total * share->rank / share->workers) + 1;
        if (share->rank + 1 < share->workers)
            last = sequence_at(c, c->total * (share->rank + 1) / share->workers) + 1;
        whole_sequences(c, first, last);
        return NULL;
    }
    Block block;
    int plain = is_plain(c);
    for (int64_t at = share->rank * CHUNK; at < c->total; at += share->workers * CHUNK) {
        double *sums = c->sums + at / CHUNK * SUMS;
        memset(sums, 0, SUMS * sizeof(double));
        int64_t end = at + CHUNK < c->total ? at + CHUNK : c->total;
        int64_t s = sequence_at(c, at);
        for (int64_t start = at; start < end; start += BLOCK) {
            int32_t size = end - start < BLOCK ? end - start : BLOCK;
            if (plain) {
                block.start = start;
                block.size = block.filled = size;
            } else {
                open_block(c, &block, start, size);
            }
            if (!plain || !c->per_token) s = spread(c, &block, s);
            if (plain) plain_block(c, &block, sums);
            else one_block(c, &block, sums);
        }
    }
    return NULL;
}

static void in_threads(Call *c, int64_t workers, int earlier) {
    pthread_t threads[MOST_THREADS];
    int started[MOST_THREADS];
    Share shares[MOST_THREADS];
    for (int64_t i = workers - 1; i >= 0; i--) {
        shares[i] = (Share){c, i, workers, earlier};
        started[i] = i > 0 && pthread_create(&threads[i], NULL, work, &shares[i]) == 0;
        if (!started[i]) work(&shares[i]);
    }
    for (int64_t i = 1; i < workers; i++)
        if (started[i]) pthread_join(threads[i], NULL);
}

/* Writes the gradients, divided by the denominator, the loss and `out` [SUMS - 1], the metrics.
 * Gives 0, or 1 where the offsets do not rise from 0 to `total`, 2 without memory. */
int siri_policy_loss(const Options *options, const float *logprobs, const float *old,
                     const float *advantages, const int32_t *offsets, const uint8_t *mask,
                     const float *rollout, const float *ref, const float *entropy,
                     float *d_logprobs, float *d_entropy, float *loss, float *out,
                     int64_t total, int64_t sequences, int32_t per_token, double denominator, int64_t workers) {
    int64_t tokens = total, filled = 0;
    int falls = offsets[0] != 0 || offsets[sequences] != total;
    for (int64_t s = 0; s < sequences; s++) {
        falls |= offsets[s + 1] < offsets[s];
        filled += offsets[s + 1] > offsets[s];
    }
    if (falls) return 1;
    Call call = {options, logprobs, old, advantages, rollout, ref, entropy, offsets, mask,
                 d_logprobs, d_entropy, total, sequences, per_token, {NULL}, NULL, 1.0f, NULL};
    Call *c = &call;
    int64_t chunks = (total + CHUNK - 1) / CHUNK;
    workers = workers < 1 ? 1 : workers > MOST_THREADS ? MOST_THREADS : workers;
    workers = workers > chunks ? chunks : workers;

    int by_sequence = options->sequence_mean || denominator == BY_SEQUENCES;
    int earlier = options->sequence_ratio || options->level != TOKEN || options->off_policy ||
                  options->sequence_mean || (by_sequence && mask);
    float *values = earlier ? malloc(5 * sequences * sizeof(float)) : NULL;
    c->sums = malloc(chunks * SUMS * sizeof(double));
    if ((earlier && !values) || !c->sums) {
        free(values);
        free(c->sums);
        return 2;
    }
    if (earlier) {
        float *of[4] = {values, values + sequences, values + 2 * sequences, values + 3 * sequences};
        int32_t needed[4] = {options->sequence_ratio, options->level != TOKEN, options->off_policy,
                             options->sequence_mean};
        memcpy(c->of, of, sizeof of);
        c->count = (int32_t *)(values + 4 * sequences);
        in_threads(c, workers, 1);
        filled = 0;
        for (int64_t s = 0; s < sequences; s++) filled += c->count[s] > 0;
        for (int k = 0; k < 4; k++)
            if (!needed[k]) c->of[k] = NULL;
    }
    if (mask && denominator == BY_TOKENS) {
        tokens = 0;
        for (int64_t i = 0; i < total; i++) tokens += mask[i] != 0;
    }
    double divisor = denominator;
    if (denominator < 0) {
        divisor = denominator == BY_TOKENS ? tokens : filled;
        divisor = divisor < 1 ? 1 : divisor;
    }
    c->scale = (float)(1.0 / divisor);
    in_threads(c, workers, 0);

    double sums[SUMS] = {0};
    for (int64_t i = 0; i < chunks; i++)
        for (int k = 0; k < SUMS; k++) {
            double value = c->sums[i * SUMS + k];
            if (k != RATIO_MAX) sums[k] += value;
            else if (value > sums[k] || value != value) sums[k] = value;
        }
    double count = sums[TOKENS] > 1 ? sums[TOKENS] : 1;
    *loss = (float)(sums[LOSS] / divisor);
    for (int k = LOSS + 1; k < SUMS; k++)
        out[k - 1] = (float)(k == TOKENS || k == RATIO_MAX ? sums[k] : sums[k] / count);
    free(values);
    free(c->sums);
    return 0;
}
