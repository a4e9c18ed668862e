/*
 * A CPU benchmark for a host and for guests without a user space: statically linked, no input.
 * Each test runs for about a quarter of a second after a warm-up and prints "BENCH name ns_per_op".
 * What it computes is summed up and printed, so that a wrong result shows as a different line.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint64_t seed = 88172645463325252u;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

/* Keeps the compiler from knowing a value. */
#define OPAQUE(x) __asm__ volatile("" : "+r"(x))

static volatile uint64_t sink;

static uint64_t integer(long n)
{
    uint64_t a = 1, b = 2, c = 3;
    for (long i = 0; i < n; i++) {
        a += b ^ (c << 3);
        b = (b >> 1) + c * 5;
        c ^= a + i;
        OPAQUE(a);
    }
    return a + b + c;
}

static uint64_t divide(long n)
{
    uint64_t x = 0xfedcba9876543210u, sum = 0;
    for (long i = 0; i < n; i++) {
        uint64_t d = 3 + (i & 1023);
        OPAQUE(d);
        sum += x / d + x % d;
    }
    return sum;
}

static uint32_t ror(uint32_t x, int k) { return x >> k | x << (32 - k); }

/* The compression function of SHA-256 in shape, on made-up constants. */
static uint64_t hash(long n)
{
    uint32_t k[64], w[64], s[8];
    for (int i = 0; i < 64; i++)
        k[i] = (uint32_t)(i * 2654435761u + 12345);
    for (int i = 0; i < 8; i++)
        s[i] = k[i * 7];
    for (long block = 0; block < n; block++) {
        for (int i = 0; i < 16; i++)
            w[i] = (uint32_t)block * 31 + i;
        for (int i = 16; i < 64; i++) {
            uint32_t a = w[i - 15], b = w[i - 2];
            w[i] = w[i - 16] + (ror(a, 7) ^ ror(a, 18) ^ a >> 3) + w[i - 7] + (ror(b, 17) ^ ror(b, 19) ^ b >> 10);
        }
        uint32_t a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
        for (int i = 0; i < 64; i++) {
            uint32_t x = h + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i];
            uint32_t y = (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g; g = f; f = e; e = d + x; d = c; c = b; b = a; a = x + y;
        }
        s[0] += a; s[1] += b; s[2] += c; s[3] += d; s[4] += e; s[5] += f; s[6] += g; s[7] += h;
    }
    return s[0] ^ (uint64_t)s[5] << 32;
}

static uint64_t sse(long n)
{
    static double a[32][32], b[32][32], c[32][32];
    for (int i = 0; i < 32; i++)
        for (int j = 0; j < 32; j++)
            a[i][j] = i + j * 0.5, b[i][j] = i - j * 0.25;
    for (long run = 0; run < n; run++)
        for (int i = 0; i < 32; i++)
            for (int j = 0; j < 32; j++) {
                double sum = c[i][j] * 0.5;
                for (int k = 0; k < 32; k++)
                    sum += a[i][k] * b[k][j];
                c[i][j] = sum;
            }
    return (uint64_t)(int64_t)(c[3][5] + c[31][31]);
}

static uint64_t x87(long n)
{
    long double x = 0.5L, y = 1.25L, sum = 0;
    for (long i = 0; i < n; i++) {
        sum += x * y + 1.0L / (x + 2.0L);
        x = x * 0.999L + 0.001L;
        y = y * 1.0001L - 0.0001L;
    }
    return (uint64_t)(sum * 1000);
}

#define BIG (8 << 20)
static char *big;

static uint64_t copy(long n)
{
    for (long i = 0; i < n; i++) {
        memcpy(big + BIG / 2, big, 65536);
        big[i & 65535]++;
    }
    return (unsigned char)big[BIG / 2 + 77];
}

static uint64_t stream(long n)
{
    uint64_t *a = (uint64_t *)big, sum = 0;
    long words = BIG / 2 / 8;
    for (long run = 0; run < n; run++)
        for (long i = 0; i < words; i += 4) {
            a[i] += 3;
            sum += a[i] + a[i + 1] + a[i + 2] + a[i + 3];
        }
    return sum;
}

static uint64_t chase(long n)
{
    static uint32_t next[1 << 16];
    static int ready;
    if (!ready) {
        for (uint32_t i = 0; i < 1 << 16; i++)
            next[i] = (i * 40503u + 1) & 0xffff;
        ready = 1;
    }
    uint32_t at = 0;
    for (long i = 0; i < n; i++)
        at = next[at];
    return at;
}

static uint64_t branches(long n)
{
    uint64_t x = 88172645463325252u, sum = 0;
    for (long i = 0; i < n; i++) {
        x ^= x << 13; x ^= x >> 7; x ^= x << 17;
        if (x & 1) sum += 3; else sum ^= x;
        if (x & 2) sum -= i;
        if ((x & 12) == 4) sum *= 5;
        OPAQUE(sum);
    }
    return sum;
}

static uint64_t op0(uint64_t x) { return x + 1; }
static uint64_t op1(uint64_t x) { return x * 3; }
static uint64_t op2(uint64_t x) { return x ^ x >> 5; }
static uint64_t op3(uint64_t x) { return x - 7; }
static uint64_t (*volatile ops[4])(uint64_t) = { op0, op1, op2, op3 };

