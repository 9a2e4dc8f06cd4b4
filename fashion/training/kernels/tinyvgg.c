/* The lab's TinyVGG: two blocks of two convolutions and a pooling, then a linear classifier.
 *
 * A piece of work is one image for each lane of a vector; these pass through all layers while they are
 * in the cache. Weight gradients are summed in the order of the pieces, so that no result depends on
 * the threads.
 */
#include <stdlib.h>

#include "conv3x3.h"
#include "mlp.h"
#include "pool.h"

#define SIZE 28
#define PIXELS (SIZE * SIZE)
#define CONVS 4
#define FEATURES (7 * 7) /* per channel */

/* The parameters in the model's order, weight and bias of each layer; the last is the classifier. */
typedef float *const *tensors;

typedef struct {
    int channels, classes; /* classes is 0 where the classifier is PyTorch's */
    layer layers[CONVS];
    long counts[CONVS + 1], starts[CONVS + 1], total; /* weights; where each layer's gradients are */
} network;

static network network_of(int channels, int classes)
{
    network net = {.channels = channels, .classes = classes};
    for (int l = 0; l < CONVS; l++)
        net.layers[l] = (layer){l ? channels : 1, channels, l < 2 ? SIZE : SIZE / 2, l % 2};
    for (int l = 0; l <= CONVS; l++) {
        int out = l < CONVS ? channels : classes;
        net.counts[l] = l < CONVS ? (long)TAPS * net.layers[l].in * out : (long)FEATURES * channels * out;
        net.starts[l] = net.total;
        net.total += net.counts[l] + out;
    }
    return net;
}

static int outputs(const network *net, int l) { return l < CONVS ? net->channels : net->classes; }

/* What a worker computes with. The activations, y[0] to places[3], are contiguous. */
typedef struct {
    network net;
    int64_t job; /* whose weights are loaded */
    int count;   /* images in the piece */
    long batch;  /* images in the batch */
    vec *y[CONVS + 1], *dy[CONVS + 1], *dz[CONVS], *sums;
    mask *places[CONVS];
    float *packed[CONVS], *turned[CONVS], *bias[CONVS];
    float *classifier, *features, *dfeatures, *logits, *dlogits, *gradients;
    int64_t targets[LANES];
    long activations; /* vectors */
} workspace;

static long side(const network *net, int l) /* of the input of layer l, with its halo */
{
    return (l < CONVS ? net->layers[l].size : SIZE / 4) + 2;
}

static long activations_of(const network *net)
{
    long count = 0;
    for (int l = 0; l <= CONVS; l++) count += (l ? net->channels : 1) * side(net, l) * side(net, l);
    for (int l = 1; l < CONVS; l += 2)
        count += (long)net->channels * net->layers[l].size * net->layers[l].size / 4;
    return count;
}

/* Lay the workspace out from `at`, or with `at` NULL only measure it; return its end. */
static char *lay_out(workspace *w, char *at)
{
    const network *net = &w->net;
    long channels = net->channels;
#define TAKE(pointer, count) \
    ((pointer) = (void *)at, at += ((count) * sizeof *(pointer) + sizeof(vec) - 1) / sizeof(vec) * sizeof(vec))
    for (int l = 0; l <= CONVS; l++) TAKE(w->y[l], (l ? channels : 1) * side(net, l) * side(net, l));
    for (int l = 1; l < CONVS; l += 2)
        TAKE(w->places[l], channels * net->layers[l].size * net->layers[l].size / 4);
    for (int l = 1; l <= CONVS; l++) TAKE(w->dy[l], channels * side(net, l) * side(net, l));
    for (int l = 0; l < CONVS; l++)
        if (net->layers[l].pool)
            TAKE(w->dz[l], channels * side(net, l) * side(net, l));
        else
            w->dz[l] = w->dy[l + 1];
    TAKE(w->sums, channels * (1 + TAPS * channels));
    for (int l = 0; l < CONVS; l++) {
        TAKE(w->packed[l], net->counts[l]);
        TAKE(w->turned[l], net->counts[l]);
        TAKE(w->bias[l], channels);
    }
    TAKE(w->classifier, net->counts[CONVS] + net->classes);
    TAKE(w->features, LANES * FEATURES * channels);
    TAKE(w->dfeatures, LANES * FEATURES * channels);
    TAKE(w->logits, LANES * net->classes);
    TAKE(w->dlogits, LANES * net->classes);
    TAKE(w->gradients, net->total);
#undef TAKE
    return at;
}

typedef struct step {
    job job;
    network net;
    tensors parameters;
    int count; /* images */
    const float *images;
    const int64_t *targets;
    const float *dfeatures;
    float *features, *logits;
    vec *tape; /* the activations of all pieces, from forward to backward; may be NULL */
    float *gradients; /* of all pieces */
} step;

