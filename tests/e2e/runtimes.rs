//! What containers are called: asked of real runtimes, each private to its test.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    containers::Group,
    harness::{
        Lab, PYTHON, Proc, Running, Server, argv, bare, kill, libssl, scaled, seconds, skip,
        wait_for,
    },
    proc::half_of,
    records::{Records, Truth, compare, number, total},
};

/// containerd with its state in the test's directory, and an image for pods and containers alike. All of its
/// containers are below one control group.
struct Containerd<'a> {
    lab: &'a Lab,
    bin: PathBuf,
    /// The directory that it is in.
    runc: PathBuf,
    grpc: PathBuf,
    group: Group,
    process: Option<Proc>,
    /// By their names: the id of each, and its `PodSandboxConfig`.
    pods: HashMap<String, (String, Value)>,
    calls: u32,
}

const IMAGE: &str = "test.local/vortex:1";

/// In the fixture of containerd.
const BUSYBOX: &str = "root/bin/busybox";

impl<'a> Containerd<'a> {
    fn start(lab: &'a Lab, fixture: &str, test: &str) -> Option<Containerd<'a>> {
        let bin = lab.fixture(fixture, "bin/containerd")?;
        // The same for each version.
        let busybox = lab.fixture("containerd", BUSYBOX)?;
        let runc = lab.fixture("containerd", "bin/runc")?;
        let grpc = lab.fixture("grpcio", "grpc")?;
        let Some(group) = Group::new("cgroup2", test) else {
            skip(test, "no control group of version 2 can be made");
            return None;
        };
        let state = |name: &str| lab.path(name).display().to_string();
        // `restrict_oom_score_adj`: nobody may be less than we are where root has no CAP_SYS_RESOURCE.
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\n[grpc]\naddress = \"{}\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{}\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\n\
             restrict_oom_score_adj = true\ndisable_tcp_service = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/nonexistent\"\nconf_dir = \"/nonexistent\"\n",
            state("root"),
            state("state"),
            state("c.sock"),
            state("opt"),
        );
        lab.file("containerd.toml", config);
        let parent = |path: &Path| path.parent().expect("bin").to_owned();
        let mut containerd = Containerd {
            lab,
            bin: parent(&bin),
            runc: parent(&runc),
            grpc: grpc.parent().expect("the wheel").to_owned(),
            group,
            process: None,
            pods: HashMap::new(),
            calls: 0,
        };
        containerd.restart();
        containerd.import(&busybox);
        Some(containerd)
    }

    fn socket(&self) -> PathBuf {
        self.lab.path("c.sock")
    }

    /// Containers do not notice.
    fn restart(&mut self) {
        if let Some(process) = self.process.take() {
            process.signal(libc::SIGTERM);
            process.wait(seconds(20));
        }
        let config = self.lab.path("containerd.toml");
        let mut command = self
            .lab
            .command(argv![self.bin.join("containerd"), "-c", config]);
        let (bin, runc) = (self.bin.display(), self.runc.display());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{bin}:{runc}:{path}"));
        self.process = Some(self.lab.spawn(command, "containerd"));
    }

    fn import(&self, busybox: &Path) {
        let tar = image(self.lab, busybox);
        let ctr = self.bin.join("ctr");
        wait_for("the socket of containerd", seconds(20), || {
            self.socket().exists().then_some(())
        });
        let words = argv![
            ctr,
            "-a",
            self.socket(),
            "-n",
            "k8s.io",
            "images",
            "import",
            tar
        ];
        self.lab.finish(self.lab.command(words), "import");
    }

    /// Field 1 of each answer.
    fn call(&mut self, calls: &[(&str, Value)]) -> Vec<String> {
        self.calls += 1;
        let name = format!("calls-{}", self.calls);
        let lines = calls.iter().map(|call| json!(call).to_string() + "\n");
        let file = self.lab.file(&name, lines.collect::<String>());
        let script = format!("exec \"$@\" < {}", file.display());
        let program = self.lab.program("cri.py");
        let words = argv!["sh", "-c", script, "sh", PYTHON, program, self.socket()];
        let mut command = self.lab.command(words);
        command.env("PYTHONPATH", &self.grpc);
        let answers = self.lab.finish(command, &name).out();
        answers.lines().map(str::to_owned).collect()
    }

