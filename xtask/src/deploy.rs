//! What `deploy/` has for Kubernetes: valid for each version promised, without contradictions, and the same whether
//! kustomize or Helm makes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    fetch, image,
    sh::{self, MINUTE},
};

/// The oldest and the newest that are promised.
const VERSIONS: [&str; 2] = ["1.25", "1.37"];
const NAMESPACE: &str = "vortex";

/// An overlay, the chart's values that make the same, and a kernel of `tests/golden/capabilities.txt` that it is for.
struct Variant {
    directory: &'static str,
    values: fn() -> Value,
    kernel: &'static str,
}

const VARIANTS: [Variant; 5] = [
    Variant {
        directory: "base",
        values: || json!({}),
        kernel: "6.12",
    },
    Variant {
        directory: "overlays/kernel-before-6.6",
        values: || json!({ "kernelsBefore66": true }),
        kernel: "5.10",
    },
    Variant {
        directory: "overlays/cri-o",
        values: || json!({ "runtimeDirectory": "/run/crio" }),
        kernel: "7.2",
    },
    Variant {
        directory: "overlays/otlp",
        values: || json!({}),
        kernel: "6.18",
    },
    Variant {
        directory: "overlays/prometheus",
        values: || json!({ "metricsPort": 9464 }),
        kernel: "6.18",
    },
];

pub(crate) fn command() -> Result<()> {
    check(&fetch::for_manifests()?)
}

pub(crate) fn check(fixtures: &Path) -> Result<()> {
    let tools = Tools { fixtures };
    for variant in &VARIANTS {
        variant
            .check(&tools)
            .with_context(|| format!("deploy/kubernetes/{}", variant.directory))?;
    }
    sh::say(&format!(
        "  {} variants: valid for Kubernetes {}, and the same by kustomize and Helm",
        VARIANTS.len(),
        VERSIONS.join(" and ")
    ));
    Ok(())
}

impl Variant {
    fn check(&self, tools: &Tools<'_>) -> Result<()> {
        let directory = sh::root().join("deploy/kubernetes").join(self.directory);
        let text = tools.kustomize(&directory)?;
        tools.validate(&text)?;
        let objects = tools.objects(&text)?;
        consistent(&objects)?;
        let pod = &object(&objects, "DaemonSet")?["spec"]["template"]["spec"];
        allowed(pod, self.kernel)?;

        let mut values = (self.values)();
        let config = directory.join("config.toml");
        if config.exists() {
            values["config"] = fs::read_to_string(config)?.into();
        }
        let chart = tools.chart(&values)?;
        // Helm makes the namespace before it asks the chart.
        let names = |objects: &Objects| -> BTreeSet<Key> {
            let ours = objects.keys().filter(|(kind, _)| kind != "Namespace");
            ours.cloned().collect()
        };
        ensure!(
            names(&objects) == names(&chart),
            "the chart has other objects"
        );
        for (key, other) in &chart {
            let object = &objects[key];
            ensure!(
                object == other,
                "{key:?} by kustomize:\n{object:#}\nby Helm:\n{other:#}"
            );
        }
        Ok(())
    }
}

/// Kind and name.
type Key = (String, String);
type Objects = BTreeMap<Key, Value>;

struct Tools<'a> {
    fixtures: &'a Path,
}

impl Tools<'_> {
    fn program(&self, name: &str) -> Command {
        sh::command(self.fixtures.join(fetch::KUBERNETES).join("bin").join(name))
    }

    fn kustomize(&self, directory: &Path) -> Result<String> {
        let mut kubectl = self.program("kubectl");
        sh::output(kubectl.arg("kustomize").arg(directory), MINUTE)
    }

    fn validate(&self, text: &str) -> Result<()> {
        let file = sh::target().join("kubernetes.yaml");
        fs::write(&file, text)?;
        for version in VERSIONS {
            let mut validate = sh::command(fetch::PYTHON);
            validate
                .args(["-m", "kubernetes_validate", "--strict", "-k", version])
                .arg(&file)
                .env("PYTHONPATH", self.fixtures.join(fetch::VALIDATE));
            sh::output(&mut validate, MINUTE).with_context(|| format!("for {version}"))?;
        }
        Ok(())
    }

    fn objects(&self, text: &str) -> Result<Objects> {
        let file = sh::target().join("kubernetes.yaml");
        fs::write(&file, text)?;
        let mut chart = self.program("chart");
        objects(chart.arg("-").stdin(fs::File::open(file)?))
    }

    fn chart(&self, values: &Value) -> Result<Objects> {
        let file = sh::target().join("values.yaml");
        fs::write(&file, values.to_string())?;
        let mut chart = self.program("chart");
        chart
            .arg(sh::root().join("deploy/helm/vortex-agent"))
            .arg(NAMESPACE)
            .arg(file);
        objects(&mut chart)
    }
}

