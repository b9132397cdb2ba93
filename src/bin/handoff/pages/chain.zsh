
# The program that follows a link is completed as it would be completed alone.
_handoff() {
    local link= dashes= word REPLY
    integer at=2 count=0
    while ((at < CURRENT)); do
        word=$words[at]
        if [[ -z $dashes && $word == -- ]]; then
            dashes=yes
        elif [[ -z $dashes && $word == -?* ]]; then
            [[ $word == *=* ]] || ! _handoff_takes_value "$link" "$word" || ((at += 1))
        elif _handoff_operand "$link" "$word" && [[ $REPLY == command ]]; then
            link+=${link:+ }$word
        elif _handoff_operand "$link" "$count" && [[ $REPLY == program ]]; then
            if [[ $link == exec-successor ]] && ((${words[(I)--warm]} && ${words[(I)--warm]} < at)); then
                # A successor that is started is followed by one more program.
                integer behind=$words[(ib:at:)--]
                ((behind >= CURRENT)) || ((at = behind + 1))
            fi
            ((at < CURRENT)) || break
            words=("${(@)words[at,-1]}")
            ((CURRENT -= at - 1))
            _normal
            return
        else
            ((count += 1))
        fi
        ((at += 1))
    done
    if ((at == CURRENT)) && [[ -n $dashes || $words[CURRENT] != -* ]] && _handoff_operand "$link" "$count"; then
        case $REPLY in
            program) _alternative 'commands:command:_command_names -e' 'files:file:_files' ;;
            directory) _files -/ ;;
            *) _files ;;
        esac
        return
    fi
    _handoff_link "$@"
}

if [[ $funcstack[1] == _handoff ]]; then
    _handoff "$@"
else
    compdef _handoff handoff
fi
