/* A 3x3 convolution with padding 1, its ReLU and, if asked for, a 2x2 max pooling: forward and
 * backward, for small networks, whose few channels general libraries would pad.
 *
 * Tensors are [block][channel][row][column][lane]. A block has eight images, one per vector lane, so
 * that any number of channels fills the vectors. Rows and columns have a halo of one zero at each
 * end, so that no tap is a special case. Sizes exclude the halo and are even.
 *
 * Blocks are distributed over OpenMP threads. Weight gradients are summed in the order of the
 * blocks, so that the result does not depend on the number of threads.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 8
#define TAPS 9
typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * LANES), may_alias));

static inline vec keep_if(mask m, vec a) { return (vec)(m & (mask)a); }

/* Where a ReLU passes values and gradients: where y is positive or, as in PyTorch, NaN. */
static inline mask passes_relu(vec y) { return ~(y <= 0); }

static inline float sum_of_lanes(vec a)
{
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += a[lane];
    return sum;
}

static inline vec *zeros(long count)
{
    vec *all = aligned_alloc(sizeof(vec), sizeof(vec) * count);
    memset(all, 0, sizeof(vec) * count);
    return all;
}

/* Channels are processed in groups whose accumulators fit the 16 vector registers of AVX2: six
 * channels and two pixels in a convolution, four channels and three taps in its weight gradient.
 * Group sizes are balanced: ten channels are 5 + 5, not 6 + 4. */
#define CONV_GROUP 6
#define GRADIENT_GROUP 4

static inline int groups_of(int channels, int most) { return (channels + most - 1) / most; }
static inline int group_start(int channels, int groups, int group)
{
    return (int)((long)channels * group / groups);
}

/* Copy weights [out][in][tap] to [group][in][tap][out within the group]. If `turned`, copy those of
 * the transposed convolution: in and out swapped, taps reversed. */
static float *pack(const float *w, int in, int out, int turned)
{
    float *packed = malloc(sizeof(float) * TAPS * in * out), *to = packed;
    int groups = groups_of(out, CONV_GROUP);
    for (int g = 0; g < groups; g++)
        for (int c = 0; c < in; c++)
            for (int tap = 0; tap < TAPS; tap++)
                for (int o = group_start(out, groups, g); o < group_start(out, groups, g + 1); o++)
                    *to++ = turned ? w[(c * out + o) * TAPS + TAPS - 1 - tap]
                                   : w[(o * in + c) * TAPS + tap];
    return packed;
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
#pragma GCC unroll 6
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
        switch (group) { /* a constant, so that the compiler keeps the sums in registers */
        case 1: conv_pair(1, y[i], x, row, plane, in, w); break;
        case 2: conv_pair(2, y[i], x, row, plane, in, w); break;
        case 3: conv_pair(3, y[i], x, row, plane, in, w); break;
        case 4: conv_pair(4, y[i], x, row, plane, in, w); break;
        case 5: conv_pair(5, y[i], x, row, plane, in, w); break;
        case 6: conv_pair(6, y[i], x, row, plane, in, w); break;
        }
}

/* y = relu(conv(x)), or with pooling pool(relu(conv(x))). With pooling, places stores the position
 * (0..3, row-major) in its window of each value of y, -1 if the ReLU made it zero; it has no halo.
 * As in PyTorch, a NaN is greater than any number.
 *
 * x [blocks][in][size + 2][size + 2][LANES], w [out][in][3][3], b [out] */
void conv_forward(const float *x_, const float *w, const float *b, float *y_, int32_t *places_,
                  int blocks, int in, int out, int size, int pool)
{
    long row = size + 2, plane = row * row;
    long y_size = pool ? size / 2 : size, y_row = y_size + 2, y_plane = y_row * y_row;
    int groups = groups_of(out, CONV_GROUP);
    float *packed = pack(w, in, out, 0);
#pragma omp parallel for schedule(static)
    for (int block = 0; block < blocks; block++) {
        const vec *x = (const vec *)x_ + block * in * plane;
        vec *y = (vec *)y_ + block * out * y_plane;
        mask *places = (mask *)places_ + block * out * y_size * y_size;
        memset(y, 0, sizeof(vec) * out * y_plane);
        for (int i = 0; i < size; i += 2)
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
                            if (!pool) {
                                y[(from + o) * y_plane + (i + p / 2 + 1) * y_row + j + p % 2 + 1] =
                                    keep_if(passes_relu(value), value);
                                continue;
                            }
                            mask better = (value > best) | (value != value);
                            best = (vec)((better & (mask)value) | (~better & (mask)best));
                            place = (better & p) | (~better & place);
                        }
                        if (pool) {
                            y[(from + o) * y_plane + (i / 2 + 1) * y_row + j / 2 + 1] = best;
                            places[((from + o) * y_size + i / 2) * y_size + j / 2] = place;
                        }
                    }
                }
            }
    }
    free(packed);
}

