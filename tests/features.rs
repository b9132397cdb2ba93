//! What the library pulls in, and what the command needs from the machine that it is copied to.
#![allow(clippy::unwrap_used)]

use std::process::Command;

/// For the command line alone.
const NOT_IN_THE_LIBRARY: [&str; 5] = ["clap", "indicatif", "toml", "anyhow", "tracing-subscriber"];

fn packages(features: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_library_alone_pulls_in_nothing_of_the_command_line() {
    let library = packages(&["--no-default-features"]);
    for package in NOT_IN_THE_LIBRARY {
        assert!(!library.iter().any(|name| name == package), "{package}");
    }
    // What would be found if it were there.
    assert!(library.iter().any(|name| name == "serde_json"));
    assert!(packages(&[]).iter().any(|name| name == "clap"));
}

/// From elf(5): where the program headers are, how large each is, and the type that asks for a dynamic linker.
const PT_INTERP: u32 = 3;

#[test]
#[cfg(all(target_env = "gnu", target_pointer_width = "64", target_endian = "little"))]
fn the_command_is_linked_statically() {
    let elf = std::fs::read(env!("CARGO_BIN_EXE_handoff")).unwrap();
    assert!(elf.starts_with(b"\x7fELF\x02\x01"));
    let half = |at: usize| usize::from(u16::from_le_bytes(elf[at..at + 2].try_into().unwrap()));
    let table = u64::from_le_bytes(elf[32..40].try_into().unwrap()) as usize;
    let headers = (0..half(56)).map(|i| table + i * half(54));
    let types: Vec<u32> = headers.map(|at| u32::from_le_bytes(elf[at..at + 4].try_into().unwrap())).collect();
    assert!(!types.is_empty() && !types.contains(&PT_INTERP), "{types:?}");
}
