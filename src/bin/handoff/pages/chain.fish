# Prints where the words before the cursor end that are a link's own (the number of the word behind them), and what kind of
# operand belongs there.
function __handoff_place
    set -l words (commandline -opc)
    set -l link ''
    set -l dashes ''
    set -l count 0
    set -l at 2
    while test $at -le (count $words)
        set -l word $words[$at]
        if test -z "$dashes" -a "$word" = --
            set dashes yes
        else if test -z "$dashes"; and string match -q -- '-?*' "$word"
            if not string match -q -- '*=*' "$word"; and __handoff_takes_value "$link" "$word"
                set at (math $at + 1)
            end
        else if test "$(__handoff_operand "$link" "$word")" = command
            set link (string trim "$link $word")
        else if test "$(__handoff_operand "$link" $count)" = program
            if test "$link" = exec-successor; and contains -- --warm $words[1..$at]
                # A successor that is started is followed by one more program.
                set -l behind (contains --index -- -- $words[$at..-1])
                and set at (math $at + $behind)
            end
            break
        else
            set count (math $count + 1)
        end
        set at (math $at + 1)
    end
    echo $at
    if test $at -gt (count $words) -a -z "$dashes"; and string match -q -- '-*' (commandline -ct)
        return
    end
    # Behind an option that takes a value, the cursor is at that value.
    test $at -le (math (count $words) + 1)
    and __handoff_operand "$link" $count
end

# Whether an operand of this kind belongs to the place of the cursor.
function __handoff_at
    set -l place (__handoff_place)
    test "$place[2]" = $argv[1]
end

# Completes the program that follows a link, and its arguments, as they would be completed alone.
function __handoff_complete_program
    set -l words (commandline -opc)
    set -l place (__handoff_place)
    set -l before
    test $place[1] -le (count $words)
    and set before (string escape -- $words[$place[1]..-1])
    complete -C "$(string join ' ' -- $before (commandline -ct))"
end

# A link's own options end where the program begins.
functions --copy __fish_handoff_using_subcommand __handoff_using_subcommand
function __fish_handoff_using_subcommand
    not __handoff_at program
    and __handoff_using_subcommand $argv
end

complete -c handoff -n '__handoff_at program' -x -a '(__handoff_complete_program)'
complete -c handoff -n '__handoff_at directory' -x -a '(__fish_complete_directories)'
