# Completion of diskmill in fish: found in share/fish/vendor_completions.d, or by hand:
#   diskmill --show-completion fish | source
function __diskmill_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in (_DISKMILL_COMPLETE=fish $words[1] $words[2..-1] 2>/dev/null)
        if string match -q ':files*' -- $line
            set -l prefix (string replace -r '^:files ?' '' -- $line)
            for path in (__fish_complete_path (string replace -- "$prefix" '' (commandline -ct)))
                echo $prefix$path
            end
        else
            echo $line
        end
    end
end
complete -c diskmill -f -a '(__diskmill_complete)'
