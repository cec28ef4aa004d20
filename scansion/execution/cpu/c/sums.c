/* The sums that go over active entries alone, forward and backward, and passes over rows. */

#include "lanes.h"

/* Entries grouped by feature, those of a feature in their own order: feature f has starts[f] to starts[f + 1] (exclusive) of
   order, which names entries, and of their tokens. Token t has entries offsets[t] to offsets[t + 1]. */
void EXPORT(group)(int64_t n_tokens, int64_t d_sae, const int64_t *features, const int64_t *offsets, int64_t *starts,
                   int64_t *order, int64_t *tokens) {
    const int64_t n = offsets[n_tokens];
    memset(starts, 0, sizeof(int64_t) * (d_sae + 1));
    for (int64_t i = 0; i < n; i++) starts[features[i] + 1]++;
    for (int64_t f = 0; f < d_sae; f++) starts[f + 1] += starts[f];
    /* Each start serves as the next free place, and is afterwards the start of the feature that follows. */
    for (int64_t token = 0; token < n_tokens; token++)
        for (int64_t i = offsets[token]; i < offsets[token + 1]; i++) {
            int64_t place = starts[features[i]]++;
            order[place] = i;
            tokens[place] = token;
        }
    memmove(starts + 1, starts, sizeof(int64_t) * d_sae);
    starts[0] = 0;
}

/* sum -= the sum of n rows, each times its weight; n is known as this is compiled. */
INLINE void subtract_rows(const int n, int64_t d, const float *const *rows, const float *weights, float *sum) {
    int64_t j = 0;
    for (; j + LANES <= d; j += LANES) {
        floats total = load(sum + j);
        for (int i = 0; i < n; i++) total -= weights[i] * load(rows[i] + j);
        *(floats *)(sum + j) = total;
    }
    for (; j < d; j++)
        for (int i = 0; i < n; i++) sum[j] -= weights[i] * rows[i][j];
}

/* The same, and the dot product of each row with another. */
INLINE void subtract_and_dot(const int n, int64_t d, const float *const *rows, const float *weights, const float *other,
                             float *sum, float *dots) {
    floats partial[TOGETHER] = {{0}};
    for (int i = 0; i < n; i++) dots[i] = 0;
    int64_t j = 0;
    for (; j + LANES <= d; j += LANES) {
        floats total = load(sum + j), with = load(other + j);
        for (int i = 0; i < n; i++) {
            floats row = load(rows[i] + j);
            total -= weights[i] * row;
            partial[i] += row * with;
        }
        *(floats *)(sum + j) = total;
    }
    for (; j < d; j++)
        for (int i = 0; i < n; i++) {
            dots[i] += rows[i][j] * other[j];
            sum[j] -= weights[i] * rows[i][j];
        }
    for (int i = 0; i < n; i++) dots[i] += sum_of_floats(partial[i]);
}

/* scansion_decode for tokens from first to last (exclusive). */
static void decode(int64_t first, int64_t last, int64_t d, const int64_t *offsets, const int64_t *features,
                   const float *values, const float *W_dec, const float *x, float *residual) {
    for (int64_t token = first; token < last; token++) {
        float *left = residual + token * d;
        memcpy(left, x + token * d, sizeof(float) * d);
        int64_t entry = offsets[token];
        const float *rows[TOGETHER];
        for (; entry + TOGETHER <= offsets[token + 1]; entry += TOGETHER) {
            for (int i = 0; i < TOGETHER; i++) rows[i] = W_dec + features[entry + i] * d;
            subtract_rows(TOGETHER, d, rows, values + entry, left);
        }
        for (; entry < offsets[token + 1]; entry++) {
            rows[0] = W_dec + features[entry] * d;
            subtract_rows(1, d, rows, values + entry, left);
        }
    }
}

/* How many entries of each feature are above 0. */
void EXPORT(fired)(int64_t n, int64_t d_sae, const int64_t *features, const float *values, int64_t *counts) {
    memset(counts, 0, sizeof(int64_t) * d_sae);
    for (int64_t i = 0; i < n; i++) counts[features[i]] += values[i] > 0;
}

