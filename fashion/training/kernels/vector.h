/* Vectors as wide as the registers of AVX-512 or AVX2; compilers split them for other processors. */
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * LANES), may_alias));

static inline vec keep_if(mask m, vec a) { return (vec)(m & (mask)a); }

static inline float sum_of_lanes(vec a)
{
    typedef float four __attribute__((vector_size(16)));
    four sum = {0};
    for (int i = 0; i < LANES; i += 4) {
        four part;
        memcpy(&part, (float *)&a + i, sizeof part);
        sum += part;
    }
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}
