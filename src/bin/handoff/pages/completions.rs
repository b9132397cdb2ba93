//! Completions for bash, zsh and fish.
//!
//! What clap_complete makes of the definition knows options and their values. In bash and fish it knows nothing of words
//! without a dash, and would offer a link's options behind the program that follows it. So a part is added there: it finds out
//! where that program begins, and completes it as it would be completed alone, be it `handoff` again.

use std::fmt::Write;
use std::process::Command as Process;

use clap::{Arg, Command, ValueHint};
use clap_complete::Generator;
use clap_complete::aot::{Bash, Fish, Zsh};

use super::{Files, expect_files, root, run_tool};

#[test]
fn the_completions_are_those_of_the_definition() {
    let mut cli = visible(&crate::definition(None)).version(env!("CARGO_PKG_VERSION"));
    cli.build();
    let made = Files::from([
        ("handoff.bash".to_owned(), script(Bash, &cli) + &table(&cli, &BASH) + include_str!("chain.bash")),
        ("_handoff".to_owned(), zsh(&cli) + &table(&cli, &BASH) + include_str!("chain.zsh")),
        ("handoff.fish".to_owned(), script(Fish, &cli) + &table(&cli, &FISH) + include_str!("chain.fish")),
    ]);
    expect_files("completions", &made, |_| true);
}

fn script(shell: impl Generator, cli: &Command) -> String {
    let mut made = vec![];
    clap_complete::generate(shell, &mut cli.clone(), "handoff", &mut made);
    String::from_utf8(made).unwrap()
}

/// Returns the part that completes a link's own words, under a name of its own.
fn zsh(cli: &Command) -> String {
    let made = script(Zsh, cli);
    let (own, call) = made.split_once("\nif [ \"$funcstack[1]\" = \"_handoff\" ]; then\n").unwrap();
    assert!(call.lines().count() == 4, "more than the call would be lost: {call}");
    own.replace("\n_handoff() {\n", "\n_handoff_link() {\n")
}

/// Returns what is to be completed of a definition: what is hidden is not. A value of which nothing is said is no file,
/// as shells would have it.
fn visible(command: &Command) -> Command {
    let hint = |arg: Arg| match arg.get_action().takes_values() && arg.get_value_hint() == ValueHint::Unknown
    {
        true => arg.value_hint(ValueHint::Other),
        false => arg,
    };
    let args = command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned().map(hint);
    let subcommands = command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(visible);
    // clap keeps names for ever.
    let name: &'static str = command.get_name().to_owned().leak();
    Command::new(name)
        .about(command.get_about().cloned().unwrap_or_default())
        .disable_help_subcommand(true)
        .args(args)
        .subcommands(subcommands)
}

/// How a shell writes two functions: one that says whether a command's option takes a value, and one that says what a
/// command's operand is.
struct Dialect {
    takes_value: &'static str,
    operand: &'static str,
    row: fn(keys: &[String], answer: &str) -> String,
    end: &'static str,
}

const BASH: Dialect = Dialect {
    takes_value: "\n# Whether the option ($2) of the command ($1) takes a value.\n_handoff_takes_value() {\n    case \"$1,$2\" in\n",
    operand: "\n# What the command's ($1) operand of this number ($2) is: a command, a program, a directory, a file, or something else.\n_handoff_operand() {\n    case \"$1,$2\" in\n",
    row: |keys, answer| {
        let keys: Vec<String> = keys.iter().map(|key| format!("'{key}'")).collect();
        match answer {
            "" => format!("        {}) return 0 ;;\n", keys.join(" | ")),
            answer => format!("        {}) REPLY={answer} ;;\n", keys.join(" | ")),
        }
    },
    end: "        *) REPLY=; return 1 ;;\n    esac\n}\n",
};

