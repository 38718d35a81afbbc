#compdef diskmill
# Completion of diskmill in zsh: found in share/zsh/site-functions, or by hand:
#   eval "$(diskmill --show-completion zsh)"
_diskmill() {
    local line word prefix
    local -a open done
    for line in ${(f)"$(_DISKMILL_COMPLETE=zsh ${words[1]} "${(@Q)words[2,CURRENT]}" 2>/dev/null)"}; do
        word=${line%%$'\t'*}
        if [[ $word == :files* ]]; then
            prefix=${${word#:files}# }
            compset -P ${(b)prefix}
            _files
        elif [[ $word == *= ]]; then
            open+=(${word//:/\\:}:${${line#*$'\t'}:#$line})
        else
            done+=(${word//:/\\:}:${${line#*$'\t'}:#$line})
        fi
    done
    if (( $#open )); then _describe -o value open -S ''; fi
    if (( $#done )); then _describe -o value done; fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _diskmill "$@"
else
    compdef _diskmill diskmill
fi
