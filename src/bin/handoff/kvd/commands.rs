//! What the requests mean.

use super::log::Frame;
use super::resp::{self, Reply};
use super::store::{Record, State};

/// What happens to the connection after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It goes on.
    Continue,
    /// It is closed after its last answer.
    Close,
    /// It is closed without an answer, and the daemon stops.
    Shutdown,
}

/// What a command works on.
pub struct Session<'a> {
    /// The data, with all changes so far.
    pub state: &'a mut State,
    /// The changes that are to be committed.
    pub frame: &'a mut Frame,
    /// The number of changes so far.
    pub ticket: &'a mut u64,
    /// Why no change is accepted now, as the text of an error reply.
    pub refusal: Option<&'a str>,
    /// What INFO says.
    pub info: &'a dyn Fn(&State) -> Vec<Section>,
    /// What CONFIG GET says.
    pub config: &'a dyn Fn() -> Vec<Setting>,
}

/// A setting's name and value.
pub type Setting = (&'static str, String);

/// A section of INFO: its name, and its fields.
pub type Section = (&'static str, Vec<(&'static str, String)>);

/// A reply is refused rather than built when it would be longer.
const MAX_REPLY: usize = 64 * 1024 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of the connection: its answer says nothing about the data.
    Connection,
    Read,
    Write,
}