    fn start_pod(&mut self, name: &str) {
        self.start_pod_in("shop", name, ("note", "as somebody wrote it"));
    }

    /// Its config has its name, uid and namespace, a label, an annotation, and the machine's network.
    fn start_pod_in(&mut self, namespace: &str, name: &str, annotation: (&str, &str)) {
        let parent = format!("/{}", self.group.name());
        let config = json!([
            [
                1,
                [[1, name], [2, format!("uid-of-{name}")], [3, namespace]]
            ],
            [6, [[1, "app.kubernetes.io/name"], [2, name]]],
            [7, [[1, annotation.0], [2, annotation.1]]],
            [8, [[1, parent], [2, [[1, [[1, 2]]]]]]],
        ]);
        let id = self.call(&[("RunPodSandbox", json!([[1, config]]))]);
        self.pods.insert(name.to_owned(), (only(id), config));
    }

    /// `CreateContainer`: runs a shell's script, with the libssl of the image.
    fn creation(&self, pod: &str, name: &str, script: &str) -> (&'static str, Value) {
        let (pod_id, pod) = &self.pods[pod];
        let config = json!([
            [1, [[1, name]]],
            [2, [[1, IMAGE]]],
            [3, "/bin/busybox"],
            [3, "sh"],
            [3, "-c"],
            [3, script],
            [6, [[1, "LD_LIBRARY_PATH"], [2, "/private"]]],
            [7, [[1, "/usr"], [2, "/usr"], [3, 1]]],
            [9, [[1, "tier"], [2, "front"]]],
            [15, [[2, [[3, [[1, 2]]]]]]],
        ]);
        let message = json!([[1, pod_id], [2, config], [3, pod]]);
        ("CreateContainer", message)
    }

    /// Starts them one after the other.
    fn start_all(&mut self, ids: &[String]) {
        let start = |id: &String| ("StartContainer", json!([[1, id]]));
        self.call(&ids.iter().map(start).collect::<Vec<_>>());
    }

    /// Starts a container that runs a shell's script; its id.
    fn run(&mut self, pod: &str, name: &str, script: &str) -> String {
        let id = self.call(&[self.creation(pod, name, script)]);
        self.start_all(&id);
        only(id)
    }

    /// Those that have ended. The runtime has forgotten them then.
    fn remove_all(&mut self, ids: &[String]) {
        let mut calls = Vec::new();
        for id in ids {
            calls.push(("RemoveContainer", json!([[1, id]])));
            calls.push(("ListContainers", json!([[1, [[1, id]]]])));
        }
        let answers = self.call(&calls);
        assert!(answers.iter().all(String::is_empty), "{answers:?}");
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let end = |method| move |(id, _): &(String, Value)| (method, json!([[1, id]]));
        let stop = self.pods.values().map(end("StopPodSandbox"));
        let remove = self.pods.values().map(end("RemovePodSandbox"));
        let calls: Vec<_> = stop.chain(remove).collect();
        self.call(&calls);
        if let Some(process) = self.process.take() {
            process.signal(libc::SIGTERM);
            process.wait(seconds(20));
        }
        remove_group(&self.group);
    }
}

fn only(ids: Vec<String>) -> String {
    let [id] = <[String; 1]>::try_from(ids).expect("one answer");
    id
}

/// busybox, a libssl that nobody else has, and places for the machine's own programs. In a tar.
fn image(lab: &Lab, busybox: &Path) -> PathBuf {
    let root = lab.path("image");
    for dir in ["bin", "private", "usr", "proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for dir in ["lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{dir}"), root.join(dir)).unwrap();
    }
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    fs::copy(libssl(), root.join("private/libssl.so.3")).unwrap();
    let (program, tar) = (lab.program("image.py"), lab.path("image.tar"));
    let words = argv![
        PYTHON,
        program,
        root,
        IMAGE,
        &tar,
        "/bin/busybox",
        "sleep",
        "1000"
    ];
    lab.finish(lab.command(words), "image");
    tar
}