static uint64_t indirect(long n)
{
    uint64_t x = 1;
    for (long i = 0; i < n; i++)
        x = ops[(i * 7 + (i >> 3)) & 3](x);
    return x;
}

static __attribute__((noinline)) uint64_t fib(unsigned n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static uint64_t calls(long n)
{
    uint64_t sum = 0;
    for (long i = 0; i < n; i++)
        sum += fib(15);
    return sum;
}

static uint64_t getppid_calls(long n)
{
    uint64_t bad = 0;
    for (long i = 0; i < n; i++)
        bad += syscall(SYS_getppid) < 0;
    return bad;
}

static const char *self;

static uint64_t fork_exec(long n)
{
    uint64_t sum = 0;
    for (long i = 0; i < n; i++) {
        pid_t pid = fork();
        if (!pid) {
            execl(self, self, "child", (char *)0);
            _exit(99);
        }
        int status = 0;
        waitpid(pid, &status, 0);
        sum += WEXITSTATUS(status);
    }
    return sum / (n ? n : 1);
}

static uint64_t touch(long n)
{
    uint64_t sum = 0;
    const size_t size = 1 << 20;
    for (long i = 0; i < n; i++) {
        char *p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            return 1;
        for (size_t at = 0; at < size; at += 4096)
            sum += ++p[at];
        munmap(p, size);
    }
    return sum / (n ? n : 1);
}

static uint64_t ping_pong(long n)
{
    int there[2], back[2];
    char c = 'x';
    if (pipe(there) || pipe(back))
        return 1;
    pid_t pid = fork();
    if (!pid) {
        close(there[1]);
        while (read(there[0], &c, 1) == 1)
            if (write(back[1], &c, 1) != 1)
                break;
        _exit(0);
    }
    uint64_t bad = 0;
    for (long i = 0; i < n; i++)
        bad += write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1;
    close(there[0]); close(there[1]); close(back[0]); close(back[1]);
    waitpid(pid, 0, 0);
    return bad;
}

/* Finds repeats through a hash of three bytes; gives the number of tokens. */
static uint64_t compress(long n)
{
    static unsigned char text[1 << 16];
    static int head[1 << 12];
    uint64_t tokens = 0;
    seed = 12345;
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = i > 64 && rnd() % 4 ? text[i - 1 - rnd() % 60] : 'a' + rnd() % 16;
    for (long run = 0; run < n; run++) {
        memset(head, -1, sizeof head);
        for (size_t i = 0; i + 3 < sizeof text; tokens++) {
            unsigned h = (text[i] * 2654435761u ^ text[i + 1] * 40503u ^ text[i + 2] * 97u) >> 4 & 4095;
            int from = head[h];
            head[h] = (int)i;
            size_t length = 0;
            if (from >= 0)
                while (length < 255 && i + length < sizeof text && text[from + length] == text[i + length])
                    length++;
            i += length >= 3 ? length : 1;
        }
    }
    return tokens / (n ? n : 1);
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static uint64_t sort(long n)
{
    static uint32_t v[20000];
    uint64_t sum = 0;
    for (long run = 0; run < n; run++) {
        seed = 4711;
        for (int i = 0; i < 20000; i++)
            v[i] = (uint32_t)rnd();
        qsort(v, 20000, sizeof *v, compare);
        sum = v[0] + (uint64_t)v[10000];
    }
    return sum;
}

/* Runs as many operations as take long enough to measure. The result is that of the first, fixed number of them. */
static void bench(const char *name, uint64_t (*test)(long), long check)
{
    memset(big, 5, BIG);
    uint64_t result = test(check);
    long n = check;
    double elapsed = 0;
    for (;;) {
        double start = now();
        sink += test(n);
        elapsed = now() - start;
        if (elapsed > 0.1 || n > 1L << 40)
            break;
        n *= elapsed > 0.01 ? (long)(0.15 / elapsed) + 1 : 8;
    }
    double best = elapsed;
    for (int i = 0; i < 2; i++) {
        double start = now();
        sink += test(n);
        elapsed = now() - start;
        if (elapsed < best)
            best = elapsed;
    }
    printf("BENCH %s %.3f %016llx\n", name, best * 1e9 / n, (unsigned long long)result);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "child"))
        return 42;
    self = argv[0];
    big = mmap(0, BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (big == MAP_FAILED)
        return 1;
    bench("integer", integer, 1000);
    bench("divide", divide, 1000);
    bench("hash", hash, 10);
    bench("sse", sse, 2);
    bench("x87", x87, 1000);
    bench("copy", copy, 4);
    bench("stream", stream, 1);
    bench("chase", chase, 1000);
    bench("branches", branches, 1000);
    bench("indirect", indirect, 1000);
    bench("calls", calls, 2);
    bench("getppid", getppid_calls, 100);
    bench("fork-exec", fork_exec, 2);
    bench("page-faults", touch, 1);
    bench("pipe", ping_pong, 10);
    bench("compress", compress, 1);
    bench("sort", sort, 1);
    return 0;
}
