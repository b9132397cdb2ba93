//! What kind of program a file is, as execve(2) tells them apart: elf(5), or a script with its interpreter.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::spawn::Program;

/// How much of a script's first line the kernel reads, see execve(2).
const LINE_MAX: usize = 256;
/// More than any path; a damaged header must not make us read for ever.
const PATH_BYTES_MAX: u64 = 4096;
const PT_INTERP: u64 = 3;

/// What the kernel will make of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// A binary.
    Elf(Elf),
    /// A script, and who reads it.
    Script(PathBuf),
    /// It may be executed, but not read.
    Unreadable,
    /// Nothing that the kernel knows by itself.
    Unknown,
}

/// What matters of a binary's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// The machine it is for, `e_machine`.
    pub machine: u16,
    /// 32 or 64; 0 for what is neither.
    pub bits: u8,
    /// What loads it; none where it is static.
    pub interpreter: Option<PathBuf>,
}

impl Elf {
    /// Returns the machine's name, or its number.
    pub fn machine_name(&self) -> String {
        let name = match self.machine {
            3 => "i386",
            8 => "mips",
            20 => "powerpc",
            21 => "powerpc64",
            22 => "s390",
            40 => "arm",
            62 => "x86-64",
            183 => "aarch64",
            243 => "riscv",
            258 => "loongarch",
            number => return format!("machine {number}"),
        };
        name.to_owned()
    }
}

/// Returns what kind of program was opened.
///
/// # Errors
///
/// What read(2) returns.
pub fn of(program: &Program) -> io::Result<Format> {
    let file = File::from(program.as_fd().try_clone_to_owned()?);
    match of_file(&file) {
        Err(e) if e.raw_os_error() == Some(libc::EBADF) => Ok(Format::Unreadable),
        found => found,
    }
}

/// Returns what this process is: what this machine runs for certain.
///
/// # Errors
///
/// As [`of`].
pub fn own() -> io::Result<Format> {
    of_file(&File::open("/proc/self/exe")?)
}

/// Returns whether this machine has somebody to run what the kernel does not know: an entry of binfmt_misc.
pub fn has_handlers() -> bool {
    let is_handler = |entry: fs::DirEntry| entry.file_name() != "register" && entry.file_name() != "status";
    fs::read_dir("/proc/sys/fs/binfmt_misc")
        .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(is_handler)))
}

fn of_file(file: &File) -> io::Result<Format> {
    let mut head = [0; LINE_MAX];
    let length = read_at(file, &mut head, 0)?;
    let head = &head[..length];
    if let Some(line) = head.strip_prefix(b"#!") {
        return Ok(interpreter_in(line).map_or(Format::Unknown, Format::Script));
    }
    match Header::of(head) {
        Some(header) => Ok(Format::Elf(Elf {
            machine: header.machine,
            bits: header.bits,
            interpreter: header.interpreter(file)?,
        })),
        None => Ok(Format::Unknown),
    }
}

fn interpreter_in(line: &[u8]) -> Option<PathBuf> {
    let line = line.split(|byte| *byte == b'\n').next()?;
    let word = line.split(|byte| matches!(byte, b' ' | b'\t' | 0)).find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(word)))
}

/// Where the program headers are, and how numbers are written.
struct Header {
    machine: u16,
    bits: u8,
    big_endian: bool,
    table: u64,
    entry_size: u64,
    entries: u64,
}

impl Header {
    fn of(head: &[u8]) -> Option<Self> {
        if !head.starts_with(b"\x7fELF") {
            return None;
        }
        let (class, big_endian) = (*head.get(4)?, *head.get(5)? == 2);
        let number = |at, size| number(head, at, size, big_endian);
        let (bits, table, entry_size, entries) = match class {
            1 => (32, number(28, 4)?, number(42, 2)?, number(44, 2)?),
            2 => (64, number(32, 8)?, number(54, 2)?, number(56, 2)?),
            _ => (0, 0, 0, 0),
        };
        let machine = u16::try_from(number(18, 2)?).ok()?;
        Some(Self { machine, bits, big_endian, table, entry_size, entries })
    }

