//! A `newc` archive, which the kernel unpacks as its first root. Being root is not needed to put a
//! device node in it.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

#[derive(Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Cpio {
    pub(crate) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, 0, (0, 0), b"");
    }

    pub(crate) fn link(&mut self, name: &str, to: &str) {
        self.entry(name, LINK, 0, (0, 0), to.as_bytes());
    }

    pub(crate) fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER_DEVICE, 0, (major, minor), b"");
    }

    pub(crate) fn bytes(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, FILE | mode, 0, (0, 0), data);
    }

    /// A file of this machine, a link followed. Its time is kept: Python compares it.
    pub(crate) fn file(&mut self, name: &str, from: &Path) -> Result<()> {
        let read = || Ok::<_, std::io::Error>((fs::metadata(from)?, fs::read(from)?));
        let (meta, data) = read().with_context(|| format!("could not read {}", from.display()))?;
        ensure!(
            u32::try_from(data.len()).is_ok(),
            "{} is too large",
            from.display()
        );
        let time = u32::try_from(meta.mtime()).unwrap_or(0);
        self.entry(name, FILE | (meta.mode() & 0o777), time, (0, 0), &data);
        Ok(())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains(name.trim_start_matches('/'))
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.write("TRAILER!!!", 0, 0, (0, 0), b"");
        self.bytes
    }

    /// Adds an entry and the directories above it; the first of a name wins.
    fn entry(&mut self, name: &str, mode: u32, time: u32, device: (u32, u32), data: &[u8]) {
        let name = name.trim_start_matches('/');
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent);
        }
        if self.names.insert(name.to_owned()) {
            self.write(name, mode, time, device, data);
        }
    }

    fn write(&mut self, name: &str, mode: u32, time: u32, device: (u32, u32), data: &[u8]) {
        let number = u32::try_from(self.names.len()).expect("fewer than 2^32 files");
        let size = u32::try_from(data.len()).expect("checked by the caller");
        let name_size = u32::try_from(name.len() + 1).expect("a short name");
        // magic, inode, mode, uid, gid, links, time, size, device of the file (two), of the node
        // (two), length of the name, checksum
        self.bytes.extend(b"070701");
        let (major, minor) = device;
        for field in [
            number, mode, 0, 0, 1, time, size, 0, 0, major, minor, name_size, 0,
        ] {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_once() {
        let mut cpio = Cpio::default();
        cpio.bytes("/a/b/one", 0o644, b"12345");
        cpio.bytes("a/b/two", 0o755, b"");
        cpio.bytes("a/b/one", 0o644, b"again");
        let bytes = cpio.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).expect("all text");
        let order: Vec<_> = [
            "a\0",
            "a/b\0",
            "a/b/one\0",
            "12345",
            "a/b/two\0",
            "TRAILER!!!\0",
        ]
        .map(|name| text.find(name))
        .into();
        assert!(
            order.iter().all(Option::is_some) && order.is_sorted(),
            "{order:?}"
        );
        assert!(!text.contains("again"));
        assert_eq!(text.matches("070701").count(), 5);
    }
}
