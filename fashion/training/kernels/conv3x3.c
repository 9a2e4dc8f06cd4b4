#include "conv3x3.h"

/* Where a ReLU passes values and gradients: where y is positive or, as in PyTorch, NaN. */
static inline mask passes_relu(vec y) { return ~(y <= 0); }

static inline int is_set(const atomic_int *flag)
{
    return atomic_load_explicit(flag, memory_order_relaxed);
}

/* Channels are processed in groups whose accumulators fit the vector registers, 32 of AVX-512 and 16
 * of AVX2: twelve or six channels and two pixels in a convolution, eight or four channels and three
 * taps in its weight gradient. Group sizes are balanced: 14 channels are 7 + 7, not 12 + 2. */
#ifdef __AVX512F__
#define CONV_GROUP 12
#define GRADIENT_GROUP 8
#else
#define CONV_GROUP 6
#define GRADIENT_GROUP 4
#endif

static inline int groups_of(int channels, int most) { return (channels + most - 1) / most; }
static inline int group_start(int channels, int groups, int group)
{
    return (int)((long)channels * group / groups);
}

/* The order is [group][in][tap][out within the group]; transposed, in and out are swapped and the
 * taps reversed. */
void conv_pack(float *packed, const float *w, int in, int out, int turned)
{
    int inner = turned ? out : in, outer = turned ? in : out, groups = groups_of(outer, CONV_GROUP);
    for (int g = 0; g < groups; g++)
        for (int c = 0; c < inner; c++)
            for (int tap = 0; tap < TAPS; tap++)
                for (int o = group_start(outer, groups, g); o < group_start(outer, groups, g + 1); o++)
                    *packed++ = turned ? w[(c * in + o) * TAPS + TAPS - 1 - tap]
                                       : w[(o * in + c) * TAPS + tap];
}

/* Convolve at two adjacent pixels of a row; x points at the upper left tap of the first. */
static inline __attribute__((always_inline)) void conv_pair(
    int group, vec y[][2], const vec *x, long row, long plane, int in, const float *w)
{
    vec sum[CONV_GROUP][2];
    for (int o = 0; o < group; o++) sum[o][0] = sum[o][1] = (vec){0};
    for (int c = 0; c < in; c++, x += plane, w += TAPS * group)
#pragma GCC unroll 9
        for (int tap = 0; tap < TAPS; tap++) {
            const vec *at = x + tap / 3 * row + tap % 3;
#pragma GCC unroll 12
            for (int o = 0; o < group; o++) {
                sum[o][0] += w[tap * group + o] * at[0];
                sum[o][1] += w[tap * group + o] * at[1];
            }
        }
    for (int o = 0; o < group; o++) y[o][0] = sum[o][0], y[o][1] = sum[o][1];
}

/* Convolve at the four pixels of a 2x2 window, in row-major order. */
static void conv_window(
    int group, vec y[2][CONV_GROUP][2], const vec *x, long row, long plane, int in, const float *w)
{
    for (int i = 0; i < 2; i++, x += row)
#define CASE(count) case count: conv_pair(count, y[i], x, row, plane, in, w); break;
        switch (group) { /* a constant, so that the compiler keeps the sums in registers */
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if CONV_GROUP > 6
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
        }
#undef CASE
}

void conv_forward(layer l, const vec *x, const float *packed, const float *b, vec *y, mask *places,
                  const atomic_int *cancelled)
{
    int in = l.in, out = l.out, size = l.size;
    long row = size + 2, plane = row * row;
    long y_size = l.pool ? size / 2 : size, y_row = y_size + 2, y_plane = y_row * y_row;
    int groups = groups_of(out, CONV_GROUP);
    for (int i = 0; i < size && !is_set(cancelled); i += 2)
        for (int g = 0; g < groups; g++) {
            int from = group_start(out, groups, g);
            int group = group_start(out, groups, g + 1) - from;
            for (int j = 0; j < size; j += 2) {
                vec window[2][CONV_GROUP][2];
                conv_window(group, window, x + i * row + j, row, plane, in,
                            packed + (long)TAPS * in * from);
                for (int o = 0; o < group; o++) {
                    vec best = {0};
                    mask place = (mask){0} - 1;
                    for (int p = 0; p < 4; p++) {
                        vec value = window[p / 2][o][p % 2] + b[from + o];
                        if (!l.pool) {
                            y[(from + o) * y_plane + (i + p / 2 + 1) * y_row + j + p % 2 + 1] =
                                keep_if(passes_relu(value), value);
                            continue;
                        }
                        mask better = (value > best) | (value != value);
                        best = (vec)((better & (mask)value) | (~better & (mask)best));
                        place = (better & p) | (~better & place);
                    }
                    if (l.pool) {
                        y[(from + o) * y_plane + (i / 2 + 1) * y_row + j / 2 + 1] = best;
                        places[((from + o) * y_size + i / 2) * y_size + j / 2] = place;
                    }
                }
            }
        }
}