    fn interpreter(&self, file: &File) -> io::Result<Option<PathBuf>> {
        let (at_offset, at_size, word) = if self.bits == 32 { (4, 16, 4) } else { (8, 32, 8) };
        for entry in 0..self.entries {
            let at = entry.checked_mul(self.entry_size).and_then(|at| at.checked_add(self.table));
            let Some(at) = at else { return Ok(None) };
            let mut header = [0; 56];
            let length = read_at(file, &mut header, at)?;
            let number = |at, size| number(&header[..length], at, size, self.big_endian);
            if number(0, 4) != Some(PT_INTERP) {
                continue;
            }
            let (Some(offset), Some(size)) = (number(at_offset, word), number(at_size, word)) else {
                return Ok(None);
            };
            let mut path = vec![0; usize::try_from(size.min(PATH_BYTES_MAX)).unwrap_or(0)];
            let length = read_at(file, &mut path, offset)?;
            let path = path[..length].split(|byte| *byte == 0).next().unwrap_or_default();
            return Ok((!path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(path))));
        }
        Ok(None)
    }
}

fn number(bytes: &[u8], at: usize, size: usize, big_endian: bool) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    let append = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    Some(if big_endian { bytes.iter().fold(0, append) } else { bytes.iter().rev().fold(0, append) })
}

/// Reads until the buffer is full or the file ends. An offset that pread refuses lies behind its end.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    struct At<'a>(&'a File, u64);
    impl Read for At<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read_at(buffer, self.1)?;
            self.1 += read as u64;
            Ok(read)
        }
    }
    let mut read = Vec::new();
    match At(file, offset).take(buffer.len() as u64).read_to_end(&mut read) {
        Ok(length) => {
            buffer[..length].copy_from_slice(&read);
            Ok(length)
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(0),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    fn of_bytes(bytes: &[u8]) -> Format {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        of_file(&file).unwrap()
    }

    /// The smallest big-endian 32-bit binary with this interpreter.
    fn big_elf32(interpreter: &[u8]) -> Vec<u8> {
        let mut elf = b"\x7fELF\x01\x02\x01".to_vec();
        elf.resize(52 + 32, 0);
        elf[18..20].copy_from_slice(&22u16.to_be_bytes());
        elf[28..32].copy_from_slice(&52u32.to_be_bytes());
        elf[42..44].copy_from_slice(&32u16.to_be_bytes());
        elf[44..46].copy_from_slice(&1u16.to_be_bytes());
        elf[52..56].copy_from_slice(&3u32.to_be_bytes());
        elf[56..60].copy_from_slice(&84u32.to_be_bytes());
        elf[68..72].copy_from_slice(&u32::try_from(interpreter.len()).unwrap().to_be_bytes());
        elf.extend(interpreter);
        elf
    }

    #[test]
    fn a_scripts_interpreter_is_the_first_word() {
        for (text, path) in [("#!/bin/sh\n", "/bin/sh"), ("#! /usr/bin/env python3 -u\nx", "/usr/bin/env")] {
            assert_eq!(of_bytes(text.as_bytes()), Format::Script(path.into()), "{text}");
        }
        for text in ["#!\n", "#!  ", "echo hello\n", ""] {
            assert_eq!(of_bytes(text.as_bytes()), Format::Unknown, "{text:?}");
        }
    }

    #[test]
    fn a_binary_of_another_machine_is_read_too() {
        let Format::Elf(elf) = of_bytes(&big_elf32(b"/lib/ld.so.1\0")) else { panic!("it is one") };
        assert_eq!((elf.machine_name().as_str(), elf.bits), ("s390", 32));
        assert_eq!(elf.interpreter, Some("/lib/ld.so.1".into()));
    }

    #[test]
    fn no_cut_and_no_changed_byte_makes_it_fail() {
        let whole = big_elf32(b"/lib/ld.so.1\0");
        for cut in 0..whole.len() {
            of_bytes(&whole[..cut]);
        }
        for at in 0..84 {
            let mut damaged = whole.clone();
            damaged[at] = 0xff;
            of_bytes(&damaged);
        }
    }

    #[test]
    fn this_process_is_a_binary_whose_interpreter_is_there() {
        let Format::Elf(elf) = own().unwrap() else { panic!("it is one") };
        assert!(elf.interpreter.is_none_or(|path| path.exists()));
    }
}
