/* Attributes between text or JSON and an op's args struct. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "registry.h"

static const tn_attr_def *find_attr(const tn_op_def *op, const char *name) {
    for (int i = 0; i < op->n_attrs; i++)
        if (strcmp(op->attrs[i].name, name) == 0) return &op->attrs[i];
    return NULL;
}

static bool refuse_value(char *reason, size_t n_bytes, const tn_attr_def *attr, const char *text, const char *wanted) {
    snprintf(reason, n_bytes, "%s = '%s': wanted %s", attr->name, text, wanted);
    return false;
}

static bool parse_int(const char *text, const char **end, int64_t *value) {
    char *stop;
    errno = 0;
    *value = strtoll(text, &stop, 10);
    *end = stop;
    return stop != text && errno == 0;
}

static bool parse_list(const char *text, tn_int_list *list) {
    list->axes = 0;
    while (*text) {
        const char *end;
        if (list->axes == TN_MAX_AXES || !parse_int(text, &end, &list->size[list->axes++])) return false;
        if (*end == '\0') return true;
        if (*end != ',' || end[1] == '\0') return false;
        text = end + 1;
    }
    return true;
}

static bool names_text(const tn_attr_def *attr, char *buffer, size_t n_bytes) {
    size_t at = (size_t)snprintf(buffer, n_bytes, "one of");
    for (int i = 0; attr->names[i] && at < n_bytes; i++)
        at += (size_t)snprintf(buffer + at, n_bytes - at, "%s %s", i ? "," : "", attr->names[i]);
    return true;
}

static bool set_value(const tn_attr_def *attr, void *args, const char *text, char *reason, size_t n_bytes) {
    void *place = (char *)args + attr->offset;
    const char *end;
    char *stop, wanted[192];
    switch (attr->type) {
    case TN_ATTR_BOOL:
        if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0) return refuse_value(reason, n_bytes, attr, text, "true or false");
        *(bool *)place = text[0] == 't';
        return true;
    case TN_ATTR_INT:
        if (!parse_int(text, &end, place) || *end) return refuse_value(reason, n_bytes, attr, text, "a whole number");
        return true;
    case TN_ATTR_FLOAT:
        *(double *)place = strtod(text, &stop);
        if (stop == text || *stop) return refuse_value(reason, n_bytes, attr, text, "a number");
        return true;
    case TN_ATTR_ENUM:
        for (int i = 0; attr->names[i]; i++)
            if (strcmp(attr->names[i], text) == 0) {
                *(int *)place = i;
                return true;
            }
        names_text(attr, wanted, sizeof wanted);
        return refuse_value(reason, n_bytes, attr, text, wanted);
    case TN_ATTR_INT_LIST:
        if (!parse_list(text, place)) return refuse_value(reason, n_bytes, attr, text, "at most 8 whole numbers separated by commas");
        return true;
    case TN_ATTR_DTYPE:
        if (!tn_dtype_parse(text, place)) return refuse_value(reason, n_bytes, attr, text, "one of f64, f32, bf16, i64, i32, u8, bool");
        return true;
    }
    return refuse_value(reason, n_bytes, attr, text, "an attribute of a known type");
}

uint64_t tn_op_default_args(const tn_op_def *op, void *args) {
    uint64_t required = 0;
    char reason[256];
    if (op->args_bytes) memset(args, 0, op->args_bytes);
    for (int i = 0; i < op->n_attrs; i++) {
        if (op->attrs[i].default_text) set_value(&op->attrs[i], args, op->attrs[i].default_text, reason, sizeof reason);
        else required |= UINT64_C(1) << i;
    }
    return required;
}

bool tn_op_set_attr(const tn_op_def *op, void *args, const char *name, const char *text, char *reason, size_t n_bytes) {
    const tn_attr_def *attr = find_attr(op, name);
    if (attr) return set_value(attr, args, text, reason, n_bytes);
    snprintf(reason, n_bytes, "%s has no attribute '%s'", op->name, name);
    return false;
}

/* A JSON value as the text set_value reads; false if the kind can't be right for any attribute. */
static bool json_text(const json_t *value, char *text, size_t n_bytes) {
    size_t at = 0;
    text[0] = '\0';
    if (json_is_boolean(value)) snprintf(text, n_bytes, "%s", json_is_true(value) ? "true" : "false");
    else if (json_is_integer(value)) snprintf(text, n_bytes, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_real(value)) snprintf(text, n_bytes, "%.17g", json_real_value(value));
    else if (json_is_string(value)) snprintf(text, n_bytes, "%s", json_string_value(value));
    else if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value) && at < n_bytes; i++) {
            if (!json_is_integer(json_array_get(value, i))) return false;
            at += (size_t)snprintf(text + at, n_bytes - at, "%s%" JSON_INTEGER_FORMAT, i ? "," : "",
                                   json_integer_value(json_array_get(value, i)));
        }
    } else return false;
    return true;
}

static bool json_kind_fits(const tn_attr_def *attr, const json_t *value) {
    switch (attr->type) {
    case TN_ATTR_BOOL: return json_is_boolean(value);
    case TN_ATTR_INT: return json_is_integer(value);
    case TN_ATTR_FLOAT: return json_is_number(value);
    case TN_ATTR_INT_LIST: return json_is_array(value);
    default: return json_is_string(value);
    }
}

static bool set_from_object(const tn_op_def *op, void *args, json_t *object, uint64_t *required, char *reason, size_t n_bytes) {
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        char text[512];
        const tn_attr_def *attr = find_attr(op, key);
        if (!attr) return tn_op_set_attr(op, args, key, "", reason, n_bytes);
        if (!json_kind_fits(attr, value) || !json_text(value, text, sizeof text)) {
            snprintf(reason, n_bytes, "%s: a JSON value of the wrong kind", key);
            return false;
        }
        if (!set_value(attr, args, text, reason, n_bytes)) return false;
        *required &= ~(UINT64_C(1) << (attr - op->attrs));
    }
    return true;
}

bool tn_op_set_attrs_json(const tn_op_def *op, void *args, const char *json, char *reason, size_t n_bytes) {
    uint64_t required = tn_op_default_args(op, args);
    json_error_t error;
    json_t *object = json_loads(json && *json ? json : "{}", JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(object)) {
        snprintf(reason, n_bytes, "the attributes are not a JSON object: %s",
                 object          ? "another kind of value"
                 : error.text[0] ? error.text
                                 : "the host has no memory left");
        json_decref(object);
        return false;
    }
    bool fine = set_from_object(op, args, object, &required, reason, n_bytes);
    json_decref(object);
    for (int i = 0; fine && i < op->n_attrs; i++)
        if (required >> i & 1) {
            snprintf(reason, n_bytes, "%s needs the attribute %s", op->name, op->attrs[i].name);
            fine = false;
        }
    return fine;
}
