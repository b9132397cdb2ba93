//! A strict reader of OpenMetrics 1.0 text: what the specification forbids, it refuses, with the line.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

/// A set of samples that belong together.
#[derive(Debug, Default)]
pub struct Family {
    pub name: String,
    pub kind: String,
    pub unit: Option<String>,
    pub help: Option<String>,
    pub samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Everything that was read, by family.
#[derive(Debug)]
pub struct Exposition(Vec<Family>);

impl Exposition {
    /// Returns the value of the only sample of this name with these labels.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("no {name} {labels:?} in {self:#?}"))
    }

    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: BTreeMap<String, String> =
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let samples = self.0.iter().flat_map(|family| &family.samples);
        samples.into_iter().find(|sample| sample.name == name && sample.labels == labels).map(|s| s.value)
    }

    pub fn family(&self, name: &str) -> Option<&Family> {
        self.0.iter().find(|family| family.name == name)
    }
}

/// Reads a whole exposition, and panics where it is not one.
#[track_caller]
pub fn parse(text: &str) -> Exposition {
    read(text).unwrap_or_else(|wrong| panic!("{wrong}\n{text}"))
}

/// Reads a whole exposition, or says what is wrong with it.
pub fn read(text: &str) -> Result<Exposition, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("it does not end with # EOF and a newline")?;
    if !body.is_empty() && !body.ends_with('\n') {
        return Err("# EOF is not a line of its own".to_owned());
    }
    let mut families: Vec<Family> = vec![];
    for line in body.split_terminator('\n') {
        take(&mut families, line).map_err(|wrong| format!("{wrong}: {line:?}"))?;
    }
    check_names(&families)?;
    for family in &families {
        family.check().map_err(|wrong| format!("{}: {wrong}", family.name))?;
    }
    Ok(Exposition(families))
}

fn take(families: &mut Vec<Family>, line: &str) -> Result<(), String> {
    if let Some(rest) = line.strip_prefix("# ") {
        let (what, rest) = rest.split_once(' ').ok_or("metadata without a name")?;
        let (name, value) = rest.split_once(' ').ok_or("metadata without a value")?;
        return metadata(families, what, name, value);
    }
    let sample = sample(line)?;
    let family = families.last_mut().ok_or("a sample before any metadata")?;
    if !family.suffixes().iter().any(|suffix| sample.name == format!("{}{suffix}", family.name)) {
        return Err(format!("a sample that does not belong to the {} {}", family.kind, family.name));
    }
    family.samples.push(sample);
    Ok(())
}

fn metadata(families: &mut Vec<Family>, what: &str, name: &str, value: &str) -> Result<(), String> {
    if families.last().is_none_or(|family| family.name != name) {
        if !is_name(name, ":") {
            return Err("a bad name".to_owned());
        }
        families.push(Family { name: name.to_owned(), ..Family::default() });
    }
    let family = families.last_mut().unwrap();
    if !family.samples.is_empty() {
        return Err("metadata behind a sample of its family".to_owned());
    }
    let twice = || Err(format!("{what} stands twice"));
    match what {
        "TYPE" if family.kind.is_empty() => family.kind = value.to_owned(),
        "UNIT" if family.unit.is_none() => family.unit = Some(value.to_owned()),
        "HELP" if family.help.is_none() => family.help = Some(unescaped(value)?),
        "TYPE" | "UNIT" | "HELP" => return twice(),
        _ => return Err("a comment, which OpenMetrics does not have".to_owned()),
    }
    Ok(())
}

fn is_name(name: &str, more: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || more.contains(c);
    name.chars().all(fits) && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("neither metadata nor a sample")?;
    let (name, rest) = line.split_at(end);
    if !is_name(name, ":") {
        return Err("a bad name".to_owned());
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    let digits = value.strip_prefix('-').unwrap_or(value);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("a value that is no plain number".to_owned());
    }
    let value = value.parse().map_err(|_| "a value that is no number")?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

type Labels = BTreeMap<String, String>;

fn labels(mut rest: &str) -> Result<(Labels, &str), String> {
    let mut labels = Labels::new();
    loop {
        let (name, text) = rest.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name, "") {
            return Err("a bad name of a label".to_owned());
        }
        let mut is_escaped = false;
        let end = text.find(|c| {
            let was_escaped = is_escaped;
            is_escaped = c == '\\' && !was_escaped;
            c == '"' && !was_escaped
        });
        let (value, behind) = text.split_at(end.ok_or("a label's value without an end")?);
        if labels.insert(name.to_owned(), unescaped(value)?).is_some() {
            return Err("a label stands twice".to_owned());
        }
        match &behind[1..] {
            more if more.starts_with(',') => rest = &more[1..],
            more if more.starts_with('}') => return Ok((labels, &more[1..])),
            _ => return Err("expected a comma or the end of the labels".to_owned()),
        }
    }
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut plain = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        plain.push(match c {
            '\\' => match rest.next() {
                Some('n') => '\n',
                Some(c @ ('\\' | '"')) => c,
                _ => return Err("an escape that there is not".to_owned()),
            },
            '"' => return Err("a quote that is not escaped".to_owned()),
            c => c,
        });
    }
    Ok(plain)
}

