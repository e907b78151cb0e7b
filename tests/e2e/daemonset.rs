//! The container of the DaemonSet in `deploy/kubernetes`, as the manifest says it, run by a containerd of the test's
//! own: with exactly its capabilities, mounts, seccomp profile and read-only root. What the kubelet would do between
//! the two is done here, through CRI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Lab, PYTHON, Proc, argv, bare, seconds, skip, wait_for};
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
    fn pod(&mut self, name: &str, pid: u64) -> Pod {
        let config = json!({
            "metadata": { "name": name, "uid": format!("{name}-uid"), "namespace": "vortex" },
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

/// The pod that the DaemonSet makes on a node.
fn manifest(lab: &Lab) -> Option<Value> {
    let kubectl = lab.fixture("kubernetes", "bin/kubectl")?;
    let chart = lab.fixture("kubernetes", "bin/chart")?;
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/base");
    let yaml = lab.finish(lab.command(argv![kubectl, "kustomize", base]), "kubectl");
    let yaml = lab.file("objects.yaml", yaml.out());
    let mut command = Command::new(chart);
    command.arg("-").stdin(fs::File::open(yaml).unwrap());
    let objects: Vec<Value> = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let set = objects.iter().find(|object| object["kind"] == "DaemonSet");
    Some(set?["spec"]["template"]["spec"].clone())
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

/// What the kubelet makes of the pod's one container, with another command.
fn kubelet(lab: &Lab, pod: &Value, args: &[&str], log: &str) -> Value {
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

/// The lines of a container, without the runtime's own words before each.
fn said(lab: &Lab, log: &str) -> String {
    let text = fs::read_to_string(lab.path(log)).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
    lines.map(|line| format!("{line}\n")).collect()
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
    let Some(pod) = manifest(&lab) else {
        return;
    };
    let server = lab.server(&[]);
    let mut node = Node::start(&lab, grpcio, image.as_ref());
    let other = node.pod("neighbour", 0);
    let client = node.container(&other, &neighbour(&lab, server.port));

    // Not `daemon`: that watches the whole machine, which is not the test's.
    let args = [
        "run",
        "--container",
        &client,
        "--output",
        "json",
        "--content",
        "full",
        "--emit",
        "data,gap,coverage,stats",
        "-o",
        "/run/vortex-agent/records.ndjson",
    ];
    let ours = node.pod("vortex-agent", pid(&pod));
    let agent = node.container(&ours, &kubelet(&lab, &pod, &args, "agent.log"));
    let file = lab.path("volume-run/records.ndjson");
    let records = |finished| {
        let text = fs::read_to_string(&file).unwrap_or_default();
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
    lab.file("go", "");
    assert_eq!(node.end(&client), 0, "{}", said(&lab, "client.log"));
    let truth = server.client_truth();
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
        let mut config = kubelet(&lab, &pod, &["doctor"], &log);
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