/* residual = x - the sum of the token's values times decoder rows. */
void EXPORT(decode)(int64_t n_threads, int64_t n_tokens, int64_t d, const int64_t *offsets, const int64_t *features,
                    const float *values, const float *W_dec, const float *x, float *residual) {
#pragma omp parallel num_threads(n_threads)
    decode(MINE(n_tokens), d, offsets, features, values, W_dec, x, residual);
}

/* What n entries of a feature give to the gradients of its decoder row and of its bias, which is returned. */
INLINE float learn_decoder(const int n, int64_t d, const int64_t *entries, const int64_t *tokens, const float *values,
                           const float *beside, const float *factors, const float *row, const float *to_residual, float *to_row,
                           float *to_values) {
    const float *wrong[TOGETHER];
    float weights[TOGETHER], dots[TOGETHER], bias = 0;
    for (int i = 0; i < n; i++) {
        wrong[i] = to_residual + tokens[i] * d;
        weights[i] = values[entries[i]];
    }
    subtract_and_dot(n, d, wrong, weights, row, to_row, dots);
    for (int i = 0; i < n; i++) {
        /* Where the value is 0 the activation function is flat. */
        to_values[entries[i]] = weights[i] > 0 ? (beside ? beside[entries[i]] : 0) - dots[i] : 0;
        bias += to_values[entries[i]] * (factors ? factors[entries[i]] : 1);
    }
    return bias;
}

/* What they give to that of its encoder row, once to_values is known. */
INLINE void learn_encoder(const int n, int64_t d, const int64_t *entries, const int64_t *tokens, const float *to_values,
                          const float *factors, const float *x, float *to_row) {
    const float *own[TOGETHER];
    float weights[TOGETHER];
    for (int i = 0; i < n; i++) {
        own[i] = x + tokens[i] * d;
        weights[i] = -to_values[entries[i]] * (factors ? factors[entries[i]] : 1);
    }
    subtract_rows(n, d, own, weights, to_row);
}

/* Features whose decoder rows are dealt with before their encoder rows, so that of the two matrices of tokens, of which
   those of one band are read again and again, one at a time needs room in the cache. */
#define FEATURES 256

/* scansion_learn for features from first to last (exclusive). */
static void learn(int64_t first, int64_t last, int64_t d, const int64_t *starts, const int64_t *order, const int64_t *tokens,
                  const float *values, const float *beside, const float *factors, const float *W_dec, const float *x,
                  const float *to_residual, float *to_W_dec, float *to_W_enc, float *to_b_enc, float *to_values) {
    for (; first < last; first += FEATURES) {
        const int64_t end = last - first < FEATURES ? last : first + FEATURES;
        for (int64_t feature = first; feature < end; feature++) {
            const float *row = W_dec + feature * d;
            float *to_row = memset(to_W_dec + feature * d, 0, sizeof(float) * d), bias = 0;
            int64_t i = starts[feature];
            for (; i + TOGETHER <= starts[feature + 1]; i += TOGETHER)
                bias += learn_decoder(TOGETHER, d, order + i, tokens + i, values, beside, factors, row, to_residual, to_row,
                                      to_values);
            for (; i < starts[feature + 1]; i++)
                bias += learn_decoder(1, d, order + i, tokens + i, values, beside, factors, row, to_residual, to_row,
                                      to_values);
            to_b_enc[feature] = bias;
        }
        for (int64_t feature = first; feature < end; feature++) {
            float *to_row = memset(to_W_enc + feature * d, 0, sizeof(float) * d);
            int64_t i = starts[feature];
            for (; i + TOGETHER <= starts[feature + 1]; i += TOGETHER)
                learn_encoder(TOGETHER, d, order + i, tokens + i, to_values, factors, x, to_row);
            for (; i < starts[feature + 1]; i++) learn_encoder(1, d, order + i, tokens + i, to_values, factors, x, to_row);
        }
    }
}

/* The first feature that begins at or after an entry. */
static int64_t feature_at(int64_t entry, const int64_t *starts, int64_t d_sae) {
    int64_t low = 0, high = d_sae;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (starts[middle] < entry) low = middle + 1; else high = middle;
    }
    return low;
}