type Run = fn(&mut Session<'_>, &[&[u8]], &mut Vec<u8>) -> Then;

struct Command {
    name: &'static str,
    /// The number of words, or if negative the least number, as Redis counts it.
    arity: i32,
    kind: Kind,
    run: Run,
}

const fn command(name: &'static str, arity: i32, kind: Kind, run: Run) -> Command {
    Command { name, arity, kind, run }
}

use Kind::{Connection, Read, Write};

const COMMANDS: &[Command] = &[
    command("client", -2, Connection, client),
    command("command", -1, Connection, describe),
    command("config", -2, Connection, config),
    command("dbsize", 1, Read, dbsize),
    command("decr", 2, Write, |s, args, out| add(s, args[1], -1, out)),
    command("decrby", 3, Write, |s, args, out| match resp::integer(args[2]).and_then(i64::checked_neg) {
        Some(by) => add(s, args[1], by, out),
        None => failed(out, NOT_AN_INTEGER),
    }),
    command("del", -2, Write, del),
    command("echo", 2, Connection, |_, args, out| bulk(out, args[1])),
    command("exists", -2, Read, exists),
    command("flushall", -1, Write, flush),
    command("flushdb", -1, Write, flush),
    command("get", 2, Read, get),
    command("hello", -1, Connection, hello),
    command("incr", 2, Write, |s, args, out| add(s, args[1], 1, out)),
    command("incrby", 3, Write, |s, args, out| match resp::integer(args[2]) {
        Some(by) => add(s, args[1], by, out),
        None => failed(out, NOT_AN_INTEGER),
    }),
    command("info", -1, Read, info),
    command("keys", 2, Read, keys),
    command("mget", -2, Read, mget),
    command("mset", -3, Write, mset),
    command("ping", -1, Connection, ping),
    command("quit", -1, Connection, |_, _, out| ok(out, Then::Close)),
    command("scan", -2, Read, scan),
    command("select", 2, Connection, select),
    command("set", -3, Write, set),
    command("shutdown", -1, Connection, |_, _, _| Then::Shutdown),
];

/// What is still accepted when memory has run out.
const FREEING: [&str; 3] = ["del", "flushall", "flushdb"];
const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
const SYNTAX: &str = "ERR syntax error";

/// Runs one command, appends its answer, and returns what comes then and whether the answer tells of the data.
pub fn execute(session: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> (Then, bool) {
    let Some(name) = args.first() else { return (Then::Continue, false) };
    let Some(command) = COMMANDS.iter().find(|c| c.name.as_bytes().eq_ignore_ascii_case(name)) else {
        out.error(&unknown(args));
        return (Then::Continue, false);
    };
    if !fits(command.arity, args.len()) {
        out.error(&format!("ERR wrong number of arguments for '{}' command", command.name));
        return (Then::Continue, false);
    }
    if let (Write, Some(refusal)) = (command.kind, session.refusal)
        && !(refusal.starts_with("OOM") && FREEING.contains(&command.name))
    {
        out.error(refusal);
        return (Then::Continue, false);
    }
    let then = (command.run)(session, args, out);
    (then, command.kind != Connection)
}

fn fits(arity: i32, words: usize) -> bool {
    let needed = arity.unsigned_abs() as usize;
    if arity < 0 { words >= needed } else { words == needed }
}

fn unknown(args: &[&[u8]]) -> String {
    let short = |arg: &[u8]| String::from_utf8_lossy(&arg[..arg.len().min(128)]).into_owned();
    let rest: String = args[1..].iter().take(8).map(|arg| format!("'{}' ", short(arg))).collect();
    format!("ERR unknown command '{}', with args beginning with: {rest}", short(args[0]))
}

impl Session<'_> {
    fn change(&mut self, record: Record<'_>) {
        self.state.apply(record).expect("only a Base record can be wrong, and no command makes one");
        record.encode(self.frame.payload());
        *self.ticket += 1;
    }
}

fn ok(out: &mut Vec<u8>, then: Then) -> Then {
    out.simple("OK");
    then
}

fn failed(out: &mut Vec<u8>, error: &str) -> Then {
    out.error(error);
    Then::Continue
}

fn bulk(out: &mut Vec<u8>, bytes: &[u8]) -> Then {
    out.bulk(Some(bytes));
    Then::Continue
}

fn integer(out: &mut Vec<u8>, value: usize) -> Then {
    out.integer(i64::try_from(value).unwrap_or(i64::MAX));
    Then::Continue
}

fn ping(_: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    match args {
        [_] => out.simple("PONG"),
        [_, text] => out.bulk(Some(text)),
        _ => out.error("ERR wrong number of arguments for 'ping' command"),
    }
    Then::Continue
}

fn get(session: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    out.bulk(session.state.get(args[1]));
    Then::Continue
}

#[derive(Default)]
struct SetOptions {
    only_new: bool,
    only_existing: bool,
    return_old: bool,
}

fn set_options(words: &[&[u8]]) -> Result<SetOptions, String> {
    let mut options = SetOptions::default();
    for word in words {
        match word.to_ascii_uppercase().as_slice() {
            b"NX" => options.only_new = true,
            b"XX" => options.only_existing = true,
            b"GET" => options.return_old = true,
            // Nothing expires, so there is nothing to keep or to forget.
            b"KEEPTTL" => {}
            b"EX" | b"PX" | b"EXAT" | b"PXAT" => {
                return Err("ERR expiry is not supported: this store keeps what it is given".into());
            }
            _ => return Err(SYNTAX.into()),
        }
    }
    if options.only_new && options.only_existing { Err(SYNTAX.into()) } else { Ok(options) }
}

fn set(session: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    let options = match set_options(&args[3..]) {
        Ok(options) => options,
        Err(error) => return failed(out, &error),
    };
    let old = session.state.get(args[1]);
    let refused = if old.is_some() { options.only_new } else { options.only_existing };
    match (options.return_old, refused) {
        (true, _) => out.bulk(old),
        (false, true) => out.bulk(None),
        (false, false) => out.simple("OK"),
    }
    if !refused {
        session.change(Record::Set(args[1], args[2]));
    }
    Then::Continue
}

fn add(session: &mut Session<'_>, key: &[u8], by: i64, out: &mut Vec<u8>) -> Then {
    let Some(old) = session.state.get(key).map_or(Some(0), resp::integer) else {
        return failed(out, NOT_AN_INTEGER);
    };
    let Some(new) = old.checked_add(by) else {
        return failed(out, "ERR increment or decrement would overflow");
    };
    session.change(Record::Set(key, new.to_string().as_bytes()));
    out.integer(new);
    Then::Continue
}

fn del(session: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    let mut count = 0;
    for key in &args[1..] {
        if session.state.get(key).is_some() {
            session.change(Record::Del(key));
            count += 1;
        }
    }
    integer(out, count)
}

fn exists(session: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    integer(out, args[1..].iter().filter(|key| session.state.get(key).is_some()).count())
}

fn mget(session: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    let length: usize = args[1..].iter().filter_map(|key| session.state.get(key)).map(<[u8]>::len).sum();
    if length > MAX_REPLY {
        return failed(out, "ERR the values are too long for one reply");
    }
    out.array(args.len() - 1);
    args[1..].iter().for_each(|key| out.bulk(session.state.get(key)));
    Then::Continue
}

fn mset(session: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    let (pairs, rest) = args[1..].as_chunks::<2>();
    if !rest.is_empty() {
        return failed(out, "ERR wrong number of arguments for 'mset' command");
    }
    pairs.iter().for_each(|[key, value]| session.change(Record::Set(key, value)));
    ok(out, Then::Continue)
}

fn dbsize(session: &mut Session<'_>, _: &[&[u8]], out: &mut Vec<u8>) -> Then {
    integer(out, session.state.len())
}

fn flush(session: &mut Session<'_>, _: &[&[u8]], out: &mut Vec<u8>) -> Then {
    session.change(Record::Flush);
    ok(out, Then::Continue)
}

fn keys(session: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    list(session, args[1], out);
    Then::Continue
}

/// Answers with everything at once: a cursor that survives changes would need an order that the map does not have.
fn scan(session: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    if resp::integer(args[1]).is_none() {
        return failed(out, "ERR invalid cursor");
    }
    let (options, rest) = args[2..].as_chunks::<2>();
    if !rest.is_empty() {
        return failed(out, SYNTAX);
    }
    let mut pattern: &[u8] = b"*";
    for [option, value] in options {
        match option.to_ascii_uppercase().as_slice() {
            b"MATCH" => pattern = value,
            b"COUNT" => {}
            _ => return failed(out, SYNTAX),
        }
    }
    out.array(2);
    out.bulk(Some(b"0"));
    list(session, pattern, out);
    Then::Continue
}

fn list(session: &Session<'_>, pattern: &[u8], out: &mut Vec<u8>) {
    let found: Vec<&[u8]> = session.state.keys().filter(|key| matches_glob(pattern, key)).collect();
    if found.iter().map(|key| key.len()).sum::<usize>() > MAX_REPLY {
        return out.error("ERR the keys are too long for one reply");
    }
    out.array(found.len());
    found.iter().for_each(|key| out.bulk(Some(key)));
}

/// Matches `*`, `?` and `\x`; going back only to the last star, so that no pattern takes exponential time.
fn matches_glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some(b'?') => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            Some(b'\\') if pattern.get(p + 1) == Some(&text[t]) => {
                (p, t) = (p + 2, t + 1);
                continue;
            }
            Some(byte) if *byte == text[t] && *byte != b'\\' => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            _ => {}
        }
        let Some((star_p, star_t)) = star else { return false };
        star = Some((star_p, star_t + 1));
        (p, t) = (star_p + 1, star_t + 1);
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

