/* One tile of the screen in one pass: from the 8-bit product's integers to the running softmax and
 * the candidates; the exact logits of candidates; and the fingerprint of a weight's bytes.
 *
 * compiled.py compiles this file and calls it; running.py computes the same with PyTorch. A token's
 * numbers have one order whatever the number of threads is. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define MOST_IDS 1024 /* of a tile */
#define LANES 16
#define LOWEST -87.0f /* exp of it is nothing beside 1, and not subnormal */

/* GOMP_parallel: runs the function on the argument in so many threads, and waits for them. */
typedef void (*Team)(void (*)(void *), void *, unsigned, unsigned);
typedef void (*Part)(void *, int64_t part);
typedef struct {
    Part run;
    void *argument;
    int64_t next, parts;
} Work;

static void take_parts(void *given) {
    Work *work = given;
    for (;;) {
        int64_t part = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (part >= work->parts) return;
        work->run(work->argument, part);
    }
}

static void in_parts(Part run, void *argument, int64_t parts, int32_t threads, Team team) {
    Work work = {run, argument, 0, parts};
    if (team && threads > 1 && parts > 1)
        team(take_parts, &work, (unsigned)threads, 0);
    else
        take_parts(&work);
}

typedef struct {
    /* Of the tile: integer products [tokens, ids], and of each id scale and bias (NULL: 0). */
    const int32_t *products;
    const float *id_scale, *id_bias;
    /* Of each token: scale, the part of its logits that all ids share, 1 / temperature. */
    const float *scale, *shared, *cooling;
    const int64_t *targets;
    const float *target_logit;
    const uint32_t *seed;
    /* The running softmax of each token, without the target. */
    float *max;
    double *sum, *dev;
    /* The candidates: [tokens, places], count > places: too many. */
    int32_t *count, *ids;
    float *logits, *weights;
    /* A candidate is what is at least `least` times its weight of the total; drawn from the table. */
    const float *table;
    int64_t tokens, width, start, places, table_size;
    float softcap, least;
} Tile;

static inline float exponential(float x) { /* for -87 <= x <= 0, within 1.5 units in the last place */
    float k = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    float r = x - k * 0.693359375f + k * 2.12194440e-4f;
    float q = 1.9875691500e-4f;
    q = q * r + 1.3981999507e-3f;
    q = q * r + 8.3334519073e-3f;
    q = q * r + 4.1665795894e-2f;
    q = q * r + 1.6666665459e-1f;
    q = q * r + 5.0000001201e-1f;
    q = q * (r * r) + r + 1.0f;
    int32_t bits = ((int32_t)(k == k ? k : 0.0f) + 127) << 23; /* a NaN is in q */
    float power;
    memcpy(&power, &bits, sizeof power);
    return power * q;
}

static inline float tanh_of(float x) { /* to 1e-6 of its size */
    float size = fabsf(x);
    size = size > 20.0f ? 20.0f : size;
    float e = exponential(-2.0f * size);
    float value = (1.0f - e) / (1.0f + e), square = x * x;
    value = x < 0 ? -value : value;
    return size < 0.05f ? x * (1.0f - square * (1.0f / 3 - square * (2.0f / 15))) : value;
}

static uint32_t mixed(uint32_t x) { /* lowbias32, of Ellis */
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    return x ^ (x >> 16);
}

/* Candidates below the present bound leave their places. */
static int32_t compacted(const Tile *t, int64_t row, float shift, double bound) {
    int32_t *ids = t->ids + row * t->places, kept = 0;
    float *logits = t->logits + row * t->places, *weights = t->weights + row * t->places;
    for (int32_t i = 0; i < t->count[row]; i++) {
        if (exp((double)logits[i] - shift) < bound * weights[i]) continue;
        ids[kept] = ids[i];
        logits[kept] = logits[i];
        weights[kept++] = weights[i];
    }
    return kept;
}

static void collect(const Tile *t, int64_t row, const float *z, const float *e, float shift,
                    double bound) {
    int64_t n = t->width;
    const float *weight =
        t->table + (mixed(t->seed[row] ^ mixed((uint32_t)t->start)) & (t->table_size - 1));
    float least = (float)bound;
    int32_t count = t->count[row];
    for (int64_t j = 0; j < n; j += 4 * LANES) {
        int64_t end = j + 4 * LANES < n ? j + 4 * LANES : n;
        int32_t any = 0;
        if (end - j == 4 * LANES) {
#pragma omp simd reduction(| : any)
            for (int32_t i = 0; i < 4 * LANES; i++) any |= e[j + i] >= least * weight[j + i];
        } else {
            any = 1;
        }
        if (!any) continue;
        for (int64_t i = j; i < end; i++) {
            if (!(e[i] >= least * weight[i])) continue;
            if (count == t->places) {
                t->count[row] = count;
                count = compacted(t, row, shift, bound);
                if (count > t->places * 3 / 4) {
                    t->count[row] = t->places + 1;
                    return;
                }
            }
            int64_t at = row * t->places + count++;
            t->ids[at] = (int32_t)(t->start + i);
            t->logits[at] = z[i];
            t->weights[at] = weight[i];
        }
    }
    t->count[row] = count;
}

