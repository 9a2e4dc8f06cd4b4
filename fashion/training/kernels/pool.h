/* Threads that compute the pieces of a job, whoever is free the next one. */
#include <stdatomic.h>
#include <stdint.h>

/* A thread's own memory, which it keeps from job to job. */
typedef struct {
    void *memory;         /* the job's to allocate; NULL at first */
    int64_t job;          /* number of the job at work */
    atomic_int cancelled; /* another thread has finished the piece: compute may return at once */
} worker;

/* A piece is loaded, computed and stored. compute may use only the worker's memory, where load puts
 * all that it needs: it may go on after the job has ended. What is stored must not depend on the
 * worker. */
typedef struct job {
    int pieces;
    void (*load)(const struct job *, int piece, worker *);
    void (*compute)(worker *);
    void (*store)(const struct job *, int piece, worker *);
} job;

/* Run all pieces on at most `threads` threads, including this one. */
void pool_run(const job *, int threads);
