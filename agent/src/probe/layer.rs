//! A file below an overlay that has another one in its place by now.
//!
//! When somebody writes to a layer's file through the overlay, it is copied up: from then on every way
//! through the overlay leads to the copy, `map_files` too, while the processes that mapped it before run
//! the layer's file still. That one is looked for by the paths of the layers, which anybody may have moved
//! since, so a path proves nothing: the kernel's inode does.
//!
//! `/proc/PID/mountinfo`: `proc(5)`; its escapes: `seq_show_option`, and the overlay's own below them.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
};

use super::{
    file::{self, Version},
    identity::Inode,
    link::Programs,
    mapping::Mapping,
};

/// The kernel's own limit.
const LAYERS: usize = 500;
/// Paths that are tried.
const PATHS: usize = 4096;

/// The file with this inode, by its path in one of the layers. Waits for their file systems.
pub fn find(
    programs: &Programs,
    mapping: &Mapping,
    file: &OwnedFd,
    wanted: Inode,
) -> Option<(OwnedFd, Version)> {
    let mount = file::mount(file)?;
    let mounts = fs::read(format!("/proc/{}/mountinfo", mapping.pid)).ok()?;
    let overlay = overlay(&mounts, mount)?;
    let shown = fs::read_link(file::map_files(mapping)).ok()?;
    let inside = overlay.inside(shown.as_os_str().as_bytes())?;
    // The layers were named where the mount was made: in the process' own tree, or in ours.
    let roots = [format!("/proc/{}/root", mapping.pid), String::new()];
    let layers = overlay.layers.iter().take(LAYERS);
    let mut candidates = layers
        .flat_map(|layer| overlay.paths(layer))
        .flat_map(|layer| roots.each_ref().map(|root| (root, layer.clone())))
        .map(|(root, layer)| [root.as_bytes(), &layer, b"/", &inside].concat())
        .take(PATHS);
    let is_wanted = |path: Vec<u8>| -> io::Result<Option<(OwnedFd, Version)>> {
        let (named, version) = file::at_path(&PathBuf::from(OsStr::from_bytes(&path)))?;
        let inode = programs.inode(&file::readable(&named)?);
        Ok((inode == Some(wanted)).then_some((named, version)))
    };
    candidates.find_map(|path| is_wanted(path).ok()?)
}

/// What `mountinfo` says of one overlay.
#[derive(Debug, PartialEq, Eq)]
struct Overlay {
    /// What of it is mounted, and where.
    root: Vec<u8>,
    at: Vec<u8>,
    layers: Vec<Vec<u8>>,
    /// Where it writes.
    upper: Option<Vec<u8>>,
}

impl Overlay {
    /// A path of the process as the layers have it.
    fn inside(&self, path: &[u8]) -> Option<Vec<u8>> {
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        let inside = Path::new(OsStr::from_bytes(path))
            .strip_prefix(OsStr::from_bytes(&self.at))
            .ok()?;
        // A part of it may be mounted by itself.
        let part = Path::new(OsStr::from_bytes(&self.root))
            .strip_prefix("/")
            .ok()?;
        Some(part.join(inside).into_os_string().into_vec())
    }

    /// Where a layer may be. The directory that a relative one starts from is nowhere to be read; who leaves it
    /// out to save room (Docker, containerd) has the layers beside the directory that is written to, or not far.
    fn paths(&self, layer: &[u8]) -> Vec<Vec<u8>> {
        if layer.starts_with(b"/") {
            return vec![layer.to_owned()];
        }
        let upper = Path::new(OsStr::from_bytes(self.upper.as_deref().unwrap_or_default()));
        let from = upper.ancestors().skip(1).filter(|from| from.is_absolute());
        from.map(|from| {
            from.join(OsStr::from_bytes(layer))
                .into_os_string()
                .into_vec()
        })
        .collect()
    }
}