fn info(session: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    let wanted = |name: &str| {
        args.len() == 1
            || args[1..].iter().any(|arg| {
                arg.eq_ignore_ascii_case(name.as_bytes())
                    || [&b"all"[..], b"everything", b"default"]
                        .iter()
                        .any(|all| arg.eq_ignore_ascii_case(all))
            })
    };
    let mut text = String::new();
    for (name, fields) in (session.info)(session.state).into_iter().filter(|(name, _)| wanted(name)) {
        text += &format!("# {name}\r\n");
        fields.iter().for_each(|(key, value)| text += &format!("{key}:{value}\r\n"));
        text += "\r\n";
    }
    bulk(out, text.as_bytes())
}

fn describe(_: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    match args.get(1).map(|word| word.to_ascii_uppercase()).as_deref() {
        None => {
            out.array(COMMANDS.len());
            COMMANDS.iter().for_each(|command| describe_one(command, out));
        }
        Some(b"COUNT") => return integer(out, COMMANDS.len()),
        // redis-cli asks for these for its hints, and does without.
        Some(b"DOCS" | b"INFO") => out.array(0),
        Some(_) => out.error("ERR unknown subcommand of 'command'"),
    }
    Then::Continue
}

fn describe_one(command: &Command, out: &mut Vec<u8>) {
    let of_keys = command.kind != Connection && command.arity.unsigned_abs() > 1 && command.name != "keys";
    let many = ["del", "exists", "mget", "mset"].contains(&command.name);
    out.array(6);
    out.bulk(Some(command.name.as_bytes()));
    out.integer(command.arity.into());
    out.array(1);
    out.simple(match command.kind {
        Connection => "fast",
        Read => "readonly",
        Write => "write",
    });
    out.integer(of_keys.into());
    out.integer(if of_keys && many { -1 } else { of_keys.into() });
    out.integer(if command.name == "mset" { 2 } else { of_keys.into() });
}

