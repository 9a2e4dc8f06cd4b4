/* A 3x3 convolution with padding 1, its ReLU and, if asked for, a 2x2 max pooling: forward and
 * backward, for small networks, whose few channels general libraries would pad.
 *
 * Each function computes one block of images, one per vector lane, so that any number of
 * channels fills the vectors. Activations are [channel][row][column]. Rows and columns have a halo of
 * one zero at each end, which is never written, so that no tap is a special case. Sizes exclude the
 * halo and are even. Functions return early, with part of their results, once `cancelled` is set.
 */
#include <stdatomic.h>

#include "vector.h"

#define TAPS 9

typedef struct {
    int in, out, size, pool;
} layer;

/* Copy weights [out][in][3][3] to the order in which the convolution reads them. If `turned`, copy
 * those of the transposed convolution. */
void conv_pack(float *packed, const float *w, int in, int out, int turned);

/* y = relu(conv(x)), or with pooling pool(relu(conv(x))). With pooling, places stores the position
 * (0..3, row-major) in its window of each value of y, -1 if the ReLU made it zero; it has no halo.
 * As in PyTorch, a NaN is greater than any number. */
void conv_forward(layer, const vec *x, const float *packed, const float *b, vec *y, mask *places,
                  const atomic_int *cancelled);

/* Compute the gradients dw [out][in][3][3] and db and, unless dx is NULL, that of x, from that of y
 * and the results of the forward pass. dz has the shape of the convolution's result; without pooling
 * it may be dy. sums has room for out * (1 + 9 * in). */
void conv_backward(layer, const vec *dy, const vec *x, const float *turned, const vec *y,
                   const mask *places, vec *dz, vec *dx, vec *sums, float *dw, float *db,
                   const atomic_int *cancelled);