/// runc makes groups and their parent in every hierarchy, and not all are removed by whoever called it.
fn remove_group(group: &Group) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let parent = Path::new(mount).join(group.name());
        for child in fs::read_dir(&parent).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(child.path());
        }
        let _ = fs::remove_dir(parent);
    }
}

/// Maps the image's library and stays: nobody finds its probes taken out.
const HOLD: &str = "exec /usr/bin/python3 -c 'import ssl, time; time.sleep(600)'";

fn is_of_image(coverage: &Value) -> bool {
    coverage["library"]["path"] == "/private/libssl.so.3"
}

/// Says its own name to the server, at once, and ends.
fn talk(name: &str, url: &str) -> String {
    format!("exec /usr/bin/curl -sk --http1.1 --data-binary {name} -o /dev/null {url}")
}

fn name_of(talker: &Truth) -> String {
    let sent = String::from_utf8_lossy(&talker.sent);
    sent.lines().last().expect("a body").to_owned()
}

/// What records tell of a container.
fn container(id: &str, name: &str) -> Value {
    json!({
        "id": id,
        "name": name,
        "image": { "name": "test.local/vortex", "tags": ["1"] },
        "labels": { "tier": "front" },
    })
}

/// What records tell of its pod.
fn k8s(pod: &str, container: &str) -> Value {
    json!({
        "namespace": { "name": "shop" },
        "pod": {
            "name": pod,
            "uid": format!("uid-of-{pod}"),
            "labels": { "app.kubernetes.io/name": pod },
            "annotations": { "note": "as somebody wrote it" },
        },
        "container": { "name": container },
    })
}

/// Until the agent has looked which hierarchies have the group. As long as it is version 2 alone it is the kernel that
/// knows who is in it, and nobody has to find out.
fn wait_for_filter(running: &Running) {
    wait_for("an agent that watches", seconds(20), || {
        running.last_ledger().map(drop)
    });
}

/// Those who ask are stopped, and nobody else: who listens to the runtime goes on.
fn while_nobody_asks(running: &Running, act: impl FnOnce()) {
    let pipeline = running.process.pid() as i32;
    let half = half_of(running.process.pid()).expect("a privileged half") as i32;
    for pid in [half, pipeline] {
        kill(pid, libc::SIGSTOP);
    }
    act();
    for pid in [pipeline, half] {
        kill(pid, libc::SIGCONT);
    }
}

