/* Loss and slope of each token of a block: objective, rollout correction, KL. */

#pragma once
#include "loop_block.h"

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
    int32_t n = b->filled;
    for (int32_t i = 0; i < n; i++) {
        float raw = b->logp[i] - clamp(b->other[i], -LARGE, LARGE), rest;
        float delta = clamp(raw, -LIMIT, LIMIT);
        exponential(-delta, &rest);
        b->a[i] = rest;
        b->b[i] = delta - rest;
        b->other[i] = delta; /* from here on the sum of estimate and slope, with k3 without loss */
        b->flat[i] = delta != raw ? 1.0f : 0.0f;
    }
    if (o->kl == K1)
        for (int32_t i = 0; i < n; i++) {
            b->a[i] = b->other[i];
            b->b[i] = 1.0f;
            b->other[i] += 1.0f;
        }
    if (o->kl == K2)
        for (int32_t i = 0; i < n; i++) {
            b->b[i] = b->other[i];
            b->a[i] = 0.5f * b->b[i] * b->b[i];
            b->other[i] = b->a[i] + b->b[i];
        }
    for (int32_t i = 0; i < n; i++) {
        float kl = clamp(b->a[i], -limit, limit);
        int flat = (b->flat[i] != 0.0f) | (b->a[i] > limit) | (b->a[i] < -limit);
        b->a[i] = kl;
        b->b[i] = flat ? 0.0f : b->b[i];
        b->other[i] = flat ? kl : b->other[i];
    }
    if (o->kl_unbiased)
        for (int32_t i = 0; i < n; i++) {
            int bound = b->x[i] != b->logp[i] - b->old[i];
            b->b[i] = b->ratio[i] * (bound ? b->b[i] : b->other[i]);
            b->a[i] *= b->ratio[i];
        }
    sums[REF_KL] += sum_of(b->a, b->filled);
    if (o->kl_coef == 0.0f) return;
    for (int32_t i = 0; i < b->filled; i++) {
        b->loss[i] += o->kl_coef * b->a[i];
        b->slope[i] += o->kl_coef * b->b[i];
    }
}
