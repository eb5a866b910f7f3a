#include <math.h>

#include "data_internal.h"

/* Images of 32 x 32 grey pixels in 0 .. 1 (noise may leave that), each one shape, bright on dark, anywhere it fits, turned by any angle
 * and of any size from a fifth to nearly half of the image. A pixel's grey is the share of its 4 x 4 samples within the shape. */

static const char *const class_names[TN_SHAPES_CLASSES] = { "circle", "square", "triangle", "cross", "ring", "half", "star", "ell" };

const char *tn_data_class_name(int64_t label) { return label >= 0 && label < TN_SHAPES_CLASSES ? class_names[label] : NULL; }

#define PI 3.14159265358979323846

/* The directions of a star's points, and of a triangle's corners. */
static const double three[][2] = { { 1, 0 }, { -0.5, 0.86602540378443865 }, { -0.5, -0.86602540378443865 } };
static const double five[][2] = { { 1, 0 },
                                  { 0.30901699437494742, 0.95105651629515357 },
                                  { -0.80901699437494742, 0.58778525229247313 },
                                  { -0.80901699437494742, -0.58778525229247313 },
                                  { 0.30901699437494742, -0.95105651629515357 } };

/* Is the point inside a star of n points on the unit circle, whose inner corners are at (corner_x, corner_y) beside the point (1, 0)? */
static bool inside_star(double x, double y, const double (*points)[2], int n, double corner_x, double corner_y) {
    double along = -1, across = 0; /* from the centre towards the nearest point */
    for (int i = 0; i < n; i++) {
        double u = x * points[i][0] + y * points[i][1];
        if (u < along) continue;
        along = u;
        across = fabs(y * points[i][0] - x * points[i][1]);
    }
    return (1 - along) * corner_y >= across * (1 - corner_x);
}

/* Is the point inside the shape of radius 1 around the origin? */
static bool inside(int64_t label, double x, double y) {
    switch (label) {
    case 0: return x * x + y * y <= 0.8 * 0.8;
    case 1: return fabs(x) <= 0.7 && fabs(y) <= 0.7;
    case 2: return inside_star(x, y, three, 3, 0.25, 0.43301270189221933); /* half the radius: its sides are straight */
    case 3: return (fabs(x) <= 0.25 && fabs(y) <= 0.95) || (fabs(y) <= 0.25 && fabs(x) <= 0.95);
    case 4: return x * x + y * y <= 0.9 * 0.9 && x * x + y * y >= 0.55 * 0.55;
    case 5: return x >= -0.4 && (x + 0.4) * (x + 0.4) + y * y <= 0.95 * 0.95;
    case 6: return inside_star(x, y, five, 5, 0.30742645786248003, 0.22335839589113981);
    default: return fabs(x) <= 0.7 && fabs(y) <= 0.7 && (x <= -0.25 || y <= -0.25);
    }
}

typedef struct placing {
    int64_t label;
    double x, y, radius, cosine, sine, light;
} placing;

#define SAMPLES 4

/* Is the whole pixel beyond the shape's radius? */
static bool far_from(const placing *shape, int row, int column) {
    double x = column + 0.5 - shape->x, y = row + 0.5 - shape->y, reach = shape->radius + 0.75;
    return x * x + y * y > reach * reach;
}

static double grey_of(const placing *shape, int row, int column) {
    int hits = 0;
    if (far_from(shape, row, column)) return 0;
    for (int i = 0; i < SAMPLES * SAMPLES; i++) {
        double x = (column + (i % SAMPLES + 0.5) / SAMPLES - shape->x) / shape->radius;
        double y = (row + (i / SAMPLES + 0.5) / SAMPLES - shape->y) / shape->radius;
        hits += inside(shape->label, shape->cosine * x + shape->sine * y, shape->cosine * y - shape->sine * x);
    }
    return shape->light * hits / (SAMPLES * SAMPLES);
}

/* Of deviation 1, near enough to normal: the sum of a random number's eight bytes. */
static double draw_noise(tn_data_random *random) {
    uint64_t bits = tn_data_bits(random);
    int sum = 0;
    for (int i = 0; i < 64; i += 8) sum += (int)(bits >> i & 255);
    return (sum - 1020) * (1 / 209.0215); /* a byte's variance is (256^2 - 1) / 12 */
}

void tn_data_shape_row(const tn_data *data, tn_data_random random, float *patches, int64_t *label) {
    placing shape = { .label = tn_data_below(&random, data->task.vocab) };
    shape.radius = TN_SHAPES_SIDE * (0.2 + 0.25 * tn_data_uniform(&random));
    double room = TN_SHAPES_SIDE - 2 * shape.radius, angle = 2 * PI * tn_data_uniform(&random);
    shape.x = shape.radius + room * tn_data_uniform(&random);
    shape.y = shape.radius + room * tn_data_uniform(&random);
    shape.light = 0.6 + 0.4 * tn_data_uniform(&random);
    shape.cosine = cos(angle), shape.sine = sin(angle);
    for (int row = 0; row < TN_SHAPES_SIDE; row++)
        for (int column = 0; column < TN_SHAPES_SIDE; column++) {
            int patch = row / TN_SHAPES_PATCH * (TN_SHAPES_SIDE / TN_SHAPES_PATCH) + column / TN_SHAPES_PATCH;
            int feature = row % TN_SHAPES_PATCH * TN_SHAPES_PATCH + column % TN_SHAPES_PATCH;
            double grey = grey_of(&shape, row, column);
            if (data->task.noise > 0) grey += data->task.noise * draw_noise(&random);
            patches[patch * TN_SHAPES_PATCH * TN_SHAPES_PATCH + feature] = (float)grey;
        }
    *label = shape.label;
}
