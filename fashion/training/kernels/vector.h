/* Vectors of eight floats: AVX2 has registers for them, and compilers split them for others. */
#include <stdint.h>
#include <string.h>

#define LANES 8
typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * LANES), may_alias));

static inline vec keep_if(mask m, vec a) { return (vec)(m & (mask)a); }

static inline float sum_of_lanes(vec a)
{
    typedef float half __attribute__((vector_size(2 * LANES)));
    half low, high;
    memcpy(&low, &a, sizeof low);
    memcpy(&high, (char *)&a + sizeof low, sizeof high);
    half sum = low + high;
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}
