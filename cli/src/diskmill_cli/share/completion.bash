# Completion of diskmill in bash. Read by bash-completion from share/bash-completion/completions, or by hand:
#   eval "$(diskmill --show-completion bash)"
_diskmill() {
    local line word cut files= IFS=$'\n'
    COMPREPLY=()
    # The word up to the last break that bash sees in it stays; what we are given is for the whole word.
    cut=${COMP_LINE:0:COMP_POINT}
    cut=${cut##*[[:space:]]}
    cut=${cut:0:${#cut}-${#2}}
    case $2 in [=:]) cut+=$2 ;; esac
    for line in $(_DISKMILL_COMPLETE=bash COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT "$1" 2>/dev/null); do
        word=${line%%$'\t'*}
        if [[ $word == :files* ]]; then
            files=1
        else
            COMPREPLY+=("${word#"$cut"}")
        fi
    done
    if [[ $files ]]; then
        compopt -o filenames
        word=$2
        case $word in [=:]) word= ;; esac
        COMPREPLY+=($(compgen -f -- "$word"))
    elif [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace
    fi
}
complete -F _diskmill diskmill
