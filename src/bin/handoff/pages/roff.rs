//! Text for troff's man macros.

/// Returns prose as troff reads it: what stands between backquotes or double asterisks is bold, and what stands between single
/// asterisks is in italics.
pub fn prose(text: &str) -> String {
    let mut shown = String::new();
    for (n, code) in text.split('`').enumerate() {
        if n % 2 == 1 {
            shown += &bold(code);
            continue;
        }
        for (n, strong) in code.split("**").enumerate() {
            if n % 2 == 1 {
                shown += &bold(strong);
                continue;
            }
            for (n, part) in strong.split('*').enumerate() {
                shown += &if n % 2 == 1 { italic(part) } else { escaped(part) };
            }
        }
    }
    guarded(&shown)
}

/// Returns what was written by hand as troff reads it: requests stay as they are, examples are shown as they stand, and the
/// rest is prose.
pub fn by_hand(text: &str) -> String {
    let mut as_it_stands = false;
    let mut made = String::new();
    for line in text.lines() {
        as_it_stands &= line != ".EE";
        made += &match (as_it_stands, line.starts_with('.')) {
            (true, _) => literal(line),
            (false, true) => line.to_owned(),
            (false, false) => prose(line),
        };
        made.push('\n');
        as_it_stands |= line == ".EX";
    }
    made
}

/// Returns text as it stands.
pub fn literal(text: &str) -> String {
    guarded(&escaped(text))
}

fn escaped(text: &str) -> String {
    let each = |c: char| match c {
        '\\' => "\\e".to_owned(),
        '-' => "\\-".to_owned(),
        '\'' => "\\(aq".to_owned(),
        '`' => "\\(ga".to_owned(),
        '~' => "\\(ti".to_owned(),
        '^' => "\\(ha".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(each).collect()
}

/// A line that begins like a request is none.
fn guarded(line: &str) -> String {
    if line.starts_with('.') { format!("\\&{line}") } else { line.to_owned() }
}

pub fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", escaped(text))
}

pub fn italic(text: &str) -> String {
    format!("\\fI{}\\fR", escaped(text))
}

/// Returns a line that begins a section.
pub fn heading(title: &str) -> String {
    if title.contains(' ') { format!(".SH \"{title}\"\n") } else { format!(".SH {title}\n") }
}

/// Returns a labelled paragraph.
pub fn tagged(label: &str, text: &str) -> String {
    format!(".TP\n{label}\n{text}\n")
}

/// Returns lines to be shown as they stand.
pub fn example(lines: impl IntoIterator<Item = String>) -> String {
    let body: String = lines.into_iter().map(|line| literal(&line) + "\n").collect();
    format!(".RS 4\n.EX\n{body}.EE\n.RE\n")
}

/// Breaks lines of text where they get too long to be read; troff fills them anew.
pub fn wrapped(page: &str) -> String {
    let mut text = String::new();
    let mut as_it_stands = false;
    let mut is_label = false;
    for line in page.lines() {
        as_it_stands = (as_it_stands || line == ".EX") && line != ".EE";
        let is_whole = as_it_stands || is_label || line.starts_with('.');
        is_label = line == ".TP";
        if is_whole {
            text += line;
            text.push('\n');
            continue;
        }
        let mut width = 0;
        for word in line.split(' ') {
            if width > 0 && width + 1 + word.len() > SOURCE_WIDTH {
                text.push('\n');
                text += &guarded(word);
                width = word.len();
                continue;
            }
            if width > 0 {
                text.push(' ');
            }
            text += word;
            width += 1 + word.len();
        }
        text.push('\n');
    }
    text
}

/// How long a line of the source may be, in bytes.
const SOURCE_WIDTH: usize = 78;
