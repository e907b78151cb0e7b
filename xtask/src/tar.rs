//! A tar archive (`ustar`) whose bytes depend on what is put in and on nothing else: no time, no owner, no order of a
//! directory.

const BLOCK: usize = 512;
const DIRECTORY: u8 = b'5';
const FILE: u8 = b'0';

#[derive(Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    pub(crate) fn directory(&mut self, name: &str) {
        self.header(name, 0o755, 0, DIRECTORY);
    }

    pub(crate) fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.header(name, mode, data.len(), FILE);
        self.bytes.extend(data);
        self.pad();
    }

    /// Two empty blocks are the end.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend([0; 2 * BLOCK]);
        self.bytes
    }

    fn header(&mut self, name: &str, mode: u32, size: usize, kind: u8) {
        // Behind the name: numbers are octal digits and a NUL.
        const MODE: usize = 100;
        const UID: usize = 108;
        const GID: usize = 116;
        const SIZE: usize = 124;
        const TIME: usize = 136;
        const SUM: usize = 148;
        const KIND: usize = 156;
        const MAGIC: usize = 257;
        assert!(name.len() < MODE, "{name} is too long for this format");
        assert!(size < 1 << 33, "{name} is too large for this format");
        let mut header = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(MODE, format!("{mode:07o}").as_bytes());
        put(UID, b"0000000");
        put(GID, b"0000000");
        put(SIZE, format!("{size:011o}").as_bytes());
        put(TIME, b"00000000000");
        // The sum is that of a header whose sum is blank.
        put(SUM, b"        ");
        put(KIND, &[kind]);
        put(MAGIC, b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        let sum = format!("{sum:06o}\0 ");
        header[SUM..SUM + sum.len()].copy_from_slice(sum.as_bytes());
        self.bytes.extend(header);
    }

    fn pad(&mut self) {
        let whole = self.bytes.len().next_multiple_of(BLOCK);
        self.bytes.resize(whole, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, process};

    use super::*;

    /// Read by a tar that is not ours.
    #[test]
    fn others_can_read_it() {
        let mut tar = Tar::default();
        tar.directory("usr/");
        tar.file("usr/program", 0o755, &[7; 1000]);
        tar.file("empty", 0o600, b"");
        let bytes = tar.finish();
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut list = process::Command::new("tar");
        list.args([
            "--list",
            "--verbose",
            "--numeric-owner",
            "--utc",
            "--file=-",
        ]);
        list.stdin(process::Stdio::piped())
            .stdout(process::Stdio::piped());
        let mut list = list.spawn().expect("tar");
        let mut stdin = list.stdin.take().expect("a pipe");
        stdin.write_all(&bytes).expect("tar reads");
        drop(stdin);
        let output = list.wait_with_output().expect("tar ends");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("text");
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<_> = text.lines().map(words).collect();
        assert_eq!(
            lines,
            [
                "drwxr-xr-x 0/0 0 1970-01-01 00:00 usr/",
                "-rwxr-xr-x 0/0 1000 1970-01-01 00:00 usr/program",
                "-rw------- 0/0 0 1970-01-01 00:00 empty",
            ]
        );
    }
}
