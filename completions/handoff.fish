# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_handoff_global_optspecs
    string join \n verbose h/help V/version
end

function __fish_handoff_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_handoff_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_handoff_using_subcommand
    set -l cmd (__fish_handoff_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c handoff -n "__fish_handoff_needs_command" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_needs_command" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_needs_command" -s V -l version -d 'Print version'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "demo" -d 'Swap a store under load, with good and bad releases and kills in the middle, and count what clients see'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "swap" -d 'Replace the running daemon\'s binary by PROG, or leave everything as it was'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "supervise" -d 'Be the one process that a service manager watches: hold the sockets, start the daemon, swap it when asked, and stay'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "trigger" -d 'Ask a supervisor for a swap, and wait for the verdict'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "status" -d 'Show what is running: the daemon, its lock, its sockets and a handoff in progress'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "doctor" -d 'Say what would go wrong, before it does'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "commit" -d 'Pass a sealed lease on to the successor that waits, or end a bake early and keep the successor'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "abort" -d 'Undo the handoff in progress, or a bake: the incumbent serves again'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "hold-fds" -d 'Open listening sockets and become the next program, which has them'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "lock" -d 'Take a data directory\'s lock and become the next program, which has it'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "drain" -d 'Take the lease, drain and seal the daemon, and become the next program, which holds the lease'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "seal" -d 'Seal a daemon that is drained, on an inherited lease: its data is final, and its lock free'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "exec-successor" -d 'Become the daemon\'s new program, or start it'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "journal" -d 'Begin and keep the journal, and ask it what happened, what is current and where the time went'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "wrap" -d 'Run a daemon that knows nothing of handoff, and let it take part in swaps'
complete -c handoff -n "__fish_handoff_needs_command" -f -a "kvd" -d 'Run a small key-value store that redis-cli can talk to, and that can be handed over while it serves'
complete -c handoff -n "__fish_handoff_using_subcommand demo" -l seconds -d 'Take about so long' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand demo" -l clients -d 'Make requests from so many clients, each with a connection for each request' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand demo" -l data-dir -d 'Keep the data in this directory, which must be new or empty [default: one in the temporary directory]' -r -f -a "(__fish_complete_directories)"
complete -c handoff -n "__fish_handoff_using_subcommand demo" -l json -d 'Print one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand demo" -l keep -d 'Leave the data, the journal and the processes\' messages there'
complete -c handoff -n "__fish_handoff_using_subcommand demo" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand demo" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l control -d 'Ask the daemon at this Unix socket' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l journal -d 'Write what happens to this journal' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l drain-grace -d 'Give the daemon so long to finish what is in flight' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l deadline -d 'Undo the swap if PROG is not ready so long after the drain began' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l warm-up-limit -d 'Undo the swap if PROG is not warm after so long; the daemon serves meanwhile' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l stand-by -d 'Take the service back if PROG does not serve so long after it was granted' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l bake -d 'Let PROG serve on trial for so long, while the daemon stands by to take over again' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l health -d 'Run this through `sh -c` again and again during the bake, and undo the swap when it fails' -r -f -a "(__fish_complete_command)"
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l health-interval -d 'Wait so long between two health checks' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l health-timeout -d 'Take a health check that runs longer than this for failed' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l env -d 'Set a variable in PROG\'s environment, which is otherwise that of this command; may be repeated' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l output -d 'Where PROG\'s standard output and error go' -r -f -a "daemon\t'Where the running daemon\'s go, so that this command can end and its terminal can be closed'
own\t'Where this command\'s go'"
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l cgroup -d 'Start PROG in this control group, which must be for it alone' -r -f -a "(__fish_complete_directories)"
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l progress -d 'Show on standard error how it goes: auto is only on a terminal' -r -f -a "auto\t'On a terminal'
always\t'Also elsewhere, a line for each phase'
never\t'Not at all'"
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l no-reuse-args -d 'Start PROG without arguments if none are given, instead of with the daemon\'s'
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l step -d 'Pause between the phases, and ask at the terminal: continue, status, shell or abort'
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l dry-run -d 'Check all that can be checked, change nothing, and say what would stand in the way'
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l json -d 'Print the outcome as one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand swap" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand swap" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c handoff -n "__fish_handoff_using_subcommand supervise" -l config -d 'Read this configuration, handoff.toml by custom; SIGHUP reads it again' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand supervise" -l control -d 'Have the daemon\'s control socket at this path' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand supervise" -l trigger -d 'Be asked at this path [default: trigger beside the control socket]' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand supervise" -l data-dir -d 'Have the daemon\'s data in this directory' -r -f -a "(__fish_complete_directories)"
complete -c handoff -n "__fish_handoff_using_subcommand supervise" -l journal -d 'Write what happens to this journal [default: journal in the data directory]' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand supervise" -l listen -d 'Hold a socket and call it NAME, as hold-fds does; may be given several times' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand supervise" -l ready-fd -d 'Write a newline to this descriptor once the first daemon is ready, as s6 expects' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand supervise" -l check -d 'Check all that can be checked, change nothing, and print the configuration that counts'
complete -c handoff -n "__fish_handoff_using_subcommand supervise" -l json -d 'Print what --check says as one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand supervise" -l ignore-record -d 'Start the program that is named here, whatever the owner record says'
complete -c handoff -n "__fish_handoff_using_subcommand supervise" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand supervise" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c handoff -n "__fish_handoff_using_subcommand trigger" -l trigger -d 'Ask the supervisor at this Unix socket [default: trigger beside the socket that HANDOFF_CONTROL names]' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand trigger" -l bake -d 'Let PROG serve on trial for so long, 0 for no trial [default: as configured]' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand trigger" -l timeout -d 'Wait no longer than this for the verdict [default: for ever]; for --status 5s' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand trigger" -l progress -d 'Show on standard error how it goes: auto is only on a terminal' -r -f -a "auto\t'On a terminal'
always\t'Also elsewhere, a line for each phase'
never\t'Not at all'"
complete -c handoff -n "__fish_handoff_using_subcommand trigger" -l queue -d 'Wait for what goes on, instead of being told that the supervisor is busy'
complete -c handoff -n "__fish_handoff_using_subcommand trigger" -l reexec -d 'Have the supervisor become its own program anew, with the same pid, sockets and daemon'
complete -c handoff -n "__fish_handoff_using_subcommand trigger" -l status -d 'Show what the supervisor does'
complete -c handoff -n "__fish_handoff_using_subcommand trigger" -l json -d 'Print the outcome as one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand trigger" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand trigger" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c handoff -n "__fish_handoff_using_subcommand status" -l control -d 'Ask the daemon at this Unix socket [default: control in the data directory]' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand status" -l data-dir -d 'Look into this data directory if nobody answers' -r -f -a "(__fish_complete_directories)"
complete -c handoff -n "__fish_handoff_using_subcommand status" -l timeout -d 'Wait so long for an answer' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand status" -l journal -d 'With --metrics: count the handoffs of this journal and its old files' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand status" -l trigger -d 'With --metrics: ask the supervisor at this Unix socket too' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand status" -l json -d 'Print one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand status" -l metrics -d 'Print OpenMetrics text, for Prometheus and its like'
complete -c handoff -n "__fish_handoff_using_subcommand status" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand status" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand doctor" -l config -d 'Look at this configuration of handoff supervise, and at what it names' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand doctor" -l control -d 'Look at this control socket' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand doctor" -l trigger -d 'Look at this trigger socket' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand doctor" -l data-dir -d 'Look at this data directory: its file system and its owner record' -r -f -a "(__fish_complete_directories)"
complete -c handoff -n "__fish_handoff_using_subcommand doctor" -l journal -d 'Look at this journal' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand doctor" -l unit -d 'Look at this unit of systemd and its drop-ins; may be given several times' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand doctor" -l service -d 'Look at this service directory of runit or s6; may be given several times' -r -f -a "(__fish_complete_directories)"
complete -c handoff -n "__fish_handoff_using_subcommand doctor" -l wrapper -d 'Run this command, to the end of the line, with a probe as the program behind it: do descriptors, pid, environment and signals arrive?' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand doctor" -l json -d 'Print one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand doctor" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand commit" -l control -d 'Ask the daemon at this Unix socket' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand commit" -l timeout -d 'Wait so long for the verdict' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand commit" -l progress -d 'Show on standard error how it goes: auto is only on a terminal' -r -f -a "auto\t'On a terminal'
always\t'Also elsewhere, a line for each phase'
never\t'Not at all'"
complete -c handoff -n "__fish_handoff_using_subcommand commit" -l json -d 'Print the verdict as one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand commit" -l until-serving -d 'On an inherited lease with a bake time, return as soon as the successor serves on trial'
complete -c handoff -n "__fish_handoff_using_subcommand commit" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand commit" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c handoff -n "__fish_handoff_using_subcommand abort" -l control -d 'Ask the daemon at this Unix socket' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand abort" -l timeout -d 'Wait so long for the verdict' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand abort" -l reason -d 'Have this written down as the reason' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand abort" -l json -d 'Print the verdict as one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand abort" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand abort" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l listen -d 'Bind a socket and call it NAME; may be given several times' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l from -d 'Fetch copies of the sockets of the holder at this path; with --listen, bind where there is none' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l forget -d 'Make the holder close this socket; may be given several times' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l store -d 'Give copies of the sockets to the holder at this path' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l serve -d 'Stay, and give copies of the sockets to those that come to this path' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l allow -d 'Let this user, or :GROUP, list sockets and have copies, beside root and the holder\'s own user' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l allow-store -d 'Let this user, or :GROUP, store and remove sockets too' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l ready-fd -d 'Write a newline to this descriptor and close it when the holder is ready, as s6 expects' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l name -d 'Call the socket that came as OLD by this name: its name, its number or its address' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l only -d 'Pass on this socket and no other; may be given several times' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l as -d 'Tell the program of its sockets so: listen-fds (the default), server-starter, einhorn, s6 or nginx; may be given several times' -r -f -a "listen-fds\t''
server-starter\t''
einhorn\t''
s6\t''
nginx\t''"
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l fd -d 'Put a socket at this descriptor' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l stdin -d 'Make a socket the program\'s standard input' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l control -d 'The control socket of the daemon that serves [default: control in the data directory]' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l timeout -d 'Wait so long for an answer' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l inherit -d 'Take the sockets that a service manager passed, and make sure that they listen'
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l from-incumbent -d 'Fetch copies of the sockets of the daemon that serves; with --listen, bind where none does'
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l list -d 'Print what the holder has: name, kind, address'
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l json -d 'Print one JSON array'
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l replace -d 'Let those that are stored take the place of others of their names'
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand hold-fds" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand lock" -l wait -d 'Wait so long while another process has the lock, or `forever`, instead of failing at once' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand lock" -l lock-file -d 'The lock file\'s name in the directory, where the daemon has chosen one of its own' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand lock" -l progress -d 'Show who is waited for: auto is only on a terminal' -r -f -a "auto\t'On a terminal'
always\t'Also elsewhere, a line for each phase'
never\t'Not at all'"
complete -c handoff -n "__fish_handoff_using_subcommand lock" -l allow-network-fs -d 'Take a lock on a network file system, which only one machine may ever mount'
complete -c handoff -n "__fish_handoff_using_subcommand lock" -l who -d 'Print who has the lock'
complete -c handoff -n "__fish_handoff_using_subcommand lock" -l json -d 'Print one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand lock" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand lock" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c handoff -n "__fish_handoff_using_subcommand drain" -l control -d 'Ask the daemon at this Unix socket' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand drain" -l progress -d 'Show on standard error how it goes: auto is only on a terminal' -r -f -a "auto\t'On a terminal'
always\t'Also elsewhere, a line for each phase'
never\t'Not at all'"
complete -c handoff -n "__fish_handoff_using_subcommand drain" -l grace -d 'Give the daemon so long to finish what is in flight [default: 25s]' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand drain" -l deadline -d 'Undo the handoff if no successor is ready so long after the drain began [default: 60s]' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand drain" -l stand-by -d 'Take the service back if the successor does not serve so long after it was granted [default: 10s]' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand drain" -l bake -d 'Let the successor serve on trial for so long, while the daemon stands by to take over again' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand drain" -l json -d 'Print what came of it as one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand drain" -l no-seal -d 'Stop between the drain and the seal'
complete -c handoff -n "__fish_handoff_using_subcommand drain" -l exit -d 'Let the daemon end without a successor: a planned stop'
complete -c handoff -n "__fish_handoff_using_subcommand drain" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand drain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c handoff -n "__fish_handoff_using_subcommand seal" -l control -d 'Ask the daemon at this Unix socket' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand seal" -l progress -d 'Show on standard error how it goes: auto is only on a terminal' -r -f -a "auto\t'On a terminal'
always\t'Also elsewhere, a line for each phase'
never\t'Not at all'"
complete -c handoff -n "__fish_handoff_using_subcommand seal" -l json -d 'Print what came of it as one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand seal" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand seal" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -l control -d 'Ask the daemon at this Unix socket' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -l progress -d 'Show on standard error how it goes: auto is only on a terminal' -r -f -a "auto\t'On a terminal'
always\t'Also elsewhere, a line for each phase'
never\t'Not at all'"
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -l warm-up-limit -d 'Undo the handoff if PROG is not warm after so long' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -l env -d 'Set a variable in PROG\'s environment, which is otherwise that of this command; may be repeated' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -l output -d 'Where PROG\'s standard output and error go, where it is started' -r -f -a "daemon\t'Where the running daemon\'s go, so that this command can end and its terminal can be closed'
own\t'Where this command\'s go'"
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -l cgroup -d 'Start PROG in this control group, which must be for it alone' -r -f -a "(__fish_complete_directories)"
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -l via -d 'Have the supervisor at this trigger socket start PROG, as its own child; with --warm or --wait' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -l json -d 'Print what came of it as one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -l warm -d 'Start PROG, wait until it is warm, and become the program after `--`'
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -l wait -d 'Start PROG on a sealed lease, and wait for the verdict'
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -l no-reuse-args -d 'Start PROG without arguments if none are given, instead of with the daemon\'s'
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand exec-successor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and not __fish_seen_subcommand_from begin record show current timeline resume repair" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and not __fish_seen_subcommand_from begin record show current timeline resume repair" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and not __fish_seen_subcommand_from begin record show current timeline resume repair" -f -a "begin" -d 'Hold the journal, record that a handoff begins, and become the next program, which has the journal'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and not __fish_seen_subcommand_from begin record show current timeline resume repair" -f -a "record" -d 'Write a note or a phase of one\'s own into the journal, and become the next program, if one follows'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and not __fish_seen_subcommand_from begin record show current timeline resume repair" -f -a "show" -d 'Show what happened, one line an event'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and not __fish_seen_subcommand_from begin record show current timeline resume repair" -f -a "current" -d 'Show which program is current, and which evidence says so'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and not __fish_seen_subcommand_from begin record show current timeline resume repair" -f -a "timeline" -d 'Show where the time of a handoff went'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and not __fish_seen_subcommand_from begin record show current timeline resume repair" -f -a "resume" -d 'Find out how the handoff ended in whose middle a driver died, and write it down'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and not __fish_seen_subcommand_from begin record show current timeline resume repair" -f -a "repair" -d 'Move the damaged parts of a journal into files beside it, and keep every sound record'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from begin" -l journal -d 'Write to this journal, and make it if there is none' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from begin" -l control -d 'Ask the daemon at this Unix socket who it is' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from begin" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from begin" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from record" -l journal -d 'Write to this journal [default: HANDOFF_JOURNAL, or the one that the chain holds]' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from record" -l note -d 'Write a note' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from record" -l phase -d 'Write that a phase was reached: it becomes a part of the timeline' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from record" -l handoff -d 'Write it to this handoff [default: HANDOFF_ID, or to none]' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from record" -l wait -d 'Wait so long, or `forever`, for a journal that another driver holds' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from record" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from record" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from show" -l journal -d 'Read this journal' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from show" -l handoff -d 'Show only this handoff, by its id or the beginning of it' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from show" -s f -l follow -d 'Go on showing what is added'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from show" -l json -d 'Print each record as it stands in the file, a JSON object a line'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from show" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from current" -l journal -d 'Read this journal' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from current" -l data-dir -d 'Read the owner record in this data directory [default: the one that the daemon or the journal names]' -r -f -a "(__fish_complete_directories)"
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from current" -l control -d 'Ask the daemon at this Unix socket which data directory it has' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from current" -l json -d 'Print one JSON object'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from current" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from current" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from timeline" -l journal -d 'Read this journal' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from timeline" -l svg -d 'Write a picture to this file' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from timeline" -l trace -d 'Write all handoffs to this file, for a viewer of trace events' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from timeline" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from timeline" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from resume" -l journal -d 'Read this journal' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from resume" -l control -d 'Ask the daemon at this Unix socket [default: the one that the journal names]' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from resume" -l wait -d 'Ask for so long about a handoff that is still going on' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from resume" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from resume" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from repair" -l journal -d 'Repair this journal' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from repair" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand journal; and __fish_seen_subcommand_from repair" -s h -l help -d 'Print help'
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l control -d 'Answer drivers on this Unix socket [default: control in the data directory]' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l data-dir -d 'The directory that the daemon writes to, where the lock and the owner record are; with --overlap, one for this command alone' -r -f -a "(__fish_complete_directories)"
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l listen -d 'Bind a socket and call it NAME, unless it is inherited; may be given several times' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l fd -d 'Put a socket at this descriptor' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l stdin -d 'Make a socket the daemon\'s standard input' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l env -d 'Set a variable for the daemon; may be given several times' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l drain -d 'Ask the daemon to end by these signals, with times to wait in between: QUIT,5s,TERM. With KILL at the end, what is left is killed' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l drain-cmd -d 'Ask the daemon to end by this command, for sh -c, which has its pid in HANDOFF_PID' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l ready -d 'What must hold before the daemon serves; may be given several times [default: tcp and unix, for the listeners there are]' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l ready-timeout -d 'How long the daemon may take to be ready' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l check -d 'Before the incumbent drains, run this command, for sh -c, with the daemon\'s sockets and variables; it must succeed' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l health -d 'While it serves on trial, probe the daemon so again and again; a failure undoes the trial' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l health-interval -d 'Between two probes of --health' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l health-timeout -d 'How long a probe of --health may take; one that takes longer has failed' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l stop-grace -d 'How long the daemon has to end when this command is asked to stop, before it is killed' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l version-label -d 'Call this build so in handoffs [default: the daemon\'s build id]' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l ready-fd -d 'Write a newline to this descriptor and close it when the daemon serves, as s6 expects' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l no-listen-fds -d 'Do not tell the daemon of its sockets by LISTEN_FDS'
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l overlap -d 'Start the daemon before the incumbent\'s drains: for daemons without data of their own'
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l take-over -d 'Where a daemon has the lock whose own wrap was killed, end it as --drain says, and start'
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand wrap" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c handoff -n "__fish_handoff_using_subcommand kvd" -l listen -d 'Listen on this address' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand kvd" -l data-dir -d 'Keep the data in this directory' -r -f -a "(__fish_complete_directories)"
complete -c handoff -n "__fish_handoff_using_subcommand kvd" -l control -d 'Answer drivers on this Unix socket [default: control in the data directory]' -r -F
complete -c handoff -n "__fish_handoff_using_subcommand kvd" -l name -d 'Call the listening socket this in the fd table' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand kvd" -l shards -d 'Count revisions in so many shards; must be what the data directory has, if it has any' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand kvd" -l max-clients -d 'Accept so many connections at a time' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand kvd" -l max-memory -d 'Refuse writes when the data takes more than this' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand kvd" -l version-label -d 'Call this build so in INFO and in handoffs' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand kvd" -l compact-from -d 'Compact a log of at least so many bytes when less than half of it is live' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand kvd" -l fail -d 'Fail on purpose, for demonstrations and tests: crash-at-start, exit-while-warm, hang-while-warm, crash-after-begin, hang-after-begin, slow-open-ms=N, stale, unhealthy, crash-when-ready, crash-after-serving-ms=N, slow-drain-ms=N, slow-seal-ms=N, fail-drain, fail-seal, lose-a-write' -r -f
complete -c handoff -n "__fish_handoff_using_subcommand kvd" -l verbose -d 'Say what goes on, on standard error; RUST_LOG chooses more finely'
complete -c handoff -n "__fish_handoff_using_subcommand kvd" -s h -l help -d 'Print help (see more with \'--help\')'

# Whether the option (2) of the command (1) takes a value.
function __handoff_takes_value
    switch "$argv[1],$argv[2]"
        case 'demo,--seconds' 'demo,--clients' 'demo,--data-dir'
            return 0
        case 'swap,--control' 'swap,--journal' 'swap,--drain-grace' 'swap,--deadline' 'swap,--warm-up-limit' 'swap,--stand-by' 'swap,--bake' 'swap,--health' 'swap,--health-interval' 'swap,--health-timeout' 'swap,--env' 'swap,--output' 'swap,--cgroup' 'swap,--progress'
            return 0
        case 'supervise,--config' 'supervise,--control' 'supervise,--trigger' 'supervise,--data-dir' 'supervise,--journal' 'supervise,--listen' 'supervise,--ready-fd'
            return 0
        case 'trigger,--trigger' 'trigger,--bake' 'trigger,--timeout' 'trigger,--progress'
            return 0
        case 'status,--control' 'status,--data-dir' 'status,--timeout' 'status,--journal' 'status,--trigger'
            return 0
        case 'doctor,--config' 'doctor,--control' 'doctor,--trigger' 'doctor,--data-dir' 'doctor,--journal' 'doctor,--unit' 'doctor,--service' 'doctor,--wrapper'
            return 0
        case 'commit,--control' 'commit,--timeout' 'commit,--progress'
            return 0
        case 'abort,--control' 'abort,--timeout' 'abort,--reason'
            return 0
        case 'hold-fds,--listen' 'hold-fds,--from' 'hold-fds,--forget' 'hold-fds,--store' 'hold-fds,--serve' 'hold-fds,--allow' 'hold-fds,--allow-store' 'hold-fds,--ready-fd' 'hold-fds,--name' 'hold-fds,--only' 'hold-fds,--as' 'hold-fds,--fd' 'hold-fds,--stdin' 'hold-fds,--control' 'hold-fds,--timeout'
            return 0
        case 'lock,--wait' 'lock,--lock-file' 'lock,--progress'
            return 0
        case 'drain,--control' 'drain,--progress' 'drain,--grace' 'drain,--deadline' 'drain,--stand-by' 'drain,--bake'
            return 0
        case 'seal,--control' 'seal,--progress'
            return 0
        case 'exec-successor,--control' 'exec-successor,--progress' 'exec-successor,--warm-up-limit' 'exec-successor,--env' 'exec-successor,--output' 'exec-successor,--cgroup' 'exec-successor,--via'
            return 0
        case 'journal begin,--journal' 'journal begin,--control'
            return 0
        case 'journal record,--journal' 'journal record,--note' 'journal record,--phase' 'journal record,--handoff' 'journal record,--wait'
            return 0
        case 'journal show,--journal' 'journal show,--handoff'
            return 0
        case 'journal current,--journal' 'journal current,--data-dir' 'journal current,--control'
            return 0
        case 'journal timeline,--journal' 'journal timeline,--svg' 'journal timeline,--trace'
            return 0
        case 'journal resume,--journal' 'journal resume,--control' 'journal resume,--wait'
            return 0
        case 'journal repair,--journal'
            return 0
        case 'wrap,--control' 'wrap,--data-dir' 'wrap,--listen' 'wrap,--fd' 'wrap,--stdin' 'wrap,--env' 'wrap,--drain' 'wrap,--drain-cmd' 'wrap,--ready' 'wrap,--ready-timeout' 'wrap,--check' 'wrap,--health' 'wrap,--health-interval' 'wrap,--health-timeout' 'wrap,--stop-grace' 'wrap,--version-label' 'wrap,--ready-fd'
            return 0
        case 'kvd,--listen' 'kvd,--data-dir' 'kvd,--control' 'kvd,--name' 'kvd,--shards' 'kvd,--max-clients' 'kvd,--max-memory' 'kvd,--version-label' 'kvd,--compact-from' 'kvd,--fail'
            return 0
        case '*'
            return 1
    end
end

# What the command's (1) operand of this number (2) is: a command, a program, a directory, a file, or something else.
function __handoff_operand
    switch "$argv[1],$argv[2]"
        case ',demo' ',swap' ',supervise' ',trigger' ',status' ',doctor' ',commit' ',abort' ',hold-fds' ',lock' ',drain' ',seal' ',exec-successor' ',journal' ',wrap' ',kvd' 'journal,begin' 'journal,record' 'journal,show' 'journal,current' 'journal,timeline' 'journal,resume' 'journal,repair'
            echo command
        case 'swap,0' 'supervise,0' 'trigger,0' 'status,0' 'commit,0' 'abort,0' 'hold-fds,0' 'lock,1' 'drain,0' 'seal,0' 'exec-successor,0' 'journal begin,0' 'journal record,0' 'wrap,0'
            echo program
        case 'lock,0'
            echo directory
        case 'swap,1' 'supervise,1' 'trigger,1' 'journal repair,0'
            echo file
        case '*'
            return 1
    end
end

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
