//! A page for every command: the definition's words, with sections by hand from `man/source/COMMAND.man` put among them. And the
//! pages that are by hand alone, from `man/source/NAME.7.man`.
//!
//! What is by hand is in troff's man macros, but for three signs of its own in running text: `bold`, **bold** and *italics*.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command as Process;

use clap::{Arg, Command};
use clap_mangen::Man;

use super::roff::{bold, by_hand, example, heading, italic, literal, prose, tagged, wrapped};
use super::{Files, definition, expect_files, paths, root, run_tool};
use crate::examples;
use crate::exit::Exit;

const MANUAL: &str = "Handoff Manual";

/// Pages that are for those who build chains and peers.
const BACKGROUND: [&str; 2] = ["handoff-chain(7)", "handoff-protocol(7)"];

/// What a variable that stands in for an option is for.
const VARIABLES: [(&str, &str); 6] = [
    ("HANDOFF_CONTROL", "The path of the daemon's control socket; stands in for `--control`."),
    ("HANDOFF_DATA_DIR", "The daemon's data directory; stands in for `--data-dir`."),
    ("HANDOFF_JOURNAL", "The path of the journal; stands in for `--journal`."),
    ("HANDOFF_TRIGGER", "The path of a supervisor's trigger socket; stands in for `--trigger`."),
    ("HANDOFF_LOG", "What to say on standard error, as for RUST_LOG, which it goes before."),
    (
        "RUST_LOG",
        "What to say on standard error: a level (`error`, `warn`, `info`, `debug`, `trace`), or one for each part of the program.",
    ),
];

#[test]
fn the_man_pages_are_those_of_the_definition() {
    let mut made = pages(&definition());
    made.extend(background(&definition()));
    expect_files("man", &made, |_| true);
}

#[test]
fn every_section_by_hand_belongs_to_a_command() {
    let made = pages(&definition());
    for path in paths("man/source", |name| !name.ends_with(".7.man")) {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let page = if name == "handoff" { "handoff.1".to_owned() } else { format!("handoff-{name}.1") };
        assert!(made.contains_key(&page), "{} is for no command", path.display());
    }
}

#[test]
fn every_page_that_a_page_refers_to_exists() {
    let pages = paths("man", |name| name.ends_with(".1") || name.ends_with(".7"));
    let titles: BTreeSet<String> = pages
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().rsplit_once('.').unwrap())
        .map(|(name, section)| format!("{name}({section})"))
        .collect();
    let mut found = 0;
    for path in &pages {
        let text = std::fs::read_to_string(path).unwrap().replace("\\-", "-");
        let plain = text
            .replace("\\fB", "")
            .replace("\\fI", "")
            .replace("\\fR", "")
            .replace(".BR ", "")
            .replace(" (", "(");
        for word in
            plain.split(|c: char| c.is_whitespace() || c == ',').filter(|word| word.starts_with("handoff"))
        {
            let word = word.trim_end_matches(['.', ';', ':']);
            if word.ends_with("(1)") || word.ends_with("(7)") {
                found += 1;
                assert!(titles.contains(word), "{} refers to {word}", path.display());
            }
        }
    }
    assert!(found > 10, "found only {found} references");
}

#[test]
fn no_formatter_finds_anything_wrong_with_a_page() {
    for path in paths("man", |name| name.ends_with(".1") || name.ends_with(".7")) {
        let mut mandoc = Process::new("mandoc");
        if let Some(output) = run_tool("mandoc", mandoc.args(["-T", "lint", "-W", "style"]).arg(&path)) {
            let said = String::from_utf8(output.stdout).unwrap();
            // The pages have no date: whoever regenerates them would have to know when they changed. A label is one line.
            let is_fine =
                |line: &&str| line.contains("missing date") || line.contains("input text line longer");
            let faults: Vec<&str> = said.lines().filter(|line| !is_fine(line)).collect();
            assert!(faults.is_empty(), "{faults:#?}");
        }
        let mut groff = Process::new("groff");
        if let Some(output) = run_tool("groff", groff.args(["-man", "-ww", "-z", "-Tutf8"]).arg(&path)) {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && said.is_empty(), "{}: {said}", path.display());
        }
    }
}

