/* Plots as SVG that a page's style sheet colours: figures against n, both axes logarithmic; bars where there is one n. */
#ifndef TENON_BENCH_PLOT_H
#define TENON_BENCH_PLOT_H

#include <stdbool.h>
#include <stdio.h>

#define PLOT_MAX_POINTS 16
#define PLOT_MAX_SERIES 32
#define PLOT_NAME_BYTES 64

typedef enum plot_style { PLOT_OWN, PLOT_PEER, PLOT_FLOOR } plot_style;

typedef struct plot_series {
    char name[PLOT_NAME_BYTES];
    plot_style style; /* solid with full marks, dashed with hollow marks, thin without marks */
    int colour;       /* of the style sheet's; the marks' shape goes with it */
    int n_points;
    double x[PLOT_MAX_POINTS], y[PLOT_MAX_POINTS], low[PLOT_MAX_POINTS], high[PLOT_MAX_POINTS];
} plot_series;

typedef struct plot {
    const char *unit, *label; /* of y; what the plot shows, for those who can't see it */
    plot_series series[PLOT_MAX_SERIES];
    int n_series;
} plot;

/* A further series; NULL where there is no room. */
plot_series *plot_add(plot *p, const char *name, plot_style style, int colour);
void plot_add_point(plot_series *series, double x, double y, double low, double high);

/* The drawing with its legend. Nothing for a plot without points. */
void plot_write(const plot *p, FILE *stream);

/* A figure with three digits: 0.0123, 1.23, 12.3, 1234. */
const char *plot_figure(char text[32], double value);
/* n as axes show it: 512, 32k (of 1024), 350k. */
const char *plot_count(char text[32], double n);

/* Text with what HTML would take for its own replaced. */
void plot_write_text(const char *text, FILE *stream);

#endif
