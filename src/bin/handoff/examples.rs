//! Examples as help and man pages show them, and as tests run them: a line each, which may end in a remark behind `  #`.

/// Returns the lines to show, none wider than `width` where that can be. Where one is too wide, remarks go above their
/// examples, and an example goes on in a second line, as a shell reads it.
pub fn shown(examples: &str, width: usize) -> Vec<String> {
    let lines = whole(examples);
    let is_wide = lines.iter().any(|line| line.len() > width);
    lines.into_iter().flat_map(|line| if is_wide { spread(&line, width) } else { vec![line] }).collect()
}

/// Returns the examples, a line each.
fn whole(examples: &str) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    for line in examples.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match lines.last_mut().filter(|last| last.ends_with('\\')) {
            Some(last) => *last = format!("{} {line}", last.trim_end_matches('\\').trim_end()),
            None => lines.push(line.to_owned()),
        }
    }
    lines
}

fn spread(line: &str, width: usize) -> Vec<String> {
    match line.split_once("  #") {
        Some((example, remark)) => {
            let mut lines = vec![format!("# {}", remark.trim())];
            lines.extend(continued(example.trim_end(), width));
            lines
        }
        None => continued(line, width),
    }
}

/// Breaks a command that is too wide: behind the `--` that ends a link if there is one, or else before an option, a program
/// or a pipe.
fn continued(line: &str, width: usize) -> Vec<String> {
    if line.len() <= width {
        return vec![line.to_owned()];
    }
    let ends = |end: &usize| *end + 2 <= width;
    let links = line.match_indices(" -- ").map(|(at, _)| at + " --".len());
    let words = [" --", " |", " kvd"].iter().flat_map(|mark| line.match_indices(mark)).map(|(at, _)| at);
    // Neither the indentation nor the end of a link.
    let words = words.filter(|at| !line[..*at].trim().is_empty() && !line[*at..].starts_with(" -- "));
    let Some(at) = links.filter(ends).max().or(words.filter(ends).max()) else {
        return vec![line.to_owned()];
    };
    let mut lines = vec![format!("{} \\", &line[..at])];
    lines.extend(continued(&format!("    {}", line[at..].trim_start()), width));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_wide_goes_on_in_a_second_line() {
        let lines = shown("\n  a -- b --long 1 -- kvd  # why\n  x --one 1 --two 2 | y\n  short  # fine", 17);
        let expected = [
            "# why",
            "a -- \\",
            "    b \\",
            "    --long 1 -- \\",
            "    kvd",
            "x --one 1 \\",
            "    --two 2 | y",
            "# fine",
            "short",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_fits_stays_as_it_is() {
        assert_eq!(shown("\n  a     # why\n  b \\\n    c", 16), ["a     # why", "b c"]);
    }
}
