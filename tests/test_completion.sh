#!/usr/bin/env bash
# test_completion.sh FILE: what the completion in FILE offers. test_install.py runs it with the programs on PATH.
set -euo pipefail
# shellcheck disable=SC1090
source "$1"

failed=0
# offers WANTED WORD...: the last word of the line is completed; WANTED (words apart by spaces) must be among what is offered. WANTED may be "nothing".
offers() {
    local wanted=$1 word
    shift
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _tenon "$1"
    for word in $wanted; do
        if [ "$word" = nothing ]; then [ ${#COMPREPLY[@]} -eq 0 ] && continue
        elif [[ " ${COMPREPLY[*]} " == *" $word "* ]]; then continue
        fi
        echo "'$*' offers '${COMPREPLY[*]}', wanted $word" >&2
        failed=1
    done
}

cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
touch input.txt config.json
mkdir runs

if command -v tenon-train >/dev/null; then
    offers '--config --data --steps --help' tenon-train --
    offers '--task --task_vocab --task_noise' tenon-train --task
    offers 'none recall uniform' tenon-train --task ''
    offers 'recall' tenon-train --task = rec
    offers 'cosine constant wsd linear' tenon-train --schedule =
    offers 'input.txt config.json' tenon-train --config ''
    offers 'config.json' tenon-train --config = conf
    offers 'runs' tenon-train --out ''
    offers 'auto cpu cuda' tenon-train --device ''
    offers nothing tenon-train --steps ''
    offers '--checkpoint --prompt --top-k' tenon-generate --
    offers 'runs' tenon-generate --checkpoint r
    offers '--snapshot --width' tenon-mem --
    offers 'linear_attention' tenon-mem --op lin
    offers 'act lrpe linear_attention matmul' tenon-op ''
    offers 'lrpe' tenon-op lr
    offers '--list --in --check' tenon-op --
    offers 'f64 f32 bf16' tenon-op --dtype ''
    offers 'input.txt' tenon-op --check in
    offers 'cross_entropy' tenon-gradcheck cross
    offers '--temperature' tenon-demo --t
fi
if command -v tenon-bench >/dev/null; then
    offers 'softmax-speed-fwd-d1024-bf16' tenon-bench softmax-speed-fwd
    offers '--peers --peers-folder' tenon-bench --peers
fi
complete -p tenon-op >/dev/null || failed=1
exit "$failed"