static void one_row(void *given, int64_t row) {
    const Tile *t = given;
    if (t->count[row] > t->places) return; /* the token will be computed exactly */
    float z[MOST_IDS] __attribute__((aligned(64))), e[MOST_IDS] __attribute__((aligned(64)));
    int64_t n = t->width, column = t->targets[row] - t->start;
    const int32_t *products = t->products + row * n;
    float scale = t->scale[row], shared = t->shared[row], cooling = t->cooling[row];
    for (int64_t j = 0; j < n; j++)
        z[j] = (float)products[j] * t->id_scale[j] * scale + shared;
    if (t->id_bias)
        for (int64_t j = 0; j < n; j++) z[j] += t->id_bias[j];
    if (t->softcap > 0) {
        float cap = t->softcap, inverse = 1.0f / cap;
        for (int64_t j = 0; j < n; j++) {
            float capped = cap * tanh_of(z[j] * inverse);
            z[j] = z[j] == -INFINITY ? z[j] : capped;
        }
    }
    if (cooling != 1.0f)
        for (int64_t j = 0; j < n; j++) z[j] *= cooling;
    if (column >= 0 && column < n) z[column] = -INFINITY;
    float before = t->max[row], largest = before;
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < n; j++) largest = z[j] > largest ? z[j] : largest;
    float shift = largest < -3.4028234e38f ? -3.4028234e38f : largest;
    float sum = 0, dev = 0;
#pragma omp simd reduction(+ : sum, dev)
    for (int64_t j = 0; j < n; j++) {
        float x = z[j] - shift;
        x = x < LOWEST ? LOWEST : x; /* NaN stays NaN */
        float power = exponential(x);
        e[j] = power;
        sum += power;
        dev += x * power;
    }
    double step = (double)before - shift;
    step = step < -800.0 ? -800.0 : step;
    double shrunk = exp(step);
    t->dev[row] = (t->dev[row] + step * t->sum[row]) * shrunk + dev;
    double total = t->sum[row] * shrunk + sum;
    t->sum[row] = total;
    t->max[row] = largest;
    if (largest == -INFINITY) return;
    double target = (double)t->target_logit[row] - shift;
    collect(t, row, z, e, shift, t->least * (total + exp(target > 80.0 ? 80.0 : target)));
}

void siri_screen_tile(Tile *tile, int32_t threads, Team team) {
    in_parts(one_row, tile, tile->tokens, threads, team);
}

typedef struct {
    const float *hidden;
    const void *weight;
    int64_t width, stride; /* of weight, in numbers */
    const int64_t *row, *id;
    float *out;
    int64_t count;
    int32_t kind; /* of weight: 0 float32, 1 bfloat16 */
} Dots;

enum { DOTS = 64 };

#define DOT(READ)                                                                            \
    {                                                                                        \
        float lanes[4 * LANES] = {0};                                                        \
        int64_t d = 0;                                                                       \
        for (; d + 4 * LANES <= width; d += 4 * LANES)                                       \
            for (int32_t i = 0; i < 4 * LANES; i++) lanes[i] += h[d + i] * READ(d + i);      \
        for (; d < width; d++) lanes[d % (4 * LANES)] += h[d] * READ(d);                     \
        for (int32_t half = 2 * LANES; half; half /= 2)                                      \
            for (int32_t i = 0; i < half; i++) lanes[i] += lanes[i + half];                  \
        sum = lanes[0];                                                                      \
    }

static inline float from_bfloat16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void some_dots(void *given, int64_t part) {
    const Dots *d_ = given;
    int64_t end = (part + 1) * DOTS < d_->count ? (part + 1) * DOTS : d_->count;
    int64_t width = d_->width;
    for (int64_t k = part * DOTS; k < end; k++) {
        const float *h = d_->hidden + d_->row[k] * width;
        int64_t at = d_->id[k] * d_->stride;
        float sum;
        if (d_->kind == 0) {
            const float *w = (const float *)d_->weight + at;
#define READ(i) w[i]
            DOT(READ)
#undef READ
        } else {
            const uint16_t *w = (const uint16_t *)d_->weight + at;
#define READ(i) from_bfloat16(w[i])
            DOT(READ)
#undef READ
        }
        d_->out[k] = sum;
    }
}

void siri_screen_dots(Dots *dots, int32_t threads, Team team) {
    in_parts(some_dots, dots, (dots->count + DOTS - 1) / DOTS, threads, team);
}

typedef struct {
    const uint64_t *words;
    int64_t count;
    uint64_t *sums; /* one for each part */
} Words;

enum { WORDS = 1 << 17, STREAMS = 32 };

/* Each step is a bijection of the sum before it and of the word: any one change changes the sum. */
static void some_words(void *given, int64_t part) {
    const Words *w = given;
    int64_t from = part * WORDS, end = from + WORDS < w->count ? from + WORDS : w->count;
    uint64_t streams[STREAMS], sum = 0;
    for (int32_t i = 0; i < STREAMS; i++) streams[i] = 0x9e3779b97f4a7c15ULL * (uint64_t)(i + 1);
    int64_t k = from;
    for (; k + STREAMS <= end; k += STREAMS)
        for (int32_t i = 0; i < STREAMS; i++) {
            uint64_t x = (streams[i] ^ w->words[k + i]) * 0xff51afd7ed558ccdULL;
            streams[i] = x ^ (x >> 32);
        }
    for (; k < end; k++) {
        uint64_t x = (streams[k % STREAMS] ^ w->words[k]) * 0xff51afd7ed558ccdULL;
        streams[k % STREAMS] = x ^ (x >> 32);
    }
    for (int32_t i = 0; i < STREAMS; i++) {
        uint64_t x = sum ^ streams[i];
        x *= 0xff51afd7ed558ccdULL;
        sum = x ^ (x >> 32);
    }
    w->sums[part] = sum;
}

void siri_screen_words(Words *words, int32_t threads, Team team) {
    in_parts(some_words, words, (words->count + WORDS - 1) / WORDS, threads, team);
}
