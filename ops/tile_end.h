/* At a tile body's end, so that another type can follow. */
#undef REAL
#undef OF
#undef LOAD
#undef STORE
#undef FOR_DTYPE
#undef EXP
#undef LOG
#undef LANES
