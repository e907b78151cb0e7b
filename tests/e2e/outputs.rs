//! Several outputs of one run, and files that follow each other.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Lab, argv, bare, free_port, scaled, seconds, wait_for};
use crate::proc::tree;
use crate::records::{Records, compare};

/// A file, text, a full disk and a reader that stands still: each has its own, and no other's troubles.
#[test]
fn outputs_of_one_run() {
    let Some(lab) = Lab::with("outputs_of_one_run", &["curl", "unshare"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let (small, kept, fifo) = (lab.path("small"), lab.path("kept"), lab.path("fifo"));
    fs::create_dir(&small).unwrap();
    lab.finish(lab.command(argv!["mkfifo", &fifo]), "mkfifo");
    let mut still = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&fifo)
        .unwrap();
    let config = format!(
        r#"
        [[sink]]
        name = "still"
        type = "stdout"
        output = "json"
        emit = ["data"]
        [[sink]]
        name = "full"
        type = "file"
        path = "{}"
        emit = ["data"]
        [[sink]]
        type = "file"
        path = "{}"
        emit = ["data", "http", "gap", "coverage", "stats"]
        [[sink]]
        name = "text"
        type = "file"
        path = "{}"
        output = "text"
        emit = ["http"]
        "#,
        small.join("records").display(),
        lab.path("all").display(),
        lab.path("text").display(),
    );
    let script = "mount -t tmpfs -o size=16k none \"$1\" && small=$1 kept=$2 fifo=$3 && shift 3 && \
        \"$@\" 2> \"$fifo\"; code=$?; cp \"$small/records\" \"$kept\"; exit $code";
    // More than the queue of the one that stands still.
    let url = server.url("/bytes/[700000-700129]");
    let run = lab
        .agent()
        .config(&config)
        .before(argv![
            "unshare", "-m", "sh", "-c", script, "sh", &small, &kept, &fifo
        ])
        .run(argv!["curl", "-sk", "--http1.1", "-o", "/dev/null", url]);
    run.success();

    let text = fs::read_to_string(lab.path("all")).unwrap();
    let all = Records::parse(&text, true).unwrap();
    // A machine that is slow enough has holes, and each of them is told.
    compare(
        &all.connections().unwrap(),
        &server.client_truth(),
        &["ring_full"],
    )
    .unwrap_or_else(|error| panic!("{error}"));
    let sinks = all.last_stats().unwrap()["sinks"].as_array().unwrap();
    let count = |name: &str| {
        let sink = sinks.iter().find(|sink| sink["name"] == name).unwrap();
        let count = |key: &str| sink[key].as_u64().unwrap() as usize;
        (count("sent"), count("dropped"))
    };
    // The last record is the count itself.
    let name = lab.path("all").display().to_string();
    assert_eq!(count(&name), (all.0.len() - 1, 0));

    // A hole may hide a head, and with it who asked for what: what is told as a pair is one.
    let exchanges = all.kind("http").count();
    let has_holes = all.kind("gap").count() > 0;
    assert!(
        exchanges == 130 || has_holes && exchanges > 0,
        "{exchanges}"
    );
    for exchange in all.kind("http") {
        let length = &exchange["http"]["response"]["header"]["content-length"][0];
        if let (Some(path), Some(length)) = (exchange["url"]["path"].as_str(), length.as_str()) {
            assert_eq!(path, format!("/bytes/{length}"));
        } else {
            assert!(has_holes, "{exchange}");
        }
    }
    assert_eq!(count("text"), (exchanges, 0));
    let blocks = fs::read_to_string(lab.path("text")).unwrap();
    let heads = blocks
        .lines()
        .filter(|line| line.contains(": GET https://"));
    let asked = all.kind("http").filter(|http| !http["url"].is_null());
    assert_eq!(heads.count(), asked.count());

    let data = all.kind("data").count();
    let (sent, dropped) = count("full");
    assert_eq!(whole(&fs::read(kept).unwrap()), sent);
    assert_eq!(sent + dropped, data);
    assert!(dropped > 0);

    // Nobody read: what the pipe holds is what was sent, and the beginning of a write that did not return.
    let mut held = Vec::new();
    while let Ok(1..) = still.by_ref().take(1 << 20).read_to_end(&mut held) {}
    let (sent, dropped) = count("still");
    assert!(sent <= whole(&held) && held.len() <= 64 << 10);
    assert!(
        (dropped > 0 || has_holes) && sent + dropped <= data,
        "{sent} {dropped} of {data}"
    );
}

/// How many records there are, between what the agent itself says. Each but a torn last one is a whole line.
fn whole(lines: &[u8]) -> usize {
    let end = lines.iter().rposition(|byte| *byte == b'\n');
    let text = str::from_utf8(&lines[..end.map_or(0, |at| at + 1)]).unwrap();
    let is_record = |line: &&str| !line.starts_with("vortex-agent: ");
    let records: String = text.split_inclusive('\n').filter(is_record).collect();
    Records::parse(&records, true).unwrap().0.len()
}

fn rotating(name: &str, path: &Path, rotate: &str) -> String {
    format!(
        "[[sink]]\nname = \"{name}\"\ntype = \"file\"\npath = \"{}\"\nrotate = {{ {rotate} }}\n\
         emit = [\"data\", \"gap\", \"coverage\", \"stats\"]\n",
        path.display()
    )
}

/// `FILE.*`, the oldest first, and `FILE`.
fn files(path: &Path) -> Vec<PathBuf> {
    let beginning = format!("{}.", path.display());
    let entries = fs::read_dir(path.parent().unwrap()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_old = |path: &PathBuf| path.to_str().unwrap().starts_with(&beginning);
    let mut files: Vec<_> = paths.filter(is_old).collect();
    files.sort();
    files.push(path.to_owned());
    files
}

fn content(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let mut text = String::new();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text),
        Some("zst") => zstd::Decoder::new(&bytes[..])
            .unwrap()
            .read_to_string(&mut text),
        _ => (&bytes[..]).read_to_string(&mut text),
    }
    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text
}

