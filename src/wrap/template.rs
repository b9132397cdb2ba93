//! `{NAME}` in arguments and variables: what a daemon is to be told of its sockets.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What can stand between braces, and what it stands for.
#[derive(Clone, Debug, Default)]
pub struct Values(Vec<(String, String)>);

impl Values {
    /// Adds one.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    fn get(&self, name: &[u8]) -> Option<&str> {
        self.0.iter().find(|(known, _)| known.as_bytes() == name).map(|(_, value)| value.as_str())
    }

    /// Replaces what is known. Braces around anything else are the daemon's own, and stay as they are.
    pub fn fill(&self, text: &OsStr) -> OsString {
        let mut rest = text.as_bytes();
        let mut filled = Vec::with_capacity(rest.len());
        while let Some(open) = rest.iter().position(|byte| *byte == b'{') {
            filled.extend_from_slice(&rest[..open]);
            rest = &rest[open..];
            let close = rest.iter().position(|byte| *byte == b'}');
            match close.and_then(|close| Some((close, self.get(&rest[1..close])?))) {
                Some((close, value)) => {
                    filled.extend_from_slice(value.as_bytes());
                    rest = &rest[close + 1..];
                }
                None => {
                    filled.push(b'{');
                    rest = &rest[1..];
                }
            }
        }
        filled.extend_from_slice(rest);
        OsString::from_vec(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str) -> String {
        let mut values = Values::default();
        values.set("http", "3");
        values.set("http.port", "8080");
        values.fill(OsStr::new(text)).to_string_lossy().into_owned()
    }

    #[test]
    fn what_is_known_is_replaced_wherever_it_stands() {
        assert_eq!(fill("--fd={http} on {http.port}"), "--fd=3 on 8080");
        assert_eq!(fill("{http};{http};"), "3;3;");
        assert_eq!(fill("${http}"), "$3");
    }

    #[test]
    fn braces_of_the_daemons_own_stay() {
        for text in ["{\"http\": 1}", "{", "}{", "{https}", "{ http }", "{}", "a{b{c"] {
            assert_eq!(fill(text), text);
        }
        assert_eq!(fill("{{http}}"), "{3}");
    }
}
