//! Bodies of JSON texts, one a line (NDJSON, JSON Lines): what is kept of a body in, its lines out as they come.

use super::head::media_name;

/// Where its next line begins. What is kept of a body only grows, so no line is kept twice.
#[derive(Debug, Default)]
pub struct Lines {
    /// How many were told.
    count: u64,
    next: usize,
    /// Up to here there is no end of a line.
    searched: usize,
}

/// One line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Counts those of its body from 0. Empty ones are none.
    pub number: u64,
    pub bytes: &'a [u8],
    /// Where something of it is missing, and how much.
    pub holes: Vec<(usize, u64)>,
    /// There may be more of it.
    pub is_cut: bool,
}

/// What is kept of a body, and where something is missing in it.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    pub bytes: &'a [u8],
    pub holes: &'a [(usize, u64)],
}

pub type Out<'a> = &'a mut dyn FnMut(Line<'_>);

/// `application/x-ndjson`, `application/jsonl` and the like: none of the names is registered.
pub fn are_lines(media: &[u8]) -> bool {
    let name = media_name(media);
    let name = name.strip_prefix(b"application/").unwrap_or_default();
    let name = name.strip_prefix(b"x-").unwrap_or(name);
    matches!(name, b"ndjson" | b"jsonl" | b"jsonlines")
}

impl Lines {
    /// More is kept of the body.
    pub fn feed(&mut self, kept: Kept<'_>, out: Out<'_>) {
        while let Some(end) = memchr::memchr(b'\n', &kept.bytes[self.searched..]) {
            let end = self.searched + end;
            self.tell(kept, end, false, out);
            (self.next, self.searched) = (end + 1, end + 1);
        }
        self.searched = kept.bytes.len();
    }

    /// Nothing more is kept; not `is_whole` if that is not all of the body.
    pub fn close(&mut self, kept: Kept<'_>, is_whole: bool, out: Out<'_>) {
        self.feed(kept, out);
        let end = kept.bytes.len();
        self.tell(kept, end, !is_whole, out);
        self.next = end;
    }

    fn tell(&mut self, kept: Kept<'_>, end: usize, is_cut: bool, out: Out<'_>) {
        let line = &kept.bytes[self.next..end];
        let bytes = line.strip_suffix(b"\r").unwrap_or(line);
        let holes = kept.holes.iter();
        let holes: Vec<(usize, u64)> = holes
            .filter(|(at, _)| (self.next..=end).contains(at))
            .map(|(at, length)| ((at - self.next).min(bytes.len()), *length))
            .collect();
        if bytes.trim_ascii().is_empty() && holes.is_empty() {
            return;
        }
        out(Line {
            number: self.count,
            bytes,
            holes,
            is_cut,
        });
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `body`, kept in pieces that end at `cuts`.
    fn read(body: &[u8], holes: &[(usize, u64)], cuts: &[usize], is_whole: bool) -> Vec<String> {
        let mut lines = Lines::default();
        let mut told = Vec::new();
        let mut out = |line: Line<'_>| {
            let text = String::from_utf8_lossy(line.bytes).into_owned();
            let cut = if line.is_cut { " cut" } else { "" };
            let holes = match line.holes.is_empty() {
                true => String::new(),
                false => format!(" {:?}", line.holes),
            };
            told.push(format!("{} {text}{cut}{holes}", line.number));
        };
        for end in cuts {
            let holes = holes.iter().take_while(|(at, _)| at <= end);
            let holes: Vec<_> = holes.copied().collect();
            let bytes = &body[..*end];
            lines.feed(
                Kept {
                    bytes,
                    holes: &holes,
                },
                &mut out,
            );
        }
        lines.close(Kept { bytes: body, holes }, is_whole, &mut out);
        told
    }

    #[test]
    fn lines_however_they_are_cut() {
        let body = b"{\"a\":1}\n\r\n  \n{\"b\":2}\r\n\nlast";
        let expected = ["0 {\"a\":1}", "1 {\"b\":2}", "2 last"];
        for cut in 0..=body.len() {
            assert_eq!(read(body, &[], &[cut], true), expected, "{cut}");
        }
        let all: Vec<usize> = (0..body.len()).collect();
        assert_eq!(read(body, &[], &all, true), expected);
        assert_eq!(read(body, &[], &all, false)[2], "2 last cut");
        assert_eq!(read(b"one\n", &[], &[], false), ["0 one"]);
    }

    #[test]
    fn a_hole_is_in_the_line_around_it() {
        let body = b"first\nsecond\nthird\n";
        let read = |at| read(body, &[(at, 9)], &[at, body.len()], true);
        let holes = ["0 first", "1 second", "2 third"];
        let with = |line: usize, hole: &str| {
            let mut lines = holes.map(str::to_owned);
            lines[line] += hole;
            lines.to_vec()
        };
        assert_eq!(read(0), with(0, " [(0, 9)]"));
        assert_eq!(read(5), with(0, " [(5, 9)]"));
        assert_eq!(read(6), with(1, " [(0, 9)]"));
        assert_eq!(read(8), with(1, " [(2, 9)]"));
        // Whatever was behind the last one.
        let mut behind = holes.map(str::to_owned).to_vec();
        behind.push("3  [(0, 9)]".to_owned());
        assert_eq!(read(body.len()), behind);
    }

    #[test]
    fn media_of_lines() {
        for media in [
            "application/x-ndjson",
            "Application/NDJSON; charset=utf-8",
            "application/jsonl",
            "application/x-jsonlines",
        ] {
            assert!(are_lines(media.as_bytes()), "{media}");
        }
        for media in [
            "application/json",
            "text/jsonl",
            "application/x-x-jsonl",
            "",
        ] {
            assert!(!are_lines(media.as_bytes()), "{media}");
        }
    }
}