fn config(session: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    if !args[1].eq_ignore_ascii_case(b"get") {
        return failed(out, "ERR only CONFIG GET is supported; settings are options of the command line");
    }
    let asked = |name: &str| {
        args[2..].iter().any(|pattern| matches_glob(&pattern.to_ascii_lowercase(), name.as_bytes()))
    };
    let found: Vec<Setting> = (session.config)().into_iter().filter(|(name, _)| asked(name)).collect();
    out.array(found.len() * 2);
    for (name, value) in found {
        out.bulk(Some(name.as_bytes()));
        out.bulk(Some(value.as_bytes()));
    }
    Then::Continue
}

fn client(_: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    match args[1].to_ascii_uppercase().as_slice() {
        b"SETNAME" | b"SETINFO" | b"NO-EVICT" | b"NO-TOUCH" => return ok(out, Then::Continue),
        b"ID" => out.integer(1),
        b"GETNAME" => out.bulk(None),
        _ => out.error("ERR unknown subcommand of 'client'"),
    }
    Then::Continue
}

fn hello(_: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    if args.get(1).is_some_and(|version| *version != b"2") {
        return failed(out, "NOPROTO unsupported protocol version");
    }
    out.array(6);
    for text in ["server", "kvd", "version", env!("CARGO_PKG_VERSION"), "proto"] {
        out.bulk(Some(text.as_bytes()));
    }
    out.integer(2);
    Then::Continue
}

