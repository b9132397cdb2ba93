//! Random bits from the kernel.

use std::io;

/// Fills `bytes` from getrandom(2), which blocks only before the pool is ready, early in the boot.
///
/// # Errors
///
/// Returns the kernel's answer where getrandom(2) is missing or filtered.
pub fn fill(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length describe `bytes`, which is ours and writable for the call.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => bytes = &mut bytes[got..],
            Err(_) => match io::Error::last_os_error() {
                interrupted if interrupted.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_written() {
        let mut seen = [0u8; 64];
        for _ in 0..32 {
            let mut bytes = [0u8; 64];
            fill(&mut bytes).expect("getrandom works here");
            seen.iter_mut().zip(bytes).for_each(|(seen, byte)| *seen |= byte);
        }
        assert!(seen.iter().all(|byte| *byte != 0), "{seen:?}");
    }
}
