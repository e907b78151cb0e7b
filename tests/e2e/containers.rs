//! Containers, as far as the kernel sees them: control groups with a runtime's names.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::{
    harness::{Lab, PYTHON, Running, Server, argv, bare, kill, seconds, skip, wait_for},
    proc::half_of,
};

/// A control group of our own, removed afterwards.
pub(crate) struct Group(PathBuf);

impl Group {
    /// In the first hierarchy of this kind, named after the test.
    pub(crate) fn new(kind: &str, test: &str) -> Option<Group> {
        Group::named(kind, &format!("vortex-e2e-{}-{test}", std::process::id()))
    }

    pub(crate) fn named(kind: &str, name: &str) -> Option<Group> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let mut roots = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, this_kind) = (fields.next()?, fields.next()?);
            // A group of `cpuset` takes nobody before it has processors.
            (this_kind == kind && !path.ends_with("cpuset")).then(|| Path::new(path).to_owned())
        });
        let group = roots.next()?.join(name);
        fs::create_dir(&group).ok()?;
        Some(Group(group))
    }

    /// What a runtime makes for the container `id`.
    pub(crate) fn of_container(id: &str) -> Option<Group> {
        let name = format!("docker-{id}.scope");
        Group::named("cgroup2", &name).or_else(|| Group::named("cgroup", &name))
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    pub(crate) fn name(&self) -> String {
        self.0.file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// The beginning of a shell's script.
    pub(crate) fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs;", self.0.display())
    }

    fn take(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Moves a process to the root of the hierarchy.
    fn expel(&self, pid: u32) {
        let root = self.0.parent().expect("it was made in one");
        fs::write(root.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last process may just be ending.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// An id that no other test has, and no container.
pub(crate) fn id(number: u32) -> String {
    format!("{:08x}{number:08x}", std::process::id()).repeat(4)
}

/// Runs curl to its end; `before` is what the shell does first.
fn curl(lab: &Lab, server: &Server<'_>, before: &str, name: &str, body: &str) {
    let url = server.url("/echo");
    let script = format!("{before} exec curl -sk --http1.1 --data-binary {body} {url}");
    lab.finish(lab.command(argv!["sh", "-c", script]), name);
}

fn has_sent(running: &Running, text: &str) -> bool {
    running.records().kind("data").any(|record| {
        record["text"]
            .as_str()
            .is_some_and(|sent| sent.contains(text))
    })
}

/// Started after the agent, by a runtime that moves itself into the group and calls exec. Nobody else is
/// seen, though everybody meets the probes.
#[test]
fn a_container_that_starts_later() {
    const TEST: &str = "a_container_that_starts_later";
    let Some(lab) = Lab::with(TEST, &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let id = id(1);
    let running = lab
        .agent()
        .options(argv!["--container", &id[..20]])
        .watch_group();
    let Some(group) = Group::of_container(&id) else {
        return skip(TEST, "no control group can be made");
    };
    // Its library becomes known; it may be through with it before that.
    curl(&lab, &server, &group.enter(), "first", "first");
    wait_for("coverage of the container", seconds(10), || {
        let records = running.records();
        let found = records.kind("coverage").next().is_some();
        found.then_some(())
    });
    curl(&lab, &server, "", "stranger", "stranger");
    curl(&lab, &server, &group.enter(), "second", "second");
    wait_for("the second request", seconds(10), || {
        has_sent(&running, "second").then_some(())
    });
    running.process.signal(libc::SIGTERM);
    let run = running.finish(seconds(20));
    run.success();
    let records = run.records();
    for record in records.kind("data").chain(records.kind("coverage")) {
        assert_eq!(record["container"]["id"], *id, "{record:.300}");
        assert_eq!(record["process"]["comm"], "curl", "{record:.300}");
    }
    let sent = |text: &str| {
        let mut data = records.kind("data");
        data.find(|record| {
            record["text"]
                .as_str()
                .is_some_and(|sent| sent.contains(text))
        })
    };
    assert_eq!(sent("stranger"), None);
    // All of it, from its first byte.
    let second = sent("second").expect("waited for");
    assert_eq!(second["connection"]["joined"], "start", "{second:.300}");
    assert_eq!(second["complete"], true, "{second:.300}");
    let calls = &records.last_stats().unwrap()["ledger"]["calls"];
    assert!(
        calls["filtered"].as_u64() > Some(0),
        "the stranger's calls: {calls}"
    );
    records.check_ledger().unwrap();
}

/// Nobody looks while they run, and when somebody does they are gone, and their groups with them.
#[test]
fn containers_that_are_gone_before_a_look() {
    gone_before_a_look("containers_that_are_gone_before_a_look", 100, 0);
}

/// And the kernel had no room to tell of them, for so much else happened meanwhile.
#[test]
fn containers_that_nothing_told_of() {
    gone_before_a_look("containers_that_nothing_told_of", 200, 600);
}

/// `others`: how many programs run before the containers.
fn gone_before_a_look(test: &'static str, first: u32, others: u32) {
    let Some(lab) = Lab::with(test, &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let ids: Vec<String> = (first..first + 10).map(id).collect();
    let groups: Option<Vec<Group>> = ids.iter().map(|id| Group::of_container(id)).collect();
    let Some(groups) = groups else {
        return skip(test, "no control group can be made");
    };
    let server = lab.server(&[]);
    let library = lab.private_libssl("private");
    let curl = format!(
        "exec curl -sk --http1.1 -o /dev/null {} --data-binary",
        server.url("/echo")
    );
    let client =
        |number: usize| format!("sh -c '{} {curl} talker-{number}'", groups[number].enter());
    let clients: Vec<String> = (0..groups.len()).map(client).collect();
    let wait = |file: &str| {
        format!("n=0; while [ ! -e {file} ] && [ $n -lt 600 ]; do sleep 0.05; n=$((n + 1)); done")
    };
    // Whoever maps a file that is not known yet is held by the half, and stays so when the half is stopped: `sleep` is
    // known before.
    let script = format!(
        "cd {}; export LD_LIBRARY_PATH={}; sleep 0; ({curl} first); touch warm; {}; \
         n=0; while [ $n -lt {others} ]; do sleep 0; n=$((n + 1)); done; {}; touch done; {}",
        lab.dir.display(),
        library.display(),
        wait("go"),
        clients.join("; "),
        wait("end"),
    );
    let running = lab.agent().start(argv!["sh", "-c", script]);
    wait_for("the first client", seconds(20), || {
        (lab.path("warm").exists() && has_sent(&running, "first")).then_some(())
    });
    let pipeline = running.process.pid() as i32;
    let half = half_of(running.process.pid()).expect("a privileged half") as i32;
    for pid in [half, pipeline] {
        kill(pid, libc::SIGSTOP);
    }
    lab.file("go", "");
    wait_for("the clients' end", seconds(30), || {
        lab.path("done").exists().then_some(())
    });
    let kept: Vec<PathBuf> = groups
        .iter()
        .map(|group| group.directory().to_owned())
        .collect();
    drop(groups);
    assert!(
        kept.iter().all(|path| !path.exists()),
        "a group is still there"
    );
    // Who said it is told a second after it was heard.
    kill(pipeline, libc::SIGCONT);
    std::thread::sleep(Duration::from_secs(1));
    kill(half, libc::SIGCONT);
    wait_for("the last client's records", seconds(20), || {
        has_sent(&running, &format!("talker-{}", ids.len() - 1)).then_some(())
    });
    lab.file("end", "");
    let run = running.finish(seconds(30));
    run.success();
    let records = run.records();
    for (number, id) in ids.iter().enumerate() {
        let said = format!("talker-{number}");
        let mut data = records.kind("data");
        let is_said = |record: &&Value| {
            let text = record["text"].as_str();
            record["direction"] == "sent" && text.is_some_and(|text| text.ends_with(&said))
        };
        let record = data
            .find(is_said)
            .unwrap_or_else(|| panic!("nothing of {said}"));
        assert_eq!(record["container"]["id"], **id, "{record:.600}");
    }
    records.check_ledger().unwrap();
}

/// Moved while it runs, with neither fork nor exec: seen within seconds, not at all before.
#[test]
fn a_process_that_joins_a_container() {
    const TEST: &str = "a_process_that_joins_a_container";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let id = id(2);
    let Some(group) = Group::of_container(&id) else {
        return skip(TEST, "no control group can be made");
    };
    // Ends before the group does, which can't be removed before.
    let server = lab.server(&[]);
    let running = lab.agent().options(argv!["--container", &id]).watch_group();
    curl(&lab, &server, "", "before", "before");
    group.take(server.pid());
    running.wait_for_coverage(server.pid());
    curl(&lab, &server, "", "after", "after");
    wait_for("what the server received", seconds(10), || {
        has_sent(&running, "after").then_some(())
    });
}

/// One connection, and a request of the text in `GO-0`, `GO-1` and so on, as soon as each is there. An empty
/// one is the end.
const REQUESTS: &str = "import http.client, itertools, os, ssl, sys, time\n\
    port, go = sys.argv[1:]\n\
    context = ssl._create_unverified_context()\n\
    connection = http.client.HTTPSConnection('127.0.0.1', int(port), context=context)\n\
    until = time.monotonic() + float(os.environ['E2E_SECONDS'])\n\
    for number in itertools.count():\n\
    \x20   name = f'{go}-{number}'\n\
    \x20   while not os.path.exists(name) and time.monotonic() < until: time.sleep(0.005)\n\
    \x20   text = open(name).read()\n\
    \x20   if not text: break\n\
    \x20   connection.request('POST', '/echo', text)\n\
    \x20   assert connection.getresponse().read() == text.encode()\n\
    \x20   open(f'{name}.done', 'w').close()\n";

/// In version 1 it is we who notice that a process has left: its known threads are known no longer.
#[test]
fn a_process_that_leaves_a_group() {
    const TEST: &str = "a_process_that_leaves_a_group";
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    if bare() {
        return;
    }
    let Some(group) = Group::new("cgroup", TEST) else {
        return skip(TEST, "no writable cgroup v1 hierarchy is mounted");
    };
    let server = lab.server(&[]);
    let running = lab
        .agent()
        .options(argv![
            "--cgroup",
            format!("/{}", group.name()),
            "--stats-interval",
            "100ms"
        ])
        .watch_group();
    let go = lab.path("go");
    let words = argv![PYTHON, "-c", REQUESTS, server.port.to_string(), &go];
    let mut client = lab.command(words);
    // Nobody else is filtered: the server has another one.
    client.env("LD_LIBRARY_PATH", lab.private_libssl("private"));
    let client = lab.spawn(client, "client");
    let mut number = 0;
    let mut say = |text: &str| {
        let name = format!("{}-{number}", go.display());
        number += 1;
        // There at once, with all that is in it.
        fs::write(format!("{name}.new"), text).unwrap();
        fs::rename(format!("{name}.new"), &name).unwrap();
        if !text.is_empty() {
            wait_for("an answer", seconds(10), || {
                fs::exists(format!("{name}.done")).unwrap().then_some(())
            });
        }
    };
    let filtered = || {
        let ledger = running.last_ledger();
        ledger.map_or(0, |ledger| ledger["calls"]["filtered"].as_u64().unwrap())
    };
    group.take(client.pid());
    running.wait_for_coverage(client.pid());
    say("inside");
    wait_for("what is said inside", seconds(10), || {
        has_sent(&running, "inside").then_some(())
    });
    group.expel(client.pid());
    let before = filtered();
    wait_for("the notice that it has left", seconds(20), || {
        say("leaving");
        (filtered() > before).then_some(())
    });
    let before = filtered();
    say("outside");
    wait_for("the count of its calls", seconds(10), || {
        (filtered() > before).then_some(())
    });
    say("");
    client.wait(seconds(10));
    running.process.signal(libc::SIGTERM);
    let run = running.finish(seconds(20));
    run.success();
    let records = run.records();
    let texts: Vec<&str> = records
        .kind("data")
        .filter_map(|record| record["text"].as_str())
        .collect();
    assert!(texts.iter().any(|text| text.contains("inside")));
    assert!(
        !texts.iter().any(|text| text.contains("outside")),
        "{texts:?}"
    );
    records.check_ledger().unwrap();
}

/// An agent in the very container that it watches, with a libssl in both of its processes: it sees the
/// client and not itself.
#[test]
fn the_agent_is_never_recorded() {
    const TEST: &str = "the_agent_is_never_recorded";
    let Some(lab) = Lab::with(TEST, &["cc"]) else {
        return;
    };
    if bare() {
        return;
    }
    let id = id(3);
    let Some(group) = Group::of_container(&id) else {
        return skip(TEST, "no control group can be made");
    };
    let talker = lab.preload("talker");
    let enter = group.enter();
    let running = lab
        .agent()
        .before(argv!["sh", "-c", format!("{enter} exec \"$@\""), "sh"])
        .env("LD_PRELOAD", &talker)
        // The privileged half: the other one begins no thread when it is locked in.
        .env("TALK", "--ring-size")
        .env("TALK_LATER", "1")
        .options(argv!["--container", &id])
        .watch_group();
    // The same in somebody else's process is seen.
    let mut client = lab.command(argv!["sh", "-c", format!("{enter} exec sleep 3")]);
    client.env("LD_PRELOAD", &talker).env("TALK", "sleep");
    lab.finish(client, "client");
    let records = running.records();
    let comms: Vec<&str> = records
        .kind("data")
        .chain(records.kind("coverage"))
        .map(|record| record["process"]["comm"].as_str().unwrap_or_default())
        .collect();
    assert!(comms.contains(&"sleep"), "{comms:?}");
    let is_ours = |comm: &&str| comm.starts_with("vortex");
    assert!(!comms.iter().any(is_ours), "{comms:?}");
    let talked = fs::read_dir(&lab.dir).unwrap().flatten().filter(|entry| {
        let name = entry.file_name();
        let has_talked = entry.metadata().is_ok_and(|file| file.len() > 0);
        has_talked
            && name
                .to_str()
                .is_some_and(|name| name.starts_with("client-") && name.ends_with(".sent"))
    });
    assert_eq!(talked.count(), 2, "the agent's own TLS and the client's");
}
