# bash completion of Tenon's programs. Options and their values come from what PROGRAM --help says, names of ops, samples and tables
# from --list, so nothing here has to follow the programs.

# The name and argument of each option: "--name ARGUMENT".
_tenon_options() { "$1" --help 2>/dev/null </dev/null | sed -n 's/^  \(--[a-z0-9_-]*\)/\1/p'; }

# What may stand where neither an option nor its value does.
_tenon_arguments() {
    case ${1##*/} in
    tenon-op) "$1" --list 2>/dev/null </dev/null | sed -n 's/^\([a-z][a-z0-9_]*\): .*/\1/p' ;;
    tenon-gradcheck) "$1" --list 2>/dev/null </dev/null | sed 's,/.*,,' | uniq ;;
    tenon-bench) "$1" --list 2>/dev/null </dev/null | sed 's/[ :].*//' ;;
    esac
}

# _tenon_value PROGRAM OPTION WORD: what the value of an option may be.
_tenon_value() {
    local argument
    argument=$(_tenon_options "$1" | sed -n "s/^$2 //p")
    case $argument in
    *'|'*) compgen -W "${argument//|/ }" -- "$3" ;;
    FILE) compgen -f -- "$3" ;;
    DIR | FOLDER) compgen -d -- "$3" ;;
    D) compgen -W 'auto cpu cuda' -- "$3" ;;
    NAME) [ "$2" = --op ] && compgen -W "$(_tenon_arguments "$(command -v tenon-op)")" -- "$3" ;;
    esac
}

_tenon() {
    local program=$1 word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} option='' line
    COMPREPLY=()
    # bash splits --name=value into three words.
    if [ "$word" = = ]; then option=$before word=''
    elif [ "$before" = = ]; then option=${COMP_WORDS[COMP_CWORD - 2]}
    elif [[ $before == --* ]] && _tenon_options "$program" | grep -q -- "^$before "; then option=$before
    fi
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(
        if [ -n "$option" ]; then _tenon_value "$program" "$option" "$word"
        elif [[ $word == -* ]]; then compgen -W "$(_tenon_options "$program" | sed 's/ .*//')" -- "$word"
        elif [[ " ${COMP_WORDS[*]} " == *' --check '* ]]; then compgen -f -- "$word"
        else compgen -W "$(_tenon_arguments "$program")" -- "$word"
        fi
    )
}

complete -o filenames -F _tenon tenon-train tenon-generate tenon-mem tenon-op tenon-gradcheck tenon-bench tenon-demo
