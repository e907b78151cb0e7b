//! The container of the DaemonSet in `deploy/kubernetes`, as the manifest says it, run by a containerd of the test's
//! own: with its command, its settings and those of the overlays that deliver, and exactly its capabilities, mounts,
//! seccomp profile and read-only root. What the kubelet would do between the two is done here, through CRI.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::collectors::{arrived, attribute, collector, logs, written};
use crate::harness::{Lab, PYTHON, Proc, argv, bare, free_port, seconds, skip, wait_for};
use crate::limits::read_page;
use crate::records::{Records, compare, total};

const PAUSE: &str = "test.local/pause:1";
/// CRI's numbers.
const ON_THE_NODE: u64 = 2;
const HOST_TO_CONTAINER: u64 = 1;
const RUNTIME_DEFAULT: u64 = 0;
const EXITED: u64 = 2;

/// A containerd, and the pods in it, which go with it.
struct Node<'a> {
    lab: &'a Lab,
    grpcio: PathBuf,
    /// Its processes, in every hierarchy.
    group: String,
    pods: Vec<String>,
    _containerd: Proc,
}

impl<'a> Node<'a> {
    fn start(lab: &'a Lab, grpcio: PathBuf, image: &Path) -> Self {
        let dir = lab.path("run");
        fs::create_dir(&dir).unwrap();
        // Shared, as a node's `/run` is: mounts that come and go below it are to be seen inside of a container.
        let mount = "mount --bind \"$1\" \"$1\" && mount --make-shared \"$1\"";
        lab.finish(lab.command(argv!["sh", "-c", mount, "sh", &dir]), "mount");
        let config = format!(
            "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n\
             [grpc]\naddress = \"{dir}/containerd.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{PAUSE}\"\n\
             # Without CAP_SYS_RESOURCE nobody may ask for less of it.\n\
             restrict_oom_score_adj = true\ndisable_tcp_service = true\n",
            dir = dir.display()
        );
        let config = lab.file("containerd.toml", config);
        let command = lab.command(argv!["containerd", "--config", config]);
        let containerd = lab.spawn(command, "containerd");
        let node = Self {
            lab,
            grpcio,
            group: format!("/vortex-e2e-{}", std::process::id()),
            pods: Vec::new(),
            _containerd: containerd,
        };
        wait_for("containerd", seconds(20), || {
            node.socket().exists().then_some(())
        });
        let pause = lab.path("pause.tar");
        let root = lab.path("pause-root");
        fs::create_dir(&root).unwrap();
        fs::copy(lab.compiled_static("pause"), root.join("pause")).unwrap();
        let program = lab.program("image.py");
        let words = argv![PYTHON, program, root, PAUSE, &pause, "/pause"];
        lab.finish(lab.command(words), "image");
        for image in [pause.as_path(), image] {
            let ctr = argv![
                "ctr",
                "-a",
                node.socket(),
                "-n",
                "k8s.io",
                "images",
                "import",
                image
            ];
            lab.finish(lab.command(ctr), "ctr");
        }
        node
    }

    fn socket(&self) -> PathBuf {
        self.lab.path("run").join("containerd.sock")
    }

