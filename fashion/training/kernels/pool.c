/* Threads that compute the pieces of a job, whoever is free the next one.
 *
 * Made for a machine whose cores are shared with other processes. OpenMP's threads wait for each
 * other at the end of each parallel region, for a whole time slice if one of them has lost its core,
 * and spin meanwhile on the cores that the others lack. These threads wait shortly, then compute what
 * the missing one has begun again, and sleep when there is nothing left to do.
 */
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#define MAX_WORKERS 64
/* How long a thread waits for others before it computes their pieces again, and for the next job
 * before it sleeps. */
#define PATIENCE_NS 50000
#define AWAKE_NS 200000

enum phase { IDLE, LOADING, COMPUTING, STORING };

typedef struct {
    worker own;
    int number, piece;
    enum phase phase;
} slot;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t begun, advanced; /* a job was begun; a piece was loaded or stored */
    const job *job;                 /* NULL between jobs */
    int64_t number;                 /* of the job, or the last one */
    int threads;                    /* that may work on it */
    int next, unfinished, loading;  /* the next piece; pieces that are not stored; slots that load */
    int workers;                    /* slots with a thread; slot 0 is the caller's */
    atomic_uint events;             /* counts jobs and finished pieces */
    slot slots[MAX_WORKERS];
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .begun = PTHREAD_COND_INITIALIZER,
          .advanced = PTHREAD_COND_INITIALIZER};

/* Only one caller at a time has the pool. */
static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER;

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static inline void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait at most `duration` for another event, without the lock; return whether there was one. */
static int wait_briefly(int64_t duration)
{
    unsigned seen = atomic_load(&pool.events);
    pthread_mutex_unlock(&pool.lock);
    int64_t end = now() + duration;
    int changed = 0;
    while (!changed && now() < end)
        for (int i = 0; i < 16 && !changed; i++) {
            pause_briefly();
            changed = atomic_load_explicit(&pool.events, memory_order_relaxed) != seen;
        }
    pthread_mutex_lock(&pool.lock);
    return changed || atomic_load(&pool.events) != seen;
}

/* Take the next piece or, if `again`, the first that one thread alone computes. */
static int take(slot *me, int again)
{
    me->piece = -1;
    if (!pool.job || me->number >= pool.threads) return 0;
    if (pool.next < pool.job->pieces) {
        me->piece = pool.next++;
    } else if (again) {
        for (int i = 0; i < pool.threads && i <= pool.workers; i++) {
            slot *other = &pool.slots[i];
            int alone = other->phase == COMPUTING && other->own.job == pool.number;
            for (int j = 0; alone && j <= pool.workers; j++)
                alone = j == i || pool.slots[j].phase == IDLE ||
                        pool.slots[j].own.job != pool.number || pool.slots[j].piece != other->piece;
            if (alone && !atomic_load(&other->own.cancelled) &&
                (me->piece < 0 || other->piece < me->piece))
                me->piece = other->piece;
        }
    }
    return me->piece >= 0;
}

/* Compute the piece taken; another thread may finish it first. */
static void work(slot *me)
{
    const job *job = pool.job;
    void (*compute)(worker *) = job->compute;
    me->own.job = pool.number;
    me->phase = LOADING;
    atomic_store(&me->own.cancelled, 0);
    pool.loading++;
    pthread_mutex_unlock(&pool.lock);
    job->load(job, me->piece, &me->own);
    pthread_mutex_lock(&pool.lock);
    me->phase = COMPUTING;
    pool.loading--;
    pthread_cond_signal(&pool.advanced);
    if (!atomic_load(&me->own.cancelled)) {
        pthread_mutex_unlock(&pool.lock);
        compute(&me->own);
        pthread_mutex_lock(&pool.lock);
    }
    if (!atomic_load(&me->own.cancelled)) {
        for (int i = 0; i <= pool.workers; i++) {
            slot *other = &pool.slots[i];
            if (other != me && other->phase != IDLE && other->own.job == me->own.job &&
                other->piece == me->piece)
                atomic_store(&other->own.cancelled, 1);
        }
        me->phase = STORING;
        pthread_mutex_unlock(&pool.lock);
        job->store(job, me->piece, &me->own);
        pthread_mutex_lock(&pool.lock);
        atomic_fetch_add(&pool.events, 1);
        pool.unfinished--;
        pthread_cond_signal(&pool.advanced);
    }
    me->phase = IDLE;
}

static void *serve(void *of)
{
    slot *me = of;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        if (take(me, 0))
            work(me);
        else if (pool.job && me->number < pool.threads && wait_briefly(PATIENCE_NS))
            continue;
        else if (take(me, 1))
            work(me);
        else if (!wait_briefly(AWAKE_NS))
            pthread_cond_wait(&pool.begun, &pool.lock);
    }
    return NULL;
}

/* After a fork there are no other threads. */
static void forget_threads(void)
{
    pthread_mutex_init(&pool.lock, NULL);
    pthread_mutex_init(&in_use, NULL);
    pthread_cond_init(&pool.begun, NULL);
    pthread_cond_init(&pool.advanced, NULL);
    for (int i = 0; i < MAX_WORKERS; i++) pool.slots[i] = (slot){.number = i};
    pool.job = NULL;
    pool.workers = pool.loading = 0;
}

static void start_workers(int count)
{
    if (!pool.workers && count) {
        static atomic_flag registered = ATOMIC_FLAG_INIT;
        if (!atomic_flag_test_and_set(&registered)) pthread_atfork(NULL, NULL, forget_threads);
    }
    sigset_t all, before;
    sigfillset(&all); /* signals are for the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.workers < count) {
        slot *next = &pool.slots[pool.workers + 1];
        pthread_t thread;
        next->number = pool.workers + 1;
        if (pthread_create(&thread, NULL, serve, next)) break;
        pthread_detach(thread);
        pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* What a second caller does while the first has the pool. */
static void run_alone(const job *job)
{
    worker alone = {.job = -1};
    for (int piece = 0; piece < job->pieces; piece++) {
        job->load(job, piece, &alone);
        job->compute(&alone);
        job->store(job, piece, &alone);
    }
    free(alone.memory);
}

void pool_run(const job *job, int threads)
{
    if (pthread_mutex_trylock(&in_use)) {
        run_alone(job);
        return;
    }
    slot *me = &pool.slots[0];
    if (threads > job->pieces) threads = job->pieces;
    if (threads > MAX_WORKERS) threads = MAX_WORKERS;
    pthread_mutex_lock(&pool.lock);
    start_workers(threads - 1);
    pool.job = job;
    pool.number++;
    pool.threads = threads;
    pool.next = 0;
    pool.unfinished = job->pieces;
    atomic_fetch_add(&pool.events, 1);
    pthread_mutex_unlock(&pool.lock);
    if (threads > 1) pthread_cond_broadcast(&pool.begun);
    pthread_mutex_lock(&pool.lock);
    while (pool.unfinished || pool.loading) {
        if (take(me, 0))
            work(me);
        else if (wait_briefly(PATIENCE_NS))
            continue;
        else if (take(me, 1))
            work(me);
        else if (pool.unfinished || pool.loading)
            pthread_cond_wait(&pool.advanced, &pool.lock);
    }
    pool.job = NULL;
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&in_use);
}