/* Return the worker's memory, with the weights of the step. */
static workspace *prepare(const step *step, worker *worker)
{
    workspace *w = worker->memory;
    const network *net = &step->net;
    if (!w || w->net.channels != net->channels || w->net.classes != net->classes) {
        free(w);
        workspace measured = {.net = *net};
        size_t size = (sizeof(workspace) + sizeof(vec) - 1) / sizeof(vec) * sizeof(vec);
        char *memory = aligned_alloc(sizeof(vec), size + (size_t)lay_out(&measured, NULL));
        memset(memory, 0, size + (size_t)lay_out(&measured, NULL)); /* the halos stay zero */
        worker->memory = w = (workspace *)memory;
        w->net = *net;
        w->job = -1;
        w->activations = activations_of(net);
        lay_out(w, memory + size);
    }
    if (w->job != worker->job || w->job < 0) {
        w->job = worker->job;
        for (int l = 0; l < CONVS; l++) {
            layer at = net->layers[l];
            conv_pack(w->packed[l], step->parameters[2 * l], at.in, at.out, 0);
            conv_pack(w->turned[l], step->parameters[2 * l], at.in, at.out, 1);
            memcpy(w->bias[l], step->parameters[2 * l + 1], sizeof(float) * at.out);
        }
        if (net->classes) {
            memcpy(w->classifier, step->parameters[2 * CONVS], sizeof(float) * net->counts[CONVS]);
            memcpy(w->classifier + net->counts[CONVS], step->parameters[2 * CONVS + 1],
                   sizeof(float) * net->classes);
        }
    }
    return w;
}

static int images_in(const step *step, int piece)
{
    int left = step->count - piece * LANES;
    return left < LANES ? left : LANES;
}

/* Copy between rows of images and the interior of a block; lanes without an image become zero. */
static void to_block(vec *block, const float *rows, int count, int channels, int size)
{
    long row = size + 2, length = (long)channels * size * size;
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < size; i++)
            for (int j = 0; j < size; j++) {
                vec values = {0};
                const float *from = rows + (c * size + i) * size + j;
                for (int lane = 0; lane < count; lane++) values[lane] = from[lane * length];
                block[(c * row + i + 1) * row + j + 1] = values;
            }
}

static void from_block(float *rows, const vec *block, int channels, int size)
{
    long row = size + 2, length = (long)channels * size * size;
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < size; i++)
            for (int j = 0; j < size; j++)
                for (int lane = 0; lane < LANES; lane++)
                    rows[lane * length + (c * size + i) * size + j] =
                        block[(c * row + i + 1) * row + j + 1][lane];
}

static void load_images(const job *job, int piece, worker *worker)
{
    const step *step = (const struct step *)job;
    workspace *w = prepare(step, worker);
    w->count = images_in(step, piece);
    w->batch = step->count;
    to_block(w->y[0], step->images + (long)piece * LANES * PIXELS, w->count, 1, SIZE);
    if (step->targets)
        memcpy(w->targets, step->targets + (long)piece * LANES, sizeof(int64_t) * w->count);
}

static void forward(worker *worker)
{
    workspace *w = worker->memory;
    for (int l = 0; l < CONVS; l++)
        conv_forward(w->net.layers[l], w->y[l], w->packed[l], w->bias[l], w->y[l + 1], w->places[l],
                     &worker->cancelled);
    from_block(w->features, w->y[CONVS], w->net.channels, SIZE / 4);
}

static void backward(worker *worker)
{
    workspace *w = worker->memory;
    const network *net = &w->net;
    to_block(w->dy[CONVS], w->dfeatures, w->count, net->channels, SIZE / 4);
    for (int l = CONVS - 1; l >= 0; l--) {
        float *gradients = w->gradients + net->starts[l];
        conv_backward(net->layers[l], w->dy[l + 1], w->y[l], w->turned[l], w->y[l + 1],
                      w->places[l], w->dz[l], l ? w->dy[l] : NULL, w->sums, gradients,
                      gradients + net->counts[l], &worker->cancelled);
    }
}

/* Both passes of a step of stochastic gradient descent on the mean cross-entropy. */
static void both_passes(worker *worker)
{
    workspace *w = worker->memory;
    const network *net = &w->net;
    long features = (long)FEATURES * net->channels, weights = net->counts[CONVS];
    float *gradients = w->gradients + net->starts[CONVS];
    forward(worker);
    affine(w->logits, w->features, w->classifier, w->classifier + weights, w->count, features,
           net->classes);
    loss_gradient(w->dlogits, w->logits, w->targets, w->count, net->classes, w->batch);
    below(w->dfeatures, w->dlogits, w->classifier, w->count, features, net->classes);
    /* A step of rate -1 from zero gives the gradient itself. */
    memset(gradients, 0, sizeof(float) * (weights + net->classes));
    descend(gradients, gradients + weights, w->dlogits, w->features, w->count, features,
            net->classes, -1);
    backward(worker);
}

