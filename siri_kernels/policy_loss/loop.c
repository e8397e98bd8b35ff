/* The policy loss of packed tokens in one pass: loss, gradient and metrics, in float32.
 *
 * compiled.py compiles this file and calls `policy_loss`; portable.py computes the same with PyTorch.
 * Tokens are taken in blocks of BLOCK, whose values lie in the first cache between the small loops
 * below, and whose loops a compiler turns into vector instructions. Sums have one order: lanes of a
 * block in float32, blocks of a chunk in float64, chunks in float64. It does not depend on the number
 * of threads. Values of whole sequences come from an earlier pass over the same blocks. */

#include <pthread.h>
#include <stdlib.h>
#include "loop_block.h"
#include "loop_sequences.h"
#include "loop_terms.h"

#define MOST_THREADS 64

/* GOMP_parallel: runs the function on the argument in so many threads, and waits for them. */
typedef void (*Team)(void (*)(void *), void *, unsigned, unsigned);

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

/* The sequences of one of `parts` parts, of as many tokens each. */
static void earlier_part(Call *c, int64_t part, int64_t parts) {
    int64_t first = 0, last = c->sequences;
    if (part > 0) first = sequence_at(c, c->total * part / parts) + 1;
    if (part + 1 < parts) last = sequence_at(c, c->total * (part + 1) / parts) + 1;
    whole_sequences(c, first, last);
}

static void one_chunk(Call *c, int64_t chunk) {
    Block block;
    int plain = is_plain(c);
    double *sums = c->sums + chunk * SUMS;
    memset(sums, 0, SUMS * sizeof(double));
    int64_t at = chunk * CHUNK, end = at + CHUNK < c->total ? at + CHUNK : c->total;
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

/* Work that threads take part by part: chunks, or parts of the earlier pass. */
typedef struct {
    Call *call;
    int64_t next, parts;
    int earlier;
} Work;

static void take(void *argument) {
    Work *work = argument;
    for (;;) {
        int64_t part = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (part >= work->parts) return;
        if (work->earlier) earlier_part(work->call, part, work->parts);
        else one_chunk(work->call, part);
    }
}

static void *take_in_thread(void *argument) {
    take(argument);
    return NULL;
}

/* The threads of PyTorch's operators, if `team` starts them: they have just worked, and are there
 * at once. A new thread would also find its core taken by one of them, which still looks for work.
 * Else threads of our own. */
static void in_threads(Call *c, int64_t workers, Team team, int earlier) {
    int64_t chunks = (c->total + CHUNK - 1) / CHUNK;
    Work work = {c, 0, earlier ? workers : chunks, earlier};
    if (workers > 1 && team) {
        team(take, &work, (unsigned)workers, 0);
        return;
    }
    pthread_t threads[MOST_THREADS];
    int64_t started = 0;
    while (started < workers - 1 && pthread_create(&threads[started], NULL, take_in_thread, &work) == 0)
        started++;
    take(&work);
    while (started > 0) pthread_join(threads[--started], NULL);
}

/* Writes the gradients, divided by the denominator, the loss and `out` [SUMS - 1], the metrics.
 * `team` may be NULL. Gives 0, or 1 where the offsets do not rise from 0 to `total`, 2 without memory. */
int siri_policy_loss(const Options *options, const float *logprobs, const float *old,
                     const float *advantages, const int32_t *offsets, const uint8_t *mask,
                     const float *rollout, const float *ref, const float *entropy,
                     float *d_logprobs, float *d_entropy, float *loss, float *out,
                     int64_t total, int64_t sequences, int32_t per_token, double denominator, int64_t workers,
                     Team team) {
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
        in_threads(c, workers, team, 1);
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
    in_threads(c, workers, team, 0);

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
