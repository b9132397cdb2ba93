# The program that follows a link is completed as it would be completed alone.
_handoff_chain() {
    local path= dashes= behind= at=1 count=0 word REPLY
    while ((at < COMP_CWORD)); do
        word=${COMP_WORDS[at]}
        if [[ -z $dashes && $word == -- ]]; then
            dashes=yes
        elif [[ -z $dashes && $word == -?* ]]; then
            if [[ ${COMP_WORDS[at + 1]} == '=' ]]; then
                ((at += 2))
            elif _handoff_takes_value "$path" "$word"; then
                ((at += 1))
            fi
        elif _handoff_operand "$path" "$word" && [[ $REPLY == command ]]; then
            path+=${path:+ }$word
        elif _handoff_operand "$path" "$count" && [[ $REPLY == program ]]; then
            _handoff_behind_successor "$at" "$path"
            break
        else
            ((count += 1))
            # Bash splits words at colons and equals signs; an address is one word.
            while [[ ${COMP_WORDS[at + 1]} == [:=]* ]] && ((at + 1 < COMP_CWORD)); do
                ((at += 2))
            done
        fi
        ((at += 1))
    done
    if ((at == COMP_CWORD)) && [[ $REPLY == program && -n $behind ]]; then
        _handoff_complete_operand program "$2"
    elif ((at < COMP_CWORD)); then
        _handoff_delegate "$at"
    elif ((at > COMP_CWORD)) || [[ -z $dashes && $2 == -* ]] || ! _handoff_operand "$path" "$count"; then
        _handoff "$@"
    else
        _handoff_complete_operand "$REPLY" "$2"
    fi
}

# A successor that is started is followed by one more program: moves `at` ($1) to it if that has begun.
_handoff_behind_successor() {
    local k
    [[ $2 == exec-successor && " ${COMP_WORDS[*]:0:$1} " == *' --warm '* ]] || return
    for ((k = $1 + 1; k < COMP_CWORD; k++)); do
        if [[ ${COMP_WORDS[k]} == -- ]]; then
            at=$((k + 1)) behind=yes
            return
        fi
    done
}

# Completes a word ($2) of this kind ($1).
_handoff_complete_operand() {
    local IFS=$'\n'
    case $1 in
        program) COMPREPLY=($(compgen -c -- "$2")) ;;
        directory) COMPREPLY=($(compgen -d -- "$2")) ;;
        *) COMPREPLY=($(compgen -f -- "$2")) ;;
    esac
    compopt -o filenames
}

# Completes the command that begins at this word ($1).
_handoff_delegate() {
    if [[ ${COMP_WORDS[$1]##*/} == handoff ]]; then
        local words=("${COMP_WORDS[@]:$1}") cword=$((COMP_CWORD - $1))
        local COMP_WORDS=("${words[@]}") COMP_CWORD=$cword
        _handoff_chain "${words[0]}" "${words[cword]}" "${words[cword - 1]}"
    elif declare -F _comp_command_offset >/dev/null; then
        _comp_command_offset "$1"
    elif declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    else
        COMPREPLY=()
    fi
}

complete -F _handoff_chain -o bashdefault -o default handoff