    fn try_call(&self, method: &str, request: &Value) -> Result<Value, String> {
        let mut python = Command::new(PYTHON);
        python
            .arg(self.lab.program("kubelet.py"))
            .arg(self.socket())
            .args([method, &request.to_string()])
            .env("PYTHONPATH", &self.grpcio);
        let output = python.output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => serde_json::from_slice(&output.stdout).map_err(|error| error.to_string()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    #[track_caller]
    fn call(&self, method: &str, request: Value) -> Value {
        self.try_call(method, &request)
            .unwrap_or_else(|error| panic!("{method} {request:#}: {error}"))
    }

    /// A pod on the node's network: there is no other here.
    fn pod(&mut self, namespace: &str, name: &str, pid: u64) -> Pod {
        let config = json!({
            "metadata": { "name": name, "uid": format!("{name}-uid"), "namespace": namespace },
            "labels": { "app": "web" },
            "log_directory": self.lab.dir,
            "linux": {
                "cgroup_parent": self.group,
                "security_context": {
                    "namespace_options": { "network": ON_THE_NODE, "pid": pid },
                    "seccomp": { "profile_type": RUNTIME_DEFAULT },
                },
            },
        });
        let answer = self.call("RunPodSandbox", json!({ "config": config }));
        let id = answer["pod_sandbox_id"].as_str().unwrap().to_owned();
        self.pods.push(id.clone());
        Pod { id, config }
    }

    /// A container that runs, by its id.
    fn container(&self, pod: &Pod, config: &Value) -> String {
        let request =
            json!({ "pod_sandbox_id": pod.id, "config": config, "sandbox_config": pod.config });
        let answer = self.call("CreateContainer", request);
        let id = answer["container_id"].as_str().unwrap().to_owned();
        self.call("StartContainer", json!({ "container_id": id }));
        id
    }

    /// Its exit status.
    #[track_caller]
    fn end(&self, id: &str) -> u64 {
        wait_for("the end of a container", seconds(60), || {
            let answer = self.call("ContainerStatus", json!({ "container_id": id }));
            let status = &answer["status"];
            (status["state"] == EXITED).then(|| status["exit_code"].as_u64().unwrap())
        })
    }

    fn spec(&self, id: &str) -> Value {
        let answer = self.call(
            "ContainerStatus",
            json!({ "container_id": id, "verbose": true }),
        );
        let info: Value = serde_json::from_str(answer["info"]["info"].as_str().unwrap()).unwrap();
        info["runtimeSpec"].clone()
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        for pod in &self.pods {
            for method in ["StopPodSandbox", "RemovePodSandbox"] {
                if let Err(error) = self.try_call(method, &json!({ "pod_sandbox_id": pod })) {
                    eprintln!("{method}: {error}");
                }
            }
        }
        // containerd, which ends after this, still uses it.
        let mut umount = Command::new("umount");
        let unmounted = umount
            .args(["--recursive", "--lazy"])
            .arg(self.lab.path("run"))
            .status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let hierarchies = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (place, kind) = (words.next()?, words.next()?);
            kind.starts_with("cgroup").then_some(place)
        });
        for hierarchy in hierarchies {
            let _ = fs::remove_dir(format!("{hierarchy}{}", self.group));
        }
    }
}

struct Pod {
    id: String,
    config: Value,
}

/// The pod that the DaemonSet makes on a node, and the settings that it mounts.
fn manifest(lab: &Lab) -> Option<(Value, String)> {
    let kubectl = lab.fixture("kubernetes", "bin/kubectl")?;
    let chart = lab.fixture("kubernetes", "bin/chart")?;
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/base");
    let yaml = lab.finish(lab.command(argv![kubectl, "kustomize", base]), "kubectl");
    let yaml = lab.file("objects.yaml", yaml.out());
    let mut command = Command::new(chart);
    command.arg("-").stdin(fs::File::open(yaml).unwrap());
    let objects: Vec<Value> = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind);
    let pod = of_kind("DaemonSet")?["spec"]["template"]["spec"].clone();
    let settings = of_kind("ConfigMap")?["data"]["config.toml"].as_str()?;
    Some((pod, settings.to_owned()))
}

/// Puts `new` where `old` is, once.
#[track_caller]
fn replaced(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{old} in {text}");
    text.replace(old, new)
}

/// The settings of the manifest, as somebody changes them who wants to see what his shop says, with the sinks of the
/// overlays at these ports. The one line that nobody would write limits the agent to a container of the test, whose
/// library nobody else maps: the machine is not the test's.
fn settings(lab: &Lab, manifest: &str, container: &str, collector: u16, page: u16) {
    let head = format!("container = [\"{container}\"]\ncontent = \"full\"\n");
    let text = replaced(manifest, "content = \"none\"\n", &head);
    let rule = |mark: &str, capture: &str| {
        [
            "[[policy.rule]]",
            "namespace = [\"shop\"]",
            "label = [\"app=web\"]",
            capture,
        ]
        .map(|line| format!("{mark}{line}\n"))
        .concat()
    };
    let text = replaced(
        &text,
        &rule("#", "capture = \"redacted\""),
        &rule("", "capture = \"full\""),
    );
    let otlp = replaced(
        &sink("otlp"),
        "https://otel-collector.observability.svc:4317",
        &format!("http://127.0.0.1:{collector}"),
    );
    // Every pod has its own network there, and its own addresses.
    let prometheus = replaced(
        &sink("prometheus"),
        "0.0.0.0:9464",
        &format!("127.0.0.1:{page}"),
    );
    // Of the manifest's last table, which is its sink.
    let log = "output = \"json\"\nemit = [\"data\", \"gap\", \"coverage\", \"stats\"]\n";
    let text = format!("{text}{log}{otlp}{prometheus}");
    let directory = lab.path("volume-config");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("config.toml"), text).unwrap();
}

