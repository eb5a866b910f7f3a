/* How the axes of a sequence of heads lie: for every op with a `layout` attribute. */
#ifndef TENON_LAYOUT_H
#define TENON_LAYOUT_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tn_layout {
    TN_BNHD, /* [batch, token, head, feature] */
    TN_BHND  /* [batch, head, token, feature] */
} tn_layout;

#define TN_LAYOUT_NAMES \
    { "bnhd", "bhnd", NULL }

/* Where the tokens and the heads stand among the four axes. */
static inline int tn_layout_token_axis(int layout) { return layout == TN_BHND ? 2 : 1; }
static inline int tn_layout_head_axis(int layout) { return layout == TN_BHND ? 1 : 2; }

#ifdef __cplusplus
}
#endif
#endif
