//! Every output of a run. Each takes the kinds that it wants, and none waits for another: one that is slow
//! drops and counts its own records, one that fails is alone with that.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

#[cfg(any(feature = "otlp", feature = "prometheus"))]
use super::Type;
use super::settings::Reads;
use super::{Failure, OpenError, Origin, Selection, Settings, Sink, State, Target};
#[cfg(any(feature = "otlp", feature = "prometheus"))]
use crate::deliver::{self, Courier, Starting};
use crate::record::{Record, SinkCount};

/// Outputs that were opened while there were privileges, to be written to when there are none.
pub struct Ready {
    outputs: Vec<(Settings, Target)>,
    /// For those with a network.
    #[cfg(any(feature = "otlp", feature = "prometheus"))]
    deliver: Option<Starting>,
}

impl Ready {
    pub fn open(
        settings: &[Settings],
        with_command: bool,
        #[cfg_attr(
            not(any(feature = "otlp", feature = "prometheus")),
            expect(unused_variables)
        )]
        origin: &Origin,
    ) -> Result<Self, OpenError> {
        let mut ready = Ready {
            outputs: Vec::new(),
            #[cfg(any(feature = "otlp", feature = "prometheus"))]
            deliver: start_deliver(settings, origin)?,
        };
        for one in settings {
            let Some(target) = one.to.open(with_command)? else {
                continue;
            };
            // Two threads would tear each other's records.
            if ready.writes_to(&target)? {
                return Err(OpenError::Twice { name: target.name });
            }
            ready.outputs.push((one.clone(), target));
        }
        Ok(ready)
    }

    pub fn writes_to(&self, target: &Target) -> io::Result<bool> {
        for (_, own) in &self.outputs {
            if own.is_same_file(target)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Nothing is to be missing between two records: whoever fails ends.
    pub fn without_recovery(mut self) -> Self {
        let outputs = self.outputs.into_iter();
        self.outputs = outputs
            .map(|(settings, target)| (settings, target.without_recovery()))
            .collect();
        self
    }

    /// Processes that serve outputs.
    pub fn helpers(&self) -> Vec<u32> {
        let targets = self.outputs.iter().map(|(_, target)| target);
        let helpers = targets.filter_map(Target::keeper);
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        let helpers = helpers.chain(self.deliver.iter().flat_map(Starting::pids));
        helpers.collect()
    }
}

#[cfg(any(feature = "otlp", feature = "prometheus"))]
fn start_deliver(settings: &[Settings], origin: &Origin) -> Result<Option<Starting>, OpenError> {
    let mut told = deliver::Settings {
        origin: Some(origin.clone()),
        ..deliver::Settings::default()
    };
    for one in settings {
        match &one.to {
            #[cfg(feature = "otlp")]
            Type::Otlp(otlp) => told.otlp.push((**otlp).clone()),
            #[cfg(feature = "prometheus")]
            Type::Prometheus(page) => told.prometheus.push(page.clone()),
            _ => {}
        }
    }
    if told.otlp.is_empty() && told.prometheus.is_empty() {
        return Ok(None);
    }
    Ok(Some(deliver::start(&told)?))
}

/// All of them, each with its thread.
pub struct Sinks {
    outputs: Vec<One>,
    #[cfg(any(feature = "otlp", feature = "prometheus"))]
    courier: Option<Courier>,
    /// That its process went was told.
    #[cfg(any(feature = "otlp", feature = "prometheus"))]
    is_loss_told: bool,
}

struct One {
    name: String,
    selection: Selection,
    reads: Reads,
    sink: Sink,
    /// Its failure was told.
    is_told: bool,
}

impl Sinks {
    pub fn start(ready: Ready, origin: &Origin) -> io::Result<Self> {
        let start = |(settings, target): (Settings, Target)| {
            let format = settings.format(&target);
            Ok(One {
                reads: settings.reads(),
                selection: settings.selection,
                name: settings.name.unwrap_or_else(|| target.name.clone()),
                sink: Sink::start(target, format, origin)?,
                is_told: false,
            })
        };
        let outputs: io::Result<_> = ready.outputs.into_iter().map(start).collect();
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        let courier = ready.deliver.map(|deliver| deliver.begin(origin));
        Ok(Sinks {
            outputs: outputs?,
            #[cfg(any(feature = "otlp", feature = "prometheus"))]
            courier: courier.transpose()?,
            #[cfg(any(feature = "otlp", feature = "prometheus"))]
            is_loss_told: false,
        })
    }

    /// Other kinds for each output of this process from here on.
    pub fn select(&mut self, settings: &[Settings]) {
        let here = settings.iter().filter(|one| one.to.is_here());
        for (one, settings) in self.outputs.iter_mut().zip(here) {
            one.selection.clone_from(&settings.selection);
        }
    }

    /// Each that wants the record takes it, or drops and counts it.
    pub fn write(&mut self, record: &Record<'_>) {
        for one in &mut self.outputs {
            if one.selection.wants(record, one.reads) {
                one.sink.write(record);
            }
        }
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        if let Some(courier) = &mut self.courier {
            courier.write(record);
        }
    }

    /// Would nobody have room for much more? As long as one has, the others drop: who waited for the slow one
    /// would lose everybody's.
    pub fn is_full(&self) -> bool {
        let states = self.outputs.iter().map(|one| one.sink.state());
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        let states = states.chain(self.courier.as_ref().map(Courier::state));
        let mut writing = states.filter(|state| *state != State::Failed).peekable();
        writing.peek().is_some() && writing.all(|state| state == State::Full)
    }

    pub fn flush(&mut self) {
        for one in &mut self.outputs {
            one.sink.flush();
        }
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        if let Some(courier) = &mut self.courier {
            courier.flush();
        }
    }

    /// Waits until every record so far has become sent or dropped. The names of those that were too slow.
    pub fn drain(&mut self, deadline: Instant) -> Vec<&str> {
        // All at once: the first one may take all of the time.
        self.flush();
        let late = self.outputs.iter_mut().filter_map(|one| {
            let is_drained = one.sink.drain(deadline);
            (!is_drained).then_some(&*one.name)
        });
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        let late = {
            let courier = self.courier.as_mut();
            let is_late = courier.is_some_and(|courier| !courier.drain(deadline));
            late.chain(is_late.then_some("a collector"))
        };
        late.collect()
    }

    /// Of each, records so far.
    pub fn counts(&self) -> Vec<SinkCount> {
        let count = |one: &One| SinkCount {
            name: one.name.clone(),
            ..one.sink.count()
        };
        let counts = self.outputs.iter().map(count);
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        let counts = counts.chain(self.courier.iter().flat_map(Courier::counts));
        counts.collect()
    }

    /// Why some have ended since the last question.
    pub fn failures(&mut self) -> Vec<Failure> {
        let untold = self.outputs.iter_mut().filter(|one| !one.is_told);
        let failures = untold.filter_map(|one| {
            let failure = one.sink.failure()?;
            one.is_told = true;
            Some(failure)
        });
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        let failures = failures.chain({
            let gone = self.courier.as_ref().and_then(Courier::failure);
            let untold =
                gone.filter(|_| !std::mem::replace(&mut self.is_loss_told, gone.is_some()));
            untold.map(|gone| Failure::of("collectors", io::Error::other(gone)))
        });
        failures.collect()
    }

    /// What went wrong with some since the last question, which are written on.
    pub fn troubles(&self) -> impl Iterator<Item = String> {
        let troubles = self.outputs.iter().flat_map(|one| one.sink.troubles());
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        let troubles = troubles.chain(self.courier.iter().flat_map(Courier::troubles));
        troubles
    }

    /// Those to which nothing can be written now, and why.
    pub fn outages(&self) -> impl Iterator<Item = Failure> {
        self.outputs.iter().filter_map(|one| one.sink.outage())
    }

    /// Have all of them ended, and how?
    pub fn end(&self) -> Option<End> {
        let mut end = End::Unread;
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        if let Some(courier) = &self.courier {
            courier.failure()?;
            end = End::Failed;
        }
        for one in &self.outputs {
            if !one.sink.failure()?.is_broken_pipe() {
                end = End::Failed;
            }
        }
        Some(end)
    }

    /// Both ends of each connection to a collector that was made since the last time.
    pub fn made(&self) -> Vec<(SocketAddr, SocketAddr)> {
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        if let Some(courier) = &self.courier {
            return courier.made();
        }
        Vec::new()
    }

    /// CPU time in microseconds and memory in bytes of the process that delivers.
    pub fn usage(&self) -> (u64, u64) {
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        if let Some(courier) = &self.courier {
            return courier.usage();
        }
        (0, 0)
    }
}

/// How all outputs ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nobody reads any more.
    Unread,
    Failed,
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{PipeReader, Read as _, pipe};
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use super::super::{Stdout, Type, sample};
    use super::*;
    use crate::config::{Color, Output};
    use crate::record::{Body, Kind, View};
    use crate::redact::Policy;

    fn settings(name: &str, kinds: Option<&[Kind]>) -> Settings {
        Settings {
            name: Some(name.to_owned()),
            selection: Selection::new(kinds.map(<[Kind]>::to_vec)),
            to: Type::Stdout(Stdout {
                output: Output::Json,
                color: Color::Never,
            }),
        }
    }

    fn piped(settings: Settings) -> ((Settings, Target), PipeReader) {
        let (reader, writer) = pipe().unwrap();
        let target = Target {
            name: "pipe".into(),
            file: OwnedFd::from(writer).into(),
            rotation: None,
            recovers: false,
            looked: None,
        };
        ((settings, target), reader)
    }

    fn full_disk(settings: Settings) -> (Settings, Target) {
        let target = Target {
            name: "full".into(),
            file: File::options().write(true).open("/dev/full").unwrap(),
            rotation: None,
            recovers: false,
            looked: None,
        };
        (settings, target)
    }

    fn start(ready: Vec<(Settings, Target)>) -> Sinks {
        {
            let ready = Ready {
                outputs: ready,
                #[cfg(any(feature = "otlp", feature = "prometheus"))]
                deliver: None,
            };
            Sinks::start(ready, &sample::origin())
        }
        .unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn kinds_in(mut reader: PipeReader) -> Vec<String> {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let kind = |line: &str| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            record["kind"].as_str().unwrap().to_owned()
        };
        text.lines().map(kind).collect()
    }

    /// Each kind that goes another way: bytes twice, a gap, coverage.
    fn write_some(sinks: &mut Sinks) {
        let (process, connection) = (sample::process(), sample::connection());
        for view in [View::All, View::Undecoded] {
            let mut record = sample::data(&process, &connection, b"GET /", Policy::Full);
            if let Body::Data { view: of, .. } = &mut record.body {
                *of = view;
            }
            sinks.write(&record);
        }
        sinks.write(&sample::alone(None, Body::Coverage(sample::coverage())));
    }

    #[test]
    fn each_takes_what_it_wants() {
        let (all, of_all) = piped(settings("all", Some(&[Kind::Data, Kind::Coverage])));
        let (undecoded, of_undecoded) = piped(settings("undecoded", None));
        let (gaps, of_gaps) = piped(settings("gaps", Some(&[Kind::Gap])));
        let mut sinks = start(vec![all, undecoded, gaps]);
        write_some(&mut sinks);
        assert!(sinks.drain(soon()).is_empty());
        let counts = sinks.counts();
        let counts: Vec<_> = counts
            .iter()
            .map(|count| (&*count.name, count.sent, count.dropped))
            .collect();
        assert_eq!(counts, [("all", 2, 0), ("undecoded", 2, 0), ("gaps", 0, 0)]);
        drop(sinks);
        assert_eq!(kinds_in(of_all), ["data", "coverage"]);
        assert_eq!(kinds_in(of_undecoded), ["data", "coverage"]);
        assert!(kinds_in(of_gaps).is_empty());
    }

    #[test]
    fn one_that_fails_ends_alone() {
        let (good, of_good) = piped(settings("good", None));
        let mut sinks = start(vec![full_disk(settings("full", None)), good]);
        write_some(&mut sinks);
        assert!(sinks.drain(soon()).is_empty());
        let failures: Vec<_> = sinks.failures();
        assert_eq!(failures.len(), 1);
        assert!(failures[0].to_string().starts_with("write to full: "));
        assert!(sinks.failures().is_empty(), "told once");
        assert_eq!(sinks.end(), None);
        write_some(&mut sinks);
        assert!(sinks.drain(soon()).is_empty());
        let counts: Vec<_> = sinks.counts();
        assert_eq!((counts[0].sent, counts[0].dropped), (0, 4));
        assert_eq!((counts[1].sent, counts[1].dropped), (4, 0));
        drop(of_good);
        write_some(&mut sinks);
        assert!(sinks.drain(soon()).is_empty());
        assert_eq!(sinks.end(), Some(End::Failed));
    }

    #[test]
    fn nobody_reads_any_more() {
        let (one, of_one) = piped(settings("one", None));
        let (other, of_other) = piped(settings("other", None));
        let mut sinks = start(vec![one, other]);
        drop(of_one);
        write_some(&mut sinks);
        assert!(sinks.drain(soon()).is_empty());
        assert_eq!(sinks.end(), None);
        drop(of_other);
        write_some(&mut sinks);
        assert!(sinks.drain(soon()).is_empty());
        assert_eq!(sinks.end(), Some(End::Unread));
    }

    /// A reader that stands still: the other one gets everything, and the pipeline need not wait before both do.
    #[test]
    fn one_that_is_slow_drops_alone() {
        let (slow, of_slow) = piped(settings("slow", Some(&[Kind::Data])));
        let (quick, of_quick) = piped(settings("quick", Some(&[Kind::Data])));
        let mut sinks = start(vec![slow, quick]);
        let reading = std::thread::spawn(move || kinds_in(of_quick).len());
        let (process, connection) = (sample::process(), sample::connection());
        let payload = vec![b'x'; 1 << 20];
        let record = sample::data(&process, &connection, &payload, Policy::Full);
        for _ in 0..200 {
            sinks.write(&record);
            sinks.outputs[1].sink.drain(soon());
            assert!(!sinks.is_full());
        }
        assert_eq!(sinks.outputs[0].sink.state(), State::Full);
        let counts = sinks.counts();
        assert!((100..199).contains(&counts[0].dropped), "{counts:?}");
        assert_eq!((counts[1].sent, counts[1].dropped), (200, 0));
        let late = sinks.drain(Instant::now() + Duration::from_millis(50));
        assert_eq!(late, ["slow"]);
        // Alone it has nobody to take care of.
        let quick = sinks.outputs.pop().unwrap();
        assert!(sinks.is_full());
        drop(quick);
        assert_eq!(reading.join().unwrap(), 200);
        drop(of_slow);
    }

    /// A million exchanges of 1 KiB, into files on the disk of the temporary directory. `cargo xtask bench sinks`
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        const RECORDS: u32 = 1_000_000;
        let directory = std::env::temp_dir().join(format!("vortex-sinks-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let file = |name: &str, more: &str| -> Settings {
            let path = directory.join(name);
            let table = format!("type = \"file\"\npath = \"{}\"\n{more}", path.display());
            toml::from_str(&table).unwrap()
        };
        let rotated = "rotate = { size = \"100MiB\", keep = 2";
        let zstd = format!("{rotated}, compress = \"zstd\" }}");
        let (process, connection) = (sample::process(), sample::connection());
        let body = r#"{"id":"a1b2","text":"so it goes, line by line"},"#.repeat(30);
        let http = sample::http(
            sample::half(vec![sample::header("accept", "*/*")], b""),
            sample::half(
                vec![sample::header("content-type", "application/json")],
                &body.as_bytes()[..1024],
            ),
        );
        let record = Record {
            body: Body::Http(&http),
            ..sample::data(&process, &connection, b"", Policy::Full)
        };
        for (name, settings) in [
            ("file", vec![file("one", "")]),
            ("file-rotated", vec![file("two", &format!("{rotated} }}"))]),
            ("file-zstd", vec![file("three", &zstd)]),
            ("two-files", vec![file("four", ""), file("five", "")]),
        ] {
            let ready = Ready::open(&settings, false, &sample::origin()).unwrap();
            let mut sinks = Sinks::start(ready, &sample::origin()).unwrap();
            let start = Instant::now();
            for number in 0..RECORDS {
                while number % 32 == 0 && sinks.outputs.iter().any(|one| one.sink.is_full()) {
                    std::thread::sleep(Duration::from_micros(200));
                }
                sinks.write(&record);
            }
            while !sinks.drain(soon()).is_empty() {}
            let seconds = start.elapsed().as_secs_f64();
            for count in sinks.counts() {
                assert_eq!((count.sent, count.dropped), (RECORDS.into(), 0));
            }
            println!("speed {name} {:.0}", f64::from(RECORDS) / seconds);
            drop(sinks);
            for entry in std::fs::read_dir(&directory).unwrap() {
                let _ = std::fs::remove_file(entry.unwrap().path());
            }
        }
        let _ = std::fs::remove_dir_all(directory);
    }
}