/// The last table in the settings of an overlay: the sink that it is for.
fn sink(overlay: &str) -> String {
    let overlays = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/overlays");
    let text = fs::read_to_string(overlays.join(overlay).join("config.toml")).unwrap();
    let start = text.rfind("[[sink]]").expect("a sink");
    text[start..].to_owned()
}

/// rotel, which takes OTLP by gRPC and passes it on to `collector.py`; and its port.
fn rotel(lab: &Lab, program: PathBuf) -> (Proc, Proc, u16) {
    let (end, behind) = collector(lab, "behind", &[]);
    let [grpc, http] = [free_port(), free_port()];
    let words = argv![
        program,
        "start",
        "--otlp-grpc-endpoint",
        format!("127.0.0.1:{grpc}"),
        "--otlp-http-endpoint",
        format!("127.0.0.1:{http}"),
        "--exporter",
        "otlp",
        "--otlp-exporter-endpoint",
        format!("http://127.0.0.1:{behind}"),
        "--otlp-exporter-protocol",
        "http",
        "--pid-file",
        lab.path("rotel.pid"),
        "--log-file",
        lab.path("rotel.log"),
    ];
    let rotel = lab.spawn(lab.command(words), "rotel");
    wait_for("rotel", seconds(20), || {
        TcpStream::connect(("127.0.0.1", grpc))
            .is_ok()
            .then_some(())
    });
    (rotel, end, grpc)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Where the pod's processes are counted.
fn pid(pod: &Value) -> u64 {
    if pod["hostPID"] == true {
        return ON_THE_NODE;
    }
    0
}

/// What the kubelet makes of the pod's one container.
fn kubelet(lab: &Lab, pod: &Value, args: &Value, log: &str) -> Value {
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    let mounts = list(&container["volumeMounts"]).iter().map(|mount| {
        let volume = list(&pod["volumes"])
            .iter()
            .find(|volume| volume["name"] == mount["name"]);
        let host = match volume.unwrap()["hostPath"]["path"].as_str() {
            // Here containerd is somewhere else.
            Some("/run/containerd") => lab.path("run"),
            Some(path) => path.into(),
            None => {
                let dir = lab.path(&format!("volume-{}", mount["name"].as_str().unwrap()));
                fs::create_dir_all(&dir).unwrap();
                // As the kubelet makes them.
                fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
                dir
            }
        };
        let propagation = match mount["mountPropagation"].as_str() {
            Some("HostToContainer") => HOST_TO_CONTAINER,
            None => 0,
            other => panic!("{other:?}"),
        };
        json!({
            "container_path": mount["mountPath"], "host_path": host,
            "readonly": mount["readOnly"] == true, "propagation": propagation,
        })
    });
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    assert_eq!(security["privileged"], false);
    json!({
        "metadata": { "name": container["name"] },
        "image": { "image": container["image"] },
        "args": args,
        "mounts": mounts.collect::<Vec<_>>(),
        "log_path": log,
        "linux": {
            "resources": { "memory_limit_in_bytes": 512 << 20 },
            "security_context": {
                "capabilities": {
                    "add_capabilities": security["capabilities"]["add"],
                    "drop_capabilities": security["capabilities"]["drop"],
                },
                "namespace_options": {
                    "network": ON_THE_NODE,
                    "pid": pid(pod),
                },
                "run_as_user": { "value": security["runAsUser"] },
                "run_as_group": { "value": security["runAsGroup"] },
                "readonly_rootfs": security["readOnlyRootFilesystem"] == true,
                "no_new_privs": security["allowPrivilegeEscalation"] == false,
                "seccomp": { "profile_type": RUNTIME_DEFAULT },
                "masked_paths": [
                    "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
                ],
                "readonly_paths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        },
    })
}

/// A container with the machine's Python and a libssl of its own. It waits for the file `go`.
fn neighbour(lab: &Lab, port: u16) -> Value {
    let script = "
import os, runpy, ssl, sys, time
end = time.time() + 60
while not os.path.exists(sys.argv[1]) and time.time() < end:
    time.sleep(0.05)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name='__main__')
";
    let client = lab.program("http_client.py");
    let at = |host: &Path, inside: &Path, readonly: bool| json!({ "host_path": host, "container_path": inside, "readonly": readonly });
    let system = [
        ("/usr", "/usr"),
        ("/usr/lib", "/lib"),
        ("/usr/lib64", "/lib64"),
        ("/etc", "/etc"),
    ];
    let mut mounts = system
        .map(|(host, inside)| at(host.as_ref(), inside.as_ref(), true))
        .to_vec();
    mounts.push(at(&lab.dir, &lab.dir, false));
    json!({
        "metadata": { "name": "client" },
        "image": { "image": PAUSE },
        "command": [PYTHON, "-c", script, lab.path("go"), client, "http.client", port.to_string()],
        "envs": { "LD_LIBRARY_PATH": lab.private_libssl("private"), "E2E_PDEATHSIG": "0", "E2E_SECONDS": "60" },
        "mounts": mounts,
        "log_path": "client.log",
        "linux": { "security_context": { "namespace_options": { "network": ON_THE_NODE } } },
    })
}

/// The lines of a container, without the runtime's own words before each: when, to where, and whether more of it
/// follows.
fn said(lab: &Lab, log: &str) -> String {
    said_to(lab, log, |_| true)
}

/// Those to one of `stdout` and `stderr`.
fn said_to(lab: &Lab, log: &str, is_wanted: impl Fn(&[u8]) -> bool) -> String {
    let log = fs::read(lab.path(log)).unwrap_or_default();
    let mut said = Vec::new();
    // The runtime may be in the middle of its last line.
    let whole = log.split_inclusive(|byte| *byte == b'\n');
    for line in whole.filter_map(|line| line.strip_suffix(b"\n")) {
        let words: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
        let &[_, to, part, words] = &words[..] else {
            continue;
        };
        if is_wanted(to) {
            said.extend_from_slice(words);
            // It cuts long lines where it likes, within characters, too.
            said.extend_from_slice(if part == b"P" { b"" } else { b"\n" });
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn daemonset_sees_a_neighbour() {
    const TEST: &str = "daemonset_sees_a_neighbour";
    let Some(lab) = Lab::with(TEST, &["containerd", "runc", "ctr", "cc"]) else {
        return;
    };
    if bare() {
        return;
    }
    let Some(image) = std::env::var_os("VORTEX_IMAGE") else {
        return skip(TEST, "VORTEX_IMAGE does not name an image");
    };
    let Some(grpcio) = lab.fixture("grpcio", "") else {
        return;
    };
    let Some(program) = lab.fixture("rotel", "rotel/rotel-agent") else {
        return;
    };
    let Some((pod, manifests)) = manifest(&lab) else {
        return;
    };
    let (_rotel, _behind, port) = rotel(&lab, program);
    let page = free_port();
    let server = lab.server(&[]);
    let mut node = Node::start(&lab, grpcio, image.as_ref());
    let other = node.pod("shop", "neighbour", 0);
    let client = node.container(&other, &neighbour(&lab, server.port));
    settings(&lab, &manifests, &client, port, page);

    let ours = node.pod("vortex", "vortex-agent", pid(&pod));
    let told = &pod["containers"][0];
    let agent = node.container(&ours, &kubelet(&lab, &pod, &told["args"], "agent.log"));
    // Where `kubectl logs` finds it.
    let records = |finished| {
        let text = said_to(&lab, "agent.log", |to| to == b"stdout");
        Records::parse(&text, finished).unwrap()
    };
    wait_for("coverage of the neighbour", seconds(20), || {
        let status = node.call("ContainerStatus", json!({ "container_id": agent }));
        assert_ne!(
            status["status"]["state"],
            EXITED,
            "{}",
            said(&lab, "agent.log")
        );
        records(false)
            .kind("coverage")
            .next()
            .is_some()
            .then_some(())
    });
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let command = &told[probe]["exec"]["command"];
        let request = json!({ "container_id": agent, "cmd": command, "timeout": told[probe]["timeoutSeconds"] });
        let answer = node.call("ExecSync", request);
        assert_eq!(answer["exit_code"], 0, "{probe}: {answer}");
    }
    lab.file("go", "");
    assert_eq!(node.end(&client), 0, "{}", said(&lab, "client.log"));
    let truth = server.client_truth();
    // Before there is no more agent to ask.
    let exchanges = || {
        let records = logs(&lab, "behind");
        records.filter(|one| one.event_name == "http").count() as u64
    };
    let counted = wait_for("the exchanges on the page", seconds(20), || {
        let text = read_page(page).ok()?;
        let to_server = format!("server_port=\"{}\"", server.port);
        let counts = text.lines().filter(|line| {
            line.starts_with("http_client_request_duration_seconds_count{")
                && line.contains(&to_server)
        });
        let counts = counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
        let count = counts.sum::<u64>();
        (count > 0 && count == exchanges()).then_some(count)
    });
    node.call(
        "StopContainer",
        json!({ "container_id": agent, "timeout": 10 }),
    );
    assert_eq!(node.end(&agent), 0, "{}", said(&lab, "agent.log"));
    let records = records(true);
    compare(&records.connections().unwrap(), &truth, &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(records.check_ledger().unwrap(), total(&truth));
    for record in records.kind("data").chain(records.kind("coverage")) {
        assert_eq!(record["container"]["id"], *client, "{record:.300}");
        assert_eq!(record["container"]["name"], "client", "{record:.300}");
        assert_eq!(record["k8s"]["namespace"]["name"], "shop", "{record:.300}");
        assert_eq!(record["k8s"]["pod"]["name"], "neighbour", "{record:.300}");
    }
    // What `kubectl logs` shows arrived at the collector too, but for single chunks, which it is not sent: each once,
    // and under the same names.
    let here = written(&records).into_iter();
    let here: BTreeSet<_> = here.filter(|(kind, _)| kind != "data").collect();
    wait_for("what rotel passes on", seconds(20), || {
        let there: BTreeSet<_> = arrived(&lab, "behind").into_iter().collect();
        here.is_subset(&there).then_some(())
    });
    assert_eq!(exchanges(), counted, "told of after it had been counted");
    let there = arrived(&lab, "behind");
    let once: BTreeSet<_> = there.iter().collect();
    assert_eq!(there.len(), once.len(), "twice at the collector");
    for record in logs(&lab, "behind") {
        if ["data", "coverage", "http"].contains(&&*record.event_name) {
            for (key, value) in [("k8s.pod.name", "neighbour"), ("container.name", "client")] {
                assert_eq!(
                    attribute(&record, key).as_deref(),
                    Some(value),
                    "{record:?}"
                );
            }
        }
    }

    // It was what the manifest says, and no more.
    let spec = node.spec(&agent);
    let names = |value: &Value, prefix: &str| {
        let mut names: Vec<String> = list(value)
            .iter()
            .map(|name| format!("{prefix}{}", name.as_str().unwrap()))
            .collect();
        names.sort();
        names
    };
    let security = &pod["containers"][0]["securityContext"];
    let given = names(&security["capabilities"]["add"], "CAP_");
    for set in ["bounding", "effective", "permitted"] {
        assert_eq!(
            names(&spec["process"]["capabilities"][set], ""),
            given,
            "{set}"
        );
    }
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["process"]["user"]["uid"], 0);
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");

    // The doctor is content with that, and names what is taken away.
    let doctor = |without: Option<&str>| {
        let log = format!("doctor-{}.log", without.unwrap_or("all"));
        let mut config = kubelet(&lab, &pod, &json!(["doctor"]), &log);
        config["metadata"]["name"] = log.clone().into();
        let add = &mut config["linux"]["security_context"]["capabilities"]["add_capabilities"];
        add.as_array_mut()
            .unwrap()
            .retain(|name| name.as_str() != without);
        node.end(&node.container(&ours, &config));
        let said = said(&lab, &log);
        let line = said.lines().find(|line| line.contains(" privileges "));
        line.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    assert!(doctor(None).starts_with("ok "), "{}", doctor(None));
    for name in list(&security["capabilities"]["add"]) {
        let name = name.as_str().unwrap();
        let line = doctor(Some(name));
        let is_named = line.starts_with("FAILED") && line.contains(&format!("no CAP_{name} "));
        assert!(is_named, "without {name}: {line}");
        assert_eq!(line.matches("no CAP_").count(), 1, "without {name}: {line}");
    }
}
