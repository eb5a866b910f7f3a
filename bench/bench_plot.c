#include "bench_plot.h"

#include <math.h>
#include <string.h>

/* The drawing's own units: about a pixel each on a desktop. */
#define WIDTH 440.0
#define HEIGHT 270.0
#define LEFT 50.0
#define RIGHT 14.0
#define TOP 24.0
#define BOTTOM 26.0
#define MARK 3.4
#define N_SHAPES 4

/* ---- series ---- */

plot_series *plot_add(plot *p, const char *name, plot_style style, int colour) {
    if (p->n_series == PLOT_MAX_SERIES) return NULL;
    plot_series *series = &p->series[p->n_series++];
    memset(series, 0, sizeof *series);
    snprintf(series->name, sizeof series->name, "%s", name);
    series->style = style;
    series->colour = colour;
    return series;
}

void plot_add_point(plot_series *series, double x, double y, double low, double high) {
    if (!series || series->n_points == PLOT_MAX_POINTS || !(x > 0) || !(y > 0)) return;
    int i = series->n_points++;
    series->x[i] = x;
    series->y[i] = y;
    series->low[i] = low;
    series->high[i] = high;
}

/* ---- texts ---- */

const char *plot_figure(char text[32], double value) {
    int digits = value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : value >= 0.1 ? 3 : 4;
    snprintf(text, 32, "%.*f", digits, value);
    return text;
}

const char *plot_count(char text[32], double n) {
    if (fmod(n, 1048576) == 0) snprintf(text, 32, "%.0fM", n / 1048576);
    else if (n >= 1024 && fmod(n, 1024) == 0) snprintf(text, 32, "%.0fk", n / 1024);
    else if (n >= 1e4) snprintf(text, 32, "%.0fk", n / 1e3);
    else snprintf(text, 32, "%.0f", n);
    return text;
}

/* A tick of the y axis: no more digits than it has. */
static const char *tick_text(char text[32], double value) {
    snprintf(text, 32, "%.6g", value);
    if (strchr(text, 'e')) snprintf(text, 32, "%.0f", value);
    return text;
}

void plot_write_text(const char *text, FILE *stream) {
    for (; *text; text++) {
        if (*text == '&') fputs("&amp;", stream);
        else if (*text == '<') fputs("&lt;", stream);
        else if (*text == '>') fputs("&gt;", stream);
        else if (*text == '"') fputs("&quot;", stream);
        else fputc(*text, stream);
    }
}

/* ---- axes ---- */

typedef struct plot_range {
    double x_low, x_high, y_low, y_high;
} plot_range;

static void widen(double value, double *low, double *high) {
    if (value < *low) *low = value;
    if (value > *high) *high = value;
}

static plot_range range_of(const plot *p) {
    plot_range r = { INFINITY, 0, INFINITY, 0 };
    for (int s = 0; s < p->n_series; s++)
        for (int i = 0; i < p->series[s].n_points; i++) {
            widen(p->series[s].x[i], &r.x_low, &r.x_high);
            widen(p->series[s].y[i], &r.y_low, &r.y_high);
        }
    r.y_low /= 1.18;
    r.y_high *= 1.18;
    return r;
}

static double share_of(double value, double low, double high) { return log(value / low) / log(high / low); }
static double x_of(const plot_range *r, double n) { return LEFT + 10 + (WIDTH - LEFT - RIGHT - 20) * share_of(n, r->x_low, r->x_high); }
static double y_of(const plot_range *r, double value) {
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share_of(value, r->y_low, r->y_high);
}

/* Round figures between the ends, the rounder ones first, none nearer to another than a line of text. */
static void write_y_ticks(const plot_range *r, FILE *stream) {
    static const double steps[] = { 1, 5, 2, 3, 1.5, 4, 7 };
    const double room = 24;
    double taken[64];
    int n_taken = 0;
    char text[32];
    for (size_t s = 0; s < sizeof steps / sizeof *steps; s++)
        for (int power = (int)floor(log10(r->y_low)); pow(10, power) <= r->y_high; power++) {
            double value = steps[s] * pow(10, power), y = value > 0 ? y_of(r, value) : 0;
            bool fits = value >= r->y_low && value <= r->y_high && n_taken < 64;
            for (int i = 0; i < n_taken; i++) fits = fits && fabs(taken[i] - y) >= room;
            if (!fits) continue;
            taken[n_taken++] = y;
            fprintf(stream,
                    "<path class=\"grid\" d=\"M%g %.1fH%g\"/><text class=\"tick\" x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%s</text>", LEFT,
                    y, WIDTH - RIGHT, LEFT - 6, y + 4, tick_text(text, value));
        }
}

