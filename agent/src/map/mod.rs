//! `vortex-agent map`: which program talks to whom, from the records that were written, or as a daemon has heard.
//!
//! ```text
//! files ─► lines ─┬► seen ─► graph (programs, peers, models, tools) ─► text, JSON or dot
//! records ────────┘            └─ of a daemon, by its door ─┘
//! ```

pub mod door;
mod draw;
mod graph;
mod seen;

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::time::ClockId;

use self::{graph::Graph, seen::Seen};
use crate::{
    alive::AskError,
    cli,
    clock::nanoseconds,
    complain::complain,
    record::{Record, WallTime},
};

/// A longer line is none of ours: a record holds a few MiB at most.
const LINE_MAX: u64 = 256 << 20;

/// Programs, peers, models and tools that files may name.
const FILES_ROOM: usize = 1_000_000;
/// And a daemon keeps: some MiB.
const DAEMON_ROOM: usize = 10_000;
/// Until a daemon begins to answer, and goes on.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a daemon has heard, bounded: whom nobody has heard of for longest makes room.
#[derive(Debug)]
pub struct Chart {
    host: String,
    graph: Graph,
}

impl Chart {
    pub fn new(host: &str) -> Chart {
        Chart {
            host: host.to_owned(),
            graph: Graph::new(DAEMON_ROOM),
        }
    }

    pub fn hear(&mut self, record: &Record<'_>) {
        if record.body.is_part() || record.process.is_none() {
            return;
        }
        self.graph.make_room();
        self.graph.add(Seen::told(record, &self.host));
    }

    /// What who asks is told.
    pub fn json(&self) -> Vec<u8> {
        draw::json(&self.graph)
    }
}

