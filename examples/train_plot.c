/* The curves of a run as an SVG that any browser shows. */
#include <inttypes.h>
#include <math.h>

#include "train_log.h"

enum { WIDTH = 800, HEIGHT = 420, LEFT = 60, RIGHT = 20, TOP = 30, BOTTOM = 45, LINES = 5 };

typedef struct plot_frame {
    double steps, low, high;
} plot_frame;

static double x_of(const plot_frame *f, double step) { return LEFT + (WIDTH - LEFT - RIGHT) * step / f->steps; }
static double y_of(const plot_frame *f, double loss) { return TOP + (HEIGHT - TOP - BOTTOM) * (f->high - loss) / (f->high - f->low); }

static void widen(plot_frame *f, double loss) {
    if (!isfinite(loss)) return;
    f->low = fmin(f->low, loss);
    f->high = fmax(f->high, loss);
}

static plot_frame frame_of(const train_record *records, int64_t n) {
    plot_frame f = { 1, INFINITY, -INFINITY };
    for (int64_t i = 0; i < n; i++) {
        widen(&f, records[i].loss);
        widen(&f, records[i].val_loss);
        f.steps = fmax(f.steps, (double)records[i].step);
    }
    if (!(f.low < f.high)) f.low = isfinite(f.low) ? f.low - 1 : 0, f.high = f.low + 2;
    return f;
}

/* The smallest of 1, 2 and 5 times a power of ten that cuts `range` into at most LINES parts. */
static double even_step(double range) {
    double power = pow(10, floor(log10(range / LINES)));
    const double factors[] = { 1, 2, 5, 10 };
    for (int i = 0; i < 4; i++)
        if (range / (factors[i] * power) <= LINES) return factors[i] * power;
    return 10 * power;
}

static void draw_grid(FILE *stream, const plot_frame *f) {
    double dy = even_step(f->high - f->low), dx = fmax(1, even_step(f->steps));
    for (double y = ceil(f->low / dy) * dy; y <= f->high; y += dy)
        fprintf(stream,
                "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/><text x=\"%d\" y=\"%.1f\" "
                "text-anchor=\"end\">%.4g</text>\n",
                LEFT, WIDTH - RIGHT, y_of(f, y), y_of(f, y), LEFT - 6, y_of(f, y) + 4, y);
    for (double x = 0; x <= f->steps; x += dx)
        fprintf(stream, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.0f</text>\n", x_of(f, x), HEIGHT - BOTTOM + 18, x);
    fprintf(stream, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">step</text>\n", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8);
}

static void draw_curve(FILE *stream, const plot_frame *f, const train_record *records, int64_t n, bool validation) {
    const char *color = validation ? "#c03028" : "#3060b0";
    fprintf(stream, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" points=\"", color, validation ? "2" : "1");
    for (int64_t i = 0; i < n; i++) {
        double loss = validation ? records[i].val_loss : records[i].loss;
        if (isfinite(loss)) fprintf(stream, "%.1f,%.1f ", x_of(f, (double)records[i].step), y_of(f, loss));
    }
    fprintf(stream, "\"/>\n<text x=\"%d\" y=\"%d\" fill=\"%s\">%s</text>\n", LEFT + 10 + (validation ? 120 : 0), TOP - 10, color,
            validation ? "validation loss" : "training loss");
}

bool train_plot(FILE *stream, const train_record *records, int64_t n) {
    plot_frame f = frame_of(records, n);
    fprintf(stream,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
            WIDTH, HEIGHT);
    draw_grid(stream, &f);
    draw_curve(stream, &f, records, n, false);
    draw_curve(stream, &f, records, n, true);
    return fprintf(stream, "</svg>\n") > 0 && !ferror(stream);
}