static void store_features(const job *job, int piece, worker *worker)
{
    const step *step = (const struct step *)job;
    const workspace *w = worker->memory;
    long features = (long)FEATURES * w->net.channels;
    memcpy(step->features + piece * LANES * features, w->features, sizeof(float) * w->count * features);
    if (step->tape)
        memcpy(step->tape + piece * w->activations, w->y[0], sizeof(vec) * w->activations);
}

static void load_gradient(const job *job, int piece, worker *worker)
{
    const step *step = (const struct step *)job;
    workspace *w = prepare(step, worker);
    long features = (long)FEATURES * w->net.channels;
    w->count = images_in(step, piece);
    memcpy(w->dfeatures, step->dfeatures + piece * LANES * features,
           sizeof(float) * w->count * features);
    memcpy(w->y[0], step->tape + piece * w->activations, sizeof(vec) * w->activations);
}

static void store_gradients(const job *job, int piece, worker *worker)
{
    const step *step = (const struct step *)job;
    const workspace *w = worker->memory;
    memcpy(step->gradients + piece * w->net.total, w->gradients, sizeof(float) * w->net.total);
    if (step->logits)
        memcpy(step->logits + (long)piece * LANES * w->net.classes, w->logits,
               sizeof(float) * w->count * w->net.classes);
}

/* Subtract `scale` times the sum of all pieces' gradients from the tensors. */
static void subtract_gradients(const step *step, tensors to, float scale)
{
    const network *net = &step->net;
    float *sum = step->gradients;
    if (!step->job.pieces) return;
    for (int piece = 1; piece < step->job.pieces; piece++)
        for (long i = 0; i < net->total; i++) sum[i] += step->gradients[piece * net->total + i];
    for (int l = 0; l <= CONVS; l++) {
        if (!outputs(net, l)) continue;
        for (long i = 0; i < net->counts[l]; i++) to[2 * l][i] -= scale * *sum++;
        for (long i = 0; i < outputs(net, l); i++) to[2 * l + 1][i] -= scale * *sum++;
    }
}

/* Run a job that gives gradients, and subtract `scale` times their sum. */
static void run_and_subtract(step *step, tensors to, float scale, int threads)
{
    step->gradients = malloc(sizeof(float) * step->job.pieces * step->net.total);
    pool_run(&step->job, threads);
    subtract_gradients(step, to, scale);
    free(step->gradients);
}

static int pieces_of(int count) { return (count + LANES - 1) / LANES; }

/* Return the number of floats of the tape of `count` images. */
long tinyvgg_tape(int count, int channels)
{
    network net = network_of(channels, 0);
    return pieces_of(count) * activations_of(&net) * LANES;
}

/* Compute features [count][channels * 49] of images [count][28 * 28] and, unless tape is NULL, what
 * backward needs. */
void tinyvgg_forward(const float *images, float *features, void *tape, int count, int channels,
                     tensors parameters, int threads)
{
    step step = {
        .job = {pieces_of(count), load_images, forward, store_features},
        .net = network_of(channels, 0),
        .parameters = parameters,
        .count = count,
        .images = images,
        .features = features,
        .tape = tape,
    };
    pool_run(&step.job, threads);
}

/* Compute the gradients of the parameters from that of the features. */
void tinyvgg_backward(const float *dfeatures, void *tape, int count, int channels,
                      tensors parameters, tensors gradients, int threads)
{
    step step = {
        .job = {pieces_of(count), load_gradient, backward, store_gradients},
        .net = network_of(channels, 0),
        .parameters = parameters,
        .count = count,
        .dfeatures = dfeatures,
        .tape = tape,
    };
    run_and_subtract(&step, gradients, -1, threads);
}

/* Do one SGD step on the mean cross-entropy of the images; logits [count][classes] are from before
 * the step. */
void tinyvgg_step(const float *images, const int64_t *targets, float *logits, int count,
                  int channels, int classes, tensors parameters, float lr, int threads)
{
    step step = {
        .job = {pieces_of(count), load_images, both_passes, store_gradients},
        .net = network_of(channels, classes),
        .parameters = parameters,
        .count = count,
        .images = images,
        .targets = targets,
        .logits = logits,
    };
    run_and_subtract(&step, parameters, lr, threads);
}
