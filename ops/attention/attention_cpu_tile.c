#include <math.h>
#include <string.h>

#include "../activation_cpu.h"
#include "../lanes_cpu.h"
#include "attention_tile_cpu.h"

#include "../tile_f32.h"
#include "attention_tile_body.h"

#include "../tile_f64.h"
#include "attention_tile_body.h"