/// Fifty containers of two pods that end at once, with one library in a layer of their image, and a runtime that is
/// restarted in the middle: each byte once, each under the name of the container that it belongs to.
#[test]
fn containers_are_called_as_their_runtime_calls_them() {
    const TEST: &str = "containers_are_called_as_their_runtime_calls_them";
    let Some(lab) = Lab::with(TEST, &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let Some(mut containerd) = Containerd::start(&lab, "containerd", TEST) else {
        return;
    };
    let pods = ["web-0", "web-1"];
    for pod in pods {
        containerd.start_pod(pod);
    }
    let server = lab.server(&[]);
    let config = format!(
        "[metadata]\ncri = [\"{}\"]\n",
        containerd.socket().display()
    );
    let group = format!("/{}", containerd.group.name());
    let running = lab
        .agent()
        .options(argv![
            "--config",
            lab.file("config.toml", config),
            "--cgroup",
            group,
            "--namespace",
            "sh?p"
        ])
        .unfiltered();
    let url = server.url("/echo");
    let mut names: HashMap<String, (String, &str)> = HashMap::new();
    containerd.run(pods[0], "holder", HOLD);
    wait_for("probes in the image's library", seconds(20), || {
        let records = running.records();
        let found = records.kind("coverage").any(is_of_image);
        found.then_some(())
    });
    let mut number = 0;
    let mut start = |containerd: &mut Containerd<'_>, count: usize| {
        let batch: Vec<(String, &str)> = (0..count)
            .map(|_| {
                number += 1;
                (format!("talker-{number}"), pods[number % 2])
            })
            .collect();
        let calls: Vec<_> = batch
            .iter()
            .map(|(name, pod)| containerd.creation(pod, name, &talk(name, &url)))
            .collect();
        let made = containerd.call(&calls);
        for ((name, pod), id) in batch.into_iter().zip(&made) {
            names.insert(name, (id.clone(), pod));
        }
        containerd.start_all(&made);
    };
    let count = scaled("containers", 50, 4) as usize;
    start(&mut containerd, count / 2);
    // Nobody passes whose name can't be asked for.
    wait_for("the records of the first half", seconds(20), || {
        let connections = running.records().connections().ok()?;
        (connections.len() == count / 2).then_some(())
    });
    containerd.restart();
    start(&mut containerd, count - count / 2);
    let truth = wait_for("what each has said", seconds(20), || {
        let truth = server.client_truth();
        (truth.len() == count).then_some(truth)
    });
    wait_for("the last container's records", seconds(20), || {
        let connections = running.records().connections().ok()?;
        let is_there = |truth: &&Truth| connections.iter().any(|one| one.is(truth));
        truth.iter().all(|one| is_there(&one)).then_some(())
    });
    running.process.signal(libc::SIGTERM);
    let run = running.finish(seconds(30));
    run.success();
    let records = run.records();
    records.check_ledger().unwrap();
    let connections = records.connections().unwrap();
    for truth in &truth {
        let name = &*name_of(truth);
        let (id, pod) = &names[name];
        let mut same = connections.iter().filter(|one| one.is(truth));
        let connection = same.next().unwrap_or_else(|| panic!("nothing of {name}"));
        assert!(same.next().is_none(), "{name} twice");
        for record in records.kind("data") {
            if record["connection"]["id"] != *connection.id {
                continue;
            }
            assert_eq!(record["container"], container(id, name), "{record}");
            assert_eq!(record["k8s"], k8s(pod, name), "{record}");
        }
    }
    let all = records.kind("data").chain(records.kind("coverage"));
    for record in all {
        let name = record["container"]["name"].as_str();
        assert!(name.is_some(), "a container without a name: {record}");
    }
}

/// Podman with all of its state in the test's directory, and its API's socket.
struct Podman<'a> {
    lab: &'a Lab,
    podman: PathBuf,
    group: Group,
    service: Option<Proc>,
    calls: u32,
}

impl<'a> Podman<'a> {
    fn start(lab: &'a Lab, test: &str) -> Option<Podman<'a>> {
        let podman = lab.fixture("podman", "bin/podman")?;
        let runc = lab.fixture("containerd", "bin/runc")?;
        let busybox = lab.fixture("containerd", BUSYBOX)?;
        let Some(group) = Group::new("cgroup2", test) else {
            skip(test, "no control group of version 2 can be made");
            return None;
        };
        // No more than root has where it lacks CAP_SYS_RESOURCE.
        let config = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\n\
             cgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nconmon_path = [\"{}\"]\n\
             runtime = \"runc\"\n[engine.runtimes]\nrunc = [\"{}\"]\n",
            podman.with_file_name("conmon").display(),
            runc.display(),
        );
        lab.file("containers.conf", config);
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            lab.path("graph").display(),
            lab.path("run").display(),
        );
        lab.file("storage.conf", storage);
        let policy = "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}";
        let policy = lab.file("policy.json", policy);
        let mut podman = Podman {
            lab,
            podman,
            group,
            service: None,
            calls: 0,
        };
        let tar = image(lab, &busybox);
        podman.call(argv!["load", "--signature-policy", policy, "-i", tar]);
        let socket = format!("unix://{}", podman.socket().display());
        let service = podman.command(argv!["system", "service", "-t", "0", socket]);
        podman.service = Some(lab.spawn(service, "podman"));
        wait_for("the socket of podman", seconds(20), || {
            podman.socket().exists().then_some(())
        });
        Some(podman)
    }

    fn socket(&self) -> PathBuf {
        self.lab.path("podman.sock")
    }