/* Compute dz (initially zero), the gradient before the ReLU, from dy, and its sum per channel. */
static void undo_relu(vec *dz, vec *sums, const vec *dy, const vec *y, const mask *places,
                      int out, int size, int pool)
{
    long row = size + 2, plane = row * row;
    long y_size = pool ? size / 2 : size, y_row = y_size + 2, y_plane = y_row * y_row;
    for (int o = 0; o < out; o++)
        for (int i = 0; i < y_size; i++)
            for (int j = 0; j < y_size; j++) {
                long at = o * y_plane + (i + 1) * y_row + j + 1;
                vec gradient = keep_if(passes_relu(y[at]), dy[at]);
                sums[o] += gradient;
                if (!pool) {
                    dz[at] = gradient;
                    continue;
                }
                mask place = places[(o * y_size + i) * y_size + j];
                vec *to = dz + o * plane + (2 * i + 1) * row + 2 * j + 1;
                for (int p = 0; p < 4; p++)
                    to[p / 2 * row + p % 2] = keep_if(place == p, gradient);
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
#pragma GCC unroll 4
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

/* Add the weight gradient of a block to dw [in][3][out][3], a few rows at a time, which stay in the
 * L1 cache for all pairs of channels. */
static void gradient_of_weights(vec *dw, const vec *x, const vec *dz, int in, int out, int size)
{
    long row = size + 2, plane = row * row;
    int groups = groups_of(out, GRADIENT_GROUP), rows = 2;
    for (int i = 0; i < size; i += rows)
        for (int c = 0; c < in; c++)
            for (int k = 0; k < 3; k++)
                for (int g = 0; g < groups; g++) {
                    int from = group_start(out, groups, g);
                    vec *to = dw + ((c * 3L + k) * out + from) * 3;
                    const vec *at = x + c * plane + (i + k) * row;
                    const vec *by = dz + from * plane + (i + 1) * row + 1;
                    switch (group_start(out, groups, g + 1) - from) {
                    case 1: gradient_taps(1, to, at, by, row, plane, rows, size); break;
                    case 2: gradient_taps(2, to, at, by, row, plane, rows, size); break;
                    case 3: gradient_taps(3, to, at, by, row, plane, rows, size); break;
                    case 4: gradient_taps(4, to, at, by, row, plane, rows, size); break;
                    }
                }
}

/* Compute the gradients of x (unless dx is NULL), w and b from that of y and the results of the
 * forward pass. The halo of dy is not read, that of dx is not written. */
void conv_backward(const float *dy_, const float *x_, const float *w, const float *y_,
                   const int32_t *places_, float *dx_, float *dw, float *db,
                   int blocks, int in, int out, int size, int pool)
{
    long row = size + 2, plane = row * row;
    long y_size = pool ? size / 2 : size, y_plane = (y_size + 2) * (y_size + 2);
    long parts = out + (long)TAPS * in * out; /* per block: the sums of db, then those of dw */
    int groups = groups_of(in, CONV_GROUP);
    float *packed = dx_ ? pack(w, out, in, 1) : NULL;
    vec *partial = zeros(blocks * parts);
#pragma omp parallel for schedule(static)
    for (int block = 0; block < blocks; block++) {
        const vec *x = (const vec *)x_ + block * in * plane;
        vec *sums = partial + block * parts, *dz = zeros(out * plane);
        undo_relu(dz, sums, (const vec *)dy_ + block * out * y_plane,
                  (const vec *)y_ + block * out * y_plane,
                  (const mask *)places_ + block * out * y_size * y_size, out, size, pool);
        gradient_of_weights(sums + out, x, dz, in, out, size);
        vec *dx = (vec *)dx_ + block * in * plane;
        for (int i = 0; dx_ && i < size; i += 2)
            for (int g = 0; g < groups; g++) {
                int from = group_start(in, groups, g);
                int group = group_start(in, groups, g + 1) - from;
                for (int j = 0; j < size; j += 2) {
                    vec window[2][CONV_GROUP][2];
                    conv_window(group, window, dz + i * row + j, row, plane, out,
                                packed + (long)TAPS * out * from);
                    for (int c = 0; c < group; c++)
                        for (int p = 0; p < 4; p++)
                            dx[(from + c) * plane + (i + p / 2 + 1) * row + j + p % 2 + 1] =
                                window[p / 2][c][p % 2];
                }
            }
        free(dz);
    }
    for (int o = 0; o < out; o++) {
        vec sum = {0};
        for (int block = 0; block < blocks; block++) sum += partial[block * parts + o];
        db[o] = sum_of_lanes(sum);
        for (int c = 0; c < in; c++)
            for (int tap = 0; tap < TAPS; tap++) {
                long at = out + ((c * 3L + tap / 3) * out + o) * 3 + tap % 3;
                sum = (vec){0};
                for (int block = 0; block < blocks; block++) sum += partial[block * parts + at];
                dw[(o * in + c) * TAPS + tap] = sum_of_lanes(sum);
            }
    }
    free(partial);
    free(packed);
}