/* The n that were measured, from the largest down, as far as their labels have room. */
static void write_x_ticks(const plot *p, const plot_range *r, FILE *stream) {
    const double room = 34;
    double taken[PLOT_MAX_POINTS * 2];
    int n_taken = 0;
    char text[32];
    for (int s = 0; s < p->n_series; s++)
        for (int i = p->series[s].n_points - 1; i >= 0; i--) {
            double x = x_of(r, p->series[s].x[i]);
            bool fits = n_taken < PLOT_MAX_POINTS * 2;
            for (int t = 0; t < n_taken; t++) fits = fits && fabs(taken[t] - x) >= room;
            if (!fits) continue;
            taken[n_taken++] = x;
            fprintf(stream,
                    "<path class=\"axis\" d=\"M%.1f %gv4\"/><text class=\"tick\" x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%s</text>", x,
                    HEIGHT - BOTTOM, x, HEIGHT - BOTTOM + 17, plot_count(text, p->series[s].x[i]));
        }
}

static void write_axes(const plot *p, const plot_range *r, FILE *stream) {
    write_y_ticks(r, stream);
    write_x_ticks(p, r, stream);
    fprintf(stream, "<path class=\"axis\" d=\"M%g %gV%gH%g\"/>", LEFT, TOP, HEIGHT - BOTTOM, WIDTH - RIGHT);
    fprintf(stream, "<text class=\"tick\" x=\"%g\" y=\"13\" text-anchor=\"end\">%s</text>", LEFT - 6, p->unit);
    fprintf(stream, "<text class=\"tick\" x=\"%g\" y=\"%g\" text-anchor=\"end\">n</text>", WIDTH - RIGHT, HEIGHT - BOTTOM - 6);
}

/* ---- lines ---- */

static const char *class_of(plot_style style) { return style == PLOT_OWN ? "own" : style == PLOT_PEER ? "peer" : "floor"; }

static void write_mark(const plot_series *series, double x, double y, FILE *stream) {
    const double m = MARK;
    switch (series->colour % N_SHAPES) {
    case 0: fprintf(stream, "<circle class=\"mark\" cx=\"%.1f\" cy=\"%.1f\" r=\"%g\">", x, y, m); return;
    case 1: fprintf(stream, "<path class=\"mark\" d=\"M%.1f %.1fh%gv%gh%gz\">", x - m, y - m, 2 * m, 2 * m, -2 * m); return;
    case 2: fprintf(stream, "<path class=\"mark\" d=\"M%.1f %.1fl%g %gh%gz\">", x, y - m - 1, m + 0.6, 2 * m, -2 * m - 1.2); return;
    default:
        fprintf(stream, "<path class=\"mark\" d=\"M%.1f %.1fl%g %gl%g %gl%g %gz\">", x, y - m - 1, m + 1, m + 1, -m - 1, m + 1, -m - 1,
                -m - 1);
    }
}

static void write_marks(const plot_series *series, const plot_range *r, const char *unit, FILE *stream) {
    char n[32], y[32], low[32], high[32];
    for (int i = 0; i < series->n_points; i++) {
        write_mark(series, x_of(r, series->x[i]), y_of(r, series->y[i]), stream);
        fprintf(stream, "<title>");
        plot_write_text(series->name, stream);
        fprintf(stream, ", n %s: %s %s", plot_count(n, series->x[i]), plot_figure(y, series->y[i]), unit);
        if (series->high[i] > series->low[i])
            fprintf(stream, " (p20 %s, p80 %s)", plot_figure(low, series->low[i]), plot_figure(high, series->high[i]));
        fprintf(stream, "</title>%s", series->colour % N_SHAPES ? "</path>" : "</circle>");
    }
}

