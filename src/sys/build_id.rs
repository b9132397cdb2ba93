//! What tells two builds of a program apart: the linker's GNU build id, or else the content.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

/// The size of an ELF64 file header, and of one program header, see elf(5).
const FILE_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;
/// More than any program has; a damaged header must not make us read for ever.
const NOTE_BYTES_MAX: u64 = 1 << 16;

/// Returns the build id of an ELF64 program in hexadecimal, or `file-CRC-SIZE` of the content of any other file.
///
/// A file that may be executed but not read is named by its inode, size and change time.
pub(super) fn of(file: &File) -> io::Result<String> {
    match gnu_build_id(file) {
        Ok(Some(id)) => Ok(hex(&id)),
        Ok(None) => of_content(file),
        Err(e) if e.raw_os_error() == Some(libc::EBADF) => of_inode(file),
        Err(e) => Err(e),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn of_content(file: &File) -> io::Result<String> {
    let (mut crc, mut size) = (0, 0);
    let mut chunk = vec![0; 1 << 16];
    loop {
        match file.read_at(&mut chunk, size) {
            Ok(0) => return Ok(format!("file-{crc:08x}-{size}")),
            Ok(n) => {
                crc = crc32c::crc32c_append(crc, &chunk[..n]);
                size += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn of_inode(file: &File) -> io::Result<String> {
    let meta = file.metadata()?;
    Ok(format!(
        "file-{}-{}-{}-{}.{:09}",
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.ctime(),
        meta.ctime_nsec()
    ))
}

/// Returns nothing for what is not a little-endian ELF64 file with such a note.
fn gnu_build_id(file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; FILE_HEADER];
    if !read_whole(file, &mut header, 0)? || !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let (Some(table), Some(entry_size), Some(entries)) =
        (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56))
    else {
        return Ok(None);
    };
    if usize::from(entry_size) != PROGRAM_HEADER {
        return Ok(None);
    }
    for entry in 0..u64::from(entries) {
        let Some(offset) = table.checked_add(entry * PROGRAM_HEADER as u64) else { break };
        if let Some(id) = build_id_in_segment(file, offset)? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn build_id_in_segment(file: &File, program_header: u64) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; PROGRAM_HEADER];
    if !read_whole(file, &mut header, program_header)? || u32_at(&header, 0) != Some(PT_NOTE) {
        return Ok(None);
    }
    let (Some(offset), Some(size), Some(align)) =
        (u64_at(&header, 8), u64_at(&header, 32), u64_at(&header, 48))
    else {
        return Ok(None);
    };
    let mut notes = vec![0; usize::try_from(size.min(NOTE_BYTES_MAX)).unwrap_or(0)];
    if !read_whole(file, &mut notes, offset)? {
        return Ok(None);
    }
    Ok(find_build_id(&notes, if align == 8 { 8 } else { 4 }).map(<[u8]>::to_vec))
}

/// Notes follow one another: three words (size of the name, of the content, kind), the name, the content, each padded.
fn find_build_id(mut notes: &[u8], align: usize) -> Option<&[u8]> {
    loop {
        let name_size = u32_at(notes, 0)? as usize;
        let content_size = u32_at(notes, 4)? as usize;
        let kind = u32_at(notes, 8)?;
        let name = notes.get(12..)?.get(..name_size)?;
        let content_at = name_size.checked_add(12)?.checked_next_multiple_of(align)?;
        let content = notes.get(content_at..)?.get(..content_size)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" && !content.is_empty() {
            return Some(content);
        }
        let next = content_at.checked_add(content_size)?.checked_next_multiple_of(align)?;
        notes = notes.get(next..)?;
    }
}

/// Returns whether the file was long enough. An offset that pread refuses lies behind its end.
fn read_whole(file: &File, buf: &mut [u8], offset: u64) -> io::Result<bool> {
    match file.read_exact_at(buf, offset) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput) => Ok(false),
        Err(e) => Err(e),
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::fs;

    fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let padded = |bytes: &[u8]| {
            let mut padded = bytes.to_vec();
            padded.resize(bytes.len().next_multiple_of(4), 0);
            padded
        };
        let words = [u32::try_from(name.len()).unwrap(), u32::try_from(content.len()).unwrap(), kind];
        let mut note: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        note.extend(padded(name));
        note.extend(padded(content));
        note
    }

    /// The smallest program with these notes.
    fn elf(notes: &[u8]) -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(FILE_HEADER + PROGRAM_HEADER, 0);
        elf[32..40].copy_from_slice(&(FILE_HEADER as u64).to_le_bytes());
        elf[54..56].copy_from_slice(&(PROGRAM_HEADER as u16).to_le_bytes());
        elf[56..58].copy_from_slice(&1u16.to_le_bytes());
        elf[64..68].copy_from_slice(&PT_NOTE.to_le_bytes());
        elf[72..80].copy_from_slice(&((FILE_HEADER + PROGRAM_HEADER) as u64).to_le_bytes());
        elf[96..104].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        elf.extend(notes);
        elf
    }

    fn id_of(content: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("program"), content).unwrap();
        of(&File::open(dir.path().join("program")).unwrap()).unwrap()
    }

    #[test]
    fn the_note_is_found_behind_others() {
        let notes = [
            note(b"GNU\0", 1, &[0; 16]),
            note(b"stapsdt\0", 3, b"abc"),
            note(b"GNU\0", 3, &[0xde, 0xad, 1, 2, 3]),
        ]
        .concat();
        assert_eq!(id_of(&elf(&notes)), "dead010203");
    }

    #[test]
    fn a_file_without_a_note_is_named_by_its_content() {
        let script = id_of(b"#!/bin/sh\n");
        assert!(script.starts_with("file-") && script.ends_with("-10"), "{script}");
        assert_eq!(script, id_of(b"#!/bin/sh\n"));
        assert_ne!(script, id_of(b"#!/bin/zh\n"));
        assert_eq!(id_of(b""), "file-00000000-0");
        assert!(id_of(&elf(&note(b"GNU\0", 1, &[0; 16]))).starts_with("file-"));
    }

    #[test]
    fn no_cut_and_no_changed_byte_of_a_header_makes_it_fail() {
        let whole = elf(&note(b"GNU\0", 3, &[7; 20]));
        for cut in 0..whole.len() {
            assert!(id_of(&whole[..cut]).starts_with("file-"), "cut at {cut}");
        }
        for at in 0..FILE_HEADER + PROGRAM_HEADER + 12 {
            let mut damaged = whole.clone();
            damaged[at] = 0xff;
            id_of(&damaged);
        }
    }

    #[test]
    fn the_note_of_a_real_program_is_what_its_linker_wrote() {
        let running = File::open("/proc/self/exe").unwrap();
        let content = fs::read("/proc/self/exe").unwrap();
        let marker = note(b"GNU\0", 3, &[0; 20]);
        let Some(at) = content.windows(16).position(|window| window == &marker[..16]) else {
            assert!(of(&running).unwrap().starts_with("file-"));
            return;
        };
        assert_eq!(of(&running).unwrap(), hex(&content[at + 16..at + 36]));
    }
}