const FISH: Dialect = Dialect {
    takes_value: "\n# Whether the option (2) of the command (1) takes a value.\nfunction __handoff_takes_value\n    switch \"$argv[1],$argv[2]\"\n",
    operand: "\n# What the command's (1) operand of this number (2) is: a command, a program, a directory, a file, or something else.\nfunction __handoff_operand\n    switch \"$argv[1],$argv[2]\"\n",
    row: |keys, answer| {
        let keys: Vec<String> = keys.iter().map(|key| format!("'{key}'")).collect();
        let body = if answer.is_empty() { "return 0".to_owned() } else { format!("echo {answer}") };
        format!("        case {}\n            {body}\n", keys.join(" "))
    },
    end: "        case '*'\n            return 1\n    end\nend\n",
};

/// Returns the two functions.
fn table(cli: &Command, shell: &Dialect) -> String {
    let mut options: Vec<Vec<String>> = vec![];
    let mut operands: Vec<(String, &str)> = vec![];
    visit(cli, "", &mut |path, command| {
        let named = command.get_arguments().filter(|arg| !arg.is_positional());
        let mut valued = vec![];
        for arg in named.filter(|arg| arg.get_action().takes_values()) {
            valued.extend(arg.get_long().map(|long| format!("{path},--{long}")));
            valued.extend(arg.get_short().map(|short| format!("{path},-{short}")));
        }
        options.push(valued);
        for sub in command.get_subcommands() {
            operands.push((format!("{path},{}", sub.get_name()), "command"));
        }
        for (n, arg) in command.get_positionals().enumerate() {
            operands.extend(kind(arg).map(|kind| (format!("{path},{n}"), kind)));
        }
    });
    let mut text = String::from(shell.takes_value);
    for keys in options.iter().filter(|keys| !keys.is_empty()) {
        text += &(shell.row)(keys, "");
    }
    text += shell.end;
    text += shell.operand;
    for wanted in ["command", "program", "directory", "file"] {
        let keys: Vec<String> =
            operands.iter().filter(|(_, kind)| *kind == wanted).map(|(key, _)| key.clone()).collect();
        if !keys.is_empty() {
            text += &(shell.row)(&keys, wanted);
        }
    }
    text += shell.end;
    text.push('\n');
    text
}

/// Calls `see` with every command and its path, such as `journal show`; the path of the first is empty.
fn visit(command: &Command, path: &str, see: &mut impl FnMut(&str, &Command)) {
    see(path, command);
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let mut path = path.to_owned();
        write!(path, "{}{}", if path.is_empty() { "" } else { " " }, sub.get_name()).unwrap();
        visit(sub, &path, see);
    }
}

fn kind(arg: &Arg) -> Option<&'static str> {
    match arg.get_value_hint() {
        ValueHint::CommandName | ValueHint::CommandWithArguments | ValueHint::ExecutablePath => {
            Some("program")
        }
        ValueHint::DirPath => Some("directory"),
        ValueHint::FilePath | ValueHint::AnyPath => Some("file"),
        _ => None,
    }
}

// ---- What they complete, each in its shell.

/// What is to be found, and what is not, when a line is completed at its end.
struct Case {
    line: &'static str,
    offered: &'static [&'static str],
    not_offered: &'static [&'static str],
}

const fn case(
    line: &'static str,
    offered: &'static [&'static str],
    not_offered: &'static [&'static str],
) -> Case {
    Case { line, offered, not_offered }
}