/// No family may be there twice, nor have a name that a sample of another one has.
fn check_names(families: &[Family]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for family in families {
        let suffixes = family.suffixes();
        let all = suffixes.iter().copied().chain([""]).collect::<BTreeSet<_>>();
        for name in all.into_iter().map(|suffix| format!("{}{suffix}", family.name)) {
            if !names.insert(name.clone()) {
                return Err(format!("{name} is not the name of one family alone"));
            }
        }
    }
    Ok(())
}

impl Family {
    fn suffixes(&self) -> &'static [&'static str] {
        match self.kind.as_str() {
            "counter" => &["_total", "_created"],
            "gauge" | "stateset" | "unknown" | "" => &[""],
            "histogram" => &["_bucket", "_count", "_sum", "_created"],
            "info" => &["_info"],
            _ => &[],
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.suffixes().is_empty() {
            return Err(format!("an unknown type {}", self.kind));
        }
        if let Some(unit) = &self.unit
            && !self.name.ends_with(&format!("_{unit}"))
        {
            return Err(format!("its name does not end with its unit {unit}"));
        }
        let mut series = BTreeSet::new();
        for sample in &self.samples {
            if !series.insert((&sample.name, &sample.labels)) {
                return Err(format!("{sample:?} stands twice"));
            }
            self.check_value(sample)?;
        }
        self.check_groups()
    }

    fn check_value(&self, sample: &Sample) -> Result<(), String> {
        let value = sample.value;
        let fits = match self.kind.as_str() {
            "counter" | "histogram" => value >= 0.0,
            "info" => value == 1.0,
            "stateset" => sample.labels.contains_key(&self.name) && (value == 0.0 || value == 1.0),
            _ => true,
        };
        if fits { Ok(()) } else { Err(format!("a {} cannot have {sample:?}", self.kind)) }
    }

    /// What has the same labels stands together, and is whole.
    fn check_groups(&self) -> Result<(), String> {
        let key = |sample: &Sample| {
            let mut labels = sample.labels.clone();
            // What tells the samples of one metric apart.
            labels.remove(if self.kind == "stateset" { self.name.as_str() } else { "le" });
            labels
        };
        let mut seen = BTreeSet::new();
        for group in self.samples.chunk_by(|a, b| key(a) == key(b)) {
            if !seen.insert(key(&group[0])) {
                return Err("its samples are interleaved".to_owned());
            }
            match self.kind.as_str() {
                "counter" if !group.iter().any(|sample| sample.name.ends_with("_total")) => {
                    return Err("a counter without a total".to_owned());
                }
                "stateset" if group.iter().filter(|sample| sample.value == 1.0).count() != 1 => {
                    return Err("not one state holds".to_owned());
                }
                "histogram" => check_histogram(group)?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn check_histogram(group: &[Sample]) -> Result<(), String> {
    let bound = |sample: &Sample| sample.labels.get("le")?.parse::<f64>().ok();
    let buckets: Vec<&Sample> = group.iter().filter(|sample| sample.name.ends_with("_bucket")).collect();
    let bounds: Vec<f64> = buckets.iter().filter_map(|sample| bound(sample)).collect();
    if bounds.len() != buckets.len() || !bounds.is_sorted_by(|a, b| a < b) {
        return Err("its bounds do not go up".to_owned());
    }
    if !buckets.is_sorted_by(|a, b| a.value <= b.value) {
        return Err("its buckets do not count up".to_owned());
    }
    // A bound is written as a number with a point.
    let is_plain = |sample: &&Sample| sample.labels["le"].contains('.') || sample.labels["le"] == "+Inf";
    if !buckets.iter().all(is_plain) || bounds.last() != Some(&f64::INFINITY) {
        return Err("a bound is not written as a float, or there is none for the rest".to_owned());
    }
    let one = |suffix: &str| group.iter().find(|sample| sample.name.ends_with(suffix)).map(|s| s.value);
    if one("_count") != buckets.last().map(|sample| sample.value) || one("_sum").is_none() {
        return Err("its count is not its last bucket, or it has no sum".to_owned());
    }
    Ok(())
}