/* All gradients that come of active entries, which are grouped as scansion_group does.

   to_residual is the gradient of the residual; beside, where given, what the values of entries get from elsewhere; factors, where
   given, what their pre-activations were multiplied by. Writes to_W_dec, to_W_enc, which lies feature by feature, to_b_enc, and, in
   the entries' own order, to_values: the gradient of the values. */
void EXPORT(learn)(int64_t n_threads, int64_t d_sae, int64_t d, const int64_t *starts, const int64_t *order,
                   const int64_t *tokens, const float *values, const float *beside, const float *factors, const float *W_dec,
                   const float *x, const float *to_residual, float *to_W_dec, float *to_W_enc, float *to_b_enc, float *to_values) {
#pragma omp parallel num_threads(n_threads)
    {
        /* Equally many entries for each thread, in whole features. */
        const int64_t i = omp_get_thread_num(), n = omp_get_num_threads(), entries = starts[d_sae];
        const int64_t first = i == 0 ? 0 : feature_at(entries * i / n, starts, d_sae);
        const int64_t last = i + 1 == n ? d_sae : feature_at(entries * (i + 1) / n, starts, d_sae);
        learn(first, last, d, starts, order, tokens, values, beside, factors, W_dec, x, to_residual, to_W_dec, to_W_enc,
              to_b_enc, to_values);
    }
}

INLINE float dot(int64_t d, const float *one, const float *other) {
    floats sums = {0};
    float rest = 0;
    int64_t j = 0;
    for (; j + LANES <= d; j += LANES) sums += load(one + j) * load(other + j);
    for (; j < d; j++) rest += one[j] * other[j];
    return rest + sum_of_floats(sums);
}

static void remove_parallel(int64_t first, int64_t last, int64_t d, const float *rows, float *gradient) {
    for (int64_t i = first; i < last; i++) {
        const float *row = rows + i * d, along = dot(d, row, gradient + i * d);
        subtract_rows(1, d, &row, &along, gradient + i * d);
    }
}

/* From each row of a gradient, its part along a row of unit norm. */
void EXPORT(remove_parallel)(int64_t n_threads, int64_t n_rows, int64_t d, const float *rows, float *gradient) {
#pragma omp parallel num_threads(n_threads)
    remove_parallel(MINE(n_rows), d, rows, gradient);
}

static void normalise(int64_t first, int64_t last, int64_t d, float *rows) {
    for (float *row = rows + first * d; row < rows + last * d; row += d) {
        const float norm = sqrtf(dot(d, row, row)), scale = 1 / (norm > FLT_MIN ? norm : FLT_MIN);
        for (int64_t j = 0; j < d; j++) row[j] *= scale;
    }
}

/* Every row becomes one of unit norm; one of zeros stays as it is. */
void EXPORT(normalise)(int64_t n_threads, int64_t n_rows, int64_t d, float *rows) {
#pragma omp parallel num_threads(n_threads)
    normalise(MINE(n_rows), d, rows);
}

static void weighted_sum(int64_t first, int64_t last, int64_t n_rows, int64_t d, const float *weights, const float *rows,
                         float *sum) {
    memset(sum + first, 0, sizeof(float) * (last - first));
    for (int64_t i = 0; i < n_rows; i++) {
        const float *row = rows + i * d, weight = -weights[i];
        const float *some = row + first;
        if (weight != 0) subtract_rows(1, last - first, &some, &weight, sum + first);
    }
}

/* The sum of all rows, each times its weight; every thread has some of the columns, as many at a time as it adds at once. */
void EXPORT(weighted_sum)(int64_t n_threads, int64_t n_rows, int64_t d, const float *weights, const float *rows, float *sum) {
#pragma omp parallel num_threads(n_threads)
    {
        const int64_t blocks[] = {MINE(rounded_up(d) / LANES)}, last = blocks[1] * LANES;
        weighted_sum(blocks[0] * LANES, last < d ? last : d, n_rows, d, weights, rows, sum);
    }
}