/// Until all old files end so.
#[track_caller]
fn wait_for_copies(path: &Path, extension: &str) {
    wait_for(
        &format!("copies of {}", path.display()),
        seconds(30),
        || {
            let files = files(path);
            let (_, old) = files.split_last().unwrap();
            let is_copy = |file: &PathBuf| file.to_str().unwrap().ends_with(extension);
            old.iter().all(is_copy).then_some(())
        },
    );
}

/// The numbers of the records, which say whether one is missing, came twice or too early.
fn numbers(records: &Records) -> Vec<u64> {
    let number = |record: &Value| {
        let id = record["id"].as_str().unwrap();
        id.rsplit('-').next().unwrap().parse().unwrap()
    };
    records.0.iter().map(number).collect()
}

const MIB: u64 = 1 << 20;

#[test]
fn rotated_files_have_every_record_once() {
    let Some(lab) = Lab::with("rotated_files_have_every_record_once", &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let outputs = [
        ("plain", "size = \"1MiB\", keep = 1000", "Z"),
        (
            "gzip",
            "size = \"1MiB\", keep = 1000, compress = \"gzip\"",
            "Z.gz",
        ),
        (
            "zstd",
            "size = \"1MiB\", keep = 1000, compress = \"zstd\"",
            "Z.zst",
        ),
        ("few", "size = \"1MiB\", keep = 2", "Z"),
    ];
    let config: String = outputs
        .iter()
        .map(|(name, rotate, _)| rotating(name, &lab.path(name), rotate))
        .collect();
    let last = 700_000 + scaled("requests", 40, 4) - 1;
    let url = server.url(&format!("/bytes/[700000-{last}]"));
    let run =
        lab.agent()
            .config(&config)
            .run(argv!["curl", "-sk", "--http1.1", "-o", "/dev/null", url]);
    run.success();
    assert!(
        !run.process.err().contains("rotate "),
        "{}",
        run.process.err()
    );

    let truth = server.client_truth();
    let mut texts = Vec::new();
    for (name, _, extension) in outputs {
        let path = lab.path(name);
        wait_for_copies(&path, extension);
        let files = files(&path);
        assert!(files.len() > 2, "{files:?}");
        let mut text = String::new();
        for file in &files {
            let mode = fs::metadata(file).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "{}", file.display());
            let content = content(file);
            assert!(content.len() as u64 <= MIB && content.ends_with('\n'));
            text += &content;
        }
        if name == "few" {
            assert_eq!(files.len(), 3);
        } else {
            let records = Records::parse(&text, true).unwrap();
            let stats = records.last_stats().unwrap();
            let all: Vec<u64> = (0..records.0.len() as u64).collect();
            assert_eq!(numbers(&records), all, "{name}");
            let sinks = stats["sinks"].as_array().unwrap();
            let sink = sinks.iter().find(|sink| sink["name"] == name).unwrap();
            assert_eq!(sink["sent"], all.len() - 1, "{name}");
            assert_eq!(sink["dropped"], 0, "{name}");
            compare(&records.connections().unwrap(), &truth, &["ring_full"])
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        texts.push(text);
    }
    let [plain, _, _, few] = &texts[..] else {
        panic!()
    };
    assert!(plain.ends_with(few), "the oldest files go first");
}

/// A small file system, which a test fills and frees.
struct Disk<'a>(&'a Lab, PathBuf);

