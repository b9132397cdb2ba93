//! What a configuration names on this machine: whether it is there and may be used. Nothing is changed.

use std::fs;
use std::path::Path;

use handoff::listen::{self, Address, Spec};
use handoff::supervise::{ReadyBy, Settings};
use handoff::sys::spawn::Program;
use handoff::sys::{resources, unix};

use super::complete::Complete;
use super::faults::Faults;

/// Checks all but the program.
pub fn check(complete: &Complete, faults: &mut Faults) {
    let settings = &complete.settings;
    note(faults, "control_socket", socket_directory(&settings.control));
    // By default it is beside the other.
    if faults.is_set("trigger_socket") {
        note(faults, "trigger_socket", socket_directory(&settings.trigger));
    }
    note(faults, "data_dir", data_dir(&settings.data_dir));
    let journal_is_beside = settings.journal.parent() == Some(&settings.data_dir);
    if !journal_is_beside || settings.data_dir.is_dir() {
        note(faults, "journal", file_to_write(&settings.journal));
    }
    if let Some(path) = &settings.metrics_file {
        note(faults, "metrics_file", file_to_replace(path));
    }
    if let Some(path) = &settings.directory {
        note(faults, "directory", directory(path));
    }
    if settings.health.is_some() {
        note(faults, "health", shell());
    }
    if matches!(settings.readiness.by, ReadyBy::Command(_)) {
        note(faults, "readiness.command", shell());
    }
    for (key, listen) in complete.listener_keys.iter().zip(&settings.listeners) {
        listen.sockets.iter().for_each(|spec| listener(key, spec, faults));
    }
}

/// Checks the program that is configured.
pub fn check_binary(settings: &Settings, faults: &mut Faults) {
    if let Err(e) = Program::open(&settings.binary) {
        faults.add("binary", e.to_string());
    }
}

type Found = Result<(), String>;

fn note(faults: &mut Faults, key: &str, found: Found) {
    if let Err(text) = found {
        faults.add(key, text);
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn directory(path: &Path) -> Found {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(format!("{} is no directory", path.display())),
        Err(e) => Err(format!("unable to use the directory {}: {e}", path.display())),
    }
}

fn writable_directory(path: &Path) -> Found {
    directory(path)?;
    match resources::may_write(path) {
        true => Ok(()),
        false => Err(format!("this user may not write to the directory {}", path.display())),
    }
}

fn socket_directory(path: &Path) -> Found {
    writable_directory(parent(path))?;
    unix::check_directory(path).map_err(|e| e.to_string())?;
    match fs::symlink_metadata(path) {
        Ok(meta) if !std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            Err(format!("{} is there, and it is no socket", path.display()))
        }
        _ => Ok(()),
    }
}

/// The daemon makes its own, as most do; then it must be able to.
fn data_dir(path: &Path) -> Found {
    match path.exists() {
        true => writable_directory(path),
        false => writable_directory(parent(path))
            .map_err(|text| format!("{} is not there, and cannot be made: {text}", path.display())),
    }
}

fn file_to_write(path: &Path) -> Found {
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(format!("{} is no regular file", path.display())),
        Ok(_) if !resources::may_write(path) => Err(format!("this user may not write to {}", path.display())),
        Ok(_) => Ok(()),
        Err(_) => writable_directory(parent(path)),
    }
}

fn file_to_replace(path: &Path) -> Found {
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(format!("{} is no regular file", path.display())),
        _ => writable_directory(parent(path)),
    }
}

fn shell() -> Found {
    Program::open(Path::new("sh")).map(drop).map_err(|e| format!("it is for sh: {e}"))
}

fn listener(prefix: &str, spec: &Spec, faults: &mut Faults) {
    let key = |name: &str| format!("{prefix}.{name}");
    if let Address::Path { path, .. } = &spec.address {
        note(faults, &key("addr"), writable_directory(parent(path)));
    }
    if let Some(Err(e)) = spec.owner.as_deref().map(listen::user_number) {
        faults.add(&key("owner"), e.to_string());
    }
    if let Some(Err(e)) = spec.group.as_deref().map(listen::group_number) {
        faults.add(&key("group"), e.to_string());
    }
}
