/* Fused elementwise kernels for a CPU, float32 or (half names, bfloat16 as uint16_t) arithmetic in float32: each replaces a chain of ten tensor operations by one pass over memory.
   Sums are taken over fixed chunks, so that results do not depend on the order in which threads finish. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define CHUNK 16384
#define THREADED (1L << 15)

/* Without the header's own declaration: these let the compiler call the vector versions in libmvec. */
#pragma omp declare simd notinbranch
extern float expf(float);
#pragma omp declare simd notinbranch
extern float logf(float);
extern float rintf(float);
extern float fabsf(float);
extern float copysignf(float, float);

typedef uint16_t half;

static inline float from_half(half x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline half to_half(float x) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (half)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float same(float x) { return x; }

static inline float clampf(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

/* weight = scale * clip(base + h(v), low, high), slope = d weight / d v; a row shares scale, low and high. */
void soft_weight(long rows, long length, const float *v, const float *base, const float *scale, const float *low,
                 const float *high, float gamma, float zeta, float *weight, float *slope) {
    float width = zeta - gamma;
#pragma omp parallel for schedule(static) if (rows * length > THREADED)
    for (long r = 0; r < rows; r++) {
        float step = scale[r], lo = low[r], hi = high[r];
        const float *vr = v + r * length, *br = base + r * length;
        float *wr = weight + r * length, *sr = slope + r * length;
#pragma omp simd
        for (long i = 0; i < length; i++) {
            float s = 1.0f / (1.0f + expf(-vr[i]));
            float raw = s * width + gamma;
            float level = br[i] + clampf(raw, 0.0f, 1.0f);
            float inside = (raw > 0.0f && raw < 1.0f && level >= lo && level <= hi) ? 1.0f : 0.0f;
            wr[i] = clampf(level, lo, hi) * step;
            sr[i] = inside * s * (1.0f - s) * width * step;
        }
    }
}

/* soft_weight with the rounding regularizer: sums[r] = sum over row r of 1 - |2 h(v) - 1|^beta, pull = its slope. */
#define SOFT_WEIGHT_REGULARIZED(name, type, store)                                                                   \
void name(long rows, long length, const float *v, const float *base, const float *scale, const float *low,           \
          const float *high, float gamma, float zeta, float beta, type *weight, type *slope, type *pull,             \
          double *sums) {                                                                                            \
    float width = zeta - gamma;                                                                                      \
_Pragma("omp parallel for schedule(static) if (rows * length > THREADED)")                                           \
    for (long r = 0; r < rows; r++) {                                                                                \
        float step = scale[r], lo = low[r], hi = high[r], sum = 0.0f;                                                \
        const float *vr = v + r * length, *br = base + r * length;                                                   \
        type *wr = weight + r * length, *sr = slope + r * length, *pr = pull + r * length;                           \
_Pragma("omp simd reduction(+ : sum)")                                                                               \
        for (long i = 0; i < length; i++) {                                                                          \
            float s = 1.0f / (1.0f + expf(-vr[i]));                                                                  \
            float raw = s * width + gamma, h = clampf(raw, 0.0f, 1.0f);                                              \
            float rise = (raw > 0.0f && raw < 1.0f) ? s * (1.0f - s) * width : 0.0f;                                 \
            float level = br[i] + h;                                                                                 \
            float signed_distance = 2.0f * h - 1.0f, distance = fabsf(signed_distance);                              \
            float power = expf((beta - 1.0f) * logf(distance + 1e-30f));                                             \
            power = distance > 0.0f ? power : 0.0f;                                                                  \
            sum += 1.0f - distance * power;                                                                          \
            wr[i] = store(clampf(level, lo, hi) * step);                                                             \
            sr[i] = store((level >= lo && level <= hi) ? rise * step : 0.0f);                                        \
            pr[i] = store(-2.0f * beta * copysignf(power, signed_distance) * rise);                                  \
        }                                                                                                            \
        sums[r] = sum;                                                                                               \
    }                                                                                                                \
}
SOFT_WEIGHT_REGULARIZED(soft_weight_regularized, float, same)
SOFT_WEIGHT_REGULARIZED(soft_weight_regularized_half, half, to_half)

/* out = slope * grad + pull * factor; out may be slope. */
#define COMBINE_SLOPES(name, type, load)                                                                             \
void name(long n, const type *grad, const type *pull, float factor, const type *slope, float *out) {                 \
_Pragma("omp parallel for simd schedule(static) if (n > THREADED)")                                                  \
    for (long i = 0; i < n; i++) out[i] = load(slope[i]) * load(grad[i]) + load(pull[i]) * factor;                   \
}
COMBINE_SLOPES(combine_slopes, float, same)
COMBINE_SLOPES(combine_slopes_half, half, from_half)

/* sums[c] = sum over chunk c of 1 - |2 h(v) - 1|^beta, slope = its derivative by v. */
void rounding_regularizer(long n, const float *v, float beta, float gamma, float zeta, float *slope, double *sums) {
    float width = zeta - gamma;
#pragma omp parallel for schedule(static) if (n > THREADED)
    for (long c = 0; c < (n + CHUNK - 1) / CHUNK; c++) {
        long end = (c + 1) * CHUNK < n ? (c + 1) * CHUNK : n;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (long i = c * CHUNK; i < end; i++) {
            float s = 1.0f / (1.0f + expf(-v[i]));
            float raw = s * width + gamma;
            float free = (raw > 0.0f && raw < 1.0f) ? 1.0f : 0.0f;
            float signed_distance = 2.0f * clampf(raw, 0.0f, 1.0f) - 1.0f;
            float distance = fabsf(signed_distance);
            float power = expf((beta - 1.0f) * logf(distance + 1e-30f));
            power = distance > 0.0f ? power : 0.0f;
            sum += 1.0f - distance * power;
            slope[i] = -2.0f * beta * copysignf(power, signed_distance) * free * s * (1.0f - s) * width;
        }
        sums[c] = sum;
    }
}

/* out = scale * clip(round(x / scale), low, high). */
void fake_quantize(long n, const float *x, float scale, float low, float high, float *out) {
#pragma omp parallel for simd schedule(static) if (n > THREADED)
    for (long i = 0; i < n; i++) out[i] = clampf(rintf(x[i] / scale), low, high) * scale;
}

/* grad_x = grad inside the range, else 0; sums[c] = sum over chunk c of grad * d out / d scale. Either may be NULL. */
void fake_quantize_backward(long n, const float *x, const float *grad, float scale, float low, float high,
                            float *grad_x, double *sums) {
#pragma omp parallel for schedule(static) if (n > THREADED)
    for (long c = 0; c < (n + CHUNK - 1) / CHUNK; c++) {
        long end = (c + 1) * CHUNK < n ? (c + 1) * CHUNK : n;
        float sum = 0.0f;
        if (sums) {
#pragma omp simd reduction(+ : sum)
            for (long i = c * CHUNK; i < end; i++) {
                float steps = x[i] / scale, level = rintf(steps), clipped = clampf(level, low, high);
                sum += grad[i] * (clipped - (level == clipped ? steps : 0.0f));
            }
            sums[c] = sum;
        }
        if (grad_x) {
#pragma omp simd
            for (long i = c * CHUNK; i < end; i++) {
                float level = rintf(x[i] / scale);
                grad_x[i] = (level >= low && level <= high) ? grad[i] : 0.0f;
            }
        }
    }
}

/* errors[k][r] = mean over row r of |(x - Q_k(x)) / scale_k|^p, for candidates k with their own scale and range. */
void lp_errors(long candidates, long rows, long n, const float *x, const float *scale, const float *low,
               const float *high, float p, float *errors) {
#pragma omp parallel for collapse(2) schedule(static) if (candidates * rows * n > THREADED)
    for (long r = 0; r < rows; r++)
        for (long k = 0; k < candidates; k++) {
            const float *xr = x + r * n;
            float step = scale[k * rows + r], lo = low[k * rows + r], hi = high[k * rows + r];
            double total = 0.0;
            for (long start = 0; start < n; start += CHUNK) {
                long end = start + CHUNK < n ? start + CHUNK : n;
                float sum = 0.0f;
                if (p == 2.0f) {
#pragma omp simd reduction(+ : sum)
                    for (long i = start; i < end; i++) {
                        float steps = xr[i] / step, error = clampf(rintf(steps), lo, hi) - steps;
                        sum += error * error;
                    }
                } else if (p == 1.0f) {
#pragma omp simd reduction(+ : sum)
                    for (long i = start; i < end; i++) {
                        float steps = xr[i] / step;
                        sum += fabsf(clampf(rintf(steps), lo, hi) - steps);
                    }
                } else {
#pragma omp simd reduction(+ : sum)
                    for (long i = start; i < end; i++) {
                        float steps = xr[i] / step, error = fabsf(clampf(rintf(steps), lo, hi) - steps);
                        sum += expf(p * logf(error + 1e-30f));
                    }
                }
                total += sum;
            }
            errors[k * rows + r] = (float)(total / n);
        }
}

/* sums[c] = sum over chunk c of |x - y|^p, slope = its derivative by x, times factor. */
#define POWER_DISTANCE(name, type, load, store)                                                                      \
void name(long n, const type *x, const float *y, float p, float factor, type *slope,                                 \
          double *sums) {                                                                                            \
_Pragma("omp parallel for schedule(static) if (n > THREADED)")                                                       \
    for (long c = 0; c < (n + CHUNK - 1) / CHUNK; c++) {                                                             \
        long end = (c + 1) * CHUNK < n ? (c + 1) * CHUNK : n;                                                        \
        float sum = 0.0f;                                                                                            \
        if (p == 2.0f) {                                                                                             \
_Pragma("omp simd reduction(+ : sum)")                                                                               \
            for (long i = c * CHUNK; i < end; i++) {                                                                 \
                float d = load(x[i]) - y[i];                                                                         \
                sum += d * d;                                                                                        \
                slope[i] = store(2.0f * d * factor);                                                                 \
            }                                                                                                        \
        } else if (p == 1.0f) {                                                                                      \
_Pragma("omp simd reduction(+ : sum)")                                                                               \
            for (long i = c * CHUNK; i < end; i++) {                                                                 \
                float d = load(x[i]) - y[i];                                                                         \
                sum += fabsf(d);                                                                                     \
                slope[i] = store(((d > 0.0f ? 1.0f : 0.0f) - (d < 0.0f ? 1.0f : 0.0f)) * factor);                    \
            }                                                                                                        \
        } else {                                                                                                     \
_Pragma("omp simd reduction(+ : sum)")                                                                               \
            for (long i = c * CHUNK; i < end; i++) {                                                                 \
                float d = load(x[i]) - y[i], distance = fabsf(d), power = expf((p - 1.0f) * logf(distance + 1e-30f));\
                power = distance > 0.0f ? power : 0.0f;                                                              \
                sum += distance * power;                                                                             \
                slope[i] = store(p * copysignf(power, d) * factor);                                                  \
            }                                                                                                        \
        }                                                                                                            \
        sums[c] = sum;                                                                                               \
    }                                                                                                                \
}
POWER_DISTANCE(power_distance, float, same, same)
POWER_DISTANCE(power_distance_half, half, from_half, to_half)