impl Disk<'_> {
    fn mount(lab: &Lab) -> Disk<'_> {
        let path = lab.path("disk");
        fs::create_dir(&path).unwrap();
        let options = "size=4m";
        lab.finish(
            lab.command(argv!["mount", "-t", "tmpfs", "-o", options, "none", &path]),
            "mount",
        );
        Disk(lab, path)
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // Also while somebody has a file of it open.
        let unmount = self.0.command(argv!["umount", "-l", &self.1]);
        self.0.finish(unmount, "umount");
    }
}

/// Outputs on a disk that is full for a while, one of which rotates: what is sent is there, in whole lines and in
/// order, and the rest is dropped and counted. It is said once that it fails, and once that it works.
#[test]
fn files_on_a_full_disk_recover() {
    let Some(lab) = Lab::with("files_on_a_full_disk_recover", &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let disk = Disk::mount(&lab);
    let server = lab.server(&[]);
    let (plain, log) = (disk.1.join("plain"), disk.1.join("log"));
    let kinds = "emit = [\"data\", \"gap\", \"coverage\", \"stats\"]";
    let mut config = format!(
        "stats-interval = \"200ms\"\n[[sink]]\nname = \"plain\"\ntype = \"file\"\npath = \"{}\"\n{kinds}\n",
        plain.display()
    );
    config += &rotating("log", &log, "size = \"256KiB\", keep = 1000");
    let elsewhere = lab.path("elsewhere");
    config += &format!(
        "[[sink]]\nname = \"elsewhere\"\ntype = \"file\"\npath = \"{}\"\n{kinds}\n",
        elsewhere.display()
    );
    let stop = lab.path("stop");
    let url = server.url("/bytes/300000");
    let script =
        "while ! [ -e \"$1\" ]; do curl -sk --http1.1 -o /dev/null \"$2\"; sleep 0.1; done";
    let running = lab
        .agent()
        .config(&config)
        .start(argv!["sh", "-c", script, "sh", &stop, url]);
    let said = |word: &str| {
        let err = running.process.err();
        err.lines().filter(|line| line.contains(word)).count()
    };
    let wait = |word: &str, count| {
        wait_for(word, seconds(60), || (said(word) >= count).then_some(()));
    };
    wait("its records are dropped", 2);
    // Nothing is removed that the test reads afterwards: the disk grows.
    let grow = lab.command(argv!["mount", "-o", "remount,size=256m", &disk.1]);
    lab.finish(grow, "remount");
    wait("is written again", 2);
    fs::write(&stop, "").unwrap();
    let run = running.finish(seconds(60));
    run.success();
    let err = run.process.err();
    for word in ["its records are dropped", "is written again"] {
        assert_eq!(err.matches(word).count(), 2, "{err}");
    }
    let all = Records::parse(&fs::read_to_string(&elsewhere).unwrap(), true).unwrap();
    let stats = all.last_stats().unwrap();
    for (name, path) in [("plain", plain), ("log", log)] {
        let text: String = files(&path).iter().map(|file| content(file)).collect();
        let records = Records::parse(&text, true).unwrap();
        let sinks = stats["sinks"].as_array().unwrap();
        let sink = sinks.iter().find(|sink| sink["name"] == name).unwrap();
        let (sent, dropped) = (
            sink["sent"].as_u64().unwrap(),
            sink["dropped"].as_u64().unwrap(),
        );
        // The last record is the one that counts.
        assert_eq!(records.0.len() as u64, sent + 1, "{name}");
        assert_eq!(sent + dropped + 1, all.0.len() as u64, "{name}");
        assert!(dropped > 0, "{name}");
        let numbers = numbers(&records);
        assert!(numbers.is_sorted_by(|one, other| one < other), "{name}");
        assert_eq!(numbers.last(), Some(&(all.0.len() as u64 - 1)), "{name}");
    }
}

/// Who delivers is killed in mid-traffic: another takes its place, and each record is sent or dropped.
#[test]
fn who_delivers_is_started_again() {
    let Some(lab) = Lab::with("who_delivers_is_started_again", &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let (all, stop, port) = (lab.path("all"), lab.path("stop"), free_port());
    let kinds = "emit = [\"http\", \"grpc\", \"coverage\", \"stats\"]";
    let config = format!(
        "stats-interval = \"200ms\"\n[[sink]]\nname = \"all\"\ntype = \"file\"\npath = \"{}\"\n{kinds}\n\
         [[sink]]\nname = \"page\"\ntype = \"prometheus\"\nlisten = \"127.0.0.1:{port}\"\n",
        all.display()
    );
    let script = "while ! [ -e \"$1\" ]; do curl -sk --http1.1 -o /dev/null \"$2\"; done";
    let url = server.url("/bytes/100000");
    let running = lab
        .agent()
        .config(&config)
        .start(argv!["sh", "-c", script, "sh", &stop, url]);
    let agent = running.process.pid();
    let delivering = || {
        let comm = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let mut pids = tree(agent).into_iter();
        pids.find(|pid| comm(pid) == "vortex-deliver\n")
    };
    let page = || {
        let url = format!("http://127.0.0.1:{port}/metrics");
        lab.finish(lab.command(argv!["curl", "-sf", url]), "page")
            .out()
    };
    let mut before = wait_for("who delivers", seconds(20), delivering);
    for round in 1..=3 {
        wait_for("records on the page", seconds(20), || {
            page().contains("vortex_").then_some(())
        });
        let pid = rustix::process::Pid::from_raw(before as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        wait_for("that it is said", seconds(20), || {
            let again = running
                .process
                .err()
                .matches("is delivered to again")
                .count();
            (again == round).then_some(())
        });
        let after = wait_for("another", seconds(20), delivering);
        assert_ne!(after, before);
        before = after;
    }
    fs::write(&stop, "").unwrap();
    let run = running.finish(seconds(60));
    run.success();
    let all = Records::parse(&fs::read_to_string(&all).unwrap(), true).unwrap();
    let stats = all.last_stats().unwrap();
    let sinks = stats["sinks"].as_array().unwrap();
    let of = |name: &str| {
        let sink = sinks.iter().find(|sink| sink["name"] == name).unwrap();
        ["sent", "dropped"].map(|count| sink[count].as_u64().unwrap())
    };
    let ([sent, dropped], [_, none]) = (of("page"), of("all"));
    assert!(none == 0 && sent > 0, "{stats}");
    // The last record is the one that counts.
    assert_eq!(sent + dropped + 1, all.0.len() as u64, "{stats}");
}

/// Somebody removes the file that is written: another one takes its name, and that is said.
#[test]
fn rotated_file_that_is_removed_is_followed() {
    let Some(lab) = Lab::with("rotated_file_that_is_removed_is_followed", &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let (log, stop) = (lab.path("log"), lab.path("stop"));
    let script =
        "while ! [ -e \"$1\" ]; do curl -sk --http1.1 -o /dev/null \"$2\"; sleep 0.1; done";
    let url = server.url("/bytes/1000");
    let running = lab
        .agent()
        .config(&rotating("log", &log, "age = \"1h\""))
        .start(argv!["sh", "-c", script, "sh", &stop, url]);
    let has_records = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        (!text.is_empty()).then_some(())
    };
    wait_for("records", seconds(20), has_records);
    fs::remove_file(&log).unwrap();
    wait_for("records in a new file", seconds(20), has_records);
    fs::write(&stop, "").unwrap();
    let run = running.finish(seconds(30));
    run.success();
    let err = run.process.err();
    let said = "log was removed: the records go on in a new one";
    assert_eq!(err.matches(said).count(), 1, "{err}");
    let (records, is_whole) = (content(&log), true);
    Records::parse(&records, is_whole)
        .unwrap()
        .last_stats()
        .unwrap();
    assert_eq!(
        fs::metadata(&log).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

/// The agent is killed while it writes and rotates, and once more something is left of what it was about: the next
/// one puts it right, and what was written is all there.
#[test]
fn rotated_files_survive_a_kill() {
    let Some(lab) = Lab::with("rotated_files_survive_a_kill", &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let path = lab.path("log");
    let rotate = "size = \"1MiB\", keep = 1000, compress = \"gzip\"";
    let config = rotating("log", &path, rotate);
    let url = server.url("/bytes/[700000-700299]");
    let running = lab.agent().config(&config).start(argv![
        "curl",
        "-sk",
        "--http1.1",
        "-o",
        "/dev/null",
        url
    ]);
    wait_for("some old files", seconds(30), || {
        (files(&path).len() > 5).then_some(())
    });
    running.process.signal(libc::SIGKILL);
    running.process.wait(seconds(10));
    wait_for_copies(&path, "Z.gz");
    let before = files(&path);
    // None if it was killed between the end of one file and its first record in the next.
    let unfinished = usize::from(fs::read(&path).is_ok_and(|bytes| !bytes.is_empty()));

    // As if it had been killed at these moments, too.
    let copy = before[0].to_str().unwrap();
    let plain = copy.strip_suffix(".gz").unwrap();
    fs::write(plain, content(&before[0])).unwrap();
    let other = before[1].to_str().unwrap();
    fs::write(other.strip_suffix(".gz").unwrap(), content(&before[1])).unwrap();
    fs::rename(other, format!("{other}.partial")).unwrap();
    fs::write(lab.path("log.next"), "").unwrap();
    let foreign = lab.file("log.keep", "not ours");

    // Kept, for who keeps the files lives a little longer, and is killed with it.
    let second = lab.agent().config(&config).run(argv!["true"]);
    second.success();
    wait_for("copies", seconds(30), || {
        let old = files(&path).len();
        let copies = files(&path);
        let copies = copies
            .iter()
            .filter(|file| file.extension().is_some_and(|it| it == "gz"));
        // And what is not ours, and the file itself.
        (copies.count() == old - 2).then_some(())
    });
    assert_eq!(fs::read(foreign).unwrap(), b"not ours");
    let after = files(&path);
    let is_copy = |file: &&PathBuf| file.extension().is_some_and(|it| it == "gz");
    let old: Vec<_> = after.iter().filter(is_copy).collect();
    // All of the first run, and what it was writing when it was killed.
    assert_eq!(old.len(), before.len() - 1 + unfinished);
    let text: String = old.iter().map(|file| content(file)).collect();
    let records = Records::parse(&text, false).unwrap();
    let all: Vec<u64> = (0..records.0.len() as u64).collect();
    assert_eq!(numbers(&records), all);
    // The second run has its own file.
    let own = Records::parse(&content(&path), true).unwrap();
    own.last_stats().unwrap();
    assert_eq!(numbers(&own)[0], 0);
}