/// `36 35 0:52 / /merged rw,relatime shared:1 - overlay none rw,lowerdir=/a:/b,upperdir=/c`
fn overlay(mounts: &[u8], id: u64) -> Option<Overlay> {
    let is_mount = |line: &&[u8]| {
        let word = line.split(|byte| *byte == b' ').next().unwrap_or_default();
        word == id.to_string().as_bytes()
    };
    let line = mounts.split(|byte| *byte == b'\n').find(is_mount)?;
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = words.iter().position(|word| *word == b"-")?;
    if words.get(dash + 1) != Some(&b"overlay".as_slice()) {
        return None;
    }
    let options = unescaped(words.get(dash + 3)?);
    let (mut layers, mut upper) = (Vec::new(), None);
    for option in parts(&options, b',') {
        let of = |name: &[u8]| option.strip_prefix(name);
        let lower = of(b"lowerdir=").or_else(|| of(b"lowerdir+="));
        if let Some(lower) = lower {
            layers.extend(parts(lower, b':').into_iter().map(without_backslashes));
        }
        upper = of(b"upperdir=").map(without_backslashes).or(upper);
    }
    Some(Overlay {
        root: unescaped(words.get(3)?),
        at: unescaped(words.get(4)?),
        layers,
        upper,
    })
}

/// `\040` as the kernel writes what would break a line.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after
            .first_chunk::<3>()
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(octal.unwrap_or(byte));
        rest = octal.map_or(after, |_| &after[3..]);
    }
    bytes
}

/// Cut at the separators that no backslash precedes.
fn parts(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at] == b'\\' {
            at += 1;
        } else if text[at] == separator {
            parts.push(&text[start..at]);
            start = at + 1;
        }
        at += 1;
    }
    parts.push(&text[start..]);
    parts
}

fn without_backslashes(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        bytes.extend(if *byte == b'\\' {
            rest.next()
        } else {
            Some(byte)
        });
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"\
        21 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw\n\
        36 21 0:52 / /with\\040space rw,relatime shared:7 master:1 - overlay none \
        rw,lowerdir=/a\\040b:/c\\134:d:low,upperdir=/s/3/fs,workdir=/w\n\
        37 21 0:53 / /new rw - overlay none rw,lowerdir+=/one,lowerdir+=/two\n\
        38 21 0:53 /part /bound rw - overlay none rw,lowerdir=/one\n";

    #[test]
    fn layers_as_the_kernel_writes_them() {
        let found = overlay(MOUNTS, 36).unwrap();
        assert_eq!(found.at, b"/with space");
        assert_eq!(
            found.layers,
            [b"/a b".to_vec(), b"/c:d".to_vec(), b"low".to_vec()]
        );
        let inside = found.inside(b"/with space/lib/x.so (deleted)");
        assert_eq!(inside, Some(b"lib/x.so".to_vec()));
        let paths = |layer: &[u8]| found.paths(layer);
        assert_eq!(paths(b"/c:d"), [b"/c:d"]);
        let relative: [&[u8]; 3] = [b"/s/3/low", b"/s/low", b"/low"];
        assert_eq!(paths(b"low"), relative);
        assert_eq!(found.inside(b"/with spaces/x.so"), None);
        let found = overlay(MOUNTS, 37).unwrap();
        assert_eq!(found.layers, [b"/one", b"/two"]);
        let found = overlay(MOUNTS, 38).unwrap();
        assert_eq!(found.inside(b"/bound/x.so"), Some(b"part/x.so".to_vec()));
        assert!(found.paths(b"low").is_empty());
        assert_eq!(overlay(MOUNTS, 21), None);
        assert_eq!(overlay(MOUNTS, 3), None);
    }

    #[test]
    fn a_cut_table_is_no_table() {
        for len in 0..MOUNTS.len() {
            let _ = overlay(&MOUNTS[..len], 36);
        }
        assert_eq!(unescaped(br"\04"), br"\04");
        assert_eq!(parts(b"a\\", b':'), [b"a\\"]);
        assert_eq!(without_backslashes(b"a\\"), b"a");
    }
}