/* Compute dz, the gradient before the ReLU, from dy, and its sum per channel. */
static void undo_relu(layer l, vec *dz, vec *sums, const vec *dy, const vec *y, const mask *places,
                      const atomic_int *cancelled)
{
    long row = l.size + 2, plane = row * row;
    long y_size = l.pool ? l.size / 2 : l.size, y_row = y_size + 2, y_plane = y_row * y_row;
    for (int o = 0; o < l.out && !is_set(cancelled); o++) {
        vec sum = {0};
        for (int i = 0; i < y_size; i++)
            for (int j = 0; j < y_size; j++) {
                long at = o * y_plane + (i + 1) * y_row + j + 1;
                vec gradient = keep_if(passes_relu(y[at]), dy[at]);
                sum += gradient;
                if (!l.pool) {
                    dz[at] = gradient;
                    continue;
                }
                mask place = places[(o * y_size + i) * y_size + j];
                vec *to = dz + o * plane + (2 * i + 1) * row + 2 * j + 1;
                for (int p = 0; p < 4; p++)
                    to[p / 2 * row + p % 2] = keep_if(place == p, gradient);
            }
        sums[o] = sum;
    }
}

/* Add the contribution of `rows` rows to dw[channel][3], the three taps of one row of the kernel. */
static inline __attribute__((always_inline)) void gradient_taps(
    int group, vec *dw, const vec *x, const vec *dz, long row, long plane, int rows, int size)
{
    vec sum[GRADIENT_GROUP][3];
    for (int o = 0; o < group; o++)
        for (int k = 0; k < 3; k++) sum[o][k] = dw[3 * o + k];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < size; j++) {
            const vec *at = x + i * row + j;
            vec left = at[0], middle = at[1], right = at[2];
#pragma GCC unroll 8
            for (int o = 0; o < group; o++) {
                vec gradient = dz[o * plane + i * row + j];
                sum[o][0] += gradient * left;
                sum[o][1] += gradient * middle;
                sum[o][2] += gradient * right;
            }
        }
    for (int o = 0; o < group; o++)
        for (int k = 0; k < 3; k++) dw[3 * o + k] = sum[o][k];
}

/* Add the weight gradient to dw [in][3][out][3], a few rows at a time, which stay in the L1 cache for
 * all pairs of channels. */
static void gradient_of_weights(layer l, vec *dw, const vec *x, const vec *dz,
                                const atomic_int *cancelled)
{
    int in = l.in, out = l.out, size = l.size;
    long row = size + 2, plane = row * row;
    int groups = groups_of(out, GRADIENT_GROUP), rows = 2;
    for (int i = 0; i < size && !is_set(cancelled); i += rows)
        for (int c = 0; c < in; c++)
            for (int k = 0; k < 3; k++)
                for (int g = 0; g < groups; g++) {
                    int from = group_start(out, groups, g);
                    vec *to = dw + ((c * 3L + k) * out + from) * 3;
                    const vec *at = x + c * plane + (i + k) * row;
                    const vec *by = dz + from * plane + (i + 1) * row + 1;
#define CASE(count) case count: gradient_taps(count, to, at, by, row, plane, rows, size); break;
                    switch (group_start(out, groups, g + 1) - from) {
                        CASE(1) CASE(2) CASE(3) CASE(4)
#if GRADIENT_GROUP > 4
                        CASE(5) CASE(6) CASE(7) CASE(8)
#endif
                    }
#undef CASE
                }
}

void conv_backward(layer l, const vec *dy, const vec *x, const float *turned, const vec *y,
                   const mask *places, vec *dz, vec *dx, vec *sums, float *dw, float *db,
                   const atomic_int *cancelled)
{
    int in = l.in, out = l.out, size = l.size;
    long row = size + 2, plane = row * row;
    int groups = groups_of(in, CONV_GROUP);
    vec *weights = sums + out;
    memset(weights, 0, sizeof(vec) * TAPS * in * out);
    undo_relu(l, dz, sums, dy, y, places, cancelled);
    gradient_of_weights(l, weights, x, dz, cancelled);
    for (int i = 0; dx && i < size && !is_set(cancelled); i += 2)
        for (int g = 0; g < groups; g++) {
            int from = group_start(in, groups, g);
            int group = group_start(in, groups, g + 1) - from;
            for (int j = 0; j < size; j += 2) {
                vec window[2][CONV_GROUP][2];
                conv_window(group, window, dz + i * row + j, row, plane, out,
                            turned + (long)TAPS * out * from);
                for (int c = 0; c < group; c++)
                    for (int p = 0; p < 4; p++)
                        dx[(from + c) * plane + (i + p / 2 + 1) * row + j + p % 2 + 1] =
                            window[p / 2][c][p % 2];
            }
        }
    for (int o = 0; o < out; o++) {
        db[o] = sum_of_lanes(sums[o]);
        for (int c = 0; c < in; c++)
            for (int tap = 0; tap < TAPS; tap++)
                dw[(o * in + c) * TAPS + tap] =
                    sum_of_lanes(weights[((c * 3L + tap / 3) * out + o) * 3 + tap % 3]);
    }
}
