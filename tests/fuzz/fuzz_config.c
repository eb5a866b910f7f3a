/* A training config in JSON: what is accepted can be written, and reads back as the same. */
#include "examples/train_config.h"
#include "fuzz_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    char reason[256] = "";
    train_config config, again;
    train_mixer mixers[TRAIN_MAX_LAYERS];
    train_config_defaults(&config);
    if (!train_config_from_file(&config, fuzz_file(data, n_bytes), reason, sizeof reason)) {
        fuzz_want(reason[0] != '\0');
    } else {
        json_t *json = train_config_to_json(&config), *json_again;
        train_config_defaults(&again);
        fuzz_want(json && train_config_from_json(&again, json, reason, sizeof reason));
        json_again = train_config_to_json(&again);
        fuzz_want(json_equal(json, json_again) && !train_config_fixed_difference(&config, &again));
        if (train_config_check(&config, reason, sizeof reason))
            fuzz_want(train_config_mixers(&config, mixers) && train_config_hidden(&config) > 0);
        json_decref(json);
        json_decref(json_again);
        train_config_free(&again);
    }
    train_config_free(&config);
    return 0;
}