fn objects(command: &mut Command) -> Result<Objects> {
    let list: Vec<Value> = serde_json::from_str(&sh::output(command, MINUTE)?)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let keyed = list.into_iter().map(|object| {
        let key = (text(&object["kind"]), text(&object["metadata"]["name"]));
        (key, object)
    });
    Ok(keyed.collect())
}

fn object<'a>(objects: &'a Objects, kind: &str) -> Result<&'a Value> {
    let mut of_kind = objects.iter().filter(|((found, _), _)| found == kind);
    let (_, object) = of_kind.next().with_context(|| format!("no {kind}"))?;
    ensure!(of_kind.next().is_none(), "more than one {kind}");
    Ok(object)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn strings<'a>(values: impl IntoIterator<Item = &'a Value>) -> BTreeSet<&'a str> {
    values.into_iter().filter_map(Value::as_str).collect()
}

/// What a schema can't say: names that have to be the same in two places.
fn consistent(objects: &Objects) -> Result<()> {
    for ((kind, name), object) in objects {
        let namespace = &object["metadata"]["namespace"];
        let is_in_ours = namespace == NAMESPACE || kind == "Namespace" && name == NAMESPACE;
        ensure!(is_in_ours, "{kind} {name} is in {namespace}");
    }
    let set = &object(objects, "DaemonSet")?["spec"];
    let template = &set["template"];
    let selector = set["selector"]["matchLabels"]
        .as_object()
        .context("no selector")?;
    for (label, value) in selector {
        ensure!(
            &template["metadata"]["labels"][label] == value,
            "selector {label}"
        );
    }
    let pod = &template["spec"];
    let account = &object(objects, "ServiceAccount")?["metadata"]["name"];
    ensure!(
        &pod["serviceAccountName"] == account,
        "service account {account}"
    );
    let map = object(objects, "ConfigMap")?;
    let [container] = list(&pod["containers"]) else {
        anyhow::bail!("not one container");
    };
    ensure!(
        container["image"] == image::NAME,
        "image {}",
        container["image"]
    );

    let volumes = list(&pod["volumes"]);
    let mounts = list(&container["volumeMounts"]);
    let declared = strings(volumes.iter().map(|volume| &volume["name"]));
    let mounted = strings(mounts.iter().map(|mount| &mount["name"]));
    ensure!(
        declared == mounted,
        "volumes {declared:?}, mounts {mounted:?}"
    );
    let paths = strings(mounts.iter().map(|mount| &mount["mountPath"]));
    ensure!(paths.len() == mounts.len(), "two mounts at one place");
    for volume in volumes {
        let name = &volume["configMap"]["name"];
        ensure!(
            name.is_null() || name == &map["metadata"]["name"],
            "config map {name}"
        );
        // What is the node's is not ours to change.
        let mount = mounts.iter().find(|mount| mount["name"] == volume["name"]);
        let is_read_only = mount.is_some_and(|mount| mount["readOnly"] == true);
        ensure!(
            volume["hostPath"].is_null() || is_read_only,
            "{volume} can be written"
        );
    }
    // The file that it is told to read is in the map that is mounted there.
    let args: Vec<&str> = list(&container["args"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let ["daemon", "--config", file] = args[..] else {
        anyhow::bail!("args {args:?}");
    };
    let (place, key) = file.rsplit_once('/').context("no directory")?;
    ensure!(paths.contains(place), "{place} is not mounted");
    ensure!(map["data"][key].is_string(), "no {key} in the config map");
    Ok(())
}

/// Exactly the capabilities that were measured on this kernel.
fn allowed(pod: &Value, kernel: &str) -> Result<()> {
    let security = &pod["containers"][0]["securityContext"];
    let capabilities = &security["capabilities"];
    ensure!(
        strings(list(&capabilities["drop"])) == BTreeSet::from(["ALL"]),
        "not all are dropped"
    );
    let given = strings(list(&capabilities["add"]));
    let table = fs::read_to_string(sh::root().join("tests/golden/capabilities.txt"))?;
    let mut needed = needed(&table, kernel)?;
    // SYS_ADMIN includes some, which are named for the day on which the node gets a newer kernel.
    let admin = needed.contains("SYS_ADMIN");
    if admin {
        needed.extend(["BPF", "PERFMON", "CHECKPOINT_RESTORE"]);
    }
    ensure!(
        given == needed,
        "gives {given:?}, {kernel} needs {needed:?}"
    );
    // The API server refuses the one with the other.
    let escalation = &security["allowPrivilegeEscalation"];
    ensure!(
        escalation.is_null() == admin,
        "allowPrivilegeEscalation with {given:?}"
    );
    Ok(())
}

/// A column of `tests/golden/capabilities.txt`, as manifests write them.
fn needed<'a>(table: &'a str, kernel: &str) -> Result<BTreeSet<&'a str>> {
    let mut lines = table.lines().filter(|line| !line.starts_with('#'));
    let head = lines.next().context("an empty table")?;
    let column = head.split_whitespace().position(|name| name == kernel);
    let column = column.with_context(|| format!("no kernel {kernel}"))?;
    let needed = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?.strip_prefix("CAP_")?;
        (words.nth(column - 1)? == "needed").then_some(name)
    });
    Ok(needed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_of_the_table() {
        let table =
            "# x\ncapability 5.10 6.1\nCAP_A needed -\nCAP_B - needed\nCAP_C needed needed\n";
        assert_eq!(
            needed(table, "6.1").expect("there"),
            BTreeSet::from(["B", "C"])
        );
        needed(table, "6.2").expect_err("no such column");
    }

    fn objects() -> Objects {
        let mount =
            |name: &str, path: &str| json!({ "name": name, "mountPath": path, "readOnly": true });
        let container = json!({
            "image": image::NAME,
            "args": ["daemon", "--config", "/etc/x/config.toml"],
            "volumeMounts": [mount("config", "/etc/x"), mount("node", "/sys/y")],
        });
        let pod = json!({
            "serviceAccountName": "a",
            "containers": [container],
            "volumes": [
                { "name": "config", "configMap": { "name": "m" } },
                { "name": "node", "hostPath": { "path": "/sys/y" } },
            ],
        });
        let of = |kind: &str, name: &str, rest: Value| {
            let mut object =
                json!({ "kind": kind, "metadata": { "name": name, "namespace": NAMESPACE } });
            rest.as_object()
                .into_iter()
                .flatten()
                .for_each(|(key, value)| object[key] = value.clone());
            ((kind.to_owned(), name.to_owned()), object)
        };
        let spec = json!({
            "selector": { "matchLabels": { "l": "v" } },
            "template": { "metadata": { "labels": { "l": "v" } }, "spec": pod },
        });
        Objects::from([
            of("Namespace", NAMESPACE, json!({})),
            of("ServiceAccount", "a", json!({})),
            of("ConfigMap", "m", json!({ "data": { "config.toml": "" } })),
            of("DaemonSet", "d", json!({ "spec": spec })),
        ])
    }

    #[test]
    fn contradictions_are_found() {
        consistent(&objects()).expect("consistent");
        for (place, wrong) in [
            ("/metadata/namespace", json!("other")),
            ("/spec/selector/matchLabels/l", json!("w")),
            ("/spec/template/spec/serviceAccountName", json!("b")),
            ("/spec/template/spec/containers/0/image", json!("other:1")),
            (
                "/spec/template/spec/containers/0/args/2",
                json!("/etc/x/other.toml"),
            ),
            (
                "/spec/template/spec/containers/0/args/2",
                json!("/etc/z/config.toml"),
            ),
            (
                "/spec/template/spec/containers/0/volumeMounts/1/name",
                json!("nodes"),
            ),
            (
                "/spec/template/spec/containers/0/volumeMounts/1/mountPath",
                json!("/etc/x"),
            ),
            (
                "/spec/template/spec/containers/0/volumeMounts/1/readOnly",
                json!(false),
            ),
            ("/spec/template/spec/volumes/0/configMap/name", json!("n")),
        ] {
            let mut objects = objects();
            let set = objects.get_mut(&("DaemonSet".to_owned(), "d".to_owned()));
            *set.and_then(|set| set.pointer_mut(place)).expect(place) = wrong;
            consistent(&objects).expect_err(place);
        }
    }

    #[test]
    fn capabilities_are_those_that_were_measured() {
        let pod = |add: &[&str], escalation: Value| {
            json!({ "containers": [{ "securityContext": {
                "capabilities": { "drop": ["ALL"], "add": add }, "allowPrivilegeEscalation": escalation,
            }}]})
        };
        let eight = [
            "BPF",
            "PERFMON",
            "SYS_PTRACE",
            "DAC_READ_SEARCH",
            "CHECKPOINT_RESTORE",
            "SETUID",
            "SETGID",
            "SETPCAP",
        ];
        allowed(&pod(&eight, json!(false)), "6.18").expect("these");
        allowed(&pod(&eight[1..], json!(false)), "6.18").expect_err("one is missing");
        allowed(&pod(&eight, Value::Null), "6.18").expect_err("escalation");
        let ten = [&eight[..], &["SYS_ADMIN", "SYS_RESOURCE"]].concat();
        allowed(&pod(&ten, json!(false)), "6.18").expect_err("two too many");
        allowed(&pod(&ten, Value::Null), "5.10").expect("these");
        allowed(&pod(&ten, json!(false)), "5.10").expect_err("the API server refuses it");
    }
}
