/* Linear layers and their loss; all matrices are row-major. */
#include <stdint.h>

/* y [n][out] = x [n][in] w^T + b, w [out][in] */
void affine(float *y, const float *x, const float *w, const float *b, long n, long in, long out);

/* w -= lr * dy^T x and b -= lr * the sum of dy over the images */
void descend(float *w, float *b, const float *dy, const float *x, long n, long in, long out, float lr);

/* dx [n][in] = dy [n][out] w */
void below(float *dx, const float *dy, const float *w, long n, long in, long out);

/* The gradient of the mean cross-entropy of the softmax over a batch, of which these are n images. */
void loss_gradient(float *dy, const float *logits, const int64_t *targets, long n, long classes,
                   long batch);
