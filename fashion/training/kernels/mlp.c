/* A step of stochastic gradient descent for a stack of linear layers and ReLUs.
 *
 * Single-threaded: the products are so small that threads would mostly wait for each other.
 */
#include "mlp.h"

#include <math.h>
#include <stdlib.h>

#include "vector.h"

/* Accumulators in registers: at most four rows and two columns in a product, five rows and two
 * vectors in a weight gradient. */
#define ROWS 4
#define COLUMNS 2
#define GRADIENT_ROWS 5
#define GRADIENT_VECTORS 2

static inline __attribute__((always_inline)) vec load(const float *from, long count)
{
    vec a = {0};
    memcpy(&a, from, sizeof(float) * count);
    return a;
}

/* Add the products of one vector from each of `rows` rows of x and `columns` rows of w. */
static inline __attribute__((always_inline)) void dot(
    int rows, int columns, vec sum[ROWS][COLUMNS], const float *x, const float *w, long in, long count)
{
#pragma GCC unroll 2
    for (int o = 0; o < columns; o++) {
        vec weights = load(w + o * in, count);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) sum[i][o] += weights * load(x + i * in, count);
    }
}

static inline __attribute__((always_inline)) void product(
    int rows, int columns, float *y, const float *x, const float *w, const float *b, long in, long out)
{
    vec sum[ROWS][COLUMNS] = {0};
    long k = 0;
    for (; k + LANES <= in; k += LANES) dot(rows, columns, sum, x + k, w + k, in, LANES);
    if (k < in) dot(rows, columns, sum, x + k, w + k, in, in - k);
    for (int i = 0; i < rows; i++)
        for (int o = 0; o < columns; o++) y[i * out + o] = sum_of_lanes(sum[i][o]) + b[o];
}

void affine(float *y, const float *x, const float *w, const float *b, long n, long in, long out)
{
    for (long i = 0, rows; i < n; i += rows) {
        rows = i + ROWS <= n ? ROWS : 1;
        for (long o = 0, columns; o < out; o += columns) {
            columns = o + COLUMNS <= out ? COLUMNS : 1;
            float *to = y + i * out + o;
            const float *from = x + i * in, *by = w + o * in;
            if (rows == ROWS && columns == COLUMNS)
                product(ROWS, COLUMNS, to, from, by, b + o, in, out);
            else if (rows == ROWS)
                product(ROWS, 1, to, from, by, b + o, in, out);
            else if (columns == COLUMNS)
                product(1, COLUMNS, to, from, by, b + o, in, out);
            else
                product(1, 1, to, from, by, b + o, in, out);
        }
    }
}

/* Subtract lr times the gradient from `rows` rows and `vectors` vectors of w; the last vector has
 * `count` values. */
