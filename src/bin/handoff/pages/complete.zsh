# Prints what zsh offers where a line ($1) ends, with the completions in a directory ($2).
zmodload zsh/zpty zsh/system
offers=$(mktemp) && trap 'zpty -d shell; rm -f $offers' EXIT
zpty shell zsh --no-rcs --interactive
zpty -w shell "fpath=(${(q)2} \$fpath); autoload -Uz compinit && compinit -u -D; offers=${(q)offers}"
# Completion functions hand their candidates to compadd, except where they only ask it which of them would match.
zpty -w shell 'compadd() {
    local -a hits
    [[ "${(j: :)@[1,(i)--]}" == *-[OAD]* ]] || { builtin compadd -A hits "$@"; print -lr -- $hits >>$offers }
    builtin compadd "$@"
}'
zpty -w shell 'finish() { print -r -- --end-- >>$offers }; zle -N finish; bindkey "^I" complete-word "^T" finish'
zpty -w -n shell "$1"$'\t'$'\t'
integer left=6000
while ! grep -q -- --end-- $offers; do
    # What it shows has to be read, or it waits; a key that came before the prompt is lost, so it is sent again.
    while zpty -r -t shell shown; do :; done
    zpty -w -n shell $'\C-t'
    sleep 0.01
    ((left -= 1)) || exit 9
done
grep -v -e --end-- -e "^$" $offers | sort -u
exit 0