pub fn map(arguments: &cli::Map) -> ExitCode {
    match read_and_draw(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn read_and_draw(arguments: &cli::Map) -> Result<()> {
    let since = arguments.since.map_or(0, |time| {
        nanoseconds(ClockId::Realtime).saturating_sub(time.0.as_nanos() as u64)
    });
    let mut graph = match &arguments.files[..] {
        [] => ask(arguments, since)?,
        _ => Graph::new(FILES_ROOM),
    };
    for path in &arguments.files {
        let of = || format!("read records of {}", path.display());
        let read = read(path, since, &mut graph).with_context(of)?;
        if read.odd > 0 {
            complain(format_args!(
                "{}: {} of {} lines are no records, and left out",
                path.display(),
                read.odd,
                read.lines
            ));
        }
    }
    let drawn = match arguments.output {
        cli::Drawing::Text => draw::text(&graph),
        cli::Drawing::Json => draw::json(&graph),
        cli::Drawing::Dot => draw::dot(&graph),
    };
    // Nobody may be reading any more: that is no failure.
    let _ = io::stdout().write_all(&drawn);
    Ok(())
}

/// Of the daemon.
fn ask(arguments: &cli::Map, since: u64) -> Result<Graph> {
    let socket = arguments.socket.display();
    let told = match door::ask(&arguments.socket, PATIENCE) {
        Ok(told) => told,
        Err(AskError::Nobody) => bail!(
            "no daemon is running: nobody answers at {socket}; name files of records, or start `vortex-agent daemon`"
        ),
        Err(error) => Err(error).with_context(|| format!("ask the daemon at {socket}"))?,
    };
    let mut graph: Graph = serde_json::from_slice(&told)
        .with_context(|| format!("understand the daemon at {socket}: is it of this version?"))?;
    graph.leave_out_before(WallTime(since));
    Ok(graph)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    lines: u64,
    odd: u64,
}

/// A file as an output writes it, also one that was rotated and compressed; `-` is stdin.
fn read(path: &Path, since: u64, graph: &mut Graph) -> io::Result<Count> {
    if path == Path::new("-") {
        return lines(BufReader::new(io::stdin().lock()), since, graph);
    }
    let file = File::open(path)?;
    let decoded: Box<dyn Read> = match path.extension().and_then(|name| name.to_str()) {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Some("zst") => Box::new(zstd::Decoder::new(file)?),
        _ => Box::new(file),
    };
    lines(BufReader::new(decoded), since, graph)
}

fn lines(mut input: impl BufRead, since: u64, graph: &mut Graph) -> io::Result<Count> {
    let mut count = Count::default();
    let mut line = Vec::new();
    while input.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? > 0 {
        count.lines += 1;
        let record = serde_json::from_slice(&line).unwrap_or_default();
        match Seen::read(&record) {
            Some(seen) if seen.time.0 < since => {}
            Some(seen) => graph.add(seen),
            None => count.odd += 1,
        }
        line.clear();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of what the scenarios of the whole line write.
    fn graph(text: &str) -> Graph {
        let mut graph = Graph::new(FILES_ROOM);
        let count = lines(text.as_bytes(), 0, &mut graph).unwrap();
        assert_eq!(count.odd, 0);
        graph
    }

    const LLM: &str = include_str!("../../../tests/scenarios/llm.ndjson");

    #[test]
    fn calls_to_models_for_people() {
        let text = String::from_utf8(draw::text(&graph(LLM))).unwrap();
        let expected = "\
python3 on host (/usr/bin/python3), 2026-01-01 00:00:00 to 2026-01-01 00:00:00
  ↔ api.anthropic.com: 1 exchange, 400 B asked, 1.3 KiB answered
      claude-sonnet-4-5-20250929 (anthropic): 1 call, 25 → 17 tokens, 0.000319 USD
        deploy: 1 time
  ↔ localhost:8000: 1 exchange, 108 B asked, 142 B answered
      gpt-5-mini (openai): 1 call
";
        assert_eq!(text, expected);
    }

    /// Who has the tools is asked for them, and no model that spoke before.
    #[test]
    fn tools_of_servers_for_people() {
        const MCP: &str = include_str!("../../../tests/scenarios/mcp.ndjson");
        let text = String::from_utf8(draw::text(&graph(&format!("{LLM}{MCP}")))).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let expected = [
            "  ↔ tools.example: 6 exchanges, 734 B asked, 715 B answered",
            "      deploy: 1 time",
        ];
        assert!(lines.ends_with(&expected), "{text}");
    }

    #[test]
    fn what_is_no_record_is_counted() {
        let mut graph = Graph::new(FILES_ROOM);
        let text = format!("{LLM}nonsense\n{{\"kind\":\"http\"}}\n{{\"v\":1}}\n");
        let count = lines(text.as_bytes(), 0, &mut graph).unwrap();
        let lines = text.lines().count() as u64;
        assert_eq!(count, Count { lines, odd: 3 });
    }

    #[test]
    fn what_was_before_is_left_out() {
        let at = 1_767_225_600_000_000_000;
        // Of that moment is the record of coverage.
        for (since, is_there, is_first) in [
            (at, true, true),
            (at + 1, true, false),
            (at + 1_000_000_000, false, false),
        ] {
            let mut graph = Graph::new(FILES_ROOM);
            assert_eq!(lines(LLM.as_bytes(), since, &mut graph).unwrap().odd, 0);
            assert_eq!(!draw::text(&graph).is_empty(), is_there);
            let json = String::from_utf8(draw::json(&graph)).unwrap();
            assert_eq!(
                json.contains("\"first\":\"2026-01-01T00:00:00.000000000Z\""),
                is_first
            );
        }
    }

    #[test]
    fn files_are_read_however_they_were_compressed() {
        let directory = std::env::temp_dir().join(format!("vortex-map-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(LLM.as_bytes()).unwrap();
        let expected = draw::json(&graph(LLM));
        for (name, bytes) in [
            ("a", LLM.as_bytes().to_vec()),
            ("a.gz", gzip.finish().unwrap()),
            ("a.zst", zstd::encode_all(LLM.as_bytes(), 1).unwrap()),
        ] {
            let path = directory.join(name);
            std::fs::write(&path, bytes).unwrap();
            let mut graph = Graph::new(FILES_ROOM);
            read(&path, 0, &mut graph).unwrap();
            assert!(draw::json(&graph) == expected, "{name}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }

    /// Names are strangers'.
    #[test]
    fn nothing_breaks_out_of_its_quotes() {
        let line = r#"{"v":1,"kind":"http","time":"2026-01-01T00:00:00.010000000Z","host":{"name":"h"},
            "process":{"pid":7,"comm":"a\"];\u001b[2J\n"},"server":{"address":"b\\\"\u0007","port":1}}"#;
        let graph = graph(&line.replace('\n', " "));
        for drawn in [draw::text(&graph), draw::dot(&graph)] {
            let text = String::from_utf8(drawn).unwrap();
            assert!(!text.contains(['\u{1b}', '\u{7}']), "{text}");
        }
        let dot = String::from_utf8(draw::dot(&graph)).unwrap();
        assert!(
            dot.contains(r#"label="a\"];"#) && dot.contains(r#"label="b\\\""#),
            "{dot}"
        );
        let unescaped = dot.replace("\\\\", "").replace("\\\"", "");
        assert!(dot.lines().count() == 6, "{dot}");
        assert!(unescaped.matches('"').count().is_multiple_of(2), "{dot}");
        let json = draw::json(&graph);
        serde_json::from_slice::<serde_json::Value>(&json).unwrap();
    }
}