static inline __attribute__((always_inline)) void descend_tile(
    int rows, int vectors, long count, float *w, const float *dy, const float *x,
    long n, long in, long out, float lr)
{
    vec sum[GRADIENT_ROWS][GRADIENT_VECTORS] = {0};
    for (long i = 0; i < n; i++) {
        vec at[GRADIENT_VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            at[v] = load(x + i * in + v * LANES, v + 1 < vectors ? LANES : count);
#pragma GCC unroll 5
        for (int o = 0; o < rows; o++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) sum[o][v] += dy[i * out + o] * at[v];
    }
    for (int o = 0; o < rows; o++)
        for (int v = 0; v < vectors; v++) {
            float *to = w + o * in + v * LANES;
            long length = v + 1 < vectors ? LANES : count;
            vec stepped = load(to, length) - lr * sum[o][v];
            memcpy(to, &stepped, sizeof(float) * length);
        }
}

void descend(float *w, float *b, const float *dy, const float *x, long n, long in, long out, float lr)
{
    const long wide = GRADIENT_VECTORS * LANES;
    for (long k = 0, width; k < in; k += width) {
        width = k + wide <= in ? wide : in - k < LANES ? in - k : LANES;
        for (long o = 0, rows; o < out; o += rows) {
            rows = o + GRADIENT_ROWS <= out ? GRADIENT_ROWS : 1;
            float *to = w + o * in + k;
            if (width == wide && rows == GRADIENT_ROWS)
                descend_tile(GRADIENT_ROWS, GRADIENT_VECTORS, LANES, to, dy + o, x + k, n, in, out, lr);
            else if (width == wide)
                descend_tile(1, GRADIENT_VECTORS, LANES, to, dy + o, x + k, n, in, out, lr);
            else if (rows == GRADIENT_ROWS)
                descend_tile(GRADIENT_ROWS, 1, width, to, dy + o, x + k, n, in, out, lr);
            else
                descend_tile(1, 1, width, to, dy + o, x + k, n, in, out, lr);
        }
    }
    for (long o = 0; o < out; o++) {
        float sum = 0;
        for (long i = 0; i < n; i++) sum += dy[i * out + o];
        b[o] -= lr * sum;
    }
}

void below(float *dx, const float *dy, const float *w, long n, long in, long out)
{
    for (long i = 0; i < n; i++, dx += in, dy += out) {
        long k = 0;
        for (; k + LANES <= in; k += LANES) {
            vec sum = {0};
            for (long o = 0; o < out; o++) sum += dy[o] * load(w + o * in + k, LANES);
            memcpy(dx + k, &sum, sizeof sum);
        }
        for (; k < in; k++) {
            float sum = 0;
            for (long o = 0; o < out; o++) sum += dy[o] * w[o * in + k];
            dx[k] = sum;
        }
    }
}

void loss_gradient(float *dy, const float *logits, const int64_t *targets, long n, long classes,
                   long batch)
{
    for (long i = 0; i < n; i++, dy += classes, logits += classes) {
        float greatest = logits[0], sum = 0;
        for (long o = 1; o < classes; o++) greatest = logits[o] > greatest ? logits[o] : greatest;
        for (long o = 0; o < classes; o++) sum += dy[o] = expf(logits[o] - greatest);
        for (long o = 0; o < classes; o++) dy[o] = (dy[o] / sum - (o == targets[i])) / batch;
    }
}

/* Do one SGD step on the mean cross-entropy of n images; logits are from before the step.
 *
 * x [n][widths[0]], targets [n], logits [n][widths[layers]]; layer i has weights w[i]
 * [widths[i + 1]][widths[i]] and bias b[i], and relu[i] says whether a ReLU follows. */
void mlp_step(const float *x, const int64_t *targets, float *logits, int n, int layers,
              const int *widths, const int *relu, float **w, float **b, float lr)
{
    long hidden = 0, widest = 0;
    for (int l = 1; l <= layers; l++) {
        hidden += l < layers ? widths[l] : 0;
        widest = widths[l] > widest ? widths[l] : widest;
    }
    float *buffers = malloc(sizeof(float) * n * (hidden + 2 * widest));
    float *dy = buffers + n * hidden, *dx = dy + n * widest, *y = buffers;
    const float **inputs = malloc(sizeof(float *) * layers);
    for (int l = 0; l < layers; l++) {
        long count = (long)n * widths[l + 1];
        inputs[l] = x;
        if (l == layers - 1) y = logits;
        affine(y, x, w[l], b[l], n, widths[l], widths[l + 1]);
        for (long i = 0; relu[l] && i < count; i++) y[i] = y[i] < 0 ? 0 : y[i]; /* a NaN stays */
        x = y;
        y += count;
    }
    loss_gradient(dy, logits, targets, n, widths[layers], n);
    for (int l = layers - 1; l >= 0; l--) {
        const float *output = l == layers - 1 ? logits : inputs[l + 1];
        long count = (long)n * widths[l + 1];
        for (long i = 0; relu[l] && i < count; i++) dy[i] = output[i] <= 0 ? 0 : dy[i]; /* NaN too */
        if (l) below(dx, dy, w[l], n, widths[l], widths[l + 1]);
        descend(w[l], b[l], dy, inputs[l], n, widths[l], widths[l + 1], lr);
        float *above = dy;
        dy = dx, dx = above;
    }
    free(inputs);
    free(buffers);
}
