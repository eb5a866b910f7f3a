/* The page's style sheet: light and dark, wide and narrow, on paper. */
#ifndef TENON_BENCH_HTML_STYLE_H
#define TENON_BENCH_HTML_STYLE_H

extern const char bench_html_style[];

#endif