    fn command(&self, words: Vec<OsString>) -> Command {
        let mut all = argv![&self.podman, "--tmpdir", self.lab.path("tmp")];
        all.extend(words);
        let mut command = self.lab.command(all);
        command
            .env("CONTAINERS_CONF", self.lab.path("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.lab.path("storage.conf"));
        command
    }

    fn call(&mut self, words: Vec<OsString>) -> String {
        self.calls += 1;
        let name = format!("podman-{}", self.calls);
        let call = self.lab.finish(self.command(words), &name);
        call.out().trim().to_owned()
    }

    /// Starts a container that runs a shell's script; its id.
    fn run(&mut self, name: &str, script: &str) -> String {
        let parent = format!("/{}", self.group.name());
        let words = argv![
            "create",
            "--name",
            name,
            "--network",
            "host",
            "--label",
            "tier=front",
            "--cgroup-parent",
            parent,
            "-v",
            "/usr:/usr:ro",
            "-e",
            "LD_LIBRARY_PATH=/private",
            "--entrypoint",
            "[\"/bin/busybox\"]",
            IMAGE,
            "sh",
            "-c",
            script,
        ];
        let id = self.call(words);
        self.call(argv!["start", name]);
        id
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        self.call(argv!["rm", "--all", "--force", "-t", "0"]);
        drop(self.service.take());
        remove_group(&self.group);
    }
}

/// By Docker's API. Those of another name are turned away after the copy, and their bytes are counted.
#[test]
fn containers_of_podman_by_name() {
    const TEST: &str = "containers_of_podman_by_name";
    let Some(lab) = Lab::with(TEST, &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let Some(mut podman) = Podman::start(&lab, TEST) else {
        return;
    };
    let server = lab.server(&[]);
    let url = server.url("/echo");
    let config = format!("[metadata]\ndocker = [\"{}\"]\n", podman.socket().display());
    let running = lab
        .agent()
        .options(argv![
            "--config",
            lab.file("config.toml", config),
            "--cgroup",
            format!("/{}", podman.group.name()),
            "--container",
            "talker-*"
        ])
        .unfiltered();
    podman.run("talker-that-holds", HOLD);
    wait_for("probes in the image's library", seconds(20), || {
        let records = running.records();
        let found = records.kind("coverage").any(is_of_image);
        found.then_some(())
    });
    let count = scaled("containers", 10, 3) as usize;
    let mut ids = HashMap::new();
    for number in 0..count {
        let name = format!("talker-{number}");
        ids.insert(name.clone(), podman.run(&name, &talk(&name, &url)));
        let name = format!("stranger-{number}");
        podman.run(&name, &talk(&name, &url));
    }
    let truth = wait_for("what each has said", seconds(20), || {
        let truth = server.client_truth();
        (truth.len() == 2 * count).then_some(truth)
    });
    let of = |start: &str| -> Vec<&Truth> {
        let is_one = |truth: &&Truth| name_of(truth).starts_with(start);
        truth.iter().filter(is_one).collect()
    };
    let talkers = of("talker-");
    let strangers = of("stranger-");
    assert_eq!((talkers.len(), strangers.len()), (count, count));
    wait_for("the last container's records", seconds(20), || {
        let connections = running.records().connections().ok()?;
        let is_there = |truth: &&Truth| connections.iter().any(|one| one.is(truth));
        talkers.iter().all(is_there).then_some(())
    });
    running.process.signal(libc::SIGTERM);
    let run = running.finish(seconds(30));
    run.success();
    let records = run.records();
    records.check_ledger().unwrap();
    let connections = records.connections().unwrap();
    for truth in talkers {
        let name = &*name_of(truth);
        let same: Vec<_> = connections.iter().filter(|one| one.is(truth)).collect();
        let [connection] = same[..] else {
            panic!("{} times {name}", same.len());
        };
        for record in records.kind("data") {
            if record["connection"]["id"] == *connection.id {
                assert_eq!(record["container"], container(&ids[name], name), "{record}");
                assert_eq!(record["k8s"], Value::Null, "{record}");
            }
        }
    }
    for truth in &strangers {
        assert!(!connections.iter().any(|one| one.is(truth)), "a stranger");
    }
    let filtered = records.last_stats().unwrap()["ledger"]["bytes"]["filtered"].as_u64();
    assert!(filtered >= Some(total(&strangers.into_iter().cloned().collect::<Vec<_>>())));
}

/// Nobody looks while they run: when somebody does they are gone, and podman has forgotten them. Who heard of them in
/// time still knows.
#[test]
fn containers_of_podman_that_are_removed() {
    const TEST: &str = "containers_of_podman_that_are_removed";
    let Some(lab) = Lab::with(TEST, &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let Some(mut podman) = Podman::start(&lab, TEST) else {
        return;
    };
    let server = lab.server(&[]);
    let url = server.url("/echo");
    let config = format!("[metadata]\ndocker = [\"{}\"]\n", podman.socket().display());
    let running = lab
        .agent()
        .options(argv![
            "--config",
            lab.file("config.toml", config),
            "--cgroup",
            format!("/{}", podman.group.name())
        ])
        .unfiltered();
    podman.run("holder", HOLD);
    podman.run("first", &talk("first", &url));
    wait_for("what the first has said", seconds(20), || {
        let connections = running.records().connections().ok()?;
        (connections.len() == 1).then_some(())
    });
    let count = scaled("containers", 5, 2) as usize;
    let mut ids = HashMap::new();
    while_nobody_asks(&running, || {
        for number in 0..count {
            let name = format!("talker-{number}");
            ids.insert(name.clone(), podman.run(&name, &talk(&name, &url)));
            wait_for("what the container has said", seconds(20), || {
                (server.client_truth().len() == number + 2).then_some(())
            });
            podman.call(argv!["rm", "--force", "-t", "0", &name]);
        }
    });
    check_removed(running, &server, &ids, |name, record| {
        assert_eq!(record["container"], container(&ids[name], name), "{record}");
    });
}

/// What the agent tells of talkers that are no more, besides `first`: all that they have said.
fn check_removed(
    running: Running,
    server: &Server<'_>,
    ids: &HashMap<String, String>,
    check: impl Fn(&str, &Value),
) {
    wait_for("the last container's records", seconds(20), || {
        let connections = running.records().connections().ok()?;
        (connections.len() == 1 + ids.len()).then_some(())
    });
    running.process.signal(libc::SIGTERM);
    let run = running.finish(seconds(30));
    run.success();
    let records = run.records();
    records.check_ledger().unwrap();
    let connections = records.connections().unwrap();
    for truth in &server.client_truth() {
        let name = &*name_of(truth);
        if !ids.contains_key(name) {
            assert_eq!(name, "first");
            continue;
        }
        let of_it = connections.iter().find(|one| one.is(truth));
        let connection = of_it.unwrap_or_else(|| panic!("nothing of {name}"));
        let all = records.0.iter();
        let its = all.filter(|record| record["connection"]["id"] == *connection.id);
        its.for_each(|record| check(name, record));
    }
}

/// The same of a runtime of Kubernetes, also of one whose interface for that has no events yet.
#[test]
fn containers_of_cri_that_are_removed() {
    for fixture in ["containerd", "containerd-1.7"] {
        containers_that_are_removed(fixture);
    }
}

fn containers_that_are_removed(fixture: &str) {
    const TEST: &str = "containers_of_cri_that_are_removed";
    let Some(lab) = Lab::with(TEST, &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let Some(mut containerd) = Containerd::start(&lab, fixture, TEST) else {
        return;
    };
    let server = lab.server(&[]);
    let url = server.url("/echo");
    let config = format!(
        "[metadata]\ncri = [\"{}\"]\n",
        containerd.socket().display()
    );
    let running = lab
        .agent()
        .options(argv![
            "--config",
            lab.file("config.toml", config),
            "--cgroup",
            format!("/{}", containerd.group.name()),
            "--stats-interval",
            "100ms"
        ])
        .unfiltered();
    wait_for_filter(&running);
    // Longer than any answer is waited for: the first word of this one comes with the first container.
    std::thread::sleep(Duration::from_secs(3));
    let pod = "web-0";
    containerd.start_pod(pod);
    containerd.run(pod, "holder", HOLD);
    containerd.run(pod, "first", &talk("first", &url));
    wait_for("what the first has said", seconds(20), || {
        let connections = running.records().connections().ok()?;
        (connections.len() == 1).then_some(())
    });
    let count = scaled("containers", 5, 2) as usize;
    let names: Vec<String> = (0..count)
        .map(|number| format!("talker-{number}"))
        .collect();
    let creation = |name| containerd.creation(pod, name, &talk(name, &url));
    let calls: Vec<_> = names.iter().map(|name| creation(name)).collect();
    let made = containerd.call(&calls);
    while_nobody_asks(&running, || {
        containerd.start_all(&made);
        wait_for("what the containers have said", seconds(20), || {
            (server.client_truth().len() == count + 1).then_some(())
        });
        containerd.remove_all(&made);
    });
    let ids: HashMap<String, String> = names.into_iter().zip(made).collect();
    check_removed(running, &server, &ids, |name, record| {
        assert_eq!(record["container"], container(&ids[name], name), "{record}");
        assert_eq!(record["k8s"], k8s(pod, name), "{record}");
    });
}

/// Containers of each pod speak as soon as they are started, before anybody could ask what they are. What a pod says is
/// told as far as the rule for its namespace goes, and no further than itself asks for.
#[test]
fn a_policy_over_a_real_runtime() {
    const TEST: &str = "a_policy_over_a_real_runtime";
    const ANNOTATION: &str = "vortex.dev/capture";
    let Some(lab) = Lab::with(TEST, &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let Some(mut containerd) = Containerd::start(&lab, "containerd-1.7", TEST) else {
        return;
    };
    let pods = [
        ("web", "shop", ("note", "none")),
        ("private", "shop", (ANNOTATION, "none")),
        ("modest", "shop", (ANNOTATION, "metadata")),
        ("dns", "kube-system", ("note", "full")),
        ("greedy", "lab", (ANNOTATION, "full")),
    ];
    let (full, lengths) = (["web"], ["modest", "greedy"]);
    let nothing = [
        (
            "private",
            "its pod opted out: its annotation vortex.dev/capture is none",
        ),
        ("dns", "the policy excludes its container"),
    ];
    let server = lab.server(&[]);
    let url = server.url("/echo");
    let config = format!(
        "[metadata]\ncri = [\"{}\"]\n[policy]\ndefault = \"metadata\"\nhost = \"none\"\n\
         [[policy.rule]]\nnamespace = [\"kube-*\"]\ncapture = \"none\"\n\
         [[policy.rule]]\nnamespace = [\"shop\"]\ncapture = \"full\"\n",
        containerd.socket().display()
    );
    let running = lab
        .agent()
        .options(argv![
            "--config",
            lab.file("config.toml", config),
            "--cgroup",
            format!("/{}", containerd.group.name()),
            "--stats-interval",
            "100ms"
        ])
        .unfiltered();
    wait_for_filter(&running);
    for (name, namespace, annotation) in pods {
        containerd.start_pod_in(namespace, name, annotation);
    }
    containerd.run("web", "holder", HOLD);
    wait_for("probes in the image's library", seconds(20), || {
        let records = running.records();
        let found = records.kind("coverage").any(is_of_image);
        found.then_some(())
    });
    let count = scaled("containers of each pod", 6, 2) as usize;
    for number in 0..count {
        for (pod, ..) in pods {
            let name = format!("{pod}-{number}");
            containerd.run(pod, &name, &talk(&name, &url));
        }
    }
    let truth = wait_for("what each has said", seconds(20), || {
        let truth = server.client_truth();
        (truth.len() == count * pods.len()).then_some(truth)
    });
    let of = |pods: &[&str]| -> Vec<Truth> {
        let is_one = |truth: &&Truth| pods.iter().any(|pod| name_of(truth).starts_with(pod));
        truth.iter().filter(is_one).cloned().collect()
    };
    let (told, withheld) = (
        total(&of(&full)) + total(&of(&lengths)),
        total(&of(&nothing.map(|(pod, _)| pod))),
    );
    wait_for("the last container's bytes", seconds(20), || {
        let bytes = &running.last_ledger()?["bytes"];
        (bytes["delivered"] == told && bytes["filtered"] == withheld).then_some(())
    });
    running.process.signal(libc::SIGTERM);
    let run = running.finish(seconds(30));
    run.success();
    let records = run.records();
    assert_eq!(records.check_ledger().unwrap(), total(&truth));
    let stats = records.last_stats().unwrap();
    let bytes = &stats["ledger"]["bytes"];
    assert_eq!(
        (&bytes["delivered"], &bytes["filtered"]),
        (&json!(told), &json!(withheld))
    );
    let containers = &stats["containers"];
    let counts = [&containers["excluded"], &containers["opted_out"]];
    assert_eq!(counts, [count, 2 * count]);

    let of_pods = |pods: &[&str]| -> Records {
        let is_one = |record: &&Value| {
            let name = record["k8s"]["pod"]["name"].as_str();
            name.is_some_and(|name| pods.contains(&name))
        };
        Records(records.0.iter().filter(is_one).cloned().collect())
    };
    compare(&of_pods(&full).connections().unwrap(), &of(&full), &[])
        .unwrap_or_else(|error| panic!("{error}"));
    for truth in of(&lengths) {
        let name = name_of(&truth);
        let mut told = [0, 0];
        for record in of_pods(&lengths).kind("data") {
            if record["container"]["name"] == *name {
                assert_eq!(
                    (&record["text"], &record["base64"]),
                    (&Value::Null, &Value::Null)
                );
                told[usize::from(record["direction"] == "received")] +=
                    number(record, "/length").unwrap();
            }
        }
        assert_eq!(
            told,
            [truth.sent.len() as u64, truth.received.len() as u64],
            "{name}"
        );
    }
    for (pod, why) in nothing {
        let all = of_pods(&[pod]).0;
        assert!(!all.is_empty(), "nobody says that nothing is told of {pod}");
        for record in &all {
            let said = ["kind", "status", "reason"].map(|key| &record[key]);
            assert_eq!(said, ["coverage", "refused", why], "{record}");
        }
    }
    let is_told = |record: &&Value| record["kind"] != "coverage" && record["kind"] != "stats";
    for record in records.0.iter().filter(is_told) {
        let name = record["k8s"]["pod"]["name"].as_str().unwrap();
        assert!(full.contains(&name) || lengths.contains(&name), "{record}");
    }
}

/// A runtime that accepts and never answers: what is captured is whole, without a name.
#[test]
fn a_runtime_that_never_answers() {
    const TEST: &str = "a_runtime_that_never_answers";
    let Some(lab) = Lab::with(TEST, &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let id = crate::containers::id(4);
    let Some(group) = Group::of_container(&id) else {
        return skip(TEST, "no control group can be made");
    };
    let server = lab.server(&[]);
    let socket = lab.path("silent.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let path = socket.display();
    let config = format!("[metadata]\ncri = [\"{path}\"]\ndocker = [\"{path}\"]\n");
    let running = lab
        .agent()
        .options(argv![
            "--container",
            &id,
            "--config",
            lab.file("config.toml", config)
        ])
        .watch_group();
    let curl = |name: &str| {
        let script = format!(
            "{} exec curl -sk --http1.1 --data-binary {name} {}",
            group.enter(),
            server.url("/echo")
        );
        lab.finish(lab.command(argv!["sh", "-c", script]), name);
    };
    // Its library becomes known; it may be through with it before that.
    curl("first");
    wait_for("coverage of the container", seconds(10), || {
        let records = running.records();
        let found = records.kind("coverage").next().is_some();
        found.then_some(())
    });
    let before = server.client_truth().len();
    curl("second");
    curl("third");
    let truth = server.client_truth();
    wait_for("both requests", seconds(10), || {
        let connections = running.records().connections().ok()?;
        let is_there = |truth| connections.iter().any(|one| one.is(truth));
        truth[before..].iter().all(is_there).then_some(())
    });
    running.process.signal(libc::SIGTERM);
    let run = running.finish(seconds(20));
    run.success();
    let records = run.records();
    records.check_ledger().unwrap();
    for record in records.kind("data").chain(records.kind("coverage")) {
        assert_eq!(record["container"], json!({ "id": id }), "{record:.300}");
    }
    let told = &records.last_stats().unwrap()["containers"];
    assert_eq!(told["named"], 0, "{told}");
    assert!(told["late"].as_u64() >= Some(1), "{told}");
}