#[test]
fn no_line_of_a_page_is_wider_than_a_terminal() {
    for path in paths("man", |name| name.ends_with(".1") || name.ends_with(".7")) {
        let mut mandoc = Process::new("mandoc");
        let Some(output) = run_tool("mandoc", mandoc.args(["-T", "utf8", "-O", "width=78"]).arg(&path))
        else {
            return;
        };
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let width = without_overstrikes(line).chars().count();
            assert!(width <= 80, "{}: {width} columns: {line}", path.display());
        }
    }
}

/// Bold is a letter, a backspace and the letter again.
fn without_overstrikes(line: &str) -> String {
    let mut shown = String::new();
    for c in line.chars() {
        if c == '\u{8}' {
            shown.pop();
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Returns all pages, the one for the command itself included.
fn pages(cli: &Command) -> Files {
    let mut pages = Files::from([("handoff.1".to_owned(), Page::of(cli, cli).text())]);
    for command in visible(cli) {
        pages.insert(format!("handoff-{}.1", command.get_name()), Page::of(cli, command).text());
    }
    pages
}

/// Returns the pages that are no command's.
fn background(cli: &Command) -> Files {
    let sources = paths("man/source", |name| name.ends_with(".7.man"));
    let page = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().strip_suffix(".man").unwrap().to_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let title = name.strip_suffix(".7").unwrap();
        let page = head(cli, title, 7, &format!("man/source/{name}.man")) + &by_hand(&text);
        let page = page.replace(".\\\" exit codes\n", &exit_codes());
        (name, wrapped(&page))
    };
    sources.iter().map(page).collect()
}

/// Returns the one table of exit codes.
fn exit_codes() -> String {
    Exit::ALL.map(|exit| tagged(&bold(&(exit as u8).to_string()), &prose(exit.meaning()))).concat()
}

/// Returns the lines before the first section.
fn head(cli: &Command, title: &str, section: u8, source: &str) -> String {
    let version = cli.get_version().unwrap();
    format!(
        ".\\\" Made from {source}: change that, and run\n.\\\" UPDATE=1 cargo test --bin handoff pages\n\
         .TH {} {section} \"\" \"handoff {version}\" \"{MANUAL}\"\n.nh\n.ad l\n",
        literal(&title.to_uppercase())
    )
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

struct Page<'a> {
    cli: &'a Command,
    command: &'a Command,
    by_hand: Vec<Section>,
}

/// A section by hand.
struct Section {
    title: String,
    body: String,
}

impl<'a> Page<'a> {
    fn of(cli: &'a Command, command: &'a Command) -> Self {
        let path = root().join(format!("man/source/{}.man", command.get_name()));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        Self { cli, command, by_hand: sections(&by_hand(&text)) }
    }

    fn is_root(&self) -> bool {
        self.command.get_name() == self.cli.get_name()
    }

    fn title(&self) -> String {
        if self.is_root() { "handoff".to_owned() } else { format!("handoff-{}", self.command.get_name()) }
    }

    fn text(mut self) -> String {
        let made_from =
            format!("the definition of the command line, and man/source/{}.man", self.command.get_name());
        let mut text = head(self.cli, &self.title(), 1, &made_from);
        text += &self.name();
        text += &self.synopsis();
        text += &self.description();
        for title in ["COMMANDS", "SUBCOMMANDS"] {
            // Only one of them is there.
            text += &self.commands(title);
        }
        text += &options(self.command);
        text +=
            &self.remaining_but(&["EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "NOTES", "SEE ALSO"]);
        text += &self.exit_status();
        text += &self.environment();
        text += &self.taken("FILES");
        text += &self.examples();
        text += &self.taken("NOTES");
        wrapped(&(text + &self.see_also()))
    }

    fn name(&self) -> String {
        let about = self.command.get_about().unwrap().to_string();
        format!("{}{} \\- {}\n", heading("NAME"), literal(&self.title()), prose(&lower_first(&about)))
    }

    fn synopsis(&self) -> String {
        let mut forms: Vec<String> = vec![];
        if self.command.has_subcommands() && !self.is_root() {
            forms.extend(visible(self.command).map(usage));
        } else {
            forms.push(usage(self.command));
        }
        // No lines between them.
        format!("{}.PD 0\n{}.PD\n", heading("SYNOPSIS"), forms.concat())
    }

    fn description(&mut self) -> String {
        heading("DESCRIPTION") + &description(self.command) + &self.body("DESCRIPTION")
    }

    fn commands(&self, title: &str) -> String {
        let is_commands = title == "COMMANDS";
        if !self.command.has_subcommands() || is_commands != self.is_root() {
            return String::new();
        }
        let each = |command: &Command| match is_commands {
            true => {
                let page = format!("\\fBhandoff\\-{}\\fR(1)", literal(command.get_name()));
                tagged(&page, &prose(&command.get_about().unwrap().to_string()))
            }
            false => {
                let name = command.get_bin_name().unwrap();
                format!(".SS {}\n{}{}", quoted(name), description(command), options_of(command))
            }
        };
        heading(title) + &visible(self.command).map(each).collect::<String>()
    }

    fn exit_status(&mut self) -> String {
        heading("EXIT STATUS") + "The same for every command:\n" + &exit_codes() + &self.body("EXIT STATUS")
    }

    fn environment(&mut self) -> String {
        let mut variables: BTreeSet<String> = ["HANDOFF_LOG".to_owned(), "RUST_LOG".to_owned()].into();
        let nested = visible(self.command).filter(|_| !self.is_root());
        let arguments = self.command.get_arguments().chain(nested.flat_map(Command::get_arguments));
        variables.extend(arguments.filter_map(Arg::get_env).map(|name| name.to_str().unwrap().to_owned()));
        if self.is_root() {
            variables.extend(VARIABLES.map(|(name, _)| name.to_owned()));
        }
        let rows = variables.iter().map(|name| {
            let known = VARIABLES.iter().find(|(other, _)| other == name);
            let (_, meaning) = known.unwrap_or_else(|| panic!("say in VARIABLES what {name} is for"));
            tagged(&bold(name), &prose(meaning))
        });
        heading("ENVIRONMENT") + &rows.collect::<String>() + &self.body("ENVIRONMENT")
    }

    fn examples(&mut self) -> String {
        let nested = visible(self.command).filter(|_| !self.is_root());
        let blocks = std::iter::once(self.command).chain(nested).filter_map(examples_of).map(example);
        let all = blocks.collect::<Vec<_>>().join(".PP\n");
        let by_hand = self.body("EXAMPLES");
        if all.is_empty() && by_hand.is_empty() {
            return String::new();
        }
        heading("EXAMPLES") + &all + &by_hand
    }

    fn see_also(&mut self) -> String {
        // Names of pages as text, and not yet as troff.
        let by_hand = self.body("SEE ALSO").replace("\\-", "-");
        let mut pages: Vec<&str> =
            by_hand.split([',', '\n']).map(str::trim).filter(|page| !page.is_empty()).collect();
        if !self.is_root() {
            pages.push("handoff(1)");
        }
        pages.extend(BACKGROUND);
        let mut seen = BTreeSet::new();
        pages.retain(|page| seen.insert(*page));
        let shown: Vec<String> = pages.iter().map(|page| page_reference(page)).collect();
        heading("SEE ALSO") + &shown.join(",\n") + "\n"
    }

    /// Returns what was written by hand for a section that is also made.
    fn body(&mut self, title: &str) -> String {
        let at = self.by_hand.iter().position(|section| section.title == title);
        at.map(|at| self.by_hand.remove(at).body).unwrap_or_default()
    }

    fn taken(&mut self, title: &str) -> String {
        let body = self.body(title);
        if body.is_empty() { body } else { heading(title) + &body }
    }

    /// Returns the sections that have no place of their own.
    fn remaining_but(&mut self, placed: &[&str]) -> String {
        let (kept, shown): (Vec<Section>, Vec<Section>) =
            self.by_hand.drain(..).partition(|section| placed.contains(&section.title.as_str()));
        self.by_hand = kept;
        shown.into_iter().map(|section| heading(&section.title) + &section.body).collect()
    }
}

fn sections(text: &str) -> Vec<Section> {
    let parts = text.split("\n.SH ").map(|part| part.strip_prefix(".SH ").unwrap_or(part));
    let titled = parts.filter_map(|part| part.split_once('\n'));
    titled
        .filter(|(title, _)| !title.starts_with('.') && !title.is_empty())
        .map(|(title, body)| Section {
            title: title.trim_matches('"').to_owned(),
            body: format!("{}\n", body.trim_end()),
        })
        .collect()
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", literal(text))
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

fn page_reference(page: &str) -> String {
    let (name, section) = page.split_once('(').unwrap_or_else(|| panic!("{page} is no page"));
    format!("{}({section}", bold(name))
}

/// Returns the command line's forms, as its help has them.
fn usage(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    let forms = usage.trim().strip_prefix("Usage: ").unwrap_or(&usage).lines().map(str::trim);
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let form = |form: &str| {
        let rest = form.strip_prefix(name).unwrap_or_else(|| panic!("{form} does not begin with {name}"));
        let words: Vec<String> = rest.split_whitespace().map(usage_word).collect();
        format!(".HP\n{} {}\n", bold(name), words.join(" "))
    };
    forms.map(form).collect()
}

/// Options are bold, and what stands for something else is in italics.
fn usage_word(word: &str) -> String {
    let mut text = String::new();
    let mut name = String::new();
    for c in word.chars() {
        if c.is_ascii_alphanumeric() || "-_=".contains(c) {
            name.push(c);
            continue;
        }
        text += &usage_name(&std::mem::take(&mut name));
        if !"<>".contains(c) {
            text.push(c);
        }
    }
    text + &usage_name(&name)
}

fn usage_name(name: &str) -> String {
    match name {
        "" => String::new(),
        name if name.starts_with('-') => bold(name),
        name => italic(name),
    }
}

/// Returns what the command's help says between its first line and its options.
fn description(command: &Command) -> String {
    let about = command.get_about().unwrap().to_string();
    let long = command.get_long_about().map_or_else(String::new, ToString::to_string);
    let paragraphs =
        long.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty() && *paragraph != about);
    let mut text = format!("{}\n", prose(&sentence(&about)));
    for paragraph in paragraphs {
        text += &format!(".PP\n{}\n", prose(&paragraph.replace('\n', " ")));
    }
    with_values_in_italics(command, &text)
}

/// What stands for a value, as PROG does, is in italics wherever it is spoken of, and an option is bold.
fn with_values_in_italics(command: &Command, text: &str) -> String {
    let values: BTreeSet<&str> = command
        .get_arguments()
        .filter_map(Arg::get_value_names)
        .flatten()
        .map(|name| name.as_str())
        .collect();
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-\\".contains(c);
    let is_option = |word: &str| word.starts_with("\\-\\-") && word.len() > 4;
    let mut shown = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word = &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())];
        match word {
            word if values.contains(word) => shown += &italic(word),
            word if is_option(word) => shown += &format!("\\fB{word}\\fR"),
            word => shown += word,
        }
        rest = &rest[word.len()..];
        let gap = &rest[..rest.find(is_part).unwrap_or(rest.len())];
        shown += gap;
        rest = &rest[gap.len()..];
    }
    shown
}

fn sentence(text: &str) -> String {
    if text.ends_with(['.', '?', '!']) { text.to_owned() } else { format!("{text}.") }
}

/// Returns the sections on arguments and options of a command that has no page but its own.
fn options(command: &Command) -> String {
    let (positional, named) = (body(command, Arg::is_positional), body(command, |arg| !arg.is_positional()));
    let mut text = String::new();
    for (title, body) in [("ARGUMENTS", positional), ("OPTIONS", named)] {
        if !body.is_empty() {
            text += &heading(title);
            text += &body;
        }
    }
    text
}

/// Returns both in one, for a command that shares its page.
fn options_of(command: &Command) -> String {
    let named = |arg: &Arg| !arg.is_positional() && !arg.is_global_set();
    body(command, Arg::is_positional) + &body(command, named)
}

/// Returns the paragraphs on arguments for which `shown` holds, in the order of the help.
fn body(command: &Command, shown: impl Fn(&Arg) -> bool) -> String {
    let names: Vec<_> = command
        .get_arguments()
        .map(|arg| (arg.get_id().clone(), shown(arg) && is_worth_a_word(arg)))
        .collect();
    let mut only = command.clone();
    for (n, (id, shown)) in names.into_iter().enumerate() {
        // Otherwise they are sorted by their names.
        only = only.mut_arg(id, |arg| arg.hide(!shown).display_order(n).hide_short_help(false));
    }
    if only.get_arguments().all(Arg::is_hide_set) {
        return String::new();
    }
    let mut made = vec![];
    Man::new(only).render_options_section(&mut made).unwrap();
    let made = String::from_utf8(made).unwrap();
    let body = &made[made.find(".SH OPTIONS\n").unwrap() + ".SH OPTIONS\n".len()..];
    tidied(command, body)
}

/// Everybody knows `--help`.
fn is_worth_a_word(arg: &Arg) -> bool {
    !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str())
}