fn select(_: &mut Session<'_>, args: &[&[u8]], out: &mut Vec<u8>) -> Then {
    match args[1] {
        b"0" => ok(out, Then::Continue),
        _ => failed(out, "ERR DB index is out of range"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Rig {
        state: State,
        frame: Frame,
        ticket: u64,
        refusal: Option<&'static str>,
    }

    impl Rig {
        fn new() -> Self {
            Self { state: State::new(1), frame: Frame::default(), ticket: 0, refusal: None }
        }

        /// Runs a line of words and returns the answer with its line ends shown as `|`.
        fn run(&mut self, line: &str) -> String {
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let mut out = Vec::new();
            let mut session = Session {
                state: &mut self.state,
                frame: &mut self.frame,
                ticket: &mut self.ticket,
                refusal: self.refusal,
                info: &|_| vec![("Server", vec![("pid", "7".into())]), ("Other", vec![])],
                config: &|| vec![("save", String::new()), ("appendonly", "yes".into())],
            };
            execute(&mut session, &args, &mut out);
            String::from_utf8(out).unwrap().replace("\r\n", "|")
        }
    }

    #[test]
    fn commands_answer_as_redis_does() {
        let mut rig = Rig::new();
        for (line, answer) in [
            ("PING", "+PONG|"),
            ("ping hi", "$2|hi|"),
            ("ECHO x", "$1|x|"),
            ("GET a", "$-1|"),
            ("SET a 1", "+OK|"),
            ("get a", "$1|1|"),
            ("SET a 2 NX", "$-1|"),
            ("SET a 2 XX", "+OK|"),
            ("SET b 2 XX", "$-1|"),
            ("SET a 3 GET", "$1|2|"),
            ("SET a 3 NX XX", "-ERR syntax error|"),
            ("SET a 3 EX 10", "-ERR expiry is not supported: this store keeps what it is given|"),
            ("INCR a", ":4|"),
            ("INCRBY a -10", ":-6|"),
            ("DECR a", ":-7|"),
            ("DECRBY a 3", ":-10|"),
            ("DECRBY a -9223372036854775808", "-ERR value is not an integer or out of range|"),
            ("SET big 9223372036854775807", "+OK|"),
            ("INCR big", "-ERR increment or decrement would overflow|"),
            ("SET text x", "+OK|"),
            ("INCR text", "-ERR value is not an integer or out of range|"),
            ("MSET x 1 y 2", "+OK|"),
            ("MSET x 1 y", "-ERR wrong number of arguments for 'mset' command|"),
            ("MGET x nope y", "*3|$1|1|$-1|$1|2|"),
            ("EXISTS x x nope", ":2|"),
            ("DEL x nope", ":1|"),
            ("DBSIZE", ":4|"),
            ("KEYS b?g", "*1|$3|big|"),
            ("SCAN 0 MATCH t* COUNT 5", "*2|$1|0|*1|$4|text|"),
            ("GET", "-ERR wrong number of arguments for 'get' command|"),
            ("NOPE a b", "-ERR unknown command 'NOPE', with args beginning with: 'a' 'b' |"),
            ("CONFIG GET append*", "*2|$10|appendonly|$3|yes|"),
            (
                "CONFIG SET save x",
                "-ERR only CONFIG GET is supported; settings are options of the command line|",
            ),
            ("INFO server", "$19|# Server|pid:7|||"),
            ("SELECT 0", "+OK|"),
            ("SELECT 1", "-ERR DB index is out of range|"),
            ("HELLO 3", "-NOPROTO unsupported protocol version|"),
            ("CLIENT SETNAME me", "+OK|"),
            ("COMMAND DOCS", "*0|"),
            ("FLUSHALL", "+OK|"),
            ("DBSIZE", ":0|"),
        ] {
            assert_eq!(rig.run(line), answer, "{line}");
        }
    }

    #[test]
    fn the_records_of_all_changes_lead_to_the_same_state() {
        let mut rig = Rig::new();
        for line in
            ["SET a 1", "INCR a", "MSET b 1 c 2", "DEL b", "DECRBY n 5", "GET a", "SET a x NX", "DEL nope"]
        {
            rig.run(line);
        }
        let mut replayed = State::new(1);
        replayed.apply_payload(&rig.frame.payload()[super::super::log::FRAME_HEADER..]).unwrap();
        assert_eq!(replayed, rig.state);
        assert_eq!(rig.ticket, 6, "each change is counted, and nothing else");
        assert_eq!(rig.state.revisions(), [6]);
    }

    #[test]
    fn a_refusal_refuses_changes_and_lets_reads_through() {
        let mut rig = Rig::new();
        rig.run("SET a 1");
        rig.refusal = Some("MISCONF disk full");
        for line in ["SET a 2", "DEL a", "INCR a", "MSET a 2", "FLUSHALL"] {
            assert_eq!(rig.run(line), "-MISCONF disk full|", "{line}");
        }
        assert_eq!(rig.run("GET a"), "$1|1|");
        rig.refusal = Some("OOM");
        assert_eq!((rig.run("SET a 2"), rig.run("DEL a")), ("-OOM|".into(), ":1|".into()));
    }

    #[test]
    fn a_pattern_is_matched_in_bounded_time() {
        assert!(matches_glob(b"*a*b", b"xxaxxb") && matches_glob(b"", b"") && matches_glob(b"a\\*", b"a*"));
        assert!(!matches_glob(b"a\\*", b"ab") && !matches_glob(b"?", b"") && !matches_glob(b"a", b"ab"));
        assert!(!matches_glob(
            &b"*a".repeat(40),
            &[b'a'; 10_000][..9_999].iter().map(|_| b'b').collect::<Vec<_>>()
        ));
    }

    #[test]
    fn the_table_is_sorted_and_has_each_command_once() {
        assert!(COMMANDS.windows(2).all(|pair| pair[0].name < pair[1].name));
    }
}