static void write_line(const plot_series *series, const plot_range *r, const char *unit, FILE *stream) {
    fprintf(stream, "<g class=\"%s c%d\"><path class=\"line\" d=\"", class_of(series->style), series->colour);
    for (int i = 0; i < series->n_points; i++) fprintf(stream, "%s%.1f %.1f", i ? "L" : "M", x_of(r, series->x[i]), y_of(r, series->y[i]));
    fprintf(stream, "\"/>");
    if (series->style != PLOT_FLOOR) write_marks(series, r, unit, stream);
    fprintf(stream, "</g>");
}

static void start_drawing(const plot *p, double height, FILE *stream) {
    fprintf(stream, "<svg viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"", WIDTH, height);
    plot_write_text(p->label, stream);
    fprintf(stream, "\">");
}

static void write_lines(const plot *p, FILE *stream) {
    plot_range r = range_of(p);
    start_drawing(p, HEIGHT, stream);
    write_axes(p, &r, stream);
    for (int style = PLOT_FLOOR; style >= PLOT_OWN; style--) /* our own lie on top */
        for (int s = 0; s < p->n_series; s++)
            if ((int)p->series[s].style == style && p->series[s].n_points) write_line(&p->series[s], &r, p->unit, stream);
    fprintf(stream, "</svg>\n");
}

static void write_swatch(const plot_series *series, FILE *stream) {
    fprintf(stream,
            "<li><svg class=\"swatch\" viewBox=\"0 0 26 12\" aria-hidden=\"true\"><g class=\"%s c%d\"><path class=\"line\" d=\"M1 6H25\"/>",
            class_of(series->style), series->colour);
    if (series->style != PLOT_FLOOR) {
        write_mark(series, 13, 6, stream);
        fprintf(stream, "%s", series->colour % N_SHAPES ? "</path>" : "</circle>");
    }
    fprintf(stream, "</g></svg>");
    plot_write_text(series->name, stream);
    fprintf(stream, "</li>");
}

static void write_legend(const plot *p, FILE *stream) {
    fprintf(stream, "<ul class=\"legend\">");
    for (int s = 0; s < p->n_series; s++)
        if (p->series[s].n_points) write_swatch(&p->series[s], stream);
    fprintf(stream, "</ul>\n");
}

/* ---- bars: one n ---- */

#define BAR 18.0
#define BAR_STEP 25.0
#define NAME_WIDTH 132.0
#define FIGURE_WIDTH 52.0

static void write_bar(const plot_series *series, int place, double longest, const char *unit, FILE *stream) {
    char text[32];
    double y = 4 + place * BAR_STEP, length = (WIDTH - NAME_WIDTH - FIGURE_WIDTH - 10) * series->y[0] / longest;
    fprintf(stream, "<g class=\"%s c%d\"><text class=\"tick\" x=\"%g\" y=\"%.1f\" text-anchor=\"end\">", class_of(series->style),
            series->colour, NAME_WIDTH - 6, y + 13);
    plot_write_text(series->name, stream);
    fprintf(stream, "</text><rect class=\"bar\" x=\"%g\" y=\"%.1f\" width=\"%.1f\" height=\"%g\"/>", NAME_WIDTH, y, length > 1 ? length : 1,
            BAR);
    fprintf(stream, "<text class=\"value\" x=\"%.1f\" y=\"%.1f\">%s%s%s</text></g>", NAME_WIDTH + length + 6, y + 13,
            plot_figure(text, series->y[0]), place ? "" : " ", place ? "" : unit);
}

static void write_bars(const plot *p, FILE *stream) {
    double longest = 0;
    int n = 0, place = 0;
    for (int s = 0; s < p->n_series; s++) {
        if (!p->series[s].n_points) continue;
        n++;
        if (p->series[s].y[0] > longest) longest = p->series[s].y[0];
    }
    start_drawing(p, 6 + n * BAR_STEP, stream);
    for (int s = 0; s < p->n_series; s++)
        if (p->series[s].n_points) write_bar(&p->series[s], place++, longest, p->unit, stream);
    fprintf(stream, "</svg>\n");
}

void plot_write(const plot *p, FILE *stream) {
    bool any = false, several = false;
    double first = 0;
    for (int s = 0; s < p->n_series; s++)
        for (int i = 0; i < p->series[s].n_points; i++) {
            if (any && p->series[s].x[i] != first) several = true;
            if (!any) first = p->series[s].x[i];
            any = true;
        }
    if (!any) return;
    if (several) {
        write_lines(p, stream);
        write_legend(p, stream);
    } else {
        write_bars(p, stream);
    }
}