/// Returns what clap_mangen made in the house style: values without angle brackets, paragraphs, and bold for what stands in
/// backquotes.
fn tidied(command: &Command, body: &str) -> String {
    let mut text = body.to_owned();
    for (from, to) in [
        ("\\fI<", "\\fI"),
        (">\\fR", "\\fR"),
        ("<\\fI", "\\fI"),
        ("\\fR>", "\\fR"),
        ("[\\fI", "\\fI"),
        ("\\fR]", "\\fR"),
        ("\\*(Aq", "\\(aq"),
        ("\n\n", "\n.IP\n"),
        ("May also be specified with the ", "The variable "),
        (" environment variable.", " stands in for it."),
        (".RS 14\n", ".RS 7\n"),
    ] {
        text = text.replace(from, to);
    }
    let mut tidy = String::new();
    let mut is_header = false;
    for line in text.lines().map(str::trim_end) {
        tidy += &match is_header || line.starts_with('.') {
            true => line.to_owned(),
            false => with_values_in_italics(command, &with_bold(line)),
        };
        tidy.push('\n');
        is_header = line == ".TP";
    }
    tidy
}

fn with_bold(line: &str) -> String {
    let parts = line.split('`').enumerate();
    parts.map(|(n, part)| if n % 2 == 0 { part.to_owned() } else { format!("\\fB{part}\\fR") }).collect()
}

/// How wide an example may be, in columns.
const EXAMPLE_WIDTH: usize = 68;

/// Returns the examples in a command's help.
fn examples_of(command: &Command) -> Option<Vec<String>> {
    let help = command.get_after_help()?.to_string();
    let block = help.strip_prefix("EXAMPLES\n")?;
    let block = &block[..block.find("\n\nEXIT CODES").unwrap_or(block.len())];
    Some(examples::shown(block, EXAMPLE_WIDTH))
}