const CASES: [Case; 15] = [
    case("handoff s", &["swap", "status"], &["journal"]),
    case("handoff journal s", &["show"], &["swap"]),
    case("handoff swap --dr", &["--drain-grace"], &["--journal"]),
    case("handoff swap --output ", &["daemon", "own"], &["swap"]),
    // In a directory that has `data` and `journal.log`.
    case("handoff swap --journal jo", &["journal.log"], &[]),
    case("handoff swap --cgroup da", &["data/"], &["journal.log"]),
    case("handoff lock da", &["data/"], &["journal.log"]),
    // What follows is a program, and its arguments are no options of the link.
    case("handoff swap handof", &["handoff"], &["--control"]),
    case("handoff swap --control data/c ./kvd --j", &[], &["--journal", "--json"]),
    case("handoff lock data handof", &["handoff"], &[]),
    case("handoff lock --wait 5s data -- handoff jour", &["journal"], &[]),
    case("handoff lock data handoff swap --control=x handoff journal tim", &["timeline"], &["swap"]),
    case("handoff exec-successor --warm kvd --x -- handoff dr", &["drain"], &[]),
    case("handoff exec-successor --warm kvd --x -- hando", &["handoff"], &[]),
    case("handoff exec-successor handoff jo", &["journal"], &[]),
];

#[track_caller]
fn check(shell: &str, complete: impl Fn(&Case) -> Option<Vec<String>>) {
    for case in &CASES {
        let Some(offered) = complete(case) else { return };
        let bare = |word: &str| word.trim_end_matches('/').to_owned();
        let has = |word: &str| offered.iter().any(|other| bare(other) == bare(word));
        for word in case.offered {
            assert!(has(word), "{shell} does not offer {word} for {:?} but {offered:?}", case.line);
        }
        for word in case.not_offered {
            assert!(!has(word), "{shell} offers {word} for {:?}", case.line);
        }
    }
}

/// Returns a directory to complete in, and a PATH in which `handoff` is.
fn surroundings() -> (tempfile::TempDir, String) {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    for name in ["data", "bin"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("journal.log"), "").unwrap();
    symlink("/bin/true", dir.path().join("bin/handoff")).unwrap();
    let path = format!("{}:{}", dir.path().join("bin").display(), std::env::var("PATH").unwrap());
    (dir, path)
}

fn lines(output: &std::process::Output) -> Vec<String> {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_values_and_the_next_program() {
    let (dir, path) = surroundings();
    let script = root().join("completions/handoff.bash");
    check("bash", |case| {
        // As bash splits the line for a completion.
        let program = format!(
            "source {}; read -ra COMP_WORDS <<< \"$(sed 's/=/ = /g' <<< \"$1\")\"; [[ $1 != *' ' ]] || COMP_WORDS+=(''); \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); cur=${{COMP_WORDS[COMP_CWORD]}}; compopt() {{ :; }}; \
             complete -p handoff | grep -q -- '-F _handoff_chain' || exit 9; \
             _handoff_chain handoff \"$cur\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"; \
             [[ -n ${{COMPREPLY[*]}} ]] || compgen -f -- \"$cur\"; exit 0",
            script.display()
        );
        let mut bash = Process::new("bash");
        bash.args(["--norc", "-c", &program, "bash", case.line]).env("PATH", &path).current_dir(dir.path());
        run_tool("bash", &mut bash).as_ref().map(lines)
    });
}

#[test]
fn zsh_completes_commands_options_values_and_the_next_program() {
    let (dir, path) = surroundings();
    check("zsh", |case| {
        let mut zsh = Process::new("zsh");
        zsh.arg("--no-rcs").arg(root().join("src/bin/handoff/pages/complete.zsh")).arg(case.line);
        zsh.arg(root().join("completions")).env("PATH", &path).env("HOME", dir.path());
        run_tool("zsh", zsh.current_dir(dir.path())).as_ref().map(lines)
    });
}

#[test]
fn fish_completes_commands_options_values_and_the_next_program() {
    let (dir, path) = surroundings();
    let program =
        format!("source {}; complete -C $argv[1]", root().join("completions/handoff.fish").display());
    check("fish", |case| {
        let mut fish = Process::new("fish");
        fish.args(["--no-config", "-c", &program, case.line]).env("PATH", &path).env("HOME", dir.path());
        let offered = run_tool("fish", fish.current_dir(dir.path()))?;
        // The word, a tab, and what it means.
        Some(lines(&offered).iter().map(|line| line.split('\t').next().unwrap().to_owned()).collect())
    });
}
