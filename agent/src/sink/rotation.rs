//! `rotate` of a file: when the next one begins, and what the old ones are called.
//!
//! The file that is written keeps its name, so that `tail -F` follows. An old one is called after the moment it
//! became old, `FILE.20261121T234203.000042Z`, in UTC: names sort as their files do, and none changes later but
//! by `.gz` or `.zst`.

use std::fs::File;
use std::mem;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Deserialize;

use super::keeper::{Keeper, Turn};
use crate::config::{Interval, Size, word};
use crate::record::{Civil, WallTime};

/// When, and what becomes of old files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Rotate {
    /// The most bytes of a file.
    pub size: u64,
    /// From its first record on.
    pub age: Duration,
    /// So many old files stay.
    pub keep: usize,
    pub compress: Compress,
}

/// What is done to an old file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    #[default]
    None,
    Gzip,
    Zstd,
}

impl Compress {
    /// What it adds to a name.
    pub(super) const fn extension(self) -> &'static str {
        match self {
            Compress::None => "",
            Compress::Gzip => ".gz",
            Compress::Zstd => ".zst",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    size: Option<Size>,
    age: Option<Interval>,
    #[serde(default = "a_week")]
    keep: usize,
    #[serde(default, deserialize_with = "word")]
    compress: Compress,
}

const fn a_week() -> usize {
    7
}

impl TryFrom<Written> for Rotate {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let Written {
            size,
            age,
            keep,
            compress,
        } = written;
        match (size, age) {
            (None, None) => return Err("`rotate` needs `size` or `age`"),
            (Some(Size(0)), _) => return Err("`size` of `rotate` is at least a byte"),
            _ if keep == 0 => return Err("`keep` of `rotate` is at least 1"),
            _ => {}
        }
        Ok(Rotate {
            size: size.map_or(u64::MAX, |size| size.0),
            age: age.map_or(Duration::MAX, |age| age.0),
            keep,
            compress,
        })
    }
}

/// Of a file that is followed by others.
#[derive(Debug)]
pub(crate) struct Rotation {
    keeper: Keeper,
    progress: Progress,
    /// What went wrong last was told.
    is_told: bool,
}

impl Rotation {
    pub(super) fn new(rotate: Rotate, keeper: Keeper) -> Self {
        Rotation {
            keeper,
            progress: Progress::new(rotate),
            is_told: false,
        }
    }

    /// Puts the next file in the place of one that was removed. False: there is none.
    pub(super) fn replace(&mut self, file: &mut File) -> bool {
        let Some(next) = self.keeper.turn().file else {
            return false;
        };
        *file = next;
        self.progress.begin();
        true
    }

    /// The process that makes the next files.
    pub(super) fn keeper(&self) -> u32 {
        self.keeper.pid()
    }

    /// Up to where the records of a batch belong into `file`, from the byte `from` on, where there is at least one.
    /// `file` may be the next one now. And what went wrong, if it is news.
    pub(super) fn part(
        &mut self,
        file: &mut File,
        ends: &[usize],
        from: usize,
    ) -> (usize, Option<String>) {
        let now = Instant::now();
        let fits = self.progress.fits(ends, from, now);
        if fits > from {
            self.progress.wrote(fits - from, now);
            return (fits, None);
        }
        let Turn {
            file: next,
            trouble,
        } = self.keeper.turn();
        if let Some(next) = next {
            *file = next;
        }
        // Should there be none, another one is asked for when as much again was written.
        self.progress.begin();
        let was_told = mem::replace(&mut self.is_told, trouble.is_some());
        let fits = self.progress.fits(ends, from, now);
        self.progress.wrote(fits - from, now);
        (fits, trouble.filter(|_| !was_told))
    }
}

/// How far the file has come that is written.
#[derive(Clone, Copy, Debug)]
struct Progress {
    size: u64,
    age: Duration,
    bytes: u64,
    /// When its first record came. Before, it does not grow older.
    began: Option<Instant>,
}

impl Progress {
    fn new(rotate: Rotate) -> Self {
        Progress {
            size: rotate.size,
            age: rotate.age,
            bytes: 0,
            began: None,
        }
    }

    /// Up to where the records of a batch belong into this file, from the byte `from` on. They end at `ends`. None
    /// does (`from`): the next file comes first.
    fn fits(&self, ends: &[usize], from: usize, now: Instant) -> usize {
        let is_old = |began| now.saturating_duration_since(began) >= self.age;
        if self.began.is_some_and(is_old) {
            return from;
        }
        let left = usize::try_from(self.size.saturating_sub(self.bytes)).unwrap_or(usize::MAX);
        let next = ends.partition_point(|end| *end <= from);
        let behind = ends.partition_point(|end| *end <= from.saturating_add(left));
        match ends[next..behind.max(next)].last() {
            Some(end) => *end,
            // Longer than a file may be: it has one for itself.
            None if self.bytes == 0 => ends.get(next).copied().unwrap_or(from),
            None => from,
        }
    }

    fn wrote(&mut self, bytes: usize, now: Instant) {
        self.bytes += bytes as u64;
        self.began.get_or_insert(now);
    }

