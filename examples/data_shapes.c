#include <math.h>

#include "data_internal.h"

/* Images of 32 x 32 grey pixels in 0 .. 1 (noise may leave that), each one shape, bright on dark, anywhere it fits, turned by any angle
 * and of any size from a fifth to nearly half of the image. A pixel's grey is the share of its 4 x 4 samples within the shape. */

static const char *const class_names[TN_SHAPES_CLASSES] = { "circle", "square", "triangle", "cross", "ring", "half", "star", "ell" };

const char *tn_data_class_name(int64_t label) { return label >= 0 && label < TN_SHAPES_CLASSES ? class_names[label] : NULL; }

#define PI 3.14159265358979323846

/* Is the point inside a star (or polygon) of n points on the unit circle, its inner corners at `inner`? */
static bool inside_star(double x, double y, int n, double inner) {
    double sector = 2 * PI / n, angle = atan2(y, x), r = hypot(x, y);
    angle -= sector * floor(angle / sector + 0.5); /* from the nearest point */
    double u = r * cos(angle), v = fabs(r * sin(angle));
    double corner_u = inner * cos(sector / 2), corner_v = inner * sin(sector / 2);
    return (1 - u) * corner_v >= v * (1 - corner_u);
}

/* Is the point inside the shape of radius 1 around the origin? */
static bool inside(int64_t label, double x, double y) {
    switch (label) {
    case 0: return x * x + y * y <= 0.8 * 0.8;
    case 1: return fabs(x) <= 0.7 && fabs(y) <= 0.7;
    case 2: return inside_star(x, y, 3, 0.5); /* half the radius: its sides are straight */
    case 3: return (fabs(x) <= 0.25 && fabs(y) <= 0.95) || (fabs(y) <= 0.25 && fabs(x) <= 0.95);
    case 4: return x * x + y * y <= 0.9 * 0.9 && x * x + y * y >= 0.55 * 0.55;
    case 5: return x >= -0.4 && (x + 0.4) * (x + 0.4) + y * y <= 0.95 * 0.95;
    case 6: return inside_star(x, y, 5, 0.38);
    default: return fabs(x) <= 0.7 && fabs(y) <= 0.7 && (x <= -0.25 || y <= -0.25);
    }
}

typedef struct placing {
    int64_t label;
    double x, y, radius, cosine, sine, light;
} placing;

#define SAMPLES 4

static double grey_of(const placing *shape, int row, int column) {
    int hits = 0;
    for (int i = 0; i < SAMPLES * SAMPLES; i++) {
        double x = (column + (i % SAMPLES + 0.5) / SAMPLES - shape->x) / shape->radius;
        double y = (row + (i / SAMPLES + 0.5) / SAMPLES - shape->y) / shape->radius;
        hits += inside(shape->label, shape->cosine * x + shape->sine * y, shape->cosine * y - shape->sine * x);
    }
    return shape->light * hits / (SAMPLES * SAMPLES);
}

/* Of deviation 1, near enough to normal: the sum of twelve uniform numbers less its mean. */
static double draw_noise(tn_data_random *random) {
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += tn_data_uniform(random);
    return sum;
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
