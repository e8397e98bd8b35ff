/* Values of whole sequences: made by an earlier pass, given to each token of a block. */

#pragma once
#include "loop_block.h"

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
                if (o->objective == GMPO && !c->per_token)
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