    /// Another file, or the same one for as long once more.
    fn begin(&mut self) {
        self.bytes = 0;
        self.began = None;
    }
}

/// What an old file's name ends with. Later ones sort behind earlier ones, also if the clock was set back.
pub(super) fn stamp(now: WallTime, last: Option<&str>) -> String {
    let stamp = written(now);
    match last {
        Some(last) if *last >= *stamp => following(last),
        _ => stamp,
    }
}

fn written(time: WallTime) -> String {
    let Civil {
        year,
        month,
        day,
        hour,
        minute,
        second,
        nanosecond,
    } = time.civil();
    let micros = nanosecond / 1000;
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}.{micros:06}Z")
}

/// The next one in order. Its digits need not be a moment that there is.
fn following(stamp: &str) -> String {
    let mut bytes = stamp.as_bytes().to_vec();
    for byte in bytes.iter_mut().rev().filter(|byte| byte.is_ascii_digit()) {
        if *byte < b'9' {
            *byte += 1;
            break;
        }
        *byte = b'0';
    }
    String::from_utf8(bytes).expect("digits and letters")
}

/// Is it one of ours?
pub(super) fn is_stamp(text: &str) -> bool {
    let pattern = "00000000T000000.000000Z";
    let is_alike = |(byte, pattern): (u8, u8)| match pattern {
        b'0' => byte.is_ascii_digit(),
        other => byte == other,
    };
    text.len() == pattern.len() && text.bytes().zip(pattern.bytes()).all(is_alike)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotate(text: &str) -> Result<Rotate, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn what_may_be_written() {
        let all = rotate("size = \"1MiB\"\nage = \"1d\"\nkeep = 3\ncompress = \"zstd\"").unwrap();
        let expected = Rotate {
            size: 1 << 20,
            age: Duration::from_secs(86_400),
            keep: 3,
            compress: Compress::Zstd,
        };
        assert_eq!(all, expected);
        let little = rotate("size = 5").unwrap();
        assert_eq!((little.keep, little.compress), (7, Compress::None));
        assert_eq!(little.age, Duration::MAX);
        for (text, part) in [
            ("", "`size` or `age`"),
            ("keep = 3", "`size` or `age`"),
            ("size = 0", "at least a byte"),
            ("size = 5\nkeep = 0", "at least 1"),
            ("size = 5\ncompress = \"lzma\"", "gzip"),
            ("size = 5\nages = \"1d\"", "ages"),
        ] {
            let why = rotate(text).unwrap_err();
            assert!(why.contains(part), "{text:?} gave {why:?}");
        }
    }

    fn progress(size: u64, age: Duration) -> Progress {
        Progress {
            size,
            age,
            bytes: 0,
            began: None,
        }
    }

    #[test]
    fn a_file_ends_at_a_record_before_its_size() {
        let now = Instant::now();
        let ends = [10, 20, 35, 36];
        let mut file = progress(25, Duration::MAX);
        assert_eq!(file.fits(&ends, 0, now), 20);
        file.wrote(20, now);
        assert_eq!(file.fits(&ends, 20, now), 20, "the next file comes first");
        file.begin();
        assert_eq!(file.fits(&ends, 20, now), 36);
        file.wrote(16, now);
        // The last byte that there is room for is used.
        assert_eq!(file.fits(&[9], 0, now), 9);
        assert_eq!(file.fits(&[10], 0, now), 0);
        // What is longer than any file has one for itself.
        assert_eq!(file.fits(&[30, 31], 0, now), 0);
        file.begin();
        assert_eq!(file.fits(&[30, 31], 0, now), 30);
        file.wrote(30, now);
        assert_eq!(file.fits(&[30, 31], 30, now), 30);
    }

    #[test]
    fn a_file_grows_old_from_its_first_record_on() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut file = progress(u64::MAX, Duration::from_secs(60));
        assert_eq!(file.fits(&[10], 0, after(1000)), 10);
        file.wrote(10, after(1000));
        assert_eq!(file.fits(&[10], 0, after(1059)), 10);
        file.wrote(10, after(1059));
        assert_eq!(file.fits(&[10], 0, after(1060)), 0);
        file.begin();
        assert_eq!(file.fits(&[10], 0, after(5000)), 10);
        // A clock that stands still, or worse.
        file.wrote(10, after(5000));
        assert_eq!(file.fits(&[10], 0, after(1)), 10);
    }

    #[test]
    fn stamps_sort_whatever_the_clock_does() {
        let time = WallTime(1_795_224_029_000_042_999);
        let first = stamp(time, None);
        assert_eq!(first, "20261121T012029.000042Z");
        assert!(is_stamp(&first));
        let mut last = first;
        for back in [0, 0, 1 << 60] {
            let next = stamp(WallTime(time.0 - back), Some(&last));
            assert!(next > last && is_stamp(&next), "{next} after {last}");
            last = next;
        }
        assert_eq!(
            following("20261121T012029.999999Z"),
            "20261121T012030.000000Z"
        );
        for other in [
            "",
            "1",
            "20261121T012029.000042Z.gz",
            "2026-121T012029.000042Z",
        ] {
            assert!(!is_stamp(other));
        }
    }
}
